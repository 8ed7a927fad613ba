"""The bootstrap against plain resampling of rows, its intervals, and how often these cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, ks_2samp

from fairq_utils import metrics, stats
from fairq_utils.bench.coverage import STATISTICS, coverage, coverage_over_seeds, joint
from fairq_utils.stats.intervals import interval

PARITY = metrics.FAIRNESS["demographic_parity_difference"]
Rows = dict[str, np.ndarray]


def accuracy(table: np.ndarray) -> np.ndarray:
    return metrics.overall(table, "accuracy")


def rows(seed: int, n: int = 600, seeds: int = 1) -> Rows:
    """Answers of two models on the same images, the second a little worse for group 1."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n)
    truth = (rng.random(n) < 0.4 + 0.1 * group).astype(int)
    # Hard images are hard for every training seed.
    hard = rng.random(n) < 0.2
    first = np.where(rng.random((seeds, n)) < np.where(hard, 0.6, 0.97), truth, 1 - truth)
    stays = np.where(hard, 0.8, 0.98) - 0.1 * (group == 1)
    second = np.where(rng.random((seeds, n)) < stays, first, 1 - first)
    if seeds == 1:
        first, second = first[0], second[0]
    return {"group": group, "truth": truth, "first": first, "second": second}


def table(data: Rows) -> np.ndarray:
    at = ((data["group"] * 2 + data["truth"]) * 2 + data["first"]) * 2 + data["second"]
    return np.bincount(at, minlength=24).reshape(3, 2, 2, 2)


def change(drawn: np.ndarray, statistic: Callable[..., Any] = PARITY) -> np.ndarray:
    return np.asarray(statistic(drawn.sum(axis=-2)) - statistic(drawn.sum(axis=-1)))


def agree(ours: np.ndarray, plain: np.ndarray) -> None:
    assert ks_2samp(ours, plain).pvalue > 0.01
    assert np.std(ours) == pytest.approx(np.std(plain), rel=0.06)


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("name", ["demographic_parity_difference", "worst_group_accuracy"])
def test_counts_bootstrap_is_the_resampling_of_rows(name: str, stratify: bool) -> None:
    data, statistic = rows(0), metrics.FAIRNESS[name]
    ours = change(stats.resample([table(data)], 4000, seed=1, stratify=stratify)[0], statistic)
    rng = np.random.default_rng(2)
    members = [np.flatnonzero(data["group"] == g) for g in range(3)]
    plain = []
    for _ in range(2000):
        if stratify:
            pick = np.concatenate([rng.choice(m, len(m)) for m in members])
        else:
            pick = rng.integers(0, 600, 600)
        plain.append(change(table({k: v[pick] for k, v in data.items()}), statistic))
    agree(ours, np.array(plain))


def test_strata_keep_their_sizes() -> None:
    counts = table(rows(0))
    drawn = stats.resample([counts], 50, seed=0, stratify=True)[0]
    assert (drawn.sum(axis=(2, 3, 4)) == counts.sum(axis=(1, 2, 3))).all()
    free = stats.resample([counts], 50, seed=0)[0].sum(axis=(2, 3, 4))
    assert (free.sum(axis=1) == 600).all()
    assert np.ptp(free[:, 0]) > 0


def test_a_group_without_images_stays_without() -> None:
    counts = table(rows(0))
    counts[1] = 0
    for stratify in (False, True):
        drawn = stats.resample([counts, counts], 20, seed=0, stratify=stratify)
        assert (drawn[:, :, 1] == 0).all()
        assert (drawn.sum(axis=(2, 3, 4, 5)) == counts.sum()).all()


def test_shared_images_are_the_resampling_of_seeds_and_rows() -> None:
    data = rows(4, seeds=3)
    shared = stats.share_images(data["group"], data["truth"], data["first"], data["second"])
    pairs = zip(data["first"], data["second"], strict=True)
    each = [table({**data, "first": a, "second": b}) for a, b in pairs]
    np.testing.assert_array_equal(shared.tables, each)
    assert len(shared.images) < 300  # patterns, not images
    ours = change(stats.resample(shared, 4000, seed=1)).mean(axis=0)
    rng = np.random.default_rng(3)
    plain = []
    for _ in range(1500):
        pick, which = rng.integers(0, 600, 600), rng.integers(0, 3, 3)
        again = [
            table({k: (v[s] if v.ndim == 2 else v)[pick] for k, v in data.items()}) for s in which
        ]
        plain.append(change(np.stack(again)).mean())
    agree(ours, np.array(plain))
    strata = stats.resample(shared, 10, seed=0, stratify=True).sum(axis=(3, 4, 5))
    assert (strata == np.bincount(data["group"])).all()


def test_calibration_draws_are_crossed_with_seeds() -> None:
    """One draw's change shows in every seed, so it does not average out over seeds."""
    base = table(rows(0, n=6000))
    spoilt = base.copy()
    spoilt[:, :, 0, 1] += spoilt[:, :, 0, 0] // 2
    spoilt[:, :, 0, 0] -= spoilt[:, :, 0, 0] // 2
    crossed = np.stack([np.stack([base, spoilt])] * 6)
    nested = crossed.reshape(12, 3, 2, 2, 2)
    wide = stats.paired_bootstrap(crossed, {"a": accuracy}, seed=0).iloc[0]
    narrow = stats.paired_bootstrap(nested, {"a": accuracy}, seed=0).iloc[0]
    assert wide.change == pytest.approx(narrow.change)
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)


def test_observed_values_and_intervals() -> None:
    counts = table(rows(3))
    options: dict[str, Any] = {"replicates": 3000, "seed": 0}
    frame = stats.paired_bootstrap([counts], {"parity": PARITY}, **options)
    row = frame.iloc[0]
    assert row.reference == PARITY(counts.sum(axis=3))
    assert row.compared == PARITY(counts.sum(axis=2))
    assert row.change == row.compared - row.reference
    assert row.low < row.change < row.high
    narrow = stats.paired_bootstrap([counts], {"parity": PARITY}, confidence=0.5, **options).iloc[0]
    assert row.low < narrow.low < narrow.high < row.high
    again = stats.paired_bootstrap([counts], {"parity": PARITY}, **options).iloc[0]
    assert again.equals(row)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_nothing_changed_is_exactly_no_change(method: Any) -> None:
    counts = np.zeros((2, 2, 2, 2), np.int64)
    counts[:, :, 0, 0], counts[:, :, 1, 1] = 50, 70
    row = stats.paired_bootstrap([counts], {"parity": PARITY}, seed=0, method=method).iloc[0]
    assert (row.change, row.low, row.high) == (0, 0, 0)


def test_replicates_without_a_value_are_told() -> None:
    counts = np.zeros((1, 2, 2, 2), np.int64)
    counts[0, 0, 0, 0], counts[0, 1, 1, 1] = 20, 1
    rate = {"tpr": lambda t: metrics.rate(t, "true_positive_rate")[..., 0]}
    row = stats.paired_bootstrap([counts], rate, replicates=4000, seed=0).iloc[0]
    assert row.undefined == pytest.approx((20 / 21) ** 21, abs=0.03)
    assert (row.low, row.high) == (0, 0)
    bca = stats.paired_bootstrap([counts], rate, seed=0, method="bca").iloc[0]
    assert (bca.low, bca.high) == (0, 0)


@pytest.mark.parametrize("name", ["demographic_parity_difference", "worst_group_accuracy"])
def test_bca_is_scipys_on_rows(name: str) -> None:
    """SciPy deletes every row in turn and resamples rows; we delete cells and draw counts."""
    data, statistic = rows(5, n=150), metrics.FAIRNESS[name]

    def of_rows(index: np.ndarray, axis: int = -1) -> np.ndarray:
        flat = index.reshape(-1, index.shape[-1]).astype(int)
        values = [change(table({k: v[i] for k, v in data.items()}), statistic) for i in flat]
        return np.array(values).reshape(index.shape[:-1])

    theirs = bootstrap(
        (np.arange(150),),
        of_rows,
        n_resamples=4000,
        method="BCa",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    ours, plain = (
        stats.paired_bootstrap(
            [table(data)], {name: statistic}, replicates=20000, seed=1, method=method
        ).iloc[0]
        for method in ("bca", "percentile")
    )
    width = plain.high - plain.low
    assert abs(ours.low - theirs.low) < 0.06 * width
    assert abs(ours.high - theirs.high) < 0.06 * width
    assert max(abs(ours.low - plain.low), abs(ours.high - plain.high)) > 0.005 * width


def test_acceleration_is_the_jackknife_over_images() -> None:
    data = rows(6, n=90)
    found = stats.replicate([table(data)], {"parity": PARITY}, replicates=5)["parity"]
    left = [change(table({k: np.delete(v, i) for k, v in data.items()})) for i in range(90)]
    d = np.mean(left) - np.array(left)
    assert found.accelerations is not None
    assert found.accelerations[2] == pytest.approx((d**3).sum() / (6 * (d**2).sum() ** 1.5))
    shared = stats.share_images(
        *(data[k] for k in ("group", "truth")), [data["first"]], [data["second"]]
    )
    again = stats.replicate(shared, {"parity": PARITY}, replicates=5)["parity"]
    np.testing.assert_allclose(again.accelerations, found.accelerations)


def test_replicates_that_equal_the_observed_value_are_no_bias() -> None:
    """Few flips: most replicates of a change are where it was."""
    drawn = np.repeat([-2.0, -1, 0, 1, 2], [40, 60, 800, 60, 40])
    plain, bent = (interval(drawn, 0.0, confidence=0.95, acceleration=a) for a in (None, 0.0))
    assert plain == bent == (-2, 2)


def test_seeds_widen_the_interval() -> None:
    """Seeds that disagree: images alone would claim more than is known."""
    tables = []
    for shift in (0.02, 0.30, 0.12, 0.22):
        data = rows(7)
        rng = np.random.default_rng(int(shift * 100))
        spoilt = (data["group"] == 1) & (rng.random(600) < shift)
        data["second"] = np.where(spoilt, 1 - data["second"], data["second"])
        tables.append(table(data))
    worst = {"worst": metrics.FAIRNESS["worst_group_accuracy"]}
    hierarchical = stats.paired_bootstrap(tables, worst, seed=0).iloc[0]
    pooled = stats.paired_bootstrap([np.sum(tables, axis=0)], worst, seed=0).iloc[0]
    assert hierarchical.high - hierarchical.low > 1.5 * (pooled.high - pooled.low)
    assert hierarchical.change == pytest.approx(
        np.mean([stats.paired_bootstrap([t], worst, seed=0).change[0] for t in tables])
    )


def test_intervals_cover() -> None:
    """From 200 images per group up, 95 % intervals cover 93 to 97 times in 100."""
    found = coverage(sizes=[200], worlds=["apart"], trials=400, replicates=300, seed=1)
    smooth = found[~found.statistic.str.contains("gap|worst")]
    # Two standard errors of 400 trials beyond the promise; the benchmark measures with 1,500.
    assert smooth.coverage.between(0.91, 0.99).all(), smooth
    assert 0.93 <= smooth.coverage.mean() <= 0.97
    assert (found.undefined == 0).all()


def test_a_gap_of_nothing_is_never_covered() -> None:
    found = coverage(sizes=[200], worlds=["equal"], trials=40, replicates=100)
    gaps = found[found.statistic.str.endswith("gap") & (found.method == "percentile")]
    assert (gaps[gaps.quantity == "level"].coverage == 0).all()
    assert (gaps[gaps.quantity == "change"].coverage > 0.9).all()


@pytest.mark.parametrize("world", ["seeds", "seeds and draws", "draws"])
def test_seeds_and_draws_that_are_crossed_are_covered(world: str) -> None:
    found = coverage_over_seeds(designs=[(5, 3)], worlds=[world], trials=200, replicates=200)
    by_name = found.set_index("interval")
    assert 0.9 <= by_name.coverage["crossed"] <= 0.99
    assert by_name.shown["crossed"] <= 0.09
    assert by_name.width["runs as seeds"] < 0.8 * by_name.width["crossed"]
    if "draws" in world:
        assert by_name.coverage["runs as seeds"] < by_name.coverage["crossed"] - 0.02


def test_components_of_crossed_values_by_hand() -> None:
    values = np.array([[1.0, 3.0], [2.0, 4.0], [6.0, 8.0]])
    found = stats.components(values, np.array([3.9, 4.1]))
    assert found.mean == 4.0
    assert found.sd_seeds == pytest.approx(np.std([2, 3, 7], ddof=1))
    assert found.sd_draws == pytest.approx(np.std([3, 5], ddof=1))
    assert found.sd_images == pytest.approx(0.1)
    parts = [7 / 3, 2 / 2, 0.01]
    assert found.error**2 == pytest.approx(sum(parts))
    assert found.degrees == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2))
    same = stats.components(np.zeros((2, 1)), np.zeros(5))
    assert (same.error, same.p_value) == (0, 1)


def test_an_image_that_weighs_more_counts_more() -> None:
    """Weights of 1 are counts, and whole weights are repeated images."""
    rng = np.random.default_rng(0)
    group, label = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    first, second = rng.integers(0, 2, (2, 3, 200))
    whole = rng.integers(1, 4, 200)
    ones = stats.share_images(group, label, first, second, weight=np.ones(200))
    plain = stats.share_images(group, label, first, second)
    np.testing.assert_array_equal(ones.tables, plain.tables)
    heavy = stats.share_images(group, label, first, second, weight=whole)
    again = stats.share_images(
        *(np.repeat(x, whole) for x in (group, label)),
        *(np.repeat(x, whole, axis=1) for x in (first, second)),
    )
    np.testing.assert_allclose(heavy.tables, again.tables)
    drawn = stats.resample(heavy, 400, seed=1)
    np.testing.assert_allclose(drawn.mean(axis=1).sum(axis=0), heavy.tables.sum(axis=0), rtol=0.25)


def test_strata_of_shared_images_keep_their_sizes() -> None:
    group = np.repeat([0, 1], [30, 70])
    label = np.tile([0, 1], 50)
    shared = stats.share_images(group, label, [label], [1 - label], stratum=group)
    drawn = stats.resample(shared, 50, seed=0)
    assert (drawn.sum(axis=(3, 4, 5)) == [30, 70]).all()
    free = stats.resample(stats.share_images(group, label, [label], [1 - label]), 50, seed=0)
    assert np.ptp(free.sum(axis=(3, 4, 5))[..., 0]) > 5


def test_simulated_worlds_are_what_they_say() -> None:
    within = joint("apart")
    np.testing.assert_allclose(within.sum(axis=(1, 2, 3)), 1)
    before, after = within[0].sum(axis=2), within[0].sum(axis=1)
    assert before[1, 1] / before[1].sum() == pytest.approx(0.95)
    assert after[1, 1] / after[1].sum() == pytest.approx(0.95 * 0.98 + 0.05 * 0.10)
    for world in ("equal", "tied"):
        assert STATISTICS["accuracy gap"](joint(world).sum(axis=3)) == pytest.approx(0)
    assert STATISTICS["accuracy gap"](joint("tied").sum(axis=2)) > 0.05


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: stats.resample([], 10, 0), "tables is empty"),
        (lambda: stats.resample([np.ones((1, 2, 2, 2))] * 2, 0, 0), "replicates: 0"),
        (lambda: stats.resample([np.zeros((1, 2, 2, 2))], 10, 0), r"tables\[0\] counts no image"),
        (lambda: stats.resample([np.ones((3, 2, 2))], 10, 0), r"tables\[0\] has shape \(3, 2, 2\)"),
        (
            lambda: stats.resample([np.ones((1, 2, 2, 2)), np.ones((2, 2, 2, 2))], 10, 0),
            r"tables\[1\] has shape",
        ),
        (lambda: stats.resample([-np.ones((1, 2, 2, 2))], 10, 0), r"tables\[0\] has negative"),
        (
            lambda: stats.paired_bootstrap([np.ones((1, 2, 2, 2))], {"n": lambda t: t.sum()}),
            r"statistics\['n'\] returned shape \(\)",
        ),
        (lambda: stats.paired_bootstrap([], {}, confidence=1.0), "confidence: 1.0"),
        (lambda: stats.paired_bootstrap([], {}, replicates=1), "replicates: 1"),
        (lambda: stats.paired_bootstrap([], {}, method="basic"), "'basic' is not one of"),  # type: ignore[arg-type]
        (lambda: stats.share_images([0, 1], [1], [[0, 1]], [[0, 1]]), "label has shape"),
        (lambda: stats.share_images([0, 1], [1, 0], [0, 1], [[0, 1]]), "reference has shape"),
        (lambda: stats.share_images([0, 1], [1, 0], [[0, 1]], [[0, 2]]), "compared: some values"),
        (
            lambda: stats.share_images([0, 1], [1, 0], [[0, 1]], [[0, 1]] * 2),
            r"compared has shape \(2, 2\), reference has \(1, 2\)",
        ),
        (lambda: stats.share_images([-1, 1], [1, 0], [[0, 1]], [[0, 1]]), "group: must"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_bca_needs_accelerations() -> None:
    found = stats.replicate(
        [np.ones((1, 2, 2, 2))], {"a": accuracy}, replicates=5, accelerate=False
    )
    with pytest.raises(ValueError, match="without accelerations"):
        found["a"].intervals(0.95, "bca")


def test_sums_of_weights_are_no_counts() -> None:
    weighted = metrics.count(
        [1, 0], [1, 1], sensitive_features=["a", "b"], sample_weight=[0.5, 0.2]
    )
    with pytest.raises(ValueError, match=r"sums of weights .* give counts without weights"):
        stats.paired_bootstrap([weighted.table], {"size": lambda t: t.sum(axis=(-1, -2, -3))})
