"""Objectives of an FP32 training: classification, alone or beside the coefficients of faces."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.data.faces import FaceData
from fairq_utils.training.architectures import classifier


class Classification(nn.Module):
    """Cross-entropy on the target."""

    def __init__(self, data: FaceData, label_smoothing: float = 0.0) -> None:
        super().__init__()
        target = torch.from_numpy(data.target.astype(np.int64))
        self.register_buffer("target", target, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, model: nn.Module, images: Tensor, rows: Tensor, flipped: Tensor) -> Tensor:
        """Loss of these images, a scalar; ``rows`` (B,) index the training split."""
        return self.of_logits(model(images), rows)

    def of_logits(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy of logits (B, 2), a scalar."""
        target: Tensor = self.target  # type: ignore[assignment]
        return F.cross_entropy(logits.float(), target[rows], label_smoothing=self.label_smoothing)


class WithFactors(Classification):
    """Cross-entropy plus regression of the renderer's coefficients from the same features.

    A linear layer predicts the standardised coefficients from what enters the classifier
    (multi-task learning, Caruana 1997). It stands in for pre-training where no weights can be
    fetched, and is thrown away after training. In a mirrored image left and right change
    places, so its coefficients do too.
    """

    def __init__(
        self, data: FaceData, model: nn.Module, weight: float, label_smoothing: float = 0.0
    ) -> None:
        if data.factors is None:
            raise ValueError(
                "training.auxiliary: these images come without the coefficients that made them; "
                "set training.auxiliary: 0"
            )
        super().__init__(data, label_smoothing)
        self.weight = weight
        straight, mirrored = _standardised(data.factors)
        self.register_buffer("factors", torch.stack([straight, mirrored]), persistent=False)
        self.features: Tensor | None = None
        layer = classifier(model)
        width = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        self.head = nn.Linear(width, straight.shape[1])
        nn.init.zeros_(self.head.weight)
        layer.register_forward_pre_hook(self._keep)
        self.hook = next(reversed(layer._forward_pre_hooks))
        self.layer = [layer]  # in a list: not a submodule of the objective

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        self.features = x.mean(dim=(2, 3)) if x.ndim == 4 else x

    def close(self) -> None:
        """Take the hook off the model."""
        self.layer[0]._forward_pre_hooks.pop(self.hook, None)

    def forward(self, model: nn.Module, images: Tensor, rows: Tensor, flipped: Tensor) -> Tensor:
        """Classification loss + weight x mean squared error of the coefficients (unit variance)."""
        loss = super().forward(model, images, rows, flipped)
        if self.features is None:
            raise RuntimeError("the classifier was not called in this forward pass")
        factors: Tensor = self.factors  # type: ignore[assignment]
        error = F.mse_loss(self.head(self.features).float(), factors[flipped.long(), rows])
        return loss + self.weight * error


def _standardised(factors: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """Coefficients of unit variance (N, K), and those of the mirrored images."""
    values = factors.to_numpy(np.float64)
    names = list(factors.columns)
    swap = {"Left": "Right", "Right": "Left"}
    order = []
    for name in names:
        side = next((s for s in swap if name.endswith(s)), None)
        order.append(
            names.index(name.removesuffix(side) + swap[side]) if side else names.index(name)
        )
    mirrored = values[:, order]
    for name in ("yaw", "roll"):
        if name in names:
            mirrored[:, names.index(name)] *= -1
    scale = np.maximum(values.std(axis=0), 1e-6)
    centre = values.mean(axis=0)
    return (
        torch.from_numpy(((values - centre) / scale).astype(np.float32)),
        torch.from_numpy(((mirrored - centre) / scale).astype(np.float32)),
    )
