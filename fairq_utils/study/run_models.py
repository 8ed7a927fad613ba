"""The model of one run: which pictures it is calibrated on, and how it is quantized from FP32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairq_utils import calibration
from fairq_utils.calibration import SAMPLERS
from fairq_utils.data.faces import FaceData
from fairq_utils.errors import BadInput, Fault
from fairq_utils.mitigation.balancing_act import affordable_memory
from fairq_utils.mitigation.constraints import CONSTRAINTS
from fairq_utils.mitigation.fine_tuning import OnFaces
from fairq_utils.mitigation.group_facts import facts_of_faces
from fairq_utils.mitigation.pool import pool_features, pool_losses
from fairq_utils.mitigation.sample import CHUNK, Sample, as_sample
from fairq_utils.quantizers.calibrate import Observed, observe, what_to_observe
from fairq_utils.quantizers.methods import METHODS, Task
from fairq_utils.quantizers.precision import full_precision
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.study import run_training, tracking, weights
from fairq_utils.study.progress import Listener
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study
from fairq_utils.training import architectures, checkpoints, loop, objectives
from fairq_utils.training.inference import device_of
from fairq_utils.training.zoo import display_name


def calibration_kind(run: Run) -> str:
    """Runs of one kind can share what one calibration saw."""
    if not METHODS[run.method].calibrates:
        return run.method
    return "equalized" if _spec(run).equalization else "static"


@dataclass(frozen=True)
class Rebuilt:
    """A run's model, made again.

    Attributes
    ----------
    fp32 : the trained model that the run starts from
    model : the run's own, in float simulation; ``fp32`` itself for an FP32 run
    report : :meth:`fairq_utils.quantizers.QuantReport.to_dict`; empty for an FP32 run
    """

    fp32: torch.nn.Module
    model: torch.nn.Module
    report: dict[str, Any]


def rebuild(study: Study, run: Run) -> Rebuilt:
    """Make a run's model again, from its checkpoint and its calibration pictures.

    It is quantized on the study's device, whose rounding decides with the rest, or on the CPU where
    this machine has no such device; it comes back on the CPU.

    Raises
    ------
    BadInput
        The run trains on after quantization; a study does not keep such weights.
    Fault
        See :func:`trained`.
    """
    if trains_on(run.method):
        raise BadInput(
            f"run {run.key}: {run.method} trains on after the FP32 checkpoint, and a study keeps "
            "no weights of that; name a run of another method"
        )
    model = trained(study, run)
    if run.method == "fp32":
        return Rebuilt(model, model, {})
    data = study.faces
    if study.params.execution.device != "cuda" or torch.cuda.is_available():
        model.to(study.device)
    with full_precision():
        seen = calibrated(study, [run], model, data) if observes(run.method) else None
        quantized, _, report, _ = quantized_model(study, run, model, seen, data, None)
    return Rebuilt(model.cpu(), quantized.eval().cpu(), report)


def trained(study: Study, run: Run) -> torch.nn.Module:
    """The FP32 model that a run starts from, in eval mode, on the CPU.

    Raises
    ------
    Fault
        It is not trained yet; says how to train it.
    ValueError
        Its checkpoint is damaged.
    """
    store, key = study.ledger, run.weights
    path = weights.fetch(store, key)
    if not store.local and path.exists():
        weights.sound(store, key)
    if not path.exists():
        raise Fault(
            f"{path}: there is no FP32 {display_name(run.architecture)} of this "
            "study yet; run `fairq run --params ... --phase baseline` first, with the same params"
        )
    model = architectures.build(run.architecture, image_size=study.params.data.size)
    return checkpoints.load_checkpoint(model, path, key).eval()


def quantized_model(
    study: Study,
    run: Run,
    model: torch.nn.Module,
    seen: Observed | None,
    data: FaceData,
    bars: Listener | None,
) -> tuple[torch.nn.Module, int, dict[str, Any], dict[str, float]]:
    """One run's model, its bytes, its report, and further measures.

    Parameters
    ----------
    model : the FP32 model
        The quantizer works on its device.
    seen : what :func:`calibrated` gave; none for a dynamic method
    """
    measures: dict[str, float] = {}
    task = _task(study, run, model, seen, data, bars, measures)
    quantized, report = METHODS[run.method].fit(task)
    if report is None:
        return quantized, round(architectures.float_megabytes(quantized) * 2**20), {}, measures
    return quantized, report.size_bytes, report.to_dict(), measures


def _example(model: torch.nn.Module, data: FaceData) -> Tensor:
    """A few pictures for what looks at no more of them than their shape."""
    return architectures.Normalized(data.subset("train").images, device_of(model))[:8]


def _task(
    study: Study,
    run: Run,
    model: torch.nn.Module,
    seen: Observed | None,
    data: FaceData,
    bars: Listener | None,
    measures: dict[str, float],
) -> Task:
    """Task of a run's method; images are read where it asks for them.

    Parameters
    ----------
    measures : where seconds and losses of training are noted
    """
    attributes, place = run.settings.get("attributes", ()), device_of(model)

    def observed() -> Observed:
        assert seen is not None, f"{run.method} looks at no calibration images"
        return seen

    def drawn() -> Sample:
        pool = data.subset("calibration")
        rows = calibration_rows(study, run, pool, model)
        # A draw may lack a rare group; a method that cannot do without says so.
        return _sample(pool.take(rows), attributes, 0, place)

    def train(network: torch.nn.Module, constraint: str | None) -> dict[str, Any]:
        measures.update(_tune(study, run, network, data, bars, model, constraint))
        return {}

    return Task(
        model,
        _spec(run),
        _example(model, data) if seen is None else None,
        observed,
        drawn,
        partial(_sample, data.subset("validation"), attributes, 1, place),
        train,
        run.settings,
        least=1,
        seed=int(run.calibration_seed or 0),
    )


def _sample(data: FaceData, attributes: Sequence[str], least: int, device: torch.device) -> Sample:
    images = architectures.Normalized(data.images, device)
    return as_sample(images, data.target, data.groups[list(attributes)], least=least)


def _tune(
    study: Study,
    run: Run,
    model: torch.nn.Module,
    data: FaceData,
    bars: Listener | None,
    fp32: torch.nn.Module,
    constraint: str | None,
) -> dict[str, float]:
    """Fine-tune from where the FP32 model stands, on the same batches for all that do."""
    train = data.subset("train")
    if run.settings["images"] is not None:
        train = train.take(np.arange(run.settings["images"]))
    settings = study.params.training.models[run.architecture]
    recipe = loop.Recipe(
        epochs=int(run.settings["epochs"]),
        learning_rate=settings.learning_rate * float(run.settings["rate"]),
        batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
    )
    seed = int(run.training["seed"]) + 1
    objective: torch.nn.Module = objectives.Classification(train, recipe.label_smoothing)
    if constraint is not None:
        attributes = run.settings["attributes"]
        about = facts_of_faces(fp32, train, attributes)
        # A group's accuracy cannot be estimated from more answers than it has pictures.
        memory = affordable_memory(about.sizes)
        options = {"memory": memory} if constraint == "balancing_act" else {}
        kept = CONSTRAINTS[constraint](about, label_smoothing=recipe.label_smoothing, **options)
        objective = OnFaces(train, kept, attributes)
    torch.manual_seed(seed)  # dropout
    progress = tracking.reporting(study.params, run, bars)
    history = run_training.fit(study, run, model, train, recipe, objective, seed, progress)
    losses = {f"loss_{i + 1}": value for i, value in enumerate(history.loss)}
    return {"train_seconds": history.seconds, **losses}


def _spec(run: Run) -> QuantSpec:
    options: dict[str, Any] = {}
    own = METHODS[run.method].options
    # The method's own rules hold where no other is asked for.
    if run.ranges is not None and run.ranges != METHODS[run.method].range_rule:
        options["activation_range"] = run.ranges
        # Weights do not move: their average range is their range.
        options["weight_range"] = "minmax" if run.ranges == "moving_average" else run.ranges
    if run.percentile is not None and "percentile" not in own:
        options["percentile"] = run.percentile
    if "iterations" in run.settings:
        options["iterations"] = run.settings["iterations"]
    return METHODS[run.method].spec(str(run.bits or "W8A8"), **options)


def observes(method: str) -> bool:
    """True if a method works on an observed model, if only to fold its batch norms."""
    return METHODS[method].calibrates or METHODS[method].trains


def trains_on(method: str) -> bool:
    """True if a method fine-tunes after the FP32 checkpoint."""
    return method != "fp32" and METHODS[method].trains


def calibration_rows(
    study: Study, run: Run, pool: FaceData, model: torch.nn.Module
) -> NDArray[np.int64]:
    """Rows of the calibration pool that a run is calibrated on."""
    sampler, _, group = str(run.sampler).partition("=")
    options: dict[str, Any] = {}
    needs = SAMPLERS[sampler].needs
    if needs == "group":
        options["group"] = group
    elif needs == "losses":
        options["losses"] = pool_losses(model, architectures.Normalized(pool.images), pool.target)
    elif needs == "features":
        options["features"] = pool_features(model, architectures.Normalized(pool.images))
    elif needs == "population":
        train = study.faces.subset("train").groups
        options["population"] = study.shares(run.settings["attributes"], train)
    return calibration.draw(
        sampler,
        pool.groups,
        pool.target,
        int(run.calibration_images or 0),
        seed=int(run.calibration_seed or 0),
        attributes=run.settings.get("attributes", ("gender", "age")),
        **options,
    )


def calibrated(
    study: Study, runs: Sequence[Run], model: torch.nn.Module, data: FaceData
) -> Observed:
    """Calibration statistics of the FP32 model that runs of one kind share."""
    pool = data.subset("calibration")
    first = runs[0]
    if first.sampler is None:  # the control: nothing is calibrated, batch norms are folded
        return observe(model, [_example(model, data)])
    rows = torch.from_numpy(calibration_rows(study, first, pool, model))
    batches = architectures.Normalized(pool.images, device_of(model)).take(rows).split(CHUNK)
    specs = [_spec(run) for run in runs]
    asked = what_to_observe(*specs)
    asked["keep"] |= any("kept" in METHODS[run.method].needs for run in runs)
    return observe(model, batches, [spec.activation_range for spec in specs], **asked)
