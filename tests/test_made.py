"""What the page "How this book is made" says of the package is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fairq_utils"
PAGE = (ROOT / "book" / "made.md").read_text(encoding="utf-8")


def rows() -> list[set[str]]:
    """Rooms of each row of the page's table."""
    rooms = PAGE.partition("## The package")[2].partition("\n## ")[0]
    found = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", rooms, re.MULTILINE)
    return [set(re.findall(r"`(\w+)`", row)) for row in found]


def there() -> tuple[set[str], set[str]]:
    """Packages and top-level modules."""
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return packages, {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def test_the_page_has_the_rooms_and_layers_that_are_checked() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [set(row.split(" | ")) for row in lint["contracts"][0]["layers"]]
    assert rows() == layers


def test_a_small_house() -> None:
    packages, modules = there()
    assert {room for row in rows() for room in row} == packages | modules
    assert len(packages) <= 10 and len(modules) <= 10
