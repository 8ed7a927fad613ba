"""Changes over training seeds, calibration draws and images, all three of them drawn.

Every model is tested on the same images, and every calibration draw serves every seed: the three
are crossed. Resampling runs as if each were a seed of its own counts draws as seeds; resampling
seeds and draws leaves too little, where there are few of either, since the three draws that one has
vary less than draws do. Here each source of variation has its own variance, and its own degrees of
freedom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from fairq_utils.stats.paired import SIDES, Statistic
from fairq_utils.stats.resampling import Source, images_alone, stack


def crossed_changes(
    tables: Source,
    statistics: Mapping[str, Statistic],
    *,
    expected: Mapping[str, NDArray[Any]] | None = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Change of every statistic, its interval and its p-value, over seeds, draws and images.

    .. math:: \bar d \pm t_\nu \sqrt{\frac{s^2_S}{S} + \frac{s^2_C}{C} + v_I},
              \quad \nu = \frac{(\sum_j v_j)^2}{\sum_j v_j^2 / \nu_j}

    with :math:`s^2_S` the variance of the changes of S seeds (each the mean over its draws),
    :math:`s^2_C` that of the C draws, and :math:`v_I` the variance of the mean under a bootstrap of
    the images alone; degrees of freedom by Satterthwaite (1946), images having endless ones. Each
    variance holds some of what the lower ones are about, so the interval errs to the wide side
    (:mod:`fairq_utils.bench.coverage` has by how much). With one calibration draw it is about that
    draw.

    Parameters
    ----------
    tables, statistics
        As for :func:`~fairq_utils.stats.paired_bootstrap`; at least two seeds.
    expected : mapping of name to (S, C), optional
        Change of every run under another null than none, such as flips that do not know the group.
    replicates, confidence, seed
        Of the bootstrap of images; nominal coverage; seed of the resampling.

    Returns
    -------
    DataFrame
        ``statistic``, ``seeds``, ``draws``, ``reference``, ``compared``, ``change`` (means),
        ``low``, ``high``, ``error`` (standard error), ``degrees`` (of freedom), ``p_value``
        (two-sided against 0), and ``sd_seeds``, ``sd_draws``, ``sd_images``: the standard
        deviations of the change over each, NaN where there is one alone; with ``expected`` also
        ``excess`` over it and ``excess_p``, NaN where nothing is expected of a statistic. NaN all
        through where a run does not have the statistic.

    Raises
    ------
    ValueError
        One seed, of which nothing can be said about others.

    Examples
    --------
    >>> table = np.array([[[[80, 10], [0, 10]], [[10, 0], [20, 70]]]])
    >>> other = np.array([[[[85, 5], [2, 8]], [[10, 0], [14, 76]]]])
    >>> selected = {"selected": lambda t: t[..., :, 1].sum((-1, -2)) / 200}
    >>> found = crossed_changes([table, other], selected).iloc[0]
    >>> round(float(found.change), 4), bool(found.low < found.change < found.high)
    (-0.0525, True)
    """
    observed = stack(tables)
    seeds, draws = observed.shape[:2]
    if seeds < 2:
        raise ValueError(
            "tables: one seed says nothing about others; give two, or paired_bootstrap"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} is not between 0 and 1")
    drawn = images_alone(tables, replicates, seed)
    rows = []
    for name, statistic in statistics.items():
        before, after = (
            np.asarray(statistic(observed.sum(axis=axis)), float) for axis in SIDES.values()
        )
        low, high = (np.asarray(statistic(drawn.sum(axis=axis)), float) for axis in SIDES.values())
        moved = (high - low).mean(axis=0)
        found = components(after - before, moved)
        half = found.error * student.ppf((1 + confidence) / 2, found.degrees)
        rows.append(
            {
                "statistic": name,
                "seeds": seeds,
                "draws": draws,
                "reference": float(before.mean()),
                "compared": float(after.mean()),
                "change": found.mean,
                "low": found.mean - half,
                "high": found.mean + half,
                "error": found.error,
                "degrees": found.degrees,
                "p_value": found.p_value,
                "sd_seeds": found.sd_seeds,
                "sd_draws": found.sd_draws,
                "sd_images": found.sd_images,
            }
        )
        if expected is not None:
            null = expected.get(name, np.full(before.shape, nan))
            beyond = components(after - before - null, moved)
            rows[-1] |= {"excess": beyond.mean, "excess_p": beyond.p_value}
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Components:
    """A mean over seeds, draws and images, and how far each of them moves it.

    Attributes
    ----------
    mean, error : the mean and its standard error
    degrees : of freedom
    sd_seeds, sd_draws, sd_images : standard deviations over each
    """

    mean: float
    error: float
    degrees: float
    sd_seeds: float
    sd_draws: float
    sd_images: float

    @property
    def p_value(self) -> float:
        """Two-sided, of the mean against 0; 1 where nothing varies and the mean is 0."""
        if np.isnan(self.error):
            return nan
        if self.error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * student.sf(abs(self.mean) / self.error, self.degrees))


def components(values: NDArray[Any], means: NDArray[Any]) -> Components:
    """Variance components of crossed values.

    Parameters
    ----------
    values : (S, C)
        Of every seed and draw, S of at least 2.
    means : (R,)
        Their mean in bootstrap replicates of the images; those that are NaN take no part.

    Examples
    --------
    >>> found = components(np.array([[1.0], [2.0], [3.0]]), np.zeros(10))
    >>> round(found.mean, 2), round(found.error, 4), round(found.degrees, 1)
    (2.0, 0.5774, 2.0)
    """
    if np.isnan(values).any():
        return Components(nan, nan, nan, nan, nan, nan)
    sizes, parts = values.shape, []
    for axis in (0, 1):
        if sizes[axis] > 1:
            level = values.mean(axis=1 - axis)
            parts.append((float(level.var(ddof=1)) / sizes[axis], sizes[axis] - 1.0))
    known = means[~np.isnan(means)]
    images = float(known.var()) if len(known) else nan
    parts.append((images, inf))
    total = sum(part for part, _ in parts)
    weighed = sum(part**2 / degrees for part, degrees in parts)
    sd = [(part * (degrees + 1)) ** 0.5 for part, degrees in parts[:-1]]
    return Components(
        mean=float(values.mean()),
        error=total**0.5,
        degrees=total**2 / weighed if weighed else inf,
        sd_seeds=sd[0],
        sd_draws=sd[1] if sizes[1] > 1 else nan,
        sd_images=images**0.5,
    )
