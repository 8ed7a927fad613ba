"""Fairness of a model on a loader: its predictions row by row, and a report of their gaps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fairq_utils.data.batches import read
from fairq_utils.errors import BadInput
from fairq_utils.metrics.counts import Counts, count
from fairq_utils.metrics.frame import MetricFrame, frame_of
from fairq_utils.metrics.rows import labels as labels_of_rows
from fairq_utils.quantizers.sizes import size_mebibytes
from fairq_utils.training.inference import Margins, device_of, evaluating

TWO_CLASSES = (
    "let the loader yield 0 and 1; of more classes labels == c, beside a model that returns the "
    "logits of c and of all others"
)


def compute_fairness_metrics(
    model: nn.Module,
    loader: Iterable[Any],
    sensitive_attr: str = "gender",
    *,
    min_cell: int = 1,
    outputs: str | None = None,
) -> dict[str, Any]:
    """Accuracy and fairness of a binary classifier on a loader's images.

    Parameters
    ----------
    model : module
        Returns logits (N, 2), or one logit per image, (N, 1) or (N,). It is run in evaluation mode
        on the device where its parameters are, and left in the mode it came in.
    loader : iterable of (images, labels, groups)
        ``images``: tensor (N, ...), as the model takes them. ``labels``: 0 or 1, (N,). ``groups``:
        a mapping or DataFrame of attribute to N values (numbers or names), as a CelebA loader with
        ``gender`` and ``age`` yields them; or one value per image, which are then those of
        ``sensitive_attr``.
    sensitive_attr : str
        The attribute whose groups are compared.
    min_cell : int
        Groups whose denominator rests on fewer images take no part.
    outputs : ``logits`` or ``probabilities``, optional
        What one output per image is; see :class:`~fairq_utils.training.inference.Margins`.

    Returns
    -------
    dict
        All fractions, not percent; NaN where a metric is not defined.

        ``accuracy`` : overall
        ``demographic_parity`` : difference in selection rate
        ``equalized_odds`` : the larger of the differences in true and false positive rate
        ``equal_opportunity``, ``predictive_equality`` : difference in true, in false positive rate
        ``predictive_parity``, ``accuracy_parity`` : difference in predictive value, in accuracy
        ``disparate_impact`` : ratio of the smallest to the largest selection rate
        ``worst_group_accuracy``
        ``per_group`` : group -> every rate, and ``images``
        ``intersectional`` : the same keys as here over all attributes crossed, with ``attributes``
        and ``per_group``; of one attribute, if the loader has no other
        ``left_out`` : list of the cells that take no part, with their counts
        ``sensitive_attr``, ``images`` : what was measured
        ``model_size_mb`` : MiB of parameters and buffers, integers packed at their bits; NaN for a
        model whose weights another toolkit packs out of sight

    Raises
    ------
    BadInput
        A batch, output or group of another form, labels that are not 0 or 1, NaN outputs, or an
        attribute with a single value: the sentence says which.
    TypeError
        ``model`` is no module. Count the predictions of other engines with
        :func:`~fairq_utils.metrics.metric_frame`.

    Examples
    --------
    >>> import torch
    >>> loader = [(torch.tensor([[1.0], [-1.0], [2.0], [3.0]]), torch.tensor([1, 0, 1, 0]),
    ...            {"gender": ["f", "f", "m", "m"]})]
    >>> found = compute_fairness_metrics(nn.Identity(), loader)
    >>> found["accuracy"], found["demographic_parity"], found["disparate_impact"]
    (0.75, 0.5, 0.5)
    >>> found["per_group"]["m"]["false_positive_rate"]
    1.0
    """
    if not isinstance(sensitive_attr, str):
        raise TypeError(
            f"sensitive_attr: {sensitive_attr!r} is no name; name one attribute at a time, or let "
            "the loader yield one that crosses several"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is {type(model).__name__}, not a torch module; for predictions of another "
            "engine use metric_frame"
        )
    counts = _counts(model, loader, sensitive_attr, outputs)
    alone = counts.by(sensitive_attr)
    if len(alone.groups) < 2:
        raise BadInput(
            f"sensitive_attr: every image has {sensitive_attr} = {alone.groups[0]}; "
            "there is nothing to compare; give images of others too"
        )
    marginal, crossed = frame_of(alone, min_cell=min_cell), frame_of(counts, min_cell=min_cell)
    return {
        **_summary(marginal),
        "sensitive_attr": sensitive_attr,
        "images": int(counts.sizes.sum()),
        "intersectional": {**_summary(crossed), "attributes": list(counts.attributes)},
        "model_size_mb": size_mebibytes(model),
    }


@dataclass(frozen=True)
class Predictions:
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


def paired_predictions(
    models: Mapping[str, nn.Module],
    loader: Iterable[Any],
    attributes: Sequence[str],
    *,
    argument: str = "sensitive_attr",
    what: str = "loader",
    outputs: str | None = None,
) -> Predictions:
    """Predictions of several models in one pass, so that a shuffling loader keeps them paired.

    Parameters
    ----------
    models : name -> module with logits (N, 2), (N, 1) or (N,)
        What one output is, the first one's tell: those of a quantized model may all be 0.
    loader : iterable of (images, labels, groups)
    attributes : names that the groups must have; names of values that come without
    argument : str
        The caller's name for ``attributes``, for errors.
    what : str
        The caller's name for ``loader``, for errors.
    outputs : see :class:`~fairq_utils.training.inference.Margins`

    Raises
    ------
    BadInput
        A batch, output or group of another form, or no batch.
    """
    truth: list[Any] = []
    margins = {name: Margins(outputs) for name in models}
    groups: dict[str, list[Any]] = {}
    with ExitStack() as stack, torch.inference_mode():
        for model in models.values():
            stack.enter_context(evaluating(model))
        for at, batch in enumerate(read(loader, what, attributes)):
            images, labels, values = batch.images, batch.labels, batch.groups
            if labels is None or values is None:
                lacking = "labels" if labels is None else "groups"
                raise BadInput(
                    f"{what}: batch {at} is not (images, labels, groups) but has no {lacking}; let "
                    "the loader yield these three"
                )
            for name in attributes:
                if name not in values:
                    raise BadInput(
                        f"{argument}: {name!r} is not among {', '.join(values)}, the attributes of "
                        f"batch {at} of {what}; name one of these"
                    )
            if groups and set(values) != set(groups):
                raise BadInput(
                    f"{what}: batch {at} has the attributes {', '.join(values)}, and those before "
                    f"{', '.join(groups)}; let every batch have the same"
                )
            for name, model in models.items():
                produced = model(images.to(device_of(model)))
                try:
                    margins[name].add(produced, len(images))
                except ValueError as error:
                    raise BadInput(f"{what}: batch {at}: {error}") from None
            given = labels.cpu().numpy()
            labels_of_rows(given, f"{what}: batch {at}: y_true", otherwise=TWO_CLASSES)
            truth += given.tolist()
            for name, column in values.items():
                groups.setdefault(name, []).extend(column)
    if not groups:
        raise BadInput(f"{what} gave no batch; give at least one")
    kind = next(iter(margins.values())).kind()
    for others in margins.values():
        others.outputs = kind
    guesses = {name: found.predictions().tolist() for name, found in margins.items()}
    return Predictions(truth, guesses, pd.DataFrame(groups))


def _counts(
    model: nn.Module, loader: Iterable[Any], sensitive_attr: str, outputs: str | None
) -> Counts:
    """Counts of a model's predictions over all attributes of a loader."""
    found = paired_predictions({"": model}, loader, [sensitive_attr], outputs=outputs)
    # The attribute asked about comes first, so that crossed groups read in its order.
    order = [sensitive_attr, *(name for name in found.groups if name != sensitive_attr)]
    return count(found.truth, found.predictions[""], sensitive_features=found.groups[order])


def _summary(frame: MetricFrame) -> dict[str, Any]:
    value = frame.fairness
    return {
        "accuracy": float(frame.overall["accuracy"]),
        "demographic_parity": float(value["demographic_parity_difference"]),
        "equalized_odds": float(value["equalized_odds_difference"]),
        "equal_opportunity": float(value["equal_opportunity_difference"]),
        "predictive_equality": float(value["predictive_equality_difference"]),
        "predictive_parity": float(value["predictive_parity_difference"]),
        "accuracy_parity": float(value["accuracy_difference"]),
        "disparate_impact": float(value["disparate_impact"]),
        "worst_group_accuracy": float(value["worst_group_accuracy"]),
        "per_group": _per_group(frame),
        "left_out": frame.left_out.to_dict("records"),
    }


def _per_group(frame: MetricFrame) -> dict[str, dict[str, float]]:
    names = ["|".join(np.atleast_1d(group)) for group in frame.by_group.index]
    table = frame.by_group.assign(images=frame.counts["images"]).set_axis(names)
    return {str(group): values for group, values in table.to_dict("index").items()}
