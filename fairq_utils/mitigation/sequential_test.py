"""Candidates tested in a fixed sequence, and the certificate or refusal that comes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fairq_utils.errors import Fault
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.mitigation.certificate import (
    ENOUGH,
    Question,
    Table,
    bound,
    images_needed,
    observed,
    p_value,
    passes,
    plan,
)
from fairq_utils.quantizers.report import QuantReport


@dataclass(frozen=True)
class Certificate:
    """Certificate of the model that was returned.

    Attributes
    ----------
    candidate : which one it is, a name in :data:`fairq_utils.mitigation.candidates.CANDIDATES`
    bits : what was asked for, such as W8A8
    attributes : whose crossed groups are compared
    question : metric, limit, delta, evidence
    observed, bound : float
        Observed on the held-out images, of what is constrained (the increase of the gap, or the
        gap); and its upper bound, at the confidence that its place in the sequence of trials gives
        it.
    gap_before, gap_after : float
        The gap itself, of the float model and of the quantized one, as observed.
    images : held-out images by group
    trials : all candidates, in the order of the test
    """

    candidate: str
    bits: str
    attributes: tuple[str, ...]
    question: Question
    observed: float
    bound: float
    gap_before: float
    gap_after: float
    images: dict[str, int]
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        asked = self.question
        metric = asked.metric.removesuffix("_difference").replace("_", " ")
        gap = f"the {metric} gap between any two groups of {' x '.join(self.attributes)}"
        if asked.constrained == "increase":
            claim = f"{gap} is at most {asked.limit:.4f} wider than that of the float model"
        else:
            claim = f"{gap} is at most {asked.limit:.4f}"
        groups = ", ".join(f"{name}: {count}" for name, count in self.images.items())
        lines = [
            f"{self.candidate}, {self.bits}: {claim}",
            f"the chance that this is said of a model of which it is not true is at most "
            f"{asked.delta:g} ({EVIDENCE_SAYS[asked.evidence]})",
            "it holds for people drawn as the held-out images were: in random order within a "
            "group, none of them twice, none of them trained on",
            f"observed {self.observed:+.4f}, bound {self.bound:.4f}, on "
            f"{sum(self.images.values())} held-out images ({groups})",
            f"the gap itself, as observed there: {self.gap_before:.4f} of the float model, "
            f"{self.gap_after:.4f} of this one",
            *(_line(trial) for trial in self.trials),
        ]
        return "\n".join(lines)


EVIDENCE_SAYS = {
    "betting": "evidence by betting, valid at any number of images",
    "normal": f"evidence by a z-test, an approximation from {ENOUGH} flips in each group up",
}


def _line(trial: Trial) -> str:
    needed = "" if trial.images_needed is None else f", {in_words(trial.images_needed)} needed"
    return (
        f"  {trial.name}: {trial.outcome}, observed {trial.observed:+.4f}, bound "
        f"{trial.bound:.4f}, {trial.size_bytes} bytes, {trial.seconds:.1f} s{needed}"
    )


def in_words(needed: tuple[float, float]) -> str:
    """A range of numbers of images in words.

    Examples
    --------
    >>> in_words((1234.5, 41584.2))
    'about 1,200 to 42,000 images'
    >>> in_words((54000.0, math.inf))
    'at least about 54,000 images'
    >>> in_words((math.inf, math.inf))
    'more images than can be told from these'
    """
    low, high = (
        f"{math.ceil(float(f'{end:.1e}')):,}" if math.isfinite(end) else "" for end in needed
    )
    if not low:
        return "more images than can be told from these"
    return f"about {low} to {high} images" if high else f"at least about {low} images"


def gaps(table: Table, question: Question) -> tuple[float, float]:
    """The gap itself of the float model and of the quantized one, as observed; fractions."""
    metric = FAIRNESS[question.metric]
    return float(metric(table.sum(axis=3))), float(metric(table.sum(axis=2)))


def fewest(trials: Sequence[Trial]) -> tuple[float, float]:
    """Range of the candidate that needs the fewest images."""
    ranges = [t.images_needed for t in trials if t.images_needed is not None]
    return min(ranges, default=(math.inf, math.inf))


class NotCertified(Fault):
    """No candidate could be certified.

    Attributes
    ----------
    best : module
        The candidate that came nearest.
    report : QuantReport of that
    trial : what became of it
    trials : of all candidates, in the order of the test
    images_needed : (low, high)
        Between how many held-out images would most likely certify the one that needs fewest, as
        far as what was observed tells (:func:`fairq_utils.mitigation.certificate.images_needed`);
        an end is infinite where nothing observed bounds it.
    """

    def __init__(
        self,
        message: str,
        best: nn.Module,
        report: QuantReport,
        trial: Trial,
        trials: tuple[Trial, ...],
    ) -> None:
        super().__init__(message)
        self.best, self.report, self.trial, self.trials = best, report, trial, trials
        self.images_needed = fewest(trials)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.best, self.report, self.trial, self.trials)


@dataclass(frozen=True)
class Trial:
    """Trial of one candidate.

    Attributes
    ----------
    name : str
    size_bytes : int
    observed, bound : float
        Observed on the held-out images; and its upper bound at confidence 1 - ``level``, for this
        candidate alone. What holds of all that are certified together is the limit.
    p_value, level : float
        It is certified if the first is at most the second, which is the part of delta that its
        place in the sequence gives it.
    outcome : ``certified`` or ``not certified``
    images_needed : (low, high) or None
        See :func:`~fairq_utils.mitigation.certificate.images_needed`; None where it is certified.
    seconds : float
        What making it took.
    """

    name: str
    size_bytes: int
    observed: float
    bound: float
    p_value: float
    level: float
    outcome: str
    images_needed: tuple[float, float] | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A quantized model's predictions, for :func:`in_sequence`.

    Attributes
    ----------
    learnt, held_out : (G, 2, 2, 2)
        Counts on the images that order and stakes are learnt from, and on those for the test.
    size_bytes : int
    seconds : float
    """

    learnt: Table
    held_out: Table
    size_bytes: int = 0
    seconds: float = 0.0


def in_sequence(
    candidates: Mapping[str, Candidate], question: Question, *, describe: bool = True
) -> list[Trial]:
    """Test candidates, the one that looked safest first; each at its part of delta.

    Parameters
    ----------
    candidates : mapping of name to :class:`Candidate`, cheapest first
        Of equally safe ones the cheaper is tested first.
    describe : bool
        Whether bounds and numbers of images are found, which takes a second or two.

    Returns
    -------
    list of Trial, in the order of the test
        With a probability of at least 1 - delta none of those certified is beyond
        ``question.limit``.
    """
    expected: dict[str, float] = {}
    for name, candidate in candidates.items():
        images = int(candidate.held_out.sum())
        scaled = candidate.learnt * (images / candidate.learnt.sum())
        how = plan(candidate.learnt, images, question)
        expected[name] = p_value(scaled, how, question)
    order = sorted(candidates, key=lambda name: (expected[name], list(candidates).index(name)))
    trials, passed_on = [], 0.0
    for name, part in zip(order, parts(len(order)), strict=True):
        candidate = candidates[name]
        own = part * question.delta
        table = candidate.held_out
        # Planned at the level it has in any case: a p-value must not depend on what came before.
        how = plan(candidate.learnt, int(table.sum()), replace(question, delta=own))
        asked = replace(question, delta=own + passed_on)
        passed = passes(table, how, asked)
        passed_on = asked.delta if passed else 0.0
        trials.append(
            Trial(
                name,
                candidate.size_bytes,
                observed(table, asked),
                bound(table, how, asked) if describe else math.nan,
                p_value(table, how, asked) if describe else math.nan,
                asked.delta,
                "certified" if passed else "not certified",
                images_needed(table, how, asked) if describe and not passed else None,
                candidate.seconds,
            )
        )
    return trials


def parts(count: int) -> list[float]:
    """Shares of delta: a half, a quarter ..., the last as much as the one before; they sum to 1.

    Examples
    --------
    >>> parts(1), parts(4)
    ([1.0], [0.5, 0.25, 0.125, 0.125])
    """
    return [2.0 ** -min(place, count - 1) for place in range(1, count + 1)]
