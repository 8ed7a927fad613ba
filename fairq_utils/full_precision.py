"""Float32 that is float32: a GPU's convolutions without the shortcut that is their default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Let convolutions within multiply float32 as it is; on a CPU they always do.

    By default a GPU rounds what it multiplies to TF32, ten bits of mantissa. That is enough to
    train with, and too coarse to tell what a quantizer did: an integer of eight bits times its
    scale is no value of TF32.

    Examples
    --------
    >>> with full_precision():
    ...     torch.backends.cudnn.conv.fp32_precision
    'ieee'
    """
    convolutions = cast(Any, torch.backends.cudnn).conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
