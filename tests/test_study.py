"""The study end to end, small: what is planned, computed once, resumed after kills, and tabled."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from typer.testing import CliRunner

from fairq_utils import bench
from fairq_utils.cli import app
from fairq_utils.errors import Fault
from fairq_utils.report import (
    analysis,
    anatomy,
    calibration,
    effects,
    figures,
    fp32_models,
    measuring,
    population,
    quantization,
    results,
)
from fairq_utils.report import record as report_record
from fairq_utils.report.chapter import Chapter
from fairq_utils.study import (
    execution,
    planning,
    recorded,
    run_models,
    runs,
    statistics,
)
from fairq_utils.study.ledger import Ledger
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.study import Study

AGES = ("old", "young")
STUDY = {
    "name": "small",
    "data": {"size": 32, "train": 64, "calibration": 48, "validation": 10, "test": 64},
    "training": {
        "models": {
            "squeezenet1_1": {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16},
            "mobilenet_v2": {"epochs": 1, "learning_rate": 0.002, "batch_size": 16},
        }
    },
    "grid": [
        {
            "method": "ptq",
            "bits": ["W8A8", "W4A4"],
            "range": ["minmax", "percentile"],
            "sampler": ["random", "group_balanced"],
        },
        {"method": "dynamic", "bits": "W8A8"},
        {
            "method": ["naive", "equalized", "adaround", "mixed", "float_classifier"],
            "bits": "W4A8",
        },
        {"method": ["block", "qat"], "bits": "W4A4"},
        {"method": "operations", "bits": "W8A8"},
    ],
    "quantization": {"calibration_images": 16, "iterations": 3},
    "analysis": {"replicates": 100},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A params file whose study has run once, through the command line."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answer = CliRunner().invoke(app, ["run", "--params", str(path)])
        assert answer.exit_code == 0, answer.output
    yield path


@pytest.fixture(scope="module")
def study(small: Path) -> Study:
    return Study(load_params(small))


@pytest.fixture(scope="module")
def params(study: Study) -> Params:
    return study.params


def test_the_plan_is_the_grid(study: Study) -> None:
    planned = planning.plan(study)
    # For each model: FP32, two bits x two ranges x two samplers, dynamic at W8A8, eight other
    # methods and the FP32 fine-tuning that the one that trains is compared with.
    assert len(planned) == 2 * (1 + 2 * 2 * 2 + 1 + 8 + 1)
    assert len({run.key for run in planned}) == len(planned)
    by_phase = {phase: planning.plan(study, [phase]) for phase in planning.PHASES}
    # With a balanced draw comes the random one that it is compared with.
    assert [len(by_phase[p]) for p in planning.PHASES] == [2, 28, 16]
    assert len({*by_phase["quantization"], *by_phase["mitigation"]}) == 28 + 8


def test_every_run_is_in_the_ledger_and_counts_every_image(study: Study) -> None:
    store = study.ledger
    planned = planning.plan(study)
    assert set(store.keys()) == {run.key for run in planned}
    test = study.faces.subset("test")
    for run in planned:
        record = store.read(run.key)
        assert record.counts.sum() == len(test) == len(record.scores)
        assert record.provenance["torch"]
        predicted = record.scores > 0
        assert record.counts.sum(axis=(0, 1, 2))[1] == predicted.sum()
        np.testing.assert_array_equal(record.cells % 2, test.target)
        if run.method != "fp32":
            assert record.report.get("layers") or run.method == "fp32_finetuning"
            base = store.read(planning.baseline_of(run).key)
            assert record.counts.sum(axis=(0, 1, 3))[1] == (base.scores > 0).sum()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU was found, and the study's is there")
def test_a_model_is_rebuilt_where_the_study_s_gpu_is_not(study: Study, params: Params) -> None:
    run = next(run for run in planning.plan(study) if run.method == "ptq")
    on_gpu = params.execution.model_copy(update={"device": "cuda"})
    rebuilt = run_models.rebuild(Study(params.model_copy(update={"execution": on_gpu})), run)
    here = run_models.rebuild(study, run)
    state = here.model.state_dict()
    assert all(
        torch.equal(value, state[name]) for name, value in rebuilt.model.state_dict().items()
    )
    assert rebuilt.report == here.report


def test_a_second_run_computes_nothing(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(runs, "train_baseline", never)
    monkeypatch.setattr(runs, "evaluate_quantized", never)
    execution.execute(study)
    assert "all 38 runs are in the ledger" in capsys.readouterr().err


def test_one_missing_run_is_the_only_one_computed(study: Study) -> None:
    store = study.ledger
    run = planning.plan(study)[5]
    path = Path(store.path(run.key))
    before = store.read(run.key)
    times = {p: p.stat().st_mtime_ns for p in path.parent.iterdir() if p != path}
    path.unlink()
    execution.execute(study)
    np.testing.assert_array_equal(store.read(run.key).scores, before.scores)
    assert times == {p: p.stat().st_mtime_ns for p in times}


def written(store: Ledger) -> dict[str, int]:
    """When each run's file was written, nanoseconds."""
    keys = store.keys()
    return {key: Path(store.path(key)).stat().st_mtime_ns for key in keys}


def _run(path: str) -> None:
    execution.execute(Study(load_params(path)))


def test_killed_at_random_moments_it_goes_on_where_it_was(small: Path, tmp_path: Path) -> None:
    """SIGKILL ten times: no finished run is lost or computed again; the results are the same."""
    study = Study(load_params(small))
    content = {
        **STUDY,
        "execution": {"ledger": str(tmp_path / "ledger"), "cache": study.params.execution.cache},
    }
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(content))
    store = Study(load_params(again)).ledger
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fairq_utils.study.execution"])
    rng = random.Random(1)
    finished: dict[str, int] = {}
    for attempt in range(10):
        worker = context.Process(target=_run, args=(str(again),))
        worker.start()
        if attempt % 3 == 1:  # some kills come soon after something was written
            deadline = time.monotonic() + 120
            while written(store).keys() == finished.keys() and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(0.5, 3.0))
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        now = written(store)
        assert finished.items() <= now.items()
        assert all(store.contains(key) for key in now)
        finished = now
    execution.execute(Study(load_params(again)))
    assert finished  # the kills came after something had been written
    now = written(store)
    assert finished.items() <= now.items()
    assert set(now) == {run.key for run in planning.plan(study)}
    whole = study.ledger
    for key in now:
        np.testing.assert_allclose(
            store.read(key).scores, whole.read(key).scores, rtol=1e-2, atol=1e-2
        )


def test_the_command_line_says_what_is_done(small: Path) -> None:
    answer = CliRunner().invoke(app, ["plan", "--params", str(small)])
    assert answer.exit_code == 0
    rows = [line.split() for line in answer.output.splitlines()]
    assert ["ptq", "W8A8", "W4A4", "minmax", "percentile", "group_balanced", "2", "8", "8"] in [
        row[:9] for row in rows
    ]
    assert ["all", "38", "38"] in [row[:3] for row in rows]
    answer = CliRunner().invoke(app, ["plan", "--runs", "--params", str(small)])
    assert answer.exit_code == 0
    assert answer.output.count("done  ") == 38
    assert "38 of 38 runs are in" in answer.output
    answer = CliRunner().invoke(app, ["check", "--params", str(small)])
    assert answer.exit_code == 0
    assert answer.output.endswith("ready\n")


def test_analysis_without_runs_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    answer = CliRunner().invoke(app, ["run", "--params", str(path), "--phase", "analysis"])
    assert answer.exit_code == 1
    assert "holds no run of this study; run the other phases first" in answer.stderr
    assert not list(tmp_path.glob("build/*"))


def test_results_are_written_as_the_published_study_names_them(small: Path) -> None:
    folder = small.parent / "build" / "results" / Study(load_params(small)).title
    base = pd.read_csv(folder / "baseline_results.csv")
    assert set(base.architecture) == {"squeezenet1_1", "mobilenet_v2"}
    rows = json.loads((folder / "quantization_results.json").read_text())
    assert {r["bits"] for r in rows} == {"W8A8", "W4A8", "W4A4", "FP32"}
    assert {r["method"] for r in rows if r["bits"] == "FP32"} == {"fp32_finetuning"}
    text = (folder / "quantization_table.tex").read_text()
    assert text.count("\\toprule") == text.count("\\bottomrule") == 1
    assert {r["study"] for r in rows} == set(base.study) == {folder.name}
    assert json.loads((folder / "study.json").read_text())["training"]["seeds"] == [0]


def test_a_sweep_does_not_overwrite_itself(study: Study, tmp_path: Path) -> None:
    """Studies that differ in one value have folders of their own; where they run has no say."""
    runs = statistics.records(study)[:2]
    own = {"results": str(tmp_path)}
    written = []
    for replicates in (100, 200):
        analysis = study.params.analysis.model_copy(update={"replicates": replicates})
        execution = study.params.execution.model_copy(update=own)
        params = study.params.model_copy(update={"analysis": analysis, "execution": execution})
        frame = effects.by_configuration(runs, params)
        written += results.write_results(frame, effects.sizes(runs), Study(params))
    assert len(set(written)) == len(written) == sum(p.is_file() for p in tmp_path.rglob("*"))
    assert Study(params.model_copy(update={"execution": study.params.execution})).title in str(
        written[-1]
    )


def test_a_disk_that_is_full_leaves_no_half_of_the_results(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = statistics.records(study)[:2]
    frame = effects.by_configuration(runs, study.params)
    execution = study.params.execution.model_copy(update={"results": str(tmp_path)})
    there = Study(study.params.model_copy(update={"execution": execution}))
    whole = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        whole(path, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(Fault, match=r"baseline_results\.csv: could not be written \(No space"):
        results.write_results(frame, effects.sizes(runs), there)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_all_runs_are_one_table_with_their_parameters_as_columns(
    study: Study, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    answer = CliRunner().invoke(app, ["results", "--out", str(tmp_path / "all.csv")])
    assert answer.exit_code == 0, answer.output
    table = pd.read_csv(tmp_path / "all.csv")
    records = {record.run.key: record for record in statistics.records(study)}
    assert set(table.key) == set(records)
    assert table.groupby("key").size().eq(7).all()  # three alone, three pairs, all crossed
    assert set(table["training.seed"]) == {0}
    assert set(table["data.train.images"]) == {64}
    crossed = table[table.scope == "gender x age"].set_index("key")
    base = next(r for r in records.values() if r.run.method == "fp32")
    frame = effects.by_configuration([base], study.params)
    gap = "demographic_parity_difference"
    expected = frame[
        (frame.statistic == gap)
        & (frame["scope"] == "gender x age")
        & (frame.method == "fp32")
        & (frame.architecture == base.run.architecture)
    ]
    assert crossed.loc[base.run.key, gap] == pytest.approx(expected.compared.item())
    assert crossed.loc[base.run.key, f"{gap}_change"] == 0.0
    shutil.copytree("build/ledger", tmp_path / "other")
    ledgers = ["build/ledger", str(tmp_path / "other"), "build/ledger", "./build/ledger/"]
    shown = CliRunner().invoke(app, ["results", *ledgers])
    assert shown.stdout.count("\n") == 1 + 2 * len(table)
    none = CliRunner().invoke(app, ["results", "nowhere"])
    assert (none.exit_code, none.stdout) == (1, "")
    assert none.stderr.startswith("nowhere: this ledger holds no run")


@pytest.fixture(scope="module")
def records(study: Study) -> list[RunRecord]:
    return statistics.records(study)


def test_effects_hold_the_ledgers_counts(params: Params, records: list[RunRecord]) -> None:
    frame = effects.by_configuration(records, params)
    assert set(frame["scope"]) == {"gender", "age", "gender x age"}
    base = frame[(frame.method == "fp32") & (frame.statistic == "accuracy")]
    assert (base.change == 0).all()
    record = next(r for r in records if r.run.bits == "W4A4")
    mine = statistics.configuration(record.run)
    row = frame[
        (frame[list(mine)] == pd.Series(mine)).all(axis=1) & (frame.statistic == "accuracy")
    ].iloc[0]
    right = (record.scores > 0) == (record.cells % 2 == 1)
    assert row.compared == pytest.approx(right.mean())
    assert row.floor > 0
    assert 0 < row.p_value <= 1
    groups = effects.by_group(records, params)
    part = groups[(groups[list(mine)] == pd.Series(mine)).all(axis=1)]
    assert part.images.sum() == 64
    assert part.won.sum() - part.lost.sum() == pytest.approx(64 * row.change)


def test_gaps_are_those_of_the_counts(params: Params, records: list[RunRecord]) -> None:
    frame = effects.by_configuration(records, params)
    for record in records:
        mine = pd.Series(statistics.configuration(record.run))
        rows = frame[(frame[list(mine.index)] == mine).all(axis=1)]
        for scope, attributes in statistics.scopes(params).items():
            table = statistics.counts(record, attributes).compared
            part = rows[rows["scope"] == scope].set_index("statistic").compared
            for name, statistic in statistics.STATISTICS.items():
                assert part[name] == pytest.approx(float(statistic(table)), abs=1e-12, nan_ok=True)


def test_mitigation_pairs_the_two_draws(params: Params, records: list[RunRecord]) -> None:
    found = effects.against_random(records, params)
    assert set(found.sampler) == {"group_balanced"}
    # Both are changes from the same FP32 model, so their difference is the paired change.
    np.testing.assert_allclose(found.from_fp32 - found.random_from_fp32, found.change, atol=1e-12)


def test_runs_on_different_images_are_not_compared(records: list[RunRecord]) -> None:
    first, second = records[:2]
    turned = replace(second, cells=second.cells[::-1])
    with pytest.raises(ValueError, match="different images"):
        statistics.shared([(first, turned)], ["gender"])


def test_pareto_keeps_what_nothing_beats() -> None:
    frame = pd.DataFrame({"good": [3, 2, 1, 2, 3], "cost": [3, 1, 1, 2, 3]})
    front = effects.pareto(frame, {"good": 1, "cost": -1})
    assert front.tolist() == [True, True, False, False, True]


def test_figures_are_drawn_from_the_tables(
    study: Study, params: Params, records: list[RunRecord]
) -> None:
    frame, groups = effects.by_configuration(records, params), effects.by_group(records, params)
    scope = "gender x age"
    front = effects.frontier(frame, effects.sizes(records), scope)
    quantized = frame[(frame.method != "fp32") & frame.sampler.isin(["", "random"])]
    drawn = [
        fp32_models.accuracy_figure(frame[(frame.method == "fp32") & (frame["scope"] == scope)]),
        figures.heatmap_figure(quantized, "accuracy", scope),
        quantization.changes_figure(quantized, "demographic_parity_difference", scope),
        measuring.null_bands_figure(measuring.null_bands(Chapter(study))),
        quantization.groups_figure(groups[groups.bits == "W4A4"]),
        calibration.balance_figure(
            effects.against_random(records, params), "demographic_parity_difference", scope
        ),
        analysis.pareto_figure(front),
        population.faces_figure(study.faces, rows=1, columns=4),
    ]
    assert all(isinstance(f, Figure) and f.axes for f in drawn)
    assert plt.get_fignums() == []  # nothing is left for a notebook to show a second time
    assert analysis.interactive_pareto_figure(front).name == "pareto"


def test_worked_examples_are_what_they_say(params: Params, records: list[RunRecord]) -> None:
    frame, groups = effects.by_configuration(records, params), effects.by_group(records, params)
    row = measuring.apparent_bias(frame, "gender x age")
    assert row.method != "fp32"
    parity = frame[
        (frame.statistic == "demographic_parity_difference")
        & (frame["scope"] == "gender x age")
        & (frame.method != "fp32")
    ]
    inside = parity[parity.change.abs() <= parity.floor]
    if len(inside):
        assert abs(row.change) == inside.change.abs().max()
    accuracy, mine = measuring.silent_flips(frame, groups)
    assert abs(accuracy.change) <= accuracy.floor
    assert len(mine) == 4
    assert mine.images.sum() == 64


def test_render_benchmark_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairq_utils.bench.render.FACES", 64)
    found, path = bench.run("render", tmp_path)
    assert json.loads(path.read_text()) == found
    assert found["faces_per_second"] > 0
    assert (found["size"], found["faces"]) == (64, 64)
    with pytest.raises(ValueError, match="bench: 'rander' is unknown; did you mean 'render'"):
        bench.run("rander", tmp_path)


def test_a_damaged_checkpoint_is_set_aside_and_trained_again(study: Study) -> None:
    store = study.ledger
    base, quantized = planning.plan(study)[:2]
    path = store.checkpoint_path(base.weights)
    before = store.read(base.key).scores
    path.write_bytes(path.read_bytes()[:1000])
    Path(store.path(quantized.key)).unlink()
    with pytest.warns(UserWarning, match="this checkpoint is damaged .* trained again"):
        execution.execute(study)
    np.testing.assert_allclose(store.read(base.key).scores, before, rtol=1e-2, atol=1e-2)
    assert path.with_name(f"{path.name}.damaged").exists()
    assert store.contains(quantized.key)


def test_what_a_stopped_training_left_is_gone_after_the_study(study: Study) -> None:
    store = study.ledger
    left = store.checkpoint_path(planning.plan(study)[0].weights).with_suffix(".unfinished")
    left.touch()
    execution.execute(study)
    assert not left.exists()


def test_a_commit_says_that_the_tree_is_another(tmp_path: Path) -> None:
    assert runs._commit(tmp_path) == "unknown"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a.py").write_text("a = 1\n")
    for command in (["init", "-q"], ["add", "a.py"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    clean = runs._commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "a.py").write_text("a = 2\n")
    assert runs._commit(tmp_path) == f"{clean}-dirty"


@pytest.mark.parametrize("place", ["ledger", "cache", "results"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_computed(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "blocked.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "execution": {place: str(tmp_path / "file" / "x")}}))
    answer = CliRunner().invoke(app, ["run", "--params", str(path)])
    assert answer.exit_code == 1
    assert f"execution.{place}: " in answer.stderr
    assert "cannot be made" in answer.stderr
    assert not list(tmp_path.glob("build/cache/*"))


def test_a_recorded_study_is_read_as_it_was_written(
    study: Study, params: Params, tmp_path: Path
) -> None:
    with pytest.raises(recorded.RecordError, match=r"not recorded; run `fairq run --params"):
        recorded.read(params.name, tmp_path)
    paths = report_record.record(study, tmp_path)
    assert [path.name for path in paths] == ["small.csv", "small_groups.csv", "small.json"]
    found = recorded.read(params.name, tmp_path)
    runs = statistics.records(study)
    runs = [record for record in runs if record.run.sampler in (None, "random")]
    frame = effects.by_configuration(runs, params)
    crossed = frame[frame["scope"] == "gender x age"]
    for statistic in report_record.KEPT:
        wanted = crossed[crossed.statistic == statistic].reset_index(drop=True)
        kept = found.configurations
        kept = kept[kept.statistic == statistic].reset_index(drop=True)
        assert kept[statistics.CONFIGURATION].equals(wanted[statistics.CONFIGURATION])
        np.testing.assert_allclose(kept.change, wanted.change, atol=1e-6)
    assert found.about["recorded"] == found.about["planned"] == len(runs)
    assert (found.configurations.quantize_seconds.dropna() >= 0).all()
    assert set(found.groups.group) == {f"{g} {a}" for g in ("female", "male") for a in AGES}


def test_what_training_on_does_is_in_the_ledger(study: Study) -> None:
    runs = statistics.records(study)
    tuned = [r for r in runs if r.run.method in ("qat", "fp32_finetuning")]
    assert len(tuned) == 4
    for record in tuned:
        assert record.run.settings == {"epochs": 1, "rate": 0.1, "images": None}
        assert np.isfinite(record.measures["loss_1"])
    quantized = [r for r in runs if r.run.method not in ("fp32", "dynamic")]
    for record in quantized:
        assert 0 < record.measures["calibrate_seconds"] < record.measures["quantize_seconds"]
    qat, finetuned = tuned[0], tuned[1]
    assert qat.size_bytes < finetuned.size_bytes / 3
    mixed, classifier, operations = (
        next(r for r in runs if r.run.method == name)
        for name in ("mixed", "float_classifier", "operations")
    )
    assert len(set(mixed.report["layers"].values())) > 1
    assert mixed.size_bytes <= mixed.report["corrections"]["mixed_precision"]["budget"]
    assert "was asked to stay in float" in classifier.report["left_float"].values()
    assert "operations" in operations.report
    blocks = [r for r in runs if r.run.method == "block"]
    assert all(r.report["corrections"]["reconstruction"] for r in blocks)


def test_recovery_by_hand() -> None:
    frame = pd.DataFrame(
        [
            ("a", "W4A4", "naive", -0.20),
            ("a", "W4A4", "ptq", -0.10),
            ("a", "W4A4", "block", -0.05),
            ("b", "W4A4", "naive", -0.01),
            ("b", "W4A4", "block", 0.00),
            ("b", "W8A8", "ptq", 0.00),
            ("b", "FP32", "fp32_finetuning", 0.01),
        ],
        columns=["architecture", "bits", "method", "change"],
    )
    found = quantization.recovery(frame)
    assert len(found) == 3  # nothing naive was tried at W8A8
    assert found.recovered.tolist()[:2] == [pytest.approx(0.5), pytest.approx(0.75)]
    assert np.isnan(found.recovered.tolist()[2])  # a point lost is too little to take a share of
    assert quantization.best_of(found).method.tolist() == ["block", "block"]


def test_pictures_of_the_methods_are_drawn(study: Study) -> None:
    found = anatomy.specimen(Chapter(study))
    assert found.title == "MobileNetV2"
    pictures = [
        anatomy.grids_figure(),
        anatomy.ranges_figure(found),
        anatomy.equalization_figure(found),
        anatomy.bias_correction_figure(found),
        anatomy.rounding_figure(found),
        anatomy.bits_figure(found),
        anatomy.gradients_figure(),
    ]
    assert all(isinstance(picture, Figure) and picture.axes for picture in pictures)
    rounded = pictures[4].axes[0].patches
    assert rounded[0].get_height() < 5  # next to the lower code
    assert rounded[19].get_height() > 95  # next to the upper one
    assert (
        "No two layers" in anatomy.equalization_figure(replace(found, equalized=found.plain)).data
    )


def test_ours_beside_the_best_of_the_others_by_hand() -> None:
    figures = {
        "a": {
            "W8A8": {"fp32": 0.9, "ours_minmax": 0.99, "ours": 0.88, "x": 0.87, "y": 0.89},
            "W4A4": {"fp32": 0.9, "ours_minmax": 0.1, "ours": 0.8, "x": None, "y": None},
        }
    }
    found = quantization.beside_toolkits(figures)
    assert found.who.tolist() == ["y"]  # at W4A4 nobody has a figure
    assert found.ahead.tolist() == [pytest.approx(-0.01)]
    assert recorded.read_benchmark("coverage")["trials"]
    with pytest.raises(recorded.RecordError, match=r"not recorded; run `make bench-nothing`"):
        recorded.read_benchmark("nothing")
