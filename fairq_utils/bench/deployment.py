"""What ships, beside its simulation: size on disk, kernels, and whose answers differ.

Every architecture of a study is quantized as each engine needs it, additions and attention
included, and written for it. The engine answers about the test pictures; a *disagreement* is a
picture whose prediction is not that of the float simulation of the same integers.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fairq_utils.bench.subjects import calibration_pictures, pinned_threads, trained_models
from fairq_utils.data.faces import FaceData
from fairq_utils.deploy import engines
from fairq_utils.quantizers.calibrate import Observed, observe
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.quantizers.post_training import quantize_observed
from fairq_utils.study import planning
from fairq_utils.study.params.study import Params
from fairq_utils.study.people import faces
from fairq_utils.training import architectures, loop

BATCH = 100


@dataclass(frozen=True)
class Deployed:
    """One file and what it answers.

    Attributes
    ----------
    architecture, bits, engine : what was written; bits is ``FP32`` for the float file
    accuracy, simulated_accuracy : fractions of test pictures, by the engine and by the simulation
    disagreement : fraction of test pictures
    worst_group, worst_disagreement : the crossed group with the largest share, and that share
    worst_images : test pictures in that group
    file_bytes : of all files that are loaded
    packed_bytes : integers at their bits, scales, and what stayed in float
    float_bytes : of the FP32 model
    integer_kernels, float_kernels : of layers and products
    """

    architecture: str
    bits: str
    engine: str
    accuracy: float
    simulated_accuracy: float
    disagreement: float
    worst_group: str
    worst_disagreement: float
    worst_images: int
    file_bytes: int
    packed_bytes: int
    float_bytes: int
    integer_kernels: int | None
    float_kernels: int | None


@dataclass
class Found:
    """What the benchmark found, and why figures are missing."""

    deployed: list[Deployed] = field(default_factory=list)
    missing: list[tuple[str, str, str, str]] = field(default_factory=list)


def bench_deployment(params: Params) -> tuple[dict[str, Any], str, dict[str, pd.DataFrame]]:
    """Write and ask every architecture of a study, at all of its static bits, in every engine.

    Returns
    -------
    figures, text, tables
        ``{architecture: {bits: {engine: disagreement}}}``, None where there is none; the table with
        the reasons; and ``deployment``, one row per file.

    Raises
    ------
    Fault
        A model is not trained yet.
    """
    threads = pinned_threads(params)
    data, found = faces(params), Found()
    bits = list(planning.bits_of(params))
    for architecture, model in trained_models(params).items():
        _deploy(found, params, architecture, model, bits, data, threads)
    table = pd.DataFrame([asdict(one) for one in found.deployed])
    return _nested(found), _words(found, table), {"deployment": table}


def _deploy(
    found: Found,
    params: Params,
    architecture: str,
    model: torch.nn.Module,
    widths: Sequence[str],
    data: FaceData,
    threads: int,
) -> None:
    batches = calibration_pictures(params, data, BATCH)
    seen = _observed(model, batches)
    test = data.subset("test")
    images: NDArray[np.float32] = architectures.normalize(test.images[:]).contiguous().numpy()
    for bits in widths:
        made = {
            method: quantize_observed(seen, METHODS[method].spec(bits))
            for method in {engine.method for engine in engines.ENGINES.values()}
        }
        answered = {
            method: loop.predict(quantized, test.images) > 0
            for method, (quantized, _) in made.items()
        }
        for engine, described in engines.ENGINES.items():
            quantized, report = made[described.method]
            simulated = answered[described.method]
            try:
                with tempfile.TemporaryDirectory() as folder:
                    paths = engines.write(
                        quantized, engine, folder, batches[0][:BATCH], report.spec["weight_bits"]
                    )
                    size = sum(path.stat().st_size for path in paths)
                    running = engines.load(engine, folder, threads)
                    logits = running.in_batches(images, BATCH)
            except Exception as error:  # one engine's failure is a cell of the table
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                found.missing.append((architecture, bits, engine, reason))
                continue
            answers = logits[:, 1] > logits[:, 0]
            kernels = running.kernels
            found.deployed.append(
                Deployed(
                    architecture,
                    bits,
                    engine,
                    float((answers == test.target).mean()),
                    float((simulated == test.target).mean()),
                    float((answers != simulated).mean()),
                    *worst(answers != simulated, test.groups[list(params.analysis.attributes)]),
                    size,
                    report.size_bytes,
                    report.float_bytes,
                    kernels.integer if kernels else None,
                    kernels.floating if kernels else None,
                )
            )
            print(f"deployment: {found.deployed[-1]}", file=sys.stderr, flush=True)


def _observed(model: torch.nn.Module, batches: Sequence[torch.Tensor]) -> Observed:
    spec = METHODS["gates"].spec("W8A8")
    return observe(
        model,
        batches,
        [spec.activation_range],
        residuals=spec.residuals,
        attention_products=spec.attention_products,
        gates=spec.gates,
    )


def worst(changed: NDArray[np.bool_], groups: pd.DataFrame) -> tuple[str, float, int]:
    """The crossed group with the largest share of changed answers, that share, and its images.

    Examples
    --------
    >>> groups = pd.DataFrame({"gender": ["f", "f", "m", "m"], "age": ["old"] * 4})
    >>> worst(np.array([False, False, True, False]), groups)
    ('m, old', 0.5, 2)
    """
    names = groups.astype(str).agg(", ".join, axis=1).to_numpy()
    shares = pd.Series(changed).groupby(names).agg(["mean", "size"])
    name = str(shares["mean"].idxmax())
    return name, float(shares["mean"][name]), int(shares["size"][name])


def _nested(found: Found) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for one in found.deployed:
        row = figures.setdefault(one.architecture, {}).setdefault(one.bits, {})
        row[one.engine] = round(one.disagreement, 5)
    for architecture, bits, engine, _ in found.missing:
        figures.setdefault(architecture, {}).setdefault(bits, {})[engine] = None
    return figures


def _words(found: Found, table: pd.DataFrame) -> str:
    shown = table.assign(
        accuracy=100 * table.accuracy,
        simulated=100 * table.simulated_accuracy,
        differ=100 * table.disagreement,
        worst=100 * table.worst_disagreement,
        mib=table.file_bytes / 2**20,
        packed=table.packed_bytes / 2**20,
        ratio=table.float_bytes / table.file_bytes,
    )
    columns = ["architecture", "bits", "engine", "accuracy", "simulated", "differ", "worst"]
    columns += ["worst_group", "mib", "packed", "ratio", "integer_kernels", "float_kernels"]
    lines = ["Percent of test pictures; MiB on disk; ratio to FP32", ""]
    lines.append(shown[columns].round(2).to_string(index=False))
    lines += [f"- {a} {bits} {engine}: {reason}" for a, bits, engine, reason in found.missing]
    return "\n".join(lines)
