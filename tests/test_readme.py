"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def names() -> dict[str, Any]:
    """What a reader of the README has at hand: a model, pictures, answers, groups."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = torch.randn(40, 3, 8, 8)
    y_true, y_fp32 = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    gender = pd.Series(np.where(rng.random(40) < 0.5, "female", "male"), name="gender")
    batches = images.split(20)
    loader = [
        (
            part,
            torch.from_numpy(y_true[i * 20 : (i + 1) * 20]),
            {"gender": gender[i * 20 : i * 20 + 20]},
        )
        for i, part in enumerate(batches)
    ]
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return {
        "model": model,
        "calibration_batches": batches,
        "loader": loader,
        "gender": gender,
        "y_true": y_true,
        "y_pred": y_fp32,
        "y_fp32": y_fp32,
        "y_quantized": np.where(rng.random(40) < 0.1, 1 - y_fp32, y_fp32),
    }


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number: int, names: dict[str, Any]) -> None:
    exec(compile(EXAMPLES[number], f"README.md, example {number + 1}", "exec"), names)


def test_examples_are_found() -> None:
    assert len(EXAMPLES) == 3
