"""Power: changes that a number of seeds and images could find, before anything is run."""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import nct, norm
from scipy.stats import t as student


def change_sd(flips: ArrayLike, images: ArrayLike, *, between: float = 0.0) -> float:
    r"""Standard deviation of one seed's change of accuracy, or of its difference between groups.

    .. math:: \sigma = \sqrt{\tau^2 + \sum_g f_g / n_g}

    A share :math:`f` of predictions flips; without a true change the paired change of accuracy on n
    images has variance :math:`f / n` (McNemar 1947). A change of the gap between two groups is the
    difference of two such changes, so their variances add.

    Parameters
    ----------
    flips : float or (G,)
        Share of right predictions gained or lost, by group: one group for its accuracy, two for
        their gap.
    images : int or (G,)
    between : float
        Standard deviation :math:`\tau` of the true change over training seeds.

    Examples
    --------
    >>> round(100 * change_sd(0.04, 400), 2)  # points
    1.0
    >>> round(100 * change_sd([0.04, 0.04], [400, 400], between=0.01), 2)
    1.73
    """
    f, n = np.atleast_1d(np.asarray(flips, float)), np.atleast_1d(np.asarray(images))
    if not ((f >= 0) & (f <= 1)).all():
        raise ValueError(f"flips: {flips!r} is not between 0 and 1")
    if (n < 1).any():
        raise ValueError(f"images: {images!r} is not at least 1")
    if between < 0:
        raise ValueError(f"between: {between} is negative")
    return float(np.sqrt(between**2 + (f / n).sum()))


def power_to_detect(
    change: float, sd: float, seeds: int, *, shared: float = 0.0, level: float = 0.05
) -> float:
    r"""Chance that a true change is found by a two-sided test.

    With two seeds or more, the t test over seeds and images that
    :func:`~fairq_utils.stats.crossed_changes` makes, with standard error
    :math:`\sqrt{\sigma^2 / S + \sigma_I^2}` and its degrees of freedom; with one, the normal test
    over its images, which says nothing about other seeds.

    Parameters
    ----------
    change : float
        The true change, a fraction.
    sd : float
        Standard deviation of the change over seeds, from :func:`change_sd`.
    seeds : int
    shared : float
        Standard deviation :math:`\sigma_I` of what all seeds have in common, because they are
        tested on the same images: more seeds do not lessen it.
    level : float
        Of the test.

    Examples
    --------
    >>> round(power_to_detect(0.01, 0.01, seeds=5), 2)
    0.4
    >>> round(power_to_detect(0.01, 0.01, seeds=5, shared=0.005), 2)
    0.3
    """
    _checked(sd, seeds, level, shared)
    error, degrees = _error(sd, seeds, shared)
    critical, centre = student.ppf(1 - level / 2, degrees), abs(change) / error
    if degrees == inf:
        return float(norm.sf(critical - centre) + norm.cdf(-critical - centre))
    return float(nct.sf(critical, degrees, centre) + nct.cdf(-critical, degrees, centre))


def detectable_change(
    sd: float, seeds: int, *, shared: float = 0.0, power: float = 0.8, level: float = 0.05
) -> float:
    """The smallest true change that is found with the given power: the minimum detectable effect.

    Same units as ``sd`` and ``shared``; see :func:`power_to_detect`.

    Examples
    --------
    >>> sd = change_sd([0.04, 0.04], [400, 400])
    >>> round(100 * detectable_change(sd, seeds=5), 1)  # points of a gap
    2.4
    >>> round(100 * detectable_change(sd, seeds=1), 1)  # of this one model
    4.0
    >>> round(100 * detectable_change(0.003, seeds=10, shared=sd), 1)  # of ten on the same images
    4.0
    """
    _checked(sd, seeds, level, shared)
    if not level < power < 1:
        raise ValueError(f"power: {power} is not between the level, {level}, and 1")
    most = _error(sd, seeds, shared)[0]

    def short(change: float) -> float:
        return power_to_detect(change, sd, seeds, shared=shared, level=level) - power

    while short(most) < 0:
        most *= 2
    return float(brentq(short, 0.0, most))


def _error(sd: float, seeds: int, shared: float) -> tuple[float, float]:
    """Standard error of a mean over seeds, and its degrees of freedom (Satterthwaite 1946)."""
    own, common = sd**2 / seeds, shared**2
    total = own + common
    if seeds == 1:
        return total**0.5, inf
    return total**0.5, (seeds - 1) * (total / own) ** 2 if own else inf


def seeds_needed(
    change: float, sd: float, *, power: float = 0.8, level: float = 0.05, most: int = 10_000
) -> int:
    """Training seeds after which a true change is found with the given power.

    Raises
    ------
    ValueError
        ``change`` is 0, or more than ``most`` seeds would be needed.

    Examples
    --------
    >>> seeds_needed(0.01, 0.01)
    10
    """
    _checked(sd, 2, level)
    if change == 0:
        raise ValueError("change: no number of seeds finds a change of 0")
    low, high = 1, 2
    while power_to_detect(change, sd, high, level=level) < power:
        low, high = high, high * 2
        if low >= most:
            raise ValueError(f"change: finding {change} at sd {sd} needs more than {most} seeds")
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_to_detect(change, sd, middle, level=level) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def _checked(sd: float, seeds: int, level: float, shared: float = 0.0) -> None:
    if shared < 0:
        raise ValueError(f"shared: {shared} is negative")
    if sd < 0 or sd + shared == 0:
        raise ValueError(f"sd: {sd} is not positive")
    if seeds < 1:
        raise ValueError(f"seeds: {seeds} is not at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")
