"""Static post-training quantization: fold, equalize, observe, fix the grids, correct."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from dataclasses import replace as replace_fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from fairq_utils.full_precision import full_precision
from fairq_utils.quantizers.bias_correction import correct_biases
from fairq_utils.quantizers.checks import (
    check_batch,
    check_finite,
    check_model,
    refuse_not_finite,
)
from fairq_utils.quantizers.equalization import equalize
from fairq_utils.quantizers.folding import fold_batch_norms
from fairq_utils.quantizers.kept_rows import KeptRows, check_kept, keep_rows
from fairq_utils.quantizers.layers import (
    QuantConv2d,
    QuantLinear,
    quantizable,
    quantized,
    refuse_quantized,
)
from fairq_utils.quantizers.operations import (
    OPTIONS,
    Operations,
    Watch,
    float_operations,
    quantize_operations,
)
from fairq_utils.quantizers.places import (
    BYPASSED,
    bypassed,
    first_input,
    leave_fast_paths,
    removed_after,
    replace,
)
from fairq_utils.quantizers.ranges import InputStatistics, Statistics
from fairq_utils.quantizers.reconstruction import reconstruct
from fairq_utils.quantizers.report import QuantReport, float_bytes, report
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.survey import survey
from fairq_utils.quantizers.weights import WeightIntegers, quantize_weight

LayerSpecs = Mapping[str, QuantSpec | None]
MakeStatistics = Callable[[Sequence[str]], Statistics]


@dataclass(frozen=True)
class Observed:
    """What calibration leaves behind; any number of specs can be quantized from it.

    Attributes
    ----------
    model : a copy of the model, its batch norms folded (and its layers equalized)
    order : names of the quantizable layers in the order of execution
    statistics : layer -> what was seen of its input
    equalized : first -> second layer of every equalized pair; None where that was not asked for
    folded, left : names of convolutions with a folded batch norm; layers left alone, and why
    batches : calibration images, where they were kept
    images : how many calibration images were seen
    example : one or two of them
    float_bytes : size of the model that came in
    operations : additions of feature maps and products of attention, and what was seen of them
    """

    model: nn.Module
    order: list[str]
    statistics: dict[str, Statistics]
    equalized: dict[str, str] | None
    folded: list[str]
    left: dict[str, str]
    batches: list[Tensor] = field(repr=False)
    images: int
    example: Tensor = field(repr=False)
    float_bytes: int
    operations: Operations
    _weights: dict[tuple[Any, ...], WeightIntegers] = field(default_factory=dict, repr=False)

    def range(self, name: str, spec: QuantSpec) -> tuple[float, float]:
        """Smallest and largest input of a layer to represent, by the spec's rule."""
        return self.statistics[name].range(
            spec.activation_range, spec.activation_bits, spec.activation_scheme, spec.percentile
        )

    def quantized(
        self, name: str, spec: QuantSpec, kept: KeptRows | None = None
    ) -> QuantConv2d | QuantLinear:
        """The quantized counterpart of a layer, each weight rounded to nearest.

        Integers are found once for all specs that treat weights alike.
        """
        layer = self.model.get_submodule(name)
        options = (f.name for f in fields(spec) if f.name.startswith(("weight_", "group_")))
        asked = (name, spec.percentile, *(getattr(spec, option) for option in options))
        if asked not in self._weights:
            assert isinstance(layer.weight, Tensor)
            self._weights[asked] = quantize_weight(layer.weight, spec)
        found = self._weights[asked]
        own = WeightIntegers(found.integers.clone(), found.scale.clone(), found.zero_point.clone())
        if kept is not None:
            own = keep_rows(own, cast(Tensor, layer.weight), spec, kept)
        out = quantized(layer, spec, own)
        if spec.activation == "static":
            out.set_input_range(*self.range(name, spec))
        return out


@full_precision()
def observe(
    model: nn.Module,
    batches: Iterable[Tensor],
    rules: Sequence[str] = ("minmax",),
    *,
    equalization: bool = False,
    residuals: bool = False,
    attention_products: bool = False,
    gates: bool = False,
    keep: bool = False,
    statistics: MakeStatistics = InputStatistics,
) -> Observed:
    """Fold batch norms and watch the input of every quantizable layer under calibration.

    Parameters
    ----------
    model : any module of one tensor argument
        It is copied; the one passed in stays as it is.
    batches : iterable of tensors (B, ...)
        Calibration inputs, as the model takes them. One pass for all rules; memory does not grow
        with them unless they are kept.
    rules : range rules that will be asked for; histograms are made only where one needs them
    equalization : bool
        Equalize layers in a row before anything is observed.
    residuals, attention_products, gates : bool
        Watch the operands of these operations too; see :class:`QuantSpec`.
    keep : bool
        Keep the images, which bias correction and learnt roundings look at again.
    statistics : callable
        ``statistics(rules)`` makes what is kept of one input or operand.

    Raises
    ------
    ValueError
        No calibration batch, or a value that is not finite.
    """
    check_model(model, "quantize_static")
    refuse_quantized(model, "quantize_static")
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
    leave_fast_paths(work)
    example = first[:2].clone()  # what is asked of the structure needs no more
    folded, left = fold_batch_norms(work, example)
    pairs = equalize(work, example) if equalization else None
    looked = survey(work, example)
    left |= looked.direct | looked.read
    layers = {n: m for n, m in work.named_modules() if quantizable(m) and n not in looked.read}
    asked = {"residuals": residuals, "attention_products": attention_products, "gates": gates}
    watch = Watch(
        work, looked.operations, [name for name in asked if asked[name]], rules, statistics
    )
    watched = {name: statistics(rules) for name in layers}
    order: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(_observing(name, watched[name], order), with_kwargs=True)
        for name, layer in layers.items()
    ]
    images, kept = 0, []
    with removed_after(hooks), torch.no_grad():
        for number, batch in enumerate(_chain(first, stream)):
            check_batch(batch, f"quantize_static: calibration batch {number}")
            watch.run(batch.clone())
            images += len(batch)
            if keep:
                kept.append(batch)
    for name in layers:
        if name not in order:
            left[name] = "was never called during calibration; it stays in float"
    seen = {name: watched[name] for name in order}
    return Observed(
        work,
        order,
        seen,
        pairs,
        folded,
        left,
        kept,
        images,
        example,
        before,
        watch.operations(),
    )


@full_precision()
def quantize_observed(
    seen: Observed,
    spec: QuantSpec,
    layers: LayerSpecs | None = None,
    kept: Mapping[str, KeptRows] | None = None,
) -> tuple[nn.Module, QuantReport]:
    """Quantize what was observed; ``seen`` stays as it is.

    Parameters
    ----------
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
        :func:`fairq_utils.quantizers.kept_rows.check_kept`.
    """
    specs, left = layer_specs(seen, spec, layers)
    kept = kept or {}
    check_kept(seen.model, specs, kept)
    notes: dict[str, Any] = {}
    if spec.rounding != "nearest" and specs:
        work, errors = reconstruct(seen.model, specs, seen.range, seen.batches)
        notes["reconstruction"] = {name: list(pair) for name, pair in errors.items()}
    else:
        work = copy.deepcopy(seen.model)
        for name, own in specs.items():
            work = replace(work, name, seen.quantized(name, own, kept.get(name)))
    work, left = restore_bypassed(work, seen, specs, left)
    quantize_operations(work, seen.operations, spec)
    if spec.bias_correction:
        images = torch.cat(seen.batches)
        names = [name for name in specs if name not in left]
        notes["bias_correction"] = correct_biases(work, seen.model, names, images)
    if spec.equalization:
        notes["equalization"] = dict(seen.equalized or {})
    if kept:
        notes["preserved"] = {n: len(own.rows) for n, own in kept.items() if n not in left}
    if spec.activation != "float":
        work.register_forward_pre_hook(refuse_not_finite, with_kwargs=True)
    left = {**seen.left, **left, **float_operations(work, seen.operations.found)}
    result = report(work, spec, seen.folded, left, seen.float_bytes, seen.images, notes)
    return work.eval(), result


def restore_bypassed(
    work: nn.Module, seen: Observed, layers: Iterable[str], left: dict[str, str]
) -> tuple[nn.Module, dict[str, str]]:
    """Float layers back where the model calls the layer by a reference that was not replaced."""
    left = dict(left)
    for name in bypassed(work, layers, seen.example):
        work = replace(work, name, copy.deepcopy(seen.model.get_submodule(name)))
        left[name] = BYPASSED
    return work, left


def layer_specs(
    seen: Observed, spec: QuantSpec, layers: LayerSpecs | None = None
) -> tuple[dict[str, QuantSpec], dict[str, str]]:
    """The spec of every layer in order of execution, and why others stay in float.

    Raises
    ------
    ValueError
        See :func:`quantize_observed`.
    """
    if spec.activation == "dynamic":
        raise ValueError("quantize_static: spec.activation is dynamic; use quantize_dynamic")
    if spec.equalization != (seen.equalized is not None):
        wanted, found = ("with", "without") if spec.equalization else ("without", "with")
        raise ValueError(
            f"quantize_observed: {wanted} equalization is asked for, but it was observed {found}; "
            f"give observe equalization={spec.equalization}"
        )
    if (spec.rounding != "nearest" or spec.bias_correction) and not seen.batches:
        raise ValueError(
            "quantize_observed: learnt rounding and bias correction look at the calibration images "
            "again, and they were not kept; give observe keep=True"
        )
    _check_operations(seen.operations, spec)
    layers = layers or {}
    unknown = [name for name in layers if name not in seen.order]
    if unknown:
        raise ValueError(
            f"quantize_observed: {unknown[0]!r} is no quantizable layer that calibration reached; "
            f"these are {', '.join(seen.order[:5])}{' ...' if len(seen.order) > 5 else ''}"
        )
    specs, left = {}, {}
    for name in seen.order:
        own = layers[name] if name in layers else edge_spec(spec, name, seen.order)
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
        if own.activation == "static" and not seen.statistics[name].has(own.activation_range):
            raise ValueError(
                f"quantize_observed: ranges by {own.activation_range!r} were not observed; name "
                "the rule in the rules of observe"
            )
        specs[name] = own
    return specs, left


def quantize_static(
    model: nn.Module,
    spec: QuantSpec,
    batches: Iterable[Tensor],
    layers: LayerSpecs | None = None,
) -> tuple[nn.Module, QuantReport]:
    """Quantize convolutions and linear layers; input ranges come from calibration batches.

    :func:`observe`, then :func:`quantize_observed`: take these two for several specs of one model.

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
    """
    if spec.activation == "dynamic":
        raise ValueError("quantize_static: spec.activation is dynamic; use quantize_dynamic")
    rules = [spec.activation_range, *(s.activation_range for s in (layers or {}).values() if s)]
    seen = observe(
        model,
        batches,
        rules,
        equalization=spec.equalization,
        residuals=spec.residuals,
        attention_products=spec.attention_products,
        gates=spec.gates,
        keep=spec.bias_correction or spec.rounding != "nearest",
    )
    return quantize_observed(seen, spec, layers)


def _check_operations(seen: Operations, spec: QuantSpec) -> None:
    for option in dict.fromkeys(OPTIONS.values()):
        if getattr(spec, option) and option not in seen.observed:
            raise ValueError(
                f"quantize_observed: {option} were not observed; give observe {option}=True"
            )
    watched = [s for op in seen.chosen(spec) for s in seen.statistics[op.site]]
    if not all(s.has(spec.activation_range) for s in watched):
        raise ValueError(
            f"quantize_observed: ranges by {spec.activation_range!r} were not observed; name the "
            "rule in the rules of observe"
        )


def edge_spec(spec: QuantSpec, name: str, order: Sequence[str]) -> QuantSpec:
    """The spec of a layer, by its place in the order of execution."""
    return spec.at_edge() if name in (order[0], order[-1]) else spec


def _chain(first: Tensor, rest: Iterable[Tensor]) -> Iterable[Tensor]:
    yield first
    yield from rest


def _observing(name: str, statistics: Statistics, order: list[str]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        x = first_input(inputs, named)
        check_finite(x, f"quantize_static: the input of layer {name}")
        if name not in order:
            order.append(name)
        statistics.see(x)

    return hook
