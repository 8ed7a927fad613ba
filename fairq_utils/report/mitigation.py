"""Chapter on mitigation: every group-aware method against plain quantization."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.calibration import SAMPLERS
from fairq_utils.quantizers.methods import CONTROL, FAMILIES, METHODS
from fairq_utils.report.chapter import POINT, Chapter, glue
from fairq_utils.report.figures import draw_change, finished, legend_of, named_rows
from fairq_utils.report.rows import ODDS, PARITY, rows_of, width
from fairq_utils.report.tables import (
    LABELS,
    floors,
    html_table,
    intervals,
    note,
    points,
    title,
    told_apart,
)
from fairq_utils.stats.verdicts import judge
from fairq_utils.study.planning import mitigations
from fairq_utils.study.statistics import CONFIGURATION

STATISTICS = (PARITY, ODDS, "worst_group_accuracy")
CONTROLS = (CONTROL, "qat", "layers_random", "channels_random")
NOTHING = "The grid of this study has no group-aware method, so there is nothing to compare."


def family_and_label(method: str, sampler: str) -> tuple[str, str]:
    """Family and label of a method, or of a sampler of plain quantization."""
    if method != "ptq":
        return METHODS[method].family, METHODS[method].label
    name, _, group = sampler.partition("=")
    return "calibration", f"{group} only" if group else SAMPLERS[name].label


def changes_figure(frame: pd.DataFrame, statistic: str, scope: str) -> Figure | HTML:
    """Each method's change against plain quantization, over its noise floor; a panel per bits.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.against_plain`
    """
    if frame.empty:
        return note(NOTHING)
    rows = _named(rows_of(frame, statistic, scope))
    lines = list(dict.fromkeys(zip(rows.family, rows.label, strict=True)))
    lines.sort(key=lambda line: _place(line[0]))
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
            place = lines.index((row.family, row.label))
            y = place + (models.index(row.architecture) + 0.5) * step - 0.4
            draw_change(axis, y, row, step * 0.9)
        axis.set_title(at, fontsize=10)
        for place in range(1, len(lines)):
            if lines[place][0] != lines[place - 1][0]:
                axis.axhline(place - 0.5, color="0.7", linewidth=0.8)
    named_rows(axes[0, 0], [f"{family}: {label}" for family, label in lines], fontsize=8)
    legend_of(axes[0, -1], models, "o-", "noise floor")
    figure.supxlabel(f"{LABELS[statistic].lower()}: change from plain (points)", fontsize=10)
    figure.tight_layout()
    return finished(figure)


def changes_table(frame: pd.DataFrame, scope: str) -> HTML:
    """Every method against plain quantization: changes with intervals and floors, and costs.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.against_plain`
    """
    if frame.empty:
        return note(NOTHING)
    rows = frame[frame["scope"] == scope]
    keys = [name for name in CONFIGURATION if name in rows]  # some were recorded without settings
    first = _named(rows[rows.statistic == STATISTICS[0]])
    first = first.assign(place=first.family.map(_place))
    first = first.sort_values(["architecture", "bits", "place"], kind="stable", ignore_index=True)
    columns: dict[str, Any] = {
        "architecture": first.architecture.map(title),
        "bits": first.bits,
        "method": first.family,
        "": first.label,
    }
    for name in STATISTICS:
        part = first[keys].merge(rows[rows.statistic == name], on=keys, sort=False)
        cells = zip(intervals(part, "change"), floors(part.floor), strict=True)
        columns[LABELS[name].lower()] = [f"{cell} ({floor})" for cell, floor in cells]
    columns["seconds"] = [f"{s:.0f}" if s >= 10 else f"{s:.1f}" for s in first.seconds]
    columns["size"] = [f"{b / p:.2f}x" for b, p in zip(first.bytes, first.bytes_plain, strict=True)]
    return html_table(pd.DataFrame(columns))


def shown_changes(frame: pd.DataFrame, scope: str, replicates: int) -> pd.DataFrame:
    """Rows of all statistics in which a change is shown; ``control``: that of no method proper."""
    parts = [judge(rows_of(frame, name, scope), replicates=replicates) for name in STATISTICS]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[rows.shown].reset_index(drop=True)
    return rows.assign(control=rows.method.isin(CONTROLS))


def shown_table(frame: pd.DataFrame) -> HTML:
    """The changes against plain quantization that were shown.

    Parameters
    ----------
    frame : of :func:`shown_changes`
    """
    if frame.empty:
        return note("None is shown.")
    rows = _named(frame)
    return html_table(
        pd.DataFrame(
            {
                "statistic": frame.statistic.map(LABELS),
                "method": rows.family + ": " + rows.label,
                "architecture": frame.architecture.map(title),
                "bits": frame.bits,
                "change (points)": intervals(frame, "change"),
                "": ["control" if control else "" for control in frame.control],
            }
        )
    )


def seeds_table(frame: pd.DataFrame) -> HTML:
    """How far apart two FP32 seeds are, in points: the floor with its interval, and what was seen.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.between_seeds`
    """
    rows = frame[frame.statistic.isin(STATISTICS)]
    return html_table(
        pd.DataFrame(
            {
                "architecture": rows.architecture.map(title),
                "statistic": rows.statistic.map(LABELS),
                "seeds": rows.seeds.astype(int),
                "floor [95 % interval]": [
                    f"±{value} [{low}, {high}]"
                    for value, low, high in zip(
                        *(points(rows[name]) for name in ("floor", "floor_low", "floor_high")),
                        strict=True,
                    )
                ],
                "largest seen": points(rows.largest),
            }
        )
    )


def glue_methods(frame: pd.DataFrame, scope: str, prefix: str, replicates: int) -> None:
    """Glue how many changes of all methods are shown, and what balance does by bits.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.against_plain`
    prefix : of the glued names
    replicates : of the exchange test that the frame's p-values come from
    """
    for name in STATISTICS:
        short = f"{prefix}_{name.removesuffix('_difference')}"
        if frame.empty:
            for count in ("compared", "better", "worse"):
                glue(f"{short}_{count}", 0)
            continue
        rows = judge(rows_of(frame, name, scope), replicates=replicates)
        better = rows.change * (-1 if name.endswith("difference") else 1)
        helps = rows.shown & (better > 0)
        glue(f"{short}_compared", len(rows))
        glue(f"{short}_better", int(helps.sum()))
        glue(f"{short}_worse", int((rows.shown & (better < 0)).sum()))
        glue(f"{short}_controls", int((helps & rows.method.isin(CONTROLS)).sum()))
        if name == PARITY:
            _glue_parity(rows, prefix)


def fewest_bits(chapter: Chapter) -> str:
    """The fewest bits at which methods are compared."""
    return min((str(found.bits) for found in mitigations(chapter.study) if found.bits), key=width)


def _place(family: str) -> int:
    """Place of a family in tables; one that a plugin brings comes last."""
    return FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the ``family`` and ``label`` of their method."""
    found = [family_and_label(row.method, row.sampler) for row in rows.itertuples()]
    labels = told_apart([label for _, label in found], rows)
    return rows.assign(family=[family for family, _ in found], label=labels)


def _glue_parity(rows: pd.DataFrame, prefix: str) -> None:
    """Glue what balance does to the parity gap, and what plain quantization does from FP32.

    Parameters
    ----------
    rows : of the parity gap, judged
    """
    glue(f"{prefix}_seeds", int(rows.seeds.min()))
    glue(f"{prefix}_models", rows.architecture.nunique())
    for bits, part in rows[rows.sampler == "group_balanced"].groupby("bits"):
        glue(f"{prefix}_balanced_{bits}", part.change.mean() / POINT)
        glue(f"{prefix}_balanced_{bits}_floor", part.floor.max() / POINT)
        glue(f"{prefix}_balanced_{bits}_says", _balance(part))
    for bits, part in rows.drop_duplicates(["architecture", "bits"]).groupby("bits"):
        cases = [
            f"{row.plain_from_fp32 / POINT:+.1f} ({title(row.architecture)})"
            for row in part.itertuples()
        ]
        glue(f"{prefix}_plain_{bits}", ", ".join(cases))


def _balance(rows: pd.DataFrame) -> str:
    """Effect of balanced calibration, in words."""
    helps = (rows.shown & (rows.change < 0)).sum()
    hurts = (rows.shown & (rows.change > 0)).sum()
    if helps and not hurts:
        return f"narrows the gap on {helps} of {len(rows)} networks"
    if hurts and not helps:
        return f"widens the gap on {hurts} of {len(rows)} networks"
    if helps and hurts:
        return f"narrows the gap on {helps} and widens it on {hurts} of {len(rows)} networks"
    return "gives nothing that could be told from chance"
