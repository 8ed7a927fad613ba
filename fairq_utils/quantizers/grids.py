"""Uniform grids: from a range to scale and zero-point, from values to integers.

``q = clip(round(x / s) + z, lowest, highest)`` and ``x ~ s (q - z)`` (Jacob et al. 2018, equation
1). Ties go to the even integer. Zero is always on the grid, as padding needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 18  # values at a time: they stay in a core's cache between the passes
SMALLEST_SCALE = 1e-10  # of a range without extent: all zeros stay zero


def weight_codes(bits: int, scheme: str) -> tuple[int, int]:
    """Lowest and highest integer of a weight; symmetric grids leave out the lowest code."""
    top = 2 ** (bits - 1) - 1
    return (-top if scheme == "symmetric" else -top - 1), top


def weight_grid(low: Tensor, high: Tensor, bits: int, scheme: str) -> tuple[Tensor, Tensor]:
    """Scale and zero-point (float32, any shape) of signed integers that hold [low, high] and 0.

    Symmetric: ``s = max(-low, high) / (2**(b-1) - 1)``, ``z = 0`` (Nagel et al. 2021, "A White
    Paper on Neural Network Quantization", section 2.1). Affine: ``s = (high - low) / (2**b - 1)``.
    """
    lowest, highest = weight_codes(bits, scheme)
    low, high = torch.clamp(low, max=0.0), torch.clamp(high, min=0.0)
    if scheme == "symmetric":
        scale = torch.maximum(-low, high) / highest
        return torch.clamp(scale, min=SMALLEST_SCALE), torch.zeros_like(scale)
    scale = torch.clamp((high - low) / (highest - lowest), min=SMALLEST_SCALE)
    return scale, torch.clamp(torch.round(lowest - low / scale), lowest, highest)


def input_grid(
    low: Tensor, high: Tensor, bits: int, scheme: str = "affine"
) -> tuple[Tensor, Tensor]:
    """Scale and zero-point of an unsigned grid 0 ... 2**bits - 1 that holds [low, high] and 0.

    Affine: ``s = (high - low) / (2**b - 1)``, ``z = round(-low / s)`` (Jacob et al. 2018, section
    2.1). Symmetric: ``z = 2**(b-1)``, and 0 where no value is negative.
    """
    levels = 2**bits - 1
    low, high = torch.clamp(low, max=0.0), torch.clamp(high, min=0.0)
    if scheme == "symmetric":
        half = 2 ** (bits - 1)
        signed = low < 0
        scale = torch.where(signed, torch.maximum(-low, high) / (half - 1), high / levels)
        return torch.clamp(scale, min=SMALLEST_SCALE), torch.where(signed, float(half), 0.0)
    scale = torch.clamp((high - low) / levels, min=SMALLEST_SCALE)
    return scale, torch.clamp(torch.round(-low / scale), 0, levels)


def to_integers(x: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> Tensor:
    """``clip(round(x / s) + z, lowest, highest)``, float; scale and zero broadcast against x."""
    return torch.clamp(torch.round(x / scale) + zero, lowest, highest)


def on_grid(x: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> Tensor:
    """Values of ``x`` after a round trip through the grid."""
    return (to_integers(x, scale, zero, lowest, highest) - zero) * scale


def fake_quantize(x: Tensor, scale: float, zero: int, lowest: int, highest: int) -> Tensor:
    """:func:`on_grid` for one scale, without a gradient; float32 in the memory order of ``x``.

    The same values as ``torch.fake_quantize_per_tensor_affine``, which multiplies by ``1 / s`` as
    well, and several times as fast on a CPU.
    """
    if x.device.type != "cpu" or x.numel() == 0 or x.ndim == 0:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, lowest, highest)
    out = torch.empty_like(x)
    inverse = 1.0 / torch.tensor(scale, dtype=torch.float32)
    rows = max(CHUNK // max(x[0].numel(), 1), 1)
    for part, into in zip(x.split(rows), out.split(rows), strict=True):
        torch.mul(part, inverse, out=into)
        into.round_().clamp_(lowest - zero, highest - zero).mul_(scale)
    return out


def on_static_grid(x: Tensor, scale: Tensor, zero: Tensor, highest: int) -> Tensor:
    """``x`` after a round trip through one grid 0 ... highest; straight gradients inside it.

    Parameters
    ----------
    x : float32, any shape
    scale, zero : float32 and int32 scalars
    highest : int
    """
    trained = torch.is_grad_enabled() and x.requires_grad
    if trained or x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, highest)
    return fake_quantize(x, float(scale), int(zero), 0, highest)
