"""The study end to end, small: what is planned, computed once, resumed after kills, and tabled."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from typer.testing import CliRunner

from fairq_utils import bench, figures, study, tables
from fairq_utils.cli import app
from fairq_utils.ledger import Ledger
from fairq_utils.params import Params, load_params

STUDY = {
    "name": "small",
    "data": {"size": 32, "train": 64, "calibration": 48, "validation": 10, "test": 64},
    "training": {
        "models": {
            "squeezenet1_1": {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16},
            "mobilenet_v2": {"epochs": 1, "learning_rate": 0.002, "batch_size": 16},
        }
    },
    "quantization": {
        "bits": ["W8A8", "W4A4"],
        "ranges": ["minmax", "percentile"],
        "calibration_images": 16,
    },
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
def params(small: Path) -> Params:
    return load_params(small)


def test_the_plan_is_the_grid(params: Params) -> None:
    runs = study.plan(params)
    # For each model: FP32, two bits x two ranges x two samplers, and dynamic at W8A8.
    assert len(runs) == 2 * (1 + 2 * 2 * 2 + 1)
    assert len({run.key for run in runs}) == len(runs)
    by_phase = {phase: study.plan(params, [phase]) for phase in study.PHASES}
    assert [len(by_phase[p]) for p in study.PHASES] == [2, 10, 8]


def test_every_run_is_in_the_ledger_and_counts_every_image(params: Params) -> None:
    store = study.ledger(params)
    runs = study.plan(params)
    assert set(store.keys()) == {run.key for run in runs}
    test = study.faces(params).subset("test")
    for run in runs:
        record = store.read(run.key)
        assert record.counts.sum() == len(test) == len(record.scores)
        assert record.provenance["torch"]
        predicted = record.scores > 0
        assert record.counts.sum(axis=(0, 1, 2))[1] == predicted.sum()
        np.testing.assert_array_equal(record.cells % 2, test.target)
        if run.method != "fp32":
            assert record.report["layers"]
            base = store.read(study.baseline_of(run).key)
            assert record.counts.sum(axis=(0, 1, 3))[1] == (base.scores > 0).sum()


def test_a_second_run_computes_nothing(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(study, "train_baseline", never)
    monkeypatch.setattr(study, "evaluate_quantized", never)
    study.execute(params)
    assert "all 20 runs are in the ledger" in capsys.readouterr().err


def test_one_missing_run_is_the_only_one_computed(params: Params) -> None:
    store = study.ledger(params)
    run = study.plan(params)[5]
    path = Path(store.path(run.key))
    before = store.read(run.key)
    times = {p: p.stat().st_mtime_ns for p in path.parent.iterdir() if p != path}
    path.unlink()
    study.execute(params)
    np.testing.assert_array_equal(store.read(run.key).scores, before.scores)
    assert times == {p: p.stat().st_mtime_ns for p in times}


def written(store: Ledger) -> dict[str, int]:
    """When each run's file was written, nanoseconds."""
    keys = store.keys()
    return {key: Path(store.path(key)).stat().st_mtime_ns for key in keys}


def _run(path: str) -> None:
    study.execute(load_params(path))


def test_killed_at_random_moments_it_goes_on_where_it_was(small: Path, tmp_path: Path) -> None:
    """SIGKILL ten times: no finished run is lost or computed again; the results are the same."""
    params = load_params(small)
    content = {
        **STUDY,
        "execution": {"ledger": str(tmp_path / "ledger"), "cache": params.execution.cache},
    }
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(content))
    store = study.ledger(load_params(again))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fairq_utils.study"])
    rng = random.Random(1)
    finished: dict[str, int] = {}
    for _ in range(10):
        worker = context.Process(target=_run, args=(str(again),))
        worker.start()
        time.sleep(rng.uniform(0.5, 3.0))
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        now = written(store)
        assert finished.items() <= now.items()
        assert all(store.contains(key) for key in now)
        finished = now
    study.execute(load_params(again))
    assert finished  # the kills came after something had been written
    now = written(store)
    assert finished.items() <= now.items()
    assert set(now) == {run.key for run in study.plan(params)}
    whole = study.ledger(params)
    for key in now:
        np.testing.assert_allclose(
            store.read(key).scores, whole.read(key).scores, rtol=1e-2, atol=1e-2
        )


def test_the_command_line_says_what_is_done(small: Path) -> None:
    answer = CliRunner().invoke(app, ["plan", "--params", str(small)])
    assert answer.exit_code == 0
    assert "20 of 20 runs are in" in answer.output
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
    folder = small.parent / "build" / "results" / "small"
    base = pd.read_csv(folder / "baseline_results.csv")
    assert set(base.architecture) == {"squeezenet1_1", "mobilenet_v2"}
    rows = json.loads((folder / "quantization_results.json").read_text())
    assert {r["bits"] for r in rows} == {"W8A8", "W4A4"}
    text = (folder / "quantization_table.tex").read_text()
    assert text.count("\\toprule") == text.count("\\bottomrule") == 1


def test_effects_hold_the_ledgers_counts(params: Params) -> None:
    runs = tables.records(study.ledger(params), params)
    effects = tables.effects(runs, params)
    assert set(effects["scope"]) == {"gender", "age", "gender x age"}
    base = effects[(effects.method == "fp32") & (effects.statistic == "accuracy")]
    assert (base.change == 0).all()
    record = next(r for r in runs if r.run.bits == "W4A4")
    mine = tables.configuration(record.run)
    row = effects[
        (effects[list(mine)] == pd.Series(mine)).all(axis=1) & (effects.statistic == "accuracy")
    ].iloc[0]
    right = (record.scores > 0) == (record.cells % 2 == 1)
    assert row.compared == pytest.approx(right.mean())
    groups = tables.group_effects(runs, params)
    part = groups[(groups[list(mine)] == pd.Series(mine)).all(axis=1)]
    assert part.images.sum() == 64
    assert part.won.sum() - part.lost.sum() == pytest.approx(64 * row.change)


def test_mitigation_pairs_the_two_draws(params: Params) -> None:
    runs = tables.records(study.ledger(params), params)
    found = tables.mitigation_effects(runs, params)
    assert set(found.sampler) == {"group_balanced"}
    # Both are changes from the same FP32 model, so their difference is the paired change.
    np.testing.assert_allclose(found.harm - found.harm_random, found.change, atol=1e-12)


def test_runs_on_different_images_are_not_compared(params: Params) -> None:
    from dataclasses import replace

    first, second = tables.records(study.ledger(params), params)[:2]
    with pytest.raises(ValueError, match="different images"):
        tables.paired(first, replace(second, cells=second.cells[::-1]))


def test_pareto_keeps_what_nothing_beats() -> None:
    frame = pd.DataFrame({"good": [3, 2, 1, 2, 3], "cost": [3, 1, 1, 2, 3]})
    front = tables.pareto(frame, {"good": 1, "cost": -1})
    assert front.tolist() == [True, True, False, False, True]


def test_figures_are_drawn_from_the_tables(params: Params) -> None:
    runs = tables.records(study.ledger(params), params)
    effects, groups = tables.effects(runs, params), tables.group_effects(runs, params)
    front = tables.frontier(effects, tables.sizes(runs), "gender x age")
    scope = "gender x age"
    quantized = effects[(effects.method != "fp32") & effects.sampler.isin(["", "random"])]
    drawn = [
        figures.accuracy_bars(effects[(effects.method == "fp32") & (effects["scope"] == scope)]),
        figures.configuration_heatmap(quantized, "accuracy", scope),
        figures.changes(quantized, "demographic_parity_difference", scope, 0.02),
        figures.per_group_chart(groups[groups.bits == "W4A4"]),
        figures.mitigation(
            tables.mitigation_effects(runs, params), "demographic_parity_difference", scope
        ),
        figures.pareto(front),
        figures.noise(np.linspace(0, 0.1, 50), [30, 34]),
        figures.face_sheet(study.faces(params), rows=1, columns=4),
    ]
    assert all(isinstance(f, Figure) and f.axes for f in drawn)
    assert plt.get_fignums() == []  # nothing is left for a notebook to show a second time
    assert figures.interactive_pareto(front).name == "pareto"


def test_render_benchmark_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairq_utils.bench.render.RENDER_FACES", 64)
    found, path = bench.run("render", tmp_path)
    assert json.loads(path.read_text()) == found
    assert found["faces_per_second"] > 0
    assert (found["size"], found["faces"]) == (64, 64)
    with pytest.raises(ValueError, match="'rander' is not one of render"):
        bench.run("rander", tmp_path)
