"""Intervals, noise floors and tests, all from counts.

A bootstrap over images is one multinomial draw over the cells of group x label x prediction x
prediction, so ten thousand replicates of every metric cost milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

Statistic = Callable[[NDArray[Any]], NDArray[Any]]


def resample(tables: Sequence[NDArray[Any]], replicates: int, seed: int) -> NDArray[np.int64]:
    """Bootstrap replicates of paired counts.

    With several tables (one per training seed) the seeds are resampled first, then the images
    within each: the hierarchical bootstrap (Davison and Hinkley 1997, section 3.8).

    Parameters
    ----------
    tables : S arrays (G, 2, 2, 2)
    replicates : int

    Returns
    -------
    int64 (S, replicates, G, 2, 2, 2)
        Slot s of replicate b is a resampled image set of the seed drawn for that slot.
    """
    if not len(tables):
        raise ValueError("tables is empty: there is nothing to resample")
    rng = np.random.default_rng(seed)
    stacked = np.stack([np.asarray(t) for t in tables])
    totals = stacked.reshape(len(stacked), -1).sum(axis=1)
    if (totals == 0).any():
        raise ValueError(f"tables[{int(np.argmin(totals))}] counts no image")
    probabilities = stacked.reshape(len(stacked), -1) / totals[:, None]
    if len(stacked) == 1:
        drawn = rng.multinomial(totals[0], probabilities[0], size=(1, replicates))
    else:
        which = rng.integers(len(stacked), size=(len(stacked), replicates))
        drawn = rng.multinomial(totals[which], probabilities[which])
    return drawn.reshape(len(stacked), replicates, *stacked.shape[1:])


def paired_bootstrap(
    tables: Sequence[NDArray[Any]],
    statistics: Mapping[str, Statistic],
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Each statistic of the reference and the compared predictions, and their paired change.

    Parameters
    ----------
    tables : S arrays (G, 2, 2, 2)
        Group x label x reference prediction x compared prediction; one per training seed.
    statistics : mapping of name to function
        From tables (..., G, 2, 2) to values (...).
    replicates, confidence, seed
        Bootstrap replicates; coverage of the percentile intervals; seed of the resampling.

    Returns
    -------
    DataFrame
        ``statistic``, ``reference``, ``compared``, ``change`` (means over seeds), ``low``, ``high``
        (interval of the change), ``reference_low`` ... ``compared_high``.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} is not between 0 and 1")
    if replicates < 2:
        raise ValueError(f"replicates: {replicates} is not at least 2")
    drawn = resample(tables, replicates, seed)
    observed = np.stack([np.asarray(t) for t in tables])
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    rows = []
    for name, statistic in statistics.items():
        reference = np.asarray(statistic(drawn.sum(axis=-1))).mean(axis=0)
        compared = np.asarray(statistic(drawn.sum(axis=-2))).mean(axis=0)
        at_reference = float(np.mean(statistic(observed.sum(axis=-1))))
        at_compared = float(np.mean(statistic(observed.sum(axis=-2))))
        low, high = _interval(compared - reference, tails)
        reference_low, reference_high = _interval(reference, tails)
        compared_low, compared_high = _interval(compared, tails)
        rows.append(
            {
                "statistic": name,
                "reference": at_reference,
                "compared": at_compared,
                "change": at_compared - at_reference,
                "low": low,
                "high": high,
                "reference_low": reference_low,
                "reference_high": reference_high,
                "compared_low": compared_low,
                "compared_high": compared_high,
            }
        )
    return pd.DataFrame(rows)


def _interval(values: NDArray[Any], tails: list[float]) -> tuple[float, float]:
    """Percentile interval over replicates in which the statistic is defined."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, tails)
    return float(low), float(high)


def null_gaps(
    sizes: Sequence[int], rate: float, *, replicates: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Max-min gaps (replicates,) of a rate over groups that do not differ."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: {rate} is not between 0 and 1")
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError("sizes: a gap needs at least two groups of at least one image")
    rng = np.random.default_rng(seed)
    n = np.asarray(sizes)
    rates = rng.binomial(n, rate, size=(replicates, len(n))) / n
    gaps: NDArray[np.float64] = np.ptp(rates, axis=1)
    return gaps


def noise_floor(
    sizes: Sequence[int], rate: float, *, replicates: int = 20000, seed: int = 0
) -> tuple[float, float]:
    """Mean and 95th percentile of :func:`null_gaps`: what chance alone makes of a max-min gap."""
    gaps = null_gaps(sizes, rate, replicates=replicates, seed=seed)
    return float(gaps.mean()), float(np.quantile(gaps, 0.95))


def change_noise_floor(
    table: NDArray[Any],
    flips: float,
    statistic: Statistic,
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> float:
    """How far a gap's change wanders when answers flip without regard to groups.

    The null model: every group keeps its label x prediction counts in expectation, and in each
    cell of group x label as many answers flip in one direction as in the other, ``flips`` of all
    answers overall. The gap's expected change is then zero, and what is seen is chance.

    Parameters
    ----------
    table : (G, 2, 2)
        Group x label x prediction of the reference.
    flips : float
        Share of all predictions that differ between the two models.

    Returns
    -------
    float
        The 95th percentile of the absolute change, a fraction.
    """
    if not 0 <= flips <= 1:
        raise ValueError(f"flips: {flips} is not between 0 and 1")
    table = np.asarray(table, float)
    within = table.sum(axis=-1)
    # Flips of a cell of group x label, half in each direction, no more than it holds.
    each = np.minimum(flips * within / 2, table.min(axis=-1))
    joint = np.zeros((*table.shape, 2))
    joint[..., 0, 1] = joint[..., 1, 0] = each
    joint[..., 0, 0] = table[..., 0] - each
    joint[..., 1, 1] = table[..., 1] - each
    drawn = resample([joint], replicates, seed)[0] if joint.sum() else None
    if drawn is None:
        raise ValueError("table counts no image")
    change = statistic(drawn.sum(axis=-2)) - statistic(drawn.sum(axis=-1))
    return float(np.nanquantile(np.abs(change), 0.95))


def mcnemar_mid_p(lost: int, won: int) -> float:
    """Two-sided mid-p value of McNemar's test (Fagerland et al. 2013, equation 5).

    Parameters
    ----------
    lost, won : int
        Answers right before and wrong after, and the reverse.
    """
    if lost < 0 or won < 0:
        raise ValueError("lost and won are counts; they cannot be negative")
    n, k = lost + won, min(lost, won)
    if n == 0:
        return 1.0
    exact = 2 * binom.cdf(k, n, 0.5)
    return float(min(1.0, exact - binom.pmf(k, n, 0.5)))


def verdict(low: float, high: float, margin: float) -> str:
    """What an interval of a change says at an equivalence margin.

    ``equivalent`` if it lies within the margin on both sides of zero, ``different`` if it excludes
    zero, ``undecided`` otherwise. With a 1 - 2a interval, the first is the TOST procedure at
    level a (Schuirmann 1987).
    """
    if margin <= 0:
        raise ValueError(f"margin: {margin} is not positive")
    if -margin < low and high < margin:
        return "equivalent"
    return "different" if low > 0 or high < 0 else "undecided"


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values of Holm's step-down procedure (Holm 1979), in the order given."""
    p = np.asarray(p_values, float)
    if ((p < 0) | (p > 1)).any() or np.isnan(p).any():
        raise ValueError("p_values: every value must be between 0 and 1")
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted
