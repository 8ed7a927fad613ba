"""Flips between populations of models, and the groups of these images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from fairq_utils import stats

RNG = np.random.default_rng(0)


def test_modal_predictions_and_exemplars_image_by_image() -> None:
    full, quantized = RNG.integers(0, 3, (5, 200)), RNG.integers(0, 3, (4, 200))
    found = stats.exemplars(full, quantized)
    for i in range(200):
        tops = []
        for population in (full, quantized):
            votes = Counter(population[:, i].tolist()).most_common()
            tied = len(votes) > 1 and votes[0][1] == votes[1][1]
            tops.append(None if tied else votes[0][0])
        assert found.undecided[i] == (None in tops)
        assert found.chosen[i] == (None not in tops and tops[0] != tops[1])
    assert found.chosen.any()
    assert found.undecided.any()


def test_the_same_population_has_no_exemplars() -> None:
    predicted = RNG.integers(0, 2, (5, 50))
    assert not stats.exemplars(predicted, predicted[::-1]).chosen.any()


def test_over_representation_by_hand() -> None:
    groups = np.repeat(["a", "b", "c"], [100, 300, 600])
    chosen = np.zeros(1000, bool)
    chosen[:10] = chosen[100:110] = True  # ten of a, ten of b, none of c
    found = stats.over_representation(chosen, groups).set_index("group")
    assert found.chosen.tolist() == [10, 10, 0]
    np.testing.assert_allclose(found.ratio, [5, 10 / 6, 0])
    assert (found.low <= found.ratio).all()
    assert (found.ratio <= found.high).all()
    assert found.low["a"] > 1
    assert found.low["c"] == 0 < found.high["c"] < 1
    everyone = stats.over_representation(groups == "a", groups).set_index("group")
    assert everyone.ratio["a"] == pytest.approx(10)
    assert everyone.high["a"] == pytest.approx(10)


def test_over_representation_covers() -> None:
    """A group of a fifth with twice the others' rate has a ratio of 0.10 / 0.06."""
    rng = np.random.default_rng(1)
    groups = np.repeat(["a", "b"], [200, 800])
    held = []
    for _ in range(400):
        chosen = rng.random(1000) < np.where(groups == "a", 0.10, 0.05)
        row = stats.over_representation(chosen, groups).iloc[0]
        held.append(row.low <= 0.10 / 0.06 <= row.high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: stats.churn([0, 1], [0]), "first has shape"),
        (lambda: stats.churn([0, np.nan], [0, np.nan]), "first: row 1 has no prediction"),
        (lambda: stats.churn([0, 1], np.ma.masked_array([0, 1], [0, 1])), "second: row 1 has no"),
        (lambda: stats.modal([0, 1]), "predictions has shape"),
        (lambda: stats.modal(np.ma.masked_array([[0, 1]], [[0, 1]])), "must be integers"),
        (lambda: stats.modal([[0.2, 0.9]]), "must be integers"),
        (lambda: stats.exemplars([[0, 1]], [[0]]), "about 2 images"),
        (lambda: stats.over_representation([0, 1], ["a", "b"]), "booleans"),
        (lambda: stats.over_representation([False, False], ["a", "b"]), "no image is chosen"),
        (lambda: stats.over_representation([True, False], ["a", "a"]), "at least two groups"),
        (lambda: stats.over_representation([True, False], ["a"]), "groups has shape"),
        (lambda: stats.over_representation([True, False], ["a", None]), "row 1 has no group"),
        (lambda: stats.over_representation([True, False], ["a", np.nan]), "row 1 has no group"),
        (lambda: stats.over_representation([True, False], [0.5, np.nan]), "row 1 has no group"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
