"""How long a picture takes, by architecture, batch size and engine, in floats and in integers.

The networks have fresh weights: time does not depend on what they have learnt. Beside our INT8
files stand those that the toolkits make for the same engine from the same model.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils.bench.peers import files as peer_files
from fairq_utils.bench.subjects import pinned_threads
from fairq_utils.deploy import engines, processor
from fairq_utils.deploy.engines import answering
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.quantizers.post_training import quantize_static
from fairq_utils.study.params.study import Params
from fairq_utils.timers import Timing, energy, peak_memory, time_call
from fairq_utils.training import architectures
from fairq_utils.training.zoo import display_name

SIZE, BATCHES, CALIBRATION = 224, (1, 32), 16
SECONDS = 3.0  # of timing per figure
OURS, FLOAT, TOOLKIT = "int8", "fp32", "toolkit_int8"
EAGER = "eager_fp32"
Latencies = dict[str, dict[str, dict[str, float | None]]]


@dataclass(frozen=True)
class Latency:
    """One figure.

    Attributes
    ----------
    architecture, batch, key : what was timed; ``eager_fp32``, ``openvino_int8``, ...
    timing : milliseconds per image
    peak_bytes : of loading the model and answering once; None where it is not known
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


@dataclass
class Found:
    """What the benchmark found: figures, and why others are missing."""

    latencies: list[Latency] = field(default_factory=list)
    missing: list[tuple[str, int, str, str]] = field(default_factory=list)


def bench_latency(params: Params) -> tuple[Latencies, str, dict[str, pd.DataFrame]]:
    """Time every architecture of a study at 224 pixels, in every engine.

    Returns
    -------
    latencies, text, tables
        ``{architecture: {batch: {key: milliseconds per image}}}``, None where there is none; the
        table with the reasons below; and ``latency`` with the spread, one row per figure.
    """
    threads = pinned_threads(params)
    found = Found()
    for architecture in params.training.models:
        _measure(found, architecture, threads)
    return nested(found), words(found, threads), {"latency": frame(found, threads)}


def _measure(found: Found, architecture: str, threads: int) -> None:
    """Every figure of one architecture."""
    model, pictures = _settled(architecture)
    # Which range a grid holds does not matter to time; the quickest to find will do.
    fast = {"weight_range": "minmax", "activation_range": "minmax"}
    quantized = {
        method: quantize_static(model, METHODS[method].spec("W8A8", **fast), pictures.split(8))[0]
        for method in {engine.method for engine in engines.ENGINES.values()}
    }
    kinds: dict[str, Callable[[str, Path, Tensor], Any]] = {
        FLOAT: lambda engine, folder, example: engines.write(model, engine, folder, example),
        OURS: lambda engine, folder, example: engines.write(
            quantized[engines.ENGINES[engine].method], engine, folder, example
        ),
        TOOLKIT: lambda engine, folder, example: peer_files.write(
            model, engine, folder, example, pictures
        ),
    }
    for batch in BATCHES:
        _note(found, _eager(architecture, model, batch))
    for engine in engines.ENGINES:
        for kind, make in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                fixed, reason = engine == "inductor", None
                for batch in BATCHES:
                    key = f"{engine}_{kind}"
                    try:
                        # Its file answers about one batch size, the others' about any.
                        if fixed or batch == BATCHES[0]:
                            reason = None
                            make(engine, Path(folder), _images(batch if fixed else BATCHES[-1]))
                        if reason is None:
                            _note(found, _file(architecture, key, engine, folder, batch, threads))
                    except Exception as error:  # one engine's failure is a cell of the table
                        reason = " ".join(str(error).split())[:200] or type(error).__name__
                    if reason is not None:
                        found.missing.append((architecture, batch, key, reason))
                        _say(f"{architecture} {batch} {key}: {reason}")


def _settled(architecture: str) -> tuple[nn.Module, Tensor]:
    """A network with fresh weights whose batch norms know its activations, and pictures."""
    torch.manual_seed(0)
    model = architectures.build(architecture, image_size=SIZE)
    pictures = _images(CALIBRATION)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(pictures)
        for parameter in model.parameters():  # no two biases the same, as after training
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval(), pictures


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))


def _eager(architecture: str, model: nn.Module, batch: int) -> Latency:
    images = _images(batch)
    with torch.no_grad():
        peak = peak_memory(lambda: model(images))
        timing = time_call(lambda: model(images), seconds=SECONDS)
        used = _per_image(energy(lambda: model(images)), batch)
    return Latency(architecture, batch, EAGER, timing.per(batch), peak, None, None, None, used)


def _file(
    architecture: str, key: str, engine: str, folder: str, batch: int, threads: int
) -> Latency:
    images: NDArray[np.float32] = _images(batch).numpy()
    held: list[answering.Answering] = []

    def load() -> None:
        held.append(engines.load(engine, folder, threads))
        held[0](images)

    peak = peak_memory(load)
    running = held.pop()
    timing = time_call(lambda: running(images), seconds=SECONDS)
    size = sum(path.stat().st_size for path in engines.files(engine, folder))
    kernels = running.kernels
    integer, floating = (kernels.integer, kernels.floating) if kernels else (None, None)
    used = _per_image(energy(lambda: running(images)), batch)
    timing = timing.per(batch)
    return Latency(architecture, batch, key, timing, peak, size, integer, floating, used)


def _per_image(joules: float | None, batch: int) -> float | None:
    return None if joules is None else joules / batch


def _note(found: Found, latency: Latency) -> None:
    found.latencies.append(latency)
    _say(
        f"{latency.architecture} {latency.batch} {latency.key}: {latency.timing.median:.2f} ms "
        f"({latency.integer_kernels} integer kernels, {latency.float_kernels} float)"
    )


def _say(line: str) -> None:
    print(f"latency: {line}", file=sys.stderr, flush=True)


def nested(found: Found) -> Latencies:
    """Architecture -> batch -> key -> milliseconds per image, None where there is none."""
    figures: Latencies = {}
    for one in found.latencies:
        row = figures.setdefault(one.architecture, {}).setdefault(str(one.batch), {})
        row[one.key] = round(one.timing.median, 4)
    for architecture, batch, key, _ in found.missing:
        figures.setdefault(architecture, {}).setdefault(str(batch), {})[key] = None
    return figures


def frame(found: Found, threads: int) -> pd.DataFrame:
    """One row per figure, with its spread and what it was measured on."""
    rows = []
    for one in found.latencies:
        row = asdict(one)
        row |= row.pop("timing")
        rows.append(row | {"pixels": SIZE, "threads": threads})
    table = pd.DataFrame(rows)
    return table.assign(processor=processor.model_name(), flags=" ".join(processor.flags()))


def fastest(row: dict[str, float | None]) -> tuple[str, float]:
    """The key and the figure of our fastest INT8 file in one architecture and batch size."""
    ours = {
        key: value
        for key, value in row.items()
        if value is not None and key.endswith(f"_{OURS}") and not key.endswith(TOOLKIT)
    }
    best = min(ours, key=ours.__getitem__)
    return best, ours[best]


def words(found: Found, threads: int) -> str:
    """The table, the ratios, and why figures are missing."""
    figures = nested(found)
    keys = list(dict.fromkeys(key for by in figures.values() for row in by.values() for key in row))
    lines = [
        f"Milliseconds per image at {SIZE} px, {threads} threads, {processor.model_name()} "
        f"({' '.join(processor.flags())})",
        "",
    ]
    for architecture, by_batch in figures.items():
        lines.append(display_name(architecture))
        lines.append("  " + " " * 28 + "".join(f"batch {b:>4}  " for b in by_batch))
        for key in keys:
            cells = [row.get(key) for row in by_batch.values()]
            shown = "".join(f"{'-' if c is None else f'{c:.2f}':>10}  " for c in cells)
            lines.append(f"  {key:<28}{shown}")
        for batch, row in by_batch.items():
            eager = row.get(EAGER)
            if eager is None or not any(k.endswith(f"_{OURS}") and v for k, v in row.items()):
                continue
            key, value = fastest(row)
            lines.append(f"  best INT8 at batch {batch}: {key}, {eager / value:.1f}x eager FP32")
        lines.append("")
    lines += [f"- {a} {b} {key}: {reason}" for a, b, key, reason in found.missing]
    return "\n".join(lines).rstrip()
