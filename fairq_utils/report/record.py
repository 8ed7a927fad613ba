"""Recording: a study's tables kept in ``book/results/``, with what they came from."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from fairq_utils.data.whole_files import written_whole
from fairq_utils.report import dials, effects
from fairq_utils.study import statistics
from fairq_utils.study.planning import beside_random, mitigations, plan, with_dials
from fairq_utils.study.recorded import FOLDER, RecordError, _paths
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.study import Study

KEPT = (
    "accuracy",
    "worst_group_accuracy",
    "demographic_parity_difference",
    "equalized_odds_difference",
)


def record(study: Study, folder: Path = FOLDER) -> list[Path]:
    """Write a study's tables from its ledger, before mitigation; it need not be complete.

    Returns
    -------
    list of paths
    """
    params, phases = study.params, ("baseline", "quantization")
    runs = statistics.records(study, phases)
    if not any(run.run.method != "fp32" for run in runs):
        raise RecordError(
            f"{params.execution.ledger}: holds no quantized run of {params.name}; run the study "
            "first"
        )
    frame = effects.by_configuration(runs, params)
    crossed = list(statistics.scopes(params))[-1]
    frame = frame[(frame["scope"] == crossed) & frame.statistic.isin(KEPT)]
    frame = frame.merge(effects.sizes(runs), on=statistics.CONFIGURATION, how="left")
    frame = frame.merge(_costs(runs), on=statistics.CONFIGURATION, how="left")
    groups = effects.by_group(runs, params)
    group_aware = list(with_dials(study, ("mitigation",)))
    about = {
        "name": params.name,
        "planned": len(plan(study, phases)),
        "recorded": len(runs),
        "mitigation_planned": len(group_aware),
        "mitigation_recorded": sum(study.ledger.contains(run.key) for run in group_aware),
        "params": params.model_dump(mode="json", exclude={"execution", "tracking"}),
        "provenance": runs[-1].provenance,
    }
    paths = _paths(params.name, folder)
    _write(paths[0], frame.round(6).to_csv(index=False))
    _write(paths[1], groups.round(6).to_csv(index=False))
    _write(paths[2], json.dumps(about, indent=1) + "\n")
    return [*paths, *_record_mitigation(study, folder)]


def _record_mitigation(study: Study, folder: Path) -> list[Path]:
    """Record group-aware methods against plain quantization, seeds alone, and the dials."""
    params, tables = study.params, {}
    twins = ("random", *beside_random(params))  # samplers that the first tables have
    if any(f.method != "ptq" or f.sampler not in twins for f in mitigations(study)):
        runs = statistics.records(study)
        crossed = list(statistics.scopes(params))[-1]
        for name, frame in (
            ("methods", effects.against_plain(runs, params)),
            ("seeds", effects.between_seeds(runs, params)),
        ):
            kept = (frame["scope"] == crossed) & frame.statistic.isin(KEPT)
            tables[name] = frame[kept]
    if params.dials.models:
        tables["dials"] = dials.by_dial(study)
    paths = []
    for name, frame in tables.items():
        paths.append(folder / f"{params.name}_{name}.csv")
        _write(paths[-1], frame.round(6).to_csv(index=False))
    return paths


def _write(path: Path, text: str) -> None:
    with written_whole(path) as place:
        place.write_text(text, encoding="utf-8")


def _costs(runs: list[RunRecord]) -> pd.DataFrame:
    rows = [
        {
            **statistics.configuration(r.run),
            "quantize_seconds": r.measures.get("quantize_seconds", float("nan")),
        }
        for r in runs
    ]
    return pd.DataFrame(rows).groupby(statistics.CONFIGURATION, sort=False).mean().reset_index()
