"""What a quantizer that certifies gives: a certificate, or a refusal that carries what is known."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fairq_utils.faults import Fault
from fairq_utils.mitigation.certificate import Question
from fairq_utils.mitigation.trials import Trial


@dataclass(frozen=True)
class Certificate:
    """What was shown about the model that was returned.

    Attributes
    ----------
    candidate : which one it is, a name in :data:`fairq_utils.mitigation.candidates.CANDIDATES`
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
