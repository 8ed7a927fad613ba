"""Fairness metrics as ratios of sums of counts.

A *table* holds counts (..., G, 2, 2): group x true label x prediction; leading axes, if any, are
bootstrap replicates. A rate is the share of one set of cells in another; a fairness metric compares
rates over groups. An empty denominator gives NaN, and groups without a rate take no part in a gap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Table = NDArray[Any]


@dataclass(frozen=True)
class Rate:
    """A ratio of two weighted sums over the cells label x prediction.

    Weights are given in the order true negative, false positive, false negative, true positive.
    """

    name: str
    numerator: tuple[int, int, int, int]
    denominator: tuple[int, int, int, int]

    def __call__(self, table: Table) -> Floats:
        """The rate of every group, (..., G); NaN where the denominator is empty."""
        cells = np.asarray(table).reshape(*np.shape(table)[:-2], 4)
        top, bottom = cells @ np.array(self.numerator), cells @ np.array(self.denominator)
        empty = bottom == 0
        out: Floats = np.where(empty, np.nan, top / np.where(empty, 1, bottom))
        return out


#                                             TN FP FN TP
RATES: dict[str, Rate] = {
    rate.name: rate
    for rate in (
        Rate("accuracy", (1, 0, 0, 1), (1, 1, 1, 1)),
        Rate("error_rate", (0, 1, 1, 0), (1, 1, 1, 1)),
        Rate("selection_rate", (0, 1, 0, 1), (1, 1, 1, 1)),
        Rate("base_rate", (0, 0, 1, 1), (1, 1, 1, 1)),
        Rate("true_positive_rate", (0, 0, 0, 1), (0, 0, 1, 1)),
        Rate("false_negative_rate", (0, 0, 1, 0), (0, 0, 1, 1)),
        Rate("false_positive_rate", (0, 1, 0, 0), (1, 1, 0, 0)),
        Rate("true_negative_rate", (1, 0, 0, 0), (1, 1, 0, 0)),
        Rate("positive_predictive_value", (0, 0, 0, 1), (0, 1, 0, 1)),
        Rate("negative_predictive_value", (1, 0, 0, 0), (1, 0, 1, 0)),
        Rate("f1_score", (0, 0, 0, 2), (0, 1, 1, 2)),
    )
}


def rate(table: Table, name: str) -> Floats:
    """A rate of :data:`RATES` for every group, (..., G)."""
    if name not in RATES:
        raise ValueError(f"rate: {name!r} is not one of {', '.join(RATES)}")
    return RATES[name](table)


def overall(table: Table, name: str) -> Floats:
    """A rate of :data:`RATES` over all groups together, (...)."""
    return rate(np.asarray(table).sum(axis=-3, keepdims=True), name)[..., 0]


def _extreme(values: Floats, largest: bool) -> Floats:
    """Largest or smallest over groups, leaving NaN groups out; NaN where every group is NaN."""
    fill = -np.inf if largest else np.inf
    filled = np.where(np.isnan(values), fill, values)
    out = filled.max(axis=-1) if largest else filled.min(axis=-1)
    return np.where(np.isfinite(out), out, np.nan)


def difference(table: Table, name: str) -> Floats:
    """Largest minus smallest rate over groups, (...); a fraction, not points."""
    values = rate(table, name)
    return _extreme(values, True) - _extreme(values, False)


def ratio(table: Table, name: str) -> Floats:
    """Smallest over largest rate over groups, (...); NaN where the largest is 0."""
    values = rate(table, name)
    low, high = _extreme(values, False), _extreme(values, True)
    positive = high > 0
    out: Floats = np.where(positive, low / np.where(positive, high, 1), np.nan)
    return out


def equalized_odds(table: Table) -> Floats:
    """The larger of the differences in true and in false positive rate (Hardt et al. 2016)."""
    return np.fmax(
        difference(table, "true_positive_rate"), difference(table, "false_positive_rate")
    )


def worst_group(table: Table, name: str = "accuracy") -> Floats:
    """Smallest rate over groups, (...)."""
    return _extreme(rate(table, name), False)


FAIRNESS: dict[str, Callable[[Table], Floats]] = {
    "demographic_parity_difference": partial(difference, name="selection_rate"),
    "demographic_parity_ratio": partial(ratio, name="selection_rate"),
    "equalized_odds_difference": equalized_odds,
    "equal_opportunity_difference": partial(difference, name="true_positive_rate"),
    "predictive_equality_difference": partial(difference, name="false_positive_rate"),
    "predictive_parity_difference": partial(difference, name="positive_predictive_value"),
    "accuracy_difference": partial(difference, name="accuracy"),
    "worst_group_accuracy": worst_group,
    # The ratio of selection rates; the four-fifths rule asks for at least 0.8 (EEOC 1978).
    "disparate_impact": partial(ratio, name="selection_rate"),
}


@dataclass(frozen=True)
class Counts:
    """How many images fall in each cell of group x label x two predictions.

    Attributes
    ----------
    table : int64 (G, 2, 2, 2)
        Group x true label x reference prediction x compared prediction.
    attributes : names of the sensitive attributes that the groups cross
    groups : G names, values joined by ``|`` in the order of ``attributes``
    """

    table: NDArray[np.int64]
    attributes: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.table.shape != (len(self.groups), 2, 2, 2):
            raise ValueError(
                f"Counts.table has shape {self.table.shape}, but {len(self.groups)} groups need "
                f"({len(self.groups)}, 2, 2, 2)"
            )
        if (self.table < 0).any():
            raise ValueError("Counts.table has negative counts")

    def by(self, *attributes: str) -> Counts:
        """Counts of the groups that these attributes cross, summed over the others."""
        unknown = [a for a in attributes if a not in self.attributes]
        if unknown or not attributes:
            raise ValueError(
                f"Counts.by: {unknown or 'nothing'} is not among {', '.join(self.attributes)}"
            )
        at = [self.attributes.index(a) for a in attributes]
        names = ["|".join(group.split("|")[i] for i in at) for group in self.groups]
        kept = tuple(dict.fromkeys(names))
        table = np.zeros((len(kept), 2, 2, 2), np.int64)
        np.add.at(table, [kept.index(name) for name in names], self.table)
        return Counts(table, attributes, kept)

    @property
    def reference(self) -> NDArray[np.int64]:
        """Table (G, 2, 2) of the reference prediction."""
        return self.table.sum(axis=3)

    @property
    def compared(self) -> NDArray[np.int64]:
        """Table (G, 2, 2) of the compared prediction."""
        return self.table.sum(axis=2)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Images per group, (G,)."""
        return self.table.sum(axis=(1, 2, 3))

    @property
    def flips(self) -> NDArray[np.int64]:
        """Images per group whose two predictions differ, (G,)."""
        return self.table[:, :, 0, 1].sum(axis=1) + self.table[:, :, 1, 0].sum(axis=1)


def _binary(values: ArrayLike, name: str, rows: int | None = None) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not {array.ndim}")
    if rows is not None and len(array) != rows:
        raise ValueError(f"{name} has {len(array)} rows but y_true has {rows}")
    wrong = np.flatnonzero(~np.isin(array, (0, 1)))
    if len(wrong):
        raise ValueError(f"{name}: row {wrong[0]} is {array[wrong[0]]!r}, neither 0 nor 1")
    return array.astype(np.int64)


def count(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: pd.DataFrame | pd.Series | ArrayLike,
    reference: ArrayLike | None = None,
) -> Counts:
    """Count images over group x label x reference prediction x prediction.

    Parameters
    ----------
    y_true, y_pred : 0 or 1, (N,)
    sensitive_features : DataFrame, Series or array (N,)
        Several columns are crossed. Groups are the values that occur, or all categories of a
        categorical column.
    reference : 0 or 1, (N,), optional
        Another model's predictions; ``y_pred`` itself if not given.

    Raises
    ------
    ValueError
        Names the argument, and the first row that is not 0 or 1 or whose group is missing.
    """
    truth = _binary(y_true, "y_true")
    if not len(truth):
        raise ValueError("y_true is empty")
    prediction = _binary(y_pred, "y_pred", len(truth))
    before = prediction if reference is None else _binary(reference, "reference", len(truth))
    if isinstance(sensitive_features, pd.DataFrame):
        frame = sensitive_features
    else:
        frame = pd.Series(np.asarray(sensitive_features)).to_frame("group")
    if len(frame) != len(truth):
        raise ValueError(f"sensitive_features has {len(frame)} rows but y_true has {len(truth)}")
    names, code = [""], np.zeros(len(truth), np.int64)
    for column in frame:
        values = frame[column].astype("category")
        missing = np.flatnonzero(values.isna())
        if len(missing):
            raise ValueError(f"sensitive_features: row {missing[0]} has no value for {column!r}")
        levels = [str(level) for level in values.cat.categories]
        names = [f"{n}|{v}".removeprefix("|") for n, v in product(names, levels)]
        code = code * len(levels) + values.cat.codes.to_numpy()
    joint = ((code * 2 + truth) * 2 + before) * 2 + prediction
    table = np.bincount(joint, minlength=len(names) * 8).reshape(len(names), 2, 2, 2)
    return Counts(table, tuple(map(str, frame.columns)), tuple(names))


def fairness(
    name: str,
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: pd.DataFrame | pd.Series | ArrayLike,
) -> float:
    """One metric of :data:`FAIRNESS` from labels and predictions; a fraction.

    Raises
    ------
    ValueError
        Unknown name, bad rows (see :func:`count`), or no group for which the metric is defined.

    Examples
    --------
    >>> fairness("demographic_parity_difference", [1, 0, 1, 0], [1, 1, 1, 0],
    ...          sensitive_features=["a", "a", "b", "b"])
    0.5
    """
    if name not in FAIRNESS:
        raise ValueError(f"fairness: {name!r} is not one of {', '.join(FAIRNESS)}")
    counts = count(y_true, y_pred, sensitive_features=sensitive_features)
    occupied = counts.compared[counts.sizes > 0]
    value = float(FAIRNESS[name](occupied))
    if np.isnan(value):
        raise ValueError(f"{name} is not defined: its denominator is empty in every group")
    return value


demographic_parity_difference = partial(fairness, "demographic_parity_difference")
demographic_parity_ratio = partial(fairness, "demographic_parity_ratio")
equalized_odds_difference = partial(fairness, "equalized_odds_difference")
equal_opportunity_difference = partial(fairness, "equal_opportunity_difference")
