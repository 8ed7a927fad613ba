"""Supported, contradicted, undecided: where the interval lies decides, and the sentence says so."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan

import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from fairq_utils import stats
from fairq_utils.errors import BadInput
from fairq_utils.stats import above, below, between, differs, judge, near, verdict

S, C, U = "supported", "contradicted", "undecided"


@pytest.mark.parametrize(
    ("claim", "low", "high", "expected"),
    [
        (above(0), 0.002, 0.03, S),
        (above(0), -0.03, -0.002, C),
        (above(0), -0.02, 0.02, U),
        (above(0), 0.0, 0.02, U),
        (above(0.01), 0.002, 0.008, C),
        (above(0.01), 0.002, 0.03, U),
        (below(0), -0.03, -0.01, S),
        (below(0), 0.01, 0.03, C),
        (near(0, 0.01), -0.004, 0.006, S),
        (near(0, 0.01), 0.002, 0.006, S),  # different from 0, and shown to be small
        (near(0, 0.01), 0.002, 0.03, U),
        (near(0, 0.01), 0.02, 0.03, C),
        (near(0.010, 0.005), 0.007, 0.013, S),  # a published figure
        (near(0.010, 0.005), -0.003, 0.004, C),
        (between(0.03, 0.05), 0.032, 0.048, S),
        (between(0.03, 0.05), 0.02, 0.04, U),
        (between(0.03, 0.05), 0.06, 0.08, C),
        (differs(), -0.03, -0.02, S),
        (differs(), 0.0, 0.02, U),
        (differs(), -0.001, 0.001, U),
        (differs(0.01), -0.03, -0.02, S),
        (differs(0.01), -0.008, 0.009, C),
        (differs(0.01), 0.002, 0.03, U),
        (above(0), nan, nan, U),
    ],
)
def test_outcomes(claim: stats.Claim, low: float, high: float, expected: str) -> None:
    found = verdict(claim, (low + high) / 2, low, high)
    assert found.outcome == expected
    assert found.why.endswith(".")
    assert str(found).startswith(expected + ": ")


@pytest.mark.parametrize(
    ("claim", "low", "high", "needs_p"),
    [
        (above(0), 0.002, 0.03, True),
        (above(0), -0.03, -0.002, True),
        (above(0.01), 0.002, 0.008, False),
        (near(0, 0.01), -0.004, 0.006, False),
        (near(0, 0.01), 0.02, 0.03, True),
        (near(0.010, 0.005), -0.003, 0.004, False),
        (between(0.03, 0.05), 0.032, 0.048, True),
        (differs(0.01), 0.02, 0.03, True),
        (differs(0.01), -0.008, 0.009, False),
    ],
)
def test_what_rests_on_a_change_needs_the_familys_p_value_and_the_floor(
    claim: stats.Claim, low: float, high: float, needs_p: bool
) -> None:
    estimate = (low + high) / 2
    plain = verdict(claim, estimate, low, high).outcome
    assert plain != U
    assert verdict(claim, estimate, low, high, p_value=0.01, floor=0.0001).outcome == plain
    for doubt, word in (({"p_value": 0.2}, "p = 0.200"), ({"floor": 0.2}, "chance alone")):
        found = verdict(claim, estimate, low, high, **doubt)  # type: ignore[arg-type]
        assert found.outcome == (U if needs_p else plain)
        assert (word in found.why) == needs_p


@pytest.mark.parametrize(
    ("claim", "phrase"),
    [
        (above(0), "all above 0.0."),
        (below(0.05), "all below 5.0."),
        (between(0.01, 0.05), "all within 1.0 to 5.0."),
        (differs(), "all different from 0.0."),
        (differs(0.01), "all beyond -1.0 to 1.0."),
    ],
)
def test_sentences_name_quantity_interval_and_region(claim: stats.Claim, phrase: str) -> None:
    why = verdict(claim, 0.03, 0.02, 0.041, what="the gap's change", confidence=0.9).why
    assert why == f"the gap's change is 3.0 points (90 % interval 2.0 to 4.1), {phrase}"


def test_units_are_the_callers() -> None:
    found = verdict(above(2), 3.75, 3.5, 4, what="the speed-up", scale=1, unit="times", digits=2)
    assert found.why == "the speed-up is 3.75 times (95 % interval 3.50 to 4.00), all above 2.00."


def test_a_hypothesis_of_parts() -> None:
    parts = {"a": stats.Verdict(S, "."), "b": stats.Verdict(U, "."), "c": stats.Verdict(S, ".")}
    assert str(stats.together(parts)) == "undecided: supported: a, c; undecided: b."
    assert stats.together({**parts, "d": stats.Verdict(C, ".")}).outcome == C
    assert stats.together({"a": parts["a"], "c": parts["c"]}).outcome == S


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: verdict(above(0), 0, 0.2, 0.1), "0.2 to 0.1 is not an interval"),
        (lambda: verdict(above(0), 0, 0, 1, p_value=1.2), "p_value: 1.2"),
        (lambda: verdict(above(0), 0, 0, 1, floor=-1), "floor: -1"),
        (lambda: verdict(above(0), 0, 0, 1, confidence=95), "confidence, level: 95"),
        (lambda: near(0.01, 0), "no interval fits"),
        (lambda: near(0.01, -1), "not a region"),
        (lambda: stats.Claim(-inf, inf), "without an edge"),
        (lambda: stats.together({}), "empty"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


CLEAR = {"change": 0.03, "low": 0.02, "high": 0.04, "floor": 0.01, "p_value": 0.001}


def family(*rows: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame([CLEAR | row for row in rows])


@pytest.mark.parametrize(
    "doubt",
    [
        {"low": 0.0},
        {"low": -0.01},
        {"floor": 0.03},
        {"floor": nan},
        {"p_value": 0.06},
        {"p_value": nan},
        {"change": nan, "low": nan, "high": nan, "floor": nan, "p_value": nan},
    ],
)
def test_interval_floor_and_corrected_p_value_must_agree(doubt: dict[str, float]) -> None:
    found = judge(family({}, doubt, {"change": -0.03, "low": -0.04, "high": -0.02}))
    assert found.shown.tolist() == [True, False, True]
    assert judge(family({}, {}, {})).shown.all()


def test_p_values_are_holms_over_all_rows_whatever_their_index() -> None:
    p_values = [0.03, 0.001, 0.02, 0.2, 0.012]
    rows = family(*({"p_value": p} for p in p_values)).set_index(pd.Index([7, 3, 7, 1, 0]))
    found = judge(rows)
    assert found.p_adjusted.tolist() == pytest.approx(multipletests(p_values, method="holm")[1])
    assert found.shown.tolist() == [p <= 0.05 for p in found.p_adjusted]
    assert found.index.tolist() == rows.index.tolist()
    assert judge(rows, level=0.2).shown.tolist() == [True] * 5


def test_no_change_needs_the_whole_interval_within_the_margin() -> None:
    rows = family({}, {"change": 0.0, "low": -0.002, "high": 0.004}, {"low": -0.1, "high": 0.1})
    assert judge(rows, margin=0.01).equivalent.tolist() == [False, True, False]
    both = judge(rows, margin=0.05)
    assert both.shown.tolist() == [True, False, False]
    assert both.equivalent.tolist() == [True, True, False]
    assert "equivalent" not in judge(rows)


@pytest.mark.parametrize("name", CLEAR)
def test_a_column_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(BadInput, match=f"frame: has no column {name}; it needs change, low, high,"):
        judge(family({}).drop(columns=name))


def test_an_empty_family_is_judged() -> None:
    found = judge(family({}).iloc[:0], margin=0.01, replicates=100)
    assert found.empty
    assert {"p_adjusted", "shown", "equivalent"} <= set(found)


def test_a_blatant_change_among_many_is_shown_or_refused() -> None:
    """116 rows: with 2000 replicates even the smallest possible p-value would not be enough."""
    rows = family(*[{"change": 0.001, "low": -0.01, "high": 0.01, "p_value": 0.5}] * 116)
    rows.loc[7] = {"change": 0.2, "low": 0.15, "high": 0.25, "floor": 0.02, "p_value": 1 / 8001}
    assert judge(rows, replicates=8000).shown.tolist() == [i == 7 for i in range(116)]
    with pytest.raises(BadInput, match=r"116 comparisons .* with 2000 replicates .* 4640"):
        judge(rows, replicates=2000)
    assert not judge(rows.assign(p_value=1 / 2001)).shown.any()
