"""Weights as integers: rows that share a scale, their grids, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairq_utils.quantizers.checks import check_finite
from fairq_utils.quantizers.grids import to_integers, weight_codes, weight_grid
from fairq_utils.quantizers.ranges import weight_limits
from fairq_utils.quantizers.spec import QuantSpec

KEPT_BITS, FLOAT_BITS = 8, 32  # of rows that are kept at more bits than the rest


@dataclass(frozen=True)
class WeightIntegers:
    """A quantized weight.

    Attributes
    ----------
    integers : int8, shape of the weight
    scale, zero_point : float32 and int32, (out channels,), or (out channels, groups) where groups
        of input channels have scales of their own
    rows : int32 (R,), or None
        Output channels that are kept at more bits; see :mod:`fairq_utils.quantizers.kept_rows`.
    values : float32 (R, ...), or None
        Those rows, where they are kept in float; their integers are 0. Without it they are on the
        8-bit grid.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    rows: Tensor | None = None
    values: Tensor | None = None


def groups(weight: Tensor, spec: QuantSpec) -> int:
    """Scales per output channel."""
    if spec.weight_granularity != "group":
        return 1
    return -(-weight.shape[1] // spec.group_size)


def to_rows(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Weights that share a scale as rows: (1, N), (O, K) or (O x groups, K).

    A last group that the input channels do not fill repeats its own, which moves no range.
    """
    if spec.weight_granularity == "tensor":
        return weight.reshape(1, -1)
    if spec.weight_granularity == "channel":
        return weight.reshape(weight.shape[0], -1)
    count = groups(weight, spec)
    flat = weight.reshape(*weight.shape[:2], -1)
    place = torch.arange(count * spec.group_size, device=weight.device)
    first = place // spec.group_size * spec.group_size
    width = (weight.shape[1] - first).clamp(max=spec.group_size)
    return flat[:, first + (place - first) % width].reshape(weight.shape[0] * count, -1)


def spread(values: Tensor, weight: Tensor, spec: QuantSpec) -> Tensor:
    """Scales or zero-points (O,) or (O, groups), in a shape that broadcasts against the weight."""
    if spec.weight_granularity == "group":
        values = values.repeat_interleave(spec.group_size, dim=1)[:, : weight.shape[1]]
        return values.reshape(*values.shape, *[1] * (weight.ndim - 2))
    return values.reshape(-1, *[1] * (weight.ndim - 1))


def find_grid(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero-point, float32 (O,) or (O, groups), by the spec's rule for weights."""
    check_finite(weight, "weights")
    weight = weight.detach()
    bits, scheme = spec.weight_bits, spec.weight_scheme
    limits = weight_limits(to_rows(weight, spec), spec.weight_range, bits, scheme, spec.percentile)
    scale, zero = weight_grid(*limits, bits, scheme)
    shape = (weight.shape[0], groups(weight, spec))
    if spec.weight_granularity == "tensor":
        scale, zero = scale.expand(shape[0]), zero.expand(shape[0])
    elif spec.weight_granularity == "group":
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return scale.float().contiguous(), zero.float().contiguous()


def quantize_weight(weight: Tensor, spec: QuantSpec) -> WeightIntegers:
    """Round each weight to the nearest integer of its grid."""
    scale, zero = find_grid(weight, spec)
    integers = to_integers(
        weight.detach(),
        spread(scale, weight, spec),
        spread(zero, weight, spec),
        *weight_codes(spec.weight_bits, spec.weight_scheme),
    )
    return WeightIntegers(integers.to(torch.int8), scale, zero.to(torch.int32))


def dequantize_weight(found: WeightIntegers, spec: QuantSpec) -> Tensor:
    """``s (q - z)``, float32; rows that are kept in float as they are."""
    scale = spread(found.scale, found.integers, spec)
    zero = spread(found.zero_point, found.integers, spec)
    weight = (found.integers.float() - zero) * scale
    if found.rows is not None and found.values is not None:
        weight[found.rows.long()] = found.values
    return weight
