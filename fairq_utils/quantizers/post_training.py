"""Post-training quantization, static and dynamic: fix the grids, round weights, correct biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.quantizers.calibrate import Observed, observe_for
from fairq_utils.quantizers.checks import (
    check_batch,
    check_model,
    check_spec,
    refuse_not_finite,
    running,
)
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.corrections import correct_biases
from fairq_utils.quantizers.folding import fold_batch_norms
from fairq_utils.quantizers.layers import quantizable, quantized, refuse_quantized
from fairq_utils.quantizers.methods import MSE, Result, Task, method
from fairq_utils.quantizers.operations import (
    OPTIONS,
    Operations,
    float_operations,
    quantize_operations,
)
from fairq_utils.quantizers.precision import full_precision
from fairq_utils.quantizers.ranges import Statistics
from fairq_utils.quantizers.reconstruction import reconstruct
from fairq_utils.quantizers.report import QuantReport, float_bytes, report
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.survey import survey
from fairq_utils.quantizers.tracing import (
    BYPASSED,
    bypassed,
    leave_fast_paths,
    order_of_execution,
    replace,
)
from fairq_utils.quantizers.weights import KeptRows, check_kept

LayerSpecs = Mapping[str, QuantSpec | None]
OPERATIONS = {**MSE, "residuals": True, "attention_products": True}
BLOCK = 3  # layers of a usual block whose roundings are learnt together


def quantize_static(
    model: nn.Module,
    spec: QuantSpec,
    batches: Iterable[Tensor],
    layers: LayerSpecs | None = None,
) -> tuple[nn.Module, QuantReport]:
    """Quantize convolutions and linear layers; input ranges come from calibration batches.

    Static post-training quantization (Nagel et al. 2021, "A White Paper on Neural Network
    Quantization", section 3): :func:`observe`, then :func:`quantize_observed`. Take these two for
    several specs of one model.

    Parameters
    ----------
    model, batches : see :func:`observe`
    spec : QuantSpec
        With ``activation="static"``, or ``"float"`` to quantize weights only.
    layers : see :func:`quantize_observed`

    Returns
    -------
    module, report
        The module has the signature of ``model`` and evaluates in float simulation;
        :func:`fairq_utils.quantizers.use_integers` puts it on integer kernels.

    Raises
    ------
    ValueError
        No calibration batch, or a value that is not finite.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fairq_utils.quantizers import QuantSpec, quantize_static
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> quantized, report = quantize_static(model, QuantSpec.parse("W8A8"), [torch.randn(64, 3)])
    >>> report.layers, quantized(torch.randn(5, 3)).shape
    ({'0': 'W8A8', '2': 'W8A8'}, torch.Size([5, 2]))
    """
    check_spec(spec, "quantize_static")
    if spec.activation == "dynamic":
        raise BadInput("quantize_static: spec.activation is dynamic; use quantize_dynamic")
    rules = [own.activation_range for own in (layers or {}).values() if own]
    observed = observe_for(model, batches, spec, rules=rules)
    return quantize_observed(observed, spec, layers)


@full_precision()
def quantize_observed(
    observed: Observed,
    spec: QuantSpec,
    layers: LayerSpecs | None = None,
    kept: Mapping[str, KeptRows] | None = None,
) -> tuple[nn.Module, QuantReport]:
    """Quantize a calibrated model; ``observed`` stays as it is.

    Parameters
    ----------
    observed : from :func:`observe`
    spec : QuantSpec
    layers : mapping, optional
        Layer -> its own spec, or None to leave it in float; all others follow ``spec``. Its
        rounding and corrections are those of ``spec``.
    kept : mapping, optional
        Layer -> output channels whose weights are kept at 8 bits or in float.

    Returns
    -------
    module, report

    Raises
    ------
    ValueError
        The spec asks for dynamic inputs, or for what was not observed; a layer is unknown; or see
        :func:`fairq_utils.quantizers.weights.check_kept`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fairq_utils.quantizers import QuantSpec, observe, quantize_observed
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    >>> observed = observe(model, [torch.randn(64, 3)])
    >>> specs = map(QuantSpec.parse, ("W8A8", "W4A8"))
    >>> [quantize_observed(observed, spec)[1].layers["2"] for spec in specs]
    ['W8A8', 'W4A8']
    """
    specs, left = layer_specs(observed, spec, layers)
    kept = kept or {}
    check_kept(observed.model, specs, kept)
    notes: dict[str, Any] = {}
    if spec.rounding != "nearest" and specs:
        work, errors = reconstruct(observed.model, specs, observed.range, observed.batches)
        notes["reconstruction"] = {name: list(pair) for name, pair in errors.items()}
    else:
        work = copied(observed.model, "quantize_observed")
        for name, own in specs.items():
            work = replace(work, name, observed.quantized(name, own, kept.get(name)))
    work, left = restore_bypassed(work, observed, specs, left)
    quantize_operations(work, observed.operations, spec)
    if spec.bias_correction:
        images = torch.cat(observed.batches)
        names = [name for name in specs if name not in left]
        notes["bias_correction"] = correct_biases(work, observed.model, names, images)
    if spec.equalization:
        notes["equalization"] = dict(observed.equalized or {})
    if kept:
        notes["preserved"] = {n: len(own.rows) for n, own in kept.items() if n not in left}
    return finished(work, observed, spec, left, notes)


@full_precision()
def quantize_dynamic(
    model: nn.Module, spec: QuantSpec, example: Tensor | None = None
) -> tuple[nn.Module, QuantReport]:
    """Quantize convolutions and linear layers; every sample's input sets its own range.

    No calibration set is needed. Ranges are per sample, so an output does not depend on which other
    samples share its batch.

    Parameters
    ----------
    model : any module of one tensor argument
        It is copied; the one passed in stays as it is.
    spec : QuantSpec
        With ``activation="dynamic"``.
    example : Tensor (B, ...), optional
        A batch to find the batch norms that can be folded, the order of the layers, and what is
        computed outside them. Its values set no range. Without it nothing is folded, and layers are
        taken in order of definition.

    Returns
    -------
    module, report

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fairq_utils.quantizers import QuantSpec, quantize_dynamic
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _, report = quantize_dynamic(model, QuantSpec.parse("W8A8", activation="dynamic"))
    >>> report.layers
    {'0': 'W8A8', '2': 'W8A8'}
    """
    check_spec(spec, "quantize_dynamic")
    if spec.activation != "dynamic":
        raise BadInput(
            f"quantize_dynamic: spec.activation is {spec.activation}; use quantize_static"
        )
    check_model(model, "quantize_dynamic")
    refuse_quantized(model, "quantize_dynamic")
    before = float_bytes(model)
    work = copied(model, "quantize_dynamic").eval()
    leave_fast_paths(work)
    folded: list[str] = []
    left = {"operations between layers": "are in float; give an example to have them named"}
    layers = {n: m for n, m in work.named_modules() if quantizable(m)}
    if example is not None:
        check_batch(example, "quantize_dynamic: example")
        with running(example, "quantize_dynamic: example"):
            folded, left = fold_batch_norms(work, example)
            looked = survey(work, example)
        left |= looked.direct | looked.read | float_operations(work, looked.operations)
        layers = {n: m for n, m in layers.items() if n not in looked.read}
    order = list(layers) if example is None else order_of_execution(work, layers, example)
    for name in layers:
        if name not in order:
            left[name] = "was not called on the example; it stays in float"
    for name in order:
        work = replace(work, name, quantized(layers[name], edge_spec(spec, name, order)))
    return work.eval(), report(work, spec, folded, left, before, 0, {})


def layer_specs(
    observed: Observed, spec: QuantSpec, layers: LayerSpecs | None = None
) -> tuple[dict[str, QuantSpec], dict[str, str]]:
    """Specs of the layers in order of execution, and the reasons why others stay in float.

    Raises
    ------
    ValueError
        See :func:`quantize_observed`.
    """
    check_spec(spec, "quantize_observed")
    if spec.activation == "dynamic":
        raise BadInput("quantize_static: spec.activation is dynamic; use quantize_dynamic")
    if spec.equalization != (observed.equalized is not None):
        wanted, found = ("with", "without") if spec.equalization else ("without", "with")
        raise BadInput(
            f"quantize_observed: {wanted} equalization is asked for, but it was observed {found}; "
            f"give observe equalization={spec.equalization}"
        )
    if (spec.rounding != "nearest" or spec.bias_correction) and not observed.batches:
        raise BadInput(
            "quantize_observed: learnt rounding and bias correction look at the calibration images "
            "again, and they were not kept; give observe keep=True"
        )
    _check_operations(observed.operations, spec)
    layers = layers or {}
    unknown = [name for name in layers if name not in observed.order]
    if unknown:
        raise BadInput(
            f"quantize_observed: {unknown[0]!r} is no quantizable layer that calibration reached; "
            f"these are {', '.join(observed.order[:5])}{' ...' if len(observed.order) > 5 else ''}"
        )
    specs, left = {}, {}
    for name in observed.order:
        own = layers[name] if name in layers else edge_spec(spec, name, observed.order)
        if own is None:
            left[name] = "was asked to stay in float"
            continue
        # How weights are rounded and what is corrected is decided for the whole model.
        own = replace_fields(
            own,
            rounding=spec.rounding,
            iterations=spec.iterations,
            bias_correction=spec.bias_correction,
            equalization=spec.equalization,
        )
        if own.activation == "static":
            _check_rule(own, [observed.statistics[name]])
        specs[name] = own
    return specs, left


def edge_spec(spec: QuantSpec, name: str, order: Sequence[str]) -> QuantSpec:
    """The spec of a layer, by its place in the order of execution."""
    return spec.at_edge() if name in (order[0], order[-1]) else spec


def restore_bypassed(
    work: nn.Module, observed: Observed, layers: Iterable[str], left: dict[str, str]
) -> tuple[nn.Module, dict[str, str]]:
    """Put float layers back where the model calls them by a reference that was not replaced."""
    left = dict(left)
    for name in bypassed(work, layers, observed.example):
        layer = observed.model.get_submodule(name)
        work = replace(work, name, copied(layer, "quantize_observed"))
        left[name] = BYPASSED
    return work, left


def finished(
    work: nn.Module,
    observed: Observed,
    spec: QuantSpec,
    left: dict[str, str],
    notes: dict[str, Any],
) -> tuple[nn.Module, QuantReport]:
    """A model whose layers have been replaced, which now refuses what is not finite; its report.

    Parameters
    ----------
    left : layers that calibration reached and that stay in float, with the reason
    notes : ``corrections`` of the report
    """
    if spec.activation != "float":
        work.register_forward_pre_hook(refuse_not_finite, with_kwargs=True)
    left = {**observed.left, **left, **float_operations(work, observed.operations.found)}
    result = report(work, spec, observed.folded, left, observed.float_bytes, observed.images, notes)
    return work.eval(), result


def _check_operations(operations: Operations, spec: QuantSpec) -> None:
    for option in dict.fromkeys(OPTIONS.values()):
        if getattr(spec, option) and option not in operations.observed:
            raise BadInput(
                f"quantize_observed: {option} were not observed; give observe {option}=True"
            )
    _check_rule(spec, [s for op in operations.chosen(spec) for s in operations.statistics[op.site]])


def _check_rule(spec: QuantSpec, statistics: Sequence[Statistics]) -> None:
    if not all(own.has(spec.activation_range) for own in statistics):
        raise BadInput(
            f"quantize_observed: ranges by {spec.activation_range!r} were not observed; name the "
            "rule in the rules of observe"
        )


def _static(task: Task) -> Result:
    return quantize_observed(task.observed(), task.spec)


def _dynamic(task: Task) -> Result:
    return quantize_dynamic(task.model, task.spec, task.example)


method("ptq", label="static", family="static", fit=_static)
method(
    "naive",
    label="min-max, per tensor",
    family="static",
    fit=_static,
    options={"weight_granularity": "tensor", "first_last_bits": None},
)
method(
    "equalized",
    label="equalized, bias-corrected",
    family="static",
    fit=_static,
    options={**MSE, "equalization": True, "bias_correction": True},
    needs="images kept",
    images=lambda size: 2 * size.calibration,
    source="Nagel et al. 2019",
)
method(
    "operations",
    label="additions and attention too",
    family="static",
    fit=_static,
    options=OPERATIONS,
)
method(
    "gates",
    label="additions, attention and gates too",
    family="static",
    fit=_static,
    options={**OPERATIONS, "gates": True},
)
method(
    "weight_only",
    label="weights only",
    family="static",
    fit=_static,
    options={"activation": "float"},
)
method(
    "dynamic",
    label="dynamic",
    family="dynamic",
    fit=_dynamic,
    options={"activation": "dynamic"},
    needs="",
)
method(
    "adaround",
    label="AdaRound",
    family="learnt rounding",
    fit=_static,
    options={**MSE, "rounding": "adaround"},
    needs="images kept",
    settings={"iterations": 300},
    images=lambda size: size.layers * size.calibration,
    source="Nagel et al. 2020",
)
method(
    "block",
    label="block reconstruction",
    family="learnt rounding",
    fit=_static,
    options={**MSE, "rounding": "block"},
    needs="images kept",
    settings={"iterations": 300},
    images=lambda size: size.layers * size.calibration // BLOCK,
    source="Li et al. 2021 (BRECQ), Wei et al. 2022 (QDrop)",
)
