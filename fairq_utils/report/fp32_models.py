"""Chapter on baselines: accuracy, gaps and sizes of the FP32 models."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.report.chapter import POINT, Chapter, glue
from fairq_utils.report.figures import COLOURS, finished, named_rows
from fairq_utils.report.rows import ODDS, PARITY, rows_of
from fairq_utils.report.tables import LABELS, html_table, intervals, named, title, wide_table
from fairq_utils.study.params.data import Data
from fairq_utils.training import architectures

# The published study's FP32 sizes (its README, Phase 1), in the megabytes it prints.
PUBLISHED_SIZES = {
    "resnet50": 89.89,
    "mobilenet_v2": 8.91,
    "efficientnet_b0": 15.43,
    "vit_small": 85.76,
    "squeezenet1_1": 2.83,
}
# Heads that the published figures may have been counted with: two classes, one logit, all forty
# attributes of CelebA, ImageNet's classes.
OUTPUTS = (2, 1, 40, 1000)


def accuracy_figure(frame: pd.DataFrame, bayes: float | None = None) -> Figure:
    """FP32 accuracy of each architecture with its interval; the best attainable as a line."""
    rows = frame[(frame.method == "fp32") & (frame.statistic == "accuracy")]
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
    named_rows(axis, rows.architecture.map(title))
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


def groups_figure(groups: pd.DataFrame) -> Figure:
    """Accuracy of every architecture and group, in percent.

    Parameters
    ----------
    groups : of :func:`fairq_utils.report.effects.by_group`
    """
    table = groups.pivot_table(index="architecture", columns="group", values="compared", sort=False)
    table = table.rename(index=title) * 100
    figure, axis = plt.subplots(figsize=(1.6 + 1.15 * table.shape[1], 0.9 + 0.42 * len(table)))
    sns.heatmap(
        table, annot=True, fmt=".1f", cmap="viridis", cbar_kws={"label": "accuracy (%)"}, ax=axis
    )
    axis.set(xlabel="", ylabel="")
    axis.grid(False)
    return finished(figure)


def groups_table(groups: pd.DataFrame) -> HTML:
    """Images and accuracy with its interval, by group and architecture.

    Parameters
    ----------
    groups : of :func:`fairq_utils.report.effects.by_group`
    """
    rows = named(groups).assign(cell=intervals(groups))
    return wide_table(rows, ["group", "images"], "architecture")


def gaps_table(frame: pd.DataFrame, scope: str, alike: pd.DataFrame) -> HTML:
    """Gaps with their intervals, one row per architecture, over what equal errors would give.

    Parameters
    ----------
    alike : of :func:`fairq_utils.report.effects.equal_errors`
    """
    left_out = ("accuracy", "worst_group_accuracy", "equal_opportunity_difference")
    rows = frame[(frame["scope"] == scope) & ~frame.statistic.isin(left_out)]
    cells = named(rows).assign(cell=intervals(rows))
    cells = pd.concat([cells, alike_rows(alike, scope, rows.statistic)])
    return wide_table(cells, ["architecture"], "statistic")


def alike_rows(alike: pd.DataFrame, scope: str, statistics: pd.Series) -> pd.DataFrame:
    """Cells of the row "if errors were alike": median, and the range of nine draws in ten.

    Parameters
    ----------
    alike : of :func:`fairq_utils.report.effects.equal_errors`
    """
    rows = alike[(alike["scope"] == scope) & alike.statistic.isin(statistics)]
    as_change = rows.assign(change=rows["median"])
    return pd.DataFrame(
        {
            "architecture": "if errors were alike",
            "configuration": "median [5 %, 95 %]",
            "statistic": rows.statistic.map(LABELS),
            "cell": intervals(as_change, "change"),
        }
    )


def sizes_table() -> HTML:
    """FP32 sizes of the five two-class models at 224 px, beside the published figures.

    The last column names the first way of counting that gives the published figure to its last
    digit; two classes with buffers in MiB is tried first.
    """
    rows = []
    for name, size in PUBLISHED_SIZES.items():
        counts = _float_sizes(name)
        published = f"{size:.2f}"
        fits = [way for way, counted in counts.items() if f"{counted:.2f}" == published]
        rows.append(
            {
                "architecture": title(name),
                "ours (MiB)": f"{counts['2 outputs, with buffers, MiB']:.2f}",
                "published": published,
                "the published figure is": fits[0] if fits else "none of the ways tried",
            }
        )
    return html_table(pd.DataFrame(rows))


def ceiling(chapter: Chapter) -> float | None:
    """The best accuracy that anybody could have; unknown of photographs."""
    study = chapter.study
    return study.population().bayes_accuracy if isinstance(study.params.data, Data) else None


def perfect_gap(chapter: Chapter) -> float:
    """Demographic parity gap of a classifier without errors, all attributes crossed."""
    target = chapter.group_counts().sum(axis=-1)
    perfect = np.zeros((*target.shape, 2))
    perfect[:, 0, 0], perfect[:, 1, 1] = target[:, 0], target[:, 1]
    return float(FAIRNESS[PARITY](perfect))


def glue_baselines(chapter: Chapter) -> None:
    """Glue the best and the weakest FP32 model, whether their intervals overlap, and the gaps."""
    frame = chapter.effects[chapter.effects.method == "fp32"]
    rows = rows_of(frame, "accuracy", chapter.crossed)
    best, worst = rows.loc[rows.compared.idxmax()], rows.loc[rows.compared.idxmin()]
    for name, row in (("best", best), ("worst", worst)):
        glue(name, title(row.architecture))
        glue(f"{name}_accuracy", row.compared)
    glue("models", len(rows))
    glue("overlapping", int((rows.compared_high >= best.compared_low).sum()))
    glue("seeds", int(rows.seeds.max()))
    for name, statistic in (("odds", ODDS), ("parity", PARITY)):
        gaps = rows_of(frame, statistic, chapter.crossed).compared
        glue(f"{name}_low", gaps.min() / POINT)
        glue(f"{name}_high", gaps.max() / POINT)
    most = ceiling(chapter)
    known = f"{most:.1%} is attainable" if most else "what is attainable is unknown"
    glue("ceiling", known)
    glue("perfect_gap", perfect_gap(chapter) / POINT)


def _float_sizes(name: str) -> dict[str, float]:
    """Size of an architecture by way of counting: outputs, buffers or not, MiB or 10^6 bytes."""
    found = {}
    for outputs in OUTPUTS:
        with torch.device("meta"):
            model = architectures.build(name, classes=outputs, image_size=224)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        head = f"{outputs} output{'s' if outputs > 1 else ''}"
        for (content, size), (unit, scale) in itertools.product(
            (("with buffers", weights + buffers), ("parameters alone", weights)),
            (("MiB", 2**20), ("10^6 bytes", 1e6)),
        ):
            found[f"{head}, {content}, {unit}"] = size / scale
    return found
