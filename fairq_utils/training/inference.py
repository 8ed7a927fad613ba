"""Inference: where a model stands, in evaluation mode, and what its outputs predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils.errors import BadInput

OUTPUTS = ("logits", "probabilities")  # what a model's one output per image may be


def device_of(model: nn.Module) -> torch.device:
    """Device of a model's parameters and buffers; the processor, if it has none.

    Examples
    --------
    >>> device_of(nn.Linear(2, 2))
    device(type='cpu')
    """
    values = (v for part in (model.parameters(), model.buffers()) for v in part)
    return next((v.device for v in values), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within, every module's own mode after.

    Examples
    --------
    >>> model = nn.Dropout().train()
    >>> with evaluating(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    if any(training for _, training in modes):
        # A model from torch.export has its mode baked in and refuses to be asked.
        with suppress(NotImplementedError):
            model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Margins:
    """Outputs of a model for images, batch by batch, and what they predict.

    Parameters
    ----------
    outputs : str, optional
        What one output per image is: ``logits`` (1 above 0) or ``probabilities`` (1 above 0.5). If
        it is not given, logits, and a model whose outputs all lie between 0 and 1 is refused: it
        may be either. Of two outputs the larger one counts, whatever they are.

    Examples
    --------
    >>> margins = Margins()
    >>> margins.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), 2)
    >>> margins.predictions()
    array([1, 0])
    """

    def __init__(self, outputs: str | None = None) -> None:
        if outputs not in (None, *OUTPUTS):
            raise BadInput(f"outputs: {outputs!r} is neither of {', '.join(OUTPUTS)}")
        self.outputs = outputs
        self._parts: list[Tensor] = []
        self._single = False

    def add(self, outputs: Any, rows: int) -> None:
        """Add a batch.

        Parameters
        ----------
        outputs : Tensor (N, 2), (N, 1) or (N,)
        rows : int
            N, how many images the model was given.

        Raises
        ------
        BadInput
            Outputs of another form, NaN, or two that are infinite alike.
        """
        if not isinstance(outputs, Tensor):
            raise BadInput(
                f"model returned {type(outputs).__name__}, not a tensor of logits (N, 2) or (N,); "
                "wrap it in a module that returns them"
            )
        found = outputs.detach().float().cpu()
        if found.ndim == 0 or found.shape[0] != rows or found.shape[1:] not in ((), (1,), (2,)):
            raise BadInput(
                f"model returned shape {tuple(found.shape)} for {rows} images; logits must be "
                f"({rows}, 2), ({rows}, 1) or ({rows},). Of more classes give a module that "
                "returns those of one and of all others"
            )
        if found.isnan().any():
            row = int(found.isnan().reshape(rows, -1).any(dim=1).nonzero()[0])
            raise BadInput(
                f"model returned NaN for image {row}; look for values that are not finite in that "
                "image and in the model's weights"
            )
        self._single = found.shape[1:] != (2,)
        alike = torch.zeros(rows) if self._single else found[:, 1] - found[:, 0]
        if alike.isnan().any():
            row = int(alike.isnan().nonzero()[0])
            raise BadInput(
                f"model returned two logits of {float(found[row, 0])} for image {row}, of which "
                "neither is the larger; let it compute them in float32, in which they do not "
                "overflow"
            )
        # Not a difference, which is NaN of two that are infinite.
        self._parts.append(found.reshape(rows) if self._single else found.argmax(dim=1).float())

    def kind(self) -> str:
        """``logits`` or ``probabilities``, of models with one output.

        Raises
        ------
        BadInput
            It cannot be told, or is not what it is said to be.
        """
        if not self._single:
            return "logits"
        values = torch.cat(self._parts)
        inside = (values >= 0) & (values <= 1)
        if self.outputs == "probabilities" and not inside.all():
            row = int((~inside).nonzero()[0])
            raise BadInput(
                f"outputs: those of image {row} are {float(values[row]):g}, no probability from 0 "
                "to 1; say outputs='logits'"
            )
        if self.outputs is None and inside.all():
            raise BadInput(
                f"the model's one output lies between 0 and 1 for all {len(values)} images, as "
                "probabilities do (a sigmoid at its end?); say outputs='probabilities', which "
                "predict 1 above 0.5, or outputs='logits', which do above 0"
            )
        return self.outputs or "logits"

    def predictions(self) -> NDArray[np.int64]:
        """Predictions 0 or 1, int64 (N,).

        Raises
        ------
        BadInput
            See :meth:`kind`.
        """
        threshold = 0.5 if not self._single or self.kind() == "probabilities" else 0.0
        return (torch.cat(self._parts) > threshold).numpy().astype(np.int64)


def refuse_probabilities(
    model: nn.Module, batches: Iterable[Tensor], outputs: str | None, what: str
) -> None:
    """Refuse a model whose one output is, or may be, a probability, where logits are needed.

    Parameters
    ----------
    batches : of images, on the model's device
    outputs : see :class:`Margins`
    what : the call that needs logits, for the sentence
    """
    margins = Margins(outputs)
    with evaluating(model), torch.no_grad():
        for images in batches:
            margins.add(model(images), len(images))
    if margins.kind() == "probabilities":
        raise BadInput(
            f"{what} looks at the loss of logits; give the model without the sigmoid at its end"
        )
