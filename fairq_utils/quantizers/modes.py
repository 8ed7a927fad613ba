"""Modes of PyTorch that decide what is computed: the usual ones within, the caller's after."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock = threading.Lock()
_inside = 0  # how many contexts are open, in all threads
_theirs = torch.float32


@contextmanager
def usual_modes() -> Iterator[None]:
    """Compute within as PyTorch does where no mode is set, whatever modes the caller is in.

    Gradients are recorded, nothing is in inference mode or under autocast, tensors are made in
    float32 on the processor unless it is said otherwise. The default type is the process's; the
    last to leave, of contexts within each other and of threads, restores it.

    Examples
    --------
    >>> with torch.no_grad(), usual_modes():
    ...     torch.is_grad_enabled()
    True
    """
    global _inside, _theirs
    with _lock:
        if not _inside:
            _theirs = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _inside += 1
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_default_dtype(_theirs)
