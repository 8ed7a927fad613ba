"""Every group-aware method, in a study: planned, run, compared with plain, recorded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from fairq_utils.bench import throughput
from fairq_utils.bench.certificate import rates
from fairq_utils.calibration import SAMPLERS
from fairq_utils.errors import BadInput
from fairq_utils.fingerprint import closure
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.report import calibration, certificates, dials, effects, mitigation
from fairq_utils.report import record as report_record
from fairq_utils.report.chapter import Chapter
from fairq_utils.report.rows import PARITY
from fairq_utils.study import execution, planning, recorded, run_models, statistics
from fairq_utils.study.params.data import CELLS
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Dials, Params
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.study import Study
from fairq_utils.training import architectures

AWARE = {name: method for name, method in METHODS.items() if method.group_aware}
CONTROLS = [name for name in AWARE if name.startswith("control")]
GROUPS = [f"one_group={g} {a}" for g in ("female", "male") for a in ("old", "young")]
SCOPE = "gender x age"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of all methods, which has run once; groups are even, so that each can be drawn."""
    folder = tmp_path_factory.mktemp("aware")
    path = folder / "aware.yaml"
    path.write_text("{}")
    found = load_params(
        path,
        {
            "name": "aware",
            "data": {
                "size": 32,
                "train": 64,
                "calibration": 240,
                "validation": 120,
                "test": 160,
                "joint": dict.fromkeys(CELLS, 1.0),
                "race": {"african": 1, "asian": 1, "caucasian": 1},
            },
            "training.models": {
                "squeezenet1_1": {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16}
            },
            "training.seeds": [0, 1],
            "grid": [
                {"method": "ptq", "bits": "W4A4", "range": "mse", "sampler": list(SAMPLERS)},
                {"method": [n for n in AWARE if n not in CONTROLS], "bits": "W4A4"},
                {"method": CONTROLS, "bits": "W4A4", "max_reverted": 2},
            ],
            "quantization": {"calibration_images": 16, "tuning": {"images": 64}},
            "analysis.replicates": 100,
        },
    )
    study = Study(found)
    execution.execute(study)
    return study


@pytest.fixture(scope="module")
def params(study: Study) -> Params:
    return study.params


@pytest.fixture(scope="module")
def records(study: Study) -> list[RunRecord]:
    return statistics.records(study)


def of_method(records: list[RunRecord], name: str, seed: int = 0) -> RunRecord:
    return next(r for r in records if r.run.method == name and r.run.training["seed"] == seed)


def test_samples_of_a_study_are_read_in_parts(study: Study) -> None:
    data = study.faces.subset("validation")
    found = run_models._sample(data, ("gender", "age"), 1, torch.device("cpu"))
    assert isinstance(found.images, architectures.Normalized)
    assert found.images.images is data.images


def test_the_plan_has_every_method_once(study: Study, records: list[RunRecord]) -> None:
    planned = planning.plan(study)
    assert len(records) == len(planned) == len({run.key for run in planned})
    of_one = [run for run in planned if run.training["seed"] == 0]
    samplers = {run.sampler for run in of_one if run.method == "ptq"}
    assert samplers == {*SAMPLERS, *GROUPS} - {"one_group"}
    assert {run.method for run in of_one} == {"fp32", "ptq", "qat", CONTROL, *AWARE}


def test_the_benchmark_times_the_static_runs_that_it_counts(
    study: Study, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled = params.model_copy(update={"dials": Dials(models=("squeezenet1_1",), light=(0.5,))})
    assert len(planning.with_dials(Study(dialled))) > len(planning.plan(study))
    alone = Study(throughput.static_runs(dialled, "squeezenet1_1"))
    counted = planning.plan(alone, planning.PHASES[1:])
    seeds, samplers = params.training.seeds, {*SAMPLERS, *GROUPS} - {"one_group"}
    assert {(run.training["seed"], run.sampler) for run in counted} == set(product(seeds, samplers))
    assert {run.method for run in counted} == {"ptq"}
    timed: list[str] = []

    def executed(*args: Any, **options: Any) -> None:
        before = set(args[0].ledger.keys())
        assert len(before) == len(seeds)  # no model is trained in the time that is taken
        timed.extend(set(execution.execute(*args, **options).keys()) - before)

    monkeypatch.setattr(throughput, "execute", executed)
    assert throughput._by_the_study(alone, study.ledger, counted) > 0
    assert sorted(timed) == sorted(run.key for run in counted)


@pytest.mark.parametrize("name", AWARE)
def test_a_method_leaves_what_it_did(records: list[RunRecord], name: str) -> None:
    record = of_method(records, name)
    plain = next(r for r in records if r.run.method == "ptq" and r.run.sampler == "random")
    assert record.counts.sum() == 160
    assert record.report["layers"]
    family = METHODS[name].family
    if family == "preservation":
        notes = record.report["corrections"]
        assert notes["preservation"]["by"] in ("random", "overall", "worst_group")
        assert plain.size_bytes < record.size_bytes <= 1.05 * plain.size_bytes
    elif family == "group-aware mixed precision":
        assert record.size_bytes <= plain.size_bytes
        assert len(set(record.report["layers"].values())) > 1
    elif family == "accuracy control":
        assert record.report["corrections"]["accuracy_control"]["tolerance"] == 0.01
    elif family == "group-aware fine-tuning":
        assert np.isfinite(record.measures["loss_1"])
        assert record.run.settings["images"] == 64
        assert record.size_bytes == plain.size_bytes
    assert record.measures["quantize_seconds"] > 0


def test_constraints_train_otherwise_than_their_control(records: list[RunRecord]) -> None:
    losses = {
        name: of_method(records, name).measures["loss_1"]
        for name in ("qat", "qat_parity", "qat_odds", "qat_group_dro")
    }
    assert len(set(losses.values())) == len(losses)


def test_samplers_calibrate_on_whom_they_say(study: Study, records: list[RunRecord]) -> None:
    data = study.faces
    pool = data.subset("calibration")
    model = run_models.trained(study, records[0].run)
    cells = pool.groups.gender.astype(str) + " " + pool.groups.age.astype(str)
    rows = {
        str(r.run.sampler): run_models.calibration_rows(study, r.run, pool, model)
        for r in records
        if r.run.method == "ptq" and r.run.training["seed"] == 0
    }
    for sampler, found in rows.items():
        assert len(set(found)) == 16, sampler
    assert set(cells.iloc[rows["one_group=male old"]]) == {"male old"}
    assert len(set(cells.iloc[rows["worst_group"]])) == 1
    for sampler in ("group_balanced", "matched"):
        assert cells.iloc[rows[sampler]].value_counts().tolist() == [4, 4, 4, 4]
    races = pool.groups.race.iloc[rows["intersection_balanced"]].value_counts()
    assert races.max() - races.min() <= 4
    assert pool.target[rows["label_balanced"]].sum() == 8


def test_methods_are_paired_with_plain_of_the_same_seed(
    params: Params, records: list[RunRecord]
) -> None:
    frame = effects.against_plain(records, params)
    rows = frame[(frame.statistic == "accuracy") & (frame["scope"] == SCOPE)]
    assert (rows.seeds == 2).all()
    assert set(rows.method) == {"ptq", "qat", CONTROL, *AWARE}
    assert len(rows) == len(set(zip(rows.method, rows.sampler, strict=True)))
    assert "random" not in set(rows[rows.method == "ptq"].sampler)
    accuracy = {
        (r.run.method, r.run.sampler, r.run.training["seed"]): float(
            np.mean((r.scores > 0) == (r.cells % 2 == 1))
        )
        for r in records
    }
    plain = np.mean([accuracy["ptq", "random", seed] for seed in (0, 1)])
    fp32 = np.mean([accuracy["fp32", None, seed] for seed in (0, 1)])
    for name, sampler in (("mixed_worst", "random"), ("ptq", "core_set"), (CONTROL, None)):
        row = rows[(rows.method == name) & (rows.sampler == (sampler or ""))].iloc[0]
        mine = np.mean([accuracy[name, sampler, seed] for seed in (0, 1)])
        assert row.change == pytest.approx(mine - plain)
        assert row.from_fp32 == pytest.approx(mine - fp32)
        assert row.plain_from_fp32 == pytest.approx(plain - fp32)
        assert row.bits == "W4A4"
    row = rows[rows.method == "channels_worst"].iloc[0]
    for found, method in ((row.bytes, "channels_worst"), (row.bytes_plain, "ptq")):
        ours = [r for r in records if (r.run.method, r.run.sampler) == (method, "random")]
        assert found == np.mean([r.size_bytes for r in ours])
    assert row.seconds > row.seconds_plain > 0


def test_seeds_alone_make_a_difference(params: Params, records: list[RunRecord]) -> None:
    found = effects.between_seeds(records, params)
    row = found[(found.statistic == "accuracy") & (found["scope"] == SCOPE)].iloc[0]
    scores = [r for r in records if r.run.method == "fp32"]
    right = [np.mean((r.scores > 0) == (r.cells % 2 == 1)) for r in scores]
    assert row.largest == pytest.approx(abs(right[1] - right[0]))
    assert row.seeds == 2 and row.sd == pytest.approx(row.largest / 2**0.5)
    assert effects.between_seeds(records[:1], params).empty


@pytest.fixture
def glued(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float | str]]:
    kept: dict[str, float | str] = {}
    for chapter in (mitigation, certificates):
        monkeypatch.setattr(chapter, "glue", kept.__setitem__)
    yield kept


def test_recorded_tables_are_read_as_they_were_written(
    study: Study,
    params: Params,
    records: list[RunRecord],
    tmp_path: Path,
    glued: dict[str, float | str],
) -> None:
    names = [path.name for path in report_record.record(study, tmp_path)]
    assert names[3:] == ["aware_methods.csv", "aware_seeds.csv"]
    frame = recorded.read_part("aware", "methods", tmp_path)
    direct = effects.against_plain(records, params)
    direct = direct[(direct["scope"] == SCOPE) & direct.statistic.isin(report_record.KEPT)]
    direct = direct.reset_index(drop=True)
    assert frame.method.tolist() == direct.method.tolist()
    assert frame.sampler.tolist() == direct.sampler.tolist()
    np.testing.assert_allclose(frame.change, direct.change, atol=1e-6)
    with pytest.raises(BadInput, match=r"replicates: 29 comparisons"):
        mitigation.glue_methods(frame, SCOPE, "x", 100)
    mitigation.glue_methods(frame, SCOPE, "x", 2000)
    assert glued["x_worst_group_accuracy_compared"] == len(frame) / len(report_record.KEPT)
    assert glued["x_seeds"] == 2
    balanced = frame[(frame.sampler == "group_balanced") & (frame.statistic == PARITY)]
    assert glued["x_balanced_W4A4"] == pytest.approx(100 * balanced.change.item())
    with pytest.raises(recorded.RecordError, match=r"fairq record --params params/other.yaml"):
        recorded.read_part("other", "dials", tmp_path)


def test_pictures_and_tables_are_drawn(
    study: Study, params: Params, records: list[RunRecord]
) -> None:
    frame = effects.against_plain(records, params)
    assert isinstance(mitigation.changes_figure(frame, "worst_group_accuracy", SCOPE), Figure)
    text = mitigation.changes_table(frame, SCOPE).data
    for method in AWARE.values():
        assert method.label in text
    assert "female old only" in text
    chapter = Chapter(study)
    clipped = calibration.clipping(chapter, "W4A4")
    assert set(clipped.group) == {"female old", "female young", "male old", "male young"}
    assert ((clipped.range_low >= clipped.low.min()) & (clipped.clipped < 0.5)).all()
    assert isinstance(calibration.clipping_figure(clipped), Figure)
    seeds = effects.between_seeds(records, params)
    assert "Worst-group accuracy" in mitigation.seeds_table(seeds[seeds["scope"] == SCOPE]).data


def test_a_study_without_methods_says_so(glued: dict[str, float | str]) -> None:
    none = pd.DataFrame(columns=["scope", "statistic"])
    assert "no group-aware method" in str(mitigation.changes_table(none, SCOPE).data)
    assert "no group-aware method" in str(mitigation.changes_figure(none, "accuracy", SCOPE).data)
    assert "no dial was turned" in str(dials.dial_figure(none, "behind").data)
    assert "no dial was turned" in str(dials.dial_table(none).data)
    mitigation.glue_methods(none, SCOPE, "x", 100)
    assert glued["x_demographic_parity_better"] == 0


def test_balance_in_words() -> None:
    rows = pd.DataFrame({"change": [-0.02, 0.03], "shown": [True, False]})
    assert mitigation._balance(rows) == "narrows the gap on 1 of 2 networks"
    assert mitigation._balance(rows.iloc[1:]).startswith("gives nothing")
    assert "and widens it on 1" in mitigation._balance(rows.assign(shown=True))


def test_a_run_is_made_by_all_that_its_method_imports(study: Study) -> None:
    for run in planning.plan(study):
        code = planning.code_of(run.method, run.sampler, run.architecture, run.data)
        assert run.code == code
    for name, module in (("ranges_worst", "group_ranges"), ("layers_worst", "precision")):
        made = closure([METHODS.home(name)])
        assert f"fairq_utils.mitigation.{module}" in made
        assert "fairq_utils.mitigation.betting" not in made


def test_what_decides_a_result_is_in_its_key(params: Params) -> None:
    def keys(**changes: Any) -> dict[tuple[str, str | None], str]:
        given = params.model_dump(mode="json")
        for name, change in changes.items():
            given[name] = given[name] | change if isinstance(change, dict) else change
        found = planning.plan(Study(Params.model_validate(given)))
        return {(r.method, r.sampler): r.key for r in found if r.bits}

    def settings(entry: int, **change: object) -> dict[tuple[str, str | None], str]:
        grid = [found.model_dump(mode="json") for found in params.grid]
        grid[entry] |= change
        return keys(grid=grid)

    own = keys()
    for changed, methods in (
        (settings(1, budget=0.1), {m for m in AWARE if "budget" in AWARE[m].settings}),
        (settings(2, max_reverted=3), set(CONTROLS)),
        (keys(data={"validation": 130}), {key[0] for key in own} - {"ptq"}),
        (keys(analysis={"attributes": ("gender", "race")}), set(AWARE)),
    ):
        moved = {key[0] for key in own if changed.get(key) != own[key]} - {"ptq"}
        assert moved == methods


def test_certificates_are_drawn(glued: dict[str, float | str]) -> None:
    cells = rates(images=(300,), flips=(0.01,), draws=2)
    assert set(cells.candidates) == {1, 4}
    kept = cells.astype(object).where(cells.notna(), None).to_dict("records")
    found = {
        "cells": kept,
        "draws": 2,
        "delta": 0.05,
        "limit": 0.01,
        "metric": "demographic_parity_difference",
        "wrong_most": 0.0,
        "chance": 0.8,
        "needed_flips": 0.01,
        "needed": {"betting": 5000, "normal": 3000},
    }
    certificates.glue_certificates(found)
    read = certificates.read_cells(found)
    pd.testing.assert_series_equal(read.wrong, cells.wrong)
    assert isinstance(certificates.certificate_figure(read, 0.01, 0.05), Figure)
    assert "several in sequence" in certificates.certificate_table(read).data
    assert glued["certificate_delta"] == 5
    assert glued["certificate_price"] == pytest.approx(5 / 3)
    assert glued["certificate_chance"] == 80


def test_the_benchmark_leaves_out_what_other_architectures_are_for(params: Params) -> None:
    given = params.model_dump()
    recipe = next(iter(given["training"]["models"].values()))
    given["training"]["models"] = {"squeezenet1_1": recipe, "mobilenet_v2": recipe}
    given["grid"] = [
        {"method": "ptq", "bits": "W8A8", "sampler": "random"},
        {"method": "ptq", "bits": "W4A4", "sampler": "random", "models": "mobilenet_v2"},
    ]
    given["dials"] = {"models": []}
    both = Params.model_validate(given)
    for name, bits in (("squeezenet1_1", {"W8A8"}), ("mobilenet_v2", {"W8A8", "W4A4"})):
        alone = Study(throughput.static_runs(both, name))
        assert {run.bits for run in planning.plan(alone, planning.PHASES[1:])} == bits
