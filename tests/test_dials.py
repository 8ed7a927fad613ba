"""Dials: one thing is turned, all else stays; and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairq_utils.data.group_dials import GroupDials
from fairq_utils.data.population import Population, demographics, draw
from fairq_utils.report import dials
from fairq_utils.study import feasibility, planning
from fairq_utils.study.dials import attribute_of, worlds
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params, ParamsError
from fairq_utils.study.run_record import Run, RunRecord
from fairq_utils.study.study import Study

ROOT = Path(__file__).resolve().parents[1]
N = np.arange(4000)


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params" / "default.yaml")


def turned(params: Params, dial: str) -> Params:
    return next(world.params for world in worlds(params) if world.dial == dial)


def women(params: Params, split: str) -> tuple[float, float, float]:
    """Share of women, and share of smiles among women and among men."""
    target, groups = demographics(Study(params).population(split), split, N)
    inside = (groups.gender == "female").to_numpy()
    return inside.mean(), target[inside].mean(), target[~inside].mean()


def test_the_even_world_is_even(params: Params) -> None:
    for split in ("train", "calibration", "validation", "test"):
        assert women(turned(params, ""), split) == pytest.approx((0.5, 0.5, 0.5), abs=0.03)


@pytest.mark.parametrize(
    ("dial", "splits"),
    [
        ("training_share", {"train"}),
        ("calibration_share", {"calibration"}),
        ("base_rate", {"train", "calibration", "validation", "test"}),
        ("light", set()),
    ],
)
def test_a_dial_turns_its_splits_alone(params: Params, dial: str, splits: set[str]) -> None:
    found = turned(params, dial)
    for split in ("train", "calibration", "validation", "test"):
        share, of_women, of_men = women(found, split)
        if split in splits and dial == "base_rate":
            assert (of_women, of_men) == pytest.approx((0.7, 0.3), abs=0.03)
        elif split in splits:
            assert share == pytest.approx(0.05, abs=0.01)
        else:
            assert (share, of_women, of_men) == pytest.approx((0.5, 0.5, 0.5), abs=0.03)


def look(dials: dict[str, GroupDials]) -> Any:
    who = Population(of_group=dials)
    return draw(who, "test", np.arange(64), ["a", "b"])


def test_light_and_reflectance_touch_the_group_alone() -> None:
    plain, dim = look({}), look({"female": GroupDials(light=0.25, reflectance=0.5)})
    inside = (plain.groups.gender == "female").to_numpy()
    for name, factor in (("light_colour", 0.25), ("ambient", 0.25), ("skin", 0.5), ("lip", 0.5)):
        np.testing.assert_allclose(dim.look[name][inside], factor * plain.look[name][inside])
        np.testing.assert_array_equal(dim.look[name][~inside], plain.look[name][~inside])
    for name in set(plain.look) - {"light_colour", "ambient", "skin", "lip"}:
        np.testing.assert_array_equal(dim.look[name], plain.look[name])
    np.testing.assert_array_equal(dim.smile, plain.smile)


def test_ambiguity_is_the_groups_own() -> None:
    plain, hard = look({}), look({"old": GroupDials(difficulty=3.0)})
    inside = (plain.groups.age == "old").to_numpy()
    np.testing.assert_array_equal(hard.smile[~inside], plain.smile[~inside])
    doubt = np.abs(hard.smile - 0.5)[inside].mean()
    assert (hard.smile != plain.smile)[inside].all()
    assert doubt < np.abs(plain.smile - 0.5)[inside].mean()


def test_two_groups_of_one_person_both_count() -> None:
    both = look({"female": GroupDials(light=0.5), "old": GroupDials(light=0.5, difficulty=2.0)})
    one = look({"female": GroupDials(light=0.5)})
    old = (one.groups.age == "old").to_numpy()
    ratio = both.look["ambient"] / one.look["ambient"]
    np.testing.assert_allclose(ratio, np.where(old, 0.5, 1.0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GroupDials(light=0), "light: 0"),
        (lambda: GroupDials(reflectance=2.5), "reflectance: 2.5"),
        (lambda: GroupDials(difficulty=4), "difficulty: 4"),
        (lambda: Population(of_group={"tall": GroupDials()}), "'tall' is not one of female"),
    ],
)
def test_impossible_dials_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dials.models", ["vit_small"], "dials.models: 'vit_small' has no recipe"),
        ("dials.training_share", [0.7], "training_share"),
        ("dials.group", "tall", "dials.group"),
        ("data.of_group", {"tall": {"light": 0.5}}, "of_group"),
        ("data.joint_of", {"train": {"female|old|1": 1}}, "joint_of.train: 'female|old|0'"),
        ("grid", [{"method": "hope", "bits": "W8A8"}], r"grid\[0\]\.method"),
        ("quantization.tuning", {"images": 10_000}, "tuning.images: 10000 is more than the 600"),
    ],
)
def test_params_refuse_what_cannot_be(key: str, value: object, said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        load_params(ROOT / "params" / "smoke.yaml", {key: value})


def test_a_group_that_nobody_shows_cannot_be_constrained() -> None:
    params = load_params(
        ROOT / "params" / "smoke.yaml",
        {
            "data.joint": dict.fromkeys(planning_cells(), 1.0)
            | {"female|old|0": 1e-9, "female|old|1": 1e-9},
            "data.joint_of": dict.fromkeys(("test", "calibration", "validation"), "celeba"),
        },
    )
    with pytest.raises(ParamsError, match=r"tuning.images: the first 128 .* 'female old'"):
        feasibility.check(Study(params))


def planning_cells() -> list[str]:
    from fairq_utils.study.params.data import CELLS

    return list(CELLS)


def test_a_world_without_enough_of_the_group_says_which_dial() -> None:
    params = load_params(
        ROOT / "params" / "smoke.yaml",
        {"dials.calibration_share": [0.01], "dials.calibration_images": 40},
    )
    with pytest.raises(ParamsError, match=r"dials: share in calibration 0.01: .*'female' has"):
        feasibility.check(Study(params))


def test_the_plan_with_dials_begins_with_the_study(params: Params) -> None:
    study = Study(params)
    found = planning.with_dials(study)
    own = planning.plan(study)
    assert list(found)[: len(own)] == own
    worlds_ = {run for world in worlds(params) for run in planning.plan(Study(world.params))}
    assert set(found) == set(own) | worlds_
    assert all(found[run] is study for run in own)
    without = planning.with_dials(study, ["baseline", "quantization"])
    assert set(without) <= set(own)


def test_worlds_share_what_a_dial_does_not_touch(params: Params) -> None:
    """Turning the calibration trains nothing anew."""

    def trained(dial: str) -> set[str]:
        found = planning.plan(Study(turned(params, dial)))
        return {run.key for run in found if run.method == "fp32"}

    assert trained("calibration_share") == trained("")
    for dial in ("training_share", "base_rate", "light", "reflectance", "ambiguity"):
        assert not trained(dial) & trained("")


def test_every_level_is_planned_and_the_group_is_one_attribute(params: Params) -> None:
    found = worlds(params)
    assert found[0].dial == ""
    assert len(found) == 7
    assert attribute_of(params.dials) == "gender"
    for world in found:
        feasibility.check(Study(world.params))
        assert world.params.analysis.attributes == ("gender",)
        methods = {run.method for run in planning.plan(Study(world.params))}
        assert methods == {"fp32", "ptq", "ranges_worst"}
    none = params.model_copy(update={"dials": type(params.dials)()})
    assert worlds(none) == []


def record(run: Run, answers: np.ndarray[Any, Any], who: np.ndarray[Any, Any]) -> RunRecord:
    """Women first, then men; everybody smiles."""
    names = ("female", "male")
    cells = np.where(who, 1, 3)
    counts = np.zeros((2, 2, 2, 2), np.int64)
    return RunRecord(
        run=run,
        attributes=("gender",),
        groups=names,
        counts=counts,
        scores=np.where(answers, 1, -1).astype(np.float16),
        cells=cells.astype(np.int16),
        validation_scores=np.empty(0, np.float16),
        validation_cells=np.empty(0, np.int16),
        size_bytes=1,
        seconds=0.0,
        measures={},
        provenance={},
        report={},
    )


def test_a_change_is_signed_and_belongs_to_the_group(params: Params, tmp_path: Path) -> None:
    """Quantization takes 40 of 200 women's right answers and 10 of 200 men's: 15 points."""
    one = params.model_copy(
        update={
            "dials": params.dials.model_copy(
                update={
                    "models": ("squeezenet1_1",),
                    "grid": (params.dials.grid[0].model_copy(update={"bits": ("W4A4",)}),),
                    "training_share": (),
                    "base_rate": (),
                    "light": (),
                    "reflectance": (),
                    "ambiguity": (),
                    "calibration_share": (0.05,),
                }
            )
        }
    )
    execution = one.execution.model_copy(update={"ledger": str(tmp_path)})
    study = Study(one.model_copy(update={"execution": execution}))
    study.ledger.prepare()
    women_ = np.arange(400) < 200
    right = np.ones(400, bool)
    plain, mended = right.copy(), right.copy()
    plain[:40] = plain[200:210] = False
    mended[:10] = mended[200:210] = False
    for world in worlds(study.params):
        for run in planning.plan(study.of(world.params)):
            changed = plain if run.sampler == "random" else mended
            answers = right if run.method == "fp32" or not world.dial else changed
            study.ledger.write(record(run, answers, women_))
    frame = dials.by_dial(study)
    behind = frame[(frame.statistic == "behind") & (frame.dial == "calibration_share")]
    by_line = behind.set_index("line")
    assert by_line.change["plain"] == pytest.approx(0.15)
    assert by_line.low["plain"] > 0
    assert by_line.change["group_balanced"] == pytest.approx(0.0)
    assert by_line.mended["group_balanced"] == pytest.approx(-0.15)
    verdicts = dials.dial_verdicts(frame)
    assert len(verdicts) == 1
    assert bool(verdicts.shown.item())
    assert verdicts.removed.item() == "group_balanced"
    assert verdicts.added.item() == pytest.approx(0.15)
    for mended_by in (-0.05, -0.4):  # too little, and as much the other way
        other = frame.assign(mended=np.where(frame.mended < 0, mended_by, frame.mended))
        assert dials.dial_verdicts(other).removed.item() == ""
    # Where the even world is as unequal, no dial is to blame.
    there = frame.dial == "calibration_share"
    same = pd.concat([frame[there].assign(dial="", level=0.0), frame[there]])
    assert not dials.dial_verdicts(same).shown.item()


def test_the_control_of_a_constraint_is_not_plain(params: Params) -> None:
    run = planning.plan(Study(turned(params, "")))[1]
    lines = {
        dials._line(record(replace(run, method=method, sampler=sampler), N > 0, N > 0))
        for method, sampler in (("ptq", "random"), ("qat", "random"), ("ptq", "core_set"))
    }
    assert lines == {dials.PLAIN, "qat", "core_set"}
    assert dials.called("qat").startswith("fine-tuning")


def test_men_can_be_dialled_too(params: Params) -> None:
    other = params.model_copy(update={"dials": params.dials.model_copy(update={"group": "male"})})
    table = np.zeros((2, 2, 2))
    table[0, 1] = [0, 100]  # women: all right
    table[1, 1] = [20, 80]
    assert dials.dial_statistics(params)["behind"](table) == pytest.approx(-0.2)
    assert dials.dial_statistics(other)["behind"](table) == pytest.approx(0.2)
