"""A study's plan in one table: the grid, how many runs it has, and about how long they take."""

from __future__ import annotations

import pandas as pd

from fairq_utils.quantizers.methods import METHODS
from fairq_utils.study.ledger import Ledger
from fairq_utils.study.planning import with_dials
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study
from fairq_utils.study.workload import seconds_on_two_cores

HOUR = 3600.0
COLUMNS = ["method", "bits", "range", "sampler", "models", "runs", "done", "hours"]


def overview(study: Study) -> pd.DataFrame:
    """The grid as it will be run.

    Returns
    -------
    DataFrame
        A row per method and sampler, the runs of dials apart: ``method``, ``bits``, ``range``,
        ``sampler``, ``models`` (how many), ``runs``, ``done`` (in the ledger) and ``hours`` that
        the others take: by the rates of the runs that are done, or else as on two cores.
    """
    runs, store = with_dials(study), study.ledger
    done = {run for run in runs if store.contains(run.key)}
    pace = _pace(store, done)
    grouped: dict[tuple[str, str, str], list[Run]] = {}
    for run, own in runs.items():
        where = "" if own is study else "dials: "
        name = run.method if run.method == "fp32" else METHODS[run.method].name
        sampler = (run.sampler or "").partition("=")[0]
        grouped.setdefault((where + name, sampler, where), []).append(run)
    rows = []
    for (name, sampler, _), members in grouped.items():
        left = sum(seconds_on_two_cores(run) for run in members if run not in done)
        rows.append(
            {
                "method": name,
                "bits": " ".join(dict.fromkeys(run.bits for run in members if run.bits)),
                "range": " ".join(dict.fromkeys(run.ranges for run in members if run.ranges)),
                "sampler": sampler,
                "models": len({run.architecture for run in members}),
                "runs": len(members),
                "done": sum(run in done for run in members),
                "hours": pace * left / HOUR,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def text(table: pd.DataFrame) -> str:
    """The table as the terminal shows it, with its sums."""
    total = {"method": "all", **table[["runs", "done", "hours"]].sum().to_dict()}
    whole = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    words = {"hours": [_time(hours) for hours in whole.hours]}
    words |= {
        name: ["" if value != value else f"{value:.0f}" for value in whole[name].astype(float)]
        for name in ("models", "runs", "done")
    }
    return aligned(whole.assign(**words).fillna("").rename(columns={"hours": "time left"}))


def aligned(table: pd.DataFrame) -> str:
    """A table of texts in columns."""
    widths = [max(map(len, [name, *table[name]])) for name in table]
    lines = [list(table.columns), *table.to_numpy().tolist()]
    rows = ("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(row.rstrip() for row in rows)


def _time(hours: float) -> str:
    """Hours in words: minutes below two hours."""
    return f"{hours:.1f} h" if hours >= 2 else f"{60 * hours:.1f} min"


def _pace(store: Ledger, done: set[Run]) -> float:
    """Seconds that runs took over those that were estimated; 1 where none is done."""
    took = estimated = 0.0
    for run in done:
        took += store.read(run.key).seconds
        estimated += seconds_on_two_cores(run)
    return took / estimated if estimated else 1.0
