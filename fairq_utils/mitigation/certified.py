"""The published study's ``FairnessAwareQuantizer``, with a guarantee."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from fairq_utils import calibration
from fairq_utils.batches import first, joined, read, rows_of
from fairq_utils.faults import BadInput, Fault
from fairq_utils.metrics import count
from fairq_utils.metrics.answers import Answers, answers, device_of
from fairq_utils.mitigation.allocation import quantize_mixed_for_groups
from fairq_utils.mitigation.balancing_act import affordable_memory
from fairq_utils.mitigation.certificate import (
    Candidate,
    Question,
    Trial,
    in_sequence,
    refuse_empty,
)
from fairq_utils.mitigation.control import control_accuracy
from fairq_utils.mitigation.fine_tuning import fine_tune
from fairq_utils.mitigation.preservation import preservation
from fairq_utils.mitigation.sample import CHUNK, Sample, of_batch
from fairq_utils.quantizers import Observed, QuantReport, QuantSpec, observe, quantize_observed
from fairq_utils.quantizers.spec import WIDTHS

FLOAT = "FP32"
LEAST = 20  # images of every group, among those that make the candidates, and among the others
WIDER = 2  # bits that mixed precision may spend per weight, beyond bit_width
CALIBRATED = 512  # images that set ranges, of those that make the candidates

Result = tuple[nn.Module, QuantReport]


@dataclass(frozen=True)
class Making:
    """What candidates are made from.

    Attributes
    ----------
    model : the float model
    spec : QuantSpec
    sample : Sample
        On the model's device.
    seen : what calibration on a random draw from it left behind
    train : images to fine-tune on; None where that is not allowed
    limit : of the harm
    seed : int
    """

    model: nn.Module
    spec: QuantSpec
    sample: Sample
    seen: Observed
    train: Sample | None
    limit: float
    seed: int


def _drawn(model: nn.Module, sample: Sample, spec: QuantSpec, sampler: str, seed: int) -> Observed:
    """Calibration on at most :data:`CALIBRATED` images of a sample."""
    cells = pd.DataFrame({"group": [sample.name(code) for code in sample.groups.codes]})
    count_ = min(CALIBRATED, len(sample))
    if sampler == "group_balanced":
        count_ = min(count_, int(cells.value_counts().min()) * cells.nunique().item())
    rows = calibration.draw(
        sampler,
        cells,
        sample.labels.cpu().numpy().astype(np.int8),
        count_,
        seed=seed,
        attributes=["group"],
    )
    batches = sample.images[rows].split(CHUNK)
    # Kept: which layers mind few bits is measured on these images.
    return observe(model, batches, [spec.activation_range], keep=True)


def _static(made: Making) -> Result:
    return quantize_observed(made.seen, made.spec)


def _balanced(made: Making) -> Result:
    seen = _drawn(made.model, made.sample, made.spec, "group_balanced", made.seed)
    return quantize_observed(seen, made.spec)


def _preserved(made: Making) -> Result:
    return preservation(made.seen, made.spec, made.sample, unit="channels", by="worst_group")


def _mixed(made: Making) -> Result:
    """Bits where the worst group needs them; of eight bits, layers back to float."""
    bits = made.spec.weight_bits
    if bits == max(WIDTHS):
        return control_accuracy(
            made.seen, made.spec, made.sample, criterion="gap", max_drop=made.limit / 2
        )
    wider = replace(made.spec, weight_bits=min(w for w in WIDTHS if w >= bits + WIDER))
    budget = quantize_observed(made.seen, wider)[1].size_bytes
    return quantize_mixed_for_groups(
        made.seen, budget, made.spec, made.sample, objective="worst_group", measure="layer"
    )


def _fine_tuned(made: Making) -> Result:
    assert made.train is not None
    batch = min(CHUNK, len(made.train))
    return fine_tune(
        made.seen,
        made.spec,
        made.train,
        "balancing_act",
        batch_size=batch,
        seed=made.seed,
        memory=affordable_memory(made.train.sizes),
    )


# In order of cost: the first of those certified is returned.
CANDIDATES: dict[str, Callable[[Making], Result]] = {
    "static": _static,
    "balanced calibration": _balanced,
    "preserved channels": _preserved,
    "mixed precision": _mixed,
    "fine-tuned": _fine_tuned,
}


@dataclass(frozen=True)
class Certificate:
    """What was shown about the model that was returned.

    Attributes
    ----------
    candidate : which one it is, a name in :data:`CANDIDATES`
    question : metric, limit, delta
    harm, bound : float
        Observed on the held-out images; and its upper bound, at the confidence that its place in
        the sequence of trials gives it.
    images : held-out images by group
    trials : all candidates, in the order of the test
    """

    candidate: str
    question: Question
    harm: float
    bound: float
    images: dict[str, int]
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        asked = self.question
        what = "increase of the" if asked.constrained == "increase" else ""
        metric = asked.metric.removesuffix("_difference").replace("_", " ")
        lines = [
            f"{self.candidate}: the {what} {metric} gap is at most {asked.limit:.4f} "
            f"with confidence {100 * (1 - asked.delta):g}%".replace("  ", " "),
            f"observed {self.harm:+.4f}, bound {self.bound:.4f}, on {sum(self.images.values())} "
            f"held-out images ({', '.join(f'{k} {v}' for k, v in self.images.items())})",
            *(_line(trial) for trial in self.trials),
        ]
        return "\n".join(lines)


def _line(trial: Trial) -> str:
    needed = "" if trial.images_needed is None else f", about {trial.images_needed} images needed"
    return (
        f"  {trial.name}: {trial.outcome}, observed {trial.harm:+.4f}, bound {trial.bound:.4f}, "
        f"{trial.size_bytes} bytes, {trial.seconds:.1f} s{needed}"
    )


class NotCertified(Fault):
    """No candidate could be certified.

    Attributes
    ----------
    best : module
        The candidate that came nearest.
    trial : what became of it
    trials : of all candidates, in the order of the test
    images_needed : int or None
        How many held-out images would have certified one of them, had it gone on as observed; None
        where no number would.
    """

    def __init__(
        self, message: str, best: nn.Module, trial: Trial, trials: tuple[Trial, ...]
    ) -> None:
        super().__init__(message)
        self.best, self.trial, self.trials = best, trial, trials
        numbers = [t.images_needed for t in trials if t.images_needed is not None]
        self.images_needed = min(numbers, default=None)


@dataclass
class FairnessAwareQuantizer:
    """Quantize so that a gap between groups grows by no more than a limit, or say that it cannot.

    Candidates are made from the first images; whether the best of them is good enough is tested on
    the others, which had no part in it (:mod:`fairq_utils.mitigation.certificate`).

    Parameters
    ----------
    bit_width : int or str
        8 is W8A8, 4 is W4A4; or as ``"W4A8"``.
    max_dp_gap : float
        The limit, a fraction: 0.01 is one point.
    sensitive_attributes : names of the attributes
        All of them crossed: the gap is the largest between any two of the crossed groups.
    metric : str
        A difference in :data:`fairq_utils.metrics.FAIRNESS`; demographic parity unless named.
    constrained : ``increase`` or ``gap``
        What the limit is on: the increase over the float model, or the gap itself. Where base rates
        differ between groups, even a perfect classifier has a gap.
    delta : float
        The chance of returning anything that does more harm, at most.
    evidence : ``betting`` or ``normal``
        See :class:`~fairq_utils.mitigation.certificate.Question`.
    making_images : int
        The first images of ``calibration_data``, which make the candidates.
    candidates : names in :data:`CANDIDATES`, optional
        All, if none is named; ``fine-tuned`` only where there is ``train_data``.
    seed : int
    options : attributes of :class:`~fairq_utils.quantizers.QuantSpec`
        Ranges are set by least squared error unless these say otherwise.

    Attributes
    ----------
    certificate : Certificate or None
    report : QuantReport of the model that was returned
    not_made : candidates that this model or these images do not allow, and why
    final_dp_gap : float
        The upper bound on what is constrained, at the confidence of its trial (at least 1 -
        delta); at most ``max_dp_gap`` exactly where the model is certified.

    Examples
    --------
    See the README; what is certified can be printed: ``print(quantizer.certificate)``.
    """

    bit_width: int | str = 8
    max_dp_gap: float = 0.01
    sensitive_attributes: Sequence[str] = ("gender",)
    metric: str = "demographic_parity_difference"
    constrained: str = "increase"
    delta: float = 0.05
    evidence: str = "betting"
    making_images: int = 2000
    candidates: Sequence[str] = ()
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    certificate: Certificate | None = field(default=None, init=False)
    report: QuantReport | None = field(default=None, init=False)
    final_dp_gap: float = field(default=float("nan"), init=False)
    not_made: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.max_dp_gap < 1:
            raise BadInput(
                f"max_dp_gap: {self.max_dp_gap} is not between 0 and 1; 0.01 is one point"
            )
        self.question = Question(
            self.metric,
            self.max_dp_gap,
            self.delta,
            self.constrained,  # type: ignore[arg-type]
            self.evidence,  # type: ignore[arg-type]
        )
        bits = self.bit_width
        if not isinstance(bits, str):
            bits = f"W{bits}A{bits}"
        ranges = {"weight_range": "mse", "activation_range": "mse"}
        self.spec = QuantSpec.parse(bits, **{**ranges, **self.options})
        if self.spec.activation != "static":
            raise BadInput(
                f"FairnessAwareQuantizer: bit_width {self.bit_width!r} with inputs in "
                f"{self.spec.activation}; candidates differ in how inputs are calibrated: use "
                "static inputs, such as 8 or 'W4A8'"
            )
        names = [self.sensitive_attributes] if isinstance(self.sensitive_attributes, str) else []
        self.sensitive_attributes = names or list(self.sensitive_attributes)
        if not self.sensitive_attributes:
            raise BadInput("sensitive_attributes: name at least one attribute")
        unknown = [name for name in self.candidates if name not in CANDIDATES]
        if unknown:
            raise BadInput(f"candidates: {unknown[0]!r} is not one of {', '.join(CANDIDATES)}")

    def quantize(
        self,
        model: nn.Module,
        calibration_data: Iterable[Any],
        fairness_constraint: bool = True,
        *,
        certification_data: Iterable[Any] | None = None,
        train_data: Iterable[Any] | None = None,
    ) -> nn.Module:
        """Make candidates, test them, and return the cheapest that is certified.

        Parameters
        ----------
        model : binary classifier with logits (N, 2), (N, 1) or (N,)
            It is not changed.
        calibration_data : iterable of (images, labels, groups)
            Labels 0 or 1, groups a mapping of attribute to values. The first ``making_images`` make
            the candidates; all others, streamed and not kept, are tested on. No image may come
            twice (a sampler that draws with replacement voids the certificate), nor be one that the
            model was trained on. Within a group the order must be random; groups may be drawn
            evenly, which needs the fewest images.
        fairness_constraint : bool
            Without it the static candidate is returned whatever it does; ``final_dp_gap`` says
            what that is.
        certification_data : iterable like ``calibration_data``, optional
            Other images, to test on instead.
        train_data : iterable like ``calibration_data``, optional
            Allows the candidate that is fine-tuned; held in memory, and none of it among the
            images that are tested on.

        Returns
        -------
        module
            With the signature of ``model``; ``report``, ``certificate`` and ``final_dp_gap`` of
            this object describe it.

        Raises
        ------
        NotCertified
            It carries the best candidate, and how many images would have been needed.
        BadInput
            A group that is empty, or too small, or missing in calibration; an attribute that the
            loader does not have; too few images to test on. Before anything is computed where the
            first images show it.
        """
        self.certificate, self.report, self.final_dp_gap = None, None, float("nan")
        sample, rest = self._split(calibration_data, certification_data)
        names = list(self.candidates) or list(CANDIDATES)
        if not fairness_constraint:
            names = ["static"]
        train = None
        if train_data is not None and "fine-tuned" in names:
            train = self._sample(list(read(train_data, "train_data", self._named)), "train_data")
        elif "fine-tuned" in names:
            if self.candidates:
                raise BadInput("candidates: 'fine-tuned' learns from train_data; give it")
            names.remove("fine-tuned")
        made = self._made(model, sample, train)
        models: dict[str, nn.Module] = {FLOAT: model}
        reports: dict[str, QuantReport] = {}
        seconds: dict[str, float] = {}
        self.not_made = {}
        for name in (name for name in CANDIDATES if name in names):
            began = time.perf_counter()
            try:
                models[name], reports[name] = CANDIDATES[name](made)
            except BadInput as error:
                # Not every model has, say, a channel that the budget buys; others may still do.
                self.not_made[name] = str(error)
                continue
            seconds[name] = time.perf_counter() - began
        if not reports:
            raise BadInput(
                "FairnessAwareQuantizer: no candidate could be made; "
                + "; ".join(f"{name}: {why}" for name, why in self.not_made.items())
            )
        learnt = answers(models, _triples([sample]), self._named, argument="sensitive_attributes")
        held_out = answers(models, rest, self._named, argument="sensitive_attributes")
        found = {
            name: Candidate(
                self._table(learnt, name, sample),
                self._table(held_out, name, sample),
                reports[name].size_bytes,
                seconds[name],
            )
            for name in reports
        }
        trials = tuple(in_sequence(found, self.question))
        return self._returned(models, reports, found, trials, sample, fairness_constraint)

    @property
    def _named(self) -> list[str]:
        return list(self.sensitive_attributes)

    def _split(
        self, calibration_data: Iterable[Any], certification_data: Iterable[Any] | None
    ) -> tuple[Sample, Iterator[Any]]:
        """The images that make candidates, and batches of those to test on; one pass."""
        stream = read(calibration_data, "calibration_data", self._named)
        parts, left, missing = [], None, self.making_images
        for batch in stream:
            parts.append(first(batch, missing))
            size = len(batch.images)
            if size > missing:
                left = rows_of(batch, range(missing, size))
            missing -= len(parts[-1].images)
            if missing == 0:
                break
        sample = self._sample(parts, "calibration_data")
        if certification_data is not None:
            others = read(certification_data, "certification_data", self._named)
            return sample, ((b.images, b.labels, b.groups) for b in others)
        left = left if left is not None else next(stream, None)
        if left is None:
            raise BadInput(
                f"calibration_data: its {len(sample)} images all make candidates, so that none are "
                "left to test these on; give more images, certification_data, or fewer "
                "making_images"
            )
        rest = left

        def others_() -> Iterator[Any]:
            yield rest.images, rest.labels, rest.groups
            yield from ((b.images, b.labels, b.groups) for b in stream)

        return sample, others_()

    def _sample(self, parts: list[Any], what: str) -> Sample:
        if not parts:
            raise BadInput(f"{what} gave no images; give at least one batch")
        found = of_batch(joined(parts, what), self._named, least=LEAST, what=what)
        wrong = sorted(set(found.labels.tolist()) - {0, 1})
        if wrong:
            raise BadInput(f"{what}: label {wrong[0]} is neither 0 nor 1; gaps are of two classes")
        if len(found.present) < 2:
            raise BadInput(
                f"{what}: every image is of the group {found.name(found.present[0])!r}; there is "
                "nothing to compare"
            )
        return found

    def _made(self, model: nn.Module, sample: Sample, train: Sample | None) -> Making:
        device = device_of(model)
        here, there = (
            None
            if s is None
            else replace(s, images=s.images.to(device), labels=s.labels.to(device))
            for s in (sample, train)
        )
        assert here is not None
        seen = _drawn(model, here, self.spec, "random", self.seed)
        return Making(model, self.spec, here, seen, there, self.max_dp_gap, self.seed)

    def _table(self, found: Answers, name: str, sample: Sample) -> np.ndarray[Any, Any]:
        """Counts over the groups of the first images, in their order."""
        crossed = found.groups[self._named].astype(str).agg("|".join, axis=1)
        known = sample.groups.names
        unseen = [value for value in crossed.unique() if value not in known]
        if unseen:
            raise BadInput(
                f"calibration_data: the group {unseen[0].replace('|', ' ')!r} is among the images "
                f"to test on, but not among the first {len(sample)}, which make the candidates; "
                "shuffle the images, or add some of it"
            )
        cells = pd.Categorical(crossed, categories=list(known))
        sizes = cells.value_counts()
        if sizes.min() < LEAST:
            few = str(sizes.idxmin())
            raise BadInput(
                f"calibration_data: the group {few.replace('|', ' ')!r} has {sizes.min()} images "
                f"to test on where {LEAST} are needed; add images of it, or leave an attribute out"
            )
        table = count(
            found.truth,
            found.predictions[name],
            sensitive_features=pd.DataFrame({"group": cells.rename_categories(range(len(known)))}),
            reference=found.predictions[FLOAT],
        ).table
        shown = [group.replace("|", " ") for group in known]
        refuse_empty(table, self.question, shown, "the images of calibration_data")
        return table

    def _returned(
        self,
        models: Mapping[str, nn.Module],
        reports: Mapping[str, QuantReport],
        found: Mapping[str, Candidate],
        trials: tuple[Trial, ...],
        sample: Sample,
        constrained: bool,
    ) -> nn.Module:
        by_name = {trial.name: trial for trial in trials}
        certified = [name for name in found if by_name[name].outcome == "certified"]
        table = next(iter(found.values())).held_out
        for module in models.values():
            if module is not models[FLOAT]:
                module.eval()
        images = {
            name.replace("|", " "): int(n)
            for name, n in zip(sample.groups.names, table.sum(axis=(1, 2, 3)), strict=True)
        }
        if not certified and constrained:
            nearest = min(trials, key=lambda trial: trial.bound)
            raise NotCertified(
                self._refusal(nearest, trials, images), models[nearest.name], nearest, trials
            )
        name = certified[0] if certified else next(iter(found))
        trial = by_name[name]
        self.report, self.final_dp_gap = reports[name], trial.bound
        if certified:
            self.certificate = Certificate(
                name, self.question, trial.harm, trial.bound, images, trials
            )
        return models[name].eval()

    def _refusal(self, nearest: Trial, trials: tuple[Trial, ...], images: dict[str, int]) -> str:
        smallest = min(images, key=lambda group: images[group])
        numbers = [t.images_needed for t in trials if t.images_needed is not None]
        if numbers:
            way = f"about {min(numbers)} held-out images like these would be needed"
        elif nearest.harm > self.max_dp_gap:
            way = (
                "more images would not help: what was observed is too much; allow it, or more bits"
            )
        else:
            way = (
                "no number of images like these would show it: between some groups more has "
                "changed than is allowed; give more making_images, which may show that these "
                "groups lie apart, or allow more"
            )
        return (
            f"FairnessAwareQuantizer: none of {', '.join(t.name for t in trials)} is certified to "
            f"stay within {self.max_dp_gap} at confidence {1 - self.delta:g}; nearest came "
            f"{nearest.name}, observed {nearest.harm:+.4f}, bound {nearest.bound:.4f}, on "
            f"{sum(images.values())} held-out images, {images[smallest]} of {smallest}; {way}"
        )


def _triples(samples: Iterable[Sample]) -> Iterator[Any]:
    for sample in samples:
        for images, labels, codes in sample.batches():
            names = [sample.groups.names[code].split("|") for code in codes.tolist()]
            columns: list[Any] = list(zip(*names, strict=True))
            yield images, labels, dict(zip(sample.groups.attributes, columns, strict=True))
