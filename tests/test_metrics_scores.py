"""Metrics of scores: areas, calibration, and gaps with the threshold taken out."""

from __future__ import annotations

import warnings

import fairlearn.metrics as peer
import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, roc_auc_score

from fairq_utils import metrics


def sample(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = np.array(list("abc"))[rng.integers(0, 3, n)]
    truth = rng.integers(0, 2, n)
    # Two decimals, so that scores tie.
    scores = np.round(np.clip(0.3 * truth + 0.7 * rng.random(n), 0, 1), 2)
    return truth, scores, group


@pytest.mark.parametrize("seed", range(20))
def test_areas_equal_fairlearns_and_scikit_learns(seed: int) -> None:
    truth, scores, group = sample(seed)
    found = metrics.scores_by_group("roc_auc", truth, scores, sensitive_features=group)
    frame = peer.MetricFrame(
        metrics=roc_auc_score, y_true=truth, y_pred=scores, sensitive_features=group
    )
    np.testing.assert_allclose(found.by_group, frame.by_group, rtol=0, atol=1e-12)
    assert found.overall == roc_auc_score(truth, scores)
    for method in ("between_groups", "to_overall"):
        ours = metrics.roc_auc_difference(truth, scores, sensitive_features=group, method=method)
        assert ours == pytest.approx(frame.difference(method=method), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_calibration_error_from_scikit_learns_curve(seed: int) -> None:
    truth, scores, group = sample(seed, 200)
    fraction, mean = calibration_curve(truth, scores, n_bins=10)
    edges = np.linspace(0, 1, 11)
    held = np.bincount(np.searchsorted(edges[1:-1], scores), minlength=10)
    theirs = (held[held > 0] * np.abs(fraction - mean)).sum() / len(truth)
    assert metrics.calibration_error(truth, scores, bins=10) == pytest.approx(theirs, abs=1e-12)
    found = metrics.scores_by_group(
        "calibration_error", truth, scores, sensitive_features=group, bins=10
    )
    for name, inside in ((g, group == g) for g in "abc"):
        alone = metrics.calibration_error(truth[inside], scores[inside], bins=10)
        assert found.by_group[name] == pytest.approx(alone)


@pytest.mark.parametrize("seed", range(20))
def test_common_threshold_is_the_best_of_all(seed: int) -> None:
    truth, scores, group = sample(seed)
    found = metrics.common_threshold(truth, scores)
    best = max(accuracy_score(truth, scores >= t) for t in [*np.unique(scores), np.inf])
    assert accuracy_score(truth, scores >= found) == best
    # A shift of all scores changes a gap at a fixed threshold, not at the one placed anew.
    gaps = [
        metrics.difference_at_common_threshold(truth, s, sensitive_features=group)
        for s in (scores, scores + 0.3, 2 * scores)
    ]
    assert gaps[0] == gaps[1] == gaps[2]
    placed = metrics.difference_at_common_threshold(
        truth, scores, sensitive_features=group, threshold=found
    )
    assert placed == gaps[0]


@pytest.mark.parametrize("equal", ["selection_rate", "true_positive_rate", "false_positive_rate"])
@pytest.mark.parametrize("seed", range(5))
def test_rates_at_equal_lie_between_neighbouring_thresholds(seed: int, equal: str) -> None:
    truth, scores, group = sample(seed)
    for at in (0.0, 0.25, 0.5, 1.0):
        found = metrics.rates_at_equal(equal, truth, scores, sensitive_features=group, at=at)
        np.testing.assert_allclose(found[equal], at, atol=1e-12)
        for name in "abc":
            y, s = truth[group == name], scores[group == name]
            points = []
            for t in [*np.unique(s), np.inf]:
                chosen = s >= t
                points.append((chosen.mean(), chosen[y == 1].mean(), chosen[y == 0].mean()))
            axis = ["selection_rate", "true_positive_rate", "false_positive_rate"].index(equal)
            row = found.loc[name]
            reached = [p for p in points if abs(p[axis] - at) < 1e-12]
            if reached:  # the best of the thresholds that reach it
                assert row["true_positive_rate"] == pytest.approx(max(p[1] for p in reached)) or (
                    equal == "true_positive_rate"
                )
                assert row["false_positive_rate"] == pytest.approx(min(p[2] for p in reached)) or (
                    equal == "false_positive_rate"
                )
                continue
            low = max(p for p in points if p[axis] < at)
            high = min(p for p in points if p[axis] > at)
            assert low[1] - 1e-12 <= row["true_positive_rate"] <= high[1] + 1e-12
            assert low[2] - 1e-12 <= row["false_positive_rate"] <= high[2] + 1e-12
            share = y.mean()
            mixed = share * row["true_positive_rate"] + (1 - share) * row["false_positive_rate"]
            assert row["selection_rate"] == pytest.approx(mixed)


def test_gap_at_equal_rate_by_hand() -> None:
    # Group b scores 0.5 lower throughout: one threshold is unfair, two are not.
    truth = [1, 1, 0, 0, 1, 1, 0, 0]
    scores = [0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1]
    options = {"sensitive_features": list("aaaabbbb")}
    assert metrics.difference_at_common_threshold(truth, scores, threshold=0.5, **options) == 1
    assert metrics.difference_at_equal_rate(truth, scores, at=0.0, **options) == 0
    with pytest.raises(ValueError, match="rate: 'false_positive_rate' is not one of"):
        metrics.difference_at_equal_rate(truth, scores, rate="false_positive_rate", **options)
    with pytest.raises(ValueError, match="at: 2 is not between 0 and 1"):
        metrics.difference_at_equal_rate(truth, scores, at=2, **options)


def test_groups_too_small_are_listed() -> None:
    truth, scores = [1, 0, 1, 0, 1], [0.9, 0.1, 0.8, 0.2, 0.5]
    group = list("aabbc")
    with pytest.warns(metrics.LeftOutWarning, match=r"left out c from roc_auc \(0 images") as seen:
        assert metrics.roc_auc_difference(truth, scores, sensitive_features=group) == 0
    assert seen[0].filename == __file__
    with pytest.warns(metrics.LeftOutWarning, match="left out c from true_positive_rate") as seen:
        metrics.difference_at_equal_rate(truth, scores, sensitive_features=group, at=0.0)
    assert seen[0].filename == __file__
    with pytest.raises(ValueError, match="roc_auc is not defined in any group"):
        metrics.roc_auc_difference(truth, scores, sensitive_features=group, min_cell=2)
    with pytest.raises(ValueError, match="every row is 1; a threshold needs both labels"):
        metrics.rates_at_equal("selection_rate", [1, 1], [0.1, 0.2], sensitive_features=["a", "b"])


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([0.1, float("nan"), 0.3], "y_score: row 1 is nan, which is no finite number"),
        ([0.1, 0.2, float("inf")], "y_score: row 2 is inf"),
        ([0.1, 0.2], "y_score has 2 rows but y_true has 3"),
        ([0.1, 0.2, 1.3], "y_score: row 2 is 1.3, not a probability"),
        (["high", "low", "low"], "y_score: row 0 is high"),
    ],
)
def test_bad_scores_are_named(scores: list[object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        metrics.calibration_error_difference([1, 0, 1], scores, sensitive_features=list("aab"))


@pytest.mark.parametrize("seed", range(10))
def test_whole_weights_are_repeated_rows(seed: int) -> None:
    truth, scores, group = sample(seed)
    whole = np.random.default_rng(seed + 1).integers(0, 4, len(truth))
    whole[(group == "c") & (truth == 1)] = 0  # a group of which only one label weighs anything
    rows = np.repeat(truth, whole), np.repeat(scores, whole)
    named = {"sensitive_features": group, "sample_weight": whole}
    again = {"sensitive_features": np.repeat(group, whole)}
    for name in metrics.SCORES:
        ours = metrics.scores_by_group(name, truth, scores, **named)
        theirs = metrics.scores_by_group(name, *rows, **again)
        np.testing.assert_allclose(ours.by_group, theirs.by_group, rtol=0, atol=1e-12)
        assert ours.overall == pytest.approx(theirs.overall)
        assert ours.left_out.values.tolist() == theirs.left_out.values.tolist()
    for maximise in ("accuracy", "balanced_accuracy"):
        assert metrics.common_threshold(
            truth, scores, maximise=maximise, sample_weight=whole
        ) == metrics.common_threshold(*rows, maximise=maximise)
    for equal in ("selection_rate", "true_positive_rate", "false_positive_rate"):
        ours = metrics.rates_at_equal(equal, truth, scores, **named)
        theirs = metrics.rates_at_equal(equal, *rows, **again)
        rates = [name for name in ours if name != "count"]
        np.testing.assert_allclose(ours[rates], theirs[rates], rtol=0, atol=1e-12)
    assert metrics.calibration_error(truth, scores, sample_weight=whole) == pytest.approx(
        metrics.calibration_error(*rows)
    )
    assert metrics.difference_at_common_threshold(truth, scores, **named) == pytest.approx(
        metrics.difference_at_common_threshold(*rows, **again)
    )
    for ask in (
        metrics.roc_auc_difference,
        metrics.calibration_error_difference,
        metrics.difference_at_equal_rate,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", metrics.LeftOutWarning)
            assert ask(truth, scores, **named) == pytest.approx(ask(*rows, **again))
        with pytest.raises(ValueError, match="min_cell: 2 is a number of images"):
            ask(truth, scores, min_cell=2, **named)


@pytest.mark.parametrize("seed", range(10))
def test_weighted_areas_equal_scikit_learns(seed: int) -> None:
    truth, scores, group = sample(seed)
    weights = np.random.default_rng(seed).gamma(1.0, size=len(truth))
    found = metrics.scores_by_group(
        "roc_auc", truth, scores, sensitive_features=group, sample_weight=weights
    )
    for name, inside in ((g, group == g) for g in "abc"):
        assert found.by_group[name] == roc_auc_score(
            truth[inside], scores[inside], sample_weight=weights[inside]
        )
    best = metrics.common_threshold(truth, scores, sample_weight=weights)
    reached = accuracy_score(truth, scores >= best, sample_weight=weights)
    assert reached == pytest.approx(
        max(
            accuracy_score(truth, scores >= t, sample_weight=weights)
            for t in [*np.unique(scores), np.inf]
        )
    )
