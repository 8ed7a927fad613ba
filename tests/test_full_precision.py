"""Float32 without TF32: within, and what is left of it outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch

from fairq_utils.quantizers.precision import full_precision

CUDNN = cast(Any, torch.backends.cudnn)


def setting() -> tuple[Any, ...]:
    """Everything that others may read."""
    return (
        CUDNN.conv.fp32_precision,
        CUDNN.rnn.fp32_precision,
        CUDNN.allow_tf32,
        torch.backends.cuda.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),
    )


def is_full() -> bool:
    return "tf32" not in (CUDNN.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    CUDNN.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("products", ["highest", "high"])
def test_what_the_user_set_holds_again_outside(convolutions: bool, products: str) -> None:
    CUDNN.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
    before = setting()
    assert is_full() == (not convolutions and products == "highest")
    with full_precision():
        assert is_full()
        assert CUDNN.allow_tf32 is False  # which others read
        with pytest.raises(KeyError), full_precision():
            raise KeyError
        assert is_full()
    assert setting() == before


def test_the_whole_process_may_be_in_tf32() -> None:
    everything = cast(Any, torch.backends)
    everything.fp32_precision = "tf32"
    try:
        with full_precision():
            assert is_full()
    finally:
        everything.fp32_precision = "none"


def test_the_last_thread_to_leave_restores_it() -> None:
    before, entered, leave = setting(), threading.Event(), threading.Event()
    found = []

    def other() -> None:
        with full_precision():
            entered.set()
            leave.wait(10)
            found.append(is_full())

    thread = threading.Thread(target=other)
    with full_precision():
        thread.start()
        entered.wait(10)
    assert is_full()  # the other thread is inside
    leave.set()
    thread.join()
    assert found == [True]
    assert setting() == before
