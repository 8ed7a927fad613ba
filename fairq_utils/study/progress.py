"""Progress of a study: its phase, its model, and the time left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from fairq_utils.quantizers.methods import METHODS
from fairq_utils.study.run_record import Run
from fairq_utils.study.workload import seconds_on_two_cores
from fairq_utils.training.loop import REPORTED
from fairq_utils.training.zoo import display_name

QUIET = 15.0  # seconds of silence during a training


Tick = Callable[[int, int, float], None]


class Listener(Protocol):
    """Whoever is told what a task does: the terminal's lines, or the way there from a worker."""

    def training(self, run: Run) -> Tick:
        """A callback for :func:`fairq_utils.training.loop.fit`: step, steps and loss."""

    def finish(self, run: Run) -> None:
        """A run is in the ledger."""


def rendering(stream: TextIO) -> Callable[[str, int, int], None]:
    """A callback for :func:`fairq_utils.data.load` that writes a line now and then."""
    began: dict[str, float] = {}

    def tick(split: str, done: int, total: int) -> None:
        start = began.setdefault(split, time.perf_counter())
        if done == total or done // 2048 != (done - 64) // 2048:
            rate = done / max(time.perf_counter() - start, 1e-3)
            left = (total - done) / max(rate, 1e-3)
            stream.write(f"  data · {split}: {done} of {total} faces, {left:.0f} s left\n")
            stream.flush()

    return tick


@dataclass
class Progress:
    """A line every few seconds of training, and one per finished run.

    Attributes
    ----------
    missing : runs that are to be computed
    stream : where lines go; nowhere if the environment says ``FAIRQ_QUIET=1``
    total : runs of the study, those included that are in the ledger
    """

    missing: list[Run]
    stream: TextIO
    total: int
    done: set[str] = field(default_factory=set)
    began: float = field(default_factory=time.perf_counter)

    def cost(self, run: Run) -> float:
        """Seconds that a run is expected to take; only their ratios matter."""
        return seconds_on_two_cores(run)

    def say(self, text: str) -> None:
        """Write one line."""
        if os.environ.get("FAIRQ_QUIET") != "1":
            self.stream.write(f"  {text}\n")
            self.stream.flush()

    def left(self, extra: float = 0.0, before: float = 0.0) -> str:
        """Estimate of the time left.

        ``extra`` is cost already spent on the run in hand, ``before`` what was spent on it before
        it was stopped.
        """
        spent = sum(self.cost(r) for r in self.missing if r.key in self.done) + extra
        rest = sum(self.cost(r) for r in self.missing if r.key not in self.done) - extra - before
        elapsed = time.perf_counter() - self.began
        seconds = rest * (elapsed / spent if spent > 0 else 1.0)
        return (
            f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"
        )

    def training(self, run: Run) -> Tick:
        """A callback for :func:`fairq_utils.training.loop.fit`: a line every few seconds.

        The first call of a training that was stopped before, and goes on, is a line too.
        """
        said, begun = time.perf_counter(), -1  # the step that this process began at, once known

        def tick(step: int, steps: int, loss: float) -> None:
            nonlocal said, begun
            # A training reports at every so many steps; what comes between says where it goes on.
            goes_on = begun < 0 and step % REPORTED > 0 and step < steps
            if begun < 0:
                begun = step if goes_on else 0
            if time.perf_counter() - said < QUIET and step < steps and not goes_on:
                return
            said = time.perf_counter()
            self.say(
                f"{self.phase(run)} · {display_name(run.architecture)}: "
                f"{'goes on at ' if goes_on else ''}step {step} of {steps}, loss {loss:.3f}, "
                f"{self.left(*(self.cost(run) * x / steps for x in (step - begun, begun)))}"
            )

        return tick

    def phase(self, run: Run) -> str:
        """The phase that a run belongs to."""
        if run.method == "fp32":
            return "baseline"
        plain = run.sampler in (None, "random") and not METHODS[run.method].group_aware
        return "quantization" if plain else "mitigation"

    def finish(self, run: Run) -> None:
        """Count a run as done and say so."""
        self.done.add(run.key)
        phase = self.phase(run)
        self.say(
            f"[{self.total - len(self.missing) + len(self.done)}/{self.total}] {phase} · "
            f"{display_name(run.architecture)} · {run}, {self.left()}"
        )
