"""Base rates of a collection, and a perfect classifier's gap."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fairq_utils.data.population import CELEBA_JOINT
from fairq_utils.metrics.prevalence import base_rates


def celeba() -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """One row for each hundred of CelebA's images, alternating between two splits."""
    rows = [cell.split("|") for cell, n in CELEBA_JOINT.items() for _ in range(round(n / 100))]
    frame = pd.DataFrame(rows, columns=["gender", "age", "smiling"])
    groups = frame[["gender", "age"]].astype("category")
    split = np.where(np.arange(len(frame)) % 2, "test", "train")
    return frame.smiling.to_numpy(np.int8), groups, split


def test_celebas_gap_is_in_its_labels() -> None:
    found = base_rates(*celeba())
    gaps = found.gaps.set_index(["split", "attribute"])
    # P(Smiling | female) = 0.5405 and P(Smiling | male) = 0.4003.
    assert gaps.gap["all", "gender"] == pytest.approx(0.1402, abs=1e-3)
    assert gaps.gap["all", "age"] == pytest.approx(23517 / 45865 - 74152 / 156734, abs=1e-3)
    cell = found.cells.query("split == 'all' and attribute == 'gender x age'").set_index("group")
    assert cell.index.tolist() == ["female|old", "female|young", "male|old", "male|young"]
    rates = cell.base_rate
    assert rates["female|old"] == pytest.approx(10191 / (10191 + 4687), abs=1e-3)
    assert gaps.gap["all", "gender x age"] == pytest.approx(rates.max() - rates.min())
    assert gaps.smallest["all", "gender x age"] == cell.images.min() == cell.images["female|old"]
    assert gaps.groups["all", "gender x age"] == 4


def test_every_split_is_counted_apart() -> None:
    target, groups, split = celeba()
    found = base_rates(target, groups, split)
    assert found.gaps.split.unique().tolist() == ["all", "train", "test"]
    for name, rows in (("all", split != ""), ("train", split == "train")):
        part = found.cells[(found.cells.split == name) & (found.cells.attribute == "gender")]
        by_hand = groups.gender[rows].value_counts().sort_index()
        assert part.images.tolist() == by_hand.tolist()
        positives = groups.gender[rows & (target == 1)].value_counts().sort_index()
        assert part.positives.tolist() == positives.tolist()


def test_a_group_of_nobody_has_no_rate() -> None:
    groups = pd.DataFrame({"race": pd.Categorical(["a", "b"], categories=["a", "b", "c"])})
    found = base_rates(np.array([1, 0], np.int8), groups, np.array(["test", "test"]))
    nobody = found.cells[found.cells.group == "c"]
    assert nobody.images.tolist() == [0, 0]
    assert nobody.base_rate.isna().all()
    assert found.gaps.gap.tolist() == [1.0, 1.0]
    assert found.gaps.smallest.tolist() == [0, 0]


def test_one_group_compares_with_nobody() -> None:
    groups = pd.DataFrame({"race": pd.Categorical(["a", "a"], categories=["a", "b"])})
    found = base_rates(np.array([1, 0], np.int8), groups, np.array(["test", "test"]))
    assert found.gaps.gap.isna().all()


def test_nobody_at_all() -> None:
    groups = pd.DataFrame({"race": pd.Categorical([], categories=["a"])})
    with pytest.raises(ValueError, match="there is no image"):
        base_rates(np.zeros(0, np.int8), groups, np.zeros(0, str))
