"""Features and losses of a pool of images under a float model, which samplers draw by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils.data.batches import whole_labels
from fairq_utils.errors import BadInput
from fairq_utils.mitigation.sample import CHUNK
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.sensitivity import classification_loss
from fairq_utils.quantizers.tracing import first_input, removed_after
from fairq_utils.training.architectures import Inputs
from fairq_utils.training.inference import device_of


@usual_modes()
def pool_features(model: nn.Module, images: Inputs) -> NDArray[np.float32]:
    """Features of each image: the input of the linear or convolution layer called last.

    Parameters
    ----------
    model : any module of one tensor argument
        It stays as it is.
    images : Tensor (N, ...), or Normalized
        As the model takes them; each batch goes to the model's device.

    Returns
    -------
    float32 (N, D)
        Averaged over positions where the layer is a convolution or takes tokens.

    Raises
    ------
    BadInput
        No images; no such layer is called, or not with a row for each image; a feature that is not
        finite.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ...                       nn.Linear(3, 2))
    >>> pool_features(model, torch.zeros(5, 1, 4, 4)).shape
    (5, 3)
    """
    work = copied(model, "pool_features").eval()
    last: dict[str, Any] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        last["layer"], last["input"] = module, first_input(inputs, named)

    layers = [m for m in work.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    parts = []
    with removed_after([m.register_forward_pre_hook(keep, with_kwargs=True) for m in layers]):
        for batch, _ in _outputs(work, images, "pool_features"):
            if not last:
                raise BadInput(
                    f"pool_features: {type(model).__name__} calls no linear or convolution layer, "
                    "so there is nothing that enters its classifier"
                )
            x = last["input"].float()
            if len(x) != len(batch):
                raise BadInput(
                    f"pool_features: the last layer takes {len(x)} rows for {len(batch)} images; "
                    "let the model's classifier take one row per image"
                )
            # Channels come last in what a linear layer takes.
            parts.append(x.mean(dim=(2, 3)) if isinstance(last["layer"], nn.Conv2d) else _mean(x))
    return _finite(torch.cat(parts), "pool_features: a feature")


@usual_modes()
def pool_losses(model: nn.Module, images: Inputs, labels: Any) -> NDArray[np.float32]:
    """Cross-entropy of a classifier on each image.

    Parameters
    ----------
    model, images : see :func:`pool_features`
        Logits (N, C), or one logit per image, (N, 1) or (N,).
    labels : 0, 1, ... (N,)

    Returns
    -------
    float32 (N,)

    Raises
    ------
    BadInput
        No images; another number of labels; a label that the logits have no class for; a loss that
        is not finite.

    Examples
    --------
    >>> pool_losses(nn.Flatten(), torch.tensor([[0.0, 0.0], [0.0, 9.0]]), [0, 1]).round(3).tolist()
    [0.6930000185966492, 0.0]
    """
    truth = whole_labels(labels, len(images), "pool_losses")
    parts = []
    done = 0
    for batch, logits in _outputs(copied(model, "pool_losses").eval(), images, "pool_losses"):
        own = truth[done : done + len(batch)].to(logits.device)
        classes = 2 if logits.ndim == 1 or logits.shape[1:] == (1,) else logits.shape[1]
        wrong = ((own < 0) | (own >= classes)).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise BadInput(
                f"pool_losses: the label of image {done + at} is {int(own[at])}, but the model "
                f"tells {classes} classes apart; number them 0 to {classes - 1}"
            )
        parts.append(classification_loss(logits, own, reduction="none"))
        done += len(batch)
    return _finite(torch.cat(parts), "pool_losses: the loss")


def _outputs(model: nn.Module, images: Inputs, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images, and outputs of the model on them."""
    if not len(images):
        raise BadInput(f"{what}: there are no images; give at least one")
    device = device_of(model)
    for batch in images.split(CHUNK):
        with torch.no_grad():
            # A copy, because a model may write into its input.
            outputs = model(batch.to(device, copy=True))
        yield batch, outputs


def _mean(x: Tensor) -> Tensor:
    """Of (N, ..., D) over all positions, (N, D)."""
    return x.reshape(len(x), -1, x.shape[-1]).mean(dim=1)


def _finite(values: Tensor, what: str) -> NDArray[np.float32]:
    bad = (~torch.isfinite(values)).reshape(len(values), -1).any(dim=1).nonzero()
    if len(bad):
        raise BadInput(f"{what} of image {int(bad[0])} is not finite; check the images and model")
    return values.cpu().numpy()
