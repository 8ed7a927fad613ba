"""Runs shown where people watch experiments: TensorBoard's folder, MLflow's server.

A sink is shown what the ledger was given, after the ledger has it, and the loss while a training
goes on. Nothing is computed from a sink. One that fails is left out from then on, with a warning:
the study does not depend on it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from fairq_utils.errors import Fault
from fairq_utils.study import statistics
from fairq_utils.study.params.study import Params, Tracking
from fairq_utils.study.progress import Listener
from fairq_utils.study.run_record import Run, RunRecord


class Sink(Protocol):
    """Place where runs are shown."""

    def step(self, run: Run, step: int, loss: float) -> None:
        """Mean loss of the epoch so far, nats, after a step of a run's training."""

    def show(self, run: Run, scalars: Mapping[str, float], settings: Mapping[str, str]) -> None:
        """Show a finished run: its parameters and its results."""


def scalars(record: RunRecord, params: Params) -> dict[str, float]:
    """Figures of a run by name; those that are undefined are left out.

    Accuracy; worst group and gaps as ``gender/equalized_odds_difference``, over each of the study's
    attributes and all of them crossed; ``flips``, the share of answers that are not FP32's; size in
    bytes; seconds; and the run's further measures, such as the loss of each epoch.
    """
    found = {"size_bytes": float(record.size_bytes), "seconds": record.seconds, **record.measures}
    for scope, attributes in statistics.scopes(params).items():
        counts = statistics.counts(record, attributes)
        found["flips"] = float(counts.flips.sum() / counts.sizes.sum())
        for name, statistic in statistics.measured(params).items():
            label = name if name == "accuracy" else f"{scope}/{name}"
            found[label] = float(statistic(counts.compared))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def settings(run: Run) -> dict[str, str]:
    """Parameters of a run by dotted name; what lies deeper than two levels is JSON."""
    found: dict[str, str] = {"key": run.key}
    for name, value in asdict(run).items():
        inner = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else None
        for key, part in ({name: value} if inner is None else inner).items():
            found[key] = part if isinstance(part, str) else json.dumps(part, sort_keys=True)
    return found


def title(run: Run) -> str:
    """A name to tell runs apart by: ``mobilenet_v2-ptq-W4A8-mse-random-seed0-1f0c2a9b``."""
    seed = f"seed{run.training.get('seed', 0)}"
    parts = (run.architecture, run.method, run.bits, run.ranges, run.sampler, seed, run.key[:8])
    return "-".join(part.replace("/", "_") for part in parts if part)


class Tracker:
    """All sinks of a study, of which none can stop it.

    Parameters
    ----------
    sinks : mapping of a params file's key, such as ``tracking.mlflow``, to its sink
    """

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self.sinks = dict(sinks)

    def show(self, record: RunRecord, params: Params) -> None:
        """Show a run that is in the ledger."""
        if self.sinks:
            figures, about = scalars(record, params), settings(record.run)
            self._each(lambda sink: sink.show(record.run, figures, about))

    def step(self, run: Run, step: int, loss: float) -> None:
        """Show how far a training is."""
        self._each(lambda sink: sink.step(run, step, loss))

    def _each(self, call: Callable[[Sink], None]) -> None:
        for key, sink in list(self.sinks.items()):
            try:
                call(sink)
            except Exception as error:  # a full disk, a server that is gone: each has its own
                del self.sinks[key]
                warnings.warn(
                    f"{key}: nothing more is shown there ({type(error).__name__}: {error}); the "
                    "study goes on, and every run is in the ledger",
                    stacklevel=4,
                )


def tracker(params: Params) -> Tracker:
    """The sinks that a params file names, one object for the whole process.

    Raises
    ------
    Fault
        The library of one of them is not installed (names the extra), or it cannot be opened.
    """
    return _tracker(params.tracking, params.name)


@lru_cache(maxsize=8)
def _tracker(wanted: Tracking, study: str) -> Tracker:
    return Tracker(
        {
            f"tracking.{name}": SINKS[name](place, study)
            for name, place in wanted.model_dump().items()
            if place is not None
        }
    )


def reporting(
    params: Params, run: Run, bars: Listener | None
) -> Callable[[int, int, float], None] | None:
    """A callback for :func:`fairq_utils.training.loop.fit`: lines, and the loss to sinks."""
    line = None if bars is None else bars.training(run)
    sinks = tracker(params)
    if not sinks.sinks:
        return line

    def tick(step: int, steps: int, loss: float) -> None:
        sinks.step(run, step, loss)
        if line is not None:
            line(step, steps, loss)

    return tick


def _library(extra: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ImportError as error:
        raise Fault(
            f"tracking.{extra}: {error.name or extra} is not installed; run "
            f"`pip install 'fairq_utils[{extra}]'`, or take tracking.{extra} out"
        ) from error


class TensorBoard:
    """A folder that ``tensorboard --logdir`` reads: one folder per run, under the study's name."""

    def __init__(self, place: str, study: str) -> None:
        self.folder = Path(place) / study
        self.writer_of = _library("tensorboard", _summary_writer)
        if "://" not in place:
            _check_folder(self.folder)
        self.writers: dict[str, Any] = {}

    def step(self, run: Run, step: int, loss: float) -> None:
        """Mean loss of the epoch so far."""
        writer = self._writer(run)
        writer.add_scalar("loss", loss, step)
        writer.flush()

    def show(self, run: Run, scalars: Mapping[str, float], settings: Mapping[str, str]) -> None:
        """Scalars, and the page of hyperparameters."""
        writer = self._writer(run)
        # Its run_name is a folder within the run's: this one.
        writer.add_hparams(dict(settings), dict(scalars), run_name=".")
        writer.close()
        del self.writers[run.key]

    def _writer(self, run: Run) -> Any:
        if run.key not in self.writers:
            self.writers[run.key] = self.writer_of(str(self.folder / title(run)))
        return self.writers[run.key]


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written, before a study begins."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise Fault(
            f"tracking.tensorboard: {folder} cannot be written ({error.strerror}); name another "
            "folder, or take tracking.tensorboard out"
        ) from error


def _summary_writer() -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


class MLflow:
    """An experiment with the study's name on a tracking server, or in a store that MLflow opens.

    A run that was stopped and is computed again goes on in the one that it began there.
    """

    def __init__(self, place: str, study: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self.mlflow: ModuleType = _library("mlflow", _mlflow)
        try:
            self.client = self.mlflow.MlflowClient(tracking_uri=place)
        except Exception as error:  # its own, or that of a library that a store wants
            raise Fault(
                f"tracking.mlflow: {place} cannot be opened ({error}); name a server, or take "
                "tracking.mlflow out"
            ) from error
        self.study = study
        self.ids: dict[str, str] = {}

    def step(self, run: Run, step: int, loss: float) -> None:
        """Mean loss of the epoch so far."""
        self.client.log_metric(self._id(run), "loss", loss, step=step)

    def show(self, run: Run, scalars: Mapping[str, float], settings: Mapping[str, str]) -> None:
        """Metrics and parameters; then the run is finished there too."""
        run_id = self._id(run)
        entities, now = self.mlflow.entities, int(1e3 * time.time())
        self.client.log_batch(
            run_id,
            metrics=[entities.Metric(name, value, now, 0) for name, value in scalars.items()],
            params=[entities.Param(name, value) for name, value in settings.items()],
        )
        self.client.set_terminated(run_id)
        del self.ids[run.key]

    def _id(self, run: Run) -> str:
        if run.key not in self.ids:
            experiment = self._experiment()
            begun = self.client.search_runs([experiment], f"tags.fairq_run = '{run.key}'")
            if not begun:
                tags = {"fairq_run": run.key, "mlflow.runName": title(run)}
                begun = [self.client.create_run(experiment, tags=tags)]
            self.ids[run.key] = begun[0].info.run_id
        return self.ids[run.key]

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.study)
        if found is None:
            try:
                return str(self.client.create_experiment(self.study))
            except Exception:  # another worker may have been the first
                found = self.client.get_experiment_by_name(self.study)
                if found is None:
                    raise
        return str(found.experiment_id)


def _mlflow() -> ModuleType:
    import mlflow.entities

    return mlflow


SINKS: dict[str, Callable[[str, str], Sink]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
