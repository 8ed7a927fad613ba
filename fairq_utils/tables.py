"""Tables of the study: every figure with its interval, computed from the ledger's counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils import metrics, stats
from fairq_utils.ledger import Ledger, Run, RunRecord
from fairq_utils.models import DISPLAY_NAMES
from fairq_utils.params import Params
from fairq_utils.study import plan

Statistic = Callable[[NDArray[Any]], NDArray[Any]]

CONFIGURATION = ["architecture", "method", "bits", "ranges", "sampler"]

STATISTICS: dict[str, Statistic] = {
    "accuracy": lambda table: metrics.overall(table, "accuracy"),
    "worst_group_accuracy": metrics.FAIRNESS["worst_group_accuracy"],
    "demographic_parity_difference": metrics.FAIRNESS["demographic_parity_difference"],
    "equalized_odds_difference": metrics.FAIRNESS["equalized_odds_difference"],
    "equal_opportunity_difference": metrics.FAIRNESS["equal_opportunity_difference"],
    "predictive_equality_difference": metrics.FAIRNESS["predictive_equality_difference"],
    "disparate_impact": metrics.FAIRNESS["disparate_impact"],
}

LABELS = {
    "accuracy": "Accuracy",
    "worst_group_accuracy": "Worst-group accuracy",
    "demographic_parity_difference": "Demographic parity gap",
    "equalized_odds_difference": "Equalized odds gap",
    "equal_opportunity_difference": "Equal opportunity gap",
    "predictive_equality_difference": "Predictive equality gap",
    "disparate_impact": "Disparate impact",
}


def records(store: Ledger, params: Params) -> list[RunRecord]:
    """The study's runs that are in the ledger, in the study's order."""
    return [store.read(run.key) for run in plan(params) if store.contains(run.key)]


def counts(record: RunRecord, attributes: Iterable[str]) -> metrics.Counts:
    """Counts of a run, summed over the attributes that are not named."""
    return metrics.Counts(record.counts, tuple(record.attributes), tuple(record.groups)).by(
        *attributes
    )


def configuration(run: Run) -> dict[str, Any]:
    """What tells two configurations apart, ready to be shown; seeds are replicates."""
    return {
        "architecture": run.architecture,
        "method": run.method,
        "bits": run.bits or "FP32",
        "ranges": run.ranges or "",
        "sampler": run.sampler or "",
    }


def scopes(params: Params) -> dict[str, tuple[str, ...]]:
    """The partitions that gaps are taken over: each attribute alone, and all of them crossed."""
    single = {name: (name,) for name in params.analysis.attributes}
    crossed = " x ".join(params.analysis.attributes)
    return single | {crossed: tuple(params.analysis.attributes)}


def effects(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """Every statistic of every configuration beside its FP32 model, with paired intervals.

    Returns
    -------
    DataFrame
        Columns of :data:`CONFIGURATION`, ``scope`` (whose gaps), ``statistic``, ``seeds``, and
        from :func:`fairq_utils.stats.paired_bootstrap` ``reference``, ``compared``, ``change``,
        ``low``, ``high`` and the intervals of the first two. Fractions, not points.
    """
    grouped: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in runs:
        grouped.setdefault(tuple(configuration(record.run).values()), []).append(record)
    parts = []
    for key, members in grouped.items():
        for scope, attributes in scopes(params).items():
            tables = [counts(record, attributes).table for record in members]
            table = stats.paired_bootstrap(
                tables,
                STATISTICS,
                replicates=params.analysis.replicates,
                confidence=params.analysis.confidence,
                seed=params.data.seed,
            )
            parts.append(
                table.assign(
                    **dict(zip(CONFIGURATION, key, strict=True)), scope=scope, seeds=len(members)
                )
            )
    frame = pd.concat(parts, ignore_index=True)
    first = [*CONFIGURATION, "scope", "statistic", "seeds"]
    return frame[[*first, *(c for c in frame if c not in first)]]


def group_effects(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """Accuracy of every intersectional group, its change under quantization, and who flips.

    Returns
    -------
    DataFrame
        One row per configuration and group: ``images``, ``reference``, ``compared``, ``change``,
        ``low``, ``high`` (fractions), ``lost`` (right before, wrong now), ``won`` (the reverse)
        and the mid-p value of McNemar's test of the two.
    """
    grouped: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in runs:
        grouped.setdefault(tuple(configuration(record.run).values()), []).append(record)
    rows = []
    for key, members in grouped.items():
        collapsed = [counts(record, params.analysis.attributes) for record in members]
        names = collapsed[0].groups
        per_group = stats.paired_bootstrap(
            [c.table for c in collapsed],
            {name: _group_accuracy(i) for i, name in enumerate(names)},
            replicates=params.analysis.replicates,
            confidence=params.analysis.confidence,
            seed=params.data.seed,
        ).set_index("statistic")
        total = np.sum([c.table for c in collapsed], axis=0)
        for i, name in enumerate(names):
            lost = int(total[i, 1, 1, 0] + total[i, 0, 0, 1])
            won = int(total[i, 1, 0, 1] + total[i, 0, 1, 0])
            columns = ["reference", "compared", "change", "low", "high"]
            rows.append(
                {
                    **dict(zip(CONFIGURATION, key, strict=True)),
                    "group": name.replace("|", " "),
                    "images": int(total[i].sum()),
                    **per_group.loc[name, columns].to_dict(),
                    "lost": lost,
                    "won": won,
                    "mcnemar_p": stats.mcnemar_mid_p(lost, won),
                }
            )
    return pd.DataFrame(rows)


def _group_accuracy(index: int) -> Statistic:
    return lambda table: metrics.rate(table, "accuracy")[..., index]


def paired(first: RunRecord, second: RunRecord) -> NDArray[np.int64]:
    """Counts (G, 2, 2, 2) of two runs on the same images: group x label x first x second."""
    if not np.array_equal(first.cells, second.cells):
        raise ValueError(
            f"runs {first.run.key} and {second.run.key} were evaluated on different images"
        )
    joint = (first.cells.astype(np.int64) * 2 + (first.scores > 0)) * 2 + (second.scores > 0)
    size = len(first.groups)
    return np.bincount(joint, minlength=size * 8).reshape(size, 2, 2, 2)


def mitigation_effects(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """Each calibration sampler against a random draw of equal size, all else the same.

    ``reference`` is the model calibrated at random, ``compared`` the one calibrated by
    ``sampler``; both are quantized. ``harm_random`` and ``harm`` are their changes from FP32.
    """
    ptq = [r for r in runs if r.run.method == "ptq"]

    def twin(record: RunRecord) -> tuple[Any, ...]:
        run = record.run
        return (
            run.architecture,
            json.dumps(run.training, sort_keys=True),
            run.bits,
            run.ranges,
            run.calibration_seed,
        )

    at_random = {twin(r): r for r in ptq if r.run.sampler == "random"}
    grouped: dict[tuple[Any, ...], list[tuple[RunRecord, RunRecord]]] = {}
    for record in ptq:
        if record.run.sampler != "random" and twin(record) in at_random:
            key = tuple(configuration(record.run).values())
            grouped.setdefault(key, []).append((at_random[twin(record)], record))
    parts = []
    options: dict[str, Any] = {
        "replicates": params.analysis.replicates,
        "confidence": params.analysis.confidence,
        "seed": params.data.seed,
    }
    for key, pairs in grouped.items():
        for scope, attributes in scopes(params).items():
            tables = [
                metrics.Counts(paired(a, b), tuple(a.attributes), tuple(a.groups))
                .by(*attributes)
                .table
                for a, b in pairs
            ]
            table = stats.paired_bootstrap(tables, STATISTICS, **options)
            harm = [
                stats.paired_bootstrap(
                    [counts(pair[side], attributes).table for pair in pairs], STATISTICS, **options
                ).change.to_numpy()
                for side in (0, 1)
            ]
            parts.append(
                table.assign(
                    **dict(zip(CONFIGURATION, key, strict=True)),
                    scope=scope,
                    seeds=len(pairs),
                    harm_random=harm[0],
                    harm=harm[1],
                )
            )
    if not parts:
        return pd.DataFrame(columns=[*CONFIGURATION, "scope", "statistic"])
    return pd.concat(parts, ignore_index=True)


def sizes(runs: list[RunRecord]) -> pd.DataFrame:
    """Size of every configuration in MiB, and how many times smaller than FP32 it is."""
    frame = pd.DataFrame(
        [{**configuration(r.run), "mebibytes": r.size_bytes / 2**20} for r in runs]
    ).drop_duplicates(CONFIGURATION)
    full = frame[frame.method == "fp32"].set_index("architecture").mebibytes
    return frame.assign(ratio=frame.architecture.map(full) / frame.mebibytes)


def pareto(frame: pd.DataFrame, costs: Mapping[str, int]) -> pd.Series:
    """Rows that no other row beats: better or equal in every column, better in one.

    Parameters
    ----------
    costs : mapping of column to +1 (more is better) or -1 (less is better)
    """
    values = frame[list(costs)].to_numpy(float) * np.array(list(costs.values()))
    at_least = (values[:, None] >= values[None]).all(axis=2)
    better = (values[:, None] > values[None]).any(axis=2)
    return pd.Series(~(at_least & better).any(axis=0), index=frame.index)


def frontier(table: pd.DataFrame, size: pd.DataFrame, scope: str) -> pd.DataFrame:
    """Accuracy, demographic parity gap and size of every configuration, and who is on the front."""
    wide = table[table["scope"] == scope].pivot_table(
        index=CONFIGURATION, columns="statistic", values="compared", sort=False
    )
    frame = wide.reset_index().merge(size, on=CONFIGURATION)
    front = pareto(frame, {"accuracy": 1, "demographic_parity_difference": -1, "mebibytes": -1})
    return frame.assign(pareto=front)


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table with names as they are printed."""
    shown = frame.copy()
    if "architecture" in shown:
        shown["architecture"] = shown.architecture.map(DISPLAY_NAMES)
    if "statistic" in shown:
        shown["statistic"] = shown.statistic.map(LABELS)
    return shown


def interval(value: float, low: float, high: float, scale: float = 100, digits: int = 1) -> str:
    """``value [low, high]``, in points unless scaled otherwise."""
    return f"{value * scale:.{digits}f} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def write_results(table: pd.DataFrame, size: pd.DataFrame, folder: Path) -> list[Path]:
    """Write ``baseline_results.csv``, ``quantization_results.json`` and the LaTeX tables.

    The first two are named as the published study names them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frame = table.merge(size, on=CONFIGURATION, how="left")
    base = frame[frame.method == "fp32"]
    quantized = frame[frame.method != "fp32"]
    csv = folder / "baseline_results.csv"
    base.drop(columns=["change", "low", "high"]).to_csv(csv, index=False)
    path = folder / "quantization_results.json"
    path.write_text(quantized.to_json(orient="records", indent=1, double_precision=6))
    written = [csv, path]
    for name, part in (("baseline", base), ("quantization", quantized)):
        written.append(folder / f"{name}_table.tex")
        written[-1].write_text(latex(part))
    return written


def latex(table: pd.DataFrame) -> str:
    """A LaTeX table (booktabs): one row per configuration, one column per statistic, in points."""
    scope = table["scope"].iloc[-1]
    rows = named(table[table["scope"] == scope])
    cells = [interval(*r) for r in rows[["compared", "compared_low", "compared_high"]].to_numpy()]
    wide = rows.assign(cell=cells).pivot_table(
        index=CONFIGURATION, columns="statistic", values="cell", aggfunc="first", sort=False
    )
    wide = wide.reset_index().rename(columns=str.capitalize)
    text = wide.to_latex(
        index=False, escape=True, column_format="l" * 5 + "r" * (wide.shape[1] - 5)
    )
    return (
        f"% Points, with {scope} gaps; brackets are confidence intervals.\n"
        "% Needs \\usepackage{booktabs}.\n" + text
    )
