"""Trend of a quantity with the capacity of the architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from fairq_utils.given import numbers
from fairq_utils.stats.across_seeds import varies


@dataclass(frozen=True)
class Trend:
    """Two tests of a trend with capacity.

    Attributes
    ----------
    spearman, spearman_p : float
        Rank correlation of capacity with the mean over seeds, and its two-sided permutation
        p-value, exact up to seven architectures. Architectures are the sample: five of them can
        reach 2 / 5! = 0.017 at best.
    page, page_p : float
        Page's (1963) statistic and its one-sided p-value for the predicted direction. Seeds are the
        sample here: it says that these architectures are in order, not that capacity orders others.
    """

    spearman: float
    spearman_p: float
    page: float
    page_p: float


def trend(
    capacity: ArrayLike,
    values: ArrayLike,
    *,
    predicted: Literal["increasing", "decreasing"] = "increasing",
) -> Trend:
    """Trend of a quantity over architectures of growing capacity (Spearman; Page 1963).

    Parameters
    ----------
    capacity : (K,)
        Such as the number of parameters; all different.
    values : (S, K)
        The quantity for every seed and architecture, S of at least 2 and K of at least 3.
    predicted : "increasing" or "decreasing"
        The direction that Page's test is for, fixed before the data are seen.

    Examples
    --------
    >>> found = trend([1.2, 3.5, 5.3, 22, 25.6],
    ...               [[5, 4, 3, 2, 1], [5, 4, 2, 3, 1], [4, 5, 3, 2, 1]], predicted="decreasing")
    >>> round(found.spearman, 3), round(found.spearman_p, 3), found.page_p < 0.001
    (-1.0, 0.017, True)
    """
    size, table = numbers(capacity, "capacity"), numbers(values, "values")
    known = size.ndim == 1 and np.isfinite(size).all()
    if not known or len(np.unique(size)) != len(size) or len(size) < 3:
        raise ValueError("capacity: must be one row of at least three different finite values")
    if table.ndim != 2 or table.shape[1] != len(size) or len(table) < 2:
        raise ValueError(
            f"values has shape {table.shape}; it must be (seeds, {len(size)}), at least two seeds"
        )
    if not np.isfinite(table).all():
        s, k = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(f"values[{s}, {k}] is {table[s, k]}, which cannot be ranked")
    if predicted not in ("increasing", "decreasing"):
        raise ValueError(f"predicted: {predicted!r} is not one of increasing, decreasing")
    ordered = table[:, np.argsort(size)]
    if predicted == "decreasing":
        ordered = ordered[:, ::-1]
    page = scipy_stats.page_trend_test(ordered)
    means = table.mean(axis=0)
    if not varies(means):
        return Trend(0.0, 1.0, float(page.statistic), float(page.pvalue))
    rank = scipy_stats.permutation_test(
        (means,),
        lambda shuffled: scipy_stats.spearmanr(size, shuffled).statistic,
        permutation_type="pairings",
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return Trend(
        float(rank.statistic), float(rank.pvalue), float(page.statistic), float(page.pvalue)
    )
