"""Statistics of a study: population weights, crossed seeds and draws, flips blind to the group."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fairq_utils import metrics, stats
from fairq_utils.data.population import CELEBA_JOINT
from fairq_utils.errors import BadInput
from fairq_utils.report import effects
from fairq_utils.stats.verdicts import judge
from fairq_utils.study import statistics
from fairq_utils.study.params.study import Params
from fairq_utils.study.run_record import Run, RunRecord

GROUPS = tuple(f"{g}|{a}|{r}" for g, a, r in product(("female", "male"), ("old", "young"), "ab"))
RACE = {"a": 0.3, "b": 0.7}
BOTH = ("gender", "age")


def params(**analysis: Any) -> Params:
    return Params.model_validate(
        {
            "name": "made",
            "training": {"models": {"squeezenet1_1": {"epochs": 1}}},
            "grid": [{"method": "ptq", "bits": "W8A8"}],
            "analysis": {"replicates": 400, **analysis},
        }
    )


def record(
    scores: NDArray[Any],
    cells: NDArray[Any],
    reference: NDArray[Any] | None = None,
    *,
    seed: int = 0,
    draw: int | None = None,
    even: bool = False,
    groups: tuple[str, ...] = GROUPS,
) -> RunRecord:
    """A run with made-up margins."""
    names = ("gender", "age", "race")
    test: dict[str, Any] = {"images": len(cells), "joint": CELEBA_JOINT}
    run = Run(
        data={"test": test | ({"even": ["gender", "age"]} if even else {}), "race": {}},
        architecture="squeezenet1_1",
        training={"seed": seed},
        method="fp32" if draw is None else "ptq",
        bits=None if draw is None else "W8A8",
        ranges=None,
        percentile=None,
        sampler=None if draw is None else "random",
        calibration_images=None,
        calibration_seed=draw,
        settings={},
        weights="w",
        code="c",
    )
    before = scores if reference is None else reference
    joint = (cells * 2 + (before > 0)) * 2 + (scores > 0)
    counts = np.bincount(joint, minlength=len(groups) * 8).reshape(-1, 2, 2, 2)
    return RunRecord(
        run=run,
        attributes=names[: groups[0].count("|") + 1],
        groups=groups,
        counts=counts,
        scores=scores.astype(np.float16),
        cells=cells.astype(np.int16),
        validation_scores=np.empty(0, np.float16),
        validation_cells=np.empty(0, np.int16),
        size_bytes=1,
        seconds=0.0,
    )


@pytest.fixture(autouse=True)
def _two_ancestries(monkeypatch: pytest.MonkeyPatch) -> None:
    from fairq_utils.data import population

    known = {**population.ATTRIBUTES, "race": ("a", "b")}
    monkeypatch.setattr(population, "ATTRIBUTES", known)


def evenly(images: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cells (group x 2 + label) of a test set even over gender and age, and FP32 margins."""
    rng = np.random.default_rng(seed)
    who = np.arange(images) % 4
    joint = np.array(list(CELEBA_JOINT.values())).reshape(4, 2)
    label = (rng.random(images) < (joint[:, 1] / joint.sum(axis=1))[who]).astype(int)
    race = (rng.random(images) < 0.7).astype(int)
    margin = rng.normal(2 * label - 1, 1.5 + 0.5 * (who == 0))
    return (who * 2 + race) * 2 + label, margin


def test_an_even_test_set_is_weighed_to_the_population(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, margin = evenly(8000)
    made = record(margin, cells, even=True)
    made.run.data["race"] = RACE
    weights = statistics.group_weights(made)
    joint = np.array(list(CELEBA_JOINT.values())).reshape(4, 2).sum(axis=1)
    assert weights == pytest.approx(np.repeat(4 * joint / joint.sum(), 2))
    counted = statistics.counts(made, ["gender"])
    of_image = np.array(weights)[cells // 2]
    for place, name in enumerate(("female", "male")):
        inside = np.array([GROUPS[c // 2].startswith(name) for c in cells])
        right = (margin > 0) == (cells % 2 == 1)
        expected = np.average(right[inside], weights=of_image[inside])
        assert metrics.rate(counted.compared, "accuracy")[place] == pytest.approx(expected)
    assert counted.table.sum() == pytest.approx(8000) and counted.sizes.tolist() == [4000, 4000]
    plain = record(margin, cells)
    assert statistics.group_weights(plain) is None
    assert statistics.counts(plain, ["gender"]).table.dtype == np.int64


def test_an_even_test_set_is_resampled_cell_by_cell() -> None:
    cells, margin = evenly(4000)
    reference = record(margin, cells, even=True)
    compared = record(margin - 0.2, cells, margin, draw=0, even=True)
    for made in (reference, compared):
        made.run.data["race"] = RACE
    shared = statistics.shared([(reference, compared)], ["gender"])
    drawn = stats.resample(shared, 30, seed=0)
    assert drawn.sum(axis=(2, 3, 4, 5)) == pytest.approx(np.full((1, 30), 4000))
    per_group = drawn.sum(axis=(3, 4, 5))
    assert np.ptp(per_group, axis=1) == pytest.approx(0)  # as many of each gender and age as were
    np.testing.assert_allclose(shared.tables[0], statistics.counts(compared, ["gender"]).table)


def test_weighing_covers_as_it_should() -> None:
    """Known truth: the population's accuracy gap between genders, from an even test set."""
    gap = {"signed": lambda t: np.subtract(*np.moveaxis(metrics.rate(t, "accuracy"), -1, 0))}
    cells, margin = evenly(400_000, seed=99)
    big = [record(margin, cells, even=True), record(margin - 0.3, cells, margin, draw=0, even=True)]
    for made in big:
        made.run.data["race"] = RACE
    tables = statistics.shared([(big[0], big[1])], ["gender"]).tables
    truth = float((gap["signed"](tables.sum(axis=-2)) - gap["signed"](tables.sum(axis=-1)))[0])
    held = 0
    for seed in range(200):
        cells, margin = evenly(2000, seed)
        pair = (
            record(margin, cells, even=True),
            record(margin - 0.3, cells, margin, draw=0, even=True),
        )
        for made in pair:
            made.run.data["race"] = RACE
        row = stats.paired_bootstrap(
            statistics.shared([pair], ["gender"]), gap, replicates=300, seed=seed
        ).iloc[0]
        held += row.low <= truth <= row.high
    assert 0.9 <= held / 200 <= 0.99


def test_seeds_and_draws_are_crossed_as_far_as_they_go() -> None:
    cells, margin = evenly(64)
    pairs = [
        (
            record(margin, cells, seed=seed),
            record(margin + seed - draw, cells, seed=seed, draw=draw),
        )
        for seed, draws in ((3, (0, 1, 2)), (5, (2, 0)))
        for draw in draws
    ]
    found = statistics.crossed(pairs)
    assert [[(p[1].run.training["seed"], p[1].run.calibration_seed) for p in r] for r in found] == [
        [(3, 0), (3, 2)],
        [(5, 0), (5, 2)],
    ]
    assert statistics.shared(pairs, BOTH).cells.shape[:2] == (2, 2)
    apart = [pairs[0], pairs[3]]  # draws 0 and 2: none that both have
    assert statistics.shared(apart, BOTH).cells.shape[:2] == (2, 1)


def blind_world(
    seed: int, harm: float, images: int = 4000
) -> tuple[RunRecord, RunRecord, NDArray[np.int64]]:
    """Flips by the margin alone, or, by ``harm``, more of old women who smile."""
    rng = np.random.default_rng(seed + 1000)
    cells, margin = evenly(images, seed)
    chance = 0.4 * np.exp(-2 * np.abs(margin))
    chance = chance + harm * ((cells // 4 == 0) & (cells % 2 == 1) & (margin > 0))
    after = np.where(rng.random(images) < chance, -margin, margin)
    return record(margin, cells), record(after, cells, margin, draw=0), cells


def test_flips_that_do_not_know_the_group_are_expected() -> None:
    """What base rates and margins make of a gap is no excess; what is done to a group is."""
    parity = metrics.FAIRNESS["demographic_parity_difference"]
    plain, harmed, moved = [], [], []
    for seed in range(60):
        for harm, into in ((0.0, plain), (0.1, harmed)):
            reference, compared, _ = blind_world(seed, harm)
            expected = statistics.group_blind([(reference, compared)], BOTH, 100)(parity)
            tables = statistics.shared([(reference, compared)], BOTH).tables[0]
            change = float(parity(tables.sum(axis=-2)) - parity(tables.sum(axis=-1)))
            into.append(change - expected[0, 0])
            if harm == 0:
                moved.append(expected[0, 0])
    error = np.std(plain, ddof=1) / len(plain) ** 0.5
    assert abs(np.mean(plain)) < 3 * error + 0.0005
    assert abs(np.mean(moved)) > 5 * np.std(moved, ddof=1) / len(moved) ** 0.5  # blind, and moves
    assert np.mean(harmed) < -0.01  # they smile most, so that the gap closes


def test_group_blind_tables_keep_what_flipped() -> None:
    reference, compared, cells = blind_world(1, 0.05)
    label, place = cells % 2, cells // 2
    drawn = stats.group_blind_tables(
        place, label, reference.scores, compared.scores > 0, groups=len(GROUPS), replicates=50
    )
    observed = compared.counts
    assert (drawn.sum(axis=1) == observed.sum(axis=0)).all()  # flips by label and prediction
    assert (drawn.sum(axis=-1) == observed.sum(axis=-1)).all()  # groups by label and FP32 answer
    assert (drawn >= 0).all() and (drawn != observed).any()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": [0]}, r"label has shape \(1,\)"),
        ({"group": [0, 5]}, "group: must be"),
        ({"margin": [0.1, np.nan]}, "margin: image 1 has none"),
        ({"parts": 0}, "parts: 0"),
    ],
)
def test_group_blind_arguments_are_named(changes: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {
        "group": [0, 1], "label": [0, 1], "margin": [0.1, -0.2], "compared": [0, 1], "groups": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match=sentence):
        stats.group_blind_tables(**(given | changes))


def test_tables_of_effects_say_what_is_over_seeds_and_what_is_about_networks() -> None:
    cells, _ = evenly(4000)
    study = params()
    pairs = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        margin = rng.normal(2 * (cells % 2) - 1, 1.5)
        after = np.where(rng.random(len(cells)) < 0.02, -margin, margin)
        pairs.append(
            (record(margin, cells, seed=seed), record(after, cells, margin, seed=seed, draw=0))
        )
    measured = statistics.measured_of(study, pairs[0][0], BOTH)
    found = effects.paired_changes(pairs, BOTH, measured, study).set_index("statistic")
    assert (found.seeds == 4).all() and (found.draws == 1).all()
    directed = found.loc["directed_selection_rate_difference"]
    assert directed.bound == pytest.approx(max(abs(directed.low), abs(directed.high)))
    gap = found.loc["demographic_parity_difference"]
    assert gap.bound > max(abs(gap.low), abs(gap.high))  # some pair of groups may move further
    assert found.excess.to_numpy() == pytest.approx((found.change - found.expected).to_numpy())
    alone = effects.paired_changes(pairs[:1], BOTH, measured, study).set_index("statistic")
    assert (alone.p_value == alone.network_p).all() and alone.excess_p.isna().all()
    assert (found.p_value != found.network_p).any()


def test_no_change_is_said_only_where_every_pair_stays() -> None:
    rows = [{"change": 0.001, "low": -0.002, "high": 0.004, "floor": 0.0, "p_value": 0.5}] * 2
    import pandas as pd

    frame = pd.DataFrame(rows).assign(bound=[0.004, 0.02])
    assert judge(frame, margin=0.01).equivalent.tolist() == [True, False]


def test_the_unprivileged_group_is_old_women_unless_named() -> None:
    cells, margin = evenly(4000)
    made = record(margin, cells)
    assert statistics.directed(params(), ("female|old", "male|old"), BOTH) == 0
    assert statistics.directed(params(), ("female", "male"), ["gender"]) == 0
    named = params(unprivileged={"gender": "male", "age": "young"})
    found = statistics.measured_of(named, made, BOTH)["directed_accuracy_difference"]
    table = statistics.counts(made, BOTH).compared
    assert found(table) == metrics.difference_to_rest(table, "accuracy", 3)
    assert statistics.directed(params(), ("a", "b"), ["race"]) is None
    with pytest.raises(BadInput, match="unprivileged: man young is no group; name one of female"):
        statistics.directed(
            params(unprivileged={"gender": "man", "age": "young"}), ("female|old",), BOTH
        )
    with pytest.raises(ValueError, match=r"unprivileged.hair: 'hair' is unknown"):
        params(unprivileged={"hair": "grey"})
