"""Runs shown in TensorBoard and MLflow are those of the ledger, and cannot stop a study."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from fairq_utils import metrics
from fairq_utils.errors import Fault
from fairq_utils.study import planning, runs, tracking
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.study import Study

GROUPS = tuple(f"{g}|{a}" for g in ("female", "male") for a in ("old", "young"))


def study(folder: Path, **sinks: str) -> Params:
    """A study of one model."""
    content = {
        "name": "shown",
        "training": {"models": {"squeezenet1_1": {"epochs": 2, "learning_rate": 0.001}}},
        "grid": [{"method": "ptq", "bits": "W8A8"}],
        "execution": {"device": "cpu"},
        "tracking": sinks,
    }
    path = folder / "shown.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_params(path)


def record(params: Params, method: str = "ptq", seed: int = 0) -> RunRecord:
    """A run with made-up answers."""
    run = next(run for run in planning.plan(Study(params)) if run.method == method)
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 30, (4, 2, 2, 2))
    images = int(counts.sum())
    return RunRecord(
        run=run,
        attributes=("gender", "age"),
        groups=GROUPS,
        counts=counts,
        scores=rng.standard_normal(images).astype(np.float16),
        cells=np.zeros(images, np.int16),
        validation_scores=np.empty(0, np.float16),
        validation_cells=np.empty(0, np.int16),
        size_bytes=12345,
        seconds=1.5,
        measures={"loss_1": 0.75, "loss_2": 0.5, "odd": float("nan")},
    )


def test_scalars_are_those_of_the_counts(tmp_path: Path) -> None:
    params = study(tmp_path)
    shown = record(params)
    found = tracking.scalars(shown, params)
    table = shown.counts
    answers = table.sum(axis=2)
    right = answers[:, 0, 0].sum() + answers[:, 1, 1].sum()
    assert found["accuracy"] == pytest.approx(right / table.sum())
    flips = table[:, :, 0, 1].sum() + table[:, :, 1, 0].sum()
    assert found["flips"] == pytest.approx(flips / table.sum())
    rates = answers[:, :, 1].sum(axis=1)
    sizes = answers.sum(axis=(1, 2))
    women, men = rates[:2].sum() / sizes[:2].sum(), rates[2:].sum() / sizes[2:].sum()
    gap = found["gender/demographic_parity_difference"]
    assert gap == pytest.approx(abs(women - men))
    crossed = metrics.FAIRNESS["equalized_odds_difference"](answers)
    assert found["gender x age/equalized_odds_difference"] == pytest.approx(float(crossed))
    assert found["size_bytes"] == 12345
    assert found["loss_2"] == 0.5
    assert "odd" not in found  # undefined


def test_settings_tell_runs_apart(tmp_path: Path) -> None:
    planned = planning.plan(Study(study(tmp_path)))
    every = [tracking.settings(run) for run in planned]
    assert every[0]["architecture"] == "squeezenet1_1"
    assert every[0]["training.learning_rate"] == "0.001"
    assert all(isinstance(v, str) and len(v) <= 6000 for one in every for v in one.values())
    assert len({tracking.title(run) for run in planned}) == len(planned)


def test_tensorboard_reads_back_what_the_ledger_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    params = study(tmp_path, tensorboard="board")
    shown = record(params, "fp32")
    report = tracking.reporting(params, shown.run, None)
    assert report is not None
    for step in (100, 200):
        report(step, 200, 60 / step)
    runs._finish(Study(params), shown, None)
    folder = tmp_path / "board" / "shown" / tracking.title(shown.run)
    events = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (100, pytest.approx(0.6)),
        (200, pytest.approx(0.3)),
    ]
    kept = Study(params).ledger.read(shown.run.key)
    expected = tracking.scalars(kept, params)
    assert set(events.Tags()["scalars"]) == {"loss", *expected}
    for name, value in expected.items():
        assert events.Scalars(name)[0].value == pytest.approx(value), name
    hparams = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"squeezenet1_1" in hparams
    assert shown.run.key.encode() in hparams


class Store:
    """As much of MLflow's client as is called, kept in memory."""

    def __init__(self, tracking_uri: str) -> None:
        self.uri = tracking_uri
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return SimpleNamespace(experiment_id=found) if found else None

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = str(len(self.experiments) + 1)
        return self.experiments[name]

    def search_runs(self, experiments: list[str], where: str) -> list[Any]:
        key = where.split("'")[1]
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=run_id))
            for run_id, run in self.runs.items()
            if run["tags"]["fairq_run"] == key and run["experiment"] in experiments
        ]

    def create_run(self, experiment: str, tags: dict[str, str]) -> Any:
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {"experiment": experiment, "tags": tags, "metrics": [], "params": []}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_metric(self, run_id: str, name: str, value: float, step: int) -> None:
        self.runs[run_id]["metrics"].append((name, value, step))

    def log_batch(self, run_id: str, metrics: list[Any], params: list[Any]) -> None:
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id]["params"] += params

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id]["finished"] = True


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in MLflow's place, where that is not installed beside the other packages."""
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    entities.Metric = lambda name, value, time, step: (name, value, step)
    entities.Param = lambda name, value: (name, value)
    module.entities, module.MlflowClient = entities, Store
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    tracking._tracker.cache_clear()


@pytest.mark.usefixtures("mlflow")
def test_mlflow_is_told_what_the_ledger_holds(tmp_path: Path) -> None:
    params = study(tmp_path, mlflow="https://mlflow.example")
    shown = record(params, "fp32")
    first = tracking.MLflow("https://mlflow.example", "shown")
    tracking.tracker(params).sinks["tracking.mlflow"] = first
    report = tracking.reporting(params, shown.run, None)
    assert report is not None
    report(100, 200, 0.6)
    # The study is stopped here; the next process knows the server, and not the run's number.
    again = tracking.MLflow("https://mlflow.example", "shown")
    again.client = first.client
    tracking.tracker(params).sinks["tracking.mlflow"] = again
    runs._finish(Study(params), shown, None)
    assert first.client.uri == "https://mlflow.example"
    (told,) = first.client.runs.values()
    assert told["finished"]
    assert told["metrics"][0] == ("loss", 0.6, 100)
    expected = tracking.scalars(Study(params).ledger.read(shown.run.key), params)
    assert {name: value for name, value, _ in told["metrics"][1:]} == expected
    assert dict(told["params"]) == tracking.settings(shown.run)


@pytest.mark.usefixtures("mlflow")
def test_of_workers_that_create_one_experiment_all_go_on(tmp_path: Path) -> None:
    params = study(tmp_path, mlflow="https://mlflow.example")
    shown = record(params, "fp32")
    sink = tracking.MLflow("https://mlflow.example", "shown")
    client, create = sink.client, sink.client.create_experiment

    def late(name: str) -> str:
        create(name)  # by another worker
        raise ValueError(f"RESOURCE_ALREADY_EXISTS: {name}")

    client.create_experiment = late
    sink.step(shown.run, 100, 0.6)
    (told,) = client.runs.values()
    assert told["experiment"] == client.experiments["shown"]

    def refused(name: str) -> str:
        raise PermissionError(f"{name} may not be created")

    other = tracking.MLflow("https://mlflow.example", "other")
    other.client.create_experiment = refused
    with pytest.raises(PermissionError, match="other may not be created"):
        other.step(shown.run, 100, 0.6)


def test_mlflow_itself_keeps_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny has no place beside constraints.txt")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the only store of mlflow-skinny alone
    params = study(tmp_path, mlflow="store")
    shown = record(params, "fp32")
    report = tracking.reporting(params, shown.run, None)
    assert report is not None
    report(100, 200, 0.6)
    runs._finish(Study(params), shown, None)
    client = tracking.MLflow(str(tmp_path / "store"), "shown").client
    experiment = client.get_experiment_by_name("shown").experiment_id
    (told,) = client.search_runs([experiment])
    assert told.info.status == "FINISHED"
    assert told.data.metrics == {"loss": 0.6, **tracking.scalars(shown, params)}
    assert told.data.params == tracking.settings(shown.run)


@pytest.mark.usefixtures("mlflow")
def test_a_store_that_mlflow_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(tracking_uri: str) -> None:
        raise ValueError(f"no store is at {tracking_uri}")

    monkeypatch.setattr(sys.modules["mlflow"], "MlflowClient", refused)
    with pytest.raises(Fault, match=r"tracking\.mlflow: nowhere:// cannot be opened \(no store"):
        tracking.tracker(study(tmp_path, mlflow="nowhere://"))


class Gone:
    """A server that answers no more."""

    def __init__(self) -> None:
        self.calls = 0

    def step(self, *_: Any) -> None:
        self.calls += 1
        raise ConnectionError("the server is gone")

    show = step


def test_a_sink_that_fails_loses_no_run_and_says_so_once(tmp_path: Path) -> None:
    params = study(tmp_path, tensorboard="board")
    shown, gone = record(params), Gone()
    seen: list[str] = []
    kept = SimpleNamespace(step=lambda *_: seen.append("step"), show=lambda *_: seen.append("show"))
    tracker = tracking.tracker(params)
    tracker.sinks.update({"tracking.mlflow": gone, "tracking.tensorboard": kept})
    report = tracking.reporting(params, shown.run, None)
    assert report is not None
    with pytest.warns(UserWarning, match=r"tracking\.mlflow: .* gone\); the study goes on") as told:
        report(100, 200, 0.6)
        report(200, 200, 0.5)
        runs._finish(Study(params), shown, None)
    assert len(told) == gone.calls == 1
    assert seen == ["step", "step", "show"]
    assert Study(params).ledger.contains(shown.run.key)


def test_a_full_disk_under_tensorboard_loses_no_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    params = study(tmp_path, tensorboard="board")
    [sink] = tracking.tracker(params).sinks.values()
    (tmp_path / "file").write_text("no folder")
    sink.folder = tmp_path / "file" / "board"  # what a disk does in the middle of a study
    with pytest.warns(UserWarning, match=r"tracking\.tensorboard: nothing more is shown there"):
        runs._finish(Study(params), record(params), None)
    assert len(Study(params).ledger.keys()) == 1


def test_a_tensorboard_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    (tmp_path / "file").write_text("no folder")
    params = study(tmp_path, tensorboard="file/board")
    with pytest.raises(Fault, match=r"tracking\.tensorboard: .* cannot be written .*name another"):
        tracking.tracker(params)


@pytest.mark.parametrize("extra", ["tensorboard", "mlflow"])
def test_a_missing_library_is_a_sentence(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = {"tensorboard": ("tensorboard", "torch.utils.tensorboard"), "mlflow": ("mlflow",)}
    for name in hidden[extra]:
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, extra, None)
    tracking._tracker.cache_clear()
    with pytest.raises(Fault, match=rf"tracking\.{extra}: .*pip install 'fairq_utils\[{extra}\]'"):
        tracking.tracker(study(tmp_path, **{extra: "place"}))


def test_without_the_section_nothing_is_imported_or_called(tmp_path: Path) -> None:
    params = study(tmp_path)
    assert tracking.tracker(params).sinks == {}
    shown = record(params)
    assert tracking.reporting(params, shown.run, None) is None
    runs._finish(Study(params), shown, None)
    assert [p.name for p in (tmp_path / "build").iterdir()] == ["ledger"]
