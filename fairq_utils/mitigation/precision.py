"""More bits for layers or channels that are named, and what these cost in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import pandas as pd
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.post_training import layer_specs, quantize_observed
from fairq_utils.quantizers.report import QuantReport, float_bytes
from fairq_utils.quantizers.sensitivity import nearest
from fairq_utils.quantizers.sizes import packed_bytes
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.weights import KEPT_BITS, KeptRows, check_kept, row_bytes

# Bits, None for float, or the next that is more than what a spec has.
Kept: TypeAlias = int | Literal["more"] | None


def preserve_layers(
    observed: Observed, spec: QuantSpec, layers: Sequence[str], *, kept: int | None = KEPT_BITS
) -> tuple[nn.Module, QuantReport]:
    """Quantize, with some layers at more bits, weights and inputs, or in float.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
        It stays as it is.
    spec : QuantSpec
        Of all other layers.
    layers : names
    kept : bits, or None for float

    Returns
    -------
    module, report
        ``report.corrections`` has ``preserved``: layer -> number of its output channels, and
        ``extra_bytes``: what their precision costs. A bias that bias correction adds to a layer
        without one is not counted.

    Raises
    ------
    ValueError
        An unknown layer, one that has these bits already, or see
        :func:`fairq_utils.quantizers.quantize_observed`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fairq_utils.mitigation import preserve_layers
    >>> from fairq_utils.quantizers import QuantSpec, observe
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    >>> observed = observe(model, [torch.randn(64, 3)])
    >>> _, report = preserve_layers(observed, QuantSpec.parse("W4A8"), ["1"])
    >>> report.layers, report.corrections["preserved"]
    ({'0': 'W8A8', '1': 'W8A8', '2': 'W8A8'}, {'1': 8})
    """
    specs, _ = layer_specs(observed, spec)
    own: dict[str, QuantSpec | None] = {}
    for name in dict.fromkeys(layers):
        if name not in specs:
            raise BadInput(
                f"preserve_layers: {name!r} is no layer that would be quantized; these are "
                f"{', '.join(observed.order[:5])}{' ...' if len(observed.order) > 5 else ''}"
            )
        own[name] = _raised(specs[name], kept)
        if own[name] == specs[name]:
            raise BadInput(
                f"preserve_layers: layer {name!r} is at {specs[name].label} already, and "
                f"kept={kept} is no more; leave it out, or keep it in float (kept=None)"
            )
    module, report = quantize_observed(observed, spec, own)
    here = [name for name in own if kept is None or name in report.layers]
    channels = {name: len(_weight(observed, name)) for name in here}
    extra = sum(_growth(observed, name, specs[name], own[name]) for name in here)
    return module, noted(report, preserved=channels, extra_bytes=extra)


def preserve_channels(
    observed: Observed,
    spec: QuantSpec,
    channels: Mapping[str, Sequence[int]],
    *,
    kept: int | None = KEPT_BITS,
) -> tuple[nn.Module, QuantReport]:
    """Quantize, with the weights of some output channels at 8 bits or in float.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
        It stays as it is.
    spec : QuantSpec
        With ``weight_granularity="channel"`` and ``rounding="nearest"``.
    channels : layer -> numbers of its output channels
    kept : 8, or None for float
        A layer with channels in float is simulated: integer kernels take all channels of a layer
        or none, and engines refuse it.

    Returns
    -------
    module, report
        ``report.corrections`` has ``preserved``: layer -> number of channels, and ``extra_bytes``:
        what their precision costs, the numbers that say which they are included.

    Raises
    ------
    ValueError
        See :func:`fairq_utils.quantizers.weights.check_kept`.
    """
    rows = {
        name: KeptRows(tuple(int(channel) for channel in numbers), kept)
        for name, numbers in channels.items()
    }
    module, report = quantize_observed(observed, spec, kept=rows)
    specs, _ = layer_specs(observed, spec)
    here = report.corrections.get("preserved", {})
    extra = 0
    for name in here:
        extra += packed_bytes(observed.quantized(name, specs[name], rows[name]))
        extra -= packed_bytes(observed.quantized(name, specs[name]))
    return module, noted(report, preserved=here, extra_bytes=extra)


def layer_costs(observed: Observed, spec: QuantSpec, kept: Kept) -> tuple[pd.Series, int | None]:
    """Bytes that each layer costs more at more bits, and these bits.

    Layers that have them already, and those that the model does not call where they stand, are
    left out.

    Raises
    ------
    BadInput
        Nothing could be kept; or see :func:`plainly`.
    """
    _, plain = plainly(observed, spec)
    specs, _ = layer_specs(observed, spec)
    inputs = spec.weight_bits if spec.activation == "float" else spec.activation_bits
    bits = _resolved(min(spec.weight_bits, inputs), kept)
    raised = {name: _raised(specs[name], bits) for name in observed.order if name in plain.layers}
    costs = {
        name: _growth(observed, name, specs[name], own)
        for name, own in raised.items()
        if own != specs[name]
    }
    _refuse_none(costs, spec, bits)
    return pd.Series(costs), bits


def channel_costs(observed: Observed, spec: QuantSpec, kept: Kept) -> tuple[pd.Series, int | None]:
    """Bytes that each output channel costs more, at most, by (layer, channel), and its bits.

    Layers are left out as in :func:`layer_costs`.

    Raises
    ------
    BadInput, ValueError
        Nothing could be kept; or see :func:`plainly` and
        :func:`fairq_utils.quantizers.weights.check_kept`.
    """
    _, plain = plainly(observed, spec)
    specs, _ = layer_specs(observed, spec)
    bits = _resolved(spec.weight_bits, kept)
    quantized = [name for name in observed.order if name in plain.layers]
    coarse = [name for name in quantized if bits is None or specs[name].weight_bits < bits]
    _refuse_none(coarse, spec, bits)
    check_kept(observed.model, specs, {name: KeptRows((), bits) for name in coarse})
    costs: dict[tuple[str, int], int] = {}
    for name in coarse:
        weight = _weight(observed, name)
        price = row_bytes(weight, specs[name], bits)
        costs |= {(name, channel): price for channel in range(len(weight))}
    return pd.Series(costs), bits


def plainly(observed: Observed, spec: QuantSpec) -> tuple[nn.Module, QuantReport]:
    """The model without anything preserved, rounded to nearest, and its report.

    Raises
    ------
    BadInput
        Dynamic inputs.
    ValueError
        See :func:`fairq_utils.quantizers.quantize_observed`.
    """
    if spec.activation == "dynamic":
        raise BadInput(
            "preservation: spec.activation is dynamic, and what is preserved is chosen of a "
            "calibrated model; use activation='static' or 'float'"
        )
    return quantize_observed(observed, nearest(spec))


def noted(report: QuantReport, **notes: Any) -> QuantReport:
    """A report with further notes on what was done."""
    return replace(report, corrections={**report.corrections, **notes})


def _resolved(bits: int, kept: Kept) -> int | None:
    """The bits that ``more`` stands for; others as they are."""
    if kept != "more":
        assert not isinstance(kept, str)
        return kept
    return KEPT_BITS if bits < KEPT_BITS else None


def _raised(spec: QuantSpec, kept: int | None) -> QuantSpec | None:
    """The spec of a layer that is kept; where only weights are quantized, only they change."""
    if kept is None:
        return None
    raised = replace(spec, weight_bits=max(spec.weight_bits, kept))
    if spec.activation == "float":
        return raised
    return replace(raised, activation_bits=max(spec.activation_bits, kept))


def _growth(observed: Observed, name: str, spec: QuantSpec, raised: QuantSpec | None) -> int:
    """Bytes by which a layer grows."""
    if raised is None:
        after = float_bytes(observed.model.get_submodule(name))
    else:
        after = packed_bytes(observed.quantized(name, raised))
    return after - packed_bytes(observed.quantized(name, spec))


def _weight(observed: Observed, name: str) -> Tensor:
    weight = observed.model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


def _refuse_none(found: Sequence[str] | Mapping[str, int], spec: QuantSpec, bits: Any) -> None:
    if not found:
        raise BadInput(
            f"preservation: kept: nothing at {spec.label} has fewer than {bits} bits; keep it in "
            "float (kept=None)"
        )
