"""Metrics of tables and rows by hand; test_metrics_fairlearn and _aif360 hold the peers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fairq_utils import metrics
from fairq_utils.errors import BadInput
from fairq_utils.metrics import count, demographic_parity_difference

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
    assert metrics.FAIRNESS["equalized_odds_difference"](table) == pytest.approx(0.5)
    assert metrics.FAIRNESS["disparate_impact"](table) == pytest.approx(0.75)
    assert metrics.worst_group(table) == 0.5


def test_a_group_without_positives_takes_no_part_in_the_gap() -> None:
    # Group a has no positives: no true positive rate, and so only b and c are compared.
    truth = [0, 0, 1, 1, 1, 1]
    guess = [1, 0, 1, 1, 1, 0]
    group = list("aabbcc")
    with pytest.warns(metrics.LeftOutWarning) as caught:
        assert metrics.equal_opportunity_difference(truth, guess, sensitive_features=group) == 0.5
    assert caught[0].filename == __file__  # it points here, not into the package
    cells = caught[0].message.cells
    assert cells.to_dict("records") == [
        {
            "rate": "true_positive_rate",
            "group": "a",
            "among": "images of label 1",
            "count": 0,
            "min_cell": 1,
        }
    ]
    with pytest.warns(metrics.LeftOutWarning) as caught:
        metrics.equal_opportunity_ratio(truth, guess, sensitive_features=group)
        metrics.true_positive_rate_ratio(truth, guess, sensitive_features=group)
        metrics.rate_gap("f1_score", truth, guess, sensitive_features=group, min_cell=2)
        metrics.true_positive_rate(truth, guess, sensitive_features=group)
    assert {warning.filename for warning in caught} == {__file__}


def test_one_group_left_of_several_is_no_comparison() -> None:
    # Only b has positives: its gap to itself would be 0.
    with pytest.raises(ValueError, match=r"left out a from true_positive_rate \(0 images of label"):
        metrics.equal_opportunity_difference([0, 0, 1], [1, 0, 1], sensitive_features=list("aab"))
    table = np.array([[[2, 1], [0, 0]], [[0, 0], [1, 3]]])
    for compare in (metrics.difference, metrics.ratio, metrics.standard_deviation):
        assert np.isnan(compare(table, "true_positive_rate"))
    assert np.isnan(metrics.difference(table, "true_positive_rate", method="to_overall"))
    assert metrics.worst_group(table, "true_positive_rate") == 0.75
    # A category that nobody belongs to is a group, and an empty one.
    group = pd.Series(["f", "f"], dtype=pd.CategoricalDtype(["f", "m"]), name="gender")
    with pytest.raises(ValueError, match=r"left out m from selection_rate \(0 images"):
        metrics.demographic_parity_difference([1, 0], [1, 0], sensitive_features=group)


def test_min_cell_leaves_small_groups_out() -> None:
    table = np.array([[[1, 0], [0, 1]], [[8, 2], [3, 7]], [[5, 5], [6, 4]]])
    assert metrics.difference(table, "true_positive_rate") == pytest.approx(0.6)
    assert metrics.difference(table, "true_positive_rate", min_cell=2) == pytest.approx(0.3)
    assert metrics.difference(table, "true_positive_rate", min_cell=10) == pytest.approx(0.3)
    assert np.isnan(metrics.difference(table, "true_positive_rate", min_cell=11))
    # What is left out of the comparison still counts overall: (1 + 7 + 4) / 21.
    to_overall = metrics.difference(table, "true_positive_rate", method="to_overall", min_cell=2)
    assert to_overall == pytest.approx(12 / 21 - 0.4)
    found = metrics.left_out(table, ["f1_score", "accuracy"], groups=list("abc"), min_cell=3)
    assert found[["rate", "group", "count"]].values.tolist() == [
        ["f1_score", "a", 1],  # weighs twice in the denominator, but is one image
        ["accuracy", "a", 2],
    ]
    for bad in (0, -1):
        with pytest.raises(ValueError, match="min_cell"):
            metrics.rate(table, "accuracy", min_cell=bad)


def test_comparisons_by_hand() -> None:
    table = np.array([[[6, 2], [1, 1]], [[3, 1], [3, 3]]])  # of 10 each: selected 3, 4
    assert metrics.ratio(table, "selection_rate") == pytest.approx(0.75)
    assert metrics.ratio(table, "selection_rate", method="to_overall") == pytest.approx(0.3 / 0.35)
    assert metrics.difference(table, "selection_rate", method="to_overall") == pytest.approx(0.05)
    np.testing.assert_allclose(metrics.gap_to_overall(table, "selection_rate"), [-0.05, 0.05])
    assert metrics.standard_deviation(table, "selection_rate") == pytest.approx(0.05)
    assert metrics.worst_group(table, "error_rate") == pytest.approx(0.4)
    assert metrics.rate(table, "balanced_accuracy") == pytest.approx([0.625, 0.625])
    assert metrics.rate(table, "treatment_ratio") == pytest.approx([0.5, 3])
    assert metrics.FAIRNESS["treatment_equality_difference"](table) == pytest.approx(2.5)
    assert metrics.FAIRNESS["predictive_parity_difference"](table) == pytest.approx(3 / 4 - 1 / 3)
    assert metrics.FAIRNESS["equalized_odds_difference"](table, agg="mean") == pytest.approx(0)
    with pytest.raises(ValueError, match="neither a high nor a low selection_rate"):
        metrics.worst_group(table, "selection_rate")
    with pytest.raises(ValueError, match="method: 'between' is not one of between_groups"):
        metrics.difference(table, "accuracy", method="between")
    with pytest.raises(ValueError, match="agg: 'sum'"):
        metrics.FAIRNESS["equalized_odds_difference"](table, agg="sum")


@pytest.mark.parametrize("name", metrics.FAIRNESS)
def test_every_criterion_has_a_function_of_its_name(name: str) -> None:
    data: dict[str, object] = {
        "y_true": [1, 1, 0, 0, 1, 1, 0, 0, 0],
        "y_pred": [1, 0, 1, 0, 1, 1, 1, 0, 0],
        "sensitive_features": list("aaaabbbbb"),
    }
    value = getattr(metrics, name)(**data)
    assert value == metrics.row_metric(name)(**data)
    table = metrics.count(**data).compared
    assert value == metrics.FAIRNESS[name](table)
    words = {"y_true": "no", "y_pred": "no"}
    words |= {k: [("yes", "no")[1 - v] for v in data[k]] for k in ("y_true", "y_pred")}
    assert value == getattr(metrics, name)(
        words["y_true"], words["y_pred"], sensitive_features=list("aaaabbbbb"), pos_label="yes"
    )


def test_four_fifths_in_whole_numbers() -> None:
    # 36 of 100 against 45 of 100: four fifths exactly, which floats put below 0.8.
    guess = [1] * 36 + [0] * 64 + [1] * 45 + [0] * 55
    options = {"sensitive_features": ["a"] * 100 + ["b"] * 100}
    assert metrics.disparate_impact(guess, guess, **options) < 0.8
    assert metrics.four_fifths_rule(guess, guess, **options)
    guess[0] = 0
    assert not metrics.four_fifths_rule(guess, guess, **options)
    assert metrics.four_fifths_rule([1, 1], [0, 0], sensitive_features=["a", "b"])


def test_one_class_against_the_rest() -> None:
    truth, guess = ["cat", "dog", "cow", "dog"], ["cat", "cow", "cow", "dog"]
    group = list("aabb")
    found = metrics.one_vs_rest(truth, guess, sensitive_features=group)
    assert list(found) == ["cat", "cow", "dog"]
    for label, counts in found.items():
        alone = metrics.count(truth, guess, sensitive_features=group, pos_label=label)
        np.testing.assert_array_equal(counts.table, alone.table)
    np.testing.assert_array_equal(found["cow"].compared, [[[1, 1], [0, 0]], [[1, 0], [0, 1]]])
    # A class that may occur but does not is counted, and has no true positive rate.
    more = metrics.one_vs_rest(
        truth, guess, sensitive_features=group, classes=["cat", "cow", "dog", "emu"]
    )
    frame = metrics.frame_of(more["emu"])
    assert frame.by_group["true_positive_rate"].isna().all()
    assert np.isnan(frame.fairness["equal_opportunity_difference"])
    with pytest.raises(ValueError, match="y_pred: row 1 is 'cow', not one of cat, dog"):
        metrics.one_vs_rest(["cat", "dog"], ["cat", "cow"], sensitive_features=["a", "b"])
    with pytest.raises(ValueError, match="pos_label: 'emu' is neither in y_true nor in y_pred"):
        metrics.count(truth, guess, sensitive_features=group, pos_label="emu")
    with pytest.raises(ValueError, match="y_true: row 1 is None, which is no label"):
        metrics.count(["cat", None], ["cat", "cat"], sensitive_features=["a", "b"], pos_label="cat")


def test_frame_holds_the_same_numbers() -> None:
    people = {"gender": list("ffffmmmmmm"), "age": list("yyoooyyyoo")}
    frame = metrics.metric_frame(TRUTH, GUESS, sensitive_features=people, min_cell=2)
    counts = metrics.count(TRUTH, GUESS, sensitive_features=people)
    assert frame.by_group.index.names == ["gender", "age"]
    for name in metrics.RATES:
        np.testing.assert_array_equal(
            frame.by_group[name], metrics.rate(counts.compared, name, min_cell=2)
        )
        assert frame.gaps.loc[name, "difference"] == pytest.approx(
            float(metrics.difference(counts.compared, name, min_cell=2)), nan_ok=True
        )
    # What is NaN is listed, and nothing else.
    assert frame.by_group.isna().sum().sum() == len(frame.left_out)
    assert frame.counts["images"].sum() == 10
    assert frame.counts.loc[("f", "y"), ["TN", "FP", "FN", "TP"]].tolist() == [0, 0, 1, 1]
    table = metrics.marginal_and_intersectional(counts, metrics=["accuracy_difference"])
    assert table.index.tolist() == ["gender", "age", "gender x age"]
    assert table.loc["gender", "accuracy_difference"] == pytest.approx(
        metrics.accuracy_difference(TRUTH, GUESS, sensitive_features=people["gender"])
    )
    with pytest.raises(ValueError, match="the largest group has 3"):
        metrics.metric_frame(TRUTH, GUESS, sensitive_features=people, min_cell=9)


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


masked = np.ma.masked_array([1, 0, 1], mask=[False, True, False])


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
        ({"y_true": [1, None, 0]}, "y_true: row 1 is None, neither 0 nor 1"),
        ({"y_pred": ["yes", "no", "no"]}, "y_pred: row 0 is yes, neither 0 nor 1"),
        ({"y_pred": [1, 0.7, 0]}, "y_pred: row 1 is 0.7, neither 0 nor 1"),
        ({"sensitive_features": [1, "1", 2]}, "must differ as text"),
        ({"sensitive_features": ["a|b", "a", "b"]}, "no '|', which joins"),
        ({"sensitive_features": pd.DataFrame(index=range(3))}, "has no columns"),
        ({"y_true": masked}, "y_true: row 1 is nan, neither 0 nor 1; leave the row out"),
        ({"y_pred": masked}, "y_pred: row 1 is nan, neither 0 nor 1; leave the row out"),
        ({"sensitive_features": masked}, "sensitive_features: row 1 has no value for 'group'"),
        ({"sensitive_features": {"a": masked}}, "sensitive_features: row 1 has no value for 'a'"),
        ({"sensitive_features": {"a": ["x", None, "y"]}}, "row 1 has no value for 'a'"),
        ({"sensitive_features": [["x", "q"], [None, "q"], ["y", "q"]]}, "row 1 has no value"),
        ({"sensitive_features": {"a": np.zeros((3, 1))}}, "['a'] must have one dimension, not 2"),
        ({"sensitive_features": [1, {2}, 3]}, "sensitive_features: row 1 is a set; give one"),
        ({"sensitive_features": pd.DataFrame({"a": [{1}, 2, 3]})}, "'a': row 0 is a set"),
        ({"y_true": [[1], [1, 0], [0]]}, "y_true: list is read as no array"),
    ],
)
def test_bad_rows_are_named(change: dict[str, object], sentence: str) -> None:
    given_ = {"y_true": [1, 0, 1], "y_pred": [1, 0, 1], "sensitive_features": list("aab")} | change
    with pytest.raises(ValueError, match=re.escape(sentence)):
        metrics.count(
            given_["y_true"], given_["y_pred"], sensitive_features=given_["sensitive_features"]
        )


def test_masked_weights_and_classes_are_named() -> None:
    with pytest.raises(BadInput, match="sample_weight: row 1 is nan, which is no finite number"):
        metrics.accuracy([1, 0, 1], [1, 0, 0], sample_weight=masked)
    with pytest.raises(BadInput, match="y_true: row 1 is nan, not one of 1; leave the row out"):
        metrics.one_vs_rest(masked, [1, 0, 1], sensitive_features=list("aab"))
    whole = np.ma.masked_array([1, 0, 1], mask=False)
    assert metrics.accuracy(whole, [1, 1, 1]) == 2 / 3


def test_tensors_and_halves_are_read_as_what_they_hold() -> None:
    truth, guess, group = (torch.tensor(values) for values in (TRUTH, GUESS, [0] * 4 + [1] * 6))
    expected = demographic_parity_difference(TRUTH, GUESS, sensitive_features=GROUP)
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        found = demographic_parity_difference(
            truth.to(kind),
            guess.to(kind).requires_grad_(),
            sensitive_features=group.to(kind),
            sample_weight=torch.ones(10, dtype=kind),
        )
        assert found == pytest.approx(expected)
    halves = np.array([0.5] * 4 + [1.5] * 6, np.float16)
    for form in (halves, {"g": halves}, pd.Series(halves), pd.DataFrame({"g": halves})):
        assert count(TRUTH, GUESS, sensitive_features=form).groups == ("0.5", "1.5")
    some = metrics.one_vs_rest(truth.bfloat16(), guess, sensitive_features=GROUP)
    assert list(some) == [0, 1]


def test_categories_of_an_attribute_among_several_are_kept() -> None:
    values = pd.Categorical(["x", "y"], categories=["z", "y", "x"])
    for form in (values, {"a": values}, pd.DataFrame({"a": values})):
        assert count([0, 1], [0, 1], sensitive_features=form).groups == ("z", "y", "x")


@pytest.mark.parametrize("least", ["5", None, 2.5, 0])
def test_a_least_number_of_images_is_a_whole_number(least: Any) -> None:
    sentence = re.escape(f"min_cell: {least!r} is no whole number of at least 1")
    with pytest.raises(BadInput, match=sentence):
        demographic_parity_difference(TRUTH, GUESS, sensitive_features=GROUP, min_cell=least)
    with pytest.raises(BadInput, match=sentence):
        metrics.metric_frame(
            TRUTH, GUESS, sensitive_features=GROUP, min_cell=least, sample_weight=TRUTH
        )


def test_one_name_is_not_its_letters() -> None:
    counts = count(TRUTH, GUESS, sensitive_features=GROUP)
    assert list(metrics.frame_of(counts, metrics="accuracy").by_group) == ["accuracy"]
    found = metrics.marginal_and_intersectional(counts, metrics="disparate_impact")
    assert found.columns[0] == "disparate_impact"
    with pytest.raises(BadInput, match="y_true: row 0 is 'n', not one of no"):
        metrics.one_vs_rest(["n"], ["o"], sensitive_features=["a"], classes="no")
    with pytest.raises(BadInput, match="but 1 groups need"):
        metrics.left_out(counts.compared, "accuracy", groups="ab")


@pytest.mark.parametrize(
    ("y", "p", "label"),
    [
        ([1, 0, 1, 0, 1, 1], ["1", "1", "1", "0", "0", "1"], 1),
        (["1", "0", "1", "0", "1", "1"], [1, 1, 1, 0, 0, 1], 1),
        ([1, 0, 1, 0, 1, 1], ["1", "1", "1", "0", "0", "1"], "1"),
        (["Yes", "No"] * 3, ["yes", "no", "no", "no", "yes", "no"], "Yes"),
        ([1.0, 0.0] * 3, ["1.0", "0.0", "1.0", "1.0", "0.0", "0.0"], 1),
        (np.array([1, 0] * 3), np.array([b"1", b"0"] * 3), 1),
    ],
)
def test_labels_are_written_alike(y: Any, p: Any, label: Any) -> None:
    groups = list("aaabbb")
    with pytest.raises(BadInput, match=r"pos_label: .* is not in y_(true|pred), which has .*y_tru"):
        demographic_parity_difference(y, p, sensitive_features=groups, pos_label=label)


def test_a_reference_has_labels_written_as_the_others() -> None:
    y = list("ynynyn")
    with pytest.raises(BadInput, match="'y' is not in reference, which has 'Y'"):
        count(y, y, sensitive_features=list("aaabbb"), reference=list("YnnnnY"), pos_label="y")


def test_a_model_that_never_predicts_a_label_lacks_it() -> None:
    groups = list("aaabbb")
    for y, p, label in (
        ([1, 0] * 3, [0] * 6, 1),
        ([True, False] * 3, [False] * 6, 1),
        (list("ynynyn"), ["n"] * 6, "y"),
    ):
        found = demographic_parity_difference(y, p, sensitive_features=groups, pos_label=label)
        assert found == 0
    same = demographic_parity_difference(
        [1, 0, 1, 0, 1, 1], [1, 1, 1, 0, 0, 1], sensitive_features=groups
    )
    assert same == pytest.approx(2 / 3)


def test_columns_of_groups_have_names_of_their_own() -> None:
    values = list("aab")
    twice = pd.DataFrame([values, values], index=["x", "x"]).T
    for features in (twice, {1: values, "1": values}):
        with pytest.raises(BadInput, match=r"sensitive_features: two columns are called '[x1]'"):
            count([0, 1, 1], [0, 1, 1], sensitive_features=features)


def test_of_many_groups_those_that_occur_are_counted() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, (2, 500))
    many = {f"a{i}": rng.integers(0, 2, 500) for i in range(70)}
    found = count(y, p, sensitive_features=many)
    assert len(found.groups) <= 500 and found.table.sum() == 500
    for name in ("a0", "a69"):
        alone = count(y, p, sensitive_features={name: many[name]})
        by = found.by(name)
        order = [by.groups.index(group) for group in alone.groups]
        np.testing.assert_array_equal(by.table[order], alone.table)
    few = count(y, p, sensitive_features={name: many[name] for name in ("a0", "a1")})
    assert few.groups == ("0|0", "0|1", "1|0", "1|1")
