"""The book's figures: each takes a table or pictures and returns a matplotlib figure.

Colours tell architectures apart (seaborn's colour-blind palette), and mean the same everywhere.
"""

from __future__ import annotations

import zlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fairq_utils.report.interactive import Interactive, interactive
from fairq_utils.report.tables import LABELS, label, method_label, width
from fairq_utils.training.zoo import ARCHITECTURES, display_name


class _Colours(dict[str, tuple[float, float, float]]):
    """Colours of architectures by name; one without an entry has a hue that its name decides."""

    def __missing__(self, name: str) -> tuple[float, float, float]:
        hue = zlib.crc32(name.encode()) / 2**32
        self[name] = sns.husl_palette(1, h=hue)[0]
        return self[name]


COLOURS = _Colours(zip(ARCHITECTURES, sns.color_palette("colorblind"), strict=False))
LEVELS = {"fp32": "-", "control": ":"}  # methods without bits, and how their lines are drawn
STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
NEAR = 5.0  # points within which an axis is linear where some go far beyond


def use_style() -> None:
    """Set the book's look for all figures that follow."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]


def finished(figure: Figure) -> Figure:
    """Take a figure out of pyplot's hands, which would draw it a second time in a notebook."""
    plt.close(figure)
    return figure


def panels(
    count: int, *, each: tuple[float, float], around: tuple[float, float]
) -> tuple[Figure, Any]:
    """Axes of one panel per architecture, three in a row, on one vertical scale.

    Parameters
    ----------
    count : panels; the places behind them stay empty
    each, around : width and height in inches, of a panel and of what surrounds all of them

    Returns
    -------
    figure, axes (rows, columns)
    """
    columns = min(count, 3)
    rows = -(-count // columns)
    size = (around[0] + each[0] * columns, each[1] * rows + around[1])
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes


def title(name: str) -> str:
    """An architecture's name as it is printed."""
    return display_name(name)


def accuracy_bars(effects: pd.DataFrame, bayes: float | None = None) -> Figure:
    """FP32 accuracy of each architecture with its interval; the best attainable as a line."""
    rows = effects[(effects.method == "fp32") & (effects.statistic == "accuracy")]
    rows = rows.drop_duplicates("architecture")
    figure, axis = plt.subplots(figsize=(7, 3))
    for i, row in enumerate(rows.itertuples()):
        error = [
            [(row.compared - row.compared_low) * 100],
            [(row.compared_high - row.compared) * 100],
        ]
        axis.errorbar(
            row.compared * 100, i, xerr=error, fmt="o", color=COLOURS[row.architecture], capsize=3
        )
    axis.set_yticks(range(len(rows)), [title(a) for a in rows.architecture])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    if bayes is not None:
        axis.axvline(bayes * 100, color="0.4", linestyle="--", linewidth=1)
        axis.annotate(
            "best attainable",
            (bayes * 100, 1),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            ha="right",
            va="top",
            color="0.4",
            xytext=(-4, -2),
            textcoords="offset points",
        )
    axis.set_xlabel("test accuracy (%)")
    return finished(figure)


def group_heatmap(groups: pd.DataFrame, column: str = "compared", scale: float = 100) -> Figure:
    """One cell per architecture and group, for the FP32 models or for one configuration."""
    table = groups.pivot_table(index="architecture", columns="group", values=column, sort=False)
    table = table.rename(index=title) * scale
    figure, axis = plt.subplots(figsize=(1.6 + 1.15 * table.shape[1], 0.9 + 0.42 * len(table)))
    diverging = column == "change"
    limit = float(np.nanmax(np.abs(table.to_numpy()))) if diverging else None
    sns.heatmap(
        table,
        annot=True,
        fmt="+.1f" if diverging else ".1f",
        cmap="RdBu" if diverging else "viridis",
        vmin=-limit if limit else None,
        vmax=limit,
        cbar_kws={"label": "points" if diverging else "accuracy (%)"},
        ax=axis,
    )
    axis.set(xlabel="", ylabel="")
    axis.grid(False)
    return finished(figure)


def configuration_heatmap(effects: pd.DataFrame, statistic: str, scope: str) -> Figure:
    """Change of one statistic from FP32, in points: configurations by architectures.

    Red is worse: a lower accuracy, a wider gap.
    """
    rows = effects[
        (effects.statistic == statistic) & (effects["scope"] == scope) & (effects.method != "fp32")
    ]
    rows = rows.assign(configuration=rows.apply(label, axis=1))
    table = rows.pivot_table(
        index="configuration", columns="architecture", values="change", sort=False
    ).rename(columns=title)
    table *= 100
    limit = float(np.nanmax(np.abs(table.to_numpy()))) or 1.0
    figure, axis = plt.subplots(figsize=(2.6 + 1.15 * table.shape[1], 0.9 + 0.38 * len(table)))
    sns.heatmap(
        table,
        annot=True,
        fmt="+.1f",
        cmap="RdBu_r" if statistic.endswith("difference") else "RdBu",
        vmin=-limit,
        vmax=limit,
        cbar_kws={"label": "change (points)"},
        ax=axis,
    )
    axis.set(xlabel="", ylabel="")
    axis.set_title(LABELS[statistic], fontsize=10)
    axis.tick_params(axis="x", rotation=20)
    axis.grid(False)
    return finished(figure)


def accuracy_over_bits(frame: pd.DataFrame) -> Figure:
    """Accuracy over bits, one line per method and one panel per architecture.

    Parameters
    ----------
    frame : rows of one statistic, ``accuracy``; FP32 and its control become levels
    """
    architectures = list(dict.fromkeys(frame.architecture))
    lines = frame[~frame.method.isin(LEVELS)]
    lines = lines.assign(line=lines.apply(method_label, axis=1))
    names = list(dict.fromkeys(lines.line))
    bits = sorted(set(lines.bits), key=width, reverse=True)
    colours = dict(zip(names, sns.color_palette("tab10", len(names)), strict=True))
    figure, axes = panels(len(architectures), each=(3, 2.9), around=(0.8, 0.6))
    for axis, architecture in zip(axes.flat, architectures, strict=False):
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
    figure.legend(
        handles, ["FP32", *names], loc="upper center", bbox_to_anchor=(0.5, 0), ncol=4, fontsize=8
    )
    return finished(figure)


def changes(effects: pd.DataFrame, statistic: str, scope: str) -> Figure:
    """Change of a statistic from FP32 with its interval, over what chance alone makes of it."""
    rows = effects[
        (effects.statistic == statistic) & (effects["scope"] == scope) & (effects.method != "fp32")
    ]
    names = list(dict.fromkeys(rows.apply(label, axis=1)))
    models = list(dict.fromkeys(rows.architecture))
    figure, axis = plt.subplots(figsize=(7.2, 0.9 + 0.16 * len(names) * (len(models) + 1)))
    axis.axvline(0, color="0.3", linewidth=1)
    step = 0.75 / max(len(models), 1)
    for row in rows.itertuples():
        y = (
            names.index(label(pd.Series(row._asdict())))
            + (models.index(row.architecture) + 0.5) * step
            - 0.375
        )
        colour = COLOURS[row.architecture]
        axis.barh(y, 200 * row.floor, step * 0.95, -100 * row.floor, color="0.86", zorder=0)
        axis.plot([row.low * 100, row.high * 100], [y, y], color=colour, linewidth=1.6)
        axis.plot(row.change * 100, y, "o", markersize=4, color=colour)
    axis.barh(0, 0, color="0.86", label="noise floor")
    for model in models:
        axis.plot([], [], "o-", color=COLOURS[model], label=title(model))
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(f"{LABELS[statistic].lower()}: change from FP32 (points)")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finished(figure)


def per_group_chart(groups: pd.DataFrame) -> Figure:
    """Change of accuracy of every group, one panel per architecture."""
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
        axis.set_yticks(part.index, part.group)
        axis.set_ylim(len(part) - 0.5, -0.5)
    figure.supxlabel("change of accuracy from FP32 (points)", fontsize=10)
    figure.tight_layout()
    return finished(figure)


def mitigation(effects: pd.DataFrame, statistic: str, scope: str) -> Figure:
    """Harm after random and after balanced calibration, joined; and the paired difference."""
    rows = effects[(effects.statistic == statistic) & (effects["scope"] == scope)].reset_index(
        drop=True
    )
    names = [f"{title(r.architecture)} {r.bits} {r.ranges}" for r in rows.itertuples()]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.6, 1.2 + 0.26 * len(rows)), sharey=True, width_ratios=(1.2, 1)
    )
    for i, row in enumerate(rows.itertuples()):
        colour = COLOURS[row.architecture]
        left.plot([row.harm_random * 100, row.harm * 100], [i, i], color=colour, linewidth=1)
        left.plot(row.harm_random * 100, i, "o", color="white", markeredgecolor=colour)
        left.plot(row.harm * 100, i, "o", color=colour)
        right.barh(i, 200 * row.floor, 0.8, -100 * row.floor, color="0.88", zorder=0)
        right.plot([row.low * 100, row.high * 100], [i, i], color=colour)
        right.plot(row.change * 100, i, "o", color=colour, markersize=4)
    left.plot([], [], "o", color="white", markeredgecolor="0.3", label="random")
    left.plot([], [], "o", color="0.3", label="balanced")
    left.barh(0, 0, color="0.88", label="noise floor (right)")
    if 100 * max(rows.harm.abs().max(), rows.harm_random.abs().max()) > 4 * NEAR:
        left.set_xscale("symlog", linthresh=NEAR)  # one collapse would hide all others
    for axis in (left, right):
        axis.axvline(0, color="0.3", linewidth=1)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_xlabel(f"{LABELS[statistic].lower()}:\nchange from FP32 (points)")
    right.set_xlabel("balanced minus random (points)")
    figure.tight_layout()
    figure.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=3)
    return finished(figure)


def pareto(frontier: pd.DataFrame) -> Figure:
    """Accuracy against gap; area is size, filled where no configuration beats it."""
    figure, axis = plt.subplots(figsize=(7.6, 4.6))
    for model, part in frontier.groupby("architecture", sort=False):
        for on_front, rows in part.groupby("pareto"):
            axis.scatter(
                rows.demographic_parity_difference * 100,
                rows.accuracy * 100,
                s=12 + 5 * rows.mebibytes,
                facecolor=COLOURS[model] if on_front else "none",
                edgecolor=COLOURS[model],
                alpha=0.85,
            )
        axis.scatter([], [], color=COLOURS[model], label=title(model))
    axis.set(xlabel="demographic parity gap (points)", ylabel="test accuracy (%)")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finished(figure)


def null_bands(bands: pd.DataFrame) -> Figure:
    """Gaps of FP32 models over what chance makes of a gap at these groups' sizes.

    Parameters
    ----------
    bands : of :func:`fairq_utils.report.measuring.null_bands`
    """
    rates = list(dict.fromkeys(bands.rate))
    figure, axis = plt.subplots(figsize=(7.2, 0.7 + 0.62 * len(rates)))
    for i, rate in enumerate(rates):
        rows = bands[bands.rate == rate]
        axis.barh(i, 100 * rows.high.mean(), 0.7, color="0.86", zorder=0)
        mean = 100 * rows["mean"].mean()
        axis.plot([mean, mean], [i - 0.35, i + 0.35], color="0.5", linewidth=1.2)
        spread = np.linspace(-0.22, 0.22, len(rows)) if len(rows) > 1 else [0.0]
        for offset, row in zip(spread, rows.itertuples(), strict=True):
            axis.plot(100 * row.gap, i + offset, "o", markersize=5, color=COLOURS[row.architecture])
    for model in dict.fromkeys(bands.architecture):
        axis.plot([], [], "o", color=COLOURS[model], label=title(model))
    axis.barh(0, 0, color="0.86", label="no group differs")
    among = bands.drop_duplicates("rate").among
    axis.set_yticks(
        range(len(rates)),
        [f"{r.replace('_', ' ')}\n({a})" for r, a in zip(rates, among, strict=True)],
        fontsize=9,
    )
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("gap between the groups (points)")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finished(figure)


def interactive_pareto(frontier: pd.DataFrame) -> Interactive:
    """The Pareto picture with every configuration's name under the pointer."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for model, part in frontier.groupby("architecture", sort=False):
        red, green, blue = (int(255 * c) for c in COLOURS[model])
        names = [label(row) for _, row in part.iterrows()]
        figure.add_scatter(
            x=(part.demographic_parity_difference * 100).round(2),
            y=(part.accuracy * 100).round(2),
            mode="markers",
            name=title(str(model)),
            marker={
                "size": 8 + 2 * np.sqrt(part.mebibytes),
                "color": f"rgb({red},{green},{blue})",
                "symbol": ["circle" if p else "circle-open" for p in part.pareto],
            },
            customdata=np.stack([np.array(names), part.mebibytes.round(2).astype(str)], axis=1),
            hovertemplate="%{customdata[0]}<br>accuracy %{y} %<br>gap %{x} points"
            "<br>%{customdata[1]} MiB<extra>" + title(str(model)) + "</extra>",
        )
    figure.update_layout(
        template="plotly_white",
        xaxis_title="demographic parity gap (points)",
        yaxis_title="test accuracy (%)",
        margin={"l": 50, "r": 10, "t": 40, "b": 10},
        height=460,
        legend={"orientation": "h", "y": -0.2},
    )
    alt = "Scatter of accuracy over parity gap with the name of every configuration"
    return interactive(figure, "pareto", alt)
