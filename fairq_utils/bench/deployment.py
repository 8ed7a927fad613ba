"""Deployed files beside their simulation: size on disk, kernels, and predictions that differ.

Every architecture of a study is quantized as each engine needs it, additions and attention
included, and written for it. The engine predicts for the test images; a *disagreement* is an image
whose prediction is not that of the float simulation of the same integers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils.bench.outcome import Missing, Outcome, nested, told, words
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.bench.subjects import (
    calibration_images,
    pinned_threads,
    trained_models,
)
from fairq_utils.deploy.engines.registry import ENGINES, load, write
from fairq_utils.quantizers.calibrate import Observed, observe_for
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.quantizers.post_training import quantize_observed
from fairq_utils.study import planning
from fairq_utils.study.study import Study
from fairq_utils.training import architectures, loop

BATCH = 100


@dataclass(frozen=True)
class Deployed:
    """A file and its predictions.

    Attributes
    ----------
    architecture, bits, engine : what was written
    accuracy, simulated_accuracy : fractions of test images, by the engine and by the simulation
    disagreement : fraction of test images
    worst_group, worst_disagreement : the crossed group with the largest share, and that share
    worst_images : test images in that group
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


@benchmark(
    "deployment",
    title="deployed files beside their simulation: predictions, kernels, size",
    needs="study",
)
def bench_deployment(subject: Subject) -> Outcome:
    """Deploy every architecture of a study, at all of its static bits, in every engine.

    Returns
    -------
    Outcome
        ``{architecture: {bits: {engine: disagreement}}}``, None where there is none; the table with
        the reasons; and ``deployment``, one :class:`Deployed` per row.

    Raises
    ------
    Fault
        A model is not trained yet.
    """
    study = subject.study
    threads = pinned_threads(study.params)
    models = trained_models(study)
    found, missing = told("deployment", _deployed(study, models, threads))
    figures = nested(
        [
            *(((o.architecture, o.bits, o.engine), round(o.disagreement, 5)) for o in found),
            *((one.place, None) for one in missing),
        ]
    )
    table = pd.DataFrame([asdict(one) for one in found])
    text = words(
        "Percent of test images; MiB on disk; ratio to FP32", _shown(table), missing=missing
    )
    return Outcome(figures, text, {"deployment": table})


def _deployed(
    study: Study, models: Mapping[str, nn.Module], threads: int
) -> Iterator[Deployed | Missing]:
    """Deploy every architecture at all bits in every engine, or say why it cannot be."""
    params, test = study.params, study.faces.subset("test")
    batches = calibration_images(study, BATCH)
    groups = test.groups[list(params.analysis.attributes)]
    images: NDArray[np.float32] = architectures.normalize(test.images[:]).contiguous().numpy()
    for architecture, model in models.items():
        observed = _observed(model, batches)
        for bits in planning.bits_of(params):
            made = {
                method: quantize_observed(observed, METHODS[method].spec(bits))
                for method in {engine.method for engine in ENGINES.values()}
            }
            simulations = {
                method: loop.predict(quantized, test.images) > 0
                for method, (quantized, _) in made.items()
            }
            for engine in ENGINES.values():
                quantized, report = made[engine.method]
                simulated = simulations[engine.method]
                try:
                    with tempfile.TemporaryDirectory() as folder:
                        paths = write(
                            quantized,
                            engine.name,
                            folder,
                            batches[0],
                            report.spec["weight_bits"],
                            check=False,  # predictions are compared below
                        )
                        size = sum(path.stat().st_size for path in paths)
                        running = load(engine.name, folder, threads)
                        logits = running.in_batches(images, BATCH)
                except Exception as error:  # one engine's failure is a cell of the table
                    yield Missing.because((architecture, bits, engine.name), error)
                    continue
                predicted = logits[:, 1] > logits[:, 0]
                kernels = running.kernels
                yield Deployed(
                    architecture,
                    bits,
                    engine.name,
                    float((predicted == test.target).mean()),
                    float((simulated == test.target).mean()),
                    float((predicted != simulated).mean()),
                    *worst(predicted != simulated, groups),
                    size,
                    report.size_bytes,
                    report.float_bytes,
                    kernels.integer if kernels else None,
                    kernels.floating if kernels else None,
                )


def _observed(model: nn.Module, batches: Sequence[Tensor]) -> Observed:
    return observe_for(model, batches, METHODS["gates"].spec("W8A8"))


def worst(changed: NDArray[np.bool_], groups: pd.DataFrame) -> tuple[str, float, int]:
    """Find the crossed group with the largest share of changed predictions.

    Returns
    -------
    group, share, images
        Its name, that share, and how many images it has.

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


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Rows as they are printed."""
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
    return shown[columns].round(2)
