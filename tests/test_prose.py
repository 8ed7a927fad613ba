"""Figures of the prose: a model that predicts the same of everybody shows no absence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairq_utils.report import quantization, tables
from fairq_utils.study.params.study import Params
from fairq_utils.study.statistics import CONFIGURATION

SCOPE = "gender x age"


def record(architecture: str, predicted: tuple[int, int], method: str = "fp32") -> Any:
    """A run with so many negative and positive predictions."""
    counts = np.zeros((1, 2, 2, 2), int)
    counts[0, 0, 0, 0], counts[0, 1, 1, 1] = predicted
    run = SimpleNamespace(architecture=architecture, method=method)
    return SimpleNamespace(run=run, counts=counts)


def test_networks_of_one_prediction_are_found_by_their_float_models() -> None:
    runs = [
        record("resnet50", (3, 4)),
        record("vit_small", (0, 7)),
        record("mobilenet_v2", (7, 0)),
        record("resnet50", (7, 0), method="ptq"),
    ]
    assert quantization.of_one_prediction(runs) == ["mobilenet_v2", "vit_small"]


def test_no_absence_is_counted_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    glued: dict[str, Any] = {}
    monkeypatch.setattr(quantization, "glue", glued.__setitem__)
    rows = []
    for architecture in ("resnet50", "vit_small"):
        values = (architecture, "ptq", "W8A8", "mse", "random", "")
        configuration = dict(zip(CONFIGURATION, values, strict=True))
        for statistic in ("demographic_parity_difference", "accuracy"):
            rows.append(
                {
                    **configuration,
                    "scope": SCOPE,
                    "statistic": statistic,
                    "change": 0.0,
                    "low": -0.001,
                    "high": 0.001,
                    "floor": 0.01,
                    "flips": 0.0,
                    "p_value": 1.0,
                }
            )
    data = {"size": 32, "train": 100, "calibration": 40, "validation": 10, "test": 60}
    params = Params.model_validate(
        {
            "name": "x",
            "data": data,
            "training": {"models": {"squeezenet1_1": {"epochs": 1, "learning_rate": 0.001}}},
            "grid": [{"method": "ptq", "bits": "W8A8"}],
            "quantization": {"calibration_images": 20},
        }
    )
    quantization.glue_changes(pd.DataFrame(rows), SCOPE, params)
    assert (glued["comparisons"], glued["equivalent"], glued["same_comparisons"]) == (2, 2, 0)
    assert glued["same_models"] == "none here"
    quantization.glue_changes(pd.DataFrame(rows), SCOPE, params, ["vit_small"])
    assert (glued["comparisons"], glued["equivalent"], glued["same_comparisons"]) == (2, 1, 1)
    assert glued["same_models"] == "ViT-Small"


def test_settings_tell_two_of_one_name_apart() -> None:
    rows = [
        ("resnet50", "ptq", "W8A8", "mse", "random", "64 images"),
        ("resnet50", "layers_worst", "W8A8", "mse", "random", "budget 0.05"),
        ("vit_small", "layers_worst", "W8A8", "mse", "random", "budget 0.1"),
    ]
    frame = pd.DataFrame(rows, columns=CONFIGURATION, index=[4, 4, 2])
    plain, *others = tables.labels(frame)
    assert plain == "W8A8 static MSE"
    assert [name.rpartition(", ")[2] for name in others] == ["budget 0.05", "budget 0.1"]
    assert len(set(tables.labels(frame.drop(columns="setting")))) == 2
