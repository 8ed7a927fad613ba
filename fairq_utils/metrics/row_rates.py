"""The rates of labelled rows: of all of them, or of each group.

``true_positive_rate(y_true, y_pred)`` is a fraction, as in fairlearn; with ``sensitive_features``
it is a Series with one fraction per group. All functions here are made from
:data:`~fairq_utils.metrics.RATES` and take the same arguments:

y_true, y_pred : 0 or 1, (N,)
    Any labels if ``pos_label`` is given.
sensitive_features : optional
    See :func:`~fairq_utils.metrics.count`.
min_cell : int, default 1
    Groups whose denominator rests on fewer images get NaN, with a
    :class:`~fairq_utils.metrics.LeftOutWarning` that lists them.
pos_label : optional
    The label that counts as 1, against all others.

A rate whose denominator is empty everywhere is a ``ValueError``. fairlearn and scikit-learn return
0 there, or the rate that is left (balanced accuracy).

Examples
--------
>>> selection_rate([1, 0, 1, 0], [1, 1, 1, 0])
0.75
>>> selection_rate([1, 0, 1, 0], [1, 1, 1, 0], sensitive_features=["a", "a", "b", "b"])
group
a    1.0
b    0.5
Name: selection_rate, dtype: float64
>>> true_positive_rate([0, 0], [1, 0])
Traceback (most recent call last):
ValueError: true_positive_rate is not defined: there are 0 images of label 1, at least 1 needed
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairq_utils.metrics.counts import count, everyone
from fairq_utils.metrics.evaluation import rate_gap
from fairq_utils.metrics.gaps import LeftOutWarning, described, left_out
from fairq_utils.metrics.rates import named, overall, rate
from fairq_utils.metrics.rows import Features


def _of_rows(name: str) -> Callable[..., Any]:
    """The function of labelled rows for a rate."""

    def rate_of_rows(
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        sensitive_features: Features | None = None,
        min_cell: int = 1,
        pos_label: Any = None,
    ) -> Any:
        if sensitive_features is None:
            table = everyone(y_true, y_pred, pos_label=pos_label)
            value = float(overall(table, name, min_cell=min_cell))
            if np.isnan(value):
                n, among = int(named(name).support(table)[0]), named(name).among
                raise ValueError(
                    f"{name} is not defined: there are {n} {among}, at least {min_cell} needed"
                )
            return value
        counts = count(y_true, y_pred, sensitive_features=sensitive_features, pos_label=pos_label)
        table = counts.compared
        values = pd.Series(rate(table, name, min_cell=min_cell), index=counts.index, name=name)
        cells = left_out(table, [name], groups=counts.groups, min_cell=min_cell)
        if values.isna().all():
            raise ValueError(f"{name} is not defined in any group: left out {described(cells)}")
        if len(cells):
            warnings.warn(LeftOutWarning(name, cells), stacklevel=2)
        return values

    rate_of_rows.__name__ = rate_of_rows.__qualname__ = name
    rate_of_rows.__doc__ = (
        f"{name.capitalize().replace('_', ' ')} among {named(name).among}, a fraction.\n\n"
        "Of all rows (float), or of each group if ``sensitive_features`` is given (Series); the\n"
        "arguments are described in :mod:`fairq_utils.metrics.row_rates`."
    )
    return rate_of_rows


accuracy = _of_rows("accuracy")
balanced_accuracy = _of_rows("balanced_accuracy")
base_rate = _of_rows("base_rate")
error_rate = _of_rows("error_rate")
f1_score = _of_rows("f1_score")
false_discovery_rate = _of_rows("false_discovery_rate")
false_negative_rate = _of_rows("false_negative_rate")
false_omission_rate = _of_rows("false_omission_rate")
false_positive_rate = _of_rows("false_positive_rate")
negative_predictive_value = _of_rows("negative_predictive_value")
positive_predictive_value = _of_rows("positive_predictive_value")
selection_rate = _of_rows("selection_rate")
treatment_ratio = _of_rows("treatment_ratio")
true_negative_rate = _of_rows("true_negative_rate")
true_positive_rate = _of_rows("true_positive_rate")

# fairlearn's generated names. The criteria's names (equal opportunity ...) say what they are for.
selection_rate_difference = partial(rate_gap, "selection_rate")
selection_rate_ratio = partial(rate_gap, "selection_rate", compare="ratio")
true_positive_rate_difference = partial(rate_gap, "true_positive_rate")
true_positive_rate_ratio = partial(rate_gap, "true_positive_rate", compare="ratio")
true_negative_rate_difference = partial(rate_gap, "true_negative_rate")
true_negative_rate_ratio = partial(rate_gap, "true_negative_rate", compare="ratio")
false_positive_rate_difference = partial(rate_gap, "false_positive_rate")
false_positive_rate_ratio = partial(rate_gap, "false_positive_rate", compare="ratio")
false_negative_rate_difference = partial(rate_gap, "false_negative_rate")
false_negative_rate_ratio = partial(rate_gap, "false_negative_rate", compare="ratio")
