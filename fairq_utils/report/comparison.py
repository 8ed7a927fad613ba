"""The figure of a comparison: accuracy over size, and what became of the gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fairq_utils.report.style import STYLE

MARKERS = "osD^vP*X"
NARROWEST = 2.0  # points of accuracy that the axis shows at least
WIDEST = 0.55  # of the space between two methods that their intervals take up


def comparison_figure(
    table: pd.DataFrame, gaps: Sequence[str], scopes: Sequence[str], width: float = 11.0
) -> Figure:
    """Accuracy over size, and the change of each gap with its interval, method by method.

    Parameters
    ----------
    table : of :class:`~fairq_utils.compare.Comparison`
    gaps : names of the gaps, a panel each
    scopes : attributes and their crossing, a point each
    width : float
        Inches; the height follows from the number of methods and gaps. Below 8, the panels stand
        one below the other.
    """
    methods = list(table["method"])
    palette = sns.color_palette("colorblind" if len(methods) <= 10 else "husl", len(methods))
    colours = dict(zip(methods, palette, strict=True))
    narrow = width < 8
    row = 0.16 + 0.16 * len(scopes)
    panel = 1.1 + row * max(len(methods) - 1, 2)
    count = 1 + len(gaps)
    shape = (count, 1) if narrow else (1, count)
    legend = 0.18 * math.ceil(len(methods) / 2)
    top = 2.4 + legend
    height = (top + len(gaps) * panel if narrow else max(panel, 2.8) + legend) + 0.9
    heights = [top, *[panel] * len(gaps)] if narrow else [1.0]
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = plt.subplots(
            *shape,
            figsize=(width, height),
            layout="constrained",
            squeeze=False,
            height_ratios=heights,
        )
        first, *others = axes.ravel()
        _accuracy_over_size(first, table, colours)
        for at, (axis, gap) in enumerate(zip(others, gaps, strict=True)):
            named = narrow or at == 0
            _changes(axis, table, gap, scopes, colours, names=named)
        points = [
            Line2D([], [], color="0.3", marker=marker, linestyle="", label=scope)
            for scope, marker in zip(scopes, MARKERS, strict=False)
        ]
        figure.legend(
            handles=points, loc="outside lower center", ncols=2 if narrow else len(points)
        )
        plt.close(figure)
    return figure


def _accuracy_over_size(
    axis: Axes, table: pd.DataFrame, colours: dict[str, tuple[float, float, float]]
) -> None:
    """Methods of the same bits have the same size: open markers of their own let all be seen."""
    for at, row in enumerate(table.to_dict("records")):
        axis.plot(
            row["size_mib"],
            row["accuracy"] * 100,
            MARKERS[at % len(MARKERS)],
            color=colours[row["method"]],
            markerfacecolor="none",
            markeredgewidth=1.6,
            markersize=8,
            linestyle="",
            label=row["method"],
        )
    axis.set(xlabel="size (MiB)", ylabel="accuracy (%)")
    axis.margins(0.15)
    low, high = axis.get_ylim()
    spare = max(NARROWEST - (high - low), 0) / 2
    axis.set_ylim(low - spare, high + spare)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    # Above the panel: inside, its markers would be taken for methods.
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _changes(
    axis: Axes,
    table: pd.DataFrame,
    gap: str,
    scopes: Sequence[str],
    colours: dict[str, tuple[float, float, float]],
    *,
    names: bool,
) -> None:
    """A row per method; in it, a point with its interval for every scope."""
    rows = table.iloc[1:].to_dict("records")
    offsets = np.linspace(-WIDEST / 2, WIDEST / 2, len(scopes)) if len(scopes) > 1 else [0.0]
    for place, row in enumerate(rows):
        for scope, offset, marker in zip(scopes, offsets, MARKERS, strict=False):
            low, change, high = (
                row[f"{gap}.{scope}.{end}"] * 100 for end in ("low", "change", "high")
            )
            axis.plot(
                [low, high], [place + offset] * 2, color=colours[row["method"]], linewidth=1.4
            )
            axis.plot(change, place + offset, marker, color=colours[row["method"]], markersize=5)
    axis.axvline(0, color="0.4", linewidth=1)
    labels = [row["method"] for row in rows] if names else []
    axis.set_yticks(range(len(rows)), labels or [""] * len(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    title = gap.removesuffix("_difference").replace("_", " ")
    axis.set(xlabel="change from FP32 (points)", title=f"{title} gap")
