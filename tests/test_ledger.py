"""The ledger: whole files or none, under kills, rivals, damage and a full disk."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from fairq_utils.study.ledger import Ledger, LedgerError
from fairq_utils.study.run_record import Run, RunRecord


def a_run(seed: int = 0, **changes: object) -> Run:
    run = Run(
        data={"seed": 1, "train": 10},
        architecture="resnet50",
        training={"seed": seed, "epochs": 1},
        method="ptq",
        bits="W8A8",
        ranges="minmax",
        percentile=None,
        sampler="random",
        calibration_images=8,
        calibration_seed=0,
        settings={},
        weights="def",
        code="abc",
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def a_record(seed: int = 0, images: int = 50) -> RunRecord:
    rng = np.random.default_rng(seed)
    return RunRecord(
        run=a_run(seed),
        attributes=("gender",),
        groups=("female", "male"),
        counts=rng.integers(0, 9, (2, 2, 2, 2)),
        scores=rng.standard_normal(images).astype(np.float16),
        cells=rng.integers(0, 4, images).astype(np.int16),
        validation_scores=rng.standard_normal(20).astype(np.float16),
        validation_cells=rng.integers(0, 4, 20).astype(np.int16),
        size_bytes=1234,
        seconds=1.5,
        measures={"loss": 0.25},
        provenance={"torch": "2"},
        report={"layers": {"conv": "W8A8"}},
    )


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger" if request.param == "folder" else f"memory://{uuid.uuid4()}")


def test_a_run_comes_back_as_it_was(store: Ledger) -> None:
    record = a_record()
    assert not store.contains(record.run.key)
    store.write(record)
    found = store.read(record.run.key)
    assert found.run == record.run
    for name in ("counts", "scores", "cells", "validation_scores", "validation_cells"):
        value = getattr(found, name)
        np.testing.assert_array_equal(value, getattr(record, name))
        assert value.dtype == getattr(record, name).dtype
    for name in ("groups", "attributes", "size_bytes", "seconds", "measures", "report"):
        assert getattr(found, name) == getattr(record, name)
    assert store.keys() == [record.run.key]
    assert store.frame().loc[0, "architecture"] == "resnet50"
    assert "scores" not in store.frame()


def test_everything_that_decides_a_result_is_in_the_key() -> None:
    changes: dict[str, object] = {
        "data": {"seed": 2},
        "architecture": "vit_small",
        "training": {"seed": 1},
        "method": "dynamic",
        "bits": "W4A8",
        "ranges": "percentile",
        "percentile": 99.0,
        "sampler": "group_balanced",
        "calibration_images": 9,
        "calibration_seed": 1,
        "settings": {"iterations": 5},
        "code": "abd",
    }
    keys = {a_run().key} | {a_run(**{k: v}).key for k, v in changes.items()}
    assert len(keys) == len(changes) + 1
    assert a_run(data={"train": 10, "seed": 1}).key == a_run().key


def test_tables_beside_the_runs(store: Ledger) -> None:
    assert store.read_table("probe") is None
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    store.write_table("probe", frame)
    pd.testing.assert_frame_equal(store.read_table("probe"), frame)
    assert store.keys() == []


def test_compaction_is_one_file_with_everything(tmp_path: Path) -> None:
    store = Ledger(tmp_path / "ledger")
    with pytest.raises(LedgerError, match="holds no run"):
        store.compact(tmp_path / "all.parquet")
    for seed in range(3):
        store.write(a_record(seed))
    store.compact(tmp_path / "all.parquet")
    table = pd.read_parquet(tmp_path / "all.parquet")
    assert sorted(table.key) == store.keys()
    assert len(table.scores[0]) == 50


@pytest.mark.parametrize("kept", [0, 10, 500, -4])
def test_a_truncated_file_is_set_aside_and_said(tmp_path: Path, kept: int) -> None:
    store = Ledger(tmp_path)
    record = a_record()
    store.write(record)
    path = Path(store.path(record.run.key))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.warns(UserWarning, match=r"is damaged .* computed again"):
        assert not store.contains(record.run.key)
    assert path.with_name(path.name + ".damaged").exists()
    assert store.keys() == []
    store.write(record)
    assert store.contains(record.run.key)


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    store = Ledger(tmp_path)
    with pytest.raises(LedgerError, match="has no such run"):
        store.read("0" * 20)
    store.write(a_record())
    path = Path(store.path(a_record().run.key))
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(LedgerError, match="is damaged"):
        store.read(a_record().run.key)


def test_a_full_disk_names_the_file_and_leaves_the_ledger_sound(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stops the write in the middle, as a full disk does."""
    store = Ledger(tmp_path)
    store.write(a_record(0))
    script = textwrap.dedent(
        f"""
        import resource, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_ledger import Ledger, LedgerError, a_record
        record = a_record(1, images=200_000)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            Ledger({str(tmp_path)!r}).write(record)
        except LedgerError as error:
            print(error)
        """
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"{a_record(1).run.key}.parquet: could not be written (File too large)" in out.stdout
    assert store.keys() == [a_record(0).run.key]
    assert store.contains(a_record(0).run.key)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [f"{a_record(0).run.key}.parquet"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match=r"runs.*could not be written.*execution\.ledger"):
        Ledger(tmp_path / "file").write(a_record())


def test_a_link_to_nothing_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger").symlink_to(tmp_path / "nowhere")
    for does in (Ledger.check, Ledger.prepare):
        with pytest.raises(LedgerError, match=r"execution\.ledger.*ledger is a link to nothing"):
            does(Ledger(tmp_path / "ledger"))


def _work(folder: str, seeds: list[int]) -> None:
    store = Ledger(folder)
    for seed in seeds:
        if not store.contains(a_run(seed).key):
            store.write(a_record(seed, images=20_000))


def test_two_processes_on_one_ledger(tmp_path: Path) -> None:
    seeds = list(range(30))
    context = multiprocessing.get_context("fork")
    rivals = [
        context.Process(target=_work, args=(str(tmp_path), order)) for order in (seeds, seeds[::-1])
    ]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join(60)
        assert rival.exitcode == 0
    store = Ledger(tmp_path)
    assert store.keys() == sorted(a_run(s).key for s in seeds)
    for seed in seeds:
        np.testing.assert_array_equal(
            store.read(a_run(seed).key).scores, a_record(seed, 20_000).scores
        )


def test_killed_at_random_moments_it_loses_no_finished_run(tmp_path: Path) -> None:
    """Ten times: work, SIGKILL somewhere, look. What was finished stays, and all of it is whole."""
    seeds = list(range(200))
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    store = Ledger(tmp_path)
    finished: set[str] = set()
    for _ in range(10):
        worker = context.Process(target=_work, args=(str(tmp_path), seeds))
        worker.start()
        time.sleep(rng.uniform(0.005, 0.15))
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        now = set(store.keys())
        assert finished <= now
        for key in now - finished:
            assert store.contains(key)
            assert len(store.read(key).scores) == 20_000
        finished = now
    assert 0 < len(finished) < len(seeds)
    _work(str(tmp_path), seeds)
    assert len(store.keys()) == len(seeds)


def test_a_run_of_another_version_is_said_to_be_one(tmp_path: Path) -> None:
    store = Ledger(tmp_path)
    record = a_record()
    store.write(record)
    path = Path(store.path(record.run.key))
    table = pq.read_table(path)
    old = json.loads(table["run"][0].as_py())
    del old["settings"]
    place = table.column_names.index("run")
    table = table.set_column(place, "run", [[json.dumps(old)]])
    pq.write_table(table.replace_schema_metadata({"fairq_format": "3"}), path)
    with pytest.raises(LedgerError, match=r"written by another version of .*; delete it"):
        store.read(record.run.key)


def test_no_bit_can_be_another_and_go_unnoticed(tmp_path: Path) -> None:
    """Every bit of a run's file: what is read is what was written, or it is said to be damaged."""
    store = Ledger(tmp_path)
    record = a_record(images=8)
    store.write(record)
    path = Path(store.path(record.run.key))
    content = path.read_bytes()
    rng = random.Random(0)
    noticed = 0
    for bit in rng.sample(range(8 * len(content)), 200):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = store.read(record.run.key)
        except LedgerError as error:
            noticed += 1
            assert str(path) in str(error)
            continue
        assert found.run == record.run
        arrays = ("counts", "scores", "cells", "validation_scores", "validation_cells")
        for name in arrays:
            np.testing.assert_array_equal(getattr(found, name), getattr(record, name))
        none = dict.fromkeys(arrays, 0)
        assert replace(found, **none) == replace(record, **none)
    assert noticed > 100


@pytest.mark.parametrize("at", ["in the body", "in the checksum"])
def test_damage_that_the_footer_does_not_show_is_set_aside(tmp_path: Path, at: str) -> None:
    store = Ledger(tmp_path)
    record = a_record()
    store.write(record)
    path = Path(store.path(record.run.key))
    content = bytearray(path.read_bytes())
    place = content.index(record.scores.tobytes()) if at == "in the body" else -1
    if at == "in the checksum":
        place = content.index(b"fairq_checksum") + 20
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{path}.*left out"):
        assert store.frame().empty
    assert path.exists()  # only read
    with pytest.warns(UserWarning, match=r"is damaged .*checksum.* computed again"):
        assert not store.contains(record.run.key)
    assert path.with_name(f"{path.name}.damaged").read_bytes() == bytes(content)


def test_a_run_under_another_s_name_is_none(tmp_path: Path) -> None:
    store = Ledger(tmp_path)
    for seed in (0, 1):
        store.write(a_record(seed))
    first, second = (Path(store.path(a_run(seed).key)) for seed in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.warns(UserWarning, match=f"{second}.*it holds run {a_run(0).key}"):
        assert list(store.frame().key) == [a_run(0).key]
    with pytest.raises(LedgerError, match=f"it holds run {a_run(0).key}"):
        store.read(a_run(1).key)
    for _ in range(2):  # what was set aside first stays
        with pytest.warns(UserWarning, match=f"it holds run {a_run(0).key}"):
            assert not store.contains(a_run(1).key)
        second.write_bytes(first.read_bytes())
    assert len(list(second.parent.glob(f"{second.name}*damaged"))) == 2


def test_a_ledger_from_before_there_was_a_checksum_is_read(tmp_path: Path) -> None:
    store = Ledger(tmp_path)
    record = a_record()
    store.write(record)
    path = Path(store.path(record.run.key))
    table = pq.read_table(path).replace_schema_metadata({"fairq_format": "3"})
    pq.write_table(table, path)
    assert store.contains(record.run.key)
    assert store.read(record.run.key).run == record.run
    pq.write_table(table, store.path(a_run(1).key))
    with pytest.warns(UserWarning, match=f"it holds run {record.run.key}"):
        assert not store.contains(a_run(1).key)


def _foreign(path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(path)


def _marked(path: Path) -> None:
    table = pq.read_table(path).select(["key", "run"])
    pq.write_table(table.replace_schema_metadata({"fairq_format": "3"}), path)


def _text(path: Path) -> None:
    path.write_text("key,run\n")


@pytest.mark.parametrize("damage", [_foreign, _marked, _text])
def test_files_of_others_are_named_by_every_reader(damage: Any, tmp_path: Path) -> None:
    store = Ledger(tmp_path / "ledger")
    for seed in (0, 1):
        store.write(a_record(seed))
    path = Path(store.path(a_run(1).key))
    damage(path)
    shutil.copy(path, path.with_name("notes.parquet"))
    for reads in (store.frame, lambda: store.compact(tmp_path / "all.parquet")):
        with pytest.warns(UserWarning) as said:
            reads()
        named = [str(w.message).partition(": left out")[0] for w in said]
        assert sorted(named) == sorted([str(path), str(path.with_name("notes.parquet"))])
    with pytest.raises(LedgerError, match=str(path)):
        store.read(a_run(1).key)
    assert path.with_name("notes.parquet").exists()


def test_a_damaged_table_beside_the_runs_is_set_aside(tmp_path: Path) -> None:
    store = Ledger(tmp_path)
    values = np.random.default_rng(0).random(100)
    store.write_table("probe", pd.DataFrame({"a": values}))
    path = tmp_path / "tables" / "probe.parquet"
    content = bytearray(path.read_bytes())
    content[content.index(values[50:].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="probe.parquet.*is damaged"):
        assert store.read_table("probe") is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_read_is_not_damaged(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Ledger(tmp_path)
    store.write(a_record())
    store.write_table("probe", pd.DataFrame({"a": [1]}))
    before = sorted(tmp_path.rglob("*"))

    def ill(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.fs, "cat_file", ill)
    key = a_run().key
    for reads in (
        lambda: store.contains(key),
        lambda: store.read(key),
        store.frame,
        lambda: store.compact(tmp_path / "all.parquet"),
        lambda: store.read_table("probe"),
    ):
        with pytest.raises(LedgerError, match=rf"parquet: cannot be read \({os.strerror(number)}"):
            reads()
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(store.fs, "ls", ill)
    with pytest.raises(LedgerError, match=rf"runs: cannot be read \({os.strerror(number)}"):
        store.keys()


def test_damage_in_a_ledger_that_is_only_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Ledger(tmp_path)
    store.write(a_record())
    path = Path(store.path(a_run().key))
    path.write_bytes(path.read_bytes()[:100])

    def fixed(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store.fs, "mv", fixed)
    with pytest.warns(UserWarning, match=r"is damaged .* left there \(Read-only file system\)"):
        assert not store.contains(a_run().key)


def test_a_folder_in_the_place_of_a_run_stays(tmp_path: Path) -> None:
    store = Ledger(tmp_path)
    Path(store.path(a_run().key)).mkdir(parents=True)
    with pytest.raises(LedgerError, match=r"parquet: cannot be read \(Is a directory\)"):
        store.contains(a_run().key)
    assert Path(store.path(a_run().key)).is_dir()


@pytest.mark.parametrize("name", ["a::b", "simplecache::x", "[1]*?", "100%", "a b#c"])
def test_a_path_is_no_url(name: str, tmp_path: Path) -> None:
    store = Ledger(tmp_path / name / "ledger")
    store.prepare()
    store.write(a_record())
    assert store.keys() == [a_run().key]
    assert store.read(a_run().key).run == a_run()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "ledger" / "runs" / f"{a_run().key}.parquet").is_file()


def test_the_umask_says_who_may_read_a_run(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        store = Ledger(tmp_path)
        store.write(a_record())
    finally:
        os.umask(before)
    assert Path(store.path(a_run().key)).stat().st_mode & 0o777 == 0o640
