"""Fairness metrics against fairlearn and by hand."""

from __future__ import annotations

import fairlearn.metrics as peer
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from fairq_utils import metrics

# Ten people by hand: group a 2 of 4 selected, group b 4 of 6.
TRUTH = [1, 1, 0, 0, 1, 1, 1, 0, 0, 0]
GUESS = [1, 0, 1, 0, 1, 1, 1, 1, 0, 0]
GROUP = list("aaaabbbbbb")


def test_by_hand() -> None:
    table = metrics.count(TRUTH, GUESS, sensitive_features=GROUP).compared
    np.testing.assert_array_equal(table, [[[1, 1], [1, 1]], [[2, 1], [0, 3]]])
    np.testing.assert_allclose(metrics.rate(table, "selection_rate"), [2 / 4, 4 / 6])
    np.testing.assert_allclose(metrics.rate(table, "true_positive_rate"), [1 / 2, 1])
    np.testing.assert_allclose(metrics.rate(table, "false_positive_rate"), [1 / 2, 1 / 3])
    np.testing.assert_allclose(metrics.rate(table, "f1_score"), [1 / 2, 6 / 7])
    assert metrics.overall(table, "accuracy") == 0.7
    assert metrics.equalized_odds(table) == pytest.approx(0.5)
    assert metrics.FAIRNESS["disparate_impact"](table) == pytest.approx(0.75)
    assert metrics.worst_group(table) == 0.5


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[int], list[int], list[str]]:
    # Groups of every size down to one member, unbalanced and single-class ones among them.
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=5))
    truth, guess, group = [], [], []
    for i, n in enumerate(sizes):
        base = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        truth += (rng.random(n) < base).astype(int).tolist()
        guess += (rng.random(n) < rng.random()).astype(int).tolist()
        group += [f"g{i}"] * n
    return truth, guess, group


PEERS = {
    "accuracy": accuracy_score,
    "selection_rate": peer.selection_rate,
    "true_positive_rate": peer.true_positive_rate,
    "false_positive_rate": peer.false_positive_rate,
    "true_negative_rate": peer.true_negative_rate,
    "false_negative_rate": peer.false_negative_rate,
}
# What each rate divides by: groups without it are 0 in fairlearn and NaN here.
NEEDS = {
    "true_positive_rate": 1,
    "false_negative_rate": 1,
    "true_negative_rate": 0,
    "false_positive_rate": 0,
}


@given(answers())
@settings(max_examples=500, deadline=None)
def test_rates_equal_fairlearns(data: tuple[list[int], list[int], list[str]]) -> None:
    truth, guess, group = data
    counts = metrics.count(truth, guess, sensitive_features=group)
    frame = peer.MetricFrame(metrics=PEERS, y_true=truth, y_pred=guess, sensitive_features=group)
    for name in PEERS:
        ours = metrics.rate(counts.compared, name)
        theirs = frame.by_group[name].to_numpy()
        labels = counts.compared.sum(axis=2)
        defined = labels[:, NEEDS[name]] > 0 if name in NEEDS else np.ones(len(labels), bool)
        np.testing.assert_allclose(ours[defined], theirs[defined], rtol=0, atol=1e-12)
        assert np.isnan(ours[~defined]).all()


@given(answers())
@settings(max_examples=500, deadline=None)
def test_gaps_equal_fairlearns(data: tuple[list[int], list[int], list[str]]) -> None:
    truth, guess, group = data
    options = {"sensitive_features": group}
    parity = metrics.demographic_parity_difference(truth, guess, **options)
    assert parity == pytest.approx(
        peer.demographic_parity_difference(truth, guess, **options), abs=1e-12
    )
    if any(guess):
        assert metrics.demographic_parity_ratio(truth, guess, **options) == pytest.approx(
            peer.demographic_parity_ratio(truth, guess, **options), abs=1e-12
        )
    # fairlearn counts a group without positives as a true positive rate of 0; compare elsewhere.
    pairs = set(zip(group, truth, strict=True))
    if len(pairs) == 2 * len(set(group)):
        odds = metrics.equalized_odds_difference(truth, guess, **options)
        assert odds == pytest.approx(
            peer.equalized_odds_difference(truth, guess, **options), abs=1e-12
        )


def test_a_group_without_positives_takes_no_part_in_the_gap() -> None:
    # Group a has no positives: no true positive rate, and so only b and c are compared.
    truth = [0, 0, 1, 1, 1, 1]
    guess = [1, 0, 1, 1, 1, 0]
    group = list("aabbcc")
    assert metrics.equal_opportunity_difference(truth, guess, sensitive_features=group) == 0.5


def test_all_undefined_is_an_error_with_a_reason() -> None:
    with pytest.raises(ValueError, match="equal_opportunity_difference is not defined"):
        metrics.equal_opportunity_difference([0, 0], [1, 0], sensitive_features=["a", "b"])


def test_crossed_groups_and_their_margins() -> None:
    frame = pd.DataFrame({"gender": list("fmfmfm"), "age": list("yyoooo")})
    counts = metrics.count([1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0], sensitive_features=frame)
    assert counts.groups == ("f|o", "f|y", "m|o", "m|y")
    np.testing.assert_array_equal(counts.sizes, [2, 1, 2, 1])
    alone = metrics.count([1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0], sensitive_features=frame.gender)
    np.testing.assert_array_equal(counts.by("gender").table, alone.table)
    with pytest.raises(ValueError, match="'race'"):
        counts.by("race")


def test_flips_are_counted_between_two_predictions() -> None:
    counts = metrics.count(
        [1, 1, 0], [1, 0, 0], sensitive_features=list("aab"), reference=[0, 1, 0]
    )
    np.testing.assert_array_equal(counts.flips, [2, 0])
    np.testing.assert_array_equal(counts.reference.sum(axis=0), [[1, 0], [1, 1]])


def test_rates_over_replicates_are_rates_of_each() -> None:
    rng = np.random.default_rng(0)
    tables = rng.integers(0, 5, (7, 3, 2, 2))
    for name, metric in metrics.FAIRNESS.items():
        np.testing.assert_array_equal(
            metric(tables), [metric(table) for table in tables], err_msg=name
        )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"y_true": [1, 2, 0]}, "y_true: row 1 is"),
        ({"y_pred": [1, 0, float("nan")]}, "y_pred: row 2 is"),
        ({"y_pred": [1, 0]}, "y_pred has 2 rows but y_true has 3"),
        ({"sensitive_features": ["a", "b"]}, "sensitive_features has 2 rows"),
        ({"sensitive_features": ["a", None, "b"]}, "sensitive_features: row 1 has no value"),
        ({"y_true": [], "y_pred": [], "sensitive_features": []}, "y_true is empty"),
        ({"y_true": [[1, 0, 1]]}, "y_true must have one dimension"),
    ],
)
def test_bad_rows_are_named(change: dict[str, object], sentence: str) -> None:
    given_ = {"y_true": [1, 0, 1], "y_pred": [1, 0, 1], "sensitive_features": list("aab")} | change
    with pytest.raises(ValueError, match=sentence):
        metrics.count(
            given_["y_true"], given_["y_pred"], sensitive_features=given_["sensitive_features"]
        )
