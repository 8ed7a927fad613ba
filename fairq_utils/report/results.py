"""Results as files: a study's tables as CSV, JSON and LaTeX, and all runs of ledgers as one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairq_utils.data.whole_files import written_whole
from fairq_utils.metrics.counts import Counts
from fairq_utils.report.tables import intervals, named
from fairq_utils.study.ledger import Ledger, LedgerError
from fairq_utils.study.statistics import CONFIGURATION, STATISTICS
from fairq_utils.study.study import Study

WAY_OUT = "free some space or name another folder in execution.results"


def write_results(frame: pd.DataFrame, size: pd.DataFrame, study: Study) -> list[Path]:
    """Write ``baseline_results.csv``, ``quantization_results.json`` and the LaTeX tables.

    They are named as the published study names them, in a folder that is named by the study and a
    hash of its params, which ``study.json`` beside them holds: studies that differ in one value do
    not overwrite each other. The column ``study`` says the same in each row.

    Parameters
    ----------
    frame, size : of :func:`fairq_utils.report.effects.by_configuration` and ``sizes``

    Raises
    ------
    NotWritten
        A file cannot be written.
    """
    whole = frame.merge(size, on=CONFIGURATION, how="left")
    whole.insert(0, "study", study.title)
    base = whole[whole.method == "fp32"]
    quantized = whole[whole.method != "fp32"]
    csv = base.drop(columns=["change", "low", "high", "flips", "floor"]).to_csv(index=False)
    texts = {
        "baseline_results.csv": csv,
        "quantization_results.json": quantized.to_json(
            orient="records", indent=1, double_precision=6
        ),
        "baseline_table.tex": _latex(base),
        "quantization_table.tex": _latex(quantized),
        "study.json": json.dumps(study.asked, indent=1) + "\n",
    }
    for name, text in texts.items():
        with written_whole(study.results / name, way_out=WAY_OUT) as place:
            place.write_text(text, encoding="utf-8")
    return [study.results / name for name in texts]


def by_run(ledgers: Iterable[Ledger]) -> pd.DataFrame:
    """Every run of some ledgers, of any number of studies, with its parameters as columns.

    Returns
    -------
    DataFrame
        A row per run and ``scope``: each attribute alone, two crossed, and all. ``ledger``, the
        columns of :meth:`fairq_utils.study.ledger.Ledger.frame` without the counts, ``images``,
        ``flips`` (the share of predictions that differ from FP32), and each statistic of
        :data:`fairq_utils.study.statistics.STATISTICS` with its ``_change`` from FP32, as
        fractions.

    Raises
    ------
    LedgerError
        A ledger holds no run, or cannot be read.
    """
    parts = []
    for ledger in ledgers:
        found = ledger.frame()
        if found.empty:
            raise LedgerError(
                f"{ledger.url}: this ledger holds no run; name the folder or URL that "
                "execution.ledger says, or run its study first"
            )
        parts.append(found.assign(ledger=ledger.url))
    frame = pd.concat(parts, ignore_index=True)
    measured = [
        {"row": row, "scope": " x ".join(scope), **_measured(counts.by(*scope))}
        for row, counts in enumerate(map(_counts, frame.to_dict("records")))
        for scope in _scopes(counts.attributes)
    ]
    table = pd.DataFrame(measured).set_index("row")
    kept = frame.drop(columns=["counts", "attributes", "groups"])
    return kept.join(table).set_index(["ledger", "key", "scope"]).reset_index()


def _counts(row: dict[str, Any]) -> Counts:
    groups = tuple(row["groups"])
    table = np.array(row["counts"], np.int64).reshape(len(groups), 2, 2, 2)
    return Counts(table, tuple(row["attributes"]), groups)


def _scopes(attributes: tuple[str, ...]) -> list[tuple[str, ...]]:
    sizes = dict.fromkeys(min(n, len(attributes)) for n in (1, 2, len(attributes)))
    return [scope for size in sizes for scope in combinations(attributes, size)]


def _measured(counts: Counts) -> dict[str, float]:
    images = int(counts.sizes.sum())
    found = {"images": images, "flips": float(counts.flips.sum() / images)}
    for name, statistic in STATISTICS.items():
        found[name] = float(statistic(counts.compared))
        found[f"{name}_change"] = found[name] - float(statistic(counts.reference))
    return found


def _latex(frame: pd.DataFrame) -> str:
    """A LaTeX table (booktabs): one row per configuration, one column per statistic, in points."""
    scope = frame["scope"].iloc[-1]
    rows = frame[frame["scope"] == scope]
    wide = (
        named(rows)
        .assign(cell=intervals(rows))
        .pivot_table(
            index=CONFIGURATION, columns="statistic", values="cell", aggfunc="first", sort=False
        )
    )
    wide = wide.reset_index().rename(columns=str.capitalize)
    text = wide.to_latex(
        index=False, escape=True, column_format="l" * 5 + "r" * (wide.shape[1] - 5)
    )
    return (
        f"% Points, with {scope} gaps; disparate impact is a ratio; brackets are intervals.\n"
        "% Needs \\usepackage{booktabs}.\n" + text
    )
