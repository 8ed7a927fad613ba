"""Results that take hours: a study's tables kept in ``book/results/``, with what they came from.

A recorded study is two CSV files (one row per configuration and statistic, one per configuration
and group) and a JSON file with its params and provenance. Chapters read them; computing them again
is ``fairq run`` and ``fairq record`` with the same params file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fairq_utils.errors import Fault
from fairq_utils.study import statistics

FOLDER = Path(__file__).resolve().parents[2] / "book" / "results"
WORDS = [*statistics.CONFIGURATION, "scope", "statistic", "group", "dial", "line"]


class RecordError(Fault):
    """A recorded study cannot be read or written."""


@dataclass(frozen=True)
class Recorded:
    """A study as it was recorded.

    Attributes
    ----------
    configurations : rows of :func:`fairq_utils.report.effects.by_configuration` (all
        attributes crossed), with ``mebibytes``, ``ratio``, ``quantize_seconds``
    groups : rows of :func:`fairq_utils.report.effects.by_group`
    about : params, provenance, and how many runs of the plan there were
    """

    configurations: pd.DataFrame
    groups: pd.DataFrame
    about: dict[str, Any]


def read(name: str, folder: Path = FOLDER) -> Recorded:
    """A recorded study.

    Raises
    ------
    RecordError
        It is not there; names the command that records it.
    """
    paths = _paths(name, folder)
    frame, groups = (_rows(path, name) for path in paths[:2])
    return Recorded(frame, groups, json.loads(paths[2].read_text(encoding="utf-8")))


def _rows(path: Path, name: str) -> pd.DataFrame:
    """One table of a recorded study; what is not in :data:`WORDS` is a number."""
    if not path.exists():
        raise RecordError(
            f"{path}: this study is not recorded; run `fairq run --params params/{name}.yaml`, "
            f"then `fairq record --params params/{name}.yaml`"
        )
    found = pd.read_csv(path, keep_default_na=False)
    for column in found.columns.difference(WORDS):
        found[column] = pd.to_numeric(found[column])
    if "sampler" in found and "setting" not in found:  # recorded when a study had one for all
        found.insert(found.columns.get_loc("sampler") + 1, "setting", "")
    return found


def read_benchmark(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Figures of a benchmark as they were recorded: the JSON that ``fairq bench`` writes.

    Raises
    ------
    RecordError
        It is not there; names the command that makes it.
    """
    path = folder / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(
            f"{path}: this benchmark is not recorded; run `make bench-{name}` and copy "
            f"build/bench/{name}.json there"
        ) from None
    return found


def read_rows(name: str, folder: Path = FOLDER) -> pd.DataFrame:
    """Rows of a benchmark as they were recorded: the CSV that ``fairq bench`` writes.

    Raises
    ------
    RecordError
        It is not there; names the command that makes it.
    """
    path = folder / f"{name}.csv"
    if not path.exists():
        raise RecordError(
            f"{path}: this benchmark is not recorded; run `make bench-{name}` and copy "
            f"build/bench/{name}.csv there"
        )
    return pd.read_csv(path)


def read_part(name: str, part: str, folder: Path = FOLDER) -> pd.DataFrame:
    """A further table of a recorded study: ``methods``, ``seeds`` or ``dials``.

    Raises
    ------
    RecordError
        It is not there; names the command that records it.
    """
    return _rows(folder / f"{name}_{part}.csv", name)


def _paths(name: str, folder: Path) -> list[Path]:
    return [folder / f"{name}.csv", folder / f"{name}_groups.csv", folder / f"{name}.json"]
