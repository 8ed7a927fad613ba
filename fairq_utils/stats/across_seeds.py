"""Tests whose unit is a training seed.

SciPy and statsmodels compute; what is added is one named result per question, and a refusal where
the input cannot decide it. Any other test of theirs is called directly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import DescrStatsW

from fairq_utils.errors import BadInput
from fairq_utils.given import numbers

ROUNDING = 1e-12  # relative: values as near as this differ in how they were summed up, if at all


@dataclass(frozen=True)
class PairedTests:
    """Three two-sided tests of per-seed differences against zero.

    Attributes
    ----------
    seeds : int
    mean, low, high : float
        Mean difference and its Student-t interval.
    t, wilcoxon, sign_flip : float
        P-values: paired t; Wilcoxon signed rank; permutation of the signs, exact up to 13 seeds.
    smallest : float
        The smallest p-value that the exact tests can give with this many seeds, 2 / 2**seeds:
        0.0625 at five, so five seeds can never reach 0.05 without a normality assumption.
    """

    seeds: int
    mean: float
    low: float
    high: float
    t: float
    wilcoxon: float
    sign_flip: float
    smallest: float


def paired_tests(differences: ArrayLike, *, confidence: float = 0.95) -> PairedTests:
    """Test per-seed differences (compared less reference) against zero.

    Examples
    --------
    >>> found = paired_tests([0.02, 0.01, 0.03, 0.02, 0.04])
    >>> found.t < 0.05, found.sign_flip, found.smallest
    (True, 0.0625, 0.0625)
    """
    d = per_seed(differences, "differences")
    smallest = 2.0 ** (1 - len(d))
    if not d.any():
        return PairedTests(len(d), 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, smallest)
    refuse_constant(d, "differences", "a t test has no denominator")
    student = scipy_stats.ttest_1samp(d, 0)
    low, high = student.confidence_interval(confidence)
    flipped = scipy_stats.permutation_test(
        (d,),
        np.mean,
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return PairedTests(
        len(d),
        float(d.mean()),
        float(low),
        float(high),
        float(student.pvalue),
        float(scipy_stats.wilcoxon(d).pvalue),
        float(flipped.pvalue),
        smallest,
    )


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests against a margin (Schuirmann 1987).

    Attributes
    ----------
    mean : float
    low, high : float
        The 1 - 2 ``level`` Student-t interval, which lies within the margin exactly if both tests
        reject.
    margin, level : float
    p_value : float
        The larger of the two one-sided p-values.
    equivalent : bool
    """

    mean: float
    low: float
    high: float
    margin: float
    level: float
    p_value: float
    equivalent: bool


def equivalence(differences: ArrayLike, margin: float, *, level: float = 0.05) -> Equivalence:
    """Test that per-seed differences are smaller than ``margin``, either way (Schuirmann 1987).

    Examples
    --------
    >>> equivalence([0.001, -0.002, 0.002, 0.0, 0.001], margin=0.01).equivalent
    True
    >>> equivalence([0.02, -0.03, 0.01, 0.0, -0.02], margin=0.01).equivalent  # not shown
    False
    """
    d = per_seed(differences, "differences")
    if margin <= 0:
        raise ValueError(f"margin: {margin} is not positive")
    refuse_constant(d, "differences", "are they replicates?")
    tested = DescrStatsW(d)
    p_value = float(tested.ttost_mean(-margin, margin)[0])
    low, high = tested.tconfint_mean(2 * level)
    return Equivalence(
        float(d.mean()), float(low), float(high), margin, level, p_value, p_value < level
    )


@dataclass(frozen=True)
class ArmTests:
    """Tests of two independent sets of seeds: location and spread.

    Attributes
    ----------
    difference : float
        Mean of the first less mean of the second.
    mann_whitney, levene : float
        Two-sided p-values; Levene's about the medians (Brown and Forsythe 1974).
    smallest : float
        The smallest p-value that Mann-Whitney can give with these numbers of seeds.
    """

    difference: float
    mann_whitney: float
    levene: float
    smallest: float


def arm_tests(first: ArrayLike, second: ArrayLike) -> ArmTests:
    """Compare seeds that are not paired, such as those of two architectures.

    Examples
    --------
    >>> found = arm_tests([0.01, 0.02, 0.03], [0.05, 0.06, 0.09])
    >>> found.mann_whitney == found.smallest
    True
    """
    # Two values are equally far from their median, so Levene's test has nothing to go by.
    a, b = per_seed(first, "first", 3), per_seed(second, "second", 3)
    apart = scipy_stats.mannwhitneyu(np.arange(len(a)), len(a) + np.arange(len(b)), method="exact")
    spread = scipy_stats.levene(a, b, center="median").pvalue if varies(a) or varies(b) else 1.0
    return ArmTests(
        float(a.mean() - b.mean()),
        float(scipy_stats.mannwhitneyu(a, b).pvalue),
        float(spread),
        float(apart.pvalue),
    )


def per_seed(values: ArrayLike, name: str, least: int = 2) -> NDArray[np.float64]:
    """One finite value per seed, checked.

    Raises
    ------
    ValueError
        Names the argument, and the seed whose value is not finite.
    """
    array = numbers(values, name)
    if array.ndim != 1 or len(array) < least:
        raise ValueError(
            f"{name} has shape {array.shape}; it must be one row of at least {least} seeds"
        )
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise ValueError(f"{name}: seed {wrong[0]} is {array[wrong[0]]}, which cannot be tested")
    return array


def varies(values: NDArray[np.float64]) -> bool:
    """Whether values differ by more than rounding.

    Examples
    --------
    >>> varies(np.array([0.3, 0.1 + 0.2])), varies(np.array([0.3, 0.301]))
    (False, True)
    """
    return bool(np.ptp(values) > ROUNDING * np.abs(values).max())


def refuse_constant(values: NDArray[np.float64], name: str, why: str) -> None:
    """Refuse seeds without a spread."""
    if not varies(values):
        raise BadInput(f"{name}: all seeds agree to the last digit; {why}")
