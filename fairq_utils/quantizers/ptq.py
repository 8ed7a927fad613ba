"""Static post-training quantization: fold, observe, fix the grids."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fairq_utils.quantizers.folding import fold_batch_norms
from fairq_utils.quantizers.layers import quantizable, quantized
from fairq_utils.quantizers.ranges import RANGES, Observer, check_finite
from fairq_utils.quantizers.report import QuantReport, float_bytes, report
from fairq_utils.quantizers.spec import QuantSpec


def quantize_static(
    model: nn.Module, spec: QuantSpec, batches: Iterable[Tensor]
) -> tuple[nn.Module, QuantReport]:
    """Quantize convolutions and linear layers; input ranges come from calibration batches.

    Parameters
    ----------
    model : any module of one tensor argument
        It is copied; the one passed in stays as it is.
    spec : QuantSpec
        With ``activation="static"``.
    batches : iterable of tensors (B, ...)
        Calibration inputs, as the model takes them. One pass; memory does not grow with them.

    Returns
    -------
    module, report
        The module has the signature of ``model`` and evaluates in float simulation.

    Raises
    ------
    ValueError
        No calibration batch, or a value that is not finite.
    """
    if spec.activation != "static":
        raise ValueError("quantize_static: spec.activation is dynamic; use quantize_dynamic")
    stream = iter(batches)
    try:
        first = next(stream)
    except StopIteration:
        raise ValueError(
            "quantize_static: the calibration set is empty; give at least one batch"
        ) from None
    check_finite(first, "quantize_static: calibration batch 0")
    before = float_bytes(model)
    work = copy.deepcopy(model).eval()
    folded, left = fold_batch_norms(work, first)
    layers = {n: m for n, m in work.named_modules() if quantizable(m)}
    observers: dict[str, Observer] = {
        name: RANGES[spec.activation_range](spec.percentile) for name in layers
    }
    order: list[str] = []
    calls: Counter[str] = Counter()
    hooks = [
        layer.register_forward_pre_hook(_observing(name, observers[name], order, calls))
        for name, layer in layers.items()
    ]
    images = 0
    try:
        with torch.no_grad():
            for number, batch in enumerate(_chain(first, stream)):
                check_finite(batch, f"quantize_static: calibration batch {number}")
                work(batch)
                images += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for name in layers:
        if name not in calls:
            left[name] = "was never called during calibration; it stays in float"
    for name in order:
        replacement = quantized(layers[name], edge_spec(spec, name, order))
        replacement.set_input_range(*observers[name].range())
        replace(work, name, replacement)
    return work, report(work, spec, folded, left, before, images)


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


def _observing(name: str, observer: Observer, order: list[str], calls: Counter[str]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        check_finite(inputs[0], f"quantize_static: the input of layer {name}")
        if name not in calls:
            order.append(name)
        calls[name] += 1
        observer.see(inputs[0])

    return hook
