"""Chapter on the population: rendered faces, their make-up, and what a network sees of groups."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils.data.faces import FaceData
from fairq_utils.data.loading import RENDERER
from fairq_utils.data.population import CELEBA_JOINT
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.report.chapter import POINT, Chapter, glue
from fairq_utils.report.figures import finished
from fairq_utils.study.study import Study
from fairq_utils.training import architectures, loop, objectives

PROBE_IMAGES = 6000  # training images of the probe; fewer where the study has fewer
PROBE_EPOCHS = 4


def faces_figure(data: FaceData, rows: int = 4, columns: int = 10, titles: bool = True) -> Figure:
    """The first images of a data set, with their demographics."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * 0.95, rows * (1.32 if titles else 1.0)), squeeze=False
    )
    for i, axis in enumerate(axes.ravel()):
        axis.axis("off")
        if i < len(data):
            axis.imshow(data.images[i].permute(1, 2, 0).numpy(), interpolation="bicubic")
            if titles:
                group = [str(value) for value in data.groups.iloc[i]]
                label = data.meta["classes"][data.target[i]]
                lines = [", ".join(group[:2]), *group[2:], label]
                axis.set_title("\n".join(lines), fontsize=6)
    figure.subplots_adjust(wspace=0.05, hspace=0.5 if titles else 0.05)
    return finished(figure)


def smile_figure(data: FaceData, columns: int = 12) -> Figure:
    """Faces ordered by the true strength of their smile, with that strength."""
    if data.factors is None:
        raise ValueError("smile_figure: these images come without the coefficients that made them")
    smile = data.factors["smile"].to_numpy()
    rows = np.array([np.abs(smile - s).argmin() for s in np.linspace(0.03, 0.97, columns)])
    figure, axes = plt.subplots(1, columns, figsize=(columns * 0.95, 1.3))
    for row, axis in zip(rows, axes, strict=True):
        axis.imshow(data.images[row].permute(1, 2, 0).numpy(), interpolation="bicubic")
        axis.set_title(f"{smile[row]:.2f}", fontsize=8)
        axis.axis("off")
    figure.subplots_adjust(wspace=0.05)
    return finished(figure)


def composition_figure(data: FaceData) -> Figure:
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
    right.set(ylabel=f"{data.meta['classes'][1]} (%)", ylim=(0, 100))
    right.margins(x=0.2)
    right.tick_params(axis="x", rotation=20)
    figure.tight_layout()
    return finished(figure)


def recovery(chapter: Chapter) -> pd.DataFrame:
    """:func:`recover` on the study's images, computed once."""
    study = chapter.study
    count = min(PROBE_IMAGES, chapter.count("train"))
    recipe = {
        "data": study.described(("train", "test")),
        "images": count,
        "epochs": PROBE_EPOCHS,
        "code": code_version(*RENDERER, "fairq_utils.report.population"),
    }

    def compute() -> pd.DataFrame:
        data = chapter.faces()
        rows = [
            np.flatnonzero(data.split == split)[:most]
            for split, most in (("train", count), ("test", None))
        ]
        small = data.take(np.concatenate(rows))
        return recover(small, epochs=PROBE_EPOCHS, device=study.device)

    return chapter.kept(f"probe-{fingerprint(recipe)}", compute)


def recover(data: FaceData, *, epochs: int = 4, seed: int = 0, device: str = "cpu") -> pd.DataFrame:
    """Train a small network to tell the sensitive attributes, and count its predictions on test.

    Parameters
    ----------
    data : FaceData
        With splits ``train`` and ``test``.

    Returns
    -------
    DataFrame
        ``attribute``, ``true``, ``predicted``, ``images``: one confusion table per attribute.
    """
    train, test = data.subset("train"), data.subset("test")
    torch.manual_seed(seed)
    model = _SharedTrunk([len(train.groups[c].cat.categories) for c in train.groups])
    recipe = loop.Recipe(epochs=epochs, learning_rate=3e-3, batch_size=32)
    loop.fit(model, train, recipe, _AllAttributes(train), seed=seed, device=device)
    predictions = _predictions(model, test, device)
    tables = []
    for i, attribute in enumerate(test.groups):
        names = test.groups[attribute].cat.categories
        table = pd.DataFrame(
            {
                "attribute": attribute,
                "true": test.groups[attribute].astype(str),
                "predicted": np.asarray(names)[predictions[:, i]],
            }
        )
        tables.append(table.value_counts().rename("images").reset_index())
    return pd.concat(tables, ignore_index=True)


def recovery_figure(confusion: pd.DataFrame) -> Figure:
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


def glue_population(study: Chapter, rendered: Chapter) -> None:
    """Glue how many subjects there are, of which groups, and how hard the question is.

    Parameters
    ----------
    study, rendered : the study, and the study of rendered people that this chapter shows
    """
    glue("study", study.params.name)
    glue("faces", study.count("train"))
    glue("tested", study.count("test"))
    glue("seeds", len(study.params.training.seeds))
    population = rendered.study.population()
    glue("difficulty", population.difficulty)
    glue("bayes", population.bayes_accuracy)
    glue("celeba", sum(CELEBA_JOINT.values()))
    # Of the population that figures are about, whatever the test images are.
    joint = rendered.study.population("test").joint
    share = pd.Series(joint, index=pd.MultiIndex.from_tuples([cell.split("|") for cell in joint]))
    share = share / share.sum()
    glue("old_women", float(share["female", "old"].sum()))
    by_gender = share.groupby(level=[0, 2]).sum().unstack()
    rates = by_gender["1"] / by_gender.sum(axis=1)
    glue("perfect_gap", abs(rates["female"] - rates["male"]) / POINT)
    glue("test_design", design(rendered.study))


def design(study: Study) -> str:
    """How many test images there are, of whom, and how figures weigh them, in a sentence."""
    who, images = study.population("test"), len(study.people("test")[0])
    if not who.even:
        return f"The {images:,} test images have that make-up too."
    each = images // len(who.turns)
    return (
        f"The {images:,} test images do not have that make-up: they are {each:,} of each "
        f"{' and '.join(who.even)}, so that small groups are measured as well as large ones, and "
        "figures of the whole population weigh them by its make-up."
    )


def glue_recovery(confusion: pd.DataFrame) -> None:
    """Glue the share of test images whose group was told, by attribute."""
    right = confusion[confusion.true == confusion.predicted].groupby("attribute").images.sum()
    for attribute, share in (right / confusion.groupby("attribute").images.sum()).items():
        glue(str(attribute), share)


class _SharedTrunk(nn.Module):
    """One small convolutional trunk, one linear head per attribute; logits side by side."""

    def __init__(self, classes: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (24, 48, 96, 192):
            layers += [
                nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, sum(classes))
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(x))
        return logits


class _AllAttributes(objectives.Classification):
    """Sum of the cross-entropies of all attributes."""

    def __init__(self, data: FaceData) -> None:
        super().__init__(data)
        codes = np.stack([data.groups[c].cat.codes for c in data.groups], axis=1)
        self.register_buffer("codes", torch.from_numpy(codes.astype(np.int64)))

    def forward(self, model: nn.Module, images: Tensor, rows: Tensor, flipped: Tensor) -> Tensor:
        logits = model(images).split(model.classes, dim=1)
        codes: Tensor = self.codes  # type: ignore[assignment]
        losses = [
            nn.functional.cross_entropy(part.float(), codes[rows, i])
            for i, part in enumerate(logits)
        ]
        return torch.stack(losses).sum()


def _predictions(model: _SharedTrunk, data: FaceData, device: str) -> NDArray[np.int64]:
    parts = []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(data), 256):
            logits = model(architectures.normalize(data.images[start : start + 256], device))
            split = logits.split(model.classes, dim=1)
            parts.append(torch.stack([s.argmax(1) for s in split], dim=1).cpu())
    return torch.cat(parts).numpy()
