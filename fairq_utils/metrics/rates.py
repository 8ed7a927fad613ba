"""Rates: each a ratio of two weighted sums of counts, one line of a table.

A *table* holds counts (..., G, 2, 2): group x true label x prediction; leading axes, if any, are
bootstrap replicates. An empty denominator gives NaN, never 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fairq_utils.errors import BadInput
from fairq_utils.registry import unknown

Floats = NDArray[np.float64]
Table = NDArray[Any]
Weights = tuple[int, int, int, int]  # in the order of CELLS

CELLS = ("TN", "FP", "FN", "TP")
ALL, LABEL_1, LABEL_0 = (1, 1, 1, 1), (0, 0, 1, 1), (1, 1, 0, 0)
PREDICTED_1, PREDICTED_0 = (0, 1, 0, 1), (1, 0, 1, 0)
# What a denominator counts, in words.
AMONG: dict[Weights, str] = {
    ALL: "images",
    LABEL_1: "images of label 1",
    LABEL_0: "images of label 0",
    PREDICTED_1: "images of prediction 1",
    PREDICTED_0: "images of prediction 0",
}


@dataclass(frozen=True)
class Rate:
    """A ratio of two weighted sums over the cells label x prediction.

    Attributes
    ----------
    name : str
    numerator, denominator : weights of TN, FP, FN, TP
    better : ``high``, ``low``, or None where neither end is the good one
    """

    name: str
    numerator: Weights
    denominator: Weights
    better: Literal["high", "low"] | None = None

    def __call__(self, table: Table) -> Floats:
        """The rate of every group, (..., G); NaN where the denominator is empty."""
        cells = np.asarray(table).reshape(*np.shape(table)[:-2], 4)
        top, bottom = _sum(cells, self.numerator), _sum(cells, self.denominator)
        empty = bottom == 0
        out: Floats = np.where(empty, np.nan, top / np.where(empty, 1, bottom))
        return out

    def support(self, table: Table) -> NDArray[Any]:
        """Images that the denominator rests on, (..., G); each counts once."""
        cells = np.asarray(table).reshape(*np.shape(table)[:-2], 4)
        tn, fp, fn, tp = (int(w > 0) for w in self.denominator)
        return _sum(cells, (tn, fp, fn, tp))

    @property
    def among(self) -> str:
        """Words for what the denominator counts."""
        listed = [cell for cell, w in zip(CELLS, self.denominator, strict=True) if w]
        return AMONG.get(self.denominator, f"images in {' + '.join(listed)}")

    @property
    def formula(self) -> str:
        """The ratio in cells: ``TP / (FN + TP)``."""
        return " / ".join(map(_in_cells, (self.numerator, self.denominator)))


@dataclass(frozen=True)
class MeanRate:
    """The mean of several rates; NaN where any of them is."""

    name: str
    parts: tuple[Rate, ...]
    better: Literal["high", "low"] | None = None

    def __call__(self, table: Table) -> Floats:
        """The mean of every group, (..., G)."""
        out: Floats = np.mean([part(table) for part in self.parts], axis=0)
        return out

    def support(self, table: Table) -> NDArray[Any]:
        """Images that the smallest denominator rests on, (..., G)."""
        return np.minimum.reduce([part.support(table) for part in self.parts])

    @property
    def among(self) -> str:
        """Words for what the denominators count."""
        return " and ".join(part.among for part in self.parts)

    @property
    def formula(self) -> str:
        """The mean in cells."""
        return f"mean of {' and '.join(part.formula for part in self.parts)}"


_PLAIN = (
    #                            TN FP FN TP
    Rate("accuracy", (1, 0, 0, 1), ALL, "high"),
    Rate("error_rate", (0, 1, 1, 0), ALL, "low"),
    Rate("selection_rate", (0, 1, 0, 1), ALL),
    Rate("base_rate", (0, 0, 1, 1), ALL),
    Rate("true_positive_rate", (0, 0, 0, 1), LABEL_1, "high"),
    Rate("false_negative_rate", (0, 0, 1, 0), LABEL_1, "low"),
    Rate("false_positive_rate", (0, 1, 0, 0), LABEL_0, "low"),
    Rate("true_negative_rate", (1, 0, 0, 0), LABEL_0, "high"),
    Rate("positive_predictive_value", (0, 0, 0, 1), PREDICTED_1, "high"),
    Rate("false_discovery_rate", (0, 1, 0, 0), PREDICTED_1, "low"),
    Rate("negative_predictive_value", (1, 0, 0, 0), PREDICTED_0, "high"),
    Rate("false_omission_rate", (0, 0, 1, 0), PREDICTED_0, "low"),
    Rate("f1_score", (0, 0, 0, 2), (0, 1, 1, 2), "high"),
    # Compared by treatment equality: Berk et al. 2021, "Fairness in Criminal Justice Risk
    # Assessments: The State of the Art".
    Rate("treatment_ratio", (0, 0, 1, 0), (0, 1, 0, 0)),
)
_BY_NAME = {rate.name: rate for rate in _PLAIN}
RATES: dict[str, Rate | MeanRate] = {
    **_BY_NAME,
    # Mean recall of the two labels (Brodersen et al. 2010, "The Balanced Accuracy and Its Posterior
    # Distribution"): the one rate here that is no single ratio of sums.
    "balanced_accuracy": MeanRate(
        "balanced_accuracy",
        (_BY_NAME["true_positive_rate"], _BY_NAME["true_negative_rate"]),
        "high",
    ),
}


def named(name: str) -> Rate | MeanRate:
    """A rate of :data:`RATES`.

    Raises
    ------
    BadInput
        There is none of that name; names the nearest.

    Examples
    --------
    >>> named("f1_score").formula
    '2 TP / (FP + FN + 2 TP)'
    >>> named("f1")
    Traceback (most recent call last):
    fairq_utils.errors.BadInput: rate: 'f1' is unknown; did you mean 'f1_score'?
    """
    if name not in RATES:
        raise BadInput(f"rate: {unknown(name, RATES)}")
    return RATES[name]


def add_rate(added: Rate | MeanRate) -> str:
    """Put a rate into :data:`RATES`; its name comes back.

    Raises
    ------
    BadInput
        There is another one of that name.
    """
    if RATES.setdefault(added.name, added) != added:
        raise BadInput(f"rate: there is another {added.name!r} already; take another name")
    return added.name


def check_min_cell(min_cell: int) -> None:
    """``min_cell`` is a count of at least one image: an empty denominator has no rate."""
    if not isinstance(min_cell, Integral) or min_cell < 1:
        raise BadInput(
            f"min_cell: {min_cell!r} is no whole number of at least 1; leave it out for 1"
        )


def refuse_least(min_cell: int, weighted: bool) -> None:
    """Refuse a least number of images where rates are of weights."""
    check_min_cell(min_cell)
    if weighted and min_cell > 1:
        raise BadInput(
            f"min_cell: {min_cell} is a number of images, and sample_weight weighs them; leave one "
            "of the two out"
        )


def rate(table: Table, name: str, *, min_cell: int = 1) -> Floats:
    """A rate of :data:`RATES` for every group.

    Parameters
    ----------
    table : counts (..., G, 2, 2)
    name : str
    min_cell : int
        Groups whose denominator rests on fewer images have no rate.

    Returns
    -------
    float64 (..., G)
        A fraction; NaN where the denominator is empty or below ``min_cell``.

    Raises
    ------
    BadInput
        Unknown name, or ``min_cell`` below 1.

    Examples
    --------
    >>> table = [[[3, 1], [0, 0]], [[2, 2], [1, 3]]]  # the first group has nobody of label 1
    >>> rate(table, "true_positive_rate")
    array([ nan, 0.75])
    """
    check_min_cell(min_cell)
    chosen = named(name)
    values = chosen(table)
    if min_cell > 1:
        values = np.where(chosen.support(table) < min_cell, np.nan, values)
    return values


def overall(table: Table, name: str, *, min_cell: int = 1) -> Floats:
    """A rate of :data:`RATES` over all groups together, (...).

    Groups that are too small for a rate of their own still count here.

    Examples
    --------
    >>> float(overall([[[3, 1], [0, 0]], [[2, 2], [1, 3]]], "true_positive_rate"))
    0.75
    """
    return rate(np.asarray(table).sum(axis=-3, keepdims=True), name, min_cell=min_cell)[..., 0]


def _sum(cells: Table, weights: Weights) -> Table:
    """Weighted sum over the last axis; only the cells that count are touched."""
    terms = [cells[..., i] * w if w != 1 else cells[..., i] for i, w in enumerate(weights) if w]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _in_cells(weights: Weights) -> str:
    """A weighted sum in words: ``(FP + FN + 2 TP)``."""
    terms = [f"{w} {cell}".removeprefix("1 ") for cell, w in zip(CELLS, weights, strict=True) if w]
    return terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"
