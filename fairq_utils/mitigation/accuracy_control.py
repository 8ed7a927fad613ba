"""Accuracy control for groups: layers go back to float until no group loses more than allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.group_sensitivity import Floats
from fairq_utils.mitigation.sample import Sample, chosen, logits_of, refuse_few, refuse_labels
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.methods import MSE, Fit, Result, Size, Task, method
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.post_training import layer_specs, quantize_observed
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.sensitivity import noise_over_signal, squares
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.tracing import replace


@dataclass(frozen=True)
class Drop:
    """Drop of a quantized model, and the groups whose predictions show it.

    Attributes
    ----------
    value : float
        A fraction; below 0 where the quantized model is better.
    codes : of the groups
    """

    value: float
    codes: tuple[int, ...]


def overall(before: Tensor, after: Tensor, sample: Sample) -> Drop:
    """Drop of the accuracy of everyone, from predictions in float (N,) to those after (N,)."""
    return Drop(float(_lost(before, after, sample).mean()), tuple(sample.present))


def worst_group(before: Tensor, after: Tensor, sample: Sample) -> Drop:
    """Largest drop of accuracy over groups, ``max_g (acc_g(float) - acc_g(quantized))``."""
    lost = _means(_lost(before, after, sample), sample)
    worst = int(lost.argmax())
    return Drop(float(lost[worst]), (sample.present[worst],))


def gap(before: Tensor, after: Tensor, sample: Sample) -> Drop:
    """Increase of the demographic parity gap, ``max_g r_g - min_g r_g`` of selection rates r."""
    rates, reference = (_means(classes.double(), sample) for classes in (after, before))
    ends = dict.fromkeys((int(rates.argmax()), int(rates.argmin())))
    return Drop(float(np.ptp(rates) - np.ptp(reference)), tuple(sample.present[g] for g in ends))


CRITERIA: dict[str, Callable[[Tensor, Tensor, Sample], Drop]] = {
    "overall": overall,
    "worst_group": worst_group,
    "gap": gap,
}


def _lost(before: Tensor, after: Tensor, sample: Sample) -> Tensor:
    """1 for a prediction that was right, -1 for one that has become so, float64 (N,)."""
    return (before == sample.labels).double() - (after == sample.labels).double()


def _means(values: Tensor, sample: Sample) -> Floats:
    """Mean over each group that has an image, (G,)."""
    codes = np.unique(sample.groups.codes, return_inverse=True)[1]
    means: Floats = np.bincount(codes, values.numpy()) / np.bincount(codes)
    return means


Criterion = Literal["overall", "worst_group", "gap"]
WHAT = "control_accuracy"
RANKED = 300  # images that layers are ranked by
ROUNDING = 1e-12  # of a difference of rates; one prediction is more


@usual_modes()
def control_accuracy(
    observed: Observed,
    spec: QuantSpec,
    sample: Sample,
    *,
    max_drop: float = 0.01,
    criterion: Criterion = "worst_group",
    ranking: int = RANKED,
    max_reverted: int | None = None,
    least: int = 20,
) -> tuple[nn.Module, QuantReport]:
    """Quantize, and put layers back to float until the criterion drops by no more than allowed.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
        It stays as it is; its float model is what drops are measured from.
    spec : QuantSpec
        Of all layers that stay quantized; with ``rounding="nearest"``. Operations between layers
        (``residuals``, ``gates`` ...) stay quantized. With ``bias_correction`` each step corrects
        anew, while a ranking leaves the other layers' corrections as they are.
    sample : Sample
        Validation images, not those that the result will be tested on: the loop chooses by them, so
        that its drop is too good. The criterion is as noisy as its groups are small: of a group of
        20 one prediction is 5 points, and a tolerance below that allows none to be lost.
    max_drop : float
        Fraction that the criterion may worsen by: 0.01 is one point.
    criterion : str
        ``overall``: drop of accuracy; ``worst_group``: its largest drop over groups, ``max_g
        (acc_g(float) - acc_g(quantized))``; ``gap``: increase of ``max_g r_g - min_g r_g`` over
        selection rates r, of two classes.
    ranking : int
        Images to rank by: those whose logits the quantized model moves most, ``|y - y^|^2``, of
        everyone (``overall``), of the worst group, or of the two groups at the ends of the gap.
        Layers go in the order of the noise over signal that the logits of these images keep when
        the layer alone is back in float, the least first.
    max_reverted : int, optional
        Most layers that may go back to float; all if not given.
    least : int
        Images that each group must have, but for ``overall``.

    Returns
    -------
    module, report
        As :func:`fairq_utils.quantizers.quantize_observed` returns with these layers in float.
        ``report.corrections["accuracy_control"]`` has ``criterion``, ``tolerance``, whether it was
        ``reached``, the drops ``before`` and ``after`` all steps, ``reverted`` layers, the
        ``steps`` (``layer``, drop ``before`` and ``after`` it, whether it was ``kept``),
        ``evaluations`` of the whole sample, and ``ranked``, how often layers were ranked. A
        tolerance that is not reached is no error: the module is that of the least drop on the way.

    Raises
    ------
    BadInput
        Learnt rounding, an unknown criterion, a number out of range, a group of fewer images than
        ``least``, labels that are no class, or a gap of more than two classes or of one group.
    ValueError
        A spec that was not observed for; see :func:`fairq_utils.quantizers.quantize_observed`.

    Notes
    -----
    The first layer of a ranking stays in float even where the drop has grown, or the next ranking
    would offer it again. A ranking holds until a layer is taken back, even if another group has
    become the worst. Each step takes one pass over ``sample``, each ranking one pass over
    ``ranking`` images for every layer that is left.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fairq_utils.mitigation import as_sample, control_accuracy
    >>> from fairq_utils.quantizers import QuantSpec, observe
    >>> images = torch.randn(80, 3)
    >>> groups = {"gender": ["f", "m"] * 40}
    >>> sample = as_sample(images, (images[:, 0] > 0).long(), groups)
    >>> observed = observe(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), [images])
    >>> spec = QuantSpec.parse("W8A8")
    >>> _, report = control_accuracy(observed, spec, sample, max_drop=1.0)  # anything will do
    >>> report.layers
    {'0': 'W8A8', '2': 'W8A8'}
    """
    numbers = {"max_drop": max_drop, "ranking": ranking, "max_reverted": max_reverted}
    _check(observed, spec, sample, criterion, least, **numbers)
    reference = logits_of(observed.model, sample, WHAT)
    refuse_labels(sample.labels, reference, WHAT)
    if criterion == "gap" and reference.shape[1] > 2:
        raise BadInput(
            f"{WHAT}: criterion 'gap' is of two classes, and the model has {reference.shape[1]}; "
            "take 'worst_group'"
        )
    work = _Working(observed, spec)
    evaluations = ranked = 0

    def validated() -> tuple[Drop, Tensor]:
        nonlocal evaluations
        evaluations += 1
        logits = logits_of(work.model, sample, WHAT)
        return CRITERIA[criterion](chosen(reference), chosen(logits), sample), logits

    drop, logits = validated()
    on_the_way, steps = [drop.value], []
    waiting: list[str] = []
    limit = len(work.quantized) if max_reverted is None else max_reverted
    while drop.value > max_drop + ROUNDING and work.quantized and len(work.reverted) < limit:
        first = not waiting
        if first:
            ranked += 1
            waiting = _ranked(work, reference, logits, sample, drop, ranking)
        layer = waiting.pop(0)
        work.revert(layer)
        after, moved = validated()
        kept = first or after.value <= drop.value + ROUNDING
        steps.append({"layer": layer, "before": drop.value, "after": after.value, "kept": kept})
        if kept:
            drop, logits = after, moved
            on_the_way.append(drop.value)
        else:
            work.undo()
            waiting = []
    reached = drop.value <= max_drop + ROUNDING
    if not reached:
        best = int(np.argmin(on_the_way))
        for step in steps:
            step["kept"] = step["kept"] and step["layer"] in work.reverted[:best]
        del work.reverted[best:], on_the_way[best + 1 :]
    module, report = quantize_observed(observed, spec, dict.fromkeys(work.reverted))
    note = {
        "criterion": criterion,
        "tolerance": max_drop,
        "reached": reached,
        "before": on_the_way[0],
        "after": on_the_way[-1],
        "reverted": list(work.reverted),
        "steps": steps,
        "evaluations": evaluations,
        "ranked": ranked,
    }
    corrections = {**report.corrections, "accuracy_control": note}
    return module, dataclasses.replace(report, corrections=corrections)


class _Working:
    """A quantized model whose layers go to float and back.

    Attributes
    ----------
    model : nn.Module
    reverted : layers in float, in the order in which they went
    """

    def __init__(self, observed: Observed, spec: QuantSpec) -> None:
        self._observed, self._spec = observed, spec
        self.model, report = quantize_observed(observed, spec)
        self._layers = {
            n: self.model.get_submodule(n) for n in observed.order if n in report.layers
        }
        self.reverted: list[str] = []

    @property
    def quantized(self) -> list[str]:
        """Layers that are not in float, in the order of execution."""
        return [name for name in self._layers if name not in self.reverted]

    def revert(self, name: str) -> None:
        """Put a layer back to float."""
        self.reverted.append(name)
        self._renew(name, self._float(name))

    def undo(self) -> None:
        """Quantize the last layer again that went to float."""
        name = self.reverted.pop()
        self._renew(name, self._layers[name])

    @contextmanager
    def alone_in_float(self, name: str) -> Iterator[None]:
        """One more layer in float within, quantized after."""
        held = self.model.get_submodule(name)
        self.model = replace(self.model, name, self._float(name))
        try:
            yield
        finally:
            self.model = replace(self.model, name, held)

    def _float(self, name: str) -> nn.Module:
        return copied(self._observed.model.get_submodule(name), WHAT)

    def _renew(self, name: str, layer: nn.Module) -> None:
        if self._spec.bias_correction:  # what a layer is corrected by depends on those before it
            self.model, _ = quantize_observed(
                self._observed, self._spec, dict.fromkeys(self.reverted)
            )
        else:
            self.model = replace(self.model, name, layer)


def _ranked(
    work: _Working, reference: Tensor, logits: Tensor, sample: Sample, drop: Drop, images: int
) -> list[str]:
    """Quantized layers, first the one whose return to float leaves the least noise."""
    moved = squares(reference, logits)[1].sum(dim=1).numpy()
    members = np.flatnonzero(np.isin(sample.groups.codes, drop.codes))
    most = members[np.argsort(-moved[members], kind="stable")[:images]]
    part, wanted = sample.take(most), reference[torch.from_numpy(most)]
    noise = {}
    for name in work.quantized:
        with work.alone_in_float(name):
            signal, left = squares(wanted, logits_of(work.model, part, WHAT))
        noise[name] = noise_over_signal(float(signal.sum()), float(left.sum()))
    return sorted(noise, key=noise.__getitem__)


def _check(
    observed: Observed, spec: QuantSpec, sample: Sample, criterion: str, least: int, **numbers: Any
) -> None:
    if spec.rounding != "nearest":
        raise BadInput(
            f"{WHAT}: spec.rounding is {spec.rounding!r}, learnt with all layers quantized, so "
            "that every step would have to learn anew; leave rounding out"
        )
    layer_specs(observed, spec)
    if criterion not in CRITERIA:
        raise BadInput(f"{WHAT}: criterion {criterion!r} is not one of {', '.join(CRITERIA)}")
    max_drop = numbers["max_drop"]
    if not 0 <= max_drop <= 1:
        raise BadInput(f"{WHAT}: max_drop: {max_drop!r} is no fraction from 0 to 1, such as 0.01")
    for name, lowest in (("ranking", 1), ("max_reverted", 0)):
        value = numbers[name]
        if name == "max_reverted" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise BadInput(f"{WHAT}: {name}: {value!r} is no whole number from {lowest} on")
    if not len(sample):
        raise BadInput(f"{WHAT}: sample: has no images; give labelled images of every group")
    if criterion != "overall":
        refuse_few(sample.groups, least, f"{WHAT}: sample")
    if criterion == "gap" and len(sample.present) < 2:
        raise BadInput(
            f"{WHAT}: sample: a gap is between groups, and all images are of "
            f"{sample.name(sample.present[0])!r}; add images of another, or take 'overall'"
        )


def _fit(criterion: Criterion) -> Fit:
    def fit(task: Task) -> Result:
        return control_accuracy(
            task.observed(),
            task.spec,
            task.validation(),
            max_drop=task.settings["max_drop"],
            max_reverted=task.settings["max_reverted"],
            criterion=criterion,
            least=task.least,
        )

    return fit


def _ranked_and_reverted(size: Size) -> int:
    most = size.settings["max_reverted"]
    # The float model, plain quantization, and each step, counted as if all were taken.
    steps = 2 + (size.layers if most is None else int(most))
    return steps * size.validation + size.layers * min(RANKED, size.validation)


method(
    "control_overall",
    label="by everybody",
    family="accuracy control",
    fit=_fit("overall"),
    options=MSE,
    needs="images kept groups validation",
    settings={"max_drop": 0.01, "max_reverted": None},
    images=_ranked_and_reverted,
)
method(
    "control_worst",
    label="by the worst group",
    family="accuracy control",
    fit=_fit("worst_group"),
    options=MSE,
    needs="images kept groups validation",
    settings={"max_drop": 0.01, "max_reverted": None},
    images=_ranked_and_reverted,
)
