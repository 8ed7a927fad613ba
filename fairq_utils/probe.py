"""Can the demographics be seen? A small network recovers each sensitive attribute.

Fairness can only be studied where group membership shows in the pictures: a population whose
gender, age and ancestry left no trace could not be treated unequally.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils import models, objectives, training
from fairq_utils.data.faces import FaceData


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


def recover(data: FaceData, *, epochs: int = 4, seed: int = 0, device: str = "cpu") -> pd.DataFrame:
    """Train a small network to tell the sensitive attributes, and count its answers on test.

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
    recipe = training.Recipe(epochs=epochs, learning_rate=3e-3, batch_size=32)
    training.fit(model, train, recipe, _AllAttributes(train), seed=seed, device=device)
    answers = _answers(model, test, device)
    tables = []
    for i, attribute in enumerate(test.groups):
        names = test.groups[attribute].cat.categories
        table = pd.DataFrame(
            {
                "attribute": attribute,
                "true": test.groups[attribute].astype(str),
                "predicted": np.asarray(names)[answers[:, i]],
            }
        )
        tables.append(table.value_counts().rename("images").reset_index())
    return pd.concat(tables, ignore_index=True)


def _answers(model: _SharedTrunk, data: FaceData, device: str) -> NDArray[np.int64]:
    parts = []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(data), 256):
            logits = model(models.normalize(data.images[start : start + 256], device))
            split = logits.split(model.classes, dim=1)
            parts.append(torch.stack([s.argmax(1) for s in split], dim=1).cpu())
    return torch.cat(parts).numpy()


def reduced(data: FaceData, train: int, test: int) -> FaceData:
    """The first images of the train and test splits, as many as asked for."""
    rows = np.concatenate(
        [np.flatnonzero(data.split == s)[:n] for s, n in (("train", train), ("test", test))]
    )
    return data.take(rows)
