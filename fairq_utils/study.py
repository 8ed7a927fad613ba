"""From a params file to a full ledger: what to run, and running what is missing.

The study is a graph of ``dask.delayed`` tasks: each trained model is one task, each quantized
model another that depends on it. One machine runs the graph in this process; a cluster runs the
same graph. A task whose run is in the ledger does nothing, so a study that was stopped goes on
where it was.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import dask
import numpy as np
import torch
from dask import delayed
from numpy.typing import NDArray

from fairq_utils import calibration, models, training
from fairq_utils.data import FaceData, load
from fairq_utils.data.population import ATTRIBUTES, CELEBA_JOINT, SPLITS, Population
from fairq_utils.fingerprint import code_version
from fairq_utils.ledger import Ledger, Run, RunRecord
from fairq_utils.params import Params
from fairq_utils.progress import Progress, rendering
from fairq_utils.quantizers import QuantSpec, quantize_dynamic, quantize_static

PHASES = ("baseline", "quantization", "mitigation")
INITIAL_IMAGES = 2000  # training pictures that a data-dependent initialisation looks at
TRAINED_BY = (
    "fairq_utils.data.population",
    "fairq_utils.data.head",
    "fairq_utils.data.kernels",
    "fairq_utils.data.render",
    "fairq_utils.models",
    "fairq_utils.training",
)
QUANTIZED_BY = (
    *TRAINED_BY,
    "fairq_utils.calibration",
    "fairq_utils.quantizers.spec",
    "fairq_utils.quantizers.ranges",
    "fairq_utils.quantizers.folding",
    "fairq_utils.quantizers.layers",
    "fairq_utils.quantizers.ptq",
    "fairq_utils.quantizers.dynamic",
)


def population(params: Params) -> Population:
    """The population that a params file describes."""
    joint = CELEBA_JOINT if params.data.joint == "celeba" else params.data.joint
    return Population(
        seed=params.data.seed,
        difficulty=params.data.difficulty,
        joint=dict(joint),
        race=dict(params.data.race),
    )


@lru_cache(maxsize=2)
def faces(params: Params) -> FaceData:
    """The study's pictures, all four splits; rendered on the first call, cached on disk."""
    return load(
        params.data.name,
        sizes={split: getattr(params.data, split) for split in SPLITS},
        size=params.data.size,
        population=population(params),
        cache=params.execution.cache,
        progress=rendering(sys.stderr),
    )


def ledger(params: Params) -> Ledger:
    """The ledger that a params file names."""
    return Ledger(params.execution.ledger)


def device(params: Params) -> str:
    """``cuda`` or ``cpu``; asking for a GPU where there is none is an error."""
    if params.execution.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "execution.device: cuda was asked for but PyTorch finds no GPU; use auto or cpu"
        )
    if params.execution.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return params.execution.device


def plan(params: Params, phases: Sequence[str] = PHASES) -> list[Run]:
    """All runs of these phases, in the order in which they are worth having."""
    runs: list[Run] = []
    q, cells = params.quantization, params.mitigation.samplers
    for architecture, seed in _models(params):
        baseline = _run(params, architecture, seed)
        if "baseline" in phases:
            runs.append(baseline)
        for bits in q.bits:
            for ranges in q.ranges:
                for draw in q.calibration_seeds:
                    for sampler in ("random", *cells):
                        phase = "quantization" if sampler == "random" else "mitigation"
                        if phase in phases and "ptq" in q.methods:
                            runs.append(
                                _run(
                                    params,
                                    architecture,
                                    seed,
                                    method="ptq",
                                    bits=bits,
                                    ranges=ranges,
                                    sampler=sampler,
                                    calibration_seed=draw,
                                )
                            )
            if "dynamic" in q.methods and "quantization" in phases and bits.endswith("A8"):
                runs.append(_run(params, architecture, seed, method="dynamic", bits=bits))
    return runs


def _models(params: Params) -> list[tuple[str, int]]:
    return [(name, seed) for name in params.training.models for seed in params.training.seeds]


def _run(
    params: Params,
    architecture: str,
    seed: int,
    *,
    method: str = "fp32",
    bits: str | None = None,
    ranges: str | None = None,
    sampler: str | None = None,
    calibration_seed: int | None = None,
) -> Run:
    data = params.data.model_dump(mode="json")
    data["joint"] = dict(population(params).joint)
    # The calibration pool matters only to runs that are calibrated.
    if sampler is None:
        data.pop("calibration")
    data.pop("validation")
    return Run(
        data=data,
        architecture=architecture,
        training={
            "seed": seed,
            "pretrained": params.training.pretrained,
            "auxiliary": params.training.auxiliary,
            **params.training.models[architecture].model_dump(mode="json"),
        },
        method=method,
        bits=bits,
        ranges=ranges,
        percentile=params.quantization.percentile if ranges == "percentile" else None,
        sampler=sampler,
        calibration_images=params.quantization.calibration_images if sampler else None,
        calibration_seed=calibration_seed,
        code=code_version(TRAINED_BY if method == "fp32" else QUANTIZED_BY),
    )


def execute(
    params: Params, phases: Sequence[str] = PHASES, *, stream: TextIO | None = None
) -> Ledger:
    """Run what is missing of these phases, and return the ledger.

    Quantized runs need their FP32 model, which is trained first where it is missing.

    Parameters
    ----------
    stream : text stream, optional
        Where progress goes; standard error if not given.
    """
    store = ledger(params)
    wanted = plan(params, phases)
    missing = [run for run in wanted if not store.contains(run.key)]
    bars = Progress(missing, params, stream or sys.stderr, len(wanted))
    if not missing:
        bars.say(f"all {len(wanted)} runs are in the ledger")
        return store
    if params.execution.threads:
        torch.set_num_threads(params.execution.threads)
    tasks, trained = [], {}
    for run in missing:
        base = baseline_of(run)
        if base.key not in trained:
            trained[base.key] = delayed(train_baseline, pure=False)(params, base, bars)
        if run.method != "fp32":
            tasks.append(
                delayed(evaluate_quantized, pure=False)(params, run, trained[base.key], bars)
            )
    with dask.config.set(scheduler="synchronous"):
        dask.compute(*trained.values(), *tasks)
    return store


def baseline_of(run: Run) -> Run:
    """The FP32 run that a quantized run is compared with."""
    data = {k: v for k, v in run.data.items() if k != "calibration"}
    return Run(
        data=data,
        architecture=run.architecture,
        training=run.training,
        method="fp32",
        bits=None,
        ranges=None,
        percentile=None,
        sampler=None,
        calibration_images=None,
        calibration_seed=None,
        code=code_version(TRAINED_BY),
    )


def train_baseline(params: Params, run: Run, bars: Progress | None = None) -> str:
    """Train one FP32 model unless its checkpoint is there, evaluate it, and return its key."""
    store = ledger(params)
    path = Path(store.checkpoint_path(run.key))
    if path.exists() and store.contains(run.key):
        return run.key
    data = faces(params)
    target = device(params)
    began = time.perf_counter()
    seed = int(run.training["seed"])
    torch.manual_seed(seed)
    model = models.build(
        run.architecture, image_size=params.data.size, pretrained=params.training.pretrained
    )
    measures: dict[str, float] = {"parameters": float(sum(p.numel() for p in model.parameters()))}
    if path.exists():
        models.load_checkpoint(model, path)
    else:
        settings = params.training.models[run.architecture]
        recipe = training.Recipe(**settings.model_dump())
        train = data.subset("train")
        if not params.training.pretrained:
            models.initialise(model, train.images[:INITIAL_IMAGES])
        weight = params.training.auxiliary
        if weight and data.factors is not None:
            objective: training.Classification = training.WithFactors(
                train, model, weight, recipe.label_smoothing
            )
        else:
            objective = training.Classification(train, recipe.label_smoothing)
        history = training.fit(
            model,
            train,
            recipe,
            objective,
            seed=seed,
            device=target,
            progress=None if bars is None else bars.training(run),
        )
        if isinstance(objective, training.WithFactors):
            objective.close()
        measures["train_seconds"] = history.seconds
        measures |= {f"loss_{i + 1}": value for i, value in enumerate(history.loss)}
        models.save_checkpoint(model, path, {"run": run.key})
    scores = _scores(model, data, target)
    size = round(models.float_megabytes(model) * 2**20)
    record = _record(run, data, scores, scores, size, began, measures, {})
    store.write(record)
    if bars is not None:
        bars.finish(run)
    return run.key


def evaluate_quantized(
    params: Params, run: Run, baseline: str, bars: Progress | None = None
) -> str:
    """Quantize one trained model, evaluate it on the test split, and return the run's key."""
    store = ledger(params)
    if store.contains(run.key):
        return run.key
    began = time.perf_counter()
    data = faces(params)
    target = device(params)
    model = models.load_checkpoint(
        models.build(run.architecture, image_size=params.data.size),
        store.checkpoint_path(baseline),
    ).eval()
    quantized, report = _quantize(params, run, model, data)
    scores = _scores(quantized, data, target)
    reference = store.read(baseline).scores
    record = _record(run, data, reference, scores, report.size_bytes, began, {}, report.to_dict())
    store.write(record)
    if bars is not None:
        bars.finish(run)
    return run.key


def _quantize(params: Params, run: Run, model: torch.nn.Module, data: FaceData) -> tuple[Any, Any]:
    options: dict[str, Any] = {}
    if run.ranges is not None:
        options = {"activation_range": run.ranges}
        if run.percentile is not None:
            options["percentile"] = run.percentile
    if run.method == "dynamic":
        example = models.normalize(data.subset("train").images[:8])
        return quantize_dynamic(
            model, QuantSpec.parse(str(run.bits), activation="dynamic"), example
        )
    pool = data.subset("calibration")
    rows = calibration.draw(
        str(run.sampler),
        pool.groups,
        pool.target,
        int(run.calibration_images or 0),
        seed=int(run.calibration_seed or 0),
    )
    images = pool.images[torch.from_numpy(rows)]
    batches = [models.normalize(images[i : i + 64]) for i in range(0, len(images), 64)]
    return quantize_static(model, QuantSpec.parse(str(run.bits), **options), batches)


def _scores(model: torch.nn.Module, data: FaceData, target: str) -> NDArray[np.float16]:
    """Margins on the test split as they are kept; a prediction is the sign of the kept margin."""
    margins = training.predict(model, data.subset("test").images, device=target)
    limit = float(np.finfo(np.float16).max)
    return np.clip(margins, -limit, limit).astype(np.float16)


def cells(data: FaceData) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the group cells, and the cell of each image: all attributes crossed."""
    names, code = [""], np.zeros(len(data), np.int64)
    for attribute, values in ATTRIBUTES.items():
        names = [f"{n}|{v}".lstrip("|") for n in names for v in values]
        code = code * len(values) + data.groups[attribute].cat.codes.to_numpy()
    return tuple(names), code


def _record(
    run: Run,
    data: FaceData,
    reference: NDArray[np.float16],
    scores: NDArray[np.float16],
    size_bytes: int,
    began: float,
    measures: dict[str, float],
    report: dict[str, Any],
) -> RunRecord:
    test = data.subset("test")
    names, cell = cells(test)
    label = cell * 2 + test.target
    joint = (label * 2 + (reference > 0)) * 2 + (scores > 0)
    counts = np.bincount(joint, minlength=len(names) * 8).reshape(len(names), 2, 2, 2)
    return RunRecord(
        run=run,
        attributes=tuple(ATTRIBUTES),
        groups=names,
        counts=counts,
        scores=scores,
        cells=label.astype(np.int16),
        size_bytes=size_bytes,
        seconds=time.perf_counter() - began,
        measures=measures,
        provenance=provenance(),
        report=report,
    )


@lru_cache(maxsize=1)
def provenance() -> dict[str, str]:
    """Where a run was computed: versions, commit, processor, accelerator."""
    root = Path(__file__).resolve().parents[1]
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "fairq_utils": version("fairq-utils"),
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
