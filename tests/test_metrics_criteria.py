"""One registry of criteria: what an entry makes, entries of others, and what an import costs."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairq_utils import metrics
from fairq_utils.errors import BadInput
from fairq_utils.metrics.criteria import FAIRNESS

ROOT = Path(__file__).resolve().parents[1]
EVERY = ["sensitive_features", "method", "agg", "min_cell", "pos_label", "sample_weight"]
PLUGIN = '''
"""Criteria of somebody else: one of a known rate, one of a rate of its own."""
from fairq_utils.metrics import Rate, criterion, difference, row_metric, standard_deviation

criterion(
    "negative_parity_difference",
    "negative_predictive_value",
    difference,
    title="Difference in negative predictive value",
    formula="max_g n_g - min_g n_g",
)
criterion(
    "false_alarm_spread",
    Rate("false_alarms", numerator=(0, 1, 0, 0), denominator=(1, 1, 1, 1), better="low"),
    standard_deviation,
    title="Spread of false alarms",
    formula="standard deviation over groups of FP / N",
    source="Somebody 2026",
)
false_alarm_spread = row_metric("false_alarm_spread")
'''
ASKED = """
import json, sys
import numpy as np
import plugin
from fairq_utils import metrics

table = np.array([[[1, 1], [1, 1]], [[2, 1], [0, 3]]])
rows = [1, 1, 0, 0, 1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 1, 1, 1, 0, 0]
group = list("aaaabbbbbb")
of_rows = metrics.row_metric("negative_parity_difference")
print(json.dumps({
    "table": float(metrics.FAIRNESS["negative_parity_difference"](table)),
    "rows": of_rows(*rows, sensitive_features=group),
    "own": plugin.false_alarm_spread(*rows, sensitive_features=group),
    "rate": metrics.row_rate("false_alarms")(*rows),
    "frame": metrics.metric_frame(*rows, sensitive_features=group).fairness.to_dict(),
    "home": metrics.FAIRNESS.home("false_alarm_spread"),
    "documentation": plugin.false_alarm_spread.__doc__,
    "torch": "torch" in sys.modules,
}))
"""


def python(code: str, *folders: Path) -> str:
    """Output of code in a process of its own."""
    path = os.pathsep.join(map(str, [ROOT, *folders]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_somebody_elses_criterion_is_one_statement(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    found = json.loads(python(ASKED, tmp_path))
    assert found["table"] == found["rows"] == pytest.approx(1 - 1 / 2)
    assert found["own"] == pytest.approx(np.std([1 / 4, 1 / 6]))
    assert found["rate"] == 0.2
    assert found["frame"]["false_alarm_spread"] == found["own"]
    assert list(found["frame"])[: len(FAIRNESS)] == list(FAIRNESS)  # ours first, in their order
    assert found["home"] == "plugin"
    assert found["documentation"].startswith("Spread of false alarms.")
    assert "Somebody 2026" in found["documentation"]
    assert not found["torch"]


def test_a_wrong_name_says_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'equalized_odds_difference'"):
        metrics.row_metric("equalised_odds_difference")
    with pytest.raises(BadInput, match=r"rate: .* did you mean 'selection_rate'"):
        metrics.row_rate("selection_rates")
    with pytest.raises(BadInput, match=r"compare: .* did you mean 'difference'"):
        metrics.rate_gap("accuracy", [1], [1], sensitive_features=["a"], compare="diference")
    counts = metrics.count([1, 0], [1, 0], sensitive_features=["a", "b"])
    with pytest.raises(BadInput, match=r"metrics: .* did you mean 'accuracy_ratio'"):
        metrics.marginal_and_intersectional(counts, metrics=["acuracy_ratio"])


def test_a_name_is_taken_once() -> None:
    words = {"title": "", "formula": ""}
    with pytest.raises(BadInput, match=r"'accuracy_ratio' already, in fairq_utils\.metrics"):
        metrics.criterion("accuracy_ratio", "accuracy", metrics.ratio, **words)
    other = metrics.Rate("accuracy", (1, 0, 0, 0), (1, 1, 1, 1))
    with pytest.raises(BadInput, match="rate: there is another 'accuracy' already"):
        metrics.criterion("another_difference", other, metrics.difference, **words)
    with pytest.raises(BadInput, match="rate: 'acuracy' is unknown"):
        metrics.criterion("another_difference", "acuracy", metrics.difference, **words)
    assert "another_difference" not in FAIRNESS


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("demographic_parity_difference", {"agg"}),
        ("equalized_odds_ratio", set()),
        ("average_abs_odds_difference", {"agg"}),  # its name says mean
        ("worst_group_accuracy", {"method", "agg"}),
        ("true_positive_rate_ratio", {"agg"}),
    ],
)
def test_a_function_takes_what_its_criterion_can_do(name: str, without: set[str]) -> None:
    function: Any = getattr(metrics, name)
    keywords = [option for option in EVERY if option not in without]
    assert list(inspect.signature(function).parameters) == ["y_true", "y_pred", *keywords]
    for option in without:
        with pytest.raises(TypeError, match=f"{name}.* unexpected keyword argument '{option}'"):
            function([1, 0], [1, 0], sensitive_features=["a", "b"], **{option: "mean"})


def test_every_function_is_documented_from_its_entry() -> None:
    for name in metrics.FAIRNESS:
        text = " ".join(getattr(metrics, name).__doc__.split())
        entry = metrics.FAIRNESS[name]
        for part in (entry.title, entry.formula, entry.source, entry.notes):
            assert " ".join(part.split()) in text, name
        assert f">>> {name}(" in text  # which the doctests run
    for name in metrics.RATES:
        assert metrics.RATES[name].formula in " ".join(getattr(metrics, name).__doc__.split())


def test_what_is_exported_is_there() -> None:
    assert len(set(metrics.__all__)) == len(metrics.__all__)
    for name in metrics.__all__:
        assert getattr(metrics, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'demographic_party'"):
        _ = metrics.demographic_party


def test_a_function_of_rows_needs_no_torch() -> None:
    said = python(
        "import sys; from fairq_utils.metrics import demographic_parity_difference as parity\n"
        "value = parity([1, 0], [1, 0], sensitive_features=['a', 'b'])\n"
        "print(value, {'torch', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    assert said == "1.0 set()\n"
