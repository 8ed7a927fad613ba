"""Equal to fairlearn on random tables, and where not, as the docstrings say.

The tables are batched: fairlearn's MetricFrame takes the table's number as a control feature and
returns one value per table, at a fraction of the cost of a frame each.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import fairlearn.metrics as peer
import numpy as np
import pandas as pd
import pytest
import sklearn
import sklearn.metrics as skm
from fairlearn.metrics._disaggregated_result import DisaggregatedResult
from hypothesis import given, settings
from hypothesis import strategies as st

from fairq_utils import metrics

BATCH, EXAMPLES = 100, 20  # 2,000 tables
TOLERANCE = 1e-12
GROUPS = 4  # at most, in one table

PEERS: dict[str, Any] = {
    "accuracy": skm.accuracy_score,
    "selection_rate": peer.selection_rate,
    "true_positive_rate": peer.true_positive_rate,
    "false_positive_rate": peer.false_positive_rate,
    "true_negative_rate": peer.true_negative_rate,
    "false_negative_rate": peer.false_negative_rate,
}
WORST: dict[str, float] = {}  # largest absolute difference seen, by family
SEEN: Counter[str] = Counter()


def worst(family: str, ours: Any, theirs: Any) -> None:
    """Record and bound the difference; NaN must meet NaN."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE, err_msg=family)
    apart = np.abs(ours - theirs)[~np.isnan(ours)]
    WORST[family] = max(WORST.get(family, 0.0), float(apart.max(initial=0)))


@pytest.fixture(scope="module", autouse=True)
def report() -> Any:
    # Input validation is most of the oracle's time, and these inputs are valid.
    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):
        yield
    listed = "; ".join(f"{family} {apart:.1e}" for family, apart in WORST.items())
    print(f"\nfairlearn: {dict(SEEN)}, largest differences: {listed}")


def remembered(function: Any) -> Any:
    """A peer's function that is asked once for the same rows: small groups repeat often."""

    @cache
    def of_bytes(truth: bytes, guess: bytes) -> Any:
        return function(np.frombuffer(truth, np.int64), np.frombuffer(guess, np.int64))

    def of_rows(y_true: Any, y_pred: Any) -> Any:
        truth, guess = (np.asarray(v, np.int64).tobytes() for v in (y_true, y_pred))
        return of_bytes(truth, guess)

    return of_rows


REMEMBERED = {name: remembered(function) for name, function in PEERS.items()}
Rows = tuple[list[int], list[int], list[str]]


def one_table(rng: np.random.Generator) -> Rows:
    """Labels, predictions and groups: unbalanced, single-class and one-member groups among them."""
    truth, guess, group = [], [], []
    for i in range(rng.choice([2, 3, GROUPS], p=[0.8, 0.15, 0.05])):
        n = int(rng.choice([1, 2, 4, 30], p=[0.15, 0.2, 0.5, 0.15]))
        truth += (
            (rng.random(n) < rng.choice([0.0, 0.1, 0.5, 1.0], p=[0.08, 0.2, 0.64, 0.08]))
            .astype(int)
            .tolist()
        )
        guess += (
            (rng.random(n) < rng.choice([0.0, 0.3, 0.7, 1.0], p=[0.08, 0.42, 0.42, 0.08]))
            .astype(int)
            .tolist()
        )
        group += [f"g{i}"] * n
    return truth, guess, group


def fairlearns(tables: list[Rows]) -> peer.MetricFrame:
    """fairlearn's frame over all tables; the table's number is a control feature."""
    number = np.repeat(np.arange(len(tables)), [len(t[0]) for t in tables])
    truth, guess, group = (np.concatenate([t[i] for t in tables]) for i in range(3))
    return peer.MetricFrame(
        metrics=REMEMBERED,
        y_true=truth,
        y_pred=guess,
        sensitive_features=pd.Series(group, name="group"),
        control_features=pd.Series(number, name="table"),
    )


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=EXAMPLES, deadline=None)
def test_rates_and_gaps_equal_fairlearns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = [one_table(rng) for _ in range(BATCH)]
    frame = fairlearns(tables)
    # As many groups in every table; those that a table lacks are empty in both.
    everywhere = pd.MultiIndex.from_product([range(BATCH), [f"g{i}" for i in range(GROUPS)]])
    by_group = frame.by_group.reindex(everywhere.set_names(["table", "group"]))
    SEEN["tables"] += len(tables)
    counts = np.zeros((len(tables), GROUPS, 2, 2), np.int64)
    for number, (truth, guess, group) in enumerate(tables):
        compared = metrics.count(truth, guess, sensitive_features=group).compared
        counts[number, : len(compared)] = compared
    masked, overall = by_group.copy(), frame.overall.copy()
    comparable = {}
    for name in PEERS:
        ours, support = metrics.rate(counts, name), metrics.RATES[name].support(counts)
        theirs = by_group[name].to_numpy(float).reshape(support.shape)
        # A group without the denominator: 0 in fairlearn (NaN if it has no rows), NaN here.
        empty = support == 0
        assert np.isnan(ours[empty]).all() and not np.nan_to_num(theirs[empty]).any()
        SEEN["empty cells"] += int((empty & (counts.sum(axis=(2, 3)) > 0)).sum())
        worst("rates by group", ours[~empty], theirs[~empty])
        masked[name] = np.where(empty, np.nan, theirs).ravel()
        nobody = empty.all(axis=1)
        overall[name] = np.where(nobody, np.nan, overall[name].to_numpy(float))
        worst("rates overall", metrics.overall(counts, name), overall[name])
        comparable[name] = (~empty).sum(axis=1) >= 2
    # With the empty cells taken out, fairlearn's own comparison of groups.
    result = DisaggregatedResult(overall, masked)
    for method in ("between_groups", "to_overall"):
        options = {"control_feature_names": ["table"], "method": method}
        differences, ratios = result.difference(**options), result.ratio(**options)
        for name in PEERS:
            theirs = np.where(comparable[name], differences[name].to_numpy(float), np.nan)
            worst(f"differences {method}", metrics.difference(counts, name, method=method), theirs)
            theirs = np.where(comparable[name], ratios[name].to_numpy(float), np.nan)
            worst(f"ratios {method}", metrics.ratio(counts, name, method=method), theirs)
    lowest = masked.groupby(level="table").min()
    for name in ("accuracy", "true_positive_rate", "true_negative_rate"):
        worst("worst group", metrics.worst_group(counts, name), lowest[name])
    # The joined criteria, from fairlearn's parts: the larger difference, the smaller ratio.
    differences = result.difference(control_feature_names=["table"], method="between_groups")
    odds = ["true_positive_rate", "false_positive_rate"]
    parts = np.stack(
        [np.where(comparable[n], differences[n].to_numpy(float), np.nan) for n in odds]
    )
    ours = metrics.FAIRNESS["equalized_odds_difference"](counts)
    worst("equalized odds", ours, np.fmax(*parts))


NAMED = [
    (name, {"method": method, **extra})
    for method in ("between_groups", "to_overall")
    for name, extra in [
        ("demographic_parity_difference", {}),
        ("demographic_parity_ratio", {}),
        ("equal_opportunity_difference", {}),
        ("equal_opportunity_ratio", {}),
        ("equalized_odds_difference", {"agg": "worst_case"}),
        ("equalized_odds_difference", {"agg": "mean"}),
        ("equalized_odds_ratio", {"agg": "worst_case"}),
        ("equalized_odds_ratio", {"agg": "mean"}),
    ]
]
GENERATED = [
    f"{rate}_{how}" for rate in PEERS if rate != "accuracy" for how in ("difference", "ratio")
]


def full_table(rng: np.random.Generator) -> Rows:
    """A table on which fairlearn's and our definitions agree: no empty denominator, no 0 / 0."""
    truth, guess, group = [], [], []
    for i in range(rng.integers(1, 4)):
        n = int(rng.integers(0, 12))
        truth += [0, 0, 1, 1, *rng.integers(0, 2, n).tolist()]
        guess += [0, 1, 0, 1, *rng.integers(0, 2, n).tolist()]
        group += [f"g{i}"] * (n + 4)
    return truth, guess, group


@pytest.mark.parametrize("seed", range(6))
def test_functions_of_the_same_name_equal_fairlearns(seed: int) -> None:
    truth, guess, group = full_table(np.random.default_rng(seed))
    calls = [*NAMED, *((name, {}) for name in GENERATED)]
    for name, options in calls:
        ours = getattr(metrics, name)(truth, guess, sensitive_features=group, **options)
        theirs = getattr(peer, name)(truth, guess, sensitive_features=group, **options)
        worst("functions of the same name", ours, theirs)
    for name in PEERS:
        worst("rates of rows", getattr(metrics, name)(truth, guess), PEERS[name](truth, guess))
    minima = {
        "balanced_accuracy": peer.balanced_accuracy_score_group_min,
        "f1_score": peer.f1_score_group_min,
        "positive_predictive_value": peer.precision_score_group_min,
        "error_rate": peer.zero_one_loss_group_max,
    }
    for name, theirs in minima.items():
        ours = metrics.rate_gap(name, truth, guess, sensitive_features=group, compare="worst_group")
        worst("worst group", ours, theirs(truth, guess, sensitive_features=group))


def test_where_fairlearn_differs() -> None:
    # Nobody of group a has label 1: fairlearn's true positive rate is 0 there.
    truth, guess, group = [0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0], list("aabbcc")
    theirs = peer.equal_opportunity_difference(truth, guess, sensitive_features=group)
    with pytest.warns(metrics.LeftOutWarning, match="left out a from true_positive_rate"):
        ours = metrics.equal_opportunity_difference(truth, guess, sensitive_features=group)
    assert (theirs, ours) == (1.0, 0.5)
    # Nobody is selected: fairlearn's ratio is NaN, ours an error that says why.
    nobody = {"sensitive_features": ["a", "b"]}
    assert np.isnan(peer.demographic_parity_ratio([0, 1], [0, 0], **nobody))
    with pytest.raises(ValueError, match="selection_rate is 0 in every group"):
        metrics.demographic_parity_ratio([0, 1], [0, 0], **nobody)
    # No false positives: of the two ratios one is 0 / 0. fairlearn's answer depends on which.
    truth, guess, group = [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0], list("aaabbb")
    assert metrics.equalized_odds_ratio(truth, guess, sensitive_features=group) == 0.5
    assert peer.equalized_odds_ratio(truth, guess, sensitive_features=group) == 0.5
    truth = [1 - label for label in truth]  # and now no true positives
    assert metrics.equalized_odds_ratio(truth, guess, sensitive_features=group) == 0.5
    assert np.isnan(peer.equalized_odds_ratio(truth, guess, sensitive_features=group))
    # One group: a difference of 0 in both.
    for module in (metrics, peer):
        assert module.demographic_parity_difference([0], [1], sensitive_features=["a"]) == 0


def weighted_rows(seed: int) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 60))
    y_true, y_pred = rng.integers(2, size=(2, n))
    groups = np.arange(n) % int(rng.integers(2, GROUPS))
    y_true[:8], y_pred[:8] = [0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1]
    weights = rng.choice([0.0, 0.25, 1.0, 3.7], n)
    weights[:12] += 0.1
    return y_true, y_pred, groups, weights


SAME_NAME = (
    "demographic_parity_difference", "demographic_parity_ratio",
    "equalized_odds_difference", "equalized_odds_ratio", "equal_opportunity_difference",
    "equal_opportunity_ratio", "selection_rate_difference", "selection_rate_ratio",
    "true_positive_rate_difference", "false_positive_rate_ratio",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::fairq_utils.metrics.LeftOutWarning")
@pytest.mark.parametrize("seed", range(15))
def test_weights_of_rows_are_those_of_fairlearn(seed: int) -> None:
    y_true, y_pred, groups, weights = weighted_rows(seed)
    named = {"sensitive_features": groups, "sample_weight": weights}
    theirs = peer.MetricFrame(
        metrics=PEERS,
        y_true=y_true,
        y_pred=y_pred,
        sensitive_features=groups,
        sample_params={name: {"sample_weight": weights} for name in PEERS},
    )
    ours = metrics.metric_frame(y_true, y_pred, metrics=list(PEERS), **named)
    here = ours.by_group.notna().to_numpy()  # where fairlearn has 0 for 0 / 0
    worst("weighted", ours.by_group.to_numpy()[here], theirs.by_group.to_numpy(float)[here])
    worst("weighted", ours.overall, theirs.overall.to_numpy(float))
    for name in PEERS:
        worst(
            "weighted",
            getattr(metrics, name)(y_true, y_pred, sample_weight=weights),
            PEERS[name](y_true, y_pred, sample_weight=weights),
        )
    assert ours.counts.images.sum() == (weights > 0).sum()
    assert ours.counts[["TN", "FP", "FN", "TP"]].to_numpy().sum() == pytest.approx(weights.sum())
    if not here.all():
        return
    for name in SAME_NAME:
        for method in ("between_groups", "to_overall"):
            worst(
                "weighted",
                getattr(metrics, name)(y_true, y_pred, method=method, **named),
                getattr(peer, name)(y_true, y_pred, method=method, **named),
            )


def test_whole_weights_are_repeated_rows() -> None:
    y_true, y_pred, groups, weights = weighted_rows(3)
    whole = np.ceil(weights).astype(int)
    named = {"sensitive_features": groups, "sample_weight": whole}
    again = {"sensitive_features": np.repeat(groups, whole)}
    rows = np.repeat(y_true, whole), np.repeat(y_pred, whole)
    for name in metrics.FAIRNESS:
        ask = metrics.row_metric(name)
        assert ask(y_true, y_pred, **named) == pytest.approx(ask(*rows, **again))
    assert metrics.four_fifths_rule(y_true, y_pred, **named) == metrics.four_fifths_rule(
        *rows, **again
    )
    assert metrics.rate_gap("f1_score", y_true, y_pred, **named) == pytest.approx(
        metrics.rate_gap("f1_score", *rows, **again)
    )
    assert metrics.theil_index(y_true, y_pred, sample_weight=whole) == pytest.approx(
        metrics.theil_index(*rows)
    )
    sides = {"privileged": 0}
    assert metrics.average_odds_difference(y_true, y_pred, **named, **sides) == pytest.approx(
        metrics.average_odds_difference(*rows, **again, **sides)
    )
    classes = metrics.one_vs_rest(y_true, y_pred, **named)
    assert classes[1].table.tolist() == metrics.count(*rows, **again).table.tolist()


def test_without_weights_counts_are_whole() -> None:
    counts = metrics.count([1, 0], [1, 1], sensitive_features=["a", "b"])
    assert counts.table.dtype == np.int64 and counts.images is None
    small = {"sensitive_features": ["a", "b"], "sample_weight": [0.25, 0.5]}
    with np.errstate(all="raise"):
        assert metrics.demographic_parity_difference([1, 0], [1, 0], **small) == 1.0
    crossed = metrics.count(
        [1, 0], [1, 1], sensitive_features={"g": ["a", "b"], "h": ["c", "c"]},
        sample_weight=[0.25, 0.5],
    )  # fmt: skip
    assert crossed.by("h").table.sum() == 0.75 and crossed.by("h").sizes.tolist() == [2]


@pytest.mark.parametrize(
    ("weights", "options", "sentence"),
    [
        ([1, -1], {}, "sample_weight: row 1 is -1; give weights of 0 or more"),
        ([1, np.nan], {}, "sample_weight: row 1 is nan"),
        ([1], {}, "sample_weight has 1 rows but y_true has 2"),
        ([0, 0], {}, "every row weighs 0"),
        ([1, 1], {"min_cell": 2}, "min_cell: 2 is a number of images"),
    ],
)
def test_weights_that_cannot_be_used(weights: Any, options: Any, sentence: str) -> None:
    for ask in (metrics.demographic_parity_difference, metrics.selection_rate):
        with pytest.raises(ValueError, match=sentence):
            ask([1, 0], [1, 0], sensitive_features=["a", "b"], sample_weight=weights, **options)
