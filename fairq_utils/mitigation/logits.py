"""Logits of a model on a sample, what they choose, and labels that they have no place for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairq_utils.faults import BadInput
from fairq_utils.metrics.answers import device_of
from fairq_utils.mitigation.sample import Sample


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
        raise BadInput(f"{what}: the model's answer about image {row} of the sample is not finite")
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
            f"{what}: the model answers {rows} images with {shape}; logits must be ({rows}, "
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
