"""Accuracy after post-training quantization by other toolkits, beside ours.

Everybody gets the same FP32 checkpoint, the same calibration images and the same bits, with the
first and the last layer at eight, and predicts for the same test images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from torch import Tensor, nn

from fairq_utils.bench.outcome import Missing, Outcome, nested, say, words
from fairq_utils.bench.peers.registry import PEERS, Logits, Task, quantize
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.bench.subjects import (
    calibration_images,
    pinned_threads,
    trained_models,
)
from fairq_utils.data.faces import FaceData
from fairq_utils.deploy.quiet import silence
from fairq_utils.quantizers.calibrate import observe
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.quantizers.post_training import quantize_static
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.study import planning
from fairq_utils.training import loop
from fairq_utils.training.zoo import display_name

OURS = {"ours_minmax": "ours, min-max", "ours": "ours, best"}
ITERATIONS = 200  # per block of our reconstruction
BATCH = 64  # calibration images at a time

Cell = tuple[tuple[str, str, str], float | Missing]  # architecture, bits, who; its accuracy


@benchmark(
    "toolkits",
    title="accuracy beside post-training quantization by other toolkits",
    needs="study",
)
def bench_toolkits(subject: Subject) -> Outcome:
    """Quantize a study's FP32 models with every toolkit, at all of its static bits.

    Returns
    -------
    Outcome
        ``{architecture: {bits: {who: fraction}}}``, with ``fp32``, ``ours_minmax``, ``ours`` and
        the names of :data:`~fairq_utils.bench.peers.registry.PEERS`, None where there is none; and
        the table with the reasons below.

    Raises
    ------
    Fault
        A model is not trained yet; says how to train it.
    """
    study = subject.study
    pinned_threads(study.params)
    by_architecture = trained_models(study)
    images, test = calibration_images(study, BATCH), study.faces.subset("test")
    bits = planning.bits_of(study.params)
    cells: list[Cell] = []
    for architecture, model in by_architecture.items():
        cells += compare(architecture, model, bits, images, test)
    return outcome(cells)


def compare(
    architecture: str,
    model: nn.Module,
    bits: Sequence[str],
    batches: tuple[Tensor, ...],
    test: FaceData,
) -> Iterator[Cell]:
    """Let everybody quantize one model; their accuracy, or why there is none.

    Parameters
    ----------
    batches : float32 (B, 3, H, W) each
        Calibration images, normalized.
    test : FaceData
        Images with labels.
    """
    fp32 = _accuracy(model, test)
    order = observe(model, batches[:1]).order
    task = Task(model, 8, 8, batches, order[0], order[-1])
    for label in bits:
        yield (architecture, label, "fp32"), fp32
        spec = QuantSpec.parse(label)
        asked = replace(task, weight_bits=spec.weight_bits, activation_bits=spec.activation_bits)
        everybody: dict[str, Callable[[], Logits]] = {
            "ours_minmax": partial(_minmax, model, label, batches),
            "ours": partial(_ours, model, label, batches),
            **{name: partial(quantize, name, asked) for name in PEERS},
        }
        for who, quantized in everybody.items():
            began, place = time.perf_counter(), (architecture, label, who)
            found: float | Missing
            try:
                found = _accuracy(quantized(), test)
            except Exception as error:  # one toolkit's failure is a cell of the table
                found = Missing.because(_named(*place), error)
            say(f"toolkits: {' '.join(place)} {found}, {time.perf_counter() - began:.0f} s")
            yield place, found


def outcome(cells: Sequence[Cell]) -> Outcome:
    """Accuracies by architecture, bits and toolkit; in percent, with reasons, in the text."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for place, found in cells:
        architecture, bits, who = _named(*place)
        shown = found.kind if isinstance(found, Missing) else f"{100 * found:.1f}"
        rows.setdefault((architecture, bits), {"model": architecture, "bits": bits})[who] = shown
    missing = [found for _, found in cells if isinstance(found, Missing)]
    return Outcome(
        nested((place, None if isinstance(f, Missing) else f) for place, f in cells),
        words("Accuracy on the test images, percent", pd.DataFrame(rows.values()), missing=missing),
    )


def _named(architecture: str, bits: str, who: str) -> tuple[str, str, str]:
    """Place of a cell as the table calls it."""
    label = {"fp32": "FP32", **OURS}.get(who) or PEERS[who].label
    return display_name(architecture), bits, label


def _minmax(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> Logits:
    return quantize_static(model, QuantSpec.parse(bits), batches)[0]


def _ours(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> Logits:
    """Reconstruct block by block, whatever the bits: no recipe is chosen by what it reaches."""
    return quantize_static(model, METHODS["block"].spec(bits, iterations=ITERATIONS), batches)[0]


class _Function(nn.Module):
    """A function from images to logits in the place of a model."""

    def __init__(self, logits: Logits) -> None:
        super().__init__()
        self.logits = [logits]  # in a list, where eval() and to() do not reach it

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[0](images)


def _accuracy(logits: Logits, test: FaceData) -> float:
    """Share of test images that are predicted rightly."""
    with silence():
        margins = loop.predict(_Function(logits), test.images)
    return float(((margins > 0) == (test.target > 0)).mean())
