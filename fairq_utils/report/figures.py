"""Colours, panels, and Plotly figures that stay the same.

Colours tell architectures apart (seaborn's colour-blind palette), and mean the same everywhere.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fairq_utils.report.rows import quantized_rows
from fairq_utils.report.tables import LABELS, labels, title
from fairq_utils.training.zoo import ARCHITECTURES


class _Colours(dict[str, tuple[float, float, float]]):
    """Colours of architectures by name; one without an entry has a hue that its name decides."""

    def __missing__(self, name: str) -> tuple[float, float, float]:
        hue = zlib.crc32(name.encode()) / 2**32
        self[name] = sns.husl_palette(1, h=hue)[0]
        return self[name]


COLOURS = _Colours(zip(ARCHITECTURES, sns.color_palette("colorblind"), strict=False))
BESIDE: dict[str, Any] = {"fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
BELOW: dict[str, Any] = {"fontsize": 8, "loc": "upper center", "bbox_to_anchor": (0.5, 0)}
HEIGHT = 420  # pixels of a Plotly figure whose layout names no height
PLOTLY = {
    "displaylogo": False,
    "responsive": True,
    # One click on this button would send the figure's data to Plotly's server.
    "modeBarButtonsToRemove": ["sendChartToCloud"],
}


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


def named_rows(axis: Axes, names: Iterable[str], **options: Any) -> None:
    """Name the rows of a chart, the first one on top."""
    labels = list(names)
    axis.set_yticks(range(len(labels)), labels, **options)
    axis.set_ylim(len(labels) - 0.5, -0.5)


def draw_change(axis: Axes, y: float, row: Any, height: float) -> None:
    """Draw a change with its interval in points, over its noise floor.

    Parameters
    ----------
    row : ``architecture``, ``change``, ``low``, ``high``, ``floor``
    height : of the bar that is the floor
    """
    colour = COLOURS[row.architecture]
    axis.barh(y, 200 * row.floor, height, -100 * row.floor, color="0.87", zorder=0)
    axis.plot([row.low * 100, row.high * 100], [y, y], color=colour, linewidth=1.5)
    axis.plot(row.change * 100, y, "o", markersize=4, color=colour)


def legend_of(axis: Axes, models: Iterable[str], marker: str, bar: str | None = None) -> None:
    """Legend beside the axes: a colour per architecture, and the meaning of a grey bar."""
    for model in models:
        axis.plot([], [], marker, color=COLOURS[model], label=title(model))
    if bar is not None:
        axis.barh(0, 0, color="0.87", label=bar)
    axis.legend(**BESIDE)


def heatmap_figure(frame: pd.DataFrame, statistic: str, scope: str) -> Figure:
    """Change of one statistic from FP32, in points: configurations by architectures.

    Red is worse: a lower accuracy, a wider gap.
    """
    rows = quantized_rows(frame, statistic, scope)
    rows = rows.assign(configuration=labels(rows))
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


@dataclass(frozen=True)
class Interactive:
    """A Plotly figure under a fixed name; the last value of a notebook cell.

    Parameters
    ----------
    figure : plotly figure
    name : str
        Unique on its page: lower-case letters, digits and hyphens. It is the figure's id, so that
        executing a chapter twice writes the same notebook, and its anchor.
    alt : str
        What the figure shows, for screen readers.
    """

    figure: go.Figure
    name: str
    alt: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.name):
            raise ValueError(
                f"Interactive: name: {self.name!r} is not made of lower-case letters, digits and "
                "hyphens, beginning with a letter"
            )

    def html(self) -> str:
        """The figure as an HTML fragment that expects Plotly to be on the page."""
        fragment: str = self.figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            div_id=self.name,
            default_width="100%",
            default_height=f"{self.figure.layout.height or HEIGHT}px",
            config=PLOTLY,
        )
        # Not role="img", which would hide the figure's buttons.
        return f'<div role="figure" aria-label="{escape(self.alt)}">{fragment}</div>'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": f"<figure {self.name}>"}
