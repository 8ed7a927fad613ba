"""Certificates in the chapter on mitigation: how often they come, and how often they are wrong."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.report.chapter import POINT, glue
from fairq_utils.report.figures import BELOW, finished
from fairq_utils.report.tables import html_table, points

EVIDENCE = {"betting": "bets, any size", "normal": "z-test, asymptotic"}


def read_cells(found: dict[str, Any]) -> pd.DataFrame:
    """Read the cells of ``fairq bench certificate``; what a cell has not is NaN."""
    cells = pd.DataFrame(found["cells"])
    for column in ("change", "wrong", "certified"):
        cells[column] = pd.to_numeric(cells[column])
    return cells


def certificate_figure(cells: pd.DataFrame, limit: float, delta: float) -> Figure:
    """Shares of draws with a true and with a false certificate, over held-out images.

    Parameters
    ----------
    cells : of :func:`read_cells`
    """
    flips = sorted(set(cells.flips))
    figure, axes = plt.subplots(
        2, len(flips), figsize=(1.2 + 3.4 * len(flips), 5.2), sharex=True, squeeze=False
    )
    changes = sorted(set(cells[cells.candidates == 1].change.dropna()))
    colours = dict(zip(changes, sns.color_palette("crest", len(changes)), strict=True))
    for column, share in enumerate(flips):
        part = cells[cells.flips == share]
        for evidence, style in zip(EVIDENCE, ("o-", "s--"), strict=True):
            rows = part[part.evidence == evidence]
            for place, name in ((0, "certified"), (1, "wrong")):
                axis = axes[place, column]
                for change in changes:
                    line = rows[(rows.change == change) & rows[name].notna()]
                    shares = 100 * line[name]
                    if len(line):
                        axis.plot(line.images, shares, style, color=colours[change], markersize=4)
                several = rows[(rows.candidates > 1) & rows[name].notna()]
                axis.plot(several.images, 100 * several[name], style, color="0.4", markersize=4)
        axes[0, column].set_title(f"{100 * share:.0f} % of predictions flip", fontsize=10)
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
        *(plt.Line2D([], [], color=colours[change], marker="o") for change in changes),
        plt.Line2D([], [], color="0.4", marker="o"),
        plt.Line2D([], [], color="0.2", linestyle="-"),
        plt.Line2D([], [], color="0.2", linestyle="--"),
        plt.Line2D([], [], color="firebrick"),
    ]
    labels = [
        *(f"true change {change / limit:.1f} times the limit" for change in changes),
        "several in sequence",
        *EVIDENCE.values(),
        "allowed",
    ]
    figure.tight_layout()
    figure.legend(handles, labels, ncol=3, **BELOW)
    return finished(figure)


def certificate_table(cells: pd.DataFrame) -> HTML:
    """Shares of draws with a true and with a false certificate, in percent.

    Parameters
    ----------
    cells : of :func:`read_cells`
    """
    truth = ["several in sequence" if c != c else f"{c / POINT:.1f} points" for c in cells.change]
    return html_table(
        pd.DataFrame(
            {
                "evidence": cells.evidence.map(EVIDENCE),
                "flips (%)": points(cells.flips, ".0f"),
                "held-out images": cells.images,
                "true change of the gap": truth,
                "certified rightly (%)": points(cells.certified),
                "certified wrongly (%)": points(cells.wrong),
            }
        )
    )


def glue_certificates(found: dict[str, Any]) -> None:
    """Glue the results of ``fairq bench certificate``."""
    cells = read_cells(found)
    glue("certificate_draws", found["draws"])
    glue("certificate_delta", 100 * found["delta"])
    glue("certificate_limit", found["limit"] / POINT)
    glue("certificate_wrong_most", 100 * found["wrong_most"])
    glue("certificate_candidates", int(cells.candidates.max()))
    glue("certificate_flips", 100 * found["needed_flips"])
    glue("certificate_chance", 100 * found["chance"])
    glue("certificate_needed", found["needed"]["betting"])
    glue("certificate_price", found["needed"]["betting"] / found["needed"]["normal"])
