"""Noise floors: what chance alone, or another training seed, makes of a gap and of its change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, norm
from scipy.stats import t as student

from fairq_utils.stats.paired import Statistic
from fairq_utils.stats.resampling import Counts, SharedImages, Source, resample, stack

LEVEL = 0.95  # a floor is the 95th percentile of what chance makes


def noise_floor(
    sizes: Sequence[int], rate: float, *, replicates: int = 20000, seed: int = 0
) -> tuple[float, float]:
    """Mean and 95th percentile of :func:`null_gaps`: what chance alone makes of a max-min gap.

    Examples
    --------
    >>> mean, high = noise_floor([1000, 1000], 0.9)
    >>> f"{100 * mean:.1f} points on average, {100 * high:.1f} one time in twenty"
    '1.1 points on average, 2.6 one time in twenty'
    """
    gaps = null_gaps(sizes, rate, replicates=replicates, seed=seed)
    return float(gaps.mean()), float(np.quantile(gaps, LEVEL))


def null_gaps(
    sizes: ArrayLike, rate: ArrayLike, *, replicates: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    r"""Max-min gaps of a rate over groups that do not differ.

    .. math:: \max_g X_g / n_g - \min_g X_g / n_g, \quad X_g \sim \mathrm{Binomial}(n_g, p)

    Parameters
    ----------
    sizes : int (G,) or (K, G)
        Images in the rate's denominator, by group: all of a group's for its accuracy, its positives
        for its true positive rate. K rates at once, each with its own denominators.
    rate : float or (K,)
        The rate :math:`p` that all groups share.
    replicates, seed : int

    Returns
    -------
    float (replicates,) or (replicates, K)
        Fractions.

    Raises
    ------
    ValueError
        A rate outside 0 ... 1, fewer than two groups, or a group without images.

    Examples
    --------
    >>> null_gaps([1000, 1000], 1.0, replicates=3)  # where all are right there is no noise
    array([0., 0., 0.])
    >>> null_gaps([[50, 80], [20, 40]], [0.9, 0.7]).shape
    (2000, 2)
    """
    n, p = _whole(sizes, "sizes"), np.asarray(rate, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"rate: {rate!r} is not between 0 and 1")
    if n.ndim not in (1, 2) or n.shape[-1] < 2 or n.min() < 1:
        raise ValueError("sizes: a gap needs at least two groups of at least one image")
    if p.shape not in ((), n.shape[:-1]):
        raise ValueError(f"rate has shape {p.shape}; sizes ask for one rate or {n.shape[:-1]}")
    rng = np.random.default_rng(seed)
    rates = rng.binomial(n, p[..., None], size=(replicates, *n.shape)) / n
    gaps: NDArray[np.float64] = np.ptp(rates, axis=-1)
    return gaps


def change_noise_floor(
    table: Counts,
    flips: float,
    statistic: Statistic,
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> float:
    """Noise floor of a gap's change: predictions flip without regard to groups.

    For planning, when there is no compared model yet; where there is one,
    :func:`exchange_floors` takes its own flips. The null model: every group keeps its
    label x prediction counts in expectation, and in each cell of group x label as many
    predictions flip in one direction as in the other, ``flips`` of all predictions overall. The
    gap's expected change is then zero, and what is observed is chance.

    Parameters
    ----------
    table : (G, 2, 2)
        Group x label x prediction of the reference.
    flips : float
        Share of all predictions that differ between the two models.
    statistic : function
        From tables (..., G, 2, 2) to values (...).

    Returns
    -------
    float
        The 95th percentile of the absolute change, a fraction.

    Examples
    --------
    >>> from fairq_utils.metrics import FAIRNESS
    >>> table = np.array([[[400, 50], [40, 300]], [[300, 40], [50, 400]]])
    >>> gap = FAIRNESS["demographic_parity_difference"]
    >>> change_noise_floor(table, 0.0, gap)
    0.0
    >>> 0.005 < change_noise_floor(table, 0.02, gap) < 0.02
    True
    """
    if not 0 <= flips <= 1:
        raise ValueError(f"flips: {flips} is not between 0 and 1")
    table = np.asarray(table, float)
    if table.sum() == 0:
        raise ValueError("table counts no image")
    within = table.sum(axis=-1)
    # Flips of a cell of group x label, half in each direction, no more than it holds.
    each = np.minimum(flips * within / 2, table.min(axis=-1))
    joint = np.zeros((*table.shape, 2))
    joint[..., 0, 1] = joint[..., 1, 0] = each
    joint[..., 0, 0] = table[..., 0] - each
    joint[..., 1, 1] = table[..., 1] - each
    drawn = resample([joint], replicates, seed)[0]
    change = statistic(drawn.sum(axis=-2)) - statistic(drawn.sum(axis=-1))
    return float(np.nanquantile(np.abs(change), LEVEL))


def exchange_floors(
    tables: Source,
    statistics: Mapping[str, Statistic],
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Floor and p-value of every statistic's change, from the configuration's own flips.

    The null hypothesis: which of the two models made which prediction does not matter. Then an
    image on which they disagree is as likely to have flipped one way as the other, so in every cell
    of group x label

    .. math:: n_{01}^* \sim \mathrm{Binomial}(n_{01} + n_{10}, 1/2),
              \quad n_{10}^* = n_{01} + n_{10} - n_{01}^*,

    and images on which they agree stay as they are. This is the exact randomization distribution of
    the paired comparison, McNemar's test carried to any metric. All statistics see the same draws.

    Parameters
    ----------
    tables : S arrays (G, 2, 2, 2)
        As for :func:`~fairq_utils.stats.paired_bootstrap`; every seed's images are exchanged for
        themselves. Or :class:`~fairq_utils.stats.SharedImages`: an image is exchanged in all seeds
        at once, so predictions that several seeds lose on the same images count as one event.
    statistics : mapping of name to function

    Returns
    -------
    DataFrame
        ``statistic``, ``change`` (mean over seeds), ``floor`` (95th percentile of the absolute
        change under the null), ``p_value`` (two-sided, the observed table counted among the draws:
        Phipson and Smyth 2010).

    Examples
    --------
    >>> table = np.zeros((1, 2, 2, 2), int)
    >>> table[0, 0, 0, 0], table[0, 1, 1, 1] = 60, 40
    >>> table[0, 1, 1, 0] = 8  # eight positives lost, none won
    >>> found = exchange_floors([table], {"missed": lambda t: t[..., 0, 1, 0] / 48})
    >>> round(found.change.item(), 3), found.p_value.item() < 0.02
    (0.167, True)
    """
    observed, drawn = _exchange(tables, replicates, np.random.default_rng(seed))
    before, after = drawn.sum(axis=-1), drawn.sum(axis=-2)
    rows = []
    for name, statistic in statistics.items():
        at = float(np.mean(statistic(observed.sum(axis=-2)) - statistic(observed.sum(axis=-1))))
        null = np.abs((statistic(after) - statistic(before)).mean(axis=1))
        null = null[~np.isnan(null)]
        if not len(null) or np.isnan(at):
            floor = p_value = float("nan")
        else:
            floor = float(np.quantile(null, LEVEL))
            # Sums of the same fractions in another order differ in the last bit.
            reached = int((null >= abs(at) - 1e-12).sum())
            p_value = (1 + reached) / (1 + len(null))
        rows.append({"statistic": name, "change": at, "floor": floor, "p_value": p_value})
    return pd.DataFrame(rows)


def equal_errors(
    table: Counts,
    statistics: Mapping[str, Statistic],
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Statistics that a model would have if its errors did not depend on the group.

    .. math:: n_{gy1}^* \sim \mathrm{Binomial}(n_{gy}, p_y),
              \quad p_y = \sum_g n_{gy1} / \sum_g n_{gy}

    Groups keep their sizes and base rates; within a label all share one rate of positive
    predictions. Gaps of error rates are then chance alone. A demographic parity gap is what base
    rates make of it, with chance on top: the gap of a model that is equally good for everybody.

    Parameters
    ----------
    table : (G, 2, 2)
        Group x label x prediction.
    statistics : mapping of name to function
        From tables (..., G, 2, 2) to values (...).

    Returns
    -------
    DataFrame
        ``statistic``, ``median``, ``low``, ``high`` (5th and 95th percentile).

    Examples
    --------
    >>> from fairq_utils.metrics import FAIRNESS
    >>> table = np.array([[[400, 50], [40, 300]], [[30, 4], [5, 40]]])
    >>> gaps = {"odds": FAIRNESS["equalized_odds_difference"]}
    >>> found = equal_errors(table, gaps).iloc[0]
    >>> bool(0 < found.low < found["median"] < found.high < 0.2)
    True
    """
    within = _whole(table, "table").sum(axis=-1)
    if within.sum() == 0:
        raise ValueError("table counts no image")
    positive = np.asarray(table)[..., 1].sum(axis=0) / np.maximum(within.sum(axis=0), 1)
    drawn = np.random.default_rng(seed).binomial(within, positive, (replicates, *within.shape))
    tables = np.stack([within - drawn, drawn], axis=-1)
    rows = []
    for name, statistic in statistics.items():
        values = np.asarray(statistic(tables), float)
        values = values[~np.isnan(values)]
        low, median, high = (
            np.quantile(values, [1 - LEVEL, 0.5, LEVEL]) if len(values) else [np.nan] * 3
        )
        rows.append({"statistic": name, "median": median, "low": low, "high": high})
    return pd.DataFrame(rows)


def _whole(values: ArrayLike, name: str) -> NDArray[np.int64]:
    """Numbers of images as they are drawn from, whole."""
    found = np.asarray(values)
    if found.dtype.kind not in "iuf" or not np.array_equal(found, np.rint(found)):
        raise ValueError(
            f"{name}: holds sums of weights (sample_weight), or no numbers; give whole numbers of "
            "images"
        )
    return found.astype(np.int64)


def seed_floors(tables: Mapping[Any, Counts], statistics: Mapping[str, Statistic]) -> pd.DataFrame:
    r"""How far apart two FP32 seeds of one architecture are: what quantization is held against.

    .. math:: \sqrt 2 \, s \, t_{.975, S - 1}

    with :math:`s` the standard deviation over S seeds: a difference of two further seeds is below
    it 95 times in 100. (The 95th percentile of the differences that were seen, of three among three
    seeds, is exceeded by 31 in 100.)

    Parameters
    ----------
    tables : mapping of seed to (G, 2, 2)
        Counts of each FP32 model on the same test images, at least two.
    statistics : mapping of name to function

    Returns
    -------
    DataFrame
        ``statistic``, ``seeds``, ``sd``, ``floor`` with ``floor_low`` and ``floor_high`` (95 %
        interval of :math:`\sqrt 2 \, \sigma z_{.975}`, by the chi-squared distribution of
        :math:`s^2`), ``largest`` (difference between two of these seeds).

    Raises
    ------
    ValueError
        One seed.

    Examples
    --------
    >>> tables = {1: np.array([[[8, 2], [1, 9]]]), 2: np.array([[[9, 1], [1, 9]]])}
    >>> found = seed_floors(tables, {"selected": lambda t: t[..., 1].sum() / 20})
    >>> round(found.largest.item(), 3)
    0.05
    """
    if len(tables) < 2:
        raise ValueError(f"tables: {len(tables)} seeds differ from no other; at least two do")
    seeds, tail = len(tables), (1 - LEVEL) / 2
    rows = []
    for name, statistic in statistics.items():
        values = np.array([float(statistic(np.asarray(table))) for table in tables.values()])
        sd = float(values.std(ddof=1))
        ends = (seeds - 1) / chi2.ppf([1 - tail, tail], seeds - 1)
        low, high = 2**0.5 * norm.ppf(1 - tail) * sd * ends**0.5
        rows.append(
            {
                "statistic": name,
                "seeds": seeds,
                "sd": sd,
                "floor": float(2**0.5 * sd * student.ppf(1 - tail, seeds - 1)),
                "floor_low": float(low),
                "floor_high": float(high),
                "largest": float(np.ptp(values)),
            }
        )
    return pd.DataFrame(rows)


def _exchange(
    source: Source, replicates: int, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Observed tables (S, G, 2, 2, 2) and exchanged ones (replicates, S, G, 2, 2, 2)."""
    if isinstance(source, SharedImages):
        width = np.eye(source.groups * 8, dtype=np.int64)
        cells = source.cells.reshape(-1, len(source.images))
        # The last two bits of a cell are the two predictions.
        pair = cells % 4
        turned = cells - pair + np.array([0, 2, 1, 3])[pair]
        moved = rng.binomial(source.images, 0.5, size=(replicates, len(source.images)))
        mass = moved.astype(float) * (1.0 if source.weights is None else source.weights)
        moves = (width[turned] - width[cells]).astype(float)
        # (R, K) times (S, K, cells): of counts exact in float64, and a product of matrices.
        shifts, observed = np.moveaxis(mass @ moves, 0, 1), source.tables
        if source.weights is None:
            shifts = np.rint(shifts).astype(np.int64)
        return observed, observed + shifts.reshape(replicates, *observed.shape)
    stacked = stack(source)
    observed = stacked.reshape(-1, *stacked.shape[2:])
    if not np.array_equal(observed, np.round(observed)):
        raise ValueError("tables: flips can be exchanged in counts only, these are not whole")
    observed = observed.astype(np.int64)
    disagree = observed[..., 0, 1] + observed[..., 1, 0]
    drawn = np.repeat(observed[None], replicates, axis=0)
    drawn[..., 0, 1] = rng.binomial(disagree, 0.5, size=(replicates, *disagree.shape))
    drawn[..., 1, 0] = disagree - drawn[..., 0, 1]
    return observed, drawn
