"""Which groups take no part in a metric, with their counts: nothing is left out silently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from fairq_utils.metrics.rates import Table, check_min_cell, named


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
    ValueError
        Unknown rate, ``min_cell`` below 1, or a table of another shape.

    Examples
    --------
    >>> table = [[[3, 1], [0, 0]], [[2, 2], [1, 3]]]
    >>> left_out(table, ["accuracy", "true_positive_rate"], groups=["a", "b"])
                     rate group              among  count  min_cell
    0  true_positive_rate     a  images of label 1      0         1
    """
    check_min_cell(min_cell)
    counts = np.asarray(table)
    if counts.shape != (len(groups), 2, 2):
        raise ValueError(
            f"table has shape {counts.shape}, but {len(groups)} groups need ({len(groups)}, 2, 2)"
        )
    found = [
        (name, groups[int(at)], named(name).among, int(support[at]), min_cell)
        for name in names
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
