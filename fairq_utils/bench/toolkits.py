"""Accuracy after post-training quantization by other toolkits, beside ours.

Everybody gets the same FP32 checkpoint, the same calibration pictures and the same bits, with the
first and the last layer at eight, and is asked about the same test pictures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from fairq_utils.bench.peers import PEERS, Answer, NotInstalled, NotOffered, Task, quantize
from fairq_utils.bench.subjects import calibration_pictures, pinned_threads, trained_models
from fairq_utils.data.faces import FaceData
from fairq_utils.deploy.quiet import silence
from fairq_utils.quantizers.calibrate import observe
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.quantizers.post_training import quantize_static
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.study import planning
from fairq_utils.study.params.study import Params
from fairq_utils.study.people import faces
from fairq_utils.training import loop
from fairq_utils.training.zoo import display_name

OURS = {"ours_minmax": "ours, min-max", "ours": "ours, best"}
ITERATIONS = 200  # per block of our reconstruction
BATCH = 64  # calibration pictures at a time

Accuracies = dict[str, dict[str, dict[str, float | None]]]


@dataclass(frozen=True)
class Gap:
    """A figure that is missing: whose, of what, and why."""

    toolkit: str
    architecture: str
    bits: str
    kind: str  # what stands in the table's cell
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What the benchmark found.

    Attributes
    ----------
    accuracy : architecture -> bits -> who -> fraction of test pictures, None where there is none
    gaps : why there is none
    """

    accuracy: Accuracies = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)


def bench_toolkits(params: Params) -> tuple[Accuracies, str]:
    """Quantize a study's FP32 models with every toolkit, at all of its static bits.

    Returns
    -------
    accuracies, text
        ``{architecture: {bits: {who: fraction}}}``, with ``fp32``, ``ours_minmax``, ``ours`` and
        the names of :data:`~fairq_utils.bench.peers.PEERS`; and the table with the reasons below.

    Raises
    ------
    Fault
        A model is not trained yet; says how to train it.
    """
    pinned_threads(params)
    by_architecture = trained_models(params)
    data = faces(params)
    pictures = calibration_pictures(params, data, BATCH)
    bits = list(planning.bits_of(params))
    found = Comparison()
    for architecture, model in by_architecture.items():
        compare(found, architecture, model, bits, pictures, data.subset("test"))
    return found.accuracy, table(found)


def _minmax(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> Answer:
    return quantize_static(model, QuantSpec.parse(bits), batches)[0]


def _ours(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> Answer:
    """Block reconstruction, whatever the bits: the recipe is not chosen by what it reaches."""
    return quantize_static(model, METHODS["block"].spec(bits, iterations=ITERATIONS), batches)[0]


def compare(
    found: Comparison,
    architecture: str,
    model: nn.Module,
    bits: Sequence[str],
    batches: tuple[Tensor, ...],
    test: FaceData,
) -> None:
    """Let everybody quantize one model; what they reach, or why they do not, goes into ``found``.

    Parameters
    ----------
    found : Comparison
        Added to.
    batches : float32 (B, 3, H, W) each
        Calibration pictures, normalized.
    test : FaceData
        Pictures with labels.
    """
    fp32 = _accuracy(model, test)
    order = observe(model, batches[:1]).order
    names = {type(m).__name__ for m in model.modules()}
    task = Task(
        model=model,
        weight_bits=8,
        activation_bits=8,
        batches=batches,
        first=order[0],
        last=order[-1],
        transformer=any("Attention" in name for name in names),
    )
    for label in bits:
        row = found.accuracy.setdefault(architecture, {}).setdefault(label, {"fp32": fp32})
        spec = QuantSpec.parse(label)
        asked = replace(task, weight_bits=spec.weight_bits, activation_bits=spec.activation_bits)
        everybody: dict[str, Callable[[], Answer]] = {
            "ours_minmax": partial(_minmax, model, label, batches),
            "ours": partial(_ours, model, label, batches),
            **{name: partial(quantize, name, asked) for name in PEERS},
        }
        for who, quantized in everybody.items():
            began = time.perf_counter()
            try:
                row[who] = _accuracy(quantized(), test)
                said = f"{row[who]:.1%}"
            except Exception as error:  # one toolkit's failure is a cell of the table
                row[who] = None
                gap = Gap(who, architecture, label, *_why(error))
                found.gaps.append(gap)
                said = f"{gap.kind}: {gap.reason}"
            spent = time.perf_counter() - began
            what = f"{display_name(architecture)} {label}"
            print(f"toolkits: {what} {who} {said}, {spent:.0f} s", file=sys.stderr, flush=True)


def _why(error: Exception) -> tuple[str, str]:
    """What stands in the cell, and the reason in one line."""
    line = " ".join(str(error).split())
    if isinstance(error, NotInstalled):
        return "not installed", line
    if isinstance(error, NotOffered):
        return "not offered", line
    return "failed", f"{type(error).__name__}: {line[:200]}"


class _Answering(nn.Module):
    """A function from pictures to logits in the place of a model."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = [answer]  # in a list, where eval() and to() do not reach it

    def forward(self, images: Tensor) -> Tensor:
        return self.answer[0](images)


def _accuracy(answer: Answer, test: FaceData) -> float:
    """Share of test pictures answered rightly."""
    with silence():
        margins = loop.predict(_Answering(answer), test.images)
    return float(((margins > 0) == (test.target > 0)).mean())


def table(found: Comparison) -> str:
    """Accuracies in percent, one row per model and bits, and below why some are missing."""
    labels = {"fp32": "FP32", **OURS, **{name: peer.label for name, peer in PEERS.items()}}
    kinds = {(gap.architecture, gap.bits, gap.toolkit): gap.kind for gap in found.gaps}
    rows = [["model", "bits", *labels.values()]]
    for architecture, by_bits in found.accuracy.items():
        for bits, row in by_bits.items():
            cells = [
                kinds.get((architecture, bits, who), "")
                if row.get(who) is None
                else f"{100 * row[who]:.1f}"  # type: ignore[operator]
                for who in labels
            ]
            rows.append([display_name(architecture), bits, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(["Accuracy on the test pictures, percent", "", *lines, *_reasons(found.gaps)])


def _reasons(gaps: Sequence[Gap]) -> list[str]:
    """One line per reason, with all that it holds for."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for gap in gaps:
        name = display_name(gap.architecture)
        key = (gap.toolkit, gap.kind, gap.reason)
        places.setdefault(key, []).append(f"{name} {gap.bits}")
    lines = []
    for (toolkit, kind, reason), where in places.items():
        label = PEERS[toolkit].label if toolkit in PEERS else OURS[toolkit]
        what = "" if kind == "not installed" else f"{label}, {', '.join(where)}: {kind}: "
        lines.append(f"- {what}{reason}")
    return ["", *lines] if lines else []
