"""Calibration samplers: equal sizes, even groups, honest refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairq_utils.calibration import SAMPLERS, apportion, draw


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


@pytest.fixture
def options() -> dict[str, Any]:
    """Of the pool's images: what samplers may need."""
    rng = np.random.default_rng(1)
    return {
        "group": "male old",
        "losses": rng.random(1000),
        "features": rng.normal(size=(1000, 3)),
        "population": {"female old": 1, "female young": 2, "male young": 2.5},
    }


def cells(pool, rows) -> list[str]:
    groups = pool[0].iloc[rows]
    return [f"{gender} {age}" for gender, age in zip(groups.gender, groups.age, strict=True)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_are_distinct_repeatable_and_of_the_asked_size(sampler, pool, options) -> None:
    rows = draw(sampler, *pool, 100, seed=3, **options)
    assert rows.dtype == np.int64
    assert len(set(rows)) == 100 and list(rows) != sorted(rows)
    np.testing.assert_array_equal(rows, draw(sampler, *pool, 100, seed=3, **options))
    assert set(rows) != set(draw(sampler, *pool, 100, seed=4, **options))


@pytest.mark.parametrize(
    ("sampler", "rows"),
    [
        ("random", [816, 923, 151, 900, 213]),
        ("label_balanced", [141, 614, 1, 189, 55]),
        ("group_balanced", [850, 965, 60, 445, 150]),
    ],
)
def test_recorded_draws_stay_what_they_were(sampler, rows, pool) -> None:
    """Kept results name their calibration set by sampler and seed."""
    assert draw(sampler, *pool, 5, seed=7).tolist() == rows


def test_group_balanced_is_even_over_crossed_groups(pool) -> None:
    groups, target = pool
    rows = draw("group_balanced", groups, target, 102, seed=0)
    assert sorted(groups.iloc[rows].value_counts()) == [25, 25, 26, 26]


def test_label_balanced_is_even_over_labels(pool) -> None:
    groups, target = pool
    rows = draw("label_balanced", groups, target, 100, seed=0)
    assert target[rows].sum() == 50


def test_intersection_balanced_is_even_over_all_attributes(pool) -> None:
    groups, target = pool
    race = np.random.default_rng(2).choice(["a", "b", "c"], 1000, p=[0.2, 0.3, 0.5])
    crossed = groups.assign(race=race)
    rows = draw("intersection_balanced", crossed, target, 86, seed=0)
    assert sorted(crossed.iloc[rows].value_counts()) == [7] * 10 + [8] * 2
    assert crossed.iloc[rows].race.value_counts().min() >= 28


def test_worst_group_is_the_cell_with_the_highest_mean_loss(pool) -> None:
    """One image with a huge loss does not make its cell the worst; neither does the cell's size."""
    names = np.array(cells(pool, range(1000)))
    losses = np.where(names == "male old", 0.9, 0.1)
    losses[np.flatnonzero(names == "male young")[0]] = 180.0
    assert losses[names == "male young"].sum() > losses[names == "male old"].sum()
    rows = draw("worst_group", *pool, 40, seed=0, losses=losses)
    assert set(cells(pool, rows)) == {"male old"}
    rows = draw("worst_group", *pool, 40, seed=0, losses=losses, attributes=["gender"])
    assert set(pool[0].gender.iloc[rows]) == {"male"}
    assert set(pool[0].age.iloc[rows]) == {"old", "young"}
    with pytest.raises(ValueError, match=r"the group 'male old' has \d+ images .* where 400"):
        draw("worst_group", *pool, 400, seed=0, losses=losses)


def test_one_group_is_of_that_group_alone(pool) -> None:
    rows = draw("one_group", *pool, 30, seed=0, group="female old")
    assert set(cells(pool, rows)) == {"female old"}
    with pytest.raises(ValueError, match=r"the group 'female old' has \d+ images .* where 100"):
        draw("one_group", *pool, 100, seed=0, group="female old")
    with pytest.raises(ValueError, match="no image of the group 'old female'; its groups are 'fem"):
        draw("one_group", *pool, 30, seed=0, group="old female")


def test_matched_draws_cells_in_the_proportions_of_a_population(pool) -> None:
    population = {"male old": 0.5, "female young": 0.3, "female old": 0.2, "nobody": 0}
    rows = draw("matched", *pool, 33, seed=0, population=population)
    # 16.5, 9.9 and 6.6: 31 whole ones, and the two left go to the remainders 0.9 and 0.6.
    counts = {"male old": 16, "female young": 10, "female old": 7}
    assert pd.Series(cells(pool, rows)).value_counts().to_dict() == counts
    with pytest.raises(ValueError, match="no image of the group 'nobody'"):
        draw("matched", *pool, 33, seed=0, population={"male old": 1, "nobody": 1})
    with pytest.raises(ValueError, match=r"the group 'female old' has \d+ images .* where 75"):
        draw("matched", *pool, 100, seed=0, population={"male old": 1, "female old": 3})


def test_largest_remainders_by_hand() -> None:
    assert apportion({"b": 1, "c": 1, "a": 1}, 4) == {"a": 2, "b": 1, "c": 1}
    assert apportion({"a": 0.1, "b": 0.2, "c": 0.7}, 10) == {"a": 1, "b": 2, "c": 7}
    assert apportion({"a": 1e308, "b": 1e308}, 2) == {"a": 1, "b": 1}
    # Hamilton's apportionment of 10 seats over 47, 16, 15.8, 12, 6.1 and 3.1 (of 100).
    seats = dict(zip("abcdef", (47.0, 16.0, 15.8, 12.0, 6.1, 3.1), strict=True))
    assert list(apportion(seats, 10).values()) == [5, 2, 1, 1, 1, 0]
    for weights, sentence in (({"a": -1}, "'a' is -1"), ({"a": 0}, "no weight above 0")):
        with pytest.raises(ValueError, match=sentence):
            apportion(weights, 3)


def test_a_core_set_takes_each_time_what_is_furthest_from_all_that_was_taken(pool) -> None:
    groups, target = pool
    at = np.r_[np.zeros(6), 10.0, 10.0, 16.0, 26.0][:, None]  # six images are equal
    few = (groups[:10], target[:10])
    for seed in range(8):
        rows = draw("core_set", *few, 4, seed=seed, features=at)
        assert {0.0, 10.0, 16.0, 26.0} == set(at[rows, 0])
        assert sorted(draw("core_set", *few, 10, seed=seed, features=at)) == list(range(10))
    starts = {int(draw("core_set", *few, 1, seed=seed, features=at)[0]) for seed in range(30)}
    assert len(starts) > 5


def test_a_core_set_covers_the_pool_as_no_random_draw_does(pool, options) -> None:
    """Greedy k-centre is within a factor of two of the smallest radius (Gonzalez 1985)."""
    features = options["features"]

    def radius(rows: np.ndarray) -> float:
        return max(np.linalg.norm(features[rows] - x, axis=1).min() for x in features)

    core = radius(draw("core_set", *pool, 50, seed=0, features=features))
    assert core < 0.7 * min(radius(draw("random", *pool, 50, seed=s)) for s in range(10))


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


@pytest.mark.parametrize("sampler", [n for n, s in SAMPLERS.items() if s.needs])
def test_a_sampler_without_what_it_needs_is_refused(sampler, pool, options) -> None:
    need = SAMPLERS[sampler].needs
    del options[need]
    with pytest.raises(ValueError, match=f"sampler '{sampler}' needs {need}: "):
        draw(sampler, *pool, 20, seed=0, **options)


@pytest.mark.parametrize(
    ("sampler", "given", "sentence"),
    [
        ("worst_group", {"losses": np.ones(999)}, r"losses has shape \(999,\).*\(1000,\)"),
        ("worst_group", {"losses": np.full(1000, np.nan)}, "losses: that of image 0"),
        ("core_set", {"features": np.ones(1000)}, r"features has shape.*\(1000, D\)"),
        ("core_set", {"features": np.diag([1.0] * 999 + [np.inf])}, "features: that of image 999"),
        ("matched", {"population": {"male old": -0.5}}, "the weight of 'male old' is -0.5"),
        ("matched", {"population": {}}, "no weight above 0"),
        ("group_balanced", {"attributes": ["race"]}, "no attribute 'race'; the pool has gender"),
        ("group_balanced", {"attributes": []}, "no attribute is named"),
        ("group_balanced", {"attributes": "race"}, "no attribute 'race'; the pool has gender"),
        ("worst_group", {"losses": ["a"] * 1000}, "losses: some values are no numbers"),
    ],
)
def test_impossible_options_are_refused(sampler, given, sentence, pool) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw(sampler, *pool, 20, seed=0, **given)


@pytest.mark.parametrize(
    ("sampler", "count", "sentence"),
    [
        ("fair", 10, "sampler: 'fair' is unknown; it is one of random"),
        ("random", 1001, "1001 images are asked for from a pool of 1000"),
        ("random", 0, "0 images are asked for"),
    ],
)
def test_impossible_draws_are_refused(sampler: str, count: int, sentence: str, pool) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw(sampler, *pool, count, seed=0)
