"""The bootstrap against plain resampling of rows, the noise floor, and tests by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, ks_2samp
from statsmodels.stats.multitest import multipletests

from fairq_utils import metrics, stats

PARITY = metrics.FAIRNESS["demographic_parity_difference"]


def rows(seed: int, n: int = 600) -> dict[str, np.ndarray]:
    """Answers of two models on the same images, the second a little worse for group 1."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n)
    truth = (rng.random(n) < 0.4 + 0.1 * group).astype(int)
    first = np.where(rng.random(n) < 0.9, truth, 1 - truth)
    second = np.where(rng.random(n) < 0.95 - 0.1 * (group == 1), first, 1 - first)
    return {"group": group, "truth": truth, "first": first, "second": second}


def table(data: dict[str, np.ndarray]) -> np.ndarray:
    return metrics.count(
        data["truth"], data["second"], sensitive_features=data["group"], reference=data["first"]
    ).table


def test_counts_bootstrap_is_the_resampling_of_rows() -> None:
    data = rows(0)
    drawn = stats.resample([table(data)], 4000, seed=1)[0]
    ours = PARITY(drawn.sum(axis=-2)) - PARITY(drawn.sum(axis=-1))
    rng = np.random.default_rng(2)
    plain = []
    for _ in range(2000):
        pick = rng.integers(0, 600, 600)
        again = table({k: v[pick] for k, v in data.items()})
        plain.append(PARITY(again.sum(axis=2)) - PARITY(again.sum(axis=3)))
    assert ks_2samp(ours, plain).pvalue > 0.01
    assert np.std(ours) == pytest.approx(np.std(plain), rel=0.06)


def test_observed_values_and_intervals() -> None:
    counts = table(rows(3))
    frame = stats.paired_bootstrap([counts], {"parity": PARITY}, replicates=3000, seed=0)
    row = frame.iloc[0]
    assert row.reference == PARITY(counts.sum(axis=3))
    assert row.compared == PARITY(counts.sum(axis=2))
    assert row.change == row.compared - row.reference
    assert row.low < row.change < row.high
    narrow = stats.paired_bootstrap(
        [counts], {"parity": PARITY}, replicates=3000, confidence=0.5, seed=0
    ).iloc[0]
    assert row.low < narrow.low < narrow.high < row.high
    again = stats.paired_bootstrap([counts], {"parity": PARITY}, replicates=3000, seed=0).iloc[0]
    assert again.equals(row)


def test_nothing_changed_is_exactly_no_change() -> None:
    counts = np.zeros((2, 2, 2, 2), np.int64)
    counts[:, :, 0, 0], counts[:, :, 1, 1] = 50, 70
    row = stats.paired_bootstrap([counts], {"parity": PARITY}, seed=0).iloc[0]
    assert (row.change, row.low, row.high) == (0, 0, 0)


def test_intervals_cover() -> None:
    """Nominal 95 % intervals of an accuracy change cover the truth 93 to 97 times in 100."""
    rng = np.random.default_rng(5)
    probability = rng.dirichlet(np.ones(16)).reshape(2, 2, 2, 2)

    def accuracy(counts: np.ndarray) -> np.ndarray:
        return metrics.overall(counts, "accuracy")

    truth = accuracy(probability.sum(axis=2)) - accuracy(probability.sum(axis=3))
    covered = 0
    for trial in range(600):
        counts = rng.multinomial(600, probability.ravel()).reshape(2, 2, 2, 2)
        row = stats.paired_bootstrap([counts], {"a": accuracy}, replicates=400, seed=trial).iloc[0]
        covered += row.low <= truth <= row.high
    assert 0.93 <= covered / 600 <= 0.97


def test_seeds_widen_the_interval() -> None:
    """Seeds that disagree: images alone would claim more than is known."""
    tables = []
    for shift in (0.02, 0.30, 0.12, 0.22):
        data = rows(7)
        rng = np.random.default_rng(int(shift * 100))
        spoilt = (data["group"] == 1) & (rng.random(600) < shift)
        data["second"] = np.where(spoilt, 1 - data["second"], data["second"])
        tables.append(table(data))
    accuracy = {"worst": metrics.FAIRNESS["worst_group_accuracy"]}
    hierarchical = stats.paired_bootstrap(tables, accuracy, seed=0).iloc[0]
    pooled = stats.paired_bootstrap([np.sum(tables, axis=0)], accuracy, seed=0).iloc[0]
    assert hierarchical.high - hierarchical.low > 1.5 * (pooled.high - pooled.low)
    assert hierarchical.change == pytest.approx(
        np.mean([stats.paired_bootstrap([t], accuracy, seed=0).change[0] for t in tables])
    )


@pytest.mark.parametrize(("sizes", "mean", "high"), [([1000] * 2, 1.1, 2.6), ([200] * 8, 6.0, 9.0)])
def test_noise_floor_at_ninety_percent(sizes: list[int], mean: float, high: float) -> None:
    """Gaps between groups that do not differ, in points; checked by an independent simulation."""
    found = stats.noise_floor(sizes, 0.9)
    assert 100 * found[0] == pytest.approx(mean, abs=0.1)
    assert 100 * found[1] == pytest.approx(high, abs=0.11)


def test_change_noise_floor_grows_with_flips_and_shrinks_with_images() -> None:
    counts = np.array([[[400, 50], [40, 300]], [[300, 40], [50, 400]]])
    floors = [stats.change_noise_floor(counts, f, PARITY) for f in (0.0, 0.01, 0.1)]
    assert floors[0] == 0 < floors[1] < floors[2]
    larger = stats.change_noise_floor(counts * 4, 0.1, PARITY)
    assert larger == pytest.approx(floors[2] / 2, rel=0.1)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 9), (12, 12), (30, 4)])
def test_mcnemar(lost: int, won: int) -> None:
    p = stats.mcnemar_mid_p(lost, won)
    assert p == stats.mcnemar_mid_p(won, lost)
    if lost != won:
        exact = binomtest(min(lost, won), lost + won).pvalue
        half = binomtest(min(lost, won), lost + won, alternative="less").pvalue
        assert p < exact
        assert exact == pytest.approx(2 * half)
    else:
        assert p > 0.9


def test_mcnemar_by_hand() -> None:
    # Three discordant answers, all lost: 2 x 1/8 exact, less the point probability 1/8.
    assert stats.mcnemar_mid_p(3, 0) == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.004, 0.006, "equivalent"),
        (0.002, 0.006, "equivalent"),
        (0.002, 0.03, "different"),
        (-0.03, -0.02, "different"),
        (-0.02, 0.02, "undecided"),
        (0.0, 0.02, "undecided"),
    ],
)
def test_verdicts(low: float, high: float, expected: str) -> None:
    assert stats.verdict(low, high, 0.01) == expected


def test_holm_equals_statsmodels() -> None:
    p = np.random.default_rng(0).random(20) ** 3
    np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: stats.resample([], 10, 0), "tables is empty"),
        (lambda: stats.resample([np.zeros((1, 2, 2, 2))], 10, 0), r"tables\[0\] counts no image"),
        (lambda: stats.null_gaps([5], 0.5), "at least two groups"),
        (lambda: stats.null_gaps([5, 5], 1.5), "rate: 1.5"),
        (lambda: stats.mcnemar_mid_p(-1, 2), "cannot be negative"),
        (lambda: stats.holm([0.1, 1.2]), "p_values"),
        (lambda: stats.verdict(0, 1, 0), "margin"),
    ],
)
def test_bad_arguments_are_named(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]
