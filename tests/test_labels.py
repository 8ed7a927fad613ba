"""Labels in other forms: what can be read is, and what cannot is a sentence valid for that call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fairq_utils import (
    BadInput,
    FairnessAwareQuantizer,
    apply_quantization,
    compare_quantization_methods,
    compute_fairness_metrics,
)
from fairq_utils.metrics import (
    count,
    demographic_parity_difference,
    metric_frame,
    one_vs_rest,
    roc_auc_difference,
    theil_index,
    true_positive_rate,
)
from fairq_utils.mitigation import as_sample, pool_losses

N = 8
GROUPS = ["a", "b"] * (N // 2)
TRUE = [0, 1, 1, 0, 1, 0, 0, 1]
SAME: list[Any] = [
    [bool(x) for x in TRUE],
    [float(x) for x in TRUE],
    np.array(TRUE, object),
    np.array(TRUE, np.uint8),
    pd.Series(TRUE, index=range(5, 5 + N), dtype="Int64"),
    pd.Series(TRUE, dtype="boolean"),
    torch.tensor(TRUE, dtype=torch.bool),
    torch.tensor(TRUE, dtype=torch.float64),
    [np.int64(x) for x in TRUE],
]
# What is there instead of the label of row 2, and what the sentence shows.
OTHERS: list[tuple[Any, str]] = [
    (pd.NA, "<NA>"),
    (None, "None"),
    (float("nan"), "nan"),
    ("1", "'1'"),
    ("yes", "yes"),
    (-1, "-1"),
    (2, "2"),
    (0.5, "0.5"),
]
MODEL = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
IMAGES = torch.randn(N, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def with_other(value: Any) -> list[Any]:
    return [*TRUE[:2], value, *TRUE[3:]]


ROWS: dict[str, Any] = {
    "count": lambda y: count(y, TRUE, sensitive_features=GROUPS).table.tolist(),
    "metric": lambda y: demographic_parity_difference(y, TRUE, sensitive_features=GROUPS),
    "prediction": lambda y: demographic_parity_difference(TRUE, y, sensitive_features=GROUPS),
    "rate": lambda y: true_positive_rate(y, TRUE),
    "frame": lambda y: metric_frame(y, TRUE, sensitive_features=GROUPS).overall.to_dict(),
    "score": lambda y: roc_auc_difference(y, np.linspace(0, 1, N), sensitive_features=GROUPS),
    "inequality": lambda y: theil_index(y, TRUE),
}
LOADERS: dict[str, Any] = {
    "metrics": lambda y: compute_fairness_metrics(MODEL, [(IMAGES, y, GROUPS)], "gender"),
    "compare": lambda y: compare_quantization_methods(
        MODEL, ["PTQ_INT8"], [(IMAGES, y, GROUPS)], ["gender"], [IMAGES], replicates=10
    ).table.to_dict(),
    "certified": lambda y: FairnessAwareQuantizer().quantize(MODEL, [(IMAGES, y, GROUPS)] * 6),
    "qat": lambda y: apply_quantization(MODEL, "qat", 8, [(IMAGES, y, GROUPS)]).report.size_bytes,  # type: ignore[union-attr]
    "train_data": lambda y: (
        apply_quantization(MODEL, "qat", 8, [IMAGES], train_data=[(IMAGES, y)]).report.size_bytes
    ),  # type: ignore[union-attr]
    "as_sample": lambda y: as_sample(IMAGES, y, GROUPS).labels.tolist(),
    "pool_losses": lambda y: pool_losses(MODEL, IMAGES, y).tolist(),
}


@pytest.mark.parametrize("call", [*ROWS, *(name for name in LOADERS if name != "certified")])
@pytest.mark.parametrize("labels", SAME, ids=lambda x: type(x).__name__)
def test_labels_in_any_usual_form(call: str, labels: Any) -> None:
    ask = {**ROWS, **LOADERS}[call]
    assert str(ask(labels)) == str(ask(TRUE))


@pytest.mark.parametrize("call", ROWS)
@pytest.mark.parametrize(("value", "shown"), OTHERS, ids=lambda x: str(x))
def test_other_labels_of_rows(call: str, value: Any, shown: str) -> None:
    with pytest.raises(BadInput, match=f"row 2 is {shown}, neither 0 nor 1; ") as caught:
        ROWS[call](with_other(value))
    missing = shown in ("<NA>", "None", "nan")
    assert ("leave the row out" if missing else "pos_label") in str(caught.value)


@pytest.mark.parametrize("call", LOADERS)
@pytest.mark.parametrize(("value", "shown"), OTHERS, ids=lambda x: str(x))
def test_other_labels_of_loaders(call: str, value: Any, shown: str) -> None:
    if shown in ("-1", "2") and call == "as_sample":  # any number of classes, told by the model
        return
    with pytest.raises(BadInput) as caught:
        LOADERS[call](with_other(value))
    said = str(caught.value)
    assert shown in said and "pos_label" not in said and "one_vs_rest" not in said
    assert "\n" not in said


def test_more_classes_of_a_model_have_a_way_out() -> None:
    with pytest.raises(BadInput, match="labels == c, beside a model that returns the logits of c"):
        compute_fairness_metrics(MODEL, [(IMAGES, with_other(2), GROUPS)], "gender")
    wide = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(BadInput, match="give a module that returns those of one and of all others"):
        compute_fairness_metrics(wide, [(IMAGES, TRUE, GROUPS)], "gender")


@pytest.mark.parametrize(("value", "shown"), OTHERS[:3], ids=lambda x: str(x))
def test_missing_labels_of_several_classes(value: Any, shown: str) -> None:
    with pytest.raises(BadInput, match=f"y_true: row 2 is {shown}, not one of"):
        one_vs_rest(with_other(value), TRUE, sensitive_features=GROUPS)
    with pytest.raises(BadInput, match=f"y_true: row 2 is {shown}, which is no label"):
        count(with_other(value), TRUE, sensitive_features=GROUPS, pos_label=1)
    if value is not None:
        with pytest.raises(BadInput, match=r"pos_label: .* is no label"):
            count(TRUE, TRUE, sensitive_features=GROUPS, pos_label=value)
