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

from fairq_utils import dial_effects, effects
from fairq_utils.dials import worlds
from fairq_utils.faults import Fault
from fairq_utils.ledger import RunRecord
from fairq_utils.params import Params
from fairq_utils.planning import plan, with_dials
from fairq_utils.resources import ledger

FOLDER = Path(__file__).resolve().parents[1] / "book" / "results"
KEPT = (
    "accuracy",
    "worst_group_accuracy",
    "demographic_parity_difference",
    "equalized_odds_difference",
)
WORDS = [*effects.CONFIGURATION, "scope", "statistic", "group", "dial", "line"]


class RecordError(Fault):
    """A recorded study cannot be read or written."""


@dataclass(frozen=True)
class Recorded:
    """A study as it was recorded.

    Attributes
    ----------
    configurations : rows of :func:`fairq_utils.effects.by_configuration` (all attributes crossed),
        with ``mebibytes``, ``ratio``, ``quantize_seconds``
    groups : rows of :func:`fairq_utils.effects.by_group`
    about : params, provenance, and how many runs of the plan there were
    """

    configurations: pd.DataFrame
    groups: pd.DataFrame
    about: dict[str, Any]


def record(params: Params, folder: Path = FOLDER) -> list[Path]:
    """Write a study's tables from its ledger, before mitigation; it need not be complete.

    Returns
    -------
    list of paths
    """
    wanted = plan(params, ("baseline", "quantization"))
    store = ledger(params)
    runs = [store.read(run.key) for run in wanted if store.contains(run.key)]
    if not any(run.run.method != "fp32" for run in runs):
        raise RecordError(
            f"{params.execution.ledger}: holds no quantized run of {params.name}; run the study "
            "first"
        )
    frame = effects.by_configuration(runs, params)
    crossed = list(effects.scopes(params))[-1]
    frame = frame[(frame["scope"] == crossed) & frame.statistic.isin(KEPT)]
    frame = frame.merge(effects.sizes(runs), on=effects.CONFIGURATION, how="left")
    frame = frame.merge(_costs(runs), on=effects.CONFIGURATION, how="left")
    groups = effects.by_group(runs, params)
    minding = list(with_dials(params, ("mitigation",)))
    about = {
        "name": params.name,
        "planned": len(wanted),
        "recorded": len(runs),
        "mitigation_planned": len(minding),
        "mitigation_recorded": sum(store.contains(run.key) for run in minding),
        "params": params.model_dump(mode="json", exclude={"execution", "tracking"}),
        "provenance": runs[-1].provenance,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = _paths(params.name, folder)
    frame.round(6).to_csv(paths[0], index=False)
    groups.round(6).to_csv(paths[1], index=False)
    paths[2].write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return [*paths, *_record_mitigation(params, folder)]


def _record_mitigation(params: Params, folder: Path) -> list[Path]:
    """What minds the groups, against plain quantization; what seeds alone do; and the dials."""
    store = ledger(params)
    tables = {}
    if params.mitigation.methods:
        runs = effects.records(store, params)
        crossed = list(effects.scopes(params))[-1]
        for name, frame in (
            ("methods", effects.against_plain(runs, params)),
            ("seeds", effects.between_seeds(runs, params)),
        ):
            kept = (frame["scope"] == crossed) & frame.statistic.isin(KEPT)
            tables[name] = frame[kept]
    if params.dials.models:
        tables["dials"] = dial_effects.harms(worlds(params), store, params)
    paths = []
    for name, frame in tables.items():
        paths.append(folder / f"{params.name}_{name}.csv")
        frame.round(6).to_csv(paths[-1], index=False)
    return paths


def _costs(runs: list[RunRecord]) -> pd.DataFrame:
    rows = [
        {
            **effects.configuration(r.run),
            "quantize_seconds": r.measures.get("quantize_seconds", float("nan")),
        }
        for r in runs
    ]
    return pd.DataFrame(rows).groupby(effects.CONFIGURATION, sort=False).mean().reset_index()


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
