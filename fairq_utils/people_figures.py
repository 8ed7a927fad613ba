"""Pictures of who is in a study: faces, their make-up, and what can be seen of it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fairq_utils.data.faces import FaceData
from fairq_utils.figures import finished


def face_sheet(data: FaceData, rows: int = 4, columns: int = 10, titles: bool = True) -> Figure:
    """The first pictures of a data set, with their demographics."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * 0.95, rows * (1.32 if titles else 1.0)), squeeze=False
    )
    for i, axis in enumerate(axes.ravel()):
        axis.axis("off")
        if i < len(data):
            axis.imshow(data.images[i].permute(1, 2, 0).numpy(), interpolation="bicubic")
            if titles:
                group = [str(value) for value in data.groups.iloc[i]]
                answer = data.meta["answers"][data.target[i]]
                lines = [", ".join(group[:2]), *group[2:], answer]
                axis.set_title("\n".join(lines), fontsize=6)
    figure.subplots_adjust(wspace=0.05, hspace=0.5 if titles else 0.05)
    return finished(figure)


def smile_scale(data: FaceData, columns: int = 12) -> Figure:
    """Faces ordered by the true strength of their smile, with that strength."""
    if data.factors is None:
        raise ValueError("smile_scale: these images come without the coefficients that made them")
    smile = data.factors["smile"].to_numpy()
    rows = np.array([np.abs(smile - s).argmin() for s in np.linspace(0.03, 0.97, columns)])
    figure, axes = plt.subplots(1, columns, figsize=(columns * 0.95, 1.3))
    for row, axis in zip(rows, axes, strict=True):
        axis.imshow(data.images[row].permute(1, 2, 0).numpy(), interpolation="bicubic")
        axis.set_title(f"{smile[row]:.2f}", fontsize=8)
        axis.axis("off")
    figure.subplots_adjust(wspace=0.05)
    return finished(figure)


def composition(data: FaceData) -> Figure:
    """Images and share of the target per gender x age group, by ancestry."""
    table = data.groups.assign(target=data.target)
    table["group"] = table.gender.astype(str) + " " + table.age.astype(str)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    counts = table.groupby(["group", "race"], observed=True).size().unstack()
    counts.plot.bar(stacked=True, ax=left, color=sns.color_palette("crest", 3), width=0.7)
    left.set(xlabel="", ylabel="images")
    left.tick_params(axis="x", rotation=20)
    left.legend(title="")
    rates = table.groupby("group").target.agg(["mean", "size"])
    error = 1.96 * np.sqrt(rates["mean"] * (1 - rates["mean"]) / rates["size"])
    right.errorbar(
        rates.index, rates["mean"] * 100, yerr=error * 100, fmt="o", color="0.25", capsize=3
    )
    right.set(ylabel=f"{data.meta['answers'][1]} (%)", ylim=(0, 100))
    right.margins(x=0.2)
    right.tick_params(axis="x", rotation=20)
    figure.tight_layout()
    return finished(figure)


def recovery(confusion: pd.DataFrame) -> Figure:
    """Confusion of each sensitive attribute by a small network, in percent of the true group."""
    names = list(dict.fromkeys(confusion.attribute))
    figure, axes = plt.subplots(1, len(names), figsize=(3.1 * len(names), 2.8))
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        part = confusion[confusion.attribute == name]
        table = part.pivot_table(
            index="true", columns="predicted", values="images", aggfunc="sum", fill_value=0
        )
        share = table.div(table.sum(axis=1), axis=0) * 100
        sns.heatmap(
            share, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, cbar=False, ax=axis
        )
        axis.set_title(name)
        axis.grid(False)
    figure.tight_layout()
    return finished(figure)
