"""The published study's ``FairnessAwareQuantizer``, with a guarantee."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from fairq_utils.data.batches import read
from fairq_utils.errors import BadInput
from fairq_utils.given import each_name
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.metrics.model_metrics import Predictions, paired_predictions
from fairq_utils.mitigation.candidates import CANDIDATES, candidate_task
from fairq_utils.mitigation.certificate import CHANCE, MOST, Question, Table, refuse_empty
from fairq_utils.mitigation.held_out import UsedImages, split, table_of, triples, two_groups
from fairq_utils.mitigation.sample import Sample
from fairq_utils.mitigation.sequential_test import (
    Candidate,
    Certificate,
    NotCertified,
    Trial,
    fewest,
    gaps,
    in_sequence,
    in_words,
)
from fairq_utils.quantizers.checks import check_model
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.precision import full_precision
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec
from fairq_utils.training.inference import device_of, refuse_probabilities

FLOAT = "FP32"


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
        The chance of returning anything beyond the bound, at most.
    evidence : ``betting`` or ``normal``
        See :class:`~fairq_utils.mitigation.certificate.Question`.
    making_images : int
        The first images of ``calibration_data``, which make the candidates.
    candidates : names in :data:`CANDIDATES`, optional
        All, if none is named; ``fine-tuned`` only where there is ``train_data``.
    seed : int
    outputs : ``logits``, optional
        Said of a model whose one output lies between 0 and 1, as a probability would.
    options : attributes of :class:`~fairq_utils.quantizers.QuantSpec`
        Ranges are set by least squared error unless these say otherwise.

    Attributes
    ----------
    certificate : Certificate or None
    report : QuantReport of the model that was returned
    not_made : candidates that this model or these images do not allow, and why
    final_dp_gap : float
        The upper bound on what is constrained, which is the *increase* of the gap over the float
        model unless ``constrained="gap"``, at the confidence of its trial (at least 1 - delta); at
        most ``max_dp_gap`` exactly where the model is certified.
    gap_before, gap_after : float
        The gap itself, of the float model and of the model that was returned, as observed on the
        held-out images.

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
    outputs: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    certificate: Certificate | None = field(default=None, init=False)
    report: QuantReport | None = field(default=None, init=False)
    final_dp_gap: float = field(default=float("nan"), init=False)
    gap_before: float = field(default=float("nan"), init=False)
    gap_after: float = field(default=float("nan"), init=False)
    not_made: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._read_settings()

    def _read_settings(self) -> None:
        """Question and spec from the attributes as they are now."""
        if not isinstance(self.max_dp_gap, int | float) or not 0 < self.max_dp_gap < 1:
            raise BadInput(
                f"max_dp_gap: {self.max_dp_gap!r} is not a number between 0 and 1; 0.01 is one "
                "point"
            )
        if not isinstance(self.making_images, int) or self.making_images < 1:
            raise BadInput(
                f"making_images: {self.making_images!r} is not a whole number of 1 or more"
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
            if isinstance(bits, bool) or bits not in WIDTHS:
                raise BadInput(
                    f"bit_width: {bits!r} is not one of {', '.join(map(str, WIDTHS))}, and no text "
                    "such as 'W4A8'"
                )
            bits = f"W{bits}A{bits}"
        known = [entry.name for entry in fields(QuantSpec)]
        strange = [name for name in self.options if name not in known]
        if strange:
            raise BadInput(
                f"options: {strange[0]!r} is no attribute of QuantSpec; they are {', '.join(known)}"
            )
        ranges = {"weight_range": "mse", "activation_range": "mse"}
        self.spec = QuantSpec.parse(bits, **{**ranges, **self.options})
        self.spec.refuse_idle(self.options)
        if self.spec.activation != "static":
            raise BadInput(
                f"FairnessAwareQuantizer: bit_width {self.bit_width!r} with inputs in "
                f"{self.spec.activation}; candidates differ in how inputs are calibrated: use "
                "static inputs, such as 8 or 'W4A8'"
            )
        self.sensitive_attributes = list(each_name(self.sensitive_attributes or ()))
        self.candidates = each_name(self.candidates)
        if not self.sensitive_attributes:
            raise BadInput("sensitive_attributes: name at least one attribute")
        for name in self.sensitive_attributes:
            if self.sensitive_attributes.count(name) > 1:
                raise BadInput(f"sensitive_attributes: {name!r} is named twice; name it once")
        unknown = [name for name in self.candidates if name not in CANDIDATES]
        if unknown:
            raise BadInput(f"candidates: {unknown[0]!r} is not one of {', '.join(CANDIDATES)}")

    @full_precision()
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
            twice (which is refused), nor be one that the model was trained on (which nobody can
            see here). Within a group the order must be random; groups may be drawn
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
            loader does not have; too few images to test on; an image to test on that had
            a part in making candidates, or comes twice. Before anything is computed where the first
            images show it.
        """
        self._read_settings()
        self.certificate, self.report = None, None
        self.final_dp_gap = self.gap_before = self.gap_after = float("nan")
        if calibration_data is None:
            raise BadInput("calibration_data: is None; give a loader of (images, labels, groups)")
        check_model(model, "FairnessAwareQuantizer")
        model = copied(model, "FairnessAwareQuantizer")
        sample, rest = split(calibration_data, certification_data, self._named, self.making_images)
        images = (x.to(device_of(model)) for x, _, _ in sample.batches())
        refuse_probabilities(model, images, self.outputs, "FairnessAwareQuantizer")
        names = list(self.candidates) or list(CANDIDATES)
        if not fairness_constraint:
            names = ["static"]
        train = None
        if train_data is not None and "fine-tuned" in names:
            parts = list(read(train_data, "train_data", self._named))
            train = two_groups(parts, self._named, "train_data")
        elif "fine-tuned" in names:
            if self.candidates:
                raise BadInput("candidates: 'fine-tuned' learns from train_data; give it")
            names.remove("fine-tuned")
        used = UsedImages()
        used.use(sample, "calibration_data, which made candidates")
        if train is not None:
            used.use(train, "train_data")
        what = "calibration_data" if certification_data is None else "certification_data"
        task = candidate_task(model, self.spec, sample, train, self.max_dp_gap, self.seed)
        models: dict[str, nn.Module] = {FLOAT: model}
        reports: dict[str, QuantReport] = {}
        seconds: dict[str, float] = {}
        self.not_made = {}
        for name in (name for name in CANDIDATES if name in names):
            began = time.perf_counter()
            try:
                models[name], report = CANDIDATES[name](task)
            except BadInput as error:
                # Not every model has, say, a channel that the budget buys; others may still do.
                self.not_made[name] = str(error)
                continue
            assert report is not None, name
            reports[name] = report
            seconds[name] = time.perf_counter() - began
        if not reports:
            raise BadInput(
                "FairnessAwareQuantizer: no candidate could be made; "
                + "; ".join(f"{name}: {why}" for name, why in self.not_made.items())
            )
        asked: dict[str, Any] = {"argument": "sensitive_attributes", "outputs": "logits"}
        learnt = paired_predictions(models, triples(sample), self._named, **asked)
        tested = used.tested(rest, what)
        held_out = paired_predictions(
            models, tested, self._named, what=f"{what} to test on", **asked
        )
        found = {
            name: Candidate(
                self._counts(learnt, name, sample, "calibration_data"),
                self._counts(held_out, name, sample, what),
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

    def _counts(self, found: Predictions, name: str, sample: Sample, what: str) -> Table:
        table = table_of(found, name, FLOAT, sample, what)
        shown = [group.replace("|", " ") for group in sample.groups.names]
        refuse_empty(table, self.question, shown, f"the images of {what}")
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
            before = float(FAIRNESS[self.metric](table.sum(axis=3)))
            raise NotCertified(
                self._refusal(nearest, trials, images, before),
                models[nearest.name],
                reports[nearest.name],
                nearest,
                trials,
            )
        name = certified[0] if certified else next(iter(found))
        trial = by_name[name]
        self.report, self.final_dp_gap = reports[name], trial.bound
        self.gap_before, self.gap_after = gaps(found[name].held_out, self.question)
        if certified:
            self.certificate = Certificate(
                name,
                self.spec.label,
                tuple(self.sensitive_attributes),
                self.question,
                trial.observed,
                trial.bound,
                self.gap_before,
                self.gap_after,
                images,
                trials,
            )
        return models[name].eval()

    def _refusal(
        self,
        nearest: Trial,
        trials: tuple[Trial, ...],
        images: dict[str, int],
        before: float,
    ) -> str:
        """Why, and the way out; ``before`` is the float model's own gap."""
        smallest = min(images, key=lambda group: images[group])
        needed = fewest(trials)
        if math.isfinite(needed[0]):
            way = (
                f"{in_words(needed)} held out like these would be needed for it to be certified "
                f"{CHANCE:.0%} of the time, as far as what was observed tells"
            )
        elif self.constrained == "gap" and before > self.max_dp_gap:
            way = (
                f"the float model's own gap is {before:.4f}, and no quantization is to blame for "
                "it: constrain the increase instead, or allow more"
            )
        elif nearest.observed > self.max_dp_gap:
            way = (
                "more images would hardly help: what was observed is too much; allow it, or more "
                "bits"
            )
        else:
            way = (
                f"{MOST:,.0f} times as many images like these would hardly show it: between some "
                "groups more has changed than is allowed; give more making_images, which may show "
                "that these groups lie apart, or allow more"
            )
        return (
            f"FairnessAwareQuantizer: none of {', '.join(t.name for t in trials)} is certified to "
            f"stay within {self.max_dp_gap} with a chance of error of at most {self.delta:g}; "
            "nearest came "
            f"{nearest.name}, observed {nearest.observed:+.4f}, bound {nearest.bound:.4f}, on "
            f"{sum(images.values())} held-out images, {images[smallest]} of them of the group "
            f"{smallest!r}; {way}"
        )
