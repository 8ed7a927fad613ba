"""What the page "How this book is made" says of the package is so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fairq_utils"
PAGE = (ROOT / "book" / "made.md").read_text()
INSIDE = ("data", "mitigation", "quantizers")  # whose modules the page names too
CARRIED = "__init__"


def order() -> list[str]:
    """Modules and subpackages, from the top of the table down."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def imported(path: Path) -> Iterator[str]:
    """Modules and subpackages of this package that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fairq_utils"):
            inner = str(node.module).split(".")[1:]
            yield from inner[:1] or [alias.name for alias in node.names]


def test_every_module_has_its_place() -> None:
    there = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert set(order()) == there - {CARRIED}
    assert len(order()) == len(set(order()))
    for folder in INSIDE:
        lacking = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {CARRIED}
        assert {name for name in lacking if f"`{name}`" not in PAGE} == set(), folder


def test_a_module_imports_only_from_those_above_it() -> None:
    place = {name: number for number, name in enumerate(order())}
    below = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == CARRIED:
            continue
        found = (name for name in imported(path) if name in place and name != own)
        below += [f"{own} imports {name}" for name in found if place[name] > place[own]]
    assert below == []
