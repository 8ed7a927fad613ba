"""Pictures and tables of fairness-aware quantization: methods, mechanism, dials, certificates."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from fairq_utils.dial_effects import PLAIN
from fairq_utils.dials import LABELS as DIALS
from fairq_utils.figures import COLOURS, finished, title
from fairq_utils.mitigation.methods import METHODS, ONE_GROUP
from fairq_utils.quantizers.methods import CONTROL
from fairq_utils.tables import LABELS, intervals, note, shown, width

STATISTICS = (
    "demographic_parity_difference",
    "equalized_odds_difference",
    "worst_group_accuracy",
)
SAMPLERS = {
    "label_balanced": "labels alike",
    "group_balanced": "groups alike",
    "intersection_balanced": "gender x age x ancestry alike",
    "worst_group": "worst group only",
    "matched": "as in the population",
    "core_set": "core-set",
}
CONTROLS = {"qat": "no constraint (QAT)", CONTROL: "no constraint, in float"}
FAMILIES = (
    "calibration",
    "ranges",
    "preservation",
    "mixed precision",
    "accuracy control",
    "fine-tuning",
)
EVIDENCE = {"betting": "bets, any size", "normal": "z-test, asymptotic"}


def names(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Family and label of each row's method."""
    found = [_name(row.method, row.sampler) for row in frame.itertuples()]
    return [family for family, _ in found], [label for _, label in found]


def called(line: str) -> str:
    """A mitigation of the dials in words."""
    if line == PLAIN:
        return "plain quantization"
    return ": ".join(_name(line if line in METHODS or line in CONTROLS else "ptq", line))


def _name(method: str, sampler: str) -> tuple[str, str]:
    if method in METHODS:
        return METHODS[method].family, METHODS[method].label
    if method in CONTROLS:
        return "fine-tuning", CONTROLS[method]
    if sampler.startswith(ONE_GROUP):
        return "calibration", f"{sampler.removeprefix(ONE_GROUP)} only"
    return "calibration", SAMPLERS[sampler]


NOTHING = "This study names no mitigation.methods, so there is nothing to compare."
UNTURNED = "This study names no dials.models, so no dial was turned."


def table(frame: pd.DataFrame, scope: str) -> HTML:
    """Every method against plain quantization: changes with intervals and floors, and costs.

    Parameters
    ----------
    frame : of :func:`fairq_utils.effects.against_plain`
    """
    if frame.empty:
        return note(NOTHING)
    rows = frame[frame["scope"] == scope]
    keys = ["architecture", "method", "bits", "ranges", "sampler"]
    first = rows[rows.statistic == STATISTICS[0]]
    place = [FAMILIES.index(family) for family in names(first)[0]]
    order = ["architecture", "bits", "place"]
    first = first.assign(place=place).sort_values(order, kind="stable").reset_index(drop=True)
    family, label = names(first)
    columns: dict[str, Any] = {
        "architecture": [title(a) for a in first.architecture],
        "bits": first.bits,
        "method": family,
        "": label,
    }
    for name in STATISTICS:
        part = first[keys].merge(rows[rows.statistic == name], on=keys, sort=False)
        floors = [f"±{value * 100:.1f}" for value in part.floor]
        cells = zip(intervals(part, "change"), floors, strict=True)
        columns[LABELS[name].lower()] = [f"{cell} ({floor})" for cell, floor in cells]
    columns["seconds"] = [f"{s:.0f}" if s >= 10 else f"{s:.1f}" for s in first.seconds]
    columns["size"] = [f"{b / p:.2f}x" for b, p in zip(first.bytes, first.bytes_plain, strict=True)]
    return shown(pd.DataFrame(columns))


def forest(frame: pd.DataFrame, statistic: str, scope: str) -> Figure | HTML:
    """Each method's change against plain quantization, over its noise floor; a panel per bits."""
    if frame.empty:
        return note(NOTHING)
    rows = frame[(frame.statistic == statistic) & (frame["scope"] == scope)].reset_index(drop=True)
    family, label = names(rows)
    rows = rows.assign(family=family, line=label)
    lines = list(dict.fromkeys(zip(rows.family, rows.line, strict=True)))
    lines.sort(key=lambda line: FAMILIES.index(line[0]))
    models = list(dict.fromkeys(rows.architecture))
    bits = sorted(set(rows.bits), key=width, reverse=True)
    step = 0.8 / len(models)
    figure, axes = plt.subplots(
        1,
        len(bits),
        figsize=(3.4 + 3.0 * len(bits), 0.9 + 0.27 * len(lines)),
        sharey=True,
        squeeze=False,
    )
    for axis, at in zip(axes[0], bits, strict=True):
        axis.axvline(0, color="0.3", linewidth=1)
        for row in rows[rows.bits == at].itertuples():
            place = lines.index((row.family, row.line))
            y = place + (models.index(row.architecture) + 0.5) * step - 0.4
            axis.barh(y, 200 * row.floor, step * 0.9, -100 * row.floor, color="0.88", zorder=0)
            colour = COLOURS[row.architecture]
            axis.plot([row.low * 100, row.high * 100], [y, y], color=colour, linewidth=1.4)
            axis.plot(row.change * 100, y, "o", markersize=3.5, color=colour)
        axis.set_title(at, fontsize=10)
        axis.set_ylim(len(lines) - 0.5, -0.5)
        for place in range(1, len(lines)):
            if lines[place][0] != lines[place - 1][0]:
                axis.axhline(place - 0.5, color="0.7", linewidth=0.8)
    axes[0, 0].set_yticks(
        range(len(lines)), [f"{family}: {line}" for family, line in lines], fontsize=8
    )
    for model in models:
        axes[0, -1].plot([], [], "o-", color=COLOURS[model], label=title(model))
    axes[0, -1].barh(0, 0, color="0.88", label="noise floor")
    axes[0, -1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.supxlabel(f"{LABELS[statistic].lower()}: change from plain (points)", fontsize=10)
    figure.tight_layout()
    return finished(figure)


def shown_changes(frame: pd.DataFrame) -> HTML:
    """The changes against plain quantization that were shown.

    Parameters
    ----------
    frame : of :func:`fairq_utils.mitigation_chapter.shown_changes`
    """
    if frame.empty:
        return note("None is shown.")
    family, label = names(frame)
    return shown(
        pd.DataFrame(
            {
                "statistic": frame.statistic.map(LABELS),
                "method": [f"{f}: {name}" for f, name in zip(family, label, strict=True)],
                "architecture": [title(name) for name in frame.architecture],
                "bits": frame.bits,
                "change (points)": intervals(frame, "change"),
                "": ["control" if control else "" for control in frame.control],
            }
        )
    )


def clipping(frame: pd.DataFrame, layers: int = 12) -> Figure:
    """Ranges of a model's inputs by group, and whom the common range clips.

    Parameters
    ----------
    frame : of :func:`fairq_utils.mitigation.clipping.clipped`
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


def dials(frame: pd.DataFrame, statistic: str) -> Figure | HTML:
    """The group's disadvantage under quantization, over the level of each dial.

    Parameters
    ----------
    frame : of :func:`fairq_utils.dial_effects.harms`
    """
    if frame.empty:
        return note(UNTURNED)
    rows = frame[frame.statistic == statistic]
    turned = [dial for dial in dict.fromkeys(rows.dial) if dial]
    bits = sorted(set(rows.bits), key=width, reverse=True)
    methods = list(dict.fromkeys(rows.line))
    models = list(dict.fromkeys(rows.architecture))
    colours = dict(zip(methods, sns.color_palette("tab10", len(methods)), strict=True))
    figure, axes = plt.subplots(
        len(models) * len(bits),
        len(turned),
        figsize=(0.8 + 1.75 * len(turned), 1.0 + 1.75 * len(models) * len(bits)),
        sharey="row",
        squeeze=False,
    )
    for at, (model, width_) in enumerate([(m, b) for m in models for b in bits]):
        for axis, dial in zip(axes[at], turned, strict=True):
            part = rows[(rows.architecture == model) & (rows.bits == width_)]
            part = part[part.dial.isin(["", dial])]
            levels = list(dict.fromkeys(part[part.dial == dial].level))
            axis.axhline(0, color="0.3", linewidth=1)
            for number, method in enumerate(methods):
                line = part[part.line == method]
                # The even world is where every dial begins.
                line = pd.concat([line[line.dial == ""], line[line.dial == dial]])
                x = np.arange(len(line)) + 0.1 * (number - (len(methods) - 1) / 2)
                error = np.stack([line.change - line.low, line.high - line.change]) * 100
                axis.errorbar(
                    x,
                    line.change * 100,
                    yerr=np.maximum(error, 0),
                    fmt="o-",
                    markersize=3,
                    linewidth=1,
                    color=colours[method],
                )
            axis.set_xticks(range(len(levels) + 1), ["even", *(f"{v:g}" for v in levels)])
            axis.tick_params(labelsize=8)
            if at == 0:
                axis.set_title(DIALS[dial], fontsize=9)
        axes[at, 0].set_ylabel(f"{title(model)}\n{width_}", fontsize=9)
    handles = [plt.Line2D([], [], color=colours[m], marker="o", markersize=4) for m in methods]
    figure.supylabel("what the group loses more than the others (points)", fontsize=9)
    figure.tight_layout()
    figure.legend(
        handles,
        [called(m) for m in methods],
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncol=3,
        fontsize=8,
    )
    return finished(figure)


def dial_table(verdicts: pd.DataFrame) -> HTML:
    """What quantization adds to the group's disadvantage at the last level of each dial.

    Parameters
    ----------
    verdicts : of :func:`fairq_utils.mitigation_chapter.dial_verdicts`
    """
    if verdicts.empty:
        return note(UNTURNED)
    return shown(
        pd.DataFrame(
            {
                "dial": [DIALS[dial] for dial in verdicts.dial],
                "level": [f"{level:g}" for level in verdicts.level],
                "architecture": [title(name) for name in verdicts.architecture],
                "bits": verdicts.bits,
                "behind in FP32 (points)": [f"{v * 100:+.1f}" for v in verdicts.reference],
                "added by quantization": intervals(verdicts, "change"),
                "noise floor": [f"±{v * 100:.1f}" for v in verdicts.floor],
                "in the even world": [f"{v * 100:+.1f}" for v in verdicts.even],
                "beyond it": [
                    f"{row.added * 100:+.1f} ± {row.added_half * 100:.1f}"
                    for row in verdicts.itertuples()
                ],
                "shown": ["yes" if value else "" for value in verdicts.shown],
                "taken away by": [
                    ", ".join(called(line) for line in row.split(", ") if line)
                    for row in verdicts.removed
                ],
            }
        )
    )


def seeds(frame: pd.DataFrame) -> HTML:
    """Mean and largest absolute difference between two FP32 seeds, in points.

    Parameters
    ----------
    frame : of :func:`fairq_utils.effects.between_seeds`
    """
    rows = frame[frame.statistic.isin(STATISTICS)]
    return shown(
        pd.DataFrame(
            {
                "architecture": [title(name) for name in rows.architecture],
                "statistic": rows.statistic.map(LABELS),
                "pairs of seeds": rows.pairs.astype(int),
                "mean difference": [f"{v * 100:.1f}" for v in rows["mean"]],
                "largest": [f"{v * 100:.1f}" for v in rows.largest],
            }
        )
    )


def certificates(cells: pd.DataFrame, limit: float, delta: float) -> Figure:
    """How often certificates come, over held-out images; and how often they are false.

    Parameters
    ----------
    cells : rows of ``fairq bench certificate``
    """
    flips = sorted(set(cells.flips))
    figure, axes = plt.subplots(
        2, len(flips), figsize=(1.2 + 3.4 * len(flips), 5.2), sharex=True, squeeze=False
    )
    harms = sorted(set(cells[cells.candidates == 1].harm.dropna()))
    colours = dict(zip(harms, sns.color_palette("crest", len(harms)), strict=True))
    for column, share in enumerate(flips):
        part = cells[cells.flips == share]
        for evidence, style in zip(EVIDENCE, ("o-", "s--"), strict=True):
            rows = part[part.evidence == evidence]
            for place, name in ((0, "certified"), (1, "wrong")):
                axis = axes[place, column]
                for harm in harms:
                    line = rows[(rows.harm == harm) & rows[name].notna()]
                    if len(line):
                        axis.plot(
                            line.images, 100 * line[name], style, color=colours[harm], markersize=4
                        )
                several = rows[(rows.candidates > 1) & rows[name].notna()]
                axis.plot(several.images, 100 * several[name], style, color="0.4", markersize=4)
        axes[0, column].set_title(f"{100 * share:.0f} % of answers flip", fontsize=10)
        axes[1, column].axhline(100 * delta, color="firebrick", linewidth=1)
        axes[1, column].set_xlabel("held-out images")
        axes[1, column].set_xscale("log")
        numbers = sorted(set(part.images))
        axes[1, column].set_xticks(numbers, [f"{n:,}" for n in numbers], minor=False)
        axes[1, column].minorticks_off()
        axes[0, column].set_ylim(-3, 103)
        axes[1, column].set_ylim(-0.2, 1.3 * 100 * max(delta, cells.wrong.max()))
    axes[0, 0].set_ylabel("certified rightly (%)")
    axes[1, 0].set_ylabel("certified wrongly (%)")
    handles = [
        *(plt.Line2D([], [], color=colours[harm], marker="o") for harm in harms),
        plt.Line2D([], [], color="0.4", marker="o"),
        plt.Line2D([], [], color="0.2", linestyle="-"),
        plt.Line2D([], [], color="0.2", linestyle="--"),
        plt.Line2D([], [], color="firebrick"),
    ]
    labels = [
        *(f"true harm {harm / limit:.1f} times the limit" for harm in harms),
        "several in sequence",
        *EVIDENCE.values(),
        "allowed",
    ]
    figure.tight_layout()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=3, fontsize=8)
    return finished(figure)


def certificate_table(cells: pd.DataFrame) -> HTML:
    """Shares of draws with a true and with a false certificate, in percent."""
    rows = cells.assign(
        truth=[
            "several in sequence" if harm != harm else f"{100 * harm:.1f} points"
            for harm in cells.harm
        ]
    )

    def percent(values: pd.Series) -> list[str]:
        return ["" if value != value else f"{100 * value:.1f}" for value in values]

    return shown(
        pd.DataFrame(
            {
                "evidence": rows.evidence.map(EVIDENCE),
                "flips (%)": [f"{100 * value:.0f}" for value in rows.flips],
                "held-out images": rows.images,
                "true harm": rows.truth,
                "certified rightly (%)": percent(rows.certified),
                "certified wrongly (%)": percent(rows.wrong),
            }
        )
    )
