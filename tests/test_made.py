"""What the page "How this book is made" says of the package is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from conftest import as_shipped

from fairq_utils.study import planning
from fairq_utils.study.params.file import load_params
from fairq_utils.study.study import Study

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


def test_its_examples_run_as_they_stand(tmp_path: Path) -> None:
    """A method, a sampler and a criterion in one module, named in a params file."""
    part = PAGE.partition("## Add a thing")[2].partition("\n## ")[0]
    *statements, _ = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    [named] = re.findall(r"```yaml\n(.*?)```", part, re.DOTALL)
    assert len(statements) == 3
    (tmp_path / "my_module.py").write_text("\n\n".join(statements))
    smoke = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**smoke, **yaml.safe_load(named)}))
    with as_shipped():
        study = Study(load_params(tmp_path / "mine.yaml"))
        mine = [run for run in planning.plan(study) if run.method == "small_at_eight"]
        assert len(mine) == len(study.params.training.models) * 2 * 2 * 2
        assert {str(run) for run in mine} >= {
            f"small_at_eight {bits} mse {sampler} {run.calibration_images} images, large {large}"
            for run in mine
            for bits in ("W4A8", "W4A4")
            for sampler in ("random", "one_label")
            for large in (1000, 10000)
        }
