"""From a rate per group to one number: difference, ratio, worst group, spread.

Groups without a rate take no part. A comparison needs two groups: where groups were left out and
fewer than two remain, the result is NaN, not a gap of 0. (A table of a single group has the gap 0
and the ratio 1, as in fairlearn.)
"""

from __future__ import annotations

from functools import reduce
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fairq_utils.metrics.rates import Floats, Table, named, overall, rate

Method = Literal["between_groups", "to_overall"]


def _check(method: str) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method: {method!r} is not one of {', '.join(get_args(Method))}")


def _extreme(values: Floats, largest: bool) -> Floats:
    """Largest or smallest over groups, leaving NaN groups out; NaN where every group is NaN."""
    # fmax and fmin pass over NaN, without nanmax's warning where there is nothing else. Group by
    # group, because the last axis is short and the replicates in front of it are many.
    return reduce(np.fmax if largest else np.fmin, np.moveaxis(values, -1, 0))


def _comparable(values: Floats) -> NDArray[np.bool_]:
    """Whether two groups have a rate (or the only one there is), (...)."""
    missing = np.isnan(values)
    if not missing.any():  # the usual case in a bootstrap, and counting is slow
        return np.ones(values.shape[:-1], np.bool_)
    out: NDArray[np.bool_] = (~missing).sum(axis=-1) >= min(2, values.shape[-1])
    return out


def difference_of(values: Floats, together: Floats, method: Method) -> Floats:
    """:func:`difference` of known values (..., G); ``together`` (...) is the value overall."""
    _check(method)
    if method == "between_groups":
        gap = _extreme(values, True) - _extreme(values, False)
    else:
        gap = _extreme(np.abs(values - together[..., None]), True)
    return np.where(_comparable(values), gap, np.nan)


def difference(
    table: Table, name: str, *, method: Method = "between_groups", min_cell: int = 1
) -> Floats:
    """Difference of a rate r over groups; a fraction, not points.

    ``between_groups``: max_g r_g - min_g r_g. ``to_overall``: max_g abs(r_g - r), where r is the
    rate of all groups together.

    Parameters
    ----------
    table : counts (..., G, 2, 2)
    name : str
        One of :data:`~fairq_utils.metrics.RATES`.
    method : ``between_groups`` or ``to_overall``
    min_cell : int
        Groups whose denominator rests on fewer images take no part.

    Returns
    -------
    float64 (...)
        NaN where fewer than two groups have a rate.

    Raises
    ------
    ValueError
        Unknown name or method, or ``min_cell`` below 1.

    Examples
    --------
    >>> table = [[[3, 1], [0, 0]], [[2, 2], [1, 3]], [[2, 2], [2, 2]]]
    >>> float(difference(table, "true_positive_rate"))  # the first group has nobody of label 1
    0.25
    >>> float(difference(table[:2], "true_positive_rate"))  # one rate is no comparison
    nan
    """
    values = rate(table, name, min_cell=min_cell)
    return difference_of(values, overall(table, name), method)


def _quotient(top: Floats, bottom: Floats) -> Floats:
    """``top / bottom``, NaN where the bottom is 0 or NaN."""
    positive = bottom > 0
    out: Floats = np.where(positive, top / np.where(positive, bottom, 1), np.nan)
    return out


def ratio_of(values: Floats, together: Floats, method: Method) -> Floats:
    """:func:`ratio` of known values (..., G); ``together`` (...) is the value overall."""
    _check(method)
    if method == "between_groups":
        share = _quotient(_extreme(values, False), _extreme(values, True))
    else:
        whole = together[..., None]
        inside = np.where(values <= whole, _quotient(values, whole), _quotient(whole, values))
        share = _extreme(np.where(np.isnan(values), np.nan, inside), False)
    return np.where(_comparable(values), share, np.nan)


def ratio(
    table: Table, name: str, *, method: Method = "between_groups", min_cell: int = 1
) -> Floats:
    """Ratio of a rate r over groups, between 0 and 1.

    ``between_groups``: min_g r_g / max_g r_g. ``to_overall``: the smallest over groups of
    min(r_g, r) / max(r_g, r), where r is the rate of all groups together. Parameters, errors and
    what is left out as in :func:`difference`; also NaN where every rate is 0.

    Examples
    --------
    >>> float(ratio([[[2, 2], [0, 0]], [[1, 3], [0, 0]]], "selection_rate").round(3))
    0.667
    """
    values = rate(table, name, min_cell=min_cell)
    return ratio_of(values, overall(table, name), method)


def worst_group(table: Table, name: str = "accuracy", *, min_cell: int = 1) -> Floats:
    """The rate of the group that fares worst, (...).

    The smallest where high is good (accuracy, true positive rate ...), the largest where low is
    good (error rate, false positive rate ...). One group with a rate suffices.

    Raises
    ------
    ValueError
        A rate of which neither end is the good one (selection rate, base rate, treatment ratio).

    Examples
    --------
    >>> table = [[[3, 1], [0, 0]], [[2, 2], [1, 3]]]
    >>> float(worst_group(table)), float(worst_group(table, "false_positive_rate"))
    (0.625, 0.5)
    """
    better = named(name).better
    if better is None:
        raise ValueError(f"worst_group: neither a high nor a low {name} is the worse one")
    return _extreme(rate(table, name, min_cell=min_cell), better == "low")


def gap_to_overall(table: Table, name: str, *, min_cell: int = 1) -> Floats:
    """Each group's rate minus the rate of all together, (..., G), signed.

    Examples
    --------
    >>> gap_to_overall([[[2, 2], [0, 0]], [[1, 3], [0, 0]]], "selection_rate")
    array([-0.125,  0.125])
    """
    return rate(table, name, min_cell=min_cell) - overall(table, name)[..., None]


def standard_deviation(table: Table, name: str, *, min_cell: int = 1) -> Floats:
    """Standard deviation of a rate over groups, each group counting once, (...).

    sqrt(mean_g (r_g - mean_g r_g)^2): the groups are all there are, not a sample, so the divisor is
    their number.

    Examples
    --------
    >>> float(standard_deviation([[[2, 2], [0, 0]], [[1, 3], [0, 0]]], "selection_rate"))
    0.125
    """
    values = rate(table, name, min_cell=min_cell)
    here = ~np.isnan(values)
    n = np.maximum(here.sum(axis=-1), 1)
    centre = np.where(here, values, 0).sum(axis=-1) / n
    squares = np.where(here, (values - centre[..., None]) ** 2, 0).sum(axis=-1)
    return np.where(_comparable(values), np.sqrt(squares / n), np.nan)
