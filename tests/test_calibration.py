"""Calibration samplers: equal sizes, even groups, honest refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fairq_utils.calibration import SAMPLERS, draw


@pytest.fixture
def pool() -> tuple[pd.DataFrame, np.ndarray]:
    """A pool in which old women are rare, and most of them smile."""
    rng = np.random.default_rng(0)
    cells = rng.choice(4, 1000, p=[0.05, 0.45, 0.2, 0.3])
    groups = pd.DataFrame(
        {
            "gender": pd.Categorical(np.where(cells < 2, "female", "male")),
            "age": pd.Categorical(np.where(cells % 2 == 0, "old", "young")),
        }
    )
    return groups, (rng.random(1000) < 0.8).astype(np.int8)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_are_distinct_repeatable_and_of_the_asked_size(sampler, pool) -> None:
    rows = draw(sampler, *pool, 100, seed=3)
    assert len(set(rows)) == 100
    np.testing.assert_array_equal(rows, draw(sampler, *pool, 100, seed=3))
    assert set(rows) != set(draw(sampler, *pool, 100, seed=4))


def test_group_balanced_is_even_over_crossed_groups(pool) -> None:
    groups, target = pool
    rows = draw("group_balanced", groups, target, 102, seed=0)
    assert sorted(groups.iloc[rows].value_counts()) == [25, 25, 26, 26]


def test_label_balanced_is_even_over_labels(pool) -> None:
    groups, target = pool
    rows = draw("label_balanced", groups, target, 100, seed=0)
    assert target[rows].sum() == 50


def test_random_follows_the_pool(pool) -> None:
    groups, target = pool
    drawn = np.mean(
        [
            (groups.iloc[draw("random", groups, target, 100, seed=s)].gender == "female").mean()
            for s in range(100)
        ]
    )
    assert drawn == pytest.approx((groups.gender == "female").mean(), abs=0.02)


def test_a_group_that_is_too_small_is_named(pool) -> None:
    groups, target = pool
    with pytest.raises(ValueError, match=r"the group 'female old' has \d+ images .* where 100"):
        draw("group_balanced", groups, target, 400, seed=0)


@pytest.mark.parametrize(
    ("sampler", "count", "sentence"),
    [
        ("fair", 10, "sampler 'fair' is not one of random"),
        ("random", 1001, "1001 images are asked for from a pool of 1000"),
        ("random", 0, "0 images are asked for"),
    ],
)
def test_impossible_draws_are_refused(sampler: str, count: int, sentence: str, pool) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw(sampler, *pool, count, seed=0)
