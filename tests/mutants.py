"""Which checks notice a change that makes the project say something wrong: ``make mutants``.

Every entry of ``mutations.toml`` is made by itself in a copy of the tree. Its unit tests must fail,
and so must a checked cell of every chapter that is named with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutations.toml")
FAILED = 1  # what pytest returns where tests ran and some failed
PARTS = ("book/results", "fairq_utils", "notebooks", "params", "tests", "pyproject.toml")
LEDGER = "build/smoke"  # what it holds is not computed again


@dataclass(frozen=True)
class Mutation:
    """One change of one file.

    Attributes
    ----------
    name : what goes wrong
    file : path in the tree
    old, new : text that occurs once in the file, and what takes its place
    tests : files in ``tests/`` of which one at least must fail
    chapters : numbers of chapters in each of which a checked cell must fail
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    chapters: tuple[str, ...]


def mutations() -> list[Mutation]:
    """All entries of the list."""
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["mutation"]
    return [
        Mutation(**{**e, "tests": tuple(e["tests"]), "chapters": tuple(e["chapters"])})
        for e in entries
    ]


def mutated(mutation: Mutation, text: str) -> str:
    """Text of a file after the change.

    Raises
    ------
    ValueError
        What is to be changed does not stand in it exactly once.
    """
    times = text.count(mutation.old)
    if times != 1:
        raise ValueError(
            f"{mutation.name}: {mutation.old!r} occurs {times} times in {mutation.file}"
        )
    return text.replace(mutation.old, mutation.new)


def main(wanted: list[str]) -> int:
    """Try all mutations, or those whose names contain a word; the number that went unnoticed."""
    chosen = [m for m in mutations() if not wanted or any(word in m.name for word in wanted)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for part in (*PARTS, LEDGER):
            _copy(ROOT / part, tree / part)
        for mutation in chosen:
            path = tree / mutation.file
            before = path.read_text(encoding="utf-8")
            path.write_text(mutated(mutation, before), encoding="utf-8")
            try:
                missed += not _noticed(mutation, tree)
            finally:
                path.write_text(before, encoding="utf-8")
    print(f"{len(chosen) - missed} of {len(chosen)} mutations are noticed wherever they should be")
    return min(missed, 1)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.exists():
        shutil.copy(source, target)


def _noticed(mutation: Mutation, tree: Path) -> bool:
    """Run the checks of one mutation and print what they made of it."""
    began = time.perf_counter()
    tests = [f"tests/{name}" for name in mutation.tests]
    units = _pytest(["-x", "-p", "no:xdist", *tests], tree) == FAILED
    seconds = time.perf_counter() - began
    said = [f"unit tests {'fail' if units else 'PASS'} ({seconds:.0f} s)"]
    found = [units]
    for number in mutation.chapters:
        (chapter,) = tree.glob(f"notebooks/{number}_*.ipynb")
        fails = _pytest(["--nbval-lax", str(chapter)], tree) == FAILED
        said.append(f"chapter {number} {'fails' if fails else 'PASSES'}")
        found.append(fails)
    print(f"{mutation.name}: {', '.join(said)}", flush=True)
    return all(found)


def _pytest(arguments: list[str], tree: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
