"""One run: train or quantize a model, evaluate it on the test images, write its predictions."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fairq_utils.data.faces import FaceData
from fairq_utils.errors import Fault
from fairq_utils.quantizers.layers import use_integers
from fairq_utils.quantizers.precision import full_precision
from fairq_utils.study import run_models, run_training, tracking, weights
from fairq_utils.study.progress import Listener
from fairq_utils.study.run_record import Run, RunRecord
from fairq_utils.study.study import Study
from fairq_utils.training import architectures, checkpoints, loop

KEPT = ("test", "validation")  # splits whose margins a record holds
EVALUATED = 64  # test images at a time: what more of them leave behind is slow to allocate


def train_baseline(study: Study, run: Run, bars: Listener | None = None) -> str:
    """Train one FP32 model unless its checkpoint is there, evaluate it, and return its key."""
    store = study.ledger
    path = weights.fetch(store, run.weights)
    there = path.exists() and weights.sound(store, run.weights)
    if there:
        weights.keep(store, run.weights)
        if store.contains(run.key):
            return run.key
    data = pictures_of(study, [run])
    began = time.perf_counter()
    measures: dict[str, float] = {}
    if there:
        model = checkpoints.load_checkpoint(run_training.built(study, run), path, run.weights)
    else:
        model, history = run_training.train_fp32(
            study, run, tracking.reporting(study.params, run, bars)
        )
        measures["train_seconds"] = history.seconds
        measures |= {f"loss_{i + 1}": value for i, value in enumerate(history.loss)}
        checkpoints.save_checkpoint(model, path, {"run": run.weights})
        weights.keep(store, run.weights)
        checkpoints.load_checkpoint(model, path, run.weights)
    measures["parameters"] = float(sum(p.numel() for p in model.parameters()))
    scores = margins(model, data, study.device)
    size = round(architectures.float_megabytes(model) * 2**20)
    answered = record(run, data, scores["test"], scores, size, began, measures, {})
    _finish(study, answered, bars)
    return run.key


def _finish(study: Study, answered: RunRecord, bars: Listener | None) -> None:
    """Write a run; then nothing of its training needs to be kept, and it can be shown."""
    study.ledger.write(answered)
    kept = study.unfinished(answered.run)
    if kept is not None:
        kept.remove()
    tracking.tracker(study.params).show(answered, study.params)
    if bars is not None:
        bars.finish(answered.run)


@full_precision()
def evaluate_quantized(
    study: Study, runs: Sequence[Run], reference: str, bars: Listener | None = None
) -> None:
    """Quantize one trained model in several ways that share a calibration, and evaluate each.

    Static models run on integer kernels where the processor has exact ones, and as a float
    simulation elsewhere; the run's provenance says which.
    """
    store = study.ledger
    runs = [run for run in runs if not store.contains(run.key)]
    if not runs:
        return
    data = pictures_of(study, runs)
    model = run_models.trained(study, runs[0]).to(study.device)
    before = store.read(reference).scores
    began = time.perf_counter()
    observes = run_models.observes(runs[0].method)
    seen = run_models.calibrated(study, runs, model, data) if observes else None
    calibrating = time.perf_counter() - began
    for run in runs:
        began = time.perf_counter()
        quantized, size, report, measures = run_models.quantized_model(
            study, run, model, seen, data, bars
        )
        layers = use_integers(quantized)
        # What runs share is counted in full for each: it is what the method costs alone.
        seconds = calibrating + time.perf_counter() - began
        scores = margins(quantized, data, study.device)
        measures |= {
            "integer_layers": float(layers),
            "quantize_seconds": seconds,
            "calibrate_seconds": calibrating,
        }
        answered = record(run, data, before, scores, size, began, measures, report)
        _finish(study, answered, bars)


def pictures_of(study: Study, wanted: Sequence[Run]) -> FaceData:
    """The study's pictures, if they are those that runs were planned with.

    Raises
    ------
    Fault
        Photographs that changed since, or that another machine has another copy of.
    """
    data = study.faces
    for run in wanted:
        planned = run.data.get("people", {})
        if any(data.meta["contents"].get(split) != said for split, said in planned.items()):
            raise Fault(
                f"data.root: the pictures here are not those that run {run.key} was planned with; "
                "plan again, and give every machine the same pictures"
            )
    return data


def margins(model: torch.nn.Module, data: FaceData, target: str) -> dict[str, NDArray[np.float16]]:
    """Margins by split as they are kept; a prediction is the sign of the kept margin.

    Parameters
    ----------
    target : device
    """
    found = {}
    with full_precision():
        for split in KEPT:
            images = data.subset(split).images
            found[split] = kept(loop.predict(model, images, batch_size=EVALUATED, device=target))
    return found


def kept(found: NDArray[np.float32]) -> NDArray[np.float16]:
    """Margins as a record holds them."""
    limit = float(np.finfo(np.float16).max)
    return np.clip(found, -limit, limit).astype(np.float16)


def cells(data: FaceData) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the groups, all attributes crossed, and group number x 2 + label of each image."""
    names, code = [""], np.zeros(len(data), np.int64)
    for attribute in data.groups:
        column = data.groups[attribute].cat
        names = [f"{n}|{v}".lstrip("|") for n in names for v in column.categories]
        code = code * len(column.categories) + column.codes.to_numpy()
    return tuple(names), code * 2 + data.target


def record(
    run: Run,
    data: FaceData,
    reference: NDArray[np.float16],
    scores: Mapping[str, NDArray[np.float16]],
    size_bytes: int,
    began: float,
    measures: dict[str, float],
    report: dict[str, Any],
) -> RunRecord:
    """Make the record of a run.

    Parameters
    ----------
    data : all splits; what counts is the test split
    reference : margins of the FP32 model on the test split
    scores : margins of this run's model, as of :func:`margins`; those of validation may be left out
    began : when the run began, in seconds of :func:`time.perf_counter`
    """
    test, answers = data.subset("test"), scores["test"]
    validated = scores.get("validation", np.empty(0, np.float16))
    validation = cells(data.subset("validation"))[1] if len(validated) else np.empty(0)
    if not len(reference) == len(answers) == len(test):
        raise Fault(
            f"run {run.key}: {len(reference)} answers of the FP32 model and {len(answers)} of this "
            f"one do not belong to {len(test)} test pictures; name a new folder in execution.ledger"
        )
    names, label = cells(test)
    joint = (label * 2 + (reference > 0)) * 2 + (answers > 0)
    counts = np.bincount(joint, minlength=len(names) * 8).reshape(len(names), 2, 2, 2)
    return RunRecord(
        run=run,
        attributes=tuple(map(str, data.groups)),
        groups=names,
        counts=counts,
        scores=answers,
        cells=label.astype(np.int16),
        validation_scores=validated,
        validation_cells=validation.astype(np.int16),
        size_bytes=size_bytes,
        seconds=time.perf_counter() - began,
        measures=measures,
        provenance=provenance(),
        report=report,
    )


@lru_cache(maxsize=1)
def provenance() -> dict[str, str]:
    """Provenance of a run: versions, commit, processor, accelerator."""
    return {
        "fairq_utils": version("fairq-utils"),
        "commit": _commit(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bf16": f"in {loop.computes_in('bf16', 'cpu')}",
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _commit(root: Path) -> str:
    """The commit of a tree, ``-dirty`` where files are not as it has them; else ``unknown``."""
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain"])
    try:
        commit, changed = (
            subprocess.run(
                command, cwd=root, capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit
