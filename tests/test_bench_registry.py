"""Benchmarks by name: one statement adds one, and what it finds is printed and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from fairq_utils import bench
from fairq_utils.bench.outcome import Missing, nested, words
from fairq_utils.bench.registry import BENCHMARKS, Subject
from fairq_utils.cli import app
from fairq_utils.errors import BadInput


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> str:
    """A benchmark of this file's."""
    monkeypatch.setattr(BENCHMARKS, "_added", {})  # it is gone after the test

    @bench.benchmark("counted", title="files in a folder", needs="folder")
    def count(subject: Subject) -> bench.Outcome:
        names = [path.name for path in (subject.root or Path()).iterdir()]
        return bench.Outcome({"files": len(names)}, tables={"names": pd.DataFrame({"name": names})})

    return "counted"


def test_a_benchmark_from_elsewhere_is_one_statement(counted: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.jpg").touch()
    figures, path = bench.run(counted, tmp_path / "bench", root=root)
    assert figures == json.loads(path.read_text()) == {"files": 1}
    assert path.with_suffix(".txt").read_text().split() == ["files", "1"]
    assert (path.parent / "names.csv").read_text() == "name\na.jpg\n"
    answer = CliRunner().invoke(app, ["bench"])
    assert answer.exit_code == 0, answer.output
    lines = [line.split(maxsplit=1) for line in answer.stdout.splitlines()]
    assert [name for name, _ in lines] == list(BENCHMARKS)
    assert lines[-1] == [counted, "files in a folder (of a folder)"]


def test_a_wrong_name_or_subject_is_refused(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["bench", "latncy"])
    assert answer.exit_code == 2
    assert answer.stderr == "bench: 'latncy' is unknown; did you mean 'latency'?\n"
    with pytest.raises(BadInput, match="bench: latency measures the models of a study; give its"):
        bench.run("latency", tmp_path)
    with pytest.raises(BadInput, match="bench: stats takes no folder; leave --root out"):
        bench.run("stats", tmp_path, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_has_one_line_per_reason() -> None:
    def raised(error: Exception, *place: str) -> Missing:
        return Missing.because(place, error)

    missing = [
        raised(bench.NotOffered("no grid"), "ResNet-50", "W4A4", "NNCF"),
        raised(bench.NotOffered("no grid"), "ViT", "W4A4", "NNCF"),
        raised(KeyError("of\na toolkit" + "!" * 300), "ViT", "W4A4", "Brevitas"),
    ]
    assert [one.kind for one in missing] == ["not offered", "not offered", "failed"]
    table = pd.DataFrame({"model": ["ViT"], "NNCF": [None]})
    lines = words("Percent", table, {"rows": [1, 2]}, missing=missing).splitlines()
    assert lines[:2] == ["Percent", ""]
    assert lines[2].split() == ["model", "NNCF"]
    assert "2 rows, see the file" in lines[5]
    assert lines[7] == "- NNCF, ResNet-50 W4A4, ViT W4A4: not offered: no grid"
    assert lines[8].startswith("- Brevitas, ViT W4A4: failed: KeyError: 'of\\na toolkit!!!")
    assert len(lines[8]) < 260 and len(lines) == 9
    figures = nested([(("ViT", "W4A4", "NNCF"), None), (("ViT", "W8A8", "NNCF"), 0.5)])
    assert figures == {"ViT": {"W4A4": {"NNCF": None}, "W8A8": {"NNCF": 0.5}}}
