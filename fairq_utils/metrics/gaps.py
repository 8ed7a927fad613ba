"""Gaps: from a rate per group to one number, and the groups that take no part in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.errors import BadInput
from fairq_utils.given import each_name
from fairq_utils.metrics.rates import Floats, Table, check_min_cell, named, overall, rate

Method = Literal["between_groups", "to_overall"]


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
    BadInput
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
    """Rate of the group with the worst one; a fraction.

    The smallest where high is good (accuracy, true positive rate ...), the largest where low is
    good (error rate, false positive rate ...). One group with a rate suffices.

    Returns
    -------
    float64 (...)

    Raises
    ------
    BadInput
        A rate of which neither end is the good one (selection rate, base rate, treatment ratio).

    Examples
    --------
    >>> table = [[[3, 1], [0, 0]], [[2, 2], [1, 3]]]
    >>> float(worst_group(table)), float(worst_group(table, "false_positive_rate"))
    (0.625, 0.5)
    """
    better = named(name).better
    if better is None:
        raise BadInput(
            f"worst_group: neither a high nor a low {name} is the worse one; "
            "compare it by its difference or ratio"
        )
    return _extreme(rate(table, name, min_cell=min_cell), better == "low")


def standard_deviation(table: Table, name: str, *, min_cell: int = 1) -> Floats:
    """Standard deviation of a rate over groups, each group counting once; a fraction.

    sqrt(mean_g (r_g - mean_g r_g)^2): the groups are all there are, not a sample, so the divisor is
    their number.

    Returns
    -------
    float64 (...)
        NaN where fewer than two groups have a rate.

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


def gap_to_overall(table: Table, name: str, *, min_cell: int = 1) -> Floats:
    """Each group's rate minus the rate of all together, (..., G), signed.

    Examples
    --------
    >>> gap_to_overall([[[2, 2], [0, 0]], [[1, 3], [0, 0]]], "selection_rate")
    array([-0.125,  0.125])
    """
    return rate(table, name, min_cell=min_cell) - overall(table, name)[..., None]


COMPARISONS: dict[str, Callable[..., Floats]] = {
    "difference": difference,
    "ratio": ratio,
    "worst_group": worst_group,
    "standard_deviation": standard_deviation,
}


def difference_to_rest(table: Table, name: str, group: int) -> Floats:
    """Rate of one group less that of all others together, signed; a fraction.

    A group that is named before the data are seen has no kink where groups are equal, as the
    largest of several differences has, and nothing pushes it upwards.

    Parameters
    ----------
    table : counts (..., G, 2, 2)
    name : str
        One of :data:`~fairq_utils.metrics.RATES`.
    group : int
        Its place, 0 to G - 1.

    Examples
    --------
    >>> table = [[[3, 1], [0, 4]], [[2, 2], [1, 3]], [[2, 2], [2, 2]]]
    >>> float(difference_to_rest(table, "accuracy", 0))
    0.3125
    """
    counts = np.asarray(table)
    others = np.delete(counts, group, axis=-3)
    both = np.stack([counts[..., group, :, :], others.sum(axis=-3)], axis=-3)
    values = rate(both, name)
    out: Floats = values[..., 0] - values[..., 1]
    return out


class LeftOutWarning(UserWarning):
    """Some groups took no part in a metric, because its denominator was too small there.

    Attributes
    ----------
    metric : str
    cells : DataFrame
        See :func:`left_out`.
    """

    def __init__(self, metric: str, cells: pd.DataFrame) -> None:
        super().__init__(f"{metric}: left out {described(cells)}")
        self.metric = metric
        self.cells = cells


def left_out(
    table: Table, names: Iterable[str], *, groups: Sequence[str], min_cell: int = 1
) -> pd.DataFrame:
    """The cells group x rate that take no part in a comparison.

    Parameters
    ----------
    table : counts (G, 2, 2)
    names : rates in :data:`~fairq_utils.metrics.RATES`
    groups : G names
    min_cell : int
        Smallest number of images that a denominator may rest on.

    Returns
    -------
    DataFrame
        One row per cell: ``rate``, ``group``, ``among`` (what the denominator counts), ``count``
        (how many of them there are), ``min_cell``. No rows if every group takes part.

    Raises
    ------
    BadInput
        Unknown rate, ``min_cell`` below 1, or a table of another shape.

    Examples
    --------
    >>> table = [[[3, 1], [0, 0]], [[2, 2], [1, 3]]]
    >>> left_out(table, ["accuracy", "true_positive_rate"], groups=["a", "b"])
                     rate group              among  count  min_cell
    0  true_positive_rate     a  images of label 1      0         1
    """
    check_min_cell(min_cell)
    groups, counts = each_name(groups), np.asarray(table)
    if counts.shape != (len(groups), 2, 2):
        raise BadInput(
            f"table has shape {counts.shape}, but {len(groups)} groups need ({len(groups)}, 2, 2)"
        )
    found = [
        (name, groups[int(at)], named(name).among, int(support[at]), min_cell)
        for name in each_name(names)
        for support in [named(name).support(counts)]
        for at in np.flatnonzero(support < min_cell)
    ]
    return pd.DataFrame(found, columns=["rate", "group", "among", "count", "min_cell"])


def described(cells: pd.DataFrame) -> str:
    """The cells of :func:`left_out` as one clause of a sentence."""
    return "; ".join(
        f"{group} from {rate} ({count} {among}, at least {least} needed)"
        for rate, group, among, count, least in cells.itertuples(index=False)
    )


def difference_of(values: Floats, together: Floats, method: Method) -> Floats:
    """:func:`difference` of known values (..., G); ``together`` (...) is the value overall."""
    _check(method)
    if method == "between_groups":
        gap = _extreme(values, True) - _extreme(values, False)
    else:
        gap = _extreme(np.abs(values - together[..., None]), True)
    return np.where(_comparable(values), gap, np.nan)


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


def _check(method: str) -> None:
    if method not in get_args(Method):
        raise BadInput(f"method: {method!r} is not one of {', '.join(get_args(Method))}")


def _extreme(values: Floats, largest: bool) -> Floats:
    """Largest or smallest over groups, leaving NaN groups out; NaN where every group is NaN."""
    # fmax and fmin pass over NaN, without nanmax's warning where there is nothing else. Group by
    # group, because the last axis is short and the replicates in front of it are many.
    return reduce(np.fmax if largest else np.fmin, np.moveaxis(values, -1, 0))


def _comparable(values: Floats) -> NDArray[np.bool_]:
    """True where two groups have a rate (or the only one there is), (...)."""
    missing = np.isnan(values)
    if not missing.any():  # the usual case in a bootstrap, and counting is slow
        return np.ones(values.shape[:-1], np.bool_)
    out: NDArray[np.bool_] = (~missing).sum(axis=-1) >= min(2, values.shape[-1])
    return out


def _quotient(top: Floats, bottom: Floats) -> Floats:
    """``top / bottom``, NaN where the bottom is 0 or NaN."""
    positive = bottom > 0
    out: Floats = np.where(positive, top / np.where(positive, bottom, 1), np.nan)
    return out
