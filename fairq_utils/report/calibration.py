"""Calibration by group in the chapter on mitigation: what balance gives, and whom a range clips."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from fairq_utils.data.loading import RENDERER
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.mitigation.group_ranges import clipped, observe_groups
from fairq_utils.mitigation.sample import Sample, as_sample
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.report.chapter import POINT, Chapter, glue, of, static
from fairq_utils.report.effects import RANGES
from fairq_utils.report.figures import finished
from fairq_utils.study.people import described
from fairq_utils.study.planning import TRAINING
from fairq_utils.study.run_models import trained
from fairq_utils.training import architectures
from fairq_utils.training.architectures import DISPLAY_NAMES


def glue_mitigation(chapter: Chapter) -> None:
    """Glue how often balance helps, hurts, and had anything to mend."""
    frame = chapter.mitigation_effects
    rows = of(frame, "demographic_parity_difference", chapter.crossed)
    glue("pairs", len(rows))
    glue("mean_change", rows.change.mean() / POINT)
    glue("better", int((rows.high < 0).sum()))
    glue("worse", int((rows.low > 0).sum()))
    glue("beyond_floor", int((rows.change.abs() > rows.floor).sum()))
    accuracy = of(frame, "accuracy", chapter.crossed)
    glue("accuracy_change", accuracy.change.mean() / POINT)
    harm = of(static(chapter.effects), "demographic_parity_difference", chapter.crossed)
    harm = harm[harm.method == "ptq"]
    glue("static", len(harm))
    draws = len(chapter.params.quantization.calibration_seeds)
    glue("draws", "once" if draws == 1 else f"{draws} times")
    glue("harmed", int(((harm.low > 0) & (harm.change > harm.floor)).sum()))


def calibration_sample(chapter: Chapter) -> Sample:
    """The calibration pool with its groups."""
    pool = chapter.faces().subset("calibration")
    attributes = list(chapter.params.analysis.attributes)
    return as_sample(architectures.Normalized(pool.images), pool.target, pool.groups[attributes])


def specimen(chapter: Chapter) -> tuple[str, str]:
    """Architecture and key of the FP32 model whose ranges are shown: the smallest of the study."""
    records = [record for record in chapter.runs if record.run.method == "fp32"]
    smallest = min(records, key=lambda record: record.size_bytes)
    return smallest.run.architecture, smallest.run.key


def clipping(chapter: Chapter, bits: str) -> pd.DataFrame:
    """:func:`fairq_utils.mitigation.group_ranges.clipped` of one model on the calibration pool."""
    architecture, key = specimen(chapter)
    recipe = {
        "model": key,
        "bits": bits,
        "people": described(chapter.params, ("calibration",)),
        "attributes": chapter.params.analysis.attributes,
        "code": code_version(*RENDERER, *TRAINING, "fairq_utils.mitigation.group_ranges"),
    }

    def compute() -> pd.DataFrame:
        model = trained(chapter.params, architecture, key)
        seen = observe_groups(model, calibration_sample(chapter), [RANGES, "percentile"])
        spec = QuantSpec.parse(bits, weight_range=RANGES, activation_range=RANGES)
        return clipped(seen, spec)

    return chapter.kept(f"clipping-{fingerprint(recipe)}", compute)


def glue_clipping(chapter: Chapter, frame: pd.DataFrame, bits: str) -> None:
    """Glue how far groups differ in what is clipped, and in the error that is left."""
    glue("clipped_model", DISPLAY_NAMES[specimen(chapter)[0]])
    by_layer = frame.groupby("layer")
    apart = 100 * by_layer.clipped.agg(np.ptp)
    ratio = by_layer.error.max() / by_layer.error.min()
    glue("clipped_bits", bits)
    glue("clipped_apart", apart.max())
    glue("clipped_median", apart.median())
    glue("error_ratio", ratio.max())
    glue("error_median", ratio.median())


def clipping_figure(frame: pd.DataFrame, layers: int = 12) -> Figure:
    """Ranges of a model's inputs by group, and whom the common range clips.

    Parameters
    ----------
    frame : of :func:`fairq_utils.mitigation.group_ranges.clipped`
    layers : those with the largest difference between groups in what is clipped
    """
    spread = frame.groupby("layer").clipped.agg(np.ptp)
    chosen = spread.nlargest(layers).index
    order = [name for name in dict.fromkeys(frame.layer) if name in set(chosen)]
    groups = list(dict.fromkeys(frame.group))
    colours = dict(zip(groups, sns.color_palette("Dark2", len(groups)), strict=True))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.6, 1.2 + 0.34 * len(order)), sharey=True, width_ratios=(1.4, 1)
    )
    step = 0.8 / len(groups)
    for row in frame[frame.layer.isin(order)].itertuples():
        y = order.index(row.layer) + (groups.index(row.group) + 0.5) * step - 0.4
        size = max(abs(row.range_low), abs(row.range_high))
        left.plot([row.low / size, row.high / size], [y, y], color=colours[row.group], linewidth=2)
        right.plot(row.clipped * 100, y, "o", markersize=4, color=colours[row.group])
    for place, layer in enumerate(order):
        row = frame[frame.layer == layer].iloc[0]
        size = max(abs(row.range_low), abs(row.range_high))
        left.barh(
            place,
            (row.range_high - row.range_low) / size,
            0.9,
            row.range_low / size,
            color="0.88",
            zorder=0,
        )
    left.barh(0, 0, color="0.88", label="the range")
    for group in groups:
        left.plot([], [], color=colours[group], linewidth=2, label=group)
    left.set_yticks(range(len(order)), order, fontsize=8)
    left.set_ylim(len(order) - 0.5, -0.5)
    left.set_xscale("symlog", linthresh=1)
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.set_xlabel("smallest to largest input (range = 1)")
    right.set_xlabel("values clipped (%)")
    figure.tight_layout()
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncol=len(groups) + 1, fontsize=8)
    return finished(figure)
