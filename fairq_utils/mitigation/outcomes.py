"""What a quantizer that certifies gives: a certificate, or a refusal that carries what is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fairq_utils.faults import Fault
from fairq_utils.mitigation.certificate import Question
from fairq_utils.mitigation.trials import Trial
from fairq_utils.quantizers import QuantReport


@dataclass(frozen=True)
class Certificate:
    """What was shown about the model that was returned.

    Attributes
    ----------
    candidate : which one it is, a name in :data:`fairq_utils.mitigation.candidates.CANDIDATES`
    bits : what was asked for, such as W8A8
    attributes : whose crossed groups are compared
    question : metric, limit, delta, evidence
    harm, bound : float
        Observed on the held-out images; and its upper bound, at the confidence that its place in
        the sequence of trials gives it.
    images : held-out images by group
    trials : all candidates, in the order of the test
    """

    candidate: str
    bits: str
    attributes: tuple[str, ...]
    question: Question
    harm: float
    bound: float
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
            f"observed {self.harm:+.4f}, bound {self.bound:.4f}, on {sum(self.images.values())} "
            f"held-out images ({groups})",
            *(_line(trial) for trial in self.trials),
        ]
        return "\n".join(lines)


EVIDENCE_SAYS = {
    "betting": "evidence by betting, valid at any number of images",
    "normal": "evidence by a z-test, which is an approximation for many images",
}


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
    report : QuantReport of that
    trial : what became of it
    trials : of all candidates, in the order of the test
    images_needed : int or None
        How many held-out images would most likely certify one of them, if what was observed of it
        is what is true (:func:`fairq_utils.mitigation.certificate.images_needed`); None where no
        number would.
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
        numbers = [t.images_needed for t in trials if t.images_needed is not None]
        self.images_needed = min(numbers, default=None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.best, self.report, self.trial, self.trials)
