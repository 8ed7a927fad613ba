"""Equal to AIF360 on random tables, and where not, as the docstrings say."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairq_utils import metrics
from fairq_utils.metrics.inequality import between_groups, between_people
from fairq_utils.metrics.privileged import pooled

# AIF360 logs which optional packages it misses when it is imported.
logging.disable(logging.WARNING)
from aif360.datasets import BinaryLabelDataset  # noqa: E402
from aif360.metrics import ClassificationMetric  # noqa: E402

logging.disable(logging.NOTSET)

BATCH, EXAMPLES = 10, 420  # 4,200 tables: both odds exist in half of them
WORST: dict[str, float] = {}
SEEN: Counter[str] = Counter()
SIDES = {
    "accuracy": "ACC",
    "true_positive_rate": "TPR",
    "false_positive_rate": "FPR",
    "true_negative_rate": "TNR",
    "false_negative_rate": "FNR",
    "positive_predictive_value": "PPV",
    "negative_predictive_value": "NPV",
    "false_discovery_rate": "FDR",
    "false_omission_rate": "FOR",
}


def worst(family: str, ours: float, theirs: float) -> None:
    assert ours == theirs or abs(ours - theirs) <= 1e-12, f"{family}: {ours} and {theirs}"
    if np.isfinite(ours):
        WORST[family] = max(WORST.get(family, 0.0), abs(ours - theirs))


@pytest.fixture(scope="module", autouse=True)
def report() -> Any:
    yield
    listed = "; ".join(f"{family} {apart:.1e}" for family, apart in WORST.items())
    print(f"\naif360: {dict(SEEN)}, largest differences: {listed}")


Rows = tuple[list[int], list[int], list[int]]


def one_table(rng: np.random.Generator) -> Rows:
    truth, guess, group = [], [], []
    for i in range(rng.integers(2, 4)):
        n = int(rng.choice([1, 2, 7, 30], p=[0.1, 0.15, 0.4, 0.35]))
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
        group += [i] * n
    return truth, guess, group


def aif360s(rows: Rows) -> Any:
    """AIF360's metric; group 0 is the privileged one, all others are not."""
    truth, guess, group = rows
    frame = pd.DataFrame({"group": group, "label": truth}, dtype=float)
    options = {
        "label_names": ["label"],
        "protected_attribute_names": ["group"],
        "privileged_protected_attributes": [[0.0]],
    }
    dataset = BinaryLabelDataset(df=frame, **options)
    predicted = dataset.copy()
    predicted.labels = np.array(guess, float)[:, None]
    others = [{"group": float(g)} for g in set(group) - {0}]
    return ClassificationMetric(dataset, predicted, others, [{"group": 0.0}])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=EXAMPLES, deadline=None)
def test_metrics_equal_aif360s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(BATCH):
        SEEN["tables"] += 1
        rows = one_table(rng)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            compare(rows)


def compare(rows: Rows) -> None:
    truth, guess, group = rows
    theirs = aif360s(rows)
    counts = metrics.count(truth, guess, sensitive_features=group)
    sides = pooled(counts, 0)
    rates = {name: metrics.rate(sides, name) for name in SIDES}
    for at, privileged in enumerate((False, True)):
        found = theirs.performance_measures(privileged=privileged)
        for name, short in SIDES.items():
            # Nobody predicted so: AIF360's predictive values are 0, ours NaN.
            if not np.isnan(rates[name][at]):
                worst("rates by side", rates[name][at], found[short])
    differences = {
        "true_positive_rate": theirs.true_positive_rate_difference,
        "false_positive_rate": theirs.false_positive_rate_difference,
        "false_negative_rate": theirs.false_negative_rate_difference,
        "false_discovery_rate": theirs.false_discovery_rate_difference,
        "false_omission_rate": theirs.false_omission_rate_difference,
        "error_rate": theirs.error_rate_difference,
        "selection_rate": theirs.statistical_parity_difference,
    }
    ratios = {
        "false_positive_rate": theirs.false_positive_rate_ratio,
        "false_negative_rate": theirs.false_negative_rate_ratio,
        "false_discovery_rate": theirs.false_discovery_rate_ratio,
        "false_omission_rate": theirs.false_omission_rate_ratio,
        "error_rate": theirs.error_rate_ratio,
        "selection_rate": theirs.disparate_impact,
    }
    for name, difference in differences.items():
        outside, inside = metrics.rate(sides, name)
        if not np.isnan(outside - inside):
            worst("directed differences", outside - inside, difference())
        if name in ratios and outside / inside < np.inf:
            worst("directed ratios", outside / inside, ratios[name]())
    # The functions on rows, which refuse what is not defined.
    options: dict[str, Any] = {"sensitive_features": group, "privileged": 0}
    parity = metrics.statistical_parity_difference(truth, guess, **options)
    worst("statistical parity", parity, theirs.statistical_parity_difference())
    if metrics.rate(sides, "selection_rate")[1] > 0:
        impact = metrics.directed_ratio("selection_rate", truth, guess, **options)
        worst("disparate impact", impact, theirs.disparate_impact())
    if not np.isnan(rates["true_positive_rate"] + rates["false_positive_rate"]).any():
        odds = metrics.average_odds_difference(truth, guess, **options)
        worst("average odds", odds, theirs.average_odds_difference())
        mean, larger = (
            float(metrics.FAIRNESS[name](sides))
            for name in ("average_abs_odds_difference", "equalized_odds_difference")
        )
        worst("average odds", mean, theirs.average_abs_odds_difference())
        worst("equalized odds", larger, theirs.equalized_odds_difference())
        SEEN["tables with both odds"] += 1
    if any(p or not t for t, p in zip(truth, guess, strict=True)):
        inequality(rows, counts, theirs)


def inequality(rows: Rows, counts: metrics.Counts, theirs: Any) -> None:
    truth, guess, _ = rows
    table = counts.compared
    index = metrics.generalized_entropy_index(truth, guess)
    worst("entropy over people", index, theirs.generalized_entropy_index())
    for alpha in (1, 2, 0.5):
        ours = float(between_people(table, alpha))
        worst("entropy over people", ours, theirs.generalized_entropy_index(alpha))
        ours = float(between_groups(table, alpha))
        worst(
            "entropy between groups",
            ours,
            theirs.between_all_groups_generalized_entropy_index(alpha),
        )
    worst("Theil", metrics.theil_index(truth, guess), theirs.theil_index())
    worst(
        "variation",
        metrics.coefficient_of_variation(truth, guess),
        theirs.coefficient_of_variation(),
    )
    # At alpha = 0 AIF360 divides by the mean benefit, which the paper's formula does not.
    mean = np.mean(1 + np.array(guess) - np.array(truth))
    if mean > 0:
        for ours, index in (
            (between_people(table, 0), theirs.generalized_entropy_index),
            (between_groups(table, 0), theirs.between_all_groups_generalized_entropy_index),
        ):
            worst("entropy at 0, by the mean", float(ours) / mean, index(0))


def test_public_functions_with_several_privileged_groups() -> None:
    truth, guess, group = [1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0], list("aabbcc")
    counts = metrics.count(truth, guess, sensitive_features=group)
    assert pooled(counts, ["a", "b"]).tolist() == [[[1, 0], [0, 1]], [[1, 1], [1, 1]]]
    options: dict[str, Any] = {"sensitive_features": group}
    two = metrics.directed_difference("accuracy", truth, guess, privileged=["a", "b"], **options)
    assert two == 0.5
    with pytest.raises(ValueError, match="privileged: 'd' is not among a, b, c"):
        metrics.statistical_parity_difference(truth, guess, privileged="d", **options)
    with pytest.raises(ValueError, match="leave one side empty"):
        metrics.statistical_parity_difference(truth, guess, privileged=list("abc"), **options)
    with pytest.raises(ValueError, match="privileged side has 0"):
        metrics.directed_ratio("selection_rate", truth, [0] * 6, privileged="a", **options)


def test_where_aif360_differs() -> None:
    # Nobody of the unprivileged side is selected: its predictive value is 0 in AIF360.
    rows = [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]
    assert aif360s(rows).positive_predictive_value(privileged=False) == 0
    options: dict[str, Any] = {"sensitive_features": rows[2], "privileged": 0}
    with pytest.raises(ValueError, match=r"unprivileged from positive_predictive_value \(0 images"):
        metrics.directed_difference("positive_predictive_value", *rows[:2], **options)
    # Everybody is a false negative, so that the mean benefit is 0.
    with pytest.raises(ValueError, match="every row is a false negative"):
        metrics.theil_index([1, 1], [0, 0])
    assert metrics.generalized_entropy_index([1, 0], [0, 0], alpha=0) == np.inf


def test_inequality_over_replicates() -> None:
    rng = np.random.default_rng(1)
    tables = rng.integers(0, 5, (6, 3, 2, 2))
    for name, index in metrics.INEQUALITY.items():
        np.testing.assert_array_equal(index(tables), [index(t) for t in tables], err_msg=name)
    # The parts within groups and between them add up to the whole (alpha = 2; Speicher et al.).
    table = tables[0]
    n = table.sum(axis=(1, 2))
    mean = 1 + (table[:, 0, 1] - table[:, 1, 0]) / n
    share = n * mean**2 / (n.sum() * ((n * mean).sum() / n.sum()) ** 2)
    within = sum(s * float(between_people(g[None])) for s, g in zip(share, table, strict=True))
    assert within + float(between_groups(table)) == pytest.approx(float(between_people(table)))
