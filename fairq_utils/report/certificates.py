"""Certificates in the chapter on mitigation: how often they come, and how often they are wrong."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.report.chapter import POINT, glue
from fairq_utils.report.figures import finished
from fairq_utils.report.tables import shown


def glue_certificates(found: dict[str, Any]) -> pd.DataFrame:
    """Glue what the simulation of certificates found; returns its cells."""
    cells = pd.DataFrame(found["cells"])
    for column in ("harm", "wrong", "certified"):
        cells[column] = pd.to_numeric(cells[column])
    glue("certificate_draws", found["draws"])
    glue("certificate_delta", 100 * found["delta"])
    glue("certificate_limit", found["limit"] / POINT)
    glue("certificate_wrong_most", 100 * found["wrong_most"])
    glue("certificate_most", f"{int(cells.images.max()):,}")
    glue("certificate_candidates", int(cells.candidates.max()))
    glue("certificate_flips", 100 * found["needed_flips"])
    glue("certificate_chance", 100 * found["chance"])
    glue("certificate_needed", found["needed"]["betting"])
    glue("certificate_price", found["needed"]["betting"] / found["needed"]["normal"])
    return cells


EVIDENCE = {"betting": "bets, any size", "normal": "z-test, asymptotic"}


def certificate_figure(cells: pd.DataFrame, limit: float, delta: float) -> Figure:
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
