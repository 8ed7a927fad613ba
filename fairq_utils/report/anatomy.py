"""Anatomy of the methods in the chapter on quantization, drawn from a trained model of the study.

A specimen is one FP32 model and a few calibration images. Every figure is computed from it with
the functions that the study quantizes with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from fairq_utils import calibration
from fairq_utils.quantizers.calibrate import Observed, observe
from fairq_utils.quantizers.grids import input_grid, on_grid
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.learned import LearnedStep
from fairq_utils.quantizers.mixed_precision import quantize_mixed
from fairq_utils.quantizers.post_training import quantize_observed
from fairq_utils.quantizers.ranges import InputStatistics
from fairq_utils.quantizers.sensitivity import sensitivities
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec
from fairq_utils.report.chapter import Chapter, glue
from fairq_utils.report.figures import BESIDE, finished
from fairq_utils.report.rows import width
from fairq_utils.report.tables import note, range_label, title
from fairq_utils.study.run_models import trained
from fairq_utils.study.run_record import RunRecord
from fairq_utils.training import architectures

IMAGES = 64
RULES = {  # of ranges, and their colours
    "minmax": "0.25",
    "percentile": "tab:blue",
    "mse": "tab:orange",
    "entropy": "tab:green",
}
STEPS = 200  # of the learnt rounding that is drawn
Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Specimen:
    """One FP32 model of a study under calibration.

    Attributes
    ----------
    architecture : its name
    plain, equalized : calibration statistics of the model as it is, and after equalization
    """

    architecture: str
    plain: Observed
    equalized: Observed

    @property
    def title(self) -> str:
        """Name of the architecture as it is printed."""
        return title(self.architecture)

    def layer(self, name: str, *, equalized: bool = False) -> Layer:
        """A float layer, its batch norm folded."""
        observed = self.equalized if equalized else self.plain
        return cast(Layer, observed.model.get_submodule(name))

    def inputs(self, name: str) -> InputStatistics:
        """Calibration statistics of a layer's input."""
        return cast(InputStatistics, self.plain.statistics[name])


def specimen(chapter: Chapter) -> Specimen:
    """Calibrate MobileNetV2 where the study has it, the first of its models where it has not."""
    baselines = [record.run for record in chapter.runs if record.run.method == "fp32"]
    run = next((run for run in baselines if run.architecture == "mobilenet_v2"), baselines[0])
    model = trained(chapter.study, run)
    pool = chapter.faces().subset("calibration")
    count = min(IMAGES, len(pool))
    rows = calibration.draw("random", pool.groups, pool.target, count, seed=0)
    batch = architectures.normalize(pool.images[torch.from_numpy(rows)])
    rules = tuple(RULES)
    return Specimen(
        run.architecture,
        observe(model, [batch], rules, keep=True),
        observe(model, [batch], rules, keep=True, equalization=True),
    )


def grids_figure(bits: int = 3) -> Figure:
    """A grid without and with a zero-point, on inputs that are mostly positive."""
    x = torch.linspace(-0.6, 2.2, 800)
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
    for axis, scheme in zip(axes, ("symmetric", "affine"), strict=True):
        scale, zero = input_grid(torch.tensor(-0.4), torch.tensor(2.0), bits, scheme)
        y = on_grid(x, scale, zero, 0, 2**bits - 1)
        axis.plot(x, x, color="0.8", linewidth=1)
        axis.plot(x, y, color="tab:blue")
        axis.axvspan(-0.4, 2.0, color="0.95", zorder=0)
        axis.set(title=f"{scheme}, zero-point {int(zero)}", xlabel="value")
        axis.title.set_fontsize(10)
    axes[0].set_ylabel(f"value on a {bits}-bit grid")
    figure.tight_layout()
    return finished(figure)


def ranges_figure(found: Specimen, bits: int = 4) -> Figure:
    """Ranges that each rule keeps of the input with the longest tail, and their squared errors."""
    name = _longest_tail(found)
    statistics = found.inputs(name)
    histogram = statistics.histogram
    if histogram is None:
        raise ValueError("ranges_figure: the specimen was observed without histograms")
    centres, counts = histogram.centres(), histogram.counts
    figure, axis = plt.subplots(figsize=(8, 3))
    wide = centres.reshape(128, -1).mean(1), counts.reshape(128, -1).sum(1)
    axis.bar(wide[0], wide[1].clamp(min=0.5), width=32 * histogram.width, color="0.85", log=True)
    power = float((counts * centres.square()).sum())
    for rule, colour in RULES.items():
        low, high = statistics.range(rule, bits)
        scale, zero = input_grid(torch.tensor(low).double(), torch.tensor(high).double(), bits)
        error = (on_grid(centres, scale, zero, 0, 2**bits - 1) - centres).square()
        lost = 100 * float((counts * error).sum()) / max(power, 1e-30)
        for end in (low, high):
            axis.axvline(end, color=colour, linewidth=1.4)
        label = f"{range_label(rule)}: {lost:.2f} % of the power lost"
        axis.plot([], [], color=colour, label=label)
    axis.set(xlabel=f"input of {name}", ylabel="values", ylim=(0.5, None))
    axis.legend(**BESIDE)
    return finished(figure)


def equalization_figure(found: Specimen) -> Figure | HTML:
    """Largest weight of every output channel before and after, in the pair that moved most."""
    pairs = found.equalized.equalized or {}
    if not pairs:
        return note("No two layers in a row can be equalized here.")

    def ratio(name: str) -> float:
        channels = _spread(found.layer(name))
        return float(channels.max() / channels[channels > 0].min())

    name = max(pairs, key=ratio)
    before, after = _spread(found.layer(name)), _spread(found.layer(name, equalized=True))
    order = before.argsort()
    figure, axis = plt.subplots(figsize=(8, 2.8))
    axis.semilogy(before[order], color="0.4", label="before")
    axis.semilogy(after[order], color="tab:blue", linewidth=1, label="after")
    axis.set(xlabel=f"output channels of {name}, by their largest weight", ylabel="largest weight")
    axis.legend(fontsize=8)
    return finished(figure)


def bias_correction_figure(found: Specimen, bits: str = "W4A8") -> Figure:
    """Mean error of every output channel of one layer, before and after its bias is corrected."""
    observed = found.plain
    plain, _ = quantize_observed(observed, QuantSpec.parse(bits))
    corrected, report = quantize_observed(observed, QuantSpec.parse(bits, bias_correction=True))
    sizes = report.corrections["bias_correction"]
    inner = {
        n: size for n, size in sizes.items() if n not in (observed.order[0], observed.order[-1])
    }
    name = max(inner or sizes, key=sizes.__getitem__)
    reference = _mean_output(observed.model, name, observed.batches[0])
    figure, axis = plt.subplots(figsize=(8, 2.6))
    bins: int | np.ndarray = 41
    for model, label, colour in ((plain, "before", "0.6"), (corrected, "after", "tab:blue")):
        shift = (_mean_output(model, name, observed.batches[0]) - reference).numpy()
        if isinstance(bins, int):
            limit = float(np.abs(shift).max()) or 1.0
            bins = np.linspace(-limit, limit, bins)
        axis.hist(shift, bins=bins, color=colour, alpha=0.75, label=label)  # type: ignore[arg-type]
    axis.set(xlabel=f"mean error of an output channel of {name} ({bits})", ylabel="channels")
    axis.legend(fontsize=8)
    return finished(figure)


def rounding_figure(found: Specimen, bits: str = "W3A8") -> Figure:
    """Shares that AdaRound rounds up, by the place of a weight between two codes."""
    observed = found.plain
    by_size = sorted(
        observed.order[1:-1] or observed.order, key=lambda n: found.layer(n).weight.numel()
    )
    name = by_size[3 * len(by_size) // 4]
    spec = QuantSpec.parse(bits, rounding="adaround", iterations=STEPS, first_last_bits=None)
    others: dict[str, QuantSpec | None] = {n: None for n in observed.order if n != name}
    learnt, _ = quantize_observed(observed, spec, others)
    layer = cast(Quantized, learnt.get_submodule(name))
    place = found.layer(name).weight.detach() / layer.weight_scale.view(
        -1, *[1] * (layer.weight_integers.ndim - 1)
    )
    fraction = (place - place.floor()).reshape(-1)
    up = (layer.weight_integers.float() > place.floor()).float().reshape(-1)
    edges = torch.linspace(0, 1, 21)
    index = (fraction * 20).long().clamp(max=19)
    share = torch.bincount(index, up, 20) / torch.bincount(index, minlength=20).clamp(min=1)
    figure, axis = plt.subplots(figsize=(8, 2.6))
    axis.bar(edges[:-1] + 0.025, 100 * share, width=0.045, color="tab:blue", label="AdaRound")
    axis.step([0, 0.5, 0.5, 1], [0, 0, 100, 100], color="0.3", linewidth=1.2, label="nearest")
    axis.set(
        xlabel=f"where a weight of {name} stands between two codes ({bits})",
        ylabel="rounded up (%)",
    )
    axis.legend(fontsize=8, loc="upper left")
    return finished(figure)


def bits_figure(found: Specimen, uniform: str = "W4A8") -> Figure:
    """Noise of every layer at uniform bits, and the bits that the same size buys it."""
    observed = found.plain
    spec = QuantSpec.parse(uniform, weight_range="mse", activation_range="mse")
    noise = sensitivities(observed, [spec], measure="layer").set_index("layer").sqnr
    _, even = quantize_observed(observed, spec)
    _, mixed = quantize_mixed(observed, even.size_bytes, spec, measure="layer")
    bits = [int(mixed.layers[name][1:].split("A")[0]) for name in observed.order]
    shades = dict(zip(WIDTHS, plt.get_cmap("viridis")(np.linspace(0.9, 0.1, 5)), strict=True))
    figure, axis = plt.subplots(figsize=(8, 2.8))
    axis.bar(range(len(bits)), [noise[n] for n in observed.order], color=[shades[b] for b in bits])
    axis.set(
        xlabel=f"layers of {found.title}, first to last",
        ylabel=f"signal over noise\nat {uniform} (dB)",
    )
    axis.grid(False, axis="x")
    handles = [Patch(color=shades[wide]) for wide in WIDTHS]
    axis.legend(handles, [f"{wide} bits" for wide in WIDTHS], **BESIDE)
    return finished(figure)


def gradients_figure(bits: int = 3) -> Figure:
    """LSQ: the gradients that reach a value and the step size, over ``v = x / s``."""
    v = torch.linspace(-2, 2**bits + 1, 1000)
    x = v.clone().requires_grad_()
    scale = torch.ones(len(v), requires_grad=True)
    LearnedStep.apply(x, scale, torch.zeros(()), 0, 2**bits - 1, 1.0).sum().backward()
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
    for axis, gradient, of in zip(
        axes, (x.grad, scale.grad), ("the value", "the step size"), strict=True
    ):
        axis.plot(v, cast(Tensor, gradient), color="tab:blue", linewidth=1.2)
        axis.set(title=f"gradient of {of}", xlabel="value / step")
        axis.title.set_fontsize(10)
    figure.tight_layout()
    return finished(figure)


def block_records(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Runs of block reconstruction at its fewest bits in this study."""
    found = [record for record in runs if record.run.method == "block"]
    fewest = min((width(str(r.run.bits)) for r in found), default=None)
    return [record for record in found if width(str(record.run.bits)) == fewest]


def block_errors_figure(records: list[RunRecord]) -> Figure:
    """Error that reconstruction leaves of each block, at the fewest bits, a panel per architecture.

    Parameters
    ----------
    records : of :func:`block_records`
    """
    errors = {r.run.architecture: r.report["corrections"]["reconstruction"] for r in records[::-1]}
    count = max(len(errors), 1)
    figure, axes = plt.subplots(
        1, count, figsize=(1.2 + 1.9 * count, 2.6), sharey=True, squeeze=False
    )
    for axis, (architecture, blocks) in zip(axes[0], errors.items(), strict=False):
        left = [100 * learnt / max(nearest, 1e-30) for nearest, learnt in blocks.values()]
        axis.bar(range(len(left)), left, color="tab:blue", width=0.8)
        axis.set(ylim=(0, 105), xticks=[])
        axis.set_title(title(architecture), fontsize=10)
    axes[0][0].set_ylabel("error left (%)")
    figure.supxlabel("blocks, first to last", fontsize=10)
    figure.tight_layout()
    return finished(figure)


def glue_anatomy(found: Specimen, records: list[RunRecord]) -> None:
    """Glue the model that is drawn, and the bits of its blocks.

    Parameters
    ----------
    found : Specimen
    records : of :func:`block_records`
    """
    glue("specimen", found.title)
    glue("block_bits", str(records[0].run.bits) if records else "no bits of this study")


def _longest_tail(found: Specimen) -> str:
    """The layer whose input reaches furthest beyond its central 99 %, the first one left out."""

    def reach(name: str) -> float:
        statistics = found.inputs(name)
        low, high = statistics.range("percentile", 8, percentile=99.0)
        return (statistics.minmax.high - statistics.minmax.low) / max(high - low, 1e-12)

    return max(found.plain.order[1:] or found.plain.order, key=reach)


def _spread(layer: Layer) -> Tensor:
    return layer.weight.detach().reshape(len(layer.weight), -1).abs().amax(dim=1)


def _mean_output(model: nn.Module, name: str, batch: Tensor) -> Tensor:
    """Mean of every output channel, taken before an activation can change it in place."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        channel = 1 if output.ndim == 4 else output.ndim - 1
        found.append(output.mean(dim=[d for d in range(output.ndim) if d != channel]))

    hook = model.get_submodule(name).register_forward_hook(keep)
    try:
        with torch.no_grad():
            model(batch)
    finally:
        hook.remove()
    return found[0]
