"""Weights as integers: rows that share a scale, their grids, and back; rows of more bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.quantizers.checks import check_finite
from fairq_utils.quantizers.grids import to_integers, weight_codes, weight_grid
from fairq_utils.quantizers.ranges import weight_limits
from fairq_utils.quantizers.spec import QuantSpec

KEPT_BITS, FLOAT_BITS = 8, 32  # of rows that are kept at more bits than the rest
INDEX_BYTES = 4  # int32: which row it is


@dataclass(frozen=True)
class WeightIntegers:
    """A quantized weight.

    Attributes
    ----------
    integers : int8, shape of the weight
    scale, zero_point : float32 and int32, (out channels,), or (out channels, groups) where groups
        of input channels have scales of their own
    rows : int32 (R,), or None
        Output channels that are kept at more bits; see :class:`KeptRows`.
    values : float32 (R, ...), or None
        Those rows, where they are kept in float; their integers are 0. Without it they are on the
        8-bit grid.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    rows: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class KeptRows:
    """Output channels of a layer that are kept at more bits.

    Attributes
    ----------
    rows : numbers of the output channels, each once
    bits : 8, or None for float
        Integer kernels cannot compute a layer with float rows: it stays a simulation.
    """

    rows: tuple[int, ...]
    bits: int | None = KEPT_BITS


def quantize_weight(
    weight: Tensor, spec: QuantSpec, grid: tuple[Tensor, Tensor] | None = None
) -> WeightIntegers:
    """Round each weight to the nearest integer of a grid, by default that of :func:`find_grid`."""
    scale, zero = find_grid(weight, spec) if grid is None else grid
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


def find_grid(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero-point, float32 (O,) or (O, groups), by the spec's rule for weights."""
    check_finite(weight, "weights")
    bits, scheme = spec.weight_bits, spec.weight_scheme
    parts = [
        weight_grid(
            *weight_limits(rows, spec.weight_range, bits, scheme, spec.percentile), bits, scheme
        )
        for rows in to_rows(weight.detach(), spec)
    ]
    out = len(weight)
    if spec.weight_granularity == "tensor":
        scale, zero = (found.expand(out) for found in parts[0])
    elif spec.weight_granularity == "group":
        scale, zero = (
            torch.cat([f.reshape(out, -1) for f in each], 1) for each in zip(*parts, strict=True)
        )
    else:
        scale, zero = parts[0]
    return scale.float().contiguous(), zero.float().contiguous()


def to_rows(weight: Tensor, spec: QuantSpec) -> list[Tensor]:
    """Weights that share a scale as rows: (1, N), (O, K), or (O x groups, K) of groups.

    Where the input channels do not fill the last group, it has rows (O, K') of its own.
    """
    if spec.weight_granularity == "tensor":
        return [weight.reshape(1, -1)]
    if spec.weight_granularity == "channel":
        return [weight.reshape(len(weight), -1)]
    whole = weight.shape[1] // spec.group_size * spec.group_size
    flat = weight.flatten(2) if weight.ndim > 2 else weight[..., None]
    filled = flat[:, :whole].reshape(-1, spec.group_size * flat.shape[2])
    return [rows for rows in (filled, flat[:, whole:].flatten(1)) if rows.numel()]


def spread(values: Tensor, weight: Tensor, spec: QuantSpec) -> Tensor:
    """Scales or zero-points (O,) or (O, groups), in a shape that broadcasts against the weight."""
    if spec.weight_granularity == "group":
        values = values.repeat_interleave(spec.group_size, dim=1)[:, : weight.shape[1]]
        return values.reshape(*values.shape, *[1] * (weight.ndim - 2))
    return values.reshape(-1, *[1] * (weight.ndim - 1))


def keep_rows(
    found: WeightIntegers, weight: Tensor, spec: QuantSpec, kept: KeptRows
) -> WeightIntegers:
    """A quantized weight with some rows at more bits.

    Parameters
    ----------
    found : the weight at the bits of ``spec``; it stays as it is
    weight : float32 (O, ...)
    spec : QuantSpec
        Its rule of ranges finds the 8-bit grid as well.
    kept : KeptRows
        See :func:`check_kept` for what it may be.

    Examples
    --------
    >>> weight = torch.tensor([[7.0, 3.4], [127.0, 3.4]])
    >>> spec = QuantSpec.parse("W4")
    >>> keep_rows(quantize_weight(weight, spec), weight, spec, KeptRows((1,))).integers
    tensor([[  7,   3],
            [127,   3]], dtype=torch.int8)
    """
    if not kept.rows:
        return found
    rows = torch.tensor(sorted(kept.rows), dtype=torch.int32, device=weight.device)
    at, own = rows.long(), weight.detach()[rows.long()]
    integers, scale, zero = (
        part.clone() for part in (found.integers, found.scale, found.zero_point)
    )
    if kept.bits is None:
        integers[at] = 0
        return WeightIntegers(integers, scale, zero, rows, own.float())
    finer = quantize_weight(own, replace(spec, weight_bits=kept.bits))
    integers[at], scale[at], zero[at] = finer.integers, finer.scale, finer.zero_point
    return WeightIntegers(integers, scale, zero, rows)


def row_bytes(weight: Tensor, spec: QuantSpec, bits: int | None) -> int:
    """Bytes by which a model grows, at most, for one more row of this weight that is kept.

    The row's further bits, rounded up to a byte, and the row's number; a float row needs no scale.

    Examples
    --------
    >>> row_bytes(torch.zeros(8, 3, 3, 3), QuantSpec.parse("W4A8"), 8)  # 27 x 4 bits, and 4
    18
    """
    width = FLOAT_BITS if bits is None else bits
    further = -(-weight[0].numel() * (width - spec.weight_bits) // 8)
    grid = 0 if bits is not None else 8 if spec.weight_scheme == "affine" else 4
    return further + INDEX_BYTES - grid


def check_kept(
    model: nn.Module, specs: Mapping[str, QuantSpec], kept: Mapping[str, KeptRows]
) -> None:
    """Refuse rows that cannot be kept.

    Parameters
    ----------
    model : the float model
    specs : layer -> the spec of its other rows
    kept : layer -> its rows

    Raises
    ------
    ValueError
        A layer that is not quantized, scales by tensor or group, a learnt rounding, a row that is
        not there or named twice, or bits that are not more; names the layer and the way out.
    """
    for name, own in kept.items():
        place = f"quantize_observed: kept: layer {name!r}"
        if name not in specs:
            known = f"{', '.join(list(specs)[:5])}{' ...' if len(specs) > 5 else ''}"
            raise BadInput(
                f"{place} is no layer that would be quantized, so that no channel of it can be "
                f"kept; these are {known}"
            )
        spec = specs[name]
        if spec.weight_granularity != "channel":
            raise BadInput(
                f"{place} has one scale per {spec.weight_granularity}; channels can be kept where "
                "each has a scale of its own: use weight_granularity='channel'"
            )
        if spec.rounding != "nearest":
            raise BadInput(
                f"{place}: rounding={spec.rounding!r} learns to make up for errors that its kept "
                "channels would no longer make; use rounding='nearest', or keep whole layers"
            )
        if own.bits not in (KEPT_BITS, None):
            raise BadInput(
                f"{place}: channels are kept at {KEPT_BITS} bits or in float (None), not at "
                f"{own.bits!r}"
            )
        if own.bits is not None and spec.weight_bits >= own.bits:
            raise BadInput(
                f"{place} has weights of {spec.weight_bits} bits; {own.bits} are no more: keep "
                "its channels in float (None), or leave it out"
            )
        _check_rows(place, len(_weight(model, name)), own.rows)


def _check_rows(place: str, count: int, rows: tuple[int, ...]) -> None:
    beyond = [row for row in rows if not 0 <= row < count]
    if beyond:
        raise ValueError(
            f"{place} has no output channel {beyond[0]}; its channels are 0 to {count - 1}"
        )
    twice = [row for row in rows if rows.count(row) > 1]
    if twice:
        raise ValueError(f"{place}: output channel {twice[0]} is named twice; name it once")


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight
