"""Chapter on the analysis: accuracy, gap and size together."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.report import effects
from fairq_utils.report.chapter import Chapter, glue
from fairq_utils.report.figures import BESIDE, COLOURS, Interactive, finished
from fairq_utils.report.fp32_models import alike_rows
from fairq_utils.report.rows import PARITY
from fairq_utils.report.tables import (
    floors,
    html_table,
    intervals,
    labels,
    named,
    title,
    wide_table,
)


def frontier(chapter: Chapter) -> pd.DataFrame:
    """:func:`fairq_utils.report.effects.frontier` of a study, all attributes crossed."""
    return effects.frontier(chapter.effects, effects.sizes(chapter.runs), chapter.crossed)


def pareto_figure(frontier: pd.DataFrame) -> Figure:
    """Accuracy against gap; area is size, filled where no configuration beats it."""
    figure, axis = plt.subplots(figsize=(7.6, 4.6))
    for model, part in frontier.groupby("architecture", sort=False):
        for on_front, rows in part.groupby("pareto"):
            axis.scatter(
                rows[PARITY] * 100,
                rows.accuracy * 100,
                s=12 + 5 * rows.mebibytes,
                facecolor=COLOURS[model] if on_front else "none",
                edgecolor=COLOURS[model],
                alpha=0.85,
            )
        axis.scatter([], [], color=COLOURS[model], label=title(model))
    axis.set(xlabel="demographic parity gap (points)", ylabel="test accuracy (%)")
    axis.legend(**BESIDE)
    return finished(figure)


def interactive_pareto_figure(frontier: pd.DataFrame) -> Interactive:
    """Draw :func:`pareto_figure` with every configuration's name under the pointer."""
    figure = go.Figure()
    frontier = frontier.assign(configuration=labels(frontier))
    for model, part in frontier.groupby("architecture", sort=False):
        red, green, blue = (int(255 * c) for c in COLOURS[model])
        figure.add_scatter(
            x=(part[PARITY] * 100).round(2),
            y=(part.accuracy * 100).round(2),
            mode="markers",
            name=title(str(model)),
            marker={
                "size": 8 + 2 * np.sqrt(part.mebibytes),
                "color": f"rgb({red},{green},{blue})",
                "symbol": ["circle" if p else "circle-open" for p in part.pareto],
            },
            customdata=np.stack([part.configuration, part.mebibytes.round(2).astype(str)], axis=1),
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
    return Interactive(figure, "pareto", alt)


def pareto_table(frontier: pd.DataFrame) -> HTML:
    """The Pareto-optimal configurations, smallest first."""
    rows = frontier[frontier.pareto].sort_values("mebibytes")
    return html_table(
        pd.DataFrame(
            {
                "architecture": rows.architecture.map(title),
                "configuration": labels(rows),
                "accuracy (%)": intervals(rows, "accuracy"),
                "parity gap (points)": intervals(rows, PARITY),
                "floor of its change": floors(rows[f"{PARITY}_floor"]),
                "size (MiB)": [f"{v:.2f}" for v in rows.mebibytes],
            }
        )
    )


def groups_table(frame: pd.DataFrame) -> HTML:
    """Accuracy of every group by configuration, averaged over architectures, in percent."""
    rows = frame[frame.sampler.isin(["", "random"]) & (frame.method != "dynamic")]
    rows = rows.assign(configuration=labels(rows))
    wide = rows.pivot_table(
        index=["group", "images"], columns="configuration", values="compared", sort=False
    )
    return html_table((wide * 100).map("{:.1f}".format).reset_index().rename_axis(columns=None))


def statistics_table(frame: pd.DataFrame, scope: str, alike: pd.DataFrame) -> HTML:
    """Every configuration and metric with its interval, over what equal errors would give."""
    rows = frame[frame["scope"] == scope]
    cells = named(rows).assign(cell=intervals(rows), configuration=labels(rows))
    cells = pd.concat([cells, alike_rows(alike, scope, rows.statistic)])
    return wide_table(cells, ["architecture", "configuration"], "statistic")


def glue_frontier(frontier: pd.DataFrame) -> None:
    """Glue how many configurations there are, and how many are on the front."""
    glue("front", int(frontier.pareto.sum()))
    glue("configurations", len(frontier))
