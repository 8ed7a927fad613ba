"""A study on a Dask cluster of real processes: the same ledger, also where workers are killed."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
import yaml
from conftest import as_shipped
from dask import delayed
from distributed import Client, LocalCluster
from safetensors.torch import save, save_file
from typer.testing import CliRunner

from fairq_utils import bench
from fairq_utils.bench import scaling as bench_cluster
from fairq_utils.cli import app
from fairq_utils.data import loading as pictures
from fairq_utils.data.population import Population
from fairq_utils.data.whole_files import NotRead
from fairq_utils.errors import BadInput, Fault
from fairq_utils.study import cluster, execution, planning, schedule
from fairq_utils.study import weights as checkpoints
from fairq_utils.study import worker as remote
from fairq_utils.study.cluster import ClusterError
from fairq_utils.study.ledger import Ledger
from fairq_utils.study.params.cluster import Cluster
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import plan
from fairq_utils.study.progress import Progress
from fairq_utils.study.run_models import trained
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study

STUDY: dict[str, Any] = {
    "name": "tiny",
    "data": {"size": 32, "train": 64, "calibration": 48, "validation": 10, "test": 64},
    "training": {
        "models": {"squeezenet1_1": {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16}}
    },
    "grid": [
        {"method": "ptq", "bits": ["W8A8", "W4A4"], "sampler": ["random", "group_balanced"]},
        {"method": "dynamic", "bits": "W8A8"},
        {"method": ["equalized", "adaround"], "bits": "W4A8"},
    ],
    "quantization": {"calibration_images": 16, "iterations": 2},
    "analysis": {"replicates": 100},
}
RUNS = 8  # FP32, two bits x two samplers, dynamic, two other methods


@dataclass
class Place:
    """Where the module's study has run in one process."""

    folder: Path
    params: Params
    store: Ledger

    def file(self, ledger: str | Path, **sections: object) -> Path:
        """A params file of the same study with another ledger and the same pictures."""
        path = self.folder / f"{len(list(self.folder.glob('*.yaml')))}.yaml"
        where = {"ledger": str(ledger), "cache": str(self.folder / "cache"), "device": "cpu"}
        path.write_text(yaml.safe_dump({**STUDY, "execution": where, **sections}))
        return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cluster")
    made = Place(folder, Params.model_validate(STUDY), Ledger(folder / "one"))
    made.params = load_params(made.file(folder / "one"), {"execution.threads": 1})
    threads = torch.get_num_threads()
    execution.execute(Study(made.params), stream=io.StringIO())
    torch.set_num_threads(threads)
    assert len(made.store.keys()) == RUNS == len(plan(Study(made.params)))
    yield made


@pytest.fixture(scope="module")
def client(place: Place) -> Iterator[Client]:
    """Of two worker processes without a GPU; who starts nothing else connects to it."""
    local = place.params.model_copy(update={"cluster": Cluster(kind="local", workers=2)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        with cluster.client(local) as found:
            yield found


@pytest.fixture
def address(client: Client) -> str:
    return str(client.scheduler_info(n_workers=0)["address"])


def on(params: Params, address: str, **changes: object) -> Study:
    """The same study on a scheduler that runs."""
    elsewhere = {"cluster": Cluster(kind="address", address=address), **changes}
    return Study(params.model_copy(update=elsewhere))


def assert_same_runs(found: Ledger, whole: Ledger) -> None:
    assert found.keys() == whole.keys()
    for key in whole.keys():  # noqa: SIM118
        mine, theirs = found.read(key), whole.read(key)
        np.testing.assert_array_equal(mine.scores, theirs.scores)
        np.testing.assert_array_equal(mine.counts, theirs.counts)
        assert mine.report == theirs.report
        assert mine.provenance["threads"] == "1"


def test_workers_know_what_a_plugin_adds(place: Place, address: str, tmp_path: Path) -> None:
    source = """
from fairq_utils.calibration import sampler


@sampler("my_first", label="the first")
def _first(pool):
    return pool.rng.permutation(pool.count)
"""
    (tmp_path / "my_draws.py").write_text(source)
    grid = [{"method": "ptq", "bits": "W8A8", "sampler": "my_first"}]
    path = place.file(tmp_path / "ledger", plugins=["my_draws"], grid=grid)
    path = path.rename(tmp_path / path.name)
    with as_shipped():
        found = execution.execute(on(load_params(path), address), stream=io.StringIO())
        wanted = plan(Study(load_params(path)))
        assert {run.sampler for run in wanted} == {None, "random", "my_first"}
        assert set(found.keys()) == {run.key for run in wanted}


def test_two_workers_leave_the_ledger_of_one_process(
    place: Place, address: str, tmp_path: Path
) -> None:
    path = place.file(tmp_path / "ledger")
    command = ["run", "--params", str(path), "--phase", "all", "--cluster", address]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    assert_same_runs(Ledger(tmp_path / "ledger"), place.store)
    # Each run is said once, with the time left, and the training while it goes on.
    for number in range(1, RUNS + 1):
        assert answer.stderr.count(f"[{number}/{RUNS}] ") == 1
    assert "baseline · SqueezeNet 1.1: step 4 of 4, loss " in answer.stderr
    assert answer.stderr.count(" left") > RUNS
    assert {p.suffix for p in (tmp_path / "ledger" / "runs").iterdir()} == {".parquet"}
    again = CliRunner().invoke(app, command)
    assert f"all {RUNS} runs are in the ledger" in again.stderr


def test_workers_leave_interrupts_to_who_started_them(client: Client) -> None:
    assert set(client.run(ignores_interrupts).values()) == {True}


def ignores_interrupts() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_worker_killed_mid_run_loses_nothing(
    place: Place, client: Client, address: str, tmp_path: Path
) -> None:
    params = load_params(place.file(tmp_path / "ledger"))
    store, killed = Study(params).ledger, dict[str, Any]()

    def kill() -> None:
        pids = client.run(os.getpid)
        while len(store.keys()) < 2:
            time.sleep(0.005)
        busy: dict[str, Any] = {}
        while not busy:
            busy = {name: tasks for name, tasks in client.processing().items() if tasks}
        killed["pid"] = pids[next(iter(busy))]
        os.kill(killed["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not killed.get("interrupted"):
            killed["interrupted"] = client.run_on_scheduler(interrupted)
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    said = io.StringIO()
    execution.execute(on(params, address), stream=said)
    killer.join()
    assert killed["interrupted"]  # a task was in hand when its worker died
    assert_same_runs(store, place.store)
    assert said.getvalue().count("] ") == RUNS
    client.wait_for_workers(2, timeout=60)
    assert killed["pid"] not in client.run(os.getpid).values()


def interrupted(dask_scheduler: Any) -> list[str]:
    return [key for key, task in dask_scheduler.tasks.items() if task.suspicious]


def test_weights_and_runs_in_a_store_that_is_no_folder(
    place: Place, address: str, tmp_path: Path
) -> None:
    """Two caches are two machines; fsspec's ``dir`` is as little a local folder as s3 is."""
    url = f"dir://study::file://{tmp_path}/store"
    first = load_params(place.file(url))
    assert not Study(first).ledger.local
    execution.execute(on(first, address), ("baseline",), stream=io.StringIO())
    kept = list((tmp_path / "store" / "study" / "checkpoints").iterdir())
    assert [p.suffix for p in kept] == [".safetensors"]
    # Another machine has the pictures, and nothing of the training.
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "population").symlink_to(place.folder / "cache" / "population")
    where = first.execution.model_copy(update={"cache": str(tmp_path / "cache")})
    execution.execute(on(first, address, execution=where), stream=io.StringIO())
    assert_same_runs(Study(first).ledger, place.store)
    fetched = list((tmp_path / "cache" / "checkpoints").glob("*/[!.]*"))
    assert [p.read_bytes() for p in fetched] == [kept[0].read_bytes()]


def test_the_first_weights_that_were_kept_stay(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    here, there = Ledger(url, tmp_path / "here"), Ledger(url, tmp_path / "there")
    assert not checkpoints.fetch(there, "a").exists()
    for store, content in ((here, b"first"), (there, b"second")):
        store.checkpoint_path("a").parent.mkdir(parents=True)
        store.checkpoint_path("a").write_bytes(content)
        checkpoints.keep(store, "a")
    assert there.checkpoint_path("a").read_bytes() == b"first"
    other = Ledger(f"{url}-other", tmp_path / "here")
    assert not checkpoints.fetch(other, "a").exists()  # the cache keeps ledgers apart
    folder = Ledger(tmp_path / "folder", tmp_path / "here")
    checkpoints.keep(folder, "a")
    assert not (tmp_path / "folder").exists()


def weights(value: float) -> bytes:
    return save({"w": torch.full((9,), value)})


def stores(tmp_path: Path, kind: str) -> tuple[Ledger, Ledger]:
    """One store that is no folder, seen from two machines, of which the first put weights there."""
    urls = {"memory": f"memory://{tmp_path.name}", "dir": f"dir://study::file://{tmp_path}/store"}
    first, second = (Ledger(urls[kind], tmp_path / name) for name in ("first", "second"))
    put(first, weights(1.0))
    return first, second


def put(store: Ledger, content: bytes, key: str = "a") -> None:
    """A machine has trained a model."""
    store.checkpoint_path(key).parent.mkdir(parents=True, exist_ok=True)
    store.checkpoint_path(key).write_bytes(content)
    checkpoints.keep(store, key)


def broken(content: bytes) -> bytes:
    """As long as before, with a header that cannot be read."""
    return b"\xff" * 16 + content[16:]


@pytest.mark.parametrize("kind", ["memory", "dir"])
def test_a_damaged_copy_is_fetched_again_and_leaves_the_stores_alone(
    kind: str, tmp_path: Path
) -> None:
    first, second = stores(tmp_path, kind)
    path, good = first.checkpoint_path("a"), weights(1.0)
    path.write_bytes(broken(good))
    with pytest.warns(
        UserWarning, match="copy of a checkpoint is damaged .* fetched again"
    ) as said:
        assert checkpoints.sound(first, "a")
    assert len(said) == 1
    assert path.read_bytes() == good
    assert first.fs.cat_file(first.kept_checkpoint("a")) == good
    assert checkpoints.fetch(second, "a").read_bytes() == good


@pytest.mark.parametrize("kind", ["memory", "dir"])
def test_weights_that_are_damaged_in_the_store_are_set_aside_and_all_take_the_next(
    kind: str, tmp_path: Path
) -> None:
    first, second = stores(tmp_path, kind)
    assert checkpoints.fetch(second, "a").read_bytes() == weights(1.0)
    kept, damaged = first.kept_checkpoint("a"), broken(weights(1.0))
    first.fs.pipe_file(kept, damaged)
    assert checkpoints.fetch(first, "a").read_bytes() == damaged  # as long, and another
    with pytest.warns(UserWarning) as said:
        assert not checkpoints.sound(first, "a")
    assert "is set aside as a.safetensors.damaged" in str(said[-1].message)
    assert not first.fs.exists(kept)
    assert first.fs.cat_file(f"{kept}.damaged") == damaged
    assert not checkpoints.fetch(first, "a").exists()
    put(first, weights(2.0))
    # The second machine has a good copy of weights that are not those of the study any more.
    assert checkpoints.fetch(second, "a").read_bytes() == weights(2.0)
    assert checkpoints.sound(second, "a")


def test_who_finds_damage_late_leaves_the_weights_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stores(tmp_path, "memory")
    kept = first.kept_checkpoint("a")
    first.fs.pipe_file(kept, broken(weights(1.0)))
    look, looks = checkpoints._damage, list[Path]()

    def slowly(path: Path, key: str) -> str:
        found = look(path, key)
        looks.append(path)
        if len(looks) == 2:  # at the copy that was fetched again
            first.fs.pipe_file(kept, weights(2.0))
        return found

    checkpoints.fetch(first, "a")
    monkeypatch.setattr(checkpoints, "_damage", slowly)
    with pytest.warns(UserWarning) as said:
        assert not checkpoints.sound(first, "a")
    assert [" is fetched again " in str(w.message) for w in said] == [True, False]
    assert checkpoints.fetch(first, "a").read_bytes() == weights(2.0)
    assert checkpoints.fetch(second, "a").read_bytes() == weights(2.0)


def test_a_machine_whose_copy_is_damaged_evaluates_the_stores(place: Place, tmp_path: Path) -> None:
    where = {"execution.ledger": f"memory://{tmp_path.name}", "execution.cache": str(tmp_path)}
    params = load_params(place.file(tmp_path / "ledger"), where)
    (base,) = plan(Study(params), ("baseline",))
    good = place.store.checkpoint_path(base.weights).read_bytes()
    put(Study(params).ledger, good, base.weights)
    path = Study(params).ledger.checkpoint_path(base.weights)
    path.write_bytes(broken(good))
    with pytest.warns(UserWarning, match="is fetched again"):
        trained(Study(params), base)
    assert path.read_bytes() == good


@pytest.mark.parametrize("kind", ["memory", "dir", "folder"])
def test_weights_that_cannot_be_read_stay(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Ledger(tmp_path / "ledger") if kind == "folder" else stores(tmp_path, kind)[0]
    put(store, weights(1.0))
    path = store.checkpoint_path("a")

    def ill(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", ill)
        with pytest.raises(NotRead, match=r"a\.safetensors: cannot be read .*Permission denied"):
            checkpoints.sound(store, "a")
    assert path.read_bytes() == weights(1.0)
    assert not path.with_name("a.safetensors.damaged").exists()


def test_weights_that_are_not_in_the_store_are_set_aside_here(tmp_path: Path) -> None:
    store = Ledger(f"memory://{tmp_path.name}", tmp_path / "here")
    path = store.checkpoint_path("a")
    path.parent.mkdir(parents=True)
    path.write_bytes(broken(weights(1.0)))
    with pytest.warns(UserWarning, match="is damaged .* set aside as a.safetensors.damaged"):
        assert not checkpoints.sound(store, "a")
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors.damaged"]


def test_of_two_that_write_at_once_both_go_on_with_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path.name}"
    first, second = Ledger(url, tmp_path / "first"), Ledger(url, tmp_path / "second")
    move, raced = first.fs.mv, list[str]()

    def mv(source: str, target: str, **options: Any) -> None:
        move(source, target, **options)
        if not raced:
            raced.append(target)
            first.fs.pipe_file(target, weights(2.0))  # somebody else's move comes after

    monkeypatch.setattr(first.fs, "mv", mv)
    put(first, weights(1.0))
    assert raced
    assert first.checkpoint_path("a").read_bytes() == weights(2.0)
    assert checkpoints.fetch(second, "a").read_bytes() == weights(2.0)


def test_a_local_cluster_from_the_params_file(place: Place, tmp_path: Path) -> None:
    section = {"kind": "local", "workers": 1, "threads": 2, "gpus": 1, "memory": "4GB"}
    path = place.file(f"file://{tmp_path}/ledger", cluster=section)
    command = ["run", "--params", str(path), "--phase", "baseline"]
    if not torch.cuda.is_available():
        answer = CliRunner().invoke(app, [*command, "--set", "execution.device=auto"])
        assert answer.exit_code != 0
        assert re.search(
            r"cluster\.gpus: the worker \S+ has none that PyTorch finds", answer.output
        )
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    store = Ledger(tmp_path / "ledger")
    (key,) = store.keys()
    assert store.read(key).provenance["threads"] == "2"  # each worker has as many as it was given
    assert store.checkpoint_path(store.read(key).run.weights).exists()


def test_what_a_task_cannot_do_is_the_same_sentence(
    place: Place, client: Client, address: str, tmp_path: Path
) -> None:
    params = load_params(place.file(tmp_path / "ledger"), {"execution.device": "cuda"})
    with pytest.raises(Fault) as remote_fault:
        execution.execute(on(params, address), stream=io.StringIO())
    assert str(remote_fault.value) == (
        "execution.device: cuda was asked for but PyTorch finds no GPU; use auto or cpu"
    )
    assert not Study(params).ledger.keys()
    # A damaged file in the ledger is found by the task that reads it.
    params = load_params(place.file(tmp_path / "damaged"))
    execution.execute(on(params, address), ("baseline",), stream=io.StringIO())
    base = plan(Study(params), ("baseline",))[0]
    weights = Study(params).ledger.checkpoint_path(base.weights)
    other = torch.nn.Linear(2, 2).state_dict()
    save_file(other, weights)
    sentences = []
    for own in (Study(params), on(params, address)):
        with pytest.raises(ValueError, match="not a checkpoint of this architecture") as fault:
            execution.execute(own, stream=io.StringIO())
        sentences.append(str(fault.value))
    assert sentences[0] == sentences[1]


def test_a_worker_that_shares_no_ledger_or_code_is_refused(
    place: Place, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = place.params.execution.model_copy(update={"ledger": "mine"})
    own = on(place.params, address, execution=where)
    with pytest.raises(Fault, match=r"execution.ledger: the worker tcp://\S+ does not see mine; "):
        execution.execute(own, stream=io.StringIO())
    where = where.model_copy(update={"ledger": str(tmp_path / "shared")})
    monkeypatch.setattr(planning, "code_version", lambda *_, alone: "other")
    own = on(place.params, address, execution=where)
    with pytest.raises(Fault, match="has another version of fairq_utils; install the same one"):
        execution.execute(own, stream=io.StringIO())
    assert not list((tmp_path / "shared" / "runs").iterdir())


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("tcp://127.0.0.1:9", r"cluster: no scheduler answers at tcp://127.0.0.1:9 \(.*\); start"),
        ("tcp://", r"cluster: no scheduler answers at tcp:// \(missing port"),
        ("nowhere.json", r"nowhere.json is neither an address such as tcp://host:8786 nor"),
    ],
)
def test_a_bad_address_is_one_sentence(
    place: Place, tmp_path: Path, where: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECTING", 0.5)
    path = place.file(tmp_path / "ledger")
    answer = CliRunner().invoke(app, ["run", "--params", str(path), "--cluster", where])
    assert answer.exit_code == 1
    assert "Traceback" not in answer.output
    (line,) = answer.stderr.splitlines()
    assert re.search(sentence, line)


@contextmanager
def threads(workers: int, nthreads: int = 1) -> Iterator[str]:
    """A scheduler and workers in threads of this process, which start at once."""
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=nthreads,
        processes=False,
        protocol="tcp://",
        dashboard_address=None,
        scheduler_kwargs=cluster.QUIET,
    ) as made:
        yield made.scheduler_address


def test_workers_that_a_study_cannot_use(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "JOINING", 0.2)
    params = load_params(place.file(tmp_path / "ledger"))
    with (
        threads(0) as where,
        pytest.raises(ClusterError, match="has no worker; start some by `dask worker tcp://"),
    ):
        execution.execute(on(params, where), stream=io.StringIO())
    with (
        threads(1, nthreads=3) as where,
        pytest.raises(ClusterError, match=r"would run 3 tasks at once.* start workers with --nth"),
    ):
        execution.execute(on(params, where), stream=io.StringIO())
    with threads(1) as where:
        wants = Cluster(kind="address", address=where, gpus=1)
        with pytest.raises(ClusterError, match=r"cluster.gpus: no worker of tcp://\S+ offers a"):
            execution.execute(
                Study(params.model_copy(update={"cluster": wants})), stream=io.StringIO()
            )


def test_a_task_that_kills_its_workers_is_given_up() -> None:
    local = Params.model_validate({**STUDY, "cluster": {"kind": "local", "workers": 1}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "DEATHS", 0)
        with (
            cluster.client(local) as found,
            pytest.raises(ClusterError, match=r"1 workers died of the same task \(deadly\)"),
        ):
            schedule._wait(found, [delayed(os._exit)(1, dask_key_name="deadly")])


def test_a_scheduler_that_goes_away_is_said(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    command += ["--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as scheduler:
        try:
            while not file.exists():
                assert scheduler.poll() is None
                time.sleep(0.05)
            with cluster._connected(str(file)) as found:
                killer = threading.Timer(0.3, scheduler.kill)
                killer.start()
                with pytest.raises(ClusterError, match="the scheduler went away before the study"):
                    schedule._wait(found, [delayed(time.sleep)(3)])
        finally:
            scheduler.kill()


def test_ledgers_that_workers_cannot_reach_are_refused(place: Place, tmp_path: Path) -> None:
    one = on(load_params(place.file("memory://study")), "tcp://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"execution.ledger: memory://study lives in one process"):
        execution.execute(one, stream=io.StringIO())
    for key in ("cache", "results"):
        path = place.file(tmp_path / "ledger", execution={key: "s3://bucket/it"})
        with pytest.raises(BadInput, match=f"execution.{key}: s3://bucket/it is a URL"):
            execution.execute(Study(load_params(path)), stream=io.StringIO())


def test_tasks_depend_on_pictures_and_models(place: Place) -> None:
    runs = plan(Study(place.params))
    base, parts = runs[0], [(place.params, [run]) for run in runs[1:]]
    terms, relay = remote.Terms(1, "mark"), remote.Relay("topic")
    tasks = schedule.graph({base: place.params}, parts, lambda _: 2.0, terms, relay, 1)
    graph = tasks[-1].__dask_graph__()
    below = {key: set(graph.dependencies[key]) for key in graph.layers}
    (drawn,) = [key for key in below if key.startswith("pictures-")]
    (trained,) = [key for key in below if key.startswith("baseline-")]
    assert below[drawn] == set()
    assert below[trained] == {drawn}
    assert below[tasks[-1].key] == {drawn, trained}
    notes = {key: layer.annotations for key, layer in graph.layers.items()}
    assert all(note["resources"] == {"GPU": 1} for note in notes.values())
    priority = {key: note["priority"] for key, note in notes.items()}
    assert priority[drawn] > priority[trained] > priority[tasks[-1].key]
    assert len(dask.base.collections_to_expr(tasks).__dask_graph__()) == 2 + len(parts)


def test_pieces_are_of_nearly_equal_cost_and_hold_every_run_once(place: Place) -> None:
    runs = plan(Study(place.params))[1:]
    cost: Callable[[Run], float] = {run: 1.0 + i for i, run in enumerate(runs)}.__getitem__
    total = sum(map(cost, runs))
    for limit in (0.5, total / 3, total, 9 * total):
        made = schedule.pieces(runs, cost, limit)
        assert sorted(run.key for piece in made for run in piece) == sorted(r.key for r in runs)
        assert all(piece == sorted(piece, key=runs.index) for piece in made)
    assert [len(schedule.pieces(runs, cost, limit)) for limit in (0.5, total)] == [len(runs), 1]
    costs = [sum(map(cost, piece)) for piece in schedule.pieces(runs, cost, total / 3)]
    assert len(costs) == 3
    assert max(costs) - min(costs) <= max(map(cost, runs))


def test_two_who_render_the_same_people_keep_one_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one finishes between our look at the folder and our renaming."""
    rename = Path.rename

    def late(scratch: Path, folder: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        pictures.load_population(sizes={"test": 2}, size=16, cache=tmp_path)
        return rename(scratch, folder)

    monkeypatch.setattr(Path, "rename", late)
    mine = pictures.load_population(
        sizes={"test": 2}, size=16, population=Population(), cache=tmp_path
    )
    (kept,) = (tmp_path / "population").iterdir()
    assert np.array_equal(np.load(kept / "images.npy"), mine.images.numpy())


def test_a_machine_without_slurm_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_package", lambda name, settings: None)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    section = {"kind": "slurm", "memory": "8GB"}
    params = Params.model_validate({**STUDY, "cluster": section})
    with pytest.raises(ClusterError, match="sbatch, which is not on this"), cluster.client(params):
        pass


def test_a_slurm_job_has_what_the_section_says(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = pytest.importorskip("dask_jobqueue")
    asked: list[int] = []
    monkeypatch.setattr(jobs.SLURMCluster, "scale", lambda _, count: asked.append(count))
    monkeypatch.setattr(cluster.shutil, "which", lambda name: f"/usr/bin/{name}")
    section = Cluster(
        kind="slurm",
        workers=3,
        threads=4,
        gpus=1,
        memory="8GiB",
        queue="short",
        account="faces",
        walltime="02:30:00",
        directives=("--exclusive",),
        prologue=("module load python",),
        python="/opt/python",
    )
    made = cluster._slurm(section)
    try:
        script = made.job_script()
    finally:
        made.close()
    assert asked[0] == 3  # closing asks for none
    lines = script.splitlines()
    for line in (
        "#SBATCH -p short",
        "#SBATCH -A faces",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=8G",
        "#SBATCH -t 02:30:00",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --exclusive",
        "export OMP_NUM_THREADS=4",
        "export OMP_WAIT_POLICY=PASSIVE",
        "module load python",
    ):
        assert line in lines
    (command,) = [line for line in lines if line.startswith("/opt/python -m distributed")]
    assert "--nthreads 1 " in command
    assert command.endswith("--resources GPU=1")


def test_a_kubernetes_worker_has_what_the_section_says() -> None:
    def make(**given: Any) -> dict[str, Any]:
        worker = {"args": given.pop("worker_command"), "resources": None}
        return {"given": given, "spec": {"worker": {"spec": {"containers": [worker]}}}}

    section = Cluster(kind="kubernetes", image="faces:1", memory="4GB", gpus=1, threads=2)
    made = cluster.kubernetes_resource(section, make)
    worker = made["spec"]["worker"]["spec"]["containers"][0]
    assert made["given"]["image"] == "faces:1"
    assert made["given"]["n_workers"] == 2
    assert made["given"]["env"]["OMP_NUM_THREADS"] == "2"
    assert worker["args"][:4] == ["dask", "worker", "--nthreads", "1"]
    assert worker["args"][-2:] == ["--resources", "GPU=1"]
    assert worker["resources"]["limits"] == {
        "memory": "4000000000",
        "cpu": "2",
        "nvidia.com/gpu": "1",
    }


@pytest.mark.parametrize(
    ("section", "package"),
    [
        ({"kind": "slurm", "memory": "8GB"}, "dask_jobqueue"),
        ({"kind": "kubernetes", "memory": "8GB", "image": "x"}, "dask_kubernetes"),
        ({"kind": "ssh", "hosts": ["a"]}, "asyncssh"),
    ],
)
def test_a_package_that_is_missing_is_named(
    section: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(cluster.importlib, "import_module", missing)
    params = Params.model_validate({**STUDY, "cluster": section})
    with (
        pytest.raises(ClusterError, match=rf"needs the package {package}, which .*'\.\[cluster\]'"),
        cluster.client(params),
    ):
        pass


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"kind": "cloud"}, "cluster.kind: 'cloud' will not do"),
        ({"kind": "local", "worker": 2}, "cluster.worker: unknown key; did you mean 'workers'?"),
        ({"kind": "slurm"}, "cluster: memory: a cluster of kind slurm needs it; add it"),
        ({"kind": "ssh"}, "cluster: hosts: a cluster of kind ssh needs it; add it"),
        ({"kind": "address"}, "cluster: address: a cluster of kind address needs it; add it"),
        ({"kind": "local", "queue": "x"}, "cluster: queue: a cluster of kind local does not read"),
        ({"kind": "local", "memory": "much"}, "cluster.memory: 'much' is not auto or a size"),
        ({"kind": "local", "gpus": 2}, "cluster.gpus: 2 will not do"),
        ({"kind": "slurm", "memory": "8GB", "walltime": "soon"}, "cluster.walltime: 'soon'"),
    ],
)
def test_a_section_that_cannot_be_used(
    tmp_path: Path, section: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "cluster": section}))
    with pytest.raises(BadInput) as fault:
        load_params(path)
    assert sentence in str(fault.value)


def test_the_section_of_the_readme_is_one() -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(cluster:.*?)```", readme, flags=re.DOTALL)
    assert Cluster.model_validate(yaml.safe_load(text)["cluster"]).kind == "slurm"


def test_a_scheduler_file_is_found_from_the_params_file(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    section = {"kind": "address", "address": "scheduler.json", "threads": 3, "gpus": 1}
    path.write_text(yaml.safe_dump({**STUDY, "cluster": section}))
    found = load_params(path).cluster
    assert found.address == str(tmp_path / "scheduler.json")
    assert found.elsewhere("tcp://a:1") == found.model_copy(update={"address": "tcp://a:1"})


def test_the_benchmark_compares_two_workers_with_one(
    place: Place, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    @contextmanager
    def running(params: Params, workers: int) -> Iterator[str]:
        used.append(workers)
        yield address

    monkeypatch.setattr(bench_cluster, "running", running)
    found, path = bench.run("cluster", tmp_path, Study(place.params))
    assert used == [1, 2, 2, 1]
    assert found["runs"] == 4
    assert found["differing_runs"] == 0
    assert found["ratio"] == pytest.approx(
        found["two_workers_seconds"] / found["one_worker_seconds"], rel=0.02
    )
    assert (path.parent / "cluster.csv").exists()
    with pytest.raises(Fault, match="run the study first"):
        other = place.params.execution.model_copy(update={"ledger": str(tmp_path / "none")})
        bench.run("cluster", tmp_path, Study(place.params.model_copy(update={"execution": other})))


def test_words_from_workers_are_said_once(place: Place) -> None:
    runs, stream = plan(Study(place.params)), io.StringIO()
    ear = schedule.Ear(Progress(runs, stream, len(runs)))
    ear.hear((0.0, {"run": "of another study"}))
    ear.hear((0.0, {"run": runs[0].key, "step": 100, "steps": 200, "loss": 0.5}))  # too soon
    assert stream.getvalue() == ""
    ear.hear((0.0, {"run": runs[0].key, "step": 200, "steps": 200, "loss": 0.5}))
    for _ in range(2):
        ear.hear((0.0, {"run": runs[0].key}))
    ear.hear((0.0, {"run": runs[0].key, "step": 200, "steps": 200, "loss": 0.5}))
    assert [line[:12].strip() for line in stream.getvalue().splitlines()] == [
        "baseline ·",
        "[1/8] base",
    ]
    ear.say_the_rest()
    ear.hear((0.0, {"run": runs[1].key}))
    assert stream.getvalue().count("] ") == RUNS


def faults() -> int:
    """Pages that twenty times 8 MiB ask of the system, on a worker."""
    remote._keep_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(2 * 2**20).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_stays_with_a_worker(client: Client) -> None:
    pages = 20 * 8 * 2**20 // os.sysconf("SC_PAGESIZE")
    assert all(asked < pages / 4 for asked in client.run(faults).values())
