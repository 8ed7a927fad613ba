"""Calibration: fold and equalize a model, run the calibration images, keep its statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from fairq_utils.given import each_name
from fairq_utils.quantizers.checks import check_batch, check_finite, check_model, running
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.corrections import equalize
from fairq_utils.quantizers.folding import fold_batch_norms
from fairq_utils.quantizers.layers import (
    QuantConv2d,
    QuantLinear,
    quantizable,
    quantized,
    refuse_quantized,
)
from fairq_utils.quantizers.operations import OPTIONS, Operations
from fairq_utils.quantizers.precision import full_precision
from fairq_utils.quantizers.ranges import InputStatistics, Statistics
from fairq_utils.quantizers.report import float_bytes
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.survey import survey
from fairq_utils.quantizers.tracing import first_input, leave_fast_paths, removed_after
from fairq_utils.quantizers.weights import KeptRows, WeightIntegers, keep_rows, quantize_weight

MakeStatistics = Callable[[Sequence[str]], Statistics]


@dataclass(frozen=True)
class Observed:
    """A calibrated model and its statistics; any number of specs can be quantized from it.

    Attributes
    ----------
    model : a copy of the model, its batch norms folded (and its layers equalized)
    order : names of the quantizable layers in the order of execution
    statistics : layer -> calibration statistics of its input
    equalized : first -> second layer of every equalized pair; None where that was not asked for
    folded, left : names of convolutions with a folded batch norm; layers left alone, and why
    batches : calibration images, where they were kept
    images : how many calibration images there were
    example : one or two of them
    float_bytes : size of the model that came in
    operations : additions of feature maps, products of attention and gates, with their statistics
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
    rules = each_name(rules)
    check_model(model, "quantize_static")
    refuse_quantized(model, "quantize_static")
    if isinstance(batches, Tensor):
        raise TypeError(
            "quantize_static: batches is one tensor, which would be taken image by image; give a "
            "list of batches, [images]"
        )
    try:
        stream = iter(batches)
    except TypeError as error:
        raise TypeError(
            f"quantize_static: batches is {type(batches).__name__}; give a list of batches"
        ) from error
    try:
        first = next(stream)
    except StopIteration:
        raise ValueError(
            "quantize_static: the calibration set is empty; give at least one batch"
        ) from None
    place = "quantize_static: calibration batch"
    check_batch(first, f"{place} 0")
    before = float_bytes(model)
    work = copied(model, "quantize_static").eval()
    leave_fast_paths(work)
    example = first[:2].clone()  # what is asked of the structure needs no more
    with running(first, f"{place} 0"):
        folded, left = fold_batch_norms(work, example)
        pairs = equalize(work, example) if equalization else None
        looked = survey(work, example)
    left |= looked.direct | looked.read
    layers = {n: m for n, m in work.named_modules() if quantizable(m) and n not in looked.read}
    asked = {"residuals": residuals, "attention_products": attention_products, "gates": gates}
    options = [name for name in asked if asked[name]]
    operations = Operations.watched(looked.operations, options, lambda: statistics(rules))
    watched = {name: statistics(rules) for name in layers}
    order: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(_observing(name, watched[name], order), with_kwargs=True)
        for name, layer in layers.items()
    ]
    images, kept = 0, []
    with removed_after(hooks), torch.no_grad():
        for number, batch in enumerate(itertools.chain([first], stream)):
            check_batch(batch, f"{place} {number}")
            with running(batch, f"{place} {number}"):
                operations.observe(work, batch.clone())
            images += len(batch)
            if keep:
                kept.append(batch)
    for name in layers:
        if name not in order:
            left[name] = "was never called during calibration; it stays in float"
    return Observed(
        work,
        order,
        {name: watched[name] for name in order},
        pairs,
        folded,
        left,
        kept,
        images,
        example,
        before,
        operations,
    )


def observe_for(
    model: nn.Module,
    batches: Iterable[Tensor],
    spec: QuantSpec,
    *,
    rules: Iterable[str] = (),
    keep: bool = False,
) -> Observed:
    """Observe what a spec asks for; see :func:`observe`.

    Parameters
    ----------
    rules : range rules besides the spec's
    keep : whether images are kept even if neither bias correction nor rounding looks at them again
    """
    asked = what_to_observe(spec)
    asked["keep"] |= keep
    return observe(model, batches, [spec.activation_range, *rules], **asked)


def what_to_observe(*specs: QuantSpec) -> dict[str, Any]:
    """Options of :func:`observe` that any of these specs needs.

    Examples
    --------
    >>> [option for option, asked in what_to_observe(QuantSpec(gates=True)).items() if asked]
    ['gates']
    """
    options = ("equalization", *dict.fromkeys(OPTIONS.values()))
    asked = {option: any(getattr(spec, option) for spec in specs) for option in options}
    again = any(spec.bias_correction or spec.rounding != "nearest" for spec in specs)
    return {**asked, "keep": again}


def _observing(name: str, statistics: Statistics, order: list[str]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        x = first_input(inputs, named)
        check_finite(x, f"quantize_static: the input of layer {name}")
        if name not in order:
            order.append(name)
        statistics.update(x)

    return hook
