"""Images with labels and groups, and the logits of a model on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairq_utils.data.batches import Batch, gather, whole_labels
from fairq_utils.errors import BadInput
from fairq_utils.metrics import rows
from fairq_utils.metrics.rows import Features, Groups
from fairq_utils.training.architectures import Inputs
from fairq_utils.training.inference import device_of

CHUNK = 64  # images per forward pass


@dataclass(frozen=True)
class Sample:
    """N images, each with a label and a group.

    Attributes
    ----------
    images : Tensor (N, ...), or Normalized
        As the model takes them; read in parts, the whole of a large collection need not fit.
    labels : int64 tensor (N,), on the CPU
    groups : names of the groups and the code of each image; all attributes crossed
    """

    images: Inputs
    labels: Tensor
    groups: Groups

    def __len__(self) -> int:
        return len(self.images)

    @property
    def codes(self) -> Tensor:
        """Group of each image, int64 (N,)."""
        return torch.from_numpy(self.groups.codes)

    @property
    def present(self) -> list[int]:
        """Codes of the groups that have an image, ascending."""
        return [int(code) for code in np.unique(self.groups.codes)]

    @property
    def sizes(self) -> list[int]:
        """Images of each group that has one, in the order of :attr:`present`."""
        return [int((self.groups.codes == code).sum()) for code in self.present]

    def name(self, code: int) -> str:
        """A group as it is shown: ``female old``."""
        return self.groups.names[code].replace("|", " ")

    def take(self, at: Sequence[int] | np.ndarray[Any, Any]) -> Sample:
        """The same at these rows."""
        place = torch.as_tensor(np.asarray(at, np.int64))
        groups = Groups(
            self.groups.attributes, self.groups.names, self.groups.codes[np.asarray(at, np.int64)]
        )
        held = self.images
        images = held[place] if isinstance(held, Tensor) else held.take(place)
        return Sample(images, self.labels[place], groups)

    def members(self, code: int) -> Sample:
        """The images of one group."""
        return self.take(np.flatnonzero(self.groups.codes == code))

    def batches(self, size: int = CHUNK) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels and group codes, ``size`` images at a time, in order."""
        yield from zip(
            self.images.split(size), self.labels.split(size), self.codes.split(size), strict=True
        )


def as_sample(
    images: Inputs,
    labels: Any,
    groups: Features,
    *,
    least: int = 1,
    what: str = "sample",
) -> Sample:
    """Images, labels and sensitive attributes as one :class:`Sample`, checked.

    Parameters
    ----------
    images : Tensor (N, ...), or Normalized
    labels : 0, 1, ... (N,)
    groups : DataFrame, mapping of name to values, Series, or array (N,) or (N, K)
        Several attributes are crossed. The groups are the values that occur, or all categories of
        a categorical column.
    least : int
        Images that every group must have.
    what : str
        Name of the images, for errors.

    Raises
    ------
    BadInput
        Another number of labels; a group with fewer than ``least`` images, by name; a row without
        a value.

    Examples
    --------
    >>> found = as_sample(torch.zeros(4, 3), [0, 1, 0, 1], {"gender": ["f", "f", "m", "m"]})
    >>> found.groups.names, found.present
    (('f', 'm'), [0, 1])
    """
    truth = whole_labels(labels, len(images), what).cpu()
    try:
        found = rows.groups(groups)
    except ValueError as error:
        raise BadInput(f"{what}: {error}") from None
    if len(found.codes) != len(images):
        raise BadInput(
            f"{what}: groups of {len(found.codes)} images, but there are {len(images)} images"
        )
    refuse_few(found, least, what)
    return Sample(images, truth, found)


def of_batch(
    batch: Batch, attributes: Sequence[str], *, least: int = 1, what: str = "sample"
) -> Sample:
    """A batch as a :class:`Sample`, by some of its attributes (all if none is named).

    Raises
    ------
    BadInput
        As :func:`sample`; no labels, no groups, or an attribute that is not there.
    """
    if batch.labels is None or batch.groups is None:
        lacking = "labels" if batch.labels is None else "groups"
        raise BadInput(
            f"{what} has no {lacking}; let every batch be (images, labels, groups), with groups a "
            "mapping of attribute to values"
        )
    names = list(attributes) or list(batch.groups)
    for name in names:
        if name not in batch.groups:
            raise BadInput(
                f"{what}: there is no attribute {name!r}; the batches have "
                f"{', '.join(batch.groups)}"
            )
    groups = {name: batch.groups[name] for name in names}
    return as_sample(batch.images, batch.labels, groups, least=least, what=what)


def gathered(
    loader: Iterable[Any],
    attributes: Sequence[str],
    most: int,
    *,
    least: int = 1,
    what: str = "loader",
) -> Sample:
    """The first images of a loader as a :class:`Sample`, ``most`` of them or all there are.

    Raises
    ------
    BadInput
        See :func:`of_batch`.
    """
    return of_batch(gather(loader, most, what, attributes), attributes, least=least, what=what)


def refuse_few(groups: Groups, least: int, what: str) -> None:
    """Refuse groups of fewer than ``least`` images, by name."""
    counts = np.bincount(groups.codes, minlength=len(groups.names))
    for name, count in zip(groups.names, counts, strict=True):
        if count < least:
            shown = name.replace("|", " ")
            raise BadInput(
                f"{what}: the group {shown!r} of {', '.join(groups.attributes)} has {count} "
                f"images where {least} are needed; add images of it, or leave an attribute out"
            )


def logits_of(model: nn.Module, sample: Sample, what: str) -> Tensor:
    """Logits of every image, float64 (N, C) on the processor; C is 1 for one logit per image.

    Raises
    ------
    BadInput
        Outputs that are not one row of logits per image, or not finite.
    """
    device = device_of(model)
    with torch.no_grad():
        found = [checked(model(x.to(device).clone()), len(x), what) for x, _, _ in sample.batches()]
    logits = torch.cat(found).double().cpu()
    if not logits.isfinite().all():
        row = int((~logits.isfinite()).any(dim=1).nonzero()[0])
        raise BadInput(f"{what}: the model's output for image {row} of the sample is not finite")
    return logits


def checked(outputs: object, rows: int, what: str) -> Tensor:
    """Logits as (rows, C).

    Raises
    ------
    BadInput
        Outputs of another form.

    Examples
    --------
    >>> checked(torch.zeros(3), 3, "example").shape
    torch.Size([3, 1])
    """
    if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2) or len(outputs) != rows:
        shape = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs)
        raise BadInput(
            f"{what}: the model returns {shape} for {rows} images; logits must be ({rows}, "
            f"classes) or ({rows},)"
        )
    return outputs.reshape(rows, -1)


def chosen(logits: Tensor) -> Tensor:
    """The class of each image, int64 (N,): of the largest of C logits, or 1 where one is above 0.

    Examples
    --------
    >>> chosen(torch.tensor([[1.0, 2.0], [3.0, 0.0]])), chosen(torch.tensor([[-1.0], [2.0]]))
    (tensor([1, 0]), tensor([0, 1]))
    """
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).long()
    return logits.argmax(dim=1)


def refuse_labels(labels: Tensor, logits: Tensor, what: str) -> None:
    """Refuse labels that are no class of logits (N, C), by the first image that has one."""
    classes = max(logits.shape[1], 2)
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise BadInput(
            f"{what}: sample: label {int(labels[row])} of image {row} is none of the model's "
            f"{classes} classes, 0 to {classes - 1}"
        )
