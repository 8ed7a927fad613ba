"""Cross-entropy of a batch, image by image and group by group, and the numbers that steer it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fairq_utils.faults import BadInput


def two_logits(logits: Tensor) -> Tensor:
    """Logits as float32 (B, 2): one logit x per image has the odds of (0, x).

    Raises
    ------
    BadInput
        Neither (B, 2) nor (B, 1) nor (B,).

    Examples
    --------
    >>> two_logits(torch.tensor([1.5, -2.0]))
    tensor([[ 0.0000,  1.5000],
            [ 0.0000, -2.0000]])
    """
    if logits.ndim == 2 and logits.shape[1] == 2:
        return logits.float()
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        one = logits.reshape(-1).float()
        return torch.stack([torch.zeros_like(one), one], dim=1)
    raise BadInput(
        f"constraint: the model returned logits of shape {tuple(logits.shape)}; a constraint takes "
        "two classes, (B, 2), (B, 1) or (B,)"
    )


def mean_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of a batch, a scalar; see :class:`fairq_utils.objectives.Classification`."""
    return F.cross_entropy(two_logits(logits), labels.long(), label_smoothing=label_smoothing)


def image_losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each image, (B,)."""
    return F.cross_entropy(
        two_logits(logits), labels.long(), reduction="none", label_smoothing=label_smoothing
    )


def group_means(values: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean of each group and its images, (G,) both; the mean of a group without images is 0.

    Examples
    --------
    >>> group_means(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 2]), 3)
    (tensor([1., 0., 4.]), tensor([1, 0, 2]))
    """
    members = F.one_hot(groups.long(), count)
    images = members.sum(dim=0)
    # A product and a sum, because autocast would round a matrix product to bfloat16.
    return (values[:, None] * members).sum(dim=0) / images.clamp(min=1), images


def refuse_number(what: str, value: float, *, positive: bool = False) -> None:
    """Refuse what is not finite or below 0 (or 0, with ``positive``)."""
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        least = "greater than 0" if positive else "at least 0"
        raise BadInput(f"{what}: {value} is not a finite number {least}")


def refuse_smoothing(value: float) -> None:
    """Refuse a label smoothing outside [0, 1)."""
    if not 0 <= value < 1:
        raise BadInput(f"label_smoothing: {value} is not a share of the target from 0 to below 1")
