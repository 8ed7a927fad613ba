"""Float32 that is float32: a GPU's convolutions and products without the shortcut to TF32."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from fairq_utils.quantizers.modes import usual_modes

SHORT = "tf32"
_lock = threading.Lock()
_inside = 0  # how many contexts are open, in all threads
_put_back: list[Callable[[], None]] = []


@contextmanager
def full_precision() -> Iterator[None]:
    """Let float32 be multiplied as it is, within; on a CPU it always is.

    By default a GPU rounds what its convolutions multiply to TF32, ten bits of mantissa, and what
    matrix products do if the user asks for it. That is enough to train with, and too coarse to tell
    what a quantizer did: an integer of eight bits times its scale is no value of TF32, and a batch
    norm that is folded computes a little differently. The setting is the process's; the last to
    leave, of contexts within each other and of threads, restores it. The other modes are the usual
    ones within; see :func:`~fairq_utils.quantizers.modes.usual_modes`.

    Examples
    --------
    >>> with full_precision():
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    global _inside
    with _lock:
        if not _inside:
            _put_back[:] = [*_convolutions(), *_products()]
        _inside += 1
    try:
        with usual_modes():
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for restore in _put_back:
                    restore()


def _convolutions() -> Iterator[Callable[[], None]]:
    """Switch TF32 off; what switches it on again, if it was on."""
    cudnn = cast(Any, torch.backends.cudnn)  # its attributes for single operations are not typed
    if cudnn.conv.fp32_precision != SHORT:
        return
    recurrent = cudnn.rnn.fp32_precision
    cudnn.allow_tf32 = False  # by this name, since others read it, which a mixture would forbid
    if cudnn.conv.fp32_precision == SHORT:  # as everything of this process
        cudnn.conv.fp32_precision = "ieee"

    def restore() -> None:
        cudnn.allow_tf32 = True
        if cudnn.rnn.fp32_precision != recurrent:
            cudnn.rnn.fp32_precision = recurrent

    yield restore


def _products() -> Iterator[Callable[[], None]]:
    if torch.backends.cuda.matmul.fp32_precision != SHORT:
        return
    torch.set_float32_matmul_precision("highest")
    yield lambda: torch.set_float32_matmul_precision("high")
