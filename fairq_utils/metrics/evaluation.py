"""From labels, predictions and groups to one value of a criterion, with what was left out.

All row-level metrics share this call. An undefined value is an error with its reason; groups that
take no part are a :class:`~fairq_utils.metrics.LeftOutWarning` that lists them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fairq_utils.metrics.counts import Counts, count
from fairq_utils.metrics.criteria import FAIRNESS, Criterion
from fairq_utils.metrics.gaps import (
    LeftOutWarning,
    described,
    difference,
    left_out,
    ratio,
    standard_deviation,
    worst_group,
)
from fairq_utils.metrics.rates import Floats, named
from fairq_utils.metrics.rows import Features

COMPARISONS: dict[str, Callable[..., Floats]] = {
    "difference": difference,
    "ratio": ratio,
    "worst_group": worst_group,
    "standard_deviation": standard_deviation,
}


def value_of(
    name: str,
    criterion: Criterion,
    counts: Counts,
    *,
    min_cell: int = 1,
    stacklevel: int = 4,
    **options: Any,
) -> float:
    """A criterion of the compared predictions; see :func:`fairness`."""
    table = counts.compared
    value = float(criterion(table, min_cell=min_cell, **options))
    cells = left_out(table, criterion.rates, groups=counts.groups, min_cell=min_cell)
    if np.isnan(value):
        if len(cells):
            reason = f"too few groups have a denominator; left out {described(cells)}"
        else:
            reason = f"{' and '.join(criterion.rates)} is 0 in every group, and 0 / 0 has no value"
        raise ValueError(f"{name} is not defined: {reason}")
    if len(cells):
        warnings.warn(LeftOutWarning(name, cells), stacklevel=stacklevel)
    return value


def measured(
    name: str,
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    pos_label: Any = None,
    **options: Any,
) -> float:
    """A criterion of :data:`~fairq_utils.metrics.FAIRNESS`, on behalf of a public function.

    The warning points at the caller of that function.
    """
    counts = count(y_true, y_pred, sensitive_features=sensitive_features, pos_label=pos_label)
    return value_of(name, FAIRNESS[name], counts, **options)


def fairness(
    name: str,
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    pos_label: Any = None,
    **options: Any,
) -> float:
    """One metric of :data:`~fairq_utils.metrics.FAIRNESS` from labels and predictions; a fraction.

    Parameters
    ----------
    name : str
    y_true, y_pred : 0 or 1, (N,)
        Any labels if ``pos_label`` is given.
    sensitive_features : DataFrame, mapping of name to values, Series, or array (N,) or (N, K)
        Several attributes are crossed.
    pos_label : optional
        The label that counts as 1, against all others.
    method : ``between_groups`` or ``to_overall``
        Not for worst groups.
    min_cell : int, default 1
        Groups whose denominator rests on fewer images take no part.
    agg : ``worst_case`` or ``mean``
        For metrics that join several rates.

    Warns
    -----
    LeftOutWarning
        Lists the groups that took no part, with their counts.

    Raises
    ------
    ValueError
        Unknown name, bad rows (see :func:`~fairq_utils.metrics.count`), or fewer than two groups
        for which the metric is defined.

    Examples
    --------
    >>> fairness("demographic_parity_difference", [1, 0, 1, 0], [1, 1, 1, 0],
    ...          sensitive_features=["a", "a", "b", "b"])
    0.5
    """
    if name not in FAIRNESS:
        raise ValueError(f"fairness: {name!r} is not one of {', '.join(FAIRNESS)}")
    return measured(
        name, y_true, y_pred, sensitive_features=sensitive_features, pos_label=pos_label, **options
    )


def rate_gap(
    rate: str,
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    compare: str = "difference",
    pos_label: Any = None,
    **options: Any,
) -> float:
    """Any rate of :data:`~fairq_utils.metrics.RATES`, compared over groups.

    Parameters
    ----------
    rate : str
    compare : str
        One of :data:`COMPARISONS`, the functions of these names on tables.
    y_true, y_pred, sensitive_features, pos_label, method, min_cell
        As in :func:`fairness`; ``method`` for the first two only.

    Raises
    ------
    ValueError
        As in :func:`fairness`.

    Examples
    --------
    >>> rate_gap("f1_score", [1, 0, 1, 0], [1, 1, 1, 0], sensitive_features=["a", "a", "b", "b"],
    ...          compare="worst_group")
    0.6666666666666666
    """
    if compare not in COMPARISONS:
        raise ValueError(f"compare: {compare!r} is not one of {', '.join(COMPARISONS)}")
    named(rate)
    counts = count(y_true, y_pred, sensitive_features=sensitive_features, pos_label=pos_label)
    criterion = Criterion((rate,), COMPARISONS[compare])
    return value_of(f"{rate} {compare}", criterion, counts, stacklevel=3, **options)
