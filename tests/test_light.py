"""A light install: what users call needs no extra, and is imported when it is asked for."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import textwrap
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROOMS = sorted(path.parent.name for path in ROOT.glob("fairq_utils/*/__init__.py"))

# An interpreter that finds none of the packages named in its first argument.
START = """
import sys
from importlib.machinery import PathFinder

ABSENT = set(sys.argv.pop(1).split())


class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            return None
        return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Light
"""


def brought(names: list[str]) -> set[str]:
    """Distributions that come with these."""
    found: set[str] = set()
    left = [(Requirement(name), "") for name in names]
    while left:
        one, extra = left.pop()
        name = canonicalize_name(one.name)
        if (one.marker and not one.marker.evaluate({"extra": extra})) or name in found:
            continue
        found.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # an optional part that this platform has none of
            continue
        left += [(Requirement(other), part) for other in needed for part in one.extras or {""}]
    return found


@cache
def absent(*further: str) -> str:
    """Packages that are here and that neither ``pip install fairq_utils`` nor `further` brings."""
    there = brought([*PROJECT["dependencies"], "pip", *further])
    names = [
        name
        for name, homes in packages_distributions().items()
        if not there & {canonicalize_name(home) for home in homes} and name != "fairq_utils"
    ]
    return " ".join(names)


def run_lightly(code: str, *arguments: str, without: str | None = None) -> str:
    """Standard output of code that runs where no extra is installed."""
    missing = absent() if without is None else without
    done = subprocess.run(
        [sys.executable, "-c", START + code, missing, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imported_by(code: str) -> set[str]:
    """Packages, and modules of ours, that code imports."""
    said = run_lightly(code + "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")
    return set(json.loads(said.splitlines()[-1]))


def test_extras_are_absent() -> None:
    missing = absent().split()
    assert {"warp", "timm", "dask", "onnx", "papermill", "torchvision", "pyarrow"} <= set(missing)
    assert not {"torch", "numpy", "fairret", "typer", "matplotlib"} & set(missing)


@pytest.mark.parametrize(
    "code",
    [
        "from fairq_utils.metrics import demographic_parity_difference",
        "import fairq_utils.mitigation, fairq_utils.quantizers.methods, fairq_utils.data",
        "from fairq_utils.quantizers import METHODS; assert 'adaround' in list(METHODS)",
        "from fairq_utils.calibration import SAMPLERS; assert 'core_set' in list(SAMPLERS)",
        "from fairq_utils.stats import differs",
    ],
)
def test_names_need_no_pytorch(code: str) -> None:
    assert not {"torch", "sklearn", "statsmodels", "matplotlib"} & imported_by(code)


def test_help_imports_next_to_nothing() -> None:
    code = """
import contextlib
from typer.testing import CliRunner
from fairq_utils.cli import app
for words in ["--help"], ["run", "--help"], ["data", "get", "--help"], ["export", "--help"]:
    assert CliRunner().invoke(app, words).exit_code == 0
"""
    assert not {"torch", "numpy", "pandas", "scipy"} & imported_by(code)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["test_readme.py", "test_published_examples.txt"])
def test_published_calls_run_without_extras(file: str) -> None:
    code = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ("-q", "-x", "-p", "no:cacheprovider", f"tests/{file}")
    run_lightly(code, *options, without=absent("pytest"))


def modules(room: Any) -> set[str]:
    return {module.name for module in pkgutil.iter_modules(getattr(room, "__path__", []))}


@pytest.mark.parametrize("name", ["", "calibration", "deploy.engines", *ROOMS])
def test_a_room_passes_on_what_it_lists(name: str) -> None:
    room = importlib.import_module(f"fairq_utils.{name}".rstrip("."))
    assert len(set(room.__all__)) == len(room.__all__)
    assert {key for key in room.__all__ if getattr(room, key, None) is None} == set()
    assert set(room.__all__) <= set(dir(room))
    assert not set(room.__all__) & modules(room)  # a module would take the name's place
    with pytest.raises(AttributeError, match="of_yesterday"):
        room.of_yesterday  # noqa: B018


COMMANDS = {
    "run": "study",
    "plan": "study",
    "list methods": "study",
    "check --params params/smoke.yaml": "study",
    "data check celeba --root faces": "study",
    "book": "book",
    "record": "book",
    "notebooks": "book",
    "bench render": "study,engines",
    "export resnet50 --engine onnxruntime --out folder": "study,engines",
}


def test_a_command_names_the_extra_that_it_lacks() -> None:
    code = """
import json
from typer.testing import CliRunner
from fairq_utils.cli import app
found = [CliRunner().invoke(app, words.split()) for words in sys.argv[1:]]
print(json.dumps([[one.exit_code, one.output] for one in found]))
"""
    for words, (status, said) in zip(
        COMMANDS, json.loads(run_lightly(code, *COMMANDS)), strict=True
    ):
        extra = COMMANDS[words]
        assert status == 1 and said.startswith(f"`fairq {words.split()[0]}"), said
        assert said.endswith(f": pip install 'fairq_utils[{extra}]'\n") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("fairq_utils.data.load", "study"),
        ("fairq_utils.study.load_params", "study"),
        ("fairq_utils.deploy.export_run", "study,engines"),
        ("fairq_utils.report.build_book", "book"),
    ],
)
def test_a_room_names_the_extra_that_it_lacks(name: str, extra: str) -> None:
    room, _, key = name.rpartition(".")
    code = f"""
from fairq_utils.errors import Fault
try:
    from {room} import {key}
except Fault as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    said = run_lightly(code)
    assert said.startswith(f"{name} needs the ") and f"'fairq_utils[{extra}]'" in said


COMMAND = "import sys; sys.argv[:1] = ['fairq']; from fairq_utils.cli import app; sys.exit(app())"


@pytest.mark.parametrize("loading", ["typer", "fairq_utils.data_cli", "yaml", "torch"])
def test_an_interruption_while_it_loads_is_one_line(loading: str) -> None:
    """SIGINT as soon as a module begins to load."""
    script = textwrap.dedent(
        f"""
        import os, signal, sys

        # A shell lets what it runs in the background ignore interruptions.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        class Interrupts:
            def find_spec(self, name, path=None, target=None):
                if name == {loading!r}:
                    sys.meta_path.remove(self)
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Interrupts())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script + COMMAND, "plan", "--params", "params/smoke.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr.startswith("fairq: stopped")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("list", "methods"), ("plan", "--params", "params/smoke.yaml")])
def test_a_reader_that_goes_away_is_no_error(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "x"}, "x")])
def test_threads_wait_asleep_unless_somebody_says_otherwise(
    given: dict[str, str], found: str
) -> None:
    """It is in the environment before a command imports PyTorch, which reads it then."""
    asked = (
        "import os, sys, fairq_utils.cli as cli\n"
        "@cli.app.command('ask')\n"
        "def ask(): print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "cli.app(['ask'])"
    )
    without = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    said = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, env=without | given
    )
    assert said.stdout.split() == [found, "False"], said.stderr


def test_a_name_that_a_terminal_cannot_show_stops_nothing(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path / "faces") + b"\xff"
    asked = [sys.executable, "-m", "fairq_utils.cli", "data", "check", "utkface", "--root", place]
    for encoding in ("ascii", "utf-8:strict", "latin-1"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        said = subprocess.run(asked, capture_output=True, env=environment)
        assert said.returncode == 2
        assert said.stderr.count(b"\n") == 1 and b"there is no such folder" in said.stderr
