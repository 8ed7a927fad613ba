"""Chapter on mitigation: every group-aware method against plain quantization."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils import stats
from fairq_utils.calibration import SAMPLERS
from fairq_utils.errors import BadInput
from fairq_utils.quantizers.methods import CONTROL, FAMILIES, METHODS
from fairq_utils.report import effects
from fairq_utils.report.chapter import POINT, Chapter, glue, of
from fairq_utils.report.figures import COLOURS, finished, title
from fairq_utils.report.tables import LABELS, intervals, note, shown, width
from fairq_utils.study.planning import mitigations
from fairq_utils.training.zoo import display_name

STATISTICS = (
    "demographic_parity_difference",
    "equalized_odds_difference",
    "worst_group_accuracy",
)


def names(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Family and label of each row's method."""
    found = [family_and_label(row.method, row.sampler) for row in frame.itertuples()]
    return [family for family, _ in found], [label for _, label in found]


def family_and_label(method: str, sampler: str) -> tuple[str, str]:
    """Family and label of a method, or of a sampler of plain quantization."""
    if method != "ptq":
        return METHODS[method].family, METHODS[method].label
    name, _, group = sampler.partition("=")
    return "calibration", f"{group} only" if group else SAMPLERS[name].label


NOTHING = "The grid of this study has no group-aware method, so there is nothing to compare."


def table(frame: pd.DataFrame, scope: str) -> HTML:
    """Every method against plain quantization: changes with intervals and floors, and costs.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.against_plain`
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


def shown_table(frame: pd.DataFrame) -> HTML:
    """The changes against plain quantization that were shown.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.mitigation.shown_changes`
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


def seeds(frame: pd.DataFrame) -> HTML:
    """Mean and largest absolute difference between two FP32 seeds, in points.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.between_seeds`
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


PARITY = "demographic_parity_difference"
CONTROLS = (CONTROL, "qat", "layers_random", "channels_random")
LEVEL = 0.95  # of the intervals that are judged


def against_plain(chapter: Chapter) -> pd.DataFrame:
    """:func:`fairq_utils.report.effects.against_plain` of this study."""
    return chapter.measured("plain", effects.against_plain)


def judged(rows: pd.DataFrame, replicates: int) -> pd.DataFrame:
    """Rows with their p-values corrected over all of them, and whether a change is shown.

    Raises
    ------
    BadInput
        So many rows at so few replicates that nothing could be shown.
    """
    rows = rows.reset_index(drop=True)
    if len(rows) / (replicates + 1) >= 1 - LEVEL:
        raise BadInput(
            f"analysis.replicates: {len(rows)} comparisons are corrected for their number, and "
            f"with {replicates} replicates none could be shown; ask for at least "
            f"{2 * len(rows) / (1 - LEVEL):.0f}"
        )
    p = {str(i): value for i, value in enumerate(rows.p_value.fillna(1.0))}
    adjusted = stats.adjusted(p).holm.to_numpy()
    shown = [
        stats.verdict(
            stats.differs(), row.change, row.low, row.high, p_value=value, floor=row.floor
        ).outcome
        == "supported"
        for row, value in zip(rows.itertuples(), adjusted, strict=True)
    ]
    return rows.assign(p_adjusted=adjusted, shown=shown)


def glue_methods(frame: pd.DataFrame, scope: str, prefix: str, replicates: int) -> None:
    """Glue what was shown of all methods, and what balance does at the most bits.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.against_plain`
    prefix : of the glued names
    replicates : of the exchange test that the frame's p-values come from
    """
    for name in STATISTICS:
        if frame.empty:
            for count in ("compared", "better", "worse"):
                glue(f"{prefix}_{name.removesuffix('_difference')}_{count}", 0)
            continue
        rows = judged(of(frame, name, scope), replicates)
        better = -1 if name.endswith("difference") else 1
        short = name.removesuffix("_difference")
        glue(f"{prefix}_{short}_compared", len(rows))
        helps = rows.shown & (better * rows.change > 0)
        glue(f"{prefix}_{short}_better", int(helps.sum()))
        glue(f"{prefix}_{short}_worse", int((rows.shown & (better * rows.change < 0)).sum()))
        glue(f"{prefix}_{short}_controls", int((helps & rows.method.isin(CONTROLS)).sum()))
    if frame.empty:
        return
    rows = judged(of(frame, PARITY, scope), replicates)
    glue(f"{prefix}_seeds", int(rows.seeds.min()))
    glue(f"{prefix}_models", rows.architecture.nunique())
    balanced = rows[rows.sampler == "group_balanced"]
    for bits in sorted(set(balanced.bits)):
        part = balanced[balanced.bits == bits]
        glue(f"{prefix}_balanced_{bits}", part.change.mean() / POINT)
        glue(f"{prefix}_balanced_{bits}_floor", part.floor.max() / POINT)
        inside = (part.change.abs() <= part.floor).sum()
        glue(f"{prefix}_balanced_{bits}_inside", int(inside))
        glue(f"{prefix}_balanced_{bits}_models", len(part))
        glue(f"{prefix}_balanced_{bits}_says", _balance(part))
    harm = rows.drop_duplicates(["architecture", "bits"])
    for bits in sorted(set(harm.bits)):
        values = harm[harm.bits == bits].harm_plain / POINT
        cases = zip(harm[harm.bits == bits].architecture, values, strict=True)
        text = ", ".join(f"{value:+.1f} ({display_name(name)})" for name, value in cases)
        glue(f"{prefix}_plain_{bits}", text)


def shown_changes(frame: pd.DataFrame, scope: str, replicates: int) -> pd.DataFrame:
    """Rows of all statistics in which a change is shown; ``control``: that of no method proper."""
    parts = [judged(of(frame, name, scope), replicates) for name in STATISTICS]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[rows.shown].reset_index(drop=True)
    return rows.assign(control=rows.method.isin(CONTROLS))


def _balance(rows: pd.DataFrame) -> str:
    """What balanced calibration gives, in words."""
    helps = (rows.shown & (rows.change < 0)).sum()
    hurts = (rows.shown & (rows.change > 0)).sum()
    if helps and not hurts:
        return f"narrows the gap on {helps} of {len(rows)} networks"
    if hurts and not helps:
        return f"widens the gap on {hurts} of {len(rows)} networks"
    if helps and hurts:
        return f"narrows the gap on {helps} and widens it on {hurts} of {len(rows)} networks"
    return "gives nothing that could be told from chance"


def fewest_bits(chapter: Chapter) -> str:
    """The fewest bits at which methods are compared."""
    return min((str(found.bits) for found in mitigations(chapter.params) if found.bits), key=width)
