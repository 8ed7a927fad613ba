"""Timers: when they stop, what they say, and how much memory a call holds."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils import benchmark

from fairq_utils import timers
from fairq_utils.timers import Timing, error_of_median, time_call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[float]], Callable[[], None]]:
    """A clock that only calls move on, by as many milliseconds as they are told to take."""
    now = [0.0]
    monkeypatch.setattr(benchmark, "timer", lambda: now[0])

    def calls(milliseconds: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            now[0] += next(milliseconds) / 1e3

        return call

    return calls


def alternating(low: float, high: float) -> Iterator[float]:
    while True:
        yield low
        yield high


def test_it_stops_as_soon_as_the_median_is_known(
    clock: Callable[[Iterator[float]], Callable[[], None]],
) -> None:
    found = time_call(clock(alternating(9.0, 11.0)), relative_error=0.02, seconds=1e9)
    assert 0.0 < found.relative_error < 0.02
    # Quartiles 9 and 11 around a median of 9 to 11: 1.25 x 2 / (1.35 sqrt(n) median) < 0.02.
    assert 60 < found.calls < 120
    closer = time_call(clock(alternating(9.0, 11.0)), relative_error=0.01, seconds=1e9)
    assert closer.calls > 3 * found.calls


def test_a_steady_call_is_timed_five_times(
    clock: Callable[[Iterator[float]], Callable[[], None]],
) -> None:
    found = time_call(clock(alternating(4.0, 4.0)), seconds=1e9)
    assert found.calls == timers.LEAST
    assert found.median == pytest.approx(4.0)
    assert found.relative_error == pytest.approx(0.0, abs=1e-9)


def test_time_is_up_before_the_median_is_known(
    clock: Callable[[Iterator[float]], Callable[[], None]],
) -> None:
    found = time_call(clock(alternating(1.0, 99.0)), relative_error=1e-6, seconds=1.0)
    assert 20 <= found.calls <= 22  # of 50 ms on average
    assert found.relative_error > 1e-6


def test_no_more_than_two_thousand_calls(
    clock: Callable[[Iterator[float]], Callable[[], None]],
) -> None:
    assert time_call(clock(alternating(1, 3)), relative_error=0, seconds=1e9).calls == timers.MOST


def test_the_first_calls_are_not_timed(
    clock: Callable[[Iterator[float]], Callable[[], None]],
) -> None:
    def cold() -> Iterator[float]:
        yield from [1000.0] * timers.WARM_UP
        yield from alternating(2.0, 2.0)

    assert time_call(clock(cold()), seconds=1e9).median == pytest.approx(2.0)


def test_quartiles_are_ordered_and_hold_the_median() -> None:
    found = time_call(lambda: time.sleep(0.001), seconds=0.05)
    assert 1.0 <= found.low <= found.median <= found.high
    assert found.device == "cpu"


def test_error_of_the_median_by_hand() -> None:
    # Quartiles 2 and 4 around 3, five calls.
    assert error_of_median([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(
        1.25 * 2 / (1.35 * 5**0.5 * 3)
    )


def test_per_image() -> None:
    found = Timing(8.0, 6.0, 12.0, 0.01, 20, "cuda").per(4)
    assert found == Timing(2.0, 1.5, 3.0, 0.01, 20, "cuda")


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_collection_is_as_it_was(collecting: bool) -> None:
    seen: list[bool] = []

    def fails() -> None:
        seen.append(gc.isenabled())
        if len(seen) > timers.WARM_UP:
            raise KeyError("no")

    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with pytest.raises(KeyError):
            time_call(fails)
        assert gc.isenabled() is collecting
        assert seen == [collecting] * timers.WARM_UP + [False]
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match=r"timers: cuda was asked for .* no GPU here; use cpu"):
        time_call(lambda: None, device="cuda")


@pytest.mark.skipif(not timers.CLEAR.exists(), reason="only Linux lets a process reset its peak")
def test_peak_memory_sees_what_was_let_go_of() -> None:
    size = 64 << 20
    # In a process of its own: memory that other tests let go of would be used again.
    script = (
        "import numpy as np\n"
        "from fairq_utils.timers import peak_memory\n"
        "print(peak_memory(lambda: None))\n"
        f"print(peak_memory(lambda: np.ones({size}, np.uint8) is None))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    small, found = (None if line == "None" else int(line) for line in answer.stdout.split())
    if small is None or found is None:
        pytest.skip("this system does not let a process reset its peak")
    assert small < size / 4
    assert 0.9 * size < found < 1.5 * size
