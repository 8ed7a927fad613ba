"""Integer kernels of oneDNN on x86 processors: 8-bit products, 32-bit sums, float results.

Inputs of any width up to 8 bits are unsigned bytes and weights signed ones, so that a layer of
fewer bits runs on the same kernels and stays exact: nothing is requantized inside. What comes out
is ``s_x s_w (sum_k (q_x - z_x) q_w) + b`` of the layer's own integers, which a float simulation of
the same layer only approximates.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Scale, zero-point and type of the result, and what is fused behind it: float32, nothing.
FLOAT_OUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
BYTE = 255
Geometry = tuple[Sequence[int], Any, Sequence[int], int]  # stride, padding, dilation, groups


@lru_cache(maxsize=1)
def available() -> bool:
    """Check that this processor and this PyTorch multiply bytes exactly.

    Older processors add two byte products in 16 bits, which saturates; the trial below would then
    come out too small.
    """
    if not (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
        and hasattr(torch, "quantize_per_tensor")
    ):
        return False
    weight = torch.full((8, 64), 127, dtype=torch.int8)
    one = torch.ones(8)
    try:
        with warnings.catch_warnings():  # PyTorch says once that it will not keep this operator
            warnings.simplefilter("ignore")
            q = quantize(torch.full((2, 64), float(BYTE)), 1.0, 0, BYTE)
        out = linear(q, 1.0, 0, pack_linear(weight), one)
    except RuntimeError:  # this build of PyTorch has the operator but no kernel for it
        return False
    return bool((out == BYTE * 127 * 64).all())


def quantize(x: Tensor, scale: float, zero_point: int, top: int) -> Tensor:
    """Bytes ``clip(round(x / s) + z, 0, top)``, uint8 in the shape and memory order of ``x``."""
    quantized = torch.quantize_per_tensor(x.float(), scale, zero_point, torch.quint8)
    # The same memory as plain bytes; int_repr would copy it.
    q = torch.empty(0, dtype=torch.uint8).set_(
        quantized.untyped_storage(), 0, quantized.shape, quantized.stride()
    )
    return q if top == BYTE else q.clamp_(max=top)


def pack_conv(weight: Tensor, scales: Tensor, geometry: Geometry, shape: Sequence[int]) -> Tensor:
    """Weights int8 (O, I / groups, h, w) in the order that the kernel wants for this input."""
    packed: Tensor = torch.ops.onednn.qconv_prepack(weight, scales, 1.0, 0, *geometry, list(shape))
    return packed


def pack_linear(weight: Tensor) -> Tensor:
    """Weights int8 (O, I) in the order that the kernel wants."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return packed


def conv2d(
    q: Tensor,
    scale: float,
    zero_point: int,
    packed: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Convolve bytes (N, C, H, W); float32 (N, O, H', W')."""
    zeros = torch.zeros(len(weight_scales), dtype=torch.int64)
    out: Tensor = torch.ops.onednn.qconv2d_pointwise(
        q, scale, zero_point, packed, weight_scales, zeros, bias, *geometry, *FLOAT_OUT
    )
    return out


def linear(
    q: Tensor,
    scale: float,
    zero_point: int,
    packed: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Map bytes (..., I) to float32 (..., O)."""
    zeros = torch.zeros(len(weight_scales), dtype=torch.int64)
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        q, scale, zero_point, packed, weight_scales, zeros, bias, *FLOAT_OUT
    )
    return out
