"""Inference: where a model stands, in evaluation mode, and predictions from its logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils.errors import BadInput


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


def predicted(outputs: Any, rows: int) -> NDArray[np.int64]:
    """Predictions 0 or 1, int64 (N,), from two logits per image, or one.

    Parameters
    ----------
    outputs : Tensor (N, 2), (N, 1) or (N,)
    rows : int
        N, how many images the model was given.

    Raises
    ------
    BadInput
        Outputs of another form, or NaN.

    Examples
    --------
    >>> predicted(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), 2), predicted(torch.tensor([-1.0]), 1)
    (array([1, 0]), array([0]))
    """
    if not isinstance(outputs, Tensor):
        raise BadInput(
            f"model returned {type(outputs).__name__}, not a tensor of logits (N, 2) or (N,); wrap "
            "it in a module that returns them"
        )
    logits = outputs.detach().float().cpu()
    if logits.ndim == 0 or logits.shape[0] != rows or logits.shape[1:] not in ((), (1,), (2,)):
        raise BadInput(
            f"model returned shape {tuple(logits.shape)} for {rows} images; logits must be "
            f"({rows}, 2), ({rows}, 1) or ({rows},). For more classes use one_vs_rest"
        )
    if logits.isnan().any():
        row = int(logits.isnan().reshape(rows, -1).any(dim=1).nonzero()[0])
        raise BadInput(
            f"model returned NaN for image {row}; look for values that are not finite in that "
            "image and in the model's weights"
        )
    chosen = logits.argmax(dim=1) if logits.shape[1:] == (2,) else logits.reshape(rows) > 0
    return chosen.numpy().astype(np.int64)
