"""Sensitivity of each layer to quantization: one layer at a time, at every candidate spec.

With labels it is the increase of the loss when only that layer is quantized (Dong et al. 2019,
HAWQ, approximate it by curvature; here it is measured). Without, it is the noise that quantizing
the layer leaves in an output, over the signal, ``sum (y - y^)^2 / sum y^2``. To first order the
noises of several layers are independent and add up, so both are summed over layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.post_training import edge_spec, layer_specs, quantize_observed
from fairq_utils.quantizers.sizes import packed_bytes
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.tracing import first_input, removed_after, replace

Measure = Literal["output", "layer"]
Labelled = Sequence[tuple[Tensor, Tensor]]
COLUMNS = ["layer", "bits", "sensitivity", "sqnr", "bytes"]
T = TypeVar("T")
# A layer, its candidate, and what was measured of the two.
Found: TypeAlias = Iterator[tuple[str, Quantized, T]]
# Number of the batch, what comes out in float, what came of it -> numbers that add up over batches.
Powers: TypeAlias = Callable[[int, Tensor, Tensor], NDArray[np.float64]]


def classification_loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits (N, C), or of one logit per image, (N, 1) or (N,).

    A scalar, the mean over images; with ``reduction="none"`` that of each image, (N,).

    Examples
    --------
    >>> one, two = torch.tensor([2.0]), torch.tensor([[-1.0, 1.0]])  # the same odds
    >>> losses = [classification_loss(x, torch.tensor([1])) for x in (one, two)]
    >>> torch.allclose(*losses)
    True
    """
    if logits.ndim == 1 or logits.shape[1:] == (1,):
        odds = logits.reshape(-1).float()
        return F.binary_cross_entropy_with_logits(odds, labels.float(), reduction=reduction)
    return F.cross_entropy(logits.float(), labels.long(), reduction=reduction)


@usual_modes()
def sensitivities(
    observed: Observed,
    specs: Sequence[QuantSpec],
    *,
    labelled: Labelled | None = None,
    measure: Measure = "output",
    loss: Callable[[Tensor, Tensor], Tensor] = classification_loss,
) -> pd.DataFrame:
    """Quantize one layer at a time, at every candidate spec, and measure what that does.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
        With ``keep=True`` where there are no labels.
    specs : candidates
        The first and the last layer are tried at ``first_last_bits`` or more, as everywhere; set it
        to None for candidates at all layers. Weights are rounded to nearest, whatever ``rounding``
        says: it is learnt once, for the allocation that is chosen.
    labelled : sequence of (images, labels), optional
        On the model's device. With it the sensitivity is the increase of the mean loss, which may
        be below 0. Give thousands: of a few hundred images, most of an increase is chance, and the
        allocation that it leads to changes more predictions than that of the noise.
    measure : str
        Without labels: noise over signal in the model's ``output``, or in that of the ``layer``.
    loss : callable
        ``loss(logits, labels)``, the mean over a batch.

    Returns
    -------
    DataFrame
        A row per layer, in order of execution, and distinct spec: ``layer``; ``bits``, such as
        ``W4A8``; ``sensitivity``, in the unit of the loss, or noise over signal; ``sqnr`` in
        decibels, NaN with labels; ``bytes`` of the layer, as packed in
        :class:`~fairq_utils.quantizers.QuantReport`.

    Raises
    ------
    ValueError
        No candidate, an unknown measure, no images to measure on, two candidates of the same bits,
        or an output that is not finite or all zeros.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fairq_utils.quantizers import QuantSpec, observe, sensitivities
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    >>> observed = observe(model, [torch.randn(64, 3)], keep=True)
    >>> table = sensitivities(observed, [QuantSpec.parse("W8A8"), QuantSpec.parse("W4A8")])
    >>> table[["layer", "bits"]].values.tolist()  # the first and the last layer keep 8 bits
    [['0', 'W8A8'], ['2', 'W8A8'], ['2', 'W4A8'], ['3', 'W8A8']]
    """
    _check(observed, specs, labelled, measure)
    if labelled is not None:
        found = _loss_increases(observed, specs, labelled, loss)
    else:
        measured = (output_powers if measure == "output" else layer_powers)(
            observed, specs, observed.batches, _powers
        )
        found = ((name, layer, noise_over_signal(*sums.tolist())) for name, layer, sums in measured)
    rows = []
    with torch.no_grad():
        for name, layer, value in found:
            bits = layer.spec.label
            if not math.isfinite(value):
                raise ValueError(
                    f"sensitivities: {bits} in layer {name!r} has no finite effect; an output is "
                    "not finite, or all zeros in float: check the images and the model"
                )
            decibels = math.nan if labelled is not None else _decibels(value)
            rows.append((name, bits, value, decibels, packed_bytes(layer)))
    return pd.DataFrame(rows, columns=COLUMNS)


def sqnr(reference: Tensor, other: Tensor) -> float:
    r"""Signal to quantization noise in decibels, ``10 log10(sum y^2 / sum (y - y^)^2)``.

    Infinite where nothing changed, minus infinity where there is no signal.

    Examples
    --------
    >>> sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))  # 25 over 0.25
    20.0
    """
    return _decibels(noise_over_signal(*_powers(0, reference, other).tolist()))


def squares(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Squares of a signal and of what was added to it, in float64."""
    y = reference.double()
    return y.square(), (y - other.double()).square()


def noise_over_signal(signal: float, noise: float) -> float:
    """Their ratio; 0 where nothing was added, infinite where something was added to nothing."""
    return 0.0 if noise == 0 else math.inf if signal == 0 else noise / signal


def output_powers(
    observed: Observed, specs: Sequence[QuantSpec], batches: Sequence[Tensor], powers: Powers
) -> Found[NDArray[np.float64]]:
    """Effect of each quantized layer alone on the model's output, summed over batches.

    Parameters
    ----------
    batches : images, on the model's device
    powers : ``powers(number of the batch, float output, output)``, an array
    """
    reference = [observed.model(x.clone()) for x in batches]
    for name, layer, model in one_at_a_time(observed, specs):
        found = [
            powers(at, y, model(x.clone()))
            for at, (x, y) in enumerate(zip(batches, reference, strict=True))
        ]
        yield name, layer, np.sum(found, axis=0)


def layer_powers(
    observed: Observed, specs: Sequence[QuantSpec], batches: Sequence[Tensor], powers: Powers
) -> Found[NDArray[np.float64]]:
    """Effect of quantizing a layer on its own output, summed over batches and calls.

    Every layer before a quantized one is in float, so one pass shows all layers' inputs. Parameters
    as in :func:`output_powers`.
    """
    candidates = {name: _candidates(observed, specs, name) for name in observed.order}
    totals: dict[str, list[Any]] = {name: [0.0] * len(c) for name, c in candidates.items()}
    number = 0

    def comparing(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, named: Any, output: Tensor) -> None:
            x = first_input(inputs, named)
            for place, layer in enumerate(candidates[name]):
                totals[name][place] = totals[name][place] + powers(number, output, layer(x))
                layer.forget()  # the weight in float, of every candidate at once, would be large

        return hook

    hooks = [
        observed.model.get_submodule(name).register_forward_hook(comparing(name), with_kwargs=True)
        for name in observed.order
    ]
    with removed_after(hooks):
        for at, x in enumerate(batches):
            number = at  # the hooks read it
            observed.model(x.clone())
    for name, layers in candidates.items():
        yield from ((name, layer, sums) for layer, sums in zip(layers, totals[name], strict=True))


def one_at_a_time(observed: Observed, specs: Sequence[QuantSpec]) -> Found[nn.Module]:
    """The model with one layer quantized, for every layer and distinct candidate.

    It is one working copy: what is yielded is another model once the next is asked for.
    """
    work = copied(observed.model, "sensitivities")
    for name in observed.order:
        kept = work.get_submodule(name)
        for layer in _candidates(observed, specs, name):
            work = replace(work, name, layer)
            yield name, layer, work
            work = replace(work, name, kept)


def bytes_of_the_rest(observed: Observed, spec: QuantSpec) -> int:
    """Bytes of a quantized model outside its quantized layers: biases of norms, embeddings, ..."""
    plain = nearest(spec)
    specs, _ = layer_specs(observed, plain)
    whole, result = quantize_observed(observed, plain)
    return result.size_bytes - sum(packed_bytes(whole.get_submodule(name)) for name in specs)


def nearest(spec: QuantSpec) -> QuantSpec:
    """The spec without corrections that look at images again."""
    return dataclasses.replace(spec, rounding="nearest", bias_correction=False)


def refuse_measure(measure: str, known: Sequence[str], what: str) -> None:
    """Refuse a measure by a name that is not known."""
    if measure not in known:
        raise ValueError(f"{what}: measure {measure!r} is not one of {', '.join(known)}")


def refuse_candidates(observed: Observed, specs: Sequence[QuantSpec], what: str) -> None:
    """Refuse no candidates, two of the same bits, and those that were not observed for."""
    if not specs:
        raise ValueError(f"{what}: specs is empty; give at least one candidate")
    labels = [spec.label for spec in specs]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ValueError(
            f"{what}: two candidates are called {twice[0]}; candidates differ in their bits"
        )
    for spec in specs:
        layer_specs(observed, nearest(spec))


def _check(
    observed: Observed, specs: Sequence[QuantSpec], labelled: Labelled | None, measure: str
) -> None:
    refuse_measure(measure, get_args(Measure), "sensitivities")
    if labelled is not None and not len(labelled):
        raise ValueError("sensitivities: labelled is empty; give at least one (images, labels)")
    if labelled is None and not observed.batches:
        raise ValueError(
            "sensitivities: there are no labelled images, and the calibration images were not "
            "kept; give observe keep=True, or give labelled"
        )
    refuse_candidates(observed, specs, "sensitivities")


def _loss_increases(
    observed: Observed,
    specs: Sequence[QuantSpec],
    labelled: Labelled,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Found[float]:
    def mean_loss(model: nn.Module) -> float:
        total = sum(float(loss(model(x.clone()), y)) * len(x) for x, y in labelled)
        return total / sum(len(x) for x, _ in labelled)

    before = mean_loss(observed.model)
    for name, layer, model in one_at_a_time(observed, specs):
        yield name, layer, mean_loss(model) - before


def _candidates(observed: Observed, specs: Sequence[QuantSpec], name: str) -> list[Quantized]:
    own = [edge_spec(spec, name, observed.order) for spec in specs]
    distinct = {spec.label: spec for spec in own}
    return [observed.quantized(name, spec) for spec in distinct.values()]


def _powers(batch: int, reference: Tensor, other: Tensor) -> NDArray[np.float64]:
    """Power of a signal and of the noise, over all images of a batch."""
    return np.array([float(squared.sum()) for squared in squares(reference, other)])


def _decibels(noise: float) -> float:
    return math.inf if noise == 0 else -math.inf if noise == math.inf else -10 * math.log10(noise)
