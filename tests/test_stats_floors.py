"""What chance alone makes of a gap and of its change; flips and McNemar's test of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest

from fairq_utils import metrics, stats

PARITY = metrics.FAIRNESS["demographic_parity_difference"]


@pytest.mark.parametrize(("sizes", "mean", "high"), [([1000] * 2, 1.1, 2.6), ([200] * 8, 6.0, 9.0)])
def test_noise_floor_at_ninety_percent(sizes: list[int], mean: float, high: float) -> None:
    """Gaps between groups that do not differ, in points; checked by an independent simulation."""
    found = stats.noise_floor(sizes, 0.9)
    assert 100 * found[0] == pytest.approx(mean, abs=0.1)
    assert 100 * found[1] == pytest.approx(high, abs=0.11)


def test_several_nulls_at_once() -> None:
    sizes = np.array([[1000, 1000], [100, 400]])
    gaps = stats.null_gaps(sizes, [0.9, 0.6], replicates=20000)
    assert gaps.shape == (20000, 2)
    for k, rate in enumerate((0.9, 0.6)):
        # The mean absolute difference of two nearly normal rates.
        sd = (rate * (1 - rate) * (1 / sizes[k]).sum()) ** 0.5
        assert gaps[:, k].mean() == pytest.approx(sd * (2 / np.pi) ** 0.5, rel=0.03)


def test_change_noise_floor_grows_with_flips_and_shrinks_with_images() -> None:
    counts = np.array([[[400, 50], [40, 300]], [[300, 40], [50, 400]]])
    floors = [stats.change_noise_floor(counts, f, PARITY) for f in (0.0, 0.01, 0.1)]
    assert floors[0] == 0 < floors[1] < floors[2]
    larger = stats.change_noise_floor(counts * 4, 0.1, PARITY)
    assert larger == pytest.approx(floors[2] / 2, rel=0.1)


def one_group(lost: int, won: int, right: int = 100, wrong: int = 20) -> np.ndarray:
    counts = np.zeros((1, 2, 2, 2), np.int64)
    counts[0, 1] = [[wrong, won], [lost, right]]
    return counts


@pytest.mark.parametrize(("lost", "won"), [(12, 3), (2, 9), (6, 6), (0, 0)])
def test_exchange_is_mcnemars_test_for_accuracy(lost: int, won: int) -> None:
    accuracy = {"accuracy": lambda t: metrics.overall(t, "accuracy")}
    found = stats.exchange_floors([one_group(lost, won)], accuracy, replicates=20000).iloc[0]
    exact = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert found.p_value == pytest.approx(exact, abs=0.01)
    images = 120 + lost + won
    assert found.change == pytest.approx((won - lost) / images)
    # 95 of 100 exchanges change accuracy by no more.
    differences = np.abs(2 * np.random.default_rng(1).binomial(lost + won, 0.5, 99999) - lost - won)
    assert found.floor == pytest.approx(np.quantile(differences, 0.95) / images, abs=1e-12)


def test_exchange_holds_its_level_for_a_gap_without_a_change() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(400):
        counts = rng.multinomial(150, [0.3, 0.05, 0.05, 0.1, 0.1, 0.05, 0.05, 0.3], size=3)
        found = stats.exchange_floors([counts.reshape(3, 2, 2, 2)], {"p": PARITY}, replicates=200)
        p_values.append(found.p_value.item())
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.025)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)


def test_exchange_of_shared_images_does_not_count_one_event_many_times() -> None:
    """Four copies of one seed are one seed."""
    rng = np.random.default_rng(2)
    group, label = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
    first = np.where(rng.random(400) < 0.9, label, 1 - label)
    second = np.where(rng.random(400) < 0.9, first, 1 - first)
    shared = stats.share_images(group, label, [first] * 4, [second] * 4)
    options = {"replicates": 20000}
    once = stats.exchange_floors(shared.tables[:1], {"p": PARITY}, **options).iloc[0]  # type: ignore[arg-type]
    copies = stats.exchange_floors(shared, {"p": PARITY}, **options).iloc[0]  # type: ignore[arg-type]
    apart = stats.exchange_floors(shared.tables, {"p": PARITY}, **options).iloc[0]  # type: ignore[arg-type]
    assert copies.change == pytest.approx(once.change)
    assert copies.floor == pytest.approx(once.floor, rel=0.05)
    assert apart.floor == pytest.approx(once.floor / 2, rel=0.15)


def test_the_floor_of_seeds_is_exceeded_one_time_in_twenty() -> None:
    """Known truth: seeds differ by a normal amount."""
    rng = np.random.default_rng(0)
    share = {"share": lambda table: np.asarray(table)[..., 0, 0, 1]}
    for seeds in (3, 5, 10):
        beyond, held, old = 0, 0, 0
        for _ in range(2000):
            values = 0.5 + 0.02 * rng.standard_normal(seeds + 2)
            tables = {s: np.full((1, 2, 2), value) for s, value in enumerate(values[:-2])}
            found = stats.seed_floors(tables, share).iloc[0]
            apart = abs(values[-1] - values[-2])
            beyond += apart > found.floor
            held += found.floor_low <= 1.96 * 2**0.5 * 0.02 <= found.floor_high
            pairs = [abs(a - b) for a, b in combinations(values[:-2], 2)]
            old += apart > np.quantile(pairs, 0.95)
            assert found.largest == pytest.approx(max(pairs)) and found.seeds == seeds
        assert 0.035 < beyond / 2000 < 0.065
        assert 0.935 < held / 2000 < 0.965
        if seeds == 3:  # the 95th percentile of the pairs that were seen
            assert old / 2000 > 0.25


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 9), (12, 12), (30, 4)])
def test_mcnemar(lost: int, won: int) -> None:
    p = stats.mcnemar_mid_p(lost, won)
    assert p == stats.mcnemar_mid_p(won, lost)
    if lost != won:
        exact = binomtest(min(lost, won), lost + won).pvalue
        point = binomtest(0, lost + won).pvalue / 2 if not min(lost, won) else None
        assert p < exact
        if point:
            assert p == pytest.approx(exact - point)
    else:
        assert p > 0.8


def test_mcnemar_by_hand() -> None:
    # Three discordant predictions, all lost: 2 x 1/8 exact, less the point probability 1/8.
    assert stats.mcnemar_mid_p(3, 0) == pytest.approx(1 / 8)


def test_flips_by_group() -> None:
    counts = np.zeros((2, 2, 2, 2), np.int64)
    counts[0, 0, 0, 1], counts[0, 1, 1, 0] = 4, 3  # lost: label 0 turned on, label 1 turned off
    counts[0, 0, 1, 0], counts[0, 1, 0, 1] = 1, 1  # won
    counts[:, 0, 0, 0] = 91, 50
    found = stats.flips_by_group(counts, ["a", "b"]).set_index("group")
    assert found.loc["a", ["images", "lost", "won"]].tolist() == [100, 7, 2]
    assert found.loc["a", "churn"] == pytest.approx(0.09)
    assert found.loc["a", "change"] == pytest.approx(-0.05)
    assert found.loc["a", "mcnemar_exact"] == pytest.approx(binomtest(2, 9).pvalue)
    assert found.loc["b", ["churn", "mcnemar_exact", "mcnemar_mid_p"]].tolist() == [0, 1, 1]
    assert found.loc["all", "images"] == 150
    before, after = counts.sum(axis=3), counts.sum(axis=2)
    true = metrics.rate(after, "accuracy") - metrics.rate(before, "accuracy")
    np.testing.assert_allclose(found.change[["a", "b"]], true)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: stats.null_gaps([5], 0.5), "at least two groups"),
        (lambda: stats.null_gaps([5, 0], 0.5), "at least one image"),
        (lambda: stats.null_gaps([5, 5], 1.5), "rate: 1.5"),
        (lambda: stats.null_gaps([5, 5], [0.5, 0.4]), r"rate has shape \(2,\)"),
        (lambda: stats.change_noise_floor(np.ones((1, 2, 2)), 1.2, PARITY), "flips: 1.2"),
        (lambda: stats.change_noise_floor(np.zeros((1, 2, 2)), 0.2, PARITY), "no image"),
        (lambda: stats.exchange_floors([np.full((1, 2, 2, 2), 0.5)], {}), "not whole"),
        (lambda: stats.mcnemar_mid_p(-1, 2), "lost: -1 is no number of predictions"),
        (lambda: stats.mcnemar_mid_p(np.nan, 3), "lost: nan is no number of predictions"),
        (lambda: stats.mcnemar_mid_p(np.inf, 3), "lost: inf is no number of predictions"),
        (lambda: stats.mcnemar_mid_p(3, 1.2), "won: 1.2 is no number of predictions"),
        (lambda: stats.flips_by_group(np.full((1, 2, 2, 2), 2.5), ["a"]), "table: holds sums of w"),
        (lambda: stats.flips_by_group(np.full((1, 2, 2, 2), -1), ["a"]), "table: has negative"),
        (lambda: stats.seed_floors({1: np.ones((2, 2, 2))}, {}), "differ from no other"),
        (lambda: stats.flips_by_group(np.ones((2, 2, 2, 2)), ["a"]), "1 groups need"),
        (lambda: stats.flips_by_group(np.ones((2, 2, 2, 2)), "ab"), "1 groups need"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_perfect_model_with_equal_errors_has_the_gap_of_the_base_rates() -> None:
    table = np.zeros((3, 2, 2), int)
    table[:, 0, 0], table[:, 1, 1] = [40, 70, 90], [60, 30, 10]
    gaps = {"odds": metrics.FAIRNESS["equalized_odds_difference"], "parity": PARITY}
    found = stats.equal_errors(table, gaps).set_index("statistic")
    assert (found.loc["odds"] == 0).all()
    np.testing.assert_allclose(found.loc["parity"].to_numpy(float), 0.5)


def test_equal_errors_cover_models_without_bias_and_not_a_biased_one() -> None:
    rng = np.random.default_rng(0)
    within = np.array([[150, 90], [300, 250], [80, 120]])
    odds = {"odds": metrics.FAIRNESS["equalized_odds_difference"]}

    def model(rates: np.ndarray) -> np.ndarray:
        positive = rng.binomial(within, rates)
        return np.stack([within - positive, positive], axis=-1)

    fair = [model(np.array([0.1, 0.9])) for _ in range(200)]
    above = 0
    for table in fair:
        found = stats.equal_errors(table, odds, replicates=400).iloc[0]
        above += float(odds["odds"](table)) > found.high
    assert 0.01 <= above / 200 <= 0.10
    biased = model(np.array([[0.1, 0.9], [0.1, 0.9], [0.1, 0.6]]))
    assert float(odds["odds"](biased)) > stats.equal_errors(biased, odds).high.item()
