"""Latency by architecture, batch size and engine, in floats and in integers.

The networks have fresh weights: time does not depend on what they have learnt. Beside our INT8
files stand those that the toolkits make for the same engine from the same model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils.bench.outcome import Missing, Outcome, nested, told, words
from fairq_utils.bench.peers.registry import write as write_by_toolkit
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.bench.subjects import pinned_threads
from fairq_utils.deploy import processor
from fairq_utils.deploy.engines.loaded_model import Kernels, LoadedModel
from fairq_utils.deploy.engines.registry import ENGINES, files, load, write
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.quantizers.post_training import quantize_static
from fairq_utils.timers import Timing, energy, peak_memory, time_call
from fairq_utils.training import architectures

SIZE, BATCHES, CALIBRATION = 224, (1, 32), 16
SECONDS = 3.0  # of timing per figure
OURS, FLOAT, TOOLKIT = "int8", "fp32", "toolkit_int8"
EAGER = "eager_fp32"


@dataclass(frozen=True)
class Latency:
    """Time of one model in one engine.

    Attributes
    ----------
    architecture, batch, key : what was timed; ``eager_fp32``, ``openvino_int8``, ...
    timing : milliseconds per image
    peak_bytes : of loading the model and predicting once; None where it is not known
    file_bytes : of the files that are loaded; None for eager PyTorch
    integer_kernels, float_kernels : how many layers and products multiply what
    joules : per image; None where the processor's counters cannot be read
    """

    architecture: str
    batch: int
    key: str
    timing: Timing
    peak_bytes: int | None
    file_bytes: int | None
    integer_kernels: int | None
    float_kernels: int | None
    joules: float | None


@benchmark(
    "latency",
    title="ms per image: eager PyTorch and every engine, in FP32 and INT8",
    needs="study",
)
def bench_latency(subject: Subject) -> Outcome:
    """Time every architecture of a study at 224 pixels, in every engine.

    Returns
    -------
    Outcome
        ``{architecture: {batch: {key: milliseconds per image}}}``, None where there is none; tables
        of these and of the fastest files, with the reasons below; and ``latency`` with the spread,
        one row per figure.
    """
    threads = pinned_threads(subject.study.params)
    models = subject.study.params.training.models
    found, missing = told("latency", (one for name in models for one in _measured(name, threads)))
    figures = nested(
        [
            *(((o.architecture, str(o.batch), o.key), round(o.timing.median, 4)) for o in found),
            *((one.place, None) for one in missing),
        ]
    )
    table = _frame(found, threads)
    text = words(
        f"Milliseconds per image at {SIZE} px, {threads} threads, {processor.model_name()} "
        f"({' '.join(processor.flags())})",
        table.pivot(index=["architecture", "key"], columns="batch", values="median")
        .round(2)
        .reset_index(),
        "Fastest INT8 files of ours",
        fastest(table).round(2),
        missing=missing,
    )
    return Outcome(figures, text, {"latency": table})


def fastest(latency: pd.DataFrame) -> pd.DataFrame:
    """Our fastest INT8 file by architecture and batch size.

    Parameters
    ----------
    latency : rows with ``architecture``, ``batch``, ``key`` and ``median``

    Returns
    -------
    DataFrame
        These, with ``over_eager``, how many times as fast it is as PyTorch's eager FP32.
    """
    place = ["architecture", "batch"]
    ours = latency[latency.key.isin([f"{engine}_{OURS}" for engine in ENGINES])]
    best = ours.loc[ours.groupby(place, sort=False)["median"].idxmin(), [*place, "key", "median"]]
    eager = latency[latency.key == EAGER].set_index(place)["median"]
    return best.assign(over_eager=best.join(eager.rename("eager"), on=place).eager / best["median"])


def _measured(architecture: str, threads: int) -> Iterator[Latency | Missing]:
    """Time one architecture in every engine and batch size, or say why it cannot be."""
    model, images = _settled(architecture)
    kinds = _writers(model, images)
    for batch in BATCHES:
        yield _eager(architecture, model, batch)
    for engine in ENGINES.values():
        for kind, make in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                key, failure = f"{engine.name}_{kind}", None
                for batch in BATCHES:
                    try:
                        # A compiled file takes one batch size, others take any.
                        if engine.compiled or batch == BATCHES[0]:
                            failure = None
                            example = _images(batch if engine.compiled else BATCHES[-1])
                            make(engine.name, Path(folder), example)
                        if failure is None:
                            yield _file(architecture, key, engine.name, folder, batch, threads)
                    except Exception as error:  # one engine's failure is a cell of the table
                        failure = error
                    if failure is not None:
                        yield Missing.because((architecture, str(batch), key), failure)


def _writers(model: nn.Module, images: Tensor) -> dict[str, Callable[[str, Path, Tensor], Any]]:
    """Functions that write a model's file of each kind, for an engine, in a folder."""
    # Which range a grid holds does not matter to time; the quickest to find will do.
    fast = {"weight_range": "minmax", "activation_range": "minmax"}
    quantized = {
        method: quantize_static(model, METHODS[method].spec("W8A8", **fast), images.split(8))[0]
        for method in {engine.method for engine in ENGINES.values()}
    }
    return {
        FLOAT: lambda engine, folder, example: write(model, engine, folder, example, check=False),
        OURS: lambda engine, folder, example: write(
            quantized[ENGINES[engine].method], engine, folder, example, check=False
        ),
        TOOLKIT: lambda engine, folder, example: write_by_toolkit(
            model, engine, folder, example, images
        ),
    }


def _settled(architecture: str) -> tuple[nn.Module, Tensor]:
    """Build a network with fresh weights whose batch norms know its activations, and images."""
    torch.manual_seed(0)
    model = architectures.build(architecture, image_size=SIZE)
    images = _images(CALIBRATION)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
        for parameter in model.parameters():  # no two biases the same, as after training
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval(), images


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))


def _eager(architecture: str, model: nn.Module, batch: int) -> Latency:
    images = _images(batch)
    with torch.no_grad():
        peak = peak_memory(lambda: model(images))
        return _timed(lambda: model(images), architecture, batch, EAGER, peak, None, None)


def _file(
    architecture: str, key: str, engine: str, folder: str, batch: int, threads: int
) -> Latency:
    images: NDArray[np.float32] = _images(batch).numpy()
    held: list[LoadedModel] = []

    def load_and_predict() -> None:
        held.append(load(engine, folder, threads))
        held[0](images)

    peak = peak_memory(load_and_predict)
    running = held.pop()
    size = sum(path.stat().st_size for path in files(engine, folder))
    return _timed(lambda: running(images), architecture, batch, key, peak, size, running.kernels)


def _timed(
    call: Callable[[], Any],
    architecture: str,
    batch: int,
    key: str,
    peak: int | None,
    size: int | None,
    kernels: Kernels | None,
) -> Latency:
    timing, joules = time_call(call, seconds=SECONDS), energy(call)
    return Latency(
        architecture,
        batch,
        key,
        timing.per(batch),
        peak,
        size,
        kernels.integer if kernels else None,
        kernels.floating if kernels else None,
        None if joules is None else joules / batch,
    )


def _frame(found: list[Latency], threads: int) -> pd.DataFrame:
    """Frame with a row per figure, with its spread and what it was measured on."""
    rows = []
    for one in found:
        row = asdict(one)
        row |= row.pop("timing")
        rows.append(row | {"pixels": SIZE, "threads": threads})
    table = pd.DataFrame(rows)
    return table.assign(processor=processor.model_name(), flags=" ".join(processor.flags()))
