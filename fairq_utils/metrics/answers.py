"""What models answer on a loader's images: labels, predictions and groups, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils.batches import by_attribute, described


@dataclass(frozen=True)
class Answers:
    """Rows of one pass over a loader.

    Attributes
    ----------
    truth : N labels, as the loader yields them
    predictions : name of a model -> N predictions, 0 or 1
    groups : DataFrame of N rows, one column per attribute
    """

    truth: list[Any]
    predictions: dict[str, list[int]]
    groups: pd.DataFrame


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within, every module's own mode after."""
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


def device_of(model: nn.Module) -> torch.device:
    """Where a model's numbers are; the processor, if it has none."""
    values = (v for part in (model.parameters(), model.buffers()) for v in part)
    return next((v.device for v in values), torch.device("cpu"))


def predicted(outputs: Any, rows: int) -> NDArray[np.int64]:
    """From two logits per image, or one, to 0 or 1, (N,).

    Raises
    ------
    ValueError
        Outputs of another form, or NaN.
    """
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"model returned {type(outputs).__name__}, not a tensor of logits (N, 2) or (N,)"
        )
    logits = outputs.detach().float().cpu()
    if logits.ndim == 0 or logits.shape[0] != rows or logits.shape[1:] not in ((), (1,), (2,)):
        raise ValueError(
            f"model returned shape {tuple(logits.shape)} for {rows} images; logits must be "
            f"({rows}, 2), ({rows}, 1) or ({rows},). For more classes use one_vs_rest"
        )
    if logits.isnan().any():
        row = int(logits.isnan().reshape(rows, -1).any(dim=1).nonzero()[0])
        raise ValueError(
            f"model returned NaN for image {row}; look for values that are not finite in that "
            "image and in the model's weights"
        )
    chosen = logits.argmax(dim=1) if logits.shape[1:] == (2,) else logits.reshape(rows) > 0
    return chosen.numpy().astype(np.int64)


def answers(
    models: Mapping[str, nn.Module],
    loader: Iterable[Any],
    attributes: Sequence[str],
    *,
    argument: str = "sensitive_attr",
    what: str = "loader",
) -> Answers:
    """The answers of several models in one pass, so that a shuffling loader keeps them paired.

    Parameters
    ----------
    models : name -> module with logits (N, 2), (N, 1) or (N,)
    loader : iterable of (images, labels, groups)
    attributes : names that the groups must have; names of values that come without
    argument : str
        The caller's name for ``attributes``, for errors.
    what : str
        The caller's name for ``loader``, for errors.

    Raises
    ------
    ValueError
        A batch, output or group of another form, or no batch.
    """
    truth: list[Any] = []
    guesses: dict[str, list[int]] = {name: [] for name in models}
    groups: dict[str, list[Any]] = {}
    with ExitStack() as stack, torch.inference_mode():
        for model in models.values():
            stack.enter_context(evaluating(model))
        for at, batch in enumerate(loader):
            if not isinstance(batch, tuple | list) or len(batch) != 3:
                raise ValueError(
                    f"{what}: batch {at} is not (images, labels, groups) but {described(batch)}"
                )
            images, labels, batch_groups = batch
            values = by_attribute(batch_groups, attributes, len(images))
            for name in attributes:
                if name not in values:
                    raise ValueError(f"{argument}: {name!r} is not among {', '.join(values)}")
            if groups and set(values) != set(groups):
                raise ValueError(f"{what}: batch {at} has attributes {', '.join(values)}")
            for name, model in models.items():
                outputs = model(images.to(device_of(model)))
                try:
                    guesses[name] += predicted(outputs, len(images)).tolist()
                except ValueError as error:
                    raise ValueError(f"{what}: batch {at}: {error}") from None
            given = np.asarray(torch.as_tensor(labels).cpu()).reshape(-1).tolist()
            if len(given) != len(images):
                raise ValueError(
                    f"{what}: batch {at} has {len(given)} labels for {len(images)} images"
                )
            truth += given
            for name, column in values.items():
                groups.setdefault(name, []).extend(column)
    if not groups:
        raise ValueError(f"{what} gave no batch; give at least one")
    return Answers(truth, guesses, pd.DataFrame(groups))
