"""Comparisons with a direction: an unprivileged side against a named privileged one.

AIF360 defines its group metrics this way. The groups named are pooled into the privileged side, all
others into the unprivileged side; differences are unprivileged minus privileged, so that a negative
selection rate difference is a disadvantage, and ratios can exceed 1. Parameters of all functions:

y_true, y_pred, sensitive_features, pos_label, sample_weight
    See :func:`~fairq_utils.metrics.count`.
privileged : group name, or several
    Crossed groups are named by their values joined by ``|``.
min_cell : int, default 1
    Fewest images that a side's denominator may rest on.

A side without a denominator is a :class:`~fairq_utils.errors.BadInput`; AIF360 returns NaN
there, or 0 for predictive values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairq_utils.errors import BadInput
from fairq_utils.metrics.counts import Counts, count
from fairq_utils.metrics.gaps import described, left_out
from fairq_utils.metrics.rates import rate as rate_of_table
from fairq_utils.metrics.rates import refuse_least
from fairq_utils.metrics.rows import Features

SIDES = ("unprivileged", "privileged")


def directed_difference(
    rate: str,
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    privileged: Any,
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Unprivileged minus privileged rate, any of :data:`~fairq_utils.metrics.RATES`.

    Examples
    --------
    >>> directed_difference("selection_rate", [1, 0, 1, 0], [0, 1, 1, 1],
    ...                     sensitive_features=["f", "f", "m", "m"], privileged="m")
    -0.5
    """
    counts = count(
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )
    name = f"directed_difference of {rate}"
    ((outside, inside),) = _sides(name, (rate,), counts, privileged, min_cell)
    return outside - inside


def directed_ratio(
    rate: str,
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    privileged: Any,
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Unprivileged over privileged rate; with ``selection_rate``, AIF360's disparate impact.

    Raises
    ------
    BadInput
        Also where the privileged side's rate is 0.

    Examples
    --------
    >>> directed_ratio("selection_rate", [1, 0, 1, 0], [1, 1, 1, 0],
    ...                sensitive_features=["f", "f", "m", "m"], privileged="m")
    2.0
    """
    counts = count(
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )
    name = f"directed_ratio of {rate}"
    ((outside, inside),) = _sides(name, (rate,), counts, privileged, min_cell)
    if inside == 0:
        raise BadInput(
            f"{name} is not defined: the privileged side has 0; use directed_difference, or take "
            "the other side as privileged"
        )
    return outside / inside


def statistical_parity_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    privileged: Any,
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Unprivileged minus privileged selection rate, as AIF360's metric of this name.

    Examples
    --------
    >>> statistical_parity_difference([1, 0, 1, 0], [0, 1, 1, 1], privileged="m",
    ...                               sensitive_features=["f", "f", "m", "m"])
    -0.5
    """
    return directed_difference(
        "selection_rate",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        privileged=privileged,
        min_cell=min_cell,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )


def average_odds_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    privileged: Any,
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean of the signed differences in true and in false positive rate, as AIF360 defines it.

    ((t_u - t_p) + (f_u - f_p)) / 2 with u the unprivileged and p the privileged side. The two can
    cancel; :func:`~fairq_utils.metrics.average_abs_odds_difference` cannot.

    Examples
    --------
    >>> average_odds_difference([1, 0, 1, 0], [0, 0, 1, 0], privileged="m",
    ...                         sensitive_features=["f", "f", "m", "m"])
    -0.5
    """
    counts = count(
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )
    odds = ("true_positive_rate", "false_positive_rate")
    sides = _sides("average_odds_difference", odds, counts, privileged, min_cell)
    return sum(outside - inside for outside, inside in sides) / 2


def pooled(counts: Counts, privileged: Any, table: NDArray[Any] | None = None) -> NDArray[Any]:
    """Counts (2, 2, 2) of the compared predictions: unprivileged side, privileged side.

    Of another table (G, 2, 2) of these groups, where one is given.

    Raises
    ------
    BadInput
        A name that is no group, or a side without groups.

    Examples
    --------
    >>> counts = count([1, 0, 1], [1, 1, 0], sensitive_features=["a", "b", "c"])
    >>> pooled(counts, ["a", "b"]).tolist()
    [[[0, 0], [1, 0]], [[0, 1], [0, 1]]]
    """
    several = isinstance(privileged, Iterable) and not isinstance(privileged, str)
    names = {str(name) for name in (privileged if several else [privileged])}
    unknown = sorted(names - set(counts.groups))
    if unknown:
        raise BadInput(
            f"privileged: {unknown[0]!r} is not among {', '.join(counts.groups)}; name one or more "
            "of these"
        )
    inside = np.array([group in names for group in counts.groups])
    if inside.all() or not inside.any():
        raise BadInput(
            f"privileged: {len(names)} of {len(counts.groups)} groups leave one side empty; "
            "name at least one, and not all"
        )
    table = counts.compared if table is None else table
    return np.stack([table[~inside].sum(axis=0), table[inside].sum(axis=0)])


def _sides(
    metric: str, names: tuple[str, ...], counts: Counts, privileged: Any, min_cell: int
) -> list[tuple[float, float]]:
    """Each rate of the unprivileged and of the privileged side."""
    table = pooled(counts, privileged)
    refuse_least(min_cell, counts.images is not None)
    seen = pooled(counts, privileged, counts.seen.sum(axis=2))
    cells = left_out(seen, names, groups=SIDES, min_cell=min_cell)
    if len(cells):
        raise BadInput(
            f"{metric} is not defined: left out {described(cells)}; give more rows of these, or "
            "lower min_cell"
        )
    pairs = [rate_of_table(table, name) for name in names]
    return [(float(first), float(second)) for first, second in pairs]
