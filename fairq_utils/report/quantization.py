"""Chapter on quantization: losses and what better methods recover, toolkits, gaps, and sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.quantizers.methods import CONTROL
from fairq_utils.report.chapter import POINT, glue
from fairq_utils.report.figures import (
    BELOW,
    COLOURS,
    draw_change,
    finished,
    legend_of,
    named_rows,
    panels,
)
from fairq_utils.report.rows import PARITY, quantized_rows, rows_at_bits, rows_of, width
from fairq_utils.report.tables import (
    LABELS,
    floors,
    html_table,
    intervals,
    labels,
    method_label,
    named,
    points,
    title,
    wide_table,
)
from fairq_utils.stats.verdicts import judge
from fairq_utils.study.params.study import Params
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.statistics import CONFIGURATION

KEYS = ["architecture", "bits"]
CLEAR_LOSS = 0.03  # a loss of accuracy below this is too small to speak of shares of it
LEVELS = {"fp32": "-", CONTROL: ":"}  # methods without bits, and how their lines are drawn
TOOLKITS = {
    "fp32": "FP32",
    "ours_minmax": "ours, min-max",
    "ours": "ours, blocks",
    "torchao_pt2e": "torchao PT2E",
    "nncf": "NNCF",
    "onnxruntime": "ONNX Runtime",
    "brevitas": "Brevitas",
}


def recovery(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare every method with the naive one at the same bits, on the same model.

    Parameters
    ----------
    frame : rows of one statistic, ``accuracy``, of
        :func:`fairq_utils.report.effects.by_configuration`, with calibration at random

    Returns
    -------
    DataFrame
        The rows of all methods but the naive one, where there is one at the same bits: with
        ``naive`` (its change from FP32), and ``recovered``: the share of that loss that the method
        brings back, NaN where the naive one loses less than :data:`CLEAR_LOSS`.
    """
    naive = frame[frame.method == "naive"].set_index(KEYS).change
    rows = frame[~frame.method.isin(["naive", "fp32", CONTROL])]
    base = pd.Series(
        [naive.get(key, float("nan")) for key in rows[KEYS].itertuples(index=False, name=None)],
        index=rows.index,
        dtype=float,
    )
    share = 1 - rows.change / base
    found = rows.assign(naive=base, recovered=share.where(base <= -CLEAR_LOSS))
    return found[found.naive.notna()]


def best_of(found: pd.DataFrame) -> pd.DataFrame:
    """The best method of every architecture and bits, of those that :func:`recovery` found."""
    return found.loc[found.groupby(KEYS, sort=False).change.idxmax()]


def recovery_table(frame: pd.DataFrame) -> HTML:
    """Naive loss, best method and the share that it recovers, by architecture and bits.

    Parameters
    ----------
    frame : of :func:`best_of`
    """
    return html_table(
        pd.DataFrame(
            {
                "architecture": frame.architecture.map(title),
                "bits": frame.bits,
                "naive (points)": points(frame.naive, "+.1f"),
                "best method": [method_label(row) for _, row in frame.iterrows()],
                "change (points)": intervals(frame, "change"),
                "recovered (%)": points(frame.recovered, ".0f"),
            }
        )
    )


def glue_recovery(found: pd.DataFrame) -> None:
    """Glue how much of a clear naive loss the best other method brings back."""
    best = best_of(found).dropna(subset=["recovered"])
    glue("recovered_cases", len(best))
    if best.empty:
        raise ValueError("recorded study: no naive configuration loses clearly; nothing to recover")
    least = best.loc[best.recovered.idxmin()]
    glue("recovered_median", 100 * best.recovered.median())
    glue("recovered_least", 100 * least.recovered)
    glue("recovered_least_case", f"{title(least.architecture)} at {least.bits}")


def glue_losses(frame: pd.DataFrame, scope: str) -> None:
    """Glue the changes of accuracy at the most and the fewest bits, and the worst of them."""
    rows = rows_of(frame, "accuracy", scope)
    for name, fewest in (("most", False), ("fewest", True)):
        part = rows_at_bits(rows, fewest=fewest)
        worst = part.loc[part.change.idxmin()]
        glue(f"{name}_bits", str(worst.bits))
        glue(f"{name}_worst", worst.change / POINT)
        glue(f"{name}_worst_model", title(worst.architecture))
        glue(f"{name}_worst_ranges", str(worst.ranges))
        glue(f"{name}_configurations", len(part))
        glue(f"{name}_hurt", int((part.high < -POINT).sum()))
        glue(f"{name}_flips", float(part.flips.median()))


def accuracy_over_bits_figure(frame: pd.DataFrame) -> Figure:
    """Accuracy over bits, one line per method and one panel per architecture.

    Parameters
    ----------
    frame : rows of one statistic, ``accuracy``; FP32 and its control become levels
    """
    models = list(dict.fromkeys(frame.architecture))
    lines = frame[~frame.method.isin(LEVELS)]
    lines = lines.assign(line=lines.apply(method_label, axis=1))
    names = list(dict.fromkeys(lines.line))
    bits = sorted(set(lines.bits), key=width, reverse=True)
    colours = dict(zip(names, sns.color_palette("tab10", len(names)), strict=True))
    figure, axes = panels(len(models), each=(3, 2.9), around=(0.8, 0.6))
    for axis, architecture in zip(axes.flat, models, strict=False):
        part = frame[frame.architecture == architecture]
        for method, style in LEVELS.items():
            for level in part[part.method == method].compared.head(1):
                axis.axhline(100 * level, color="0.35", linewidth=1, linestyle=style)
        for name, line in lines[lines.architecture == architecture].groupby("line", sort=False):
            line = line.sort_values("bits", key=lambda s: s.map(bits.index))
            places = [bits.index(b) for b in line.bits]
            axis.plot(
                places,
                line.compared * 100,
                "o-",
                markersize=3.5,
                linewidth=1.3,
                color=colours[name],
            )
        axis.set_title(title(architecture), fontsize=10)
        axis.set_xticks(range(len(bits)), bits, rotation=45, fontsize=8)
        axis.set_xlim(-0.3, len(bits) - 0.7)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    handles = [plt.Line2D([], [], color=colours[n], marker="o", markersize=4) for n in names]
    handles.insert(0, plt.Line2D([], [], color="0.35"))
    figure.tight_layout()
    figure.legend(handles, ["FP32", *names], ncol=4, **BELOW)
    return finished(figure)


def costs_table(frame: pd.DataFrame) -> HTML:
    """Median seconds that a method takes to quantize a model, by architecture."""
    rows = named(frame[~frame.method.isin(["fp32", CONTROL])])
    rows = rows.assign(method=[method_label(row) for _, row in rows.iterrows()])
    seconds = rows.groupby(["method", "architecture"], sort=False).quantize_seconds.median()
    cells = seconds.dropna().map("{:.0f}".format).rename("cell").reset_index()
    return wide_table(cells, ["method"], "architecture")


def beside_toolkits(
    figures: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> pd.DataFrame:
    """Compare our best recipe with the best of the other toolkits.

    Parameters
    ----------
    figures : architecture -> bits -> who -> accuracy, of ``fairq bench toolkits``

    Returns
    -------
    DataFrame
        ``architecture``, ``bits``, ``ours``, ``best`` (accuracy of the best toolkit), ``who``,
        ``ahead`` (ours minus best; fractions). Cells in which no toolkit has a figure are left out.
    """
    rows = []
    for architecture, by_bits in figures.items():
        for bits, row in by_bits.items():
            others = {
                who: value
                for who, value in row.items()
                if value is not None and who not in ("fp32", "ours", "ours_minmax")
            }
            ours = row["ours"]
            if not others or ours is None:
                continue
            who = max(others, key=others.__getitem__)
            rows.append((architecture, bits, ours, others[who], who, ours - others[who]))
    columns = ["architecture", "bits", "ours", "best", "who", "ahead"]
    return pd.DataFrame(rows, columns=columns)


def toolkits_table(figures: dict[str, dict[str, dict[str, float | None]]]) -> HTML:
    """Accuracy in percent of every toolkit beside ours; an empty cell has no figure.

    Parameters
    ----------
    figures : of ``fairq bench toolkits``
    """
    rows = [
        {
            "architecture": title(architecture),
            "bits": bits,
            **{
                TOOLKITS[who]: "" if value is None else f"{value * 100:.1f}"
                for who, value in row.items()
            },
        }
        for architecture, by_bits in figures.items()
        for bits, row in by_bits.items()
    ]
    return html_table(pd.DataFrame(rows))


def glue_toolkits(found: pd.DataFrame) -> None:
    """Glue how far ours is ahead of, or behind, the best of the other toolkits."""
    full = found[found.bits == "W8A8"]
    low = found[found.bits != "W8A8"]
    glue("toolkits_full", len(full))
    glue("toolkits_full_least", full.ahead.min() / POINT)
    glue("toolkits_low", len(low))
    glue("toolkits_low_best", int((low.ahead >= 0).sum()))
    behind = low[low.ahead < 0].sort_values("ahead")
    names = [
        f"{title(r.architecture)} at {r.bits} ({TOOLKITS[r.who]}, "
        f"{-r.ahead / POINT:.1f} points better)"
        for r in behind.itertuples()
    ]
    glue("toolkits_behind", "; ".join(names) or "none")


def changes_figure(frame: pd.DataFrame, statistic: str, scope: str) -> Figure:
    """Change of a statistic from FP32 with its interval, over what chance alone makes of it."""
    rows = quantized_rows(frame, statistic, scope)
    rows = rows.assign(line=labels(rows))
    names = list(dict.fromkeys(rows.line))
    models = list(dict.fromkeys(rows.architecture))
    figure, axis = plt.subplots(figsize=(7.2, 0.9 + 0.16 * len(names) * (len(models) + 1)))
    axis.axvline(0, color="0.3", linewidth=1)
    step = 0.75 / max(len(models), 1)
    for row in rows.itertuples():
        y = names.index(row.line) + (models.index(row.architecture) + 0.5) * step - 0.375
        draw_change(axis, y, row, step * 0.95)
    named_rows(axis, names)
    axis.set_xlabel(f"{LABELS[statistic].lower()}: change from FP32 (points)")
    legend_of(axis, models, "o-", "noise floor")
    return finished(figure)


def changes_table(frame: pd.DataFrame, statistic: str, scope: str) -> HTML:
    """Change of one statistic by configuration: interval, noise floor, and share of flips."""
    rows = rows_of(frame, statistic, scope)
    return html_table(
        pd.DataFrame(
            {
                "architecture": rows.architecture.map(title),
                "configuration": labels(rows),
                "FP32": points(rows.reference),
                "change": intervals(rows, "change"),
                "noise floor": floors(rows.floor),
                "flipped predictions (%)": points(rows.flips),
            }
        )
    )


def of_one_prediction(runs: Iterable[RunRecord]) -> list[str]:
    """Architectures of which an FP32 model predicts the same of every test image.

    Its gaps are zero whatever it does to anyone, so that "no change" says nothing of it.
    """
    fp32 = (record for record in runs if record.run.method == "fp32")
    return sorted({r.run.architecture for r in fp32 if not r.counts.sum(axis=(0, 1, 2)).all()})


def glue_changes(
    frame: pd.DataFrame, scope: str, params: Params, same: Collection[str] = ()
) -> None:
    """Glue how many changes of the parity gap are shown, shown to be none, and undecided.

    They are judged as one family. Of the changes shown, those are counted apart whose model has
    lost more than ten points of accuracy.

    Parameters
    ----------
    same : architectures of :func:`of_one_prediction`, of which no absence of a change is counted
    """
    rows = judge(
        rows_of(frame, PARITY, scope),
        margin=params.analysis.equivalence_margin,
        replicates=params.analysis.replicates,
    )
    glue("comparisons", len(rows))
    glue("outside", int(((rows.low > 0) | (rows.high < 0)).sum()))
    glue("beyond_floor", int((rows.change.abs() > rows.floor).sum()))
    glue("shown", int(rows.shown.sum()))
    judged = ~rows.architecture.isin(list(same))
    glue("equivalent", int((judged & rows.equivalent).sum()))
    glue("same_comparisons", int((~judged).sum()))
    glue("same_models", ", ".join(title(name) for name in same) or "none here")
    glue("margin", params.analysis.equivalence_margin / POINT)
    glue("unflipped", int((rows.flips == 0).sum()))
    accuracy = rows_of(frame, "accuracy", scope).set_index(CONFIGURATION).change
    shown = rows[rows.shown].set_index(CONFIGURATION)
    glue("shown_broken", int((accuracy.loc[shown.index] < -10 * POINT).sum()))


def narrowest_rows(groups: pd.DataFrame) -> pd.DataFrame:
    """Rows of the fewest bits, with the first range rule of the study.

    Parameters
    ----------
    groups : of :func:`fairq_utils.report.effects.by_group`
    """
    rows = rows_at_bits(groups, fewest=True)
    return rows[rows.ranges == rows.ranges.iloc[0]]


def groups_figure(groups: pd.DataFrame) -> Figure:
    """Change of accuracy of every group, one panel per architecture.

    Parameters
    ----------
    groups : of :func:`narrowest_rows`
    """
    models = list(dict.fromkeys(groups.architecture))
    figure, axes = plt.subplots(
        1,
        len(models),
        figsize=(1.2 + 1.95 * len(models), 3.2),
        sharey=True,
        sharex=True,
        squeeze=False,
    )
    for axis, model in zip(axes[0], models, strict=True):
        part = groups[groups.architecture == model].reset_index(drop=True)
        error = np.stack([part.change - part.low, part.high - part.change]) * 100
        axis.errorbar(
            part.change * 100, part.index, xerr=error, fmt="o", color=COLOURS[model], capsize=3
        )
        axis.axvline(0, color="0.3", linewidth=1)
        axis.set_title(title(model), fontsize=10)
        named_rows(axis, part.group)
    figure.supxlabel("change of accuracy from FP32 (points)", fontsize=10)
    figure.tight_layout()
    return finished(figure)


def sizes_table(frame: pd.DataFrame) -> HTML:
    """Size in MiB and ratio to FP32, by architecture and bits."""
    rows = frame[frame.sampler.isin(["", "random"]) & frame.method.isin(["fp32", "ptq", "dynamic"])]
    rows = rows.drop_duplicates(["architecture", "method", "bits"])
    method = rows.method.map({"fp32": "", "ptq": "static ", "dynamic": "dynamic "})
    rows = named(rows).assign(
        cell=[f"{m:.2f} ({r:.2f}x)" for m, r in rows[["mebibytes", "ratio"]].to_numpy()],
        configuration=method + rows.bits,
    )
    return wide_table(rows, ["architecture"], "configuration")
