"""Counts of images in each cell of group x true label x prediction(s)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fairq_utils.errors import BadInput
from fairq_utils.given import each_name
from fairq_utils.metrics import rows
from fairq_utils.metrics.rows import Features


@dataclass(frozen=True)
class Counts:
    """Counts of images in each cell of group x label x two predictions.

    Attributes
    ----------
    table : int64 (G, 2, 2, 2)
        Group x true label x reference prediction x compared prediction.
    attributes : names of the sensitive attributes that the groups cross
    groups : G names, values joined by ``|`` in the order of ``attributes``
    images : int64 (G, 2, 2, 2), optional
        Where rows have weights: how many of them weigh anything. ``table`` is then their sums of
        weights, float64, which no bootstrap can draw from.

    Examples
    --------
    >>> people = {"gender": ["f", "f", "m", "m"], "age": ["old", "young", "old", "young"]}
    >>> crossed = count([1, 0, 1, 0], [1, 1, 1, 0], sensitive_features=people)
    >>> crossed.groups
    ('f|old', 'f|young', 'm|old', 'm|young')
    >>> crossed.by("gender").compared.tolist()  # group x label x prediction
    [[[0, 1], [0, 1]], [[1, 0], [0, 1]]]
    """

    table: NDArray[Any]
    attributes: tuple[str, ...]
    groups: tuple[str, ...]
    images: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.table.shape != (len(self.groups), 2, 2, 2):
            raise BadInput(
                f"Counts.table has shape {self.table.shape}, but {len(self.groups)} groups need "
                f"({len(self.groups)}, 2, 2, 2): group x label x FP32 prediction x prediction"
            )
        if (self.table < 0).any():
            raise BadInput("Counts.table has negative counts; give numbers of images")

    def by(self, *attributes: str) -> Counts:
        """Counts of the groups that these attributes cross, summed over the others."""
        unknown = [a for a in attributes if a not in self.attributes]
        if unknown or not attributes:
            raise BadInput(
                f"Counts.by: {unknown or 'nothing'} is not among {', '.join(self.attributes)}; "
                "name one or more of these"
            )
        at = [self.attributes.index(a) for a in attributes]
        names = ["|".join(group.split("|")[i] for i in at) for group in self.groups]
        kept = tuple(dict.fromkeys(names))
        place = [kept.index(name) for name in names]

        def summed(whole: NDArray[Any]) -> NDArray[Any]:
            table = np.zeros((len(kept), 2, 2, 2), whole.dtype)
            np.add.at(table, place, whole)
            return table

        images = None if self.images is None else summed(self.images)
        return Counts(summed(self.table), attributes, kept, images)

    @property
    def seen(self) -> NDArray[np.int64]:
        """Images in each cell, whatever they weigh, (G, 2, 2, 2)."""
        return self.table if self.images is None else self.images

    @property
    def reference(self) -> NDArray[Any]:
        """Table (G, 2, 2) of the reference prediction."""
        return self.table.sum(axis=3)

    @property
    def compared(self) -> NDArray[Any]:
        """Table (G, 2, 2) of the compared prediction."""
        return self.table.sum(axis=2)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Images per group, (G,)."""
        return self.seen.sum(axis=(1, 2, 3))

    @property
    def flips(self) -> NDArray[np.int64]:
        """Images per group whose two predictions differ, (G,)."""
        return self.seen[:, :, 0, 1].sum(axis=1) + self.seen[:, :, 1, 0].sum(axis=1)

    @property
    def index(self) -> pd.Index:
        """The groups as an index, one level per attribute."""
        return rows.group_index(self.attributes, self.groups)


def count(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    reference: ArrayLike | None = None,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> Counts:
    """Count images over group x label x reference prediction x prediction.

    Parameters
    ----------
    y_true, y_pred : 0 or 1, (N,)
        Any labels if ``pos_label`` is given.
    sensitive_features : DataFrame, mapping of name to values, Series, or array (N,) or (N, K)
        Several attributes are crossed. Groups are the values that occur, or all categories of a
        categorical column.
    reference : like ``y_pred``, optional
        Another model's predictions; ``y_pred`` itself if not given.
    pos_label : optional
        The label that counts as 1, against all others.
    sample_weight : (N,), optional
        Weight of each row, 0 or more: the cells are then sums of weights.

    Raises
    ------
    BadInput
        Names the argument, and the first row that is no label or whose group is missing.

    Examples
    --------
    >>> counts = count([1, 1, 0], [1, 0, 0], sensitive_features=["a", "a", "b"],
    ...                reference=[0, 1, 0])
    >>> counts.groups, counts.flips.tolist()
    (('a', 'b'), [2, 0])
    """
    given = {"y_true": y_true, "y_pred": y_pred}
    if reference is not None:
        given["reference"] = reference
    truth, prediction, *others = _labels(given, pos_label)
    before, n = others[0] if others else prediction, len(truth)
    groups = rows.groups(sensitive_features, rows=n)
    joint = ((groups.codes * 2 + truth) * 2 + before) * 2 + prediction
    cells, shape = len(groups.names) * 8, (-1, 2, 2, 2)
    if sample_weight is None:
        table = np.bincount(joint, minlength=cells).reshape(shape)
        return Counts(table, groups.attributes, groups.names)
    weights = rows.weights(sample_weight, n)
    table = np.bincount(joint, weights, cells).reshape(shape)
    images = np.bincount(joint[weights > 0], minlength=cells).reshape(shape)
    return Counts(table, groups.attributes, groups.names, images)


def everyone(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> NDArray[Any]:
    """Counts (1, 2, 2) of label x prediction, whatever the group.

    Parameters and errors as in :func:`count`.

    Examples
    --------
    >>> everyone([1, 1, 0], [1, 0, 0])
    array([[[1, 0],
            [1, 1]]])
    """
    truth, prediction = _labels({"y_true": y_true, "y_pred": y_pred}, pos_label)
    weights = None if sample_weight is None else rows.weights(sample_weight, len(truth))
    return np.bincount(truth * 2 + prediction, weights, 4).reshape(1, 2, 2)


def one_vs_rest(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    classes: Sequence[Hashable] | None = None,
    reference: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> dict[Hashable, Counts]:
    """Counts of every class against all others, for targets of more than two classes.

    Parameters
    ----------
    y_true, y_pred, reference, sensitive_features, sample_weight
        As in :func:`count`, with any labels.
    classes : optional
        The labels there are; those of ``y_true``, sorted, if not given.

    Raises
    ------
    BadInput
        As in :func:`count`, or a label that is not among ``classes``.

    Examples
    --------
    >>> found = one_vs_rest(["cat", "dog", "cow"], ["cat", "cow", "cow"],
    ...                     sensitive_features=["a", "a", "b"])
    >>> {label: counts.compared.sum(axis=0).tolist() for label, counts in found.items()}
    {'cat': [[2, 0], [0, 1]], 'cow': [[1, 1], [0, 1]], 'dog': [[2, 0], [1, 0]]}
    """
    truth = rows.column(y_true, "y_true").tolist()
    there = {label for label in truth if not pd.isna(label)}
    known = sorted(there, key=str) if classes is None else list(each_name(classes))
    given = {"y_true": truth, "y_pred": rows.column(y_pred, "y_pred").tolist()}
    if reference is not None:
        given["reference"] = rows.column(reference, "reference").tolist()
    for name, values in given.items():
        for row, value in enumerate(values):
            if pd.isna(value) or value not in known:
                listed = ", ".join(map(str, known))
                raise BadInput(
                    f"{name}: row {row} is {value!r}, not one of {listed}; leave the row out, or "
                    "name all labels"
                )
    return {
        label: count(
            **{name: [value == label for value in values] for name, values in given.items()},
            sensitive_features=sensitive_features,
            sample_weight=sample_weight,
        )
        for label in known
    }


def _labels(given: Mapping[str, ArrayLike], pos_label: Any) -> list[NDArray[np.int64]]:
    """Labels and predictions as 0 and 1, the true ones first.

    One of them may lack ``pos_label``, as a model does that never predicts it; not one that has it
    in another form, such as the text "1" for the number.
    """
    found: list[NDArray[np.int64]] = []
    for name, values in given.items():
        n = len(found[0]) if found else None
        found.append(rows.labels(values, name, rows=n, pos_label=pos_label))
    if pos_label is None:
        return found
    for (name, values), coded in zip(given.items(), found, strict=True):
        likely = None if coded.any() else rows.written_otherwise(values, pos_label)
        if likely is not None:
            listed = "; ".join(f"{each}: {rows.listed(held)}" for each, held in given.items())
            raise BadInput(
                f"pos_label: {pos_label!r} is not in {name}, which has {likely!r}; write labels "
                f"alike ({listed})"
            )
    if not any(coded.any() for coded in found[:2]):
        raise BadInput(
            f"pos_label: {pos_label!r} is neither in y_true nor in y_pred; name a label as it is "
            "there, numbers as numbers and text as text"
        )
    return found
