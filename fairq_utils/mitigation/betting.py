r"""Evidence by betting that a difference of two means stays below a limit, at any number of images.

Two independent groups of images, values :math:`X_i \in \{-1, 0, 1\}` in the first and
:math:`Y_j` in the second. Under the hypothesis that the difference is too large,
:math:`\mu_X - \mu_Y \ge \alpha`, a gambler who bets against it cannot expect to win:

.. math:: E(m) = \prod_i \bigl(1 + \lambda_X (m + \alpha - X_i)\bigr)
                 \prod_j \bigl(1 + \lambda_Y (Y_j - m)\bigr), \quad m = \mu_Y

has an expectation of at most 1, so that :math:`1 / E` is a p-value by Markov's inequality
(Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", theorem 1
and section 4; fixed stakes instead of predictable ones). :math:`\mu_Y` is not known: the p-value is
the largest over all :math:`m`. Nothing is asymptotic; a group of twenty images is as safe as one of
twenty thousand, only weaker.

Stakes :math:`\lambda_X = s / n_X` and :math:`\lambda_Y = s / n_Y` of one size :math:`s` let
:math:`m` cancel to first order. The best size is about :math:`\sqrt{2 \log(1 / \delta) / V}`, with
:math:`V` the variance of the difference of the two averages; it is to be guessed from other
images. A mixture over sizes around the guess is an e-value again, and forgives a bad one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

VALUES = np.array([-1.0, 0.0, 1.0])
AROUND = np.array([0.7, 1.0, 1.4])  # sizes of the stake, times the guess
ALONE = 0.1  # weight of stakes that each group chooses without the other
STAKES = np.array([0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9])  # of those, times the largest allowed
ALLOWED = 0.9  # of the stake that could lose everything
NEAR, FAR = 160, 80  # cells of m within a few standard errors, and on either side of that
REACH = 8.0  # standard errors


def stake(variance: float, level: float) -> float:
    r"""The size of stake that wins most, :math:`\sqrt{2 \log(1 / \delta) / V}`.

    Parameters
    ----------
    variance : float
        :math:`V`, of the difference of the two averages.
    level : float
        :math:`\delta`.

    Examples
    --------
    >>> round(stake(2e-5, 0.05))
    547
    """
    return math.sqrt(2 * math.log(1 / level) / variance)


def p_value_of_difference(
    first: ArrayLike, second: ArrayLike, limit: float, *, size: float
) -> float:
    """P-value of the hypothesis that the first mean exceeds the second by ``limit`` or more.

    Parameters
    ----------
    first, second : counts of the values -1, 0 and 1 in each group, (3,)
        They need not be whole, which serves planning.
    limit : float
        The smallest difference that is too large, from -1 up.
    size : float
        Of the stake, from :func:`stake`; it must not depend on these counts.

    Returns
    -------
    float
        Valid at any number of images: at most ``u`` with a probability of at most ``u``. It falls
        as ``limit`` grows, on either side of 0.

    Raises
    ------
    ValueError
        A group without an image, or a size that is not positive.

    Examples
    --------
    Two thousand images in each group, ten predictions won and ten lost in both:

    >>> bool(p_value_of_difference([10, 1980, 10], [10, 1980, 10], 0.01, size=550) < 0.05)
    True
    >>> p_value_of_difference([10, 1980, 10], [10, 1980, 10], 0.0, size=550)
    1.0
    """
    x, y = np.asarray(first, float), np.asarray(second, float)
    for name, counts in (("first", x), ("second", y)):
        if counts.shape != VALUES.shape or (counts < 0).any() or counts.sum() <= 0:
            raise ValueError(f"{name}: {counts} is not how often -1, 0 and 1 occur in some images")
    if not size > 0:
        raise ValueError(f"size: {size} is not positive")
    if limit < -1:
        raise ValueError(f"limit: {limit} is below -1")
    left, right = _cells(x, y)
    # Stakes are min(size / n, cap(m)), whatever the counts: an e-value for every m. The caps let
    # the first product grow with m and the second fall, so that a cell's ends bound it from below.
    # No stake may lose more than there is, also where the limit is as low as -1.
    top_x, top_y = ALLOWED / (1 - left + (limit < 0)), ALLOWED / (1 + right)
    shares = size * AROUND[:, None]
    together = _log_product(x, left + limit, np.minimum(shares / x.sum(), top_x), 1)
    together += _log_product(y, right, np.minimum(shares / y.sum(), top_y), -1)
    alone = _mixed(_log_product(x, left + limit, STAKES[:, None] * top_x, 1))
    alone += _mixed(_log_product(y, right, STAKES[:, None] * top_y, -1))
    found = np.logaddexp(math.log(1 - ALONE) + _mixed(together), math.log(ALONE) + alone)
    return float(min(1.0, math.exp(min(0.0, -float(found.min())))))


def _cells(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Left and right ends of cells that cover every mean, -1 to 1; finest where it matters."""
    middles, spreads = [], []
    for counts in (x, y):
        total = counts.sum()
        mean = float(counts @ VALUES / total)
        middles.append(mean)
        spreads.append(math.sqrt((float(counts @ VALUES**2) + 1) / (total + 1) / total))
    reach = REACH * max(spreads)
    low, high = max(min(middles) - reach, -1.0), min(max(middles) + reach, 1.0)
    # Further out the evidence grows fast, and cells may grow with the distance.
    below = low - np.geomspace(reach / FAR, 2, FAR)
    above = high + np.geomspace(reach / FAR, 2, FAR)
    edges = np.unique(np.concatenate([below, np.linspace(low, high, NEAR), above]).clip(-1, 1))
    return edges[:-1], edges[1:]


def _log_product(
    counts: NDArray[np.float64], mean: NDArray[np.float64], stakes: NDArray[np.float64], sign: int
) -> NDArray[np.float64]:
    """``sum over values of counts log(1 + sign stake (mean - value))``, stakes x cells."""
    out = np.zeros(np.broadcast_shapes(mean.shape, stakes.shape))
    for value, count in zip(VALUES, counts, strict=True):
        if count:
            out += count * np.log1p(sign * stakes * (mean - value))
    return out


def _mixed(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the mean over stakes, by cell."""
    most = logs.max(axis=0)
    out: NDArray[np.float64] = most + np.log(np.exp(logs - most).mean(axis=0))
    return out
