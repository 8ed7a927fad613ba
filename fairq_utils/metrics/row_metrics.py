"""Criteria and rates of labelled rows: ``metric(y_true, y_pred, *, sensitive_features, ...)``.

Each function is made from its entry in :data:`~fairq_utils.metrics.FAIRNESS` or
:data:`~fairq_utils.metrics.RATES`. A value that is not defined is an error with its reason; groups
that take no part are a :class:`~fairq_utils.metrics.LeftOutWarning` that lists them.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairq_utils.errors import BadInput
from fairq_utils.metrics.counts import Counts, count, everyone
from fairq_utils.metrics.criteria import FAIRNESS, Aggregate, Criterion
from fairq_utils.metrics.docstrings import criterion_docstring, rate_docstring
from fairq_utils.metrics.gaps import COMPARISONS, LeftOutWarning, Method, described, left_out
from fairq_utils.metrics.rates import named, overall, rate, refuse_least
from fairq_utils.metrics.rows import Features
from fairq_utils.registry import unknown


class RowMetric(Protocol):
    """A criterion of labelled rows; a criterion of one rate has no ``agg``."""

    __name__: str

    def __call__(
        self,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        sensitive_features: Features,
        method: Method = "between_groups",
        agg: Aggregate = "worst_case",
        min_cell: int = 1,
        pos_label: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """See :func:`row_metric`."""


class RowRate(Protocol):
    """A rate of labelled rows: a float, or a Series with one value for each group."""

    __name__: str

    def __call__(
        self,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        sensitive_features: Features | None = None,
        min_cell: int = 1,
        pos_label: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> Any:
        """See :func:`row_rate`."""


def row_metric(name: str) -> RowMetric:
    """Function of labelled rows for a criterion of :data:`~fairq_utils.metrics.FAIRNESS`.

    Raises
    ------
    BadInput
        There is none of that name; names the nearest.

    Examples
    --------
    >>> row_metric("demographic_parity_difference")([1, 0, 1, 0], [1, 1, 1, 0],
    ...                                             sensitive_features=["a", "a", "b", "b"])
    0.5
    """
    return _of_rows(FAIRNESS.find(name, "row_metric"))


def row_rate(name: str) -> RowRate:
    """Function of labelled rows for a rate of :data:`~fairq_utils.metrics.RATES`.

    Raises
    ------
    BadInput
        There is none of that name; names the nearest.

    Examples
    --------
    >>> row_rate("selection_rate")([1, 0, 1, 0], [1, 1, 1, 0])
    0.75
    >>> row_rate("selection_rate")([1, 0, 1, 0], [1, 1, 1, 0],
    ...                            sensitive_features=["a", "a", "b", "b"])
    group
    a    1.0
    b    0.5
    Name: selection_rate, dtype: float64
    >>> row_rate("true_positive_rate")([0, 0], [1, 0])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fairq_utils.errors.BadInput: true_positive_rate is not defined: there are 0 images ...
    """
    chosen = named(name)

    def of_rows(
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        sensitive_features: Features | None = None,
        min_cell: int = 1,
        pos_label: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> Any:
        read: dict[str, Any] = {"pos_label": pos_label, "sample_weight": sample_weight}
        if sensitive_features is None:
            refuse_least(min_cell, sample_weight is not None)
            table = everyone(y_true, y_pred, **read)
            value = float(overall(table, name, min_cell=min_cell))
            if np.isnan(value):
                raise BadInput(
                    f"{name} is not defined: there are {int(chosen.support(table)[0])} "
                    f"{chosen.among}, at least {min_cell} needed; give more rows of these"
                )
            return value
        counts = count(y_true, y_pred, sensitive_features=sensitive_features, **read)
        refuse_least(min_cell, counts.images is not None)
        values = rate(counts.compared, name, min_cell=min_cell)
        values = pd.Series(values, index=counts.index, name=name)
        cells = left_out(counts.seen.sum(axis=2), [name], groups=counts.groups, min_cell=min_cell)
        if values.isna().all():
            raise BadInput(
                f"{name} is not defined in any group: left out {described(cells)}; give more rows "
                "of these, or lower min_cell"
            )
        if len(cells):
            warnings.warn(LeftOutWarning(name, cells), stacklevel=2)
        return values

    of_rows.__name__ = of_rows.__qualname__ = name
    of_rows.__doc__ = rate_docstring(chosen)
    return of_rows


def rate_gap(
    rate: str,
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    compare: str = "difference",
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
    **options: Any,
) -> float:
    """Any rate of :data:`~fairq_utils.metrics.RATES`, compared over groups.

    Parameters
    ----------
    rate : str
    compare : str
        ``difference``, ``ratio``, ``worst_group`` or ``standard_deviation``: the functions of these
        names on tables.
    y_true, y_pred, sensitive_features, pos_label, sample_weight, method, min_cell
        As in :func:`equalized_odds_difference`; ``method`` for the first two only.

    Raises
    ------
    BadInput
        As in :func:`equalized_odds_difference`.

    Examples
    --------
    >>> rate_gap("f1_score", [1, 0, 1, 0], [1, 1, 1, 0], sensitive_features=["a", "a", "b", "b"],
    ...          compare="worst_group")
    0.6666666666666666
    """
    counts = count(
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )
    return value_of(_of_rate(rate, compare), counts, **options)


def value_of(criterion: Criterion, counts: Counts, *, min_cell: int = 1, **options: Any) -> float:
    """A criterion of the compared predictions; a warning points at the caller's caller.

    Raises
    ------
    BadInput
        Fewer than two groups for which it is defined, or 0 / 0.
    """
    refuse_least(min_cell, counts.images is not None)
    value = float(criterion(counts.compared, min_cell=min_cell, **options))
    seen = counts.seen.sum(axis=2)
    cells = left_out(seen, criterion.rates, groups=counts.groups, min_cell=min_cell)
    if np.isnan(value):
        if len(cells):
            reason = (
                f"too few groups have a denominator; left out {described(cells)}; give "
                "more rows of these, or lower min_cell"
            )
        else:
            reason = (
                f"{' and '.join(criterion.rates)} is 0 in every group, and 0 / 0 has no value; "
                "take a difference instead"
            )
        raise BadInput(f"{criterion.name} is not defined: {reason}")
    if len(cells):
        warnings.warn(LeftOutWarning(criterion.name, cells), stacklevel=3)
    return value


def four_fifths_rule(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> bool:
    """Four-fifths rule: every group's selection rate is at least 0.8 of the highest.

    The rule of thumb of the Uniform Guidelines on Employee Selection Procedures (29 CFR 1607.4 D,
    1978). Compared in whole numbers: 0.36 / 0.45 passes, though as floats it is below 0.8. Where
    nobody is selected, no group is selected less often than another, and the rule is met.
    Parameters and errors as in :func:`disparate_impact`; it needs two groups of ``min_cell`` images
    unless there is only one group.

    Examples
    --------
    >>> four_fifths_rule([1, 1, 0, 0], [1, 1, 1, 0], sensitive_features=["a", "a", "b", "b"])
    False
    """
    counts = count(
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )
    # Its warning and its errors for groups that are too small.
    parity = replace(FAIRNESS["demographic_parity_difference"], name="four_fifths_rule")
    value_of(parity, counts, min_cell=min_cell)
    table = counts.compared
    selected, whole = table[:, :, 1].sum(axis=1), table.sum(axis=(1, 2))
    rates = [
        Fraction(k) / Fraction(n)  # a sum of weights too is a fraction of whole numbers
        for k, n, images in zip(
            selected.tolist(), whole.tolist(), counts.sizes.tolist(), strict=True
        )
        if images >= min_cell
    ]
    return min(rates) >= Fraction(4, 5) * max(rates)


def _of_rate(rate: str, compare: str) -> Criterion:
    """Criterion of any rate and comparison."""
    if compare not in COMPARISONS:
        raise BadInput(f"compare: {unknown(compare, COMPARISONS)}")
    words = f"{compare} of {named(rate).name}".replace("_", " ")
    return Criterion(
        f"{rate}_{compare}",
        (rate,),
        COMPARISONS[compare],
        title=f"{words.capitalize()} over groups",
        formula=f"The rate of a group is {named(rate).formula}",
        source="fairlearn's function of this name",
    )


def _of_rows(criterion: Criterion) -> RowMetric:
    """Function of labelled rows for a criterion."""
    chosen = criterion.options

    def of_rows(
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        sensitive_features: Features,
        pos_label: Any = None,
        sample_weight: ArrayLike | None = None,
        **options: Any,
    ) -> float:
        for option in options:
            if option not in (*chosen, "min_cell"):
                raise TypeError(f"{criterion.name}() got an unexpected keyword argument {option!r}")
        counts = count(
            y_true,
            y_pred,
            sensitive_features=sensitive_features,
            pos_label=pos_label,
            sample_weight=sample_weight,
        )
        return value_of(criterion, counts, **options)

    absent = {"method", "agg"} - set(chosen)
    whole = inspect.signature(RowMetric.__call__)
    of_rows.__signature__ = whole.replace(  # type: ignore[attr-defined]
        parameters=[p for p in whole.parameters.values() if p.name not in {"self", *absent}]
    )
    of_rows.__name__ = of_rows.__qualname__ = criterion.name
    of_rows.__doc__ = criterion_docstring(criterion)
    return of_rows


# The criteria.
demographic_parity_difference = row_metric("demographic_parity_difference")
demographic_parity_ratio = row_metric("demographic_parity_ratio")
disparate_impact = row_metric("disparate_impact")
equalized_odds_difference = row_metric("equalized_odds_difference")
equalized_odds_ratio = row_metric("equalized_odds_ratio")
average_abs_odds_difference = row_metric("average_abs_odds_difference")
equal_opportunity_difference = row_metric("equal_opportunity_difference")
equal_opportunity_ratio = row_metric("equal_opportunity_ratio")
predictive_equality_difference = row_metric("predictive_equality_difference")
predictive_equality_ratio = row_metric("predictive_equality_ratio")
predictive_parity_difference = row_metric("predictive_parity_difference")
predictive_parity_ratio = row_metric("predictive_parity_ratio")
treatment_equality_difference = row_metric("treatment_equality_difference")
treatment_equality_ratio = row_metric("treatment_equality_ratio")
accuracy_difference = row_metric("accuracy_difference")
accuracy_ratio = row_metric("accuracy_ratio")
worst_group_accuracy = row_metric("worst_group_accuracy")

# The rates.
accuracy = row_rate("accuracy")
balanced_accuracy = row_rate("balanced_accuracy")
base_rate = row_rate("base_rate")
error_rate = row_rate("error_rate")
f1_score = row_rate("f1_score")
false_discovery_rate = row_rate("false_discovery_rate")
false_negative_rate = row_rate("false_negative_rate")
false_omission_rate = row_rate("false_omission_rate")
false_positive_rate = row_rate("false_positive_rate")
negative_predictive_value = row_rate("negative_predictive_value")
positive_predictive_value = row_rate("positive_predictive_value")
selection_rate = row_rate("selection_rate")
treatment_ratio = row_rate("treatment_ratio")
true_negative_rate = row_rate("true_negative_rate")
true_positive_rate = row_rate("true_positive_rate")

# fairlearn's generated names. The criteria's names (equal opportunity ...) say what they are for.
selection_rate_difference = _of_rows(_of_rate("selection_rate", "difference"))
selection_rate_ratio = _of_rows(_of_rate("selection_rate", "ratio"))
true_positive_rate_difference = _of_rows(_of_rate("true_positive_rate", "difference"))
true_positive_rate_ratio = _of_rows(_of_rate("true_positive_rate", "ratio"))
true_negative_rate_difference = _of_rows(_of_rate("true_negative_rate", "difference"))
true_negative_rate_ratio = _of_rows(_of_rate("true_negative_rate", "ratio"))
false_positive_rate_difference = _of_rows(_of_rate("false_positive_rate", "difference"))
false_positive_rate_ratio = _of_rows(_of_rate("false_positive_rate", "ratio"))
false_negative_rate_difference = _of_rows(_of_rate("false_negative_rate", "difference"))
false_negative_rate_ratio = _of_rows(_of_rate("false_negative_rate", "ratio"))
