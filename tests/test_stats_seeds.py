"""Tests whose unit is a training seed, effect sizes, corrections, and what can be found at all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, nct, spearmanr, ttest_1samp, ttest_rel
from statsmodels.stats.multitest import multipletests

from fairq_utils import stats

RNG = np.random.default_rng(0)
SEEDS = np.array([0.021, -0.004, 0.013, 0.017, 0.030, 0.008])


def test_paired_tests() -> None:
    found = stats.paired_tests(SEEDS)
    assert found.t == pytest.approx(ttest_rel(SEEDS, 0 * SEEDS).pvalue)
    signs = np.array(list(product([-1, 1], repeat=6)))
    null = (signs * SEEDS).mean(axis=1)
    assert found.sign_flip == pytest.approx(np.mean(np.abs(null) >= SEEDS.mean() - 1e-12))
    ranks = np.argsort(np.argsort(np.abs(SEEDS))) + 1
    of_signs = (signs * ranks).sum(axis=1)
    observed = (np.sign(SEEDS) * ranks).sum()
    assert found.wilcoxon == pytest.approx(np.mean(np.abs(of_signs) >= observed))
    assert found.smallest == 2 / 64
    assert found.low < 0.014167 < found.high
    assert (found.low > 0) == (found.t < 0.05)
    none = stats.paired_tests([0.0, 0.0, 0.0])
    assert (none.t, none.wilcoxon, none.sign_flip) == (1, 1, 1)


@pytest.mark.parametrize("margin", [0.010, 0.025, 0.030, 0.035])
def test_equivalence_is_two_one_sided_tests(margin: float) -> None:
    found = stats.equivalence(SEEDS, margin)
    over = ttest_1samp(SEEDS, -margin, alternative="greater").pvalue
    under = ttest_1samp(SEEDS, margin, alternative="less").pvalue
    assert found.p_value == pytest.approx(max(over, under))
    assert found.equivalent == (-margin < found.low and found.high < margin)
    assert found.equivalent == (margin >= 0.025)


def test_arm_tests() -> None:
    a, b = RNG.normal(0, 1, 7), RNG.normal(2, 5, 8)
    found = stats.arm_tests(a, b)
    assert found.mann_whitney == mannwhitneyu(a, b).pvalue
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert stats.arm_tests(np.arange(4), np.arange(4) * 100).levene < 0.2
    assert stats.arm_tests([1, 2, 3], [4, 5, 7]).smallest == pytest.approx(1 / 10)
    assert stats.arm_tests([1] * 3, [2] * 3).levene == 1


def test_trend() -> None:
    capacity = [1.2, 3.5, 5.3, 22.0, 25.6]
    values = np.array([[5, 4, 2, 3, 1], [4, 5, 3, 1, 2.0]])
    found = stats.trend(capacity, values, predicted="decreasing")
    means = values.mean(axis=0)
    assert found.spearman == pytest.approx(spearmanr(capacity, means).statistic)
    null = [spearmanr(capacity, p).statistic for p in permutations(means)]
    exact = np.mean(np.abs(null) >= abs(found.spearman) - 1e-12)
    assert found.spearman_p == pytest.approx(exact, abs=1e-9)
    assert found.page_p < 0.05 < stats.trend(capacity, values).page_p
    # The order in which architectures are listed says nothing.
    shuffled = [3, 0, 4, 1, 2]
    again = stats.trend(np.array(capacity)[shuffled], values[:, shuffled], predicted="decreasing")
    assert again.page == found.page
    assert again.spearman == pytest.approx(found.spearman)
    flat = stats.trend(capacity, np.ones((2, 5)))
    assert (flat.spearman, flat.spearman_p) == (0, 1)


def test_dz_interval_inverts_the_noncentral_t() -> None:
    effect = stats.cohens_dz(SEEDS)
    assert effect.value == pytest.approx(SEEDS.mean() / SEEDS.std(ddof=1))
    t, root = effect.value * 6**0.5, 6**0.5
    assert nct.sf(t, 5, effect.low * root) == pytest.approx(0.025, abs=1e-6)
    assert nct.cdf(t, 5, effect.high * root) == pytest.approx(0.025, abs=1e-6)
    mirrored = stats.cohens_dz(-SEEDS)
    assert (mirrored.low, mirrored.high) == pytest.approx((-effect.high, -effect.low), abs=1e-5)


def test_cohens_d_interval_covers() -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(800):
        effect = stats.cohens_d(rng.normal(0.8, 1, 5), rng.normal(0, 1, 9))
        held.append(effect.low <= 0.8 <= effect.high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_cliffs_delta() -> None:
    x, y = RNG.normal(0.3, 1, 9), RNG.normal(0, 1, 7)
    effect = stats.cliffs_delta(x, y)
    assert effect.value == pytest.approx(2 * mannwhitneyu(x, y).statistic / 63 - 1)
    assert -1 <= effect.low < effect.value < effect.high <= 1
    assert stats.cliffs_delta([4, 5, 6], [1, 2, 3]).high == 1
    above = stats.cliffs_delta(np.arange(20) + 100, np.arange(30))
    assert above.low == pytest.approx((20 - 1.96**2) / (20 + 1.96**2), abs=1e-4)
    below = stats.cliffs_delta(np.arange(30), np.arange(20) + 100)
    assert (below.low, below.high) == (-1, -above.low)


def test_cliffs_delta_interval_covers() -> None:
    rng = np.random.default_rng(2)
    true = 2 * 0.71 - 1  # P(X > Y) at a shift of 0.783 standard deviations
    held = []
    for _ in range(800):
        effect = stats.cliffs_delta(rng.normal(0.7826, 1, 15), rng.normal(0, 1, 15))
        held.append(effect.low <= true <= effect.high)
    assert np.mean(held) == pytest.approx(0.945, abs=0.025)


def test_corrections_are_statsmodels() -> None:
    p = dict(zip("abcdefgh", RNG.random(8) ** 3, strict=True))
    found = stats.adjusted(p)
    assert found.test.tolist() == list("abcdefgh")
    raw = np.array(list(p.values()))
    for column, method in (("holm", "holm"), ("benjamini_hochberg", "fdr_bh")):
        np.testing.assert_allclose(found[column], multipletests(raw, method=method)[1])
    np.testing.assert_allclose(found.bonferroni, np.minimum(raw * 8, 1))
    assert (found.bonferroni >= found.holm).all()
    assert (found.holm >= found.benjamini_hochberg).all()


def test_change_sd_is_that_of_simulated_flips() -> None:
    rng = np.random.default_rng(3)
    changes = []
    for n, f in ((300, 0.06), (500, 0.02)):
        flipped = rng.binomial(n, f, 40000)
        changes.append((2 * rng.binomial(flipped, 0.5) - flipped) / n)
    drift = rng.normal(0, 0.01, 40000)
    observed = np.std(changes[0] - changes[1] + drift)
    assert stats.change_sd([0.06, 0.02], [300, 500], between=0.01) == pytest.approx(
        observed, rel=0.02
    )


@pytest.mark.parametrize("seeds", [1, 5, 12])
def test_power_is_how_often_a_change_is_found(seeds: int) -> None:
    sd, change = 0.012, 0.016
    said = stats.power_to_detect(change, sd, seeds)
    drawn = np.random.default_rng(4).normal(change, sd, (8000, seeds))
    if seeds == 1:
        found = np.abs(drawn[:, 0] / sd) > 1.959964
    else:
        found = ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
    assert said == pytest.approx(found.mean(), abs=0.015)
    least = stats.detectable_change(sd, seeds)
    assert stats.power_to_detect(least, sd, seeds) == pytest.approx(0.8, abs=1e-4)
    assert stats.power_to_detect(-change, sd, seeds) == pytest.approx(said)


def test_seeds_needed_is_the_first_number_that_is_enough() -> None:
    for change in (0.005, 0.01, 0.03):
        n = stats.seeds_needed(change, 0.012)
        assert stats.power_to_detect(change, 0.012, n) >= 0.8
        assert n == 2 or stats.power_to_detect(change, 0.012, n - 1) < 0.8 or n - 1 < 2


def test_power_where_seeds_share_their_images() -> None:
    """Known truth: as often as the crossed test finds it."""
    rng = np.random.default_rng(0)
    change, sd, shared, seeds = 0.01, 0.006, 0.004, 5
    said = stats.power_to_detect(change, sd, seeds, shared=shared)
    found = 0
    for _ in range(4000):
        values = change + shared * rng.standard_normal() + sd * rng.standard_normal((seeds, 1))
        replicates = shared * rng.standard_normal(200)
        found += stats.components(values, replicates).p_value < 0.05
    assert found / 4000 == pytest.approx(said, abs=0.03)
    assert stats.power_to_detect(change, sd, seeds) > said
    least = stats.detectable_change(sd, seeds, shared=shared)
    assert stats.power_to_detect(least, sd, seeds, shared=shared) == pytest.approx(0.8, abs=1e-4)
    endless = stats.detectable_change(sd, 1000, shared=shared)
    assert endless == pytest.approx((1.96 + 0.842) * shared, rel=0.01)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: stats.paired_tests([0.1]), "at least 2 seeds"),
        (lambda: stats.paired_tests([0.1, np.nan]), "differences: seed 1 is nan"),
        (lambda: stats.equivalence([0.1, 0.2], 0), "margin: 0"),
        (lambda: stats.equivalence([0.1, 0.1], 0.5), "are they replicates"),
        (lambda: stats.arm_tests([1, 2, 3], [0.1, 0.2]), "second has shape"),
        (lambda: stats.equivalence([0.3, 0.1 + 0.2, 0.3], 0.5), "are they replicates"),
        (lambda: stats.paired_tests([0.1, 0.1, 0.1]), "a t test has no denominator"),
        (lambda: stats.paired_tests(np.ma.masked_array([0.1, 0.2], [0, 1])), "seed 1 is nan"),
        (lambda: stats.paired_tests(["a", "b"]), "differences: some values are no numbers"),
        (lambda: stats.cohens_dz([0.1, 0.1]), "no denominator"),
        (lambda: stats.cohens_dz([0.1, 0.1, 0.1]), "all seeds agree to the last digit"),
        (lambda: stats.cohens_d([0.1, 0.1], [0.2, 0.2]), "no denominator"),
        (lambda: stats.cohens_d([0.1] * 3, [0.3, 0.1 + 0.2, 0.3]), "no denominator"),
        (lambda: stats.trend([1, 2, 2], np.ones((2, 3))), "three different"),
        (lambda: stats.trend([1, 2, np.nan], np.ones((2, 3))), "different finite values"),
        (lambda: stats.trend([1, 2, 3], np.ones((1, 3))), "at least two seeds"),
        (lambda: stats.trend([1, 2, 3], [[1, 2, 3], [1, np.nan, 3]]), r"values\[1, 1\] is nan"),
        (lambda: stats.trend([1, 2, 3], np.ones((2, 3)), predicted="up"), "'up' is not one of"),  # type: ignore[arg-type]
        (lambda: stats.adjusted({"H1": 0.1, "H2": float("nan")}), r"p_values\['H2'\]: nan"),
        (lambda: stats.adjusted({}), "empty"),
        (lambda: stats.change_sd(1.2, 100), "flips: 1.2"),
        (lambda: stats.change_sd(0.2, 0), "images: 0"),
        (lambda: stats.change_sd(0.2, 10, between=-1), "between: -1"),
        (lambda: stats.power_to_detect(0.1, 0, 5), "sd: 0"),
        (lambda: stats.power_to_detect(0.1, 0.1, 0), "seeds: 0"),
        (lambda: stats.detectable_change(0.1, 5, power=0.01), "power: 0.01"),
        (lambda: stats.seeds_needed(0, 0.1), "change of 0"),
        (lambda: stats.seeds_needed(1e-6, 0.1), "more than 10000 seeds"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
