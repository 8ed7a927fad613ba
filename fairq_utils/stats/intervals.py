"""Percentile and BCa intervals from bootstrap replicates, and the jackknife that BCa needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from fairq_utils.stats.resampling import SharedImages, Source, stack

Floats = NDArray[np.float64]


def interval(
    replicates: NDArray[Any], observed: float, *, confidence: float, acceleration: float | None
) -> tuple[float, float]:
    r"""Interval of a statistic from its bootstrap replicates.

    Percentile: the quantiles :math:`\alpha/2` and :math:`1-\alpha/2` of the replicates. BCa (Efron
    1987, equation 3.8): the quantiles

    .. math:: \Phi\left(z_0 + \frac{z_0 + z_\alpha}{1 - a (z_0 + z_\alpha)}\right),

    where :math:`\Phi(z_0)` is the share of replicates below the observed value. Counts are discrete
    and many replicates equal the observed value; half of these count as below, or a statistic that
    mostly stays put would be called biased.

    Parameters
    ----------
    replicates : (R,)
        NaN where the statistic is not defined; these take no part.
    observed : float
    confidence : float
        Nominal coverage, such as 0.95.
    acceleration : float or None
        BCa's :math:`a`; None for the percentile interval.

    Returns
    -------
    low, high
        NaN if the statistic is defined in no replicate, or BCa is asked for and ``observed`` is
        NaN.

    Examples
    --------
    >>> low, high = interval(np.arange(101.0), 50.0, confidence=0.9, acceleration=None)
    >>> round(low, 6), round(high, 6)
    (5.0, 95.0)
    """
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return float("nan"), float("nan")
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if acceleration is not None:
        if np.isnan(observed):
            return float("nan"), float("nan")
        below = np.mean(defined < observed) + np.mean(defined == observed) / 2
        # A replicate beyond all others still leaves half a replicate's worth of doubt.
        edge = 0.5 / len(defined)
        bias = ndtri(np.clip(below, edge, 1 - edge))
        shifted = bias + ndtri(tails)
        # Past this pole the map turns round; it is reached with a handful of images only.
        stretch = np.maximum(1 - acceleration * shifted, 1e-3)
        tails = ndtr(bias + shifted / stretch)
    low, high = np.quantile(defined, tails)
    return float(low), float(high)


@dataclass(frozen=True)
class Deletions:
    """Every way to leave one image out, ways with the same outcome counted together.

    Attributes
    ----------
    tables : int64 (U, S, G, 2, 2, 2)
        What is left; a statistic is averaged over S.
    images : (U,)
        How many images are left out to the same effect: the count of their cell.
    blocks : (U,)
        Deletions of one block are compared with each other: images of one seed, and of one group
        if the bootstrap is stratified.
    weight : float
        Weight of the value in the mean over seeds.
    """

    tables: NDArray[Any]
    images: NDArray[Any]
    blocks: NDArray[Any]
    weight: float


def deletions(source: Source, *, stratify: bool = False) -> Deletions:
    """Leave out one image of every occupied cell (or pattern) in turn.

    All images of a cell are alike, so this is the jackknife over all images, exactly, at the price
    of one evaluation per cell.
    """
    if isinstance(source, SharedImages):
        width = source.groups * 8
        runs = source.cells.reshape(-1, len(source.images))
        mass = np.ones(len(source.images), np.int64) if source.weights is None else source.weights
        gone = np.eye(width)[runs] * mass[:, None]
        left = source.tables.reshape(1, len(runs), width) - np.moveaxis(gone, 0, 1)
        block = np.zeros(len(mass), np.int64) if source.strata is None else source.strata
        if stratify:
            block = block * source.groups + runs[0] // 8
        return Deletions(
            left.reshape(*left.shape[:2], source.groups, 2, 2, 2), source.images, block, 1.0
        )
    stacked = stack(source)
    groups = stacked.shape[2]
    flat = stacked.reshape(-1, groups * 8)
    owner, cell = np.nonzero(flat)
    left = flat[owner] - np.eye(groups * 8, dtype=flat.dtype)[cell]
    return Deletions(
        left.reshape(-1, 1, groups, 2, 2, 2),
        flat[owner, cell],
        owner * groups + cell // 8 if stratify else owner,
        1 / len(flat),
    )


def acceleration(
    left_out: Deletions,
    statistic: Callable[[NDArray[Any]], NDArray[Any]],
    per_seed: NDArray[Any],
) -> float:
    r"""BCa's acceleration, a sixth of the skewness of the statistic's influence values.

    .. math:: a = \frac{\sum_u n_u d_u^3}{6 \left(\sum_u n_u d_u^2\right)^{3/2}}

    with :math:`d_u` the mean of the values with one image left out less the value without an image
    of cell u, and :math:`n_u` the images in it (Efron 1987, equation 6.6; Davison and Hinkley 1997,
    equation 5.23 for strata). Training seeds and crossed calibration draws are further sources of
    variation: each adds its own deviation from the mean, once.

    Parameters
    ----------
    left_out : Deletions
    statistic : function
        From tables (..., G, 2, 2, 2) to values (...).
    per_seed : (S, C)
        The statistic of every seed and calibration draw.

    Returns
    -------
    float
        0 where nothing varies.
    """
    values = statistic(left_out.tables).mean(axis=1) * left_out.weight
    # A cell of one image can be all that a rate stands on: without it there is no value to compare.
    known = ~np.isnan(values)
    values, images, blocks = values[known], left_out.images[known], left_out.blocks[known]
    totals = np.bincount(blocks, images)
    means = np.bincount(blocks, images * values) / np.maximum(totals, 1)
    sources = [(means[blocks] - values, images)]
    for axis in (0, 1):
        levels = per_seed.mean(axis=1 - axis)
        if len(levels) > 1 and not np.isnan(levels).any():
            sources.append(((levels - levels.mean()) / len(levels), np.ones(len(levels))))
    second = sum(float((n * d**2).sum()) for d, n in sources)
    third = sum(float((n * d**3).sum()) for d, n in sources)
    return third / (6 * second**1.5) if second > 1e-24 else 0.0
