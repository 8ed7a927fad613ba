"""Cost of a small study at three sizes, beside what the cost model says of it.

Rates are fitted at the smallest size only; what the model says of the larger ones is a prediction.
Every study is computed from nothing but its images, in a ledger of its own, by one thread. What
is counted are seconds of the processor, so that a machine that others use too tells the same.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fairq_utils.bench.outcome import Outcome, say
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.deploy import processor
from fairq_utils.study import cost
from fairq_utils.study.execution import execute
from fairq_utils.study.ledger import RunRecord
from fairq_utils.study.params.study import Params
from fairq_utils.study.people import faces
from fairq_utils.study.workload import Rates

FACTORS = (1, 2, 4)
PIXELS = 48
IMAGES = {"train": 768, "calibration": 192, "validation": 32, "test": 768}
RECIPE = {"epochs": 1, "learning_rate": 0.001, "batch_size": 32}
ARCHITECTURES = ("squeezenet1_1", "mobilenet_v2")
PLAIN = {"method": "ptq", "bits": ["W8A8", "W4A4"], "range": "mse"}
FURTHER = {"qat": ["W8A8"], "block": ["W4A4"]}
ITERATIONS = 10
CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class Measured:
    """Study that was computed.

    Attributes
    ----------
    seconds : of the processor
    share : seconds of the processor per second that passed
    records : what its runs left behind
    """

    seconds: float
    share: float
    records: list[RunRecord]


@benchmark("cost", title="what a study costs at three sizes, beside the cost model")
def bench_cost(subject: Subject) -> Outcome:
    """Compute a small study at three sizes, and its parts at the smallest; minutes on one core.

    Returns
    -------
    Outcome
        ``sizes``: rows of ``factor``, ``images`` (of all splits), ``seconds``, ``predicted``, and
        their ``ratio``. ``kinds``: the same by architecture and kind of run. ``exponent`` and
        ``predicted_exponent``: slope of the logarithm of seconds over that of images;
        ``exponents``: of what was measured, by kind. ``additivity``: seconds of two seeds over
        twice those of one, of single architectures together over those of both, and of single
        methods together (what all share counted once) over those of both. ``rates`` by
        architecture; ``pixels``, ``threads``, ``share`` of the processor, ``processor``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Outcome(_bench())
    finally:
        torch.set_num_threads(threads)


def _bench() -> dict[str, Any]:
    _measured(study(FACTORS[0]))  # what is loaded on the first call is no part of the cost
    sized = {factor: _measured(study(factor)) for factor in FACTORS}
    smallest = sized[FACTORS[0]]
    rates = cost.fitted(smallest.records, smallest.share)
    kinds = pd.concat([_by_kind(factor, sized[factor], rates) for factor in FACTORS])
    sizes = [_row(factor, sized[factor], kinds) for factor in FACTORS]
    images = [row["images"] for row in sizes]
    summed = kinds.groupby(["kind", "factor"]).seconds.sum().unstack()
    return {
        "sizes": sizes,
        "kinds": kinds.round(3).to_dict("records"),
        "exponent": _slope(images, [row["seconds"] for row in sizes]),
        "predicted_exponent": _slope(images, [row["predicted"] for row in sizes]),
        "exponents": {str(kind): _slope(images, list(row)) for kind, row in summed.iterrows()},
        "additivity": _additivity(smallest.seconds),
        "rates": {name: asdict(found) for name, found in rates.items()},
        "pixels": PIXELS,
        "threads": 1,
        "share": round(float(np.mean([found.share for found in sized.values()])), 3),
        "processor": processor.model_name(),
    }


def study(
    factor: int,
    *,
    seeds: Sequence[int] = (0,),
    architectures: Sequence[str] = ARCHITECTURES,
    further: Sequence[str] = tuple(FURTHER),
) -> Params:
    """Study with so many times the images of the smallest."""
    images = {split: factor * count for split, count in IMAGES.items()}
    return Params.model_validate(
        {
            "name": "cost",
            "data": {"size": PIXELS, **images},
            "training": {"seeds": list(seeds), "models": dict.fromkeys(architectures, RECIPE)},
            "grid": [
                {**PLAIN, "sampler": ["random", "label_balanced"]},
                {"method": "dynamic", "bits": "W8A8"},
                *({"method": name, "bits": FURTHER[name]} for name in further),
            ],
            "quantization": {
                "iterations": ITERATIONS,
                "calibration_images": CALIBRATION_IMAGES,
            },
            "execution": {"device": "cpu", "threads": 1},
        }
    )


def _measured(params: Params) -> Measured:
    faces(params)  # rendered before the clock starts
    with tempfile.TemporaryDirectory() as folder:
        places = {"ledger": str(Path(folder, "ledger")), "results": str(Path(folder, "results"))}
        execution = params.execution.model_copy(update=places)
        own = params.model_copy(update={"execution": execution})
        began, worked = time.perf_counter(), time.process_time()
        store = execute(own, stream=io.StringIO())
        seconds, passed = time.process_time() - worked, time.perf_counter() - began
        records = [store.read(job.run.key) for job in cost.jobs(own)]
    say(f"cost: {len(records)} runs in {seconds:.1f} s")
    return Measured(seconds, seconds / passed, records)


def _by_kind(factor: int, found: Measured, rates: dict[str, Rates]) -> pd.DataFrame:
    """Seconds of the runs as their records say and as the model does, by architecture and kind."""
    images = factor * sum(IMAGES.values())
    planned = {job.run.key: job for job in cost.jobs(study(factor))}
    rows = []
    for record in found.records:
        job = planned[record.run.key]
        shared = record.measures.get("calibrate_seconds", 0.0) * job.calibrates
        rows.append(
            {
                "factor": factor,
                "images": images,
                "architecture": record.run.architecture,
                "kind": job.work.kind,
                "seconds": (record.seconds + shared) * found.share,
                "predicted": sum(job.seconds(rates)),
            }
        )
    keys = ["factor", "images", "architecture", "kind"]
    return pd.DataFrame(rows).groupby(keys, sort=False).sum().reset_index()


def _row(factor: int, found: Measured, kinds: pd.DataFrame) -> dict[str, float]:
    predicted = float(kinds[kinds.factor == factor].predicted.sum())
    return {
        "factor": factor,
        "images": factor * sum(IMAGES.values()),
        "seconds": round(found.seconds, 2),
        "predicted": round(predicted, 2),
        "ratio": round(predicted / found.seconds, 3),
    }


def _slope(images: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent k of seconds that grow as images to the power of k, by least squares."""
    return round(float(np.polyfit(np.log(images), np.log(seconds), 1)[0]), 3)


def _additivity(both: float) -> dict[str, float]:
    """Seconds of parts at the smallest size over those of the whole; 1 is exactly additive.

    Parameters
    ----------
    both : seconds of the smallest study with all of its architectures and methods
    """

    def took(**parts: Any) -> float:
        return _measured(study(FACTORS[0], **parts)).seconds

    alone = sum(took(architectures=[name]) for name in ARCHITECTURES)
    neither = took(further=())
    single = sum(took(further=[name]) for name in FURTHER) - (len(FURTHER) - 1) * neither
    return {
        "seeds": round(took(seeds=(0, 1)) / (2 * both), 3),
        "architectures": round(alone / both, 3),
        "methods": round(single / both, 3),
    }
