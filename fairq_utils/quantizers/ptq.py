"""Static post-training quantization: fold, observe, fix the grids."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairq_utils.quantizers.folding import fold_batch_norms
from fairq_utils.quantizers.layers import quantizable, quantized
from fairq_utils.quantizers.ranges import (
    RANGES,
    Observer,
    check_batch,
    check_finite,
    check_model,
    refuse_not_finite,
)
from fairq_utils.quantizers.report import QuantReport, float_bytes, report
from fairq_utils.quantizers.spec import QuantSpec


@dataclass(frozen=True)
class Observed:
    """What calibration leaves behind; any number of specs can be quantized from it.

    Attributes
    ----------
    model : a copy of the model, its batch norms folded
    order : names of the quantizable layers in the order of execution
    ranges : rule -> layer -> smallest and largest input to represent
    percentile : share of values that the rule ``percentile`` kept inside
    folded, left : names of convolutions with a folded batch norm; layers left alone, and why
    images : calibration images seen
    float_bytes : size of the model that came in
    """

    model: nn.Module
    order: list[str]
    ranges: dict[str, dict[str, tuple[float, float]]]
    percentile: float
    folded: list[str]
    left: dict[str, str]
    images: int
    float_bytes: int


def observe(
    model: nn.Module,
    batches: Iterable[Tensor],
    rules: Sequence[str] = ("minmax",),
    percentile: float = 99.9,
) -> Observed:
    """Fold batch norms and watch the input of every quantizable layer under calibration.

    Parameters
    ----------
    model : any module of one tensor argument
        It is copied; the one passed in stays as it is.
    batches : iterable of tensors (B, ...)
        Calibration inputs, as the model takes them. One pass for all rules; memory does not grow
        with them.
    rules : names of :data:`fairq_utils.quantizers.ranges.RANGES`

    Raises
    ------
    ValueError
        No calibration batch, or a value that is not finite.
    """
    check_model(model, "quantize_static")
    if isinstance(batches, Tensor):
        raise TypeError(
            "quantize_static: batches is one tensor, which would be taken image by image; give a "
            "list of batches, [images]"
        )
    stream = iter(batches)
    try:
        first = next(stream)
    except StopIteration:
        raise ValueError(
            "quantize_static: the calibration set is empty; give at least one batch"
        ) from None
    check_batch(first, "quantize_static: calibration batch 0")
    before = float_bytes(model)
    work = copy.deepcopy(model).eval()
    folded, left = fold_batch_norms(work, first)
    layers = {n: m for n, m in work.named_modules() if quantizable(m)}
    observers: dict[str, dict[str, Observer]] = {
        rule: {name: RANGES[rule](percentile) for name in layers} for rule in rules
    }
    order: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(
            _observing(name, [observers[rule][name] for rule in rules], order)
        )
        for name, layer in layers.items()
    ]
    images = 0
    try:
        with torch.no_grad():
            for number, batch in enumerate(_chain(first, stream)):
                check_batch(batch, f"quantize_static: calibration batch {number}")
                work(batch)
                images += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for name in layers:
        if name not in order:
            left[name] = "was never called during calibration; it stays in float"
    ranges = {rule: {name: observers[rule][name].range() for name in order} for rule in rules}
    return Observed(work, order, ranges, percentile, folded, left, images, before)


def quantize_observed(seen: Observed, spec: QuantSpec) -> tuple[nn.Module, QuantReport]:
    """Quantize what was observed; ``seen`` stays as it is. Returns module and report.

    Raises
    ------
    ValueError
        The spec asks for dynamic inputs, or for a range rule that was not observed.
    """
    if spec.activation != "static":
        raise ValueError("quantize_static: spec.activation is dynamic; use quantize_dynamic")
    if spec.activation_range not in seen.ranges:
        raise ValueError(
            f"quantize_observed: ranges by {spec.activation_range!r} were not observed, only "
            f"{', '.join(seen.ranges)}; name it in the rules of observe"
        )
    if spec.activation_range == "percentile" and spec.percentile != seen.percentile:
        raise ValueError(
            f"quantize_observed: percentile {spec.percentile} is asked for, but "
            f"{seen.percentile} was observed"
        )
    work = copy.deepcopy(seen.model)
    for name in seen.order:
        replacement = quantized(work.get_submodule(name), edge_spec(spec, name, seen.order))
        replacement.set_input_range(*seen.ranges[spec.activation_range][name])
        replace(work, name, replacement)
    work.register_forward_pre_hook(refuse_not_finite)
    return work, report(work, spec, seen.folded, dict(seen.left), seen.float_bytes, seen.images)


def quantize_static(
    model: nn.Module, spec: QuantSpec, batches: Iterable[Tensor]
) -> tuple[nn.Module, QuantReport]:
    """Quantize convolutions and linear layers; input ranges come from calibration batches.

    :func:`observe`, then :func:`quantize_observed`: take these two for several specs of one model.

    Parameters
    ----------
    model, batches : see :func:`observe`
    spec : QuantSpec
        With ``activation="static"``.

    Returns
    -------
    module, report
        The module has the signature of ``model`` and evaluates in float simulation;
        :func:`fairq_utils.quantizers.use_integers` puts it on integer kernels.

    Raises
    ------
    ValueError
        No calibration batch, or a value that is not finite.
    """
    if spec.activation != "static":
        raise ValueError("quantize_static: spec.activation is dynamic; use quantize_dynamic")
    seen = observe(model, batches, (spec.activation_range,), spec.percentile)
    return quantize_observed(seen, spec)


def edge_spec(spec: QuantSpec, name: str, order: list[str]) -> QuantSpec:
    """The spec of a layer, by its place in the order of execution."""
    return spec.at_edge() if name in (order[0], order[-1]) else spec


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in another's place, wherever the other is shared."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child, value in list(parent._modules.items()):
            if value is old:
                setattr(parent, child, module)


def _chain(first: Tensor, rest: Iterable[Tensor]) -> Iterable[Tensor]:
    yield first
    yield from rest


def _observing(name: str, observers: Sequence[Observer], order: list[str]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        check_finite(inputs[0], f"quantize_static: the input of layer {name}")
        if name not in order:
            order.append(name)
        for observer in observers:
            observer.see(inputs[0])

    return hook
