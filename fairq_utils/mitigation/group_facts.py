"""Groups in training: names, sizes, the reference's accuracy; losses by image and by group."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fairq_utils.data.faces import FaceData
from fairq_utils.errors import BadInput
from fairq_utils.given import each_name
from fairq_utils.metrics.rows import Groups
from fairq_utils.metrics.rows import groups as crossed
from fairq_utils.mitigation.sample import Sample
from fairq_utils.training.inference import Margins, device_of, evaluating
from fairq_utils.training.loop import predict


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
    """Cross-entropy of a batch, a scalar; as :mod:`fairq_utils.training.objectives`."""
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


@dataclass(frozen=True)
class GroupFacts:
    """The G groups of the images that are trained on.

    Attributes
    ----------
    names : G names, in the order of the group codes
    sizes : images of each
    accuracies : of the FP32 reference on each, fractions

    Raises
    ------
    BadInput
        One group only, or a group without an image, by name.

    Examples
    --------
    >>> GroupFacts(("female", "male"), (300, 100), (0.9, 0.8)).overall
    0.875
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    accuracies: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sizes) or len(self.names) != len(self.accuracies):
            raise BadInput(
                f"GroupFacts: {len(self.names)} names, {len(self.sizes)} sizes and "
                f"{len(self.accuracies)} accuracies; give one of each per group"
            )
        if len(self.names) < 2:
            raise BadInput(
                f"constraint: all images are of one group, {', '.join(self.names) or 'unnamed'}; a "
                "constraint compares at least two, so name another sensitive attribute"
            )
        for name, size in zip(self.names, self.sizes, strict=True):
            if size < 1:
                raise BadInput(
                    f"constraint: the group {name.replace('|', ' ')!r} has no image to train on; "
                    "add images of it, or leave an attribute out"
                )

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each group among all images, fractions that add up to 1."""
        return tuple(size / sum(self.sizes) for size in self.sizes)

    @property
    def overall(self) -> float:
        """Accuracy of the reference on all images."""
        hits = sum(a * n for a, n in zip(self.accuracies, self.sizes, strict=True))
        return hits / sum(self.sizes)


def facts(model: torch.nn.Module, sample: Sample) -> GroupFacts:
    """The groups of a sample and how well a float model serves them.

    Parameters
    ----------
    model : module with logits (N, 2), (N, 1) or (N,)
        Asked in evaluation mode, where it is; it stays as it was.
    sample : Sample
        The images that will be trained on.

    Raises
    ------
    BadInput
        A label other than 0 and 1, or what :class:`GroupFacts` refuses.
    ValueError
        Logits of another form.
    """
    labels = sample.labels.numpy()
    refuse_other_labels(labels, "sample")
    known = counted(sample.groups)
    device = device_of(model)
    with evaluating(model), torch.inference_mode():
        margins = Margins("logits")
        for images, _, _ in sample.batches():
            margins.add(model(images.to(device)), len(images))
    return _with_accuracies(known, margins.predictions() == labels, sample.groups)


def facts_of_faces(
    model: torch.nn.Module, data: FaceData, attributes: Sequence[str] = ("gender", "age")
) -> GroupFacts:
    """The same for a :class:`~fairq_utils.data.FaceData`, all attributes crossed."""
    groups = groups_of(data, attributes)
    with evaluating(model):
        margins = predict(model, data.images, device=device_of(model))
    right = (margins > 0) == (data.target == 1)
    return _with_accuracies(counted(groups), right, groups)


def groups_of(data: FaceData, attributes: Sequence[str]) -> Groups:
    """Groups of a data set, crossed; refuses a group without an image, and a single group."""
    attributes = each_name(attributes)
    for name in attributes:
        if name not in data.groups:
            raise BadInput(
                f"attributes: there is no {name!r} of these images; they have "
                f"{', '.join(map(str, data.groups))}"
            )
    groups = crossed(data.groups[list(attributes)])
    counted(groups)
    return groups


def refuse_other_labels(labels: NDArray[np.int64], what: str) -> None:
    """Refuse labels other than 0 and 1."""
    other = np.flatnonzero((labels != 0) & (labels != 1))
    if len(other):
        raise BadInput(
            f"{what}: image {other[0]} has the label {labels[other[0]]}; constraints are for two "
            "classes, so call them 0 and 1"
        )


def counted(groups: Groups) -> GroupFacts:
    """Names and sizes alone, refused as :class:`GroupFacts` does; all accuracies are NaN."""
    sizes = np.bincount(groups.codes, minlength=len(groups.names))
    return GroupFacts(groups.names, tuple(sizes.tolist()), (np.nan,) * len(sizes))


def _with_accuracies(known: GroupFacts, right: NDArray[np.bool_], groups: Groups) -> GroupFacts:
    hits = np.bincount(groups.codes, weights=right, minlength=len(known.names))
    return dataclasses.replace(known, accuracies=tuple((hits / np.array(known.sizes)).tolist()))
