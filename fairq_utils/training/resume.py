"""Trainings that were killed go on from their last checkpoint, to the weights they would have had.

Everything that decides the next step is in one safetensors file: weights, optimiser, schedule, what
the objective has learnt, the random states of dropout and of the order, and how far the pass is.
Scalars are JSON in its header. It is written under a temporary name and renamed, so a kill leaves
the file before or the file after.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fairq_utils.data.whole_files import NotWritten
from fairq_utils.training.checkpoints import DamagedCheckpoint, read_tensors, write_tensors

FORMAT = "3"  # of the file; one of another format is set aside


@dataclass(frozen=True)
class Checkpoints:
    """Where the state of one training is kept until it is finished.

    Attributes
    ----------
    path : of the file
    minutes : between two writes; 0 writes at every step
    run : key of the run; a file of another run is set aside with a warning
    """

    path: Path
    minutes: float
    run: str

    def remove(self) -> None:
        """Take the file away: the training is finished, and its run is kept."""
        self.path.unlink(missing_ok=True)


@dataclass
class Place:
    """Progress of a training.

    Attributes
    ----------
    epoch, step : finished passes, and finished batches of the present one
    total : sum of the present pass's losses, a scalar
    history : mean loss of each finished pass
    seconds : of earlier processes
    """

    total: Tensor
    epoch: int = 0
    step: int = 0
    history: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean loss of the present pass so far, or of the last one where none has begun."""
        return float(self.total) / self.step if self.step else self.history[-1]


@dataclass(frozen=True)
class Learner:
    """Model, objective and optimiser: the state that a training changes."""

    model: nn.Module
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler


class Passes(Protocol):
    """Passes over the data whose order a generator decides, the first of them from any batch on."""

    generator: torch.Generator
    first: int  # batches of the next pass that are left out: drawn, but not read


class Keeper:
    """Writes a training's state now and then, and reads it back.

    Parameters
    ----------
    checkpoints : Checkpoints
    passes : gives the batches; batches must not draw from the global random state
    """

    def __init__(self, checkpoints: Checkpoints, passes: Passes) -> None:
        self.checkpoints, self.passes = checkpoints, passes
        self.began = self.written = time.perf_counter()
        self.order = passes.generator.get_state()

    def start(self) -> None:
        """Note that a pass begins: its order is drawn next."""
        self.order = self.passes.generator.get_state()

    def offer(self, learner: Learner, place: Place) -> None:
        """Write the state if it is time to; called between two steps."""
        if time.perf_counter() - self.written < 60 * self.checkpoints.minutes:
            return
        tensors, scalars = self._tensors(learner, place), self._scalars(learner, place)
        _write(self.checkpoints.path, tensors, scalars)
        self.written = time.perf_counter()

    def resume(self, learner: Learner) -> Place:
        """Put a training where its file says, or at its beginning where there is none.

        A file that is damaged, or of another run, kind of device or version of PyTorch, is set
        aside with a warning; one that cannot be read raises
        :class:`~fairq_utils.data.whole_files.NotRead`.
        """
        device = _parameters(learner.optimizer)[0].device
        content = self._read(device)
        if content is None:
            return Place(torch.zeros((), device=device))
        tensors, scalars = content
        _restore(learner, tensors, scalars)
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], device)
        self.passes.generator.set_state(tensors["order"])
        self.passes.first = scalars["step"]
        total = tensors["total"].to(device)
        return Place(total, *(scalars[name] for name in ("epoch", "step", "history", "seconds")))

    def _identity(self, device: torch.device) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "run": self.checkpoints.run,
            "device": device.type,
            "torch": str(torch.__version__),
        }

    def _read(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self.checkpoints.path
        try:
            tensors, metadata = read_tensors(path)
            scalars = json.loads(metadata.get("training", "{}"))
        except FileNotFoundError:
            return None
        except (DamagedCheckpoint, ValueError) as error:
            _set_aside(path, f"is damaged ({error})")
            return None
        for name, mine in self._identity(device).items():
            if scalars.get(name) != mine:
                _set_aside(path, f"is of another training ({name} {scalars.get(name)}, not {mine})")
                return None
        return tensors, scalars

    def _tensors(self, learner: Learner, place: Place) -> dict[str, Tensor]:
        tensors = {
            f"{kind}.{name}": value.detach()
            for kind in ("model", "objective")
            for name, value in getattr(learner, kind).state_dict().items()
        }
        for number, parameter in enumerate(_parameters(learner.optimizer)):
            for name, value in learner.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{number}.{name}"] = value
        tensors["order"] = self.order
        tensors["total"] = place.total
        tensors["random.cpu"] = torch.get_rng_state()
        if place.total.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(place.total.device)
        return tensors

    def _scalars(self, learner: Learner, place: Place) -> dict[str, Any]:
        schedule = learner.schedule.state_dict()
        return {
            **self._identity(place.total.device),
            "epoch": place.epoch,
            "step": place.step,
            "history": place.history,
            "seconds": place.seconds + time.perf_counter() - self.began,
            "schedule": {
                name: schedule[name] for name in ("last_epoch", "_step_count", "_last_lr")
            },
            "groups": [
                {name: group[name] for name in ("lr", "betas")}
                for group in learner.optimizer.param_groups
            ],
            "scaler": learner.scaler.state_dict(),
        }


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _restore(learner: Learner, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    for kind in ("model", "objective"):
        prefix = f"{kind}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        getattr(learner, kind).load_state_dict(state)
    parameters = _parameters(learner.optimizer)
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, what = name.split(".")
            parameter = parameters[int(number)]
            # Moments lie in memory as their parameter does; a fused step reads them side by side.
            like = torch.empty_like(parameter) if what != "step" else value.to(parameter.device)
            learner.optimizer.state[parameter][what] = like.copy_(value)
    for group, saved in zip(learner.optimizer.param_groups, scalars["groups"], strict=True):
        group["lr"], group["betas"] = saved["lr"], tuple(saved["betas"])
    learner.schedule.load_state_dict(scalars["schedule"])
    learner.scaler.load_state_dict(scalars["scaler"])


def _write(path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    try:
        write_tensors(path, tensors, {"training": json.dumps(scalars)})
    except NotWritten as error:
        warnings.warn(
            f"{error}. The training goes on, and would begin again from the checkpoint before if "
            "it were stopped",
            stacklevel=2,
        )


def _set_aside(path: Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.aside")
    warnings.warn(
        f"{path}: this checkpoint {reason}; it is set aside as {aside.name} and the training "
        "begins again",
        stacklevel=5,
    )
    path.replace(aside)
