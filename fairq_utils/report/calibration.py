"""Calibration in the chapter on mitigation: who is drawn, who is clipped, what balance gives."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from fairq_utils.data.loading import RENDERER
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.mitigation.group_ranges import clipped, observe_groups
from fairq_utils.mitigation.sample import as_sample
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.report.chapter import POINT, Chapter, glue
from fairq_utils.report.effects import RANGES
from fairq_utils.report.figures import BELOW, COLOURS, draw_change, finished, named_rows
from fairq_utils.report.rows import ODDS, PARITY, rows_of, static_rows
from fairq_utils.report.tables import LABELS, floors, html_table, intervals, named, points, title
from fairq_utils.stats.verdicts import judge
from fairq_utils.study.planning import TRAINING
from fairq_utils.study.run_models import trained
from fairq_utils.study.run_record import RunRecord
from fairq_utils.training.architectures import Normalized

NEAR = 5.0  # points within which an axis is linear where some go far beyond


def glue_rarest(chapter: Chapter) -> None:
    """Glue the crossed group with the fewest images in the calibration pool, and its share."""
    _, pool = chapter.study.people("calibration")
    images = pool.groupby(list(chapter.params.analysis.attributes), observed=False).size()
    rare = images.sort_values(kind="stable").index[0]
    glue("rarest", " ".join(map(str, rare)))
    glue("rare", float(images.min() / images.sum()))


def clipping(chapter: Chapter, bits: str) -> pd.DataFrame:
    """:func:`fairq_utils.mitigation.group_ranges.clipped` of one model on the calibration pool."""
    record = _smallest(chapter)
    recipe = {
        "model": record.run.key,
        "bits": bits,
        "people": chapter.study.described(("calibration",)),
        "attributes": chapter.params.analysis.attributes,
        "code": code_version(*RENDERER, *TRAINING, "fairq_utils.mitigation.group_ranges"),
    }

    def compute() -> pd.DataFrame:
        pool = chapter.faces().subset("calibration")
        groups = pool.groups[list(chapter.params.analysis.attributes)]
        model = trained(chapter.study, record.run)
        observed = observe_groups(
            model, as_sample(Normalized(pool.images), pool.target, groups), [RANGES, "percentile"]
        )
        spec = QuantSpec.parse(bits, weight_range=RANGES, activation_range=RANGES)
        return clipped(observed, spec)

    return chapter.kept(f"clipping-{fingerprint(recipe)}", compute)


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
    named_rows(left, order, fontsize=8)
    left.set_xscale("symlog", linthresh=1)
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.set_xlabel("smallest to largest input (range = 1)")
    right.set_xlabel("values clipped (%)")
    figure.tight_layout()
    figure.legend(ncol=len(groups) + 1, **BELOW)
    return finished(figure)


def glue_clipping(chapter: Chapter, frame: pd.DataFrame, bits: str) -> None:
    """Glue how far groups differ in what is clipped, and in the error that is left."""
    glue("clipped_model", title(_smallest(chapter).run.architecture))
    by_layer = frame.groupby("layer")
    apart = by_layer.clipped.agg(np.ptp) / POINT
    ratio = by_layer.error.max() / by_layer.error.min()
    glue("clipped_bits", bits)
    glue("clipped_apart", apart.max())
    glue("clipped_median", apart.median())
    glue("error_ratio", ratio.max())
    glue("error_median", ratio.median())


def balance_figure(frame: pd.DataFrame, statistic: str, scope: str) -> Figure:
    """Change from FP32 after random and after balanced calibration, and the paired difference.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.against_random`
    """
    rows = rows_of(frame, statistic, scope).reset_index(drop=True)
    names = [f"{title(r.architecture)} {r.bits} {r.ranges}" for r in rows.itertuples()]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.6, 1.2 + 0.26 * len(rows)), sharey=True, width_ratios=(1.2, 1)
    )
    for i, row in enumerate(rows.itertuples()):
        colour = COLOURS[row.architecture]
        left.plot(
            [row.random_from_fp32 * 100, row.from_fp32 * 100], [i, i], color=colour, linewidth=1
        )
        left.plot(row.random_from_fp32 * 100, i, "o", color="white", markeredgecolor=colour)
        left.plot(row.from_fp32 * 100, i, "o", color=colour)
        draw_change(right, i, row, 0.8)
    left.plot([], [], "o", color="white", markeredgecolor="0.3", label="random")
    left.plot([], [], "o", color="0.3", label="balanced")
    left.barh(0, 0, color="0.88", label="noise floor (right)")
    if 100 * rows[["from_fp32", "random_from_fp32"]].abs().max().max() > 4 * NEAR:
        left.set_xscale("symlog", linthresh=NEAR)  # one collapse would hide all others
    for axis in (left, right):
        axis.axvline(0, color="0.3", linewidth=1)
    named_rows(left, names)
    left.set_xlabel(f"{LABELS[statistic].lower()}:\nchange from FP32 (points)")
    right.set_xlabel("balanced minus random (points)")
    figure.tight_layout()
    figure.legend(ncol=3, **BELOW)
    return finished(figure)


def balance_table(frame: pd.DataFrame, scope: str) -> HTML:
    """Changes from FP32 under both draws, their paired difference, and its noise floor.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.against_random`
    """
    printed = ("accuracy", PARITY, ODDS)
    rows = frame[(frame["scope"] == scope) & frame.statistic.isin(printed)]
    names = named(rows)
    return html_table(
        pd.DataFrame(
            {
                "architecture": names.architecture,
                "bits": names.bits,
                "ranges": names.ranges,
                "statistic": names.statistic,
                "change, random": points(rows.random_from_fp32, "+.1f"),
                "change, balanced": points(rows.from_fp32, "+.1f"),
                "balanced - random": intervals(rows, "change"),
                "noise floor": floors(rows.floor),
            }
        )
    )


def glue_balance(chapter: Chapter, frame: pd.DataFrame) -> None:
    """Glue how often balance is shown to narrow and to widen the gap, and had anything to mend.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.against_random`
    """
    replicates = chapter.params.analysis.replicates
    rows = judge(rows_of(frame, PARITY, chapter.crossed), replicates=replicates)
    glue("pairs", len(rows))
    glue("mean_change", rows.change.mean() / POINT)
    glue("better", int((rows.shown & (rows.change < 0)).sum()))
    glue("worse", int((rows.shown & (rows.change > 0)).sum()))
    glue("beyond_floor", int((rows.change.abs() > rows.floor).sum()))
    glue("accuracy_change", rows_of(frame, "accuracy", chapter.crossed).change.mean() / POINT)
    static = rows_of(static_rows(chapter.effects), PARITY, chapter.crossed)
    static = judge(static, replicates=replicates)
    static = static[static.method == "ptq"]
    glue("static", len(static))
    glue("widened", int((static.shown & (static.change > 0)).sum()))
    draws = len(chapter.params.quantization.calibration_seeds)
    glue("draws", "once" if draws == 1 else f"{draws} times")


def _smallest(chapter: Chapter) -> RunRecord:
    """The smallest FP32 model of the study: its ranges are shown."""
    records = [record for record in chapter.runs if record.run.method == "fp32"]
    return min(records, key=lambda record: record.size_bytes)
