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
    age = pd.Series(np.where(rng.random(40) < 0.5, "old", "young"), name="age")
    batches = images.split(20)
    rows = [slice(0, 20), slice(20, 40)]
    loader = [
        (
            images[part],
            torch.from_numpy(y_true[part]),
            {"gender": gender[part].tolist(), "age": age[part].tolist()},
        )
        for part in rows
    ]
    people = {"gender": ["female", "male"] * 100, "age": ["old", "old", "young", "young"] * 50}
    many = [(torch.randn(200, 3, 8, 8), torch.arange(200) // 4 % 2, people) for _ in range(3)]
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return {
        "model": model,
        "calibration_batches": batches,
        "loader": loader,
        "calibration_loader": loader,
        "test_loader": loader,
        "certification_loader": many,
        "train_loader": loader,
        "gender": gender,
        "y_true": y_true,
        "y_pred": y_fp32,
        "y_fp32": y_fp32,
        "y_quantized": np.where(rng.random(40) < 0.1, 1 - y_fp32, y_fp32),
    }


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(
    number: int, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"README.md, example {number + 1}", "exec"), names)


def test_examples_are_found() -> None:
    assert len(EXAMPLES) == 6
