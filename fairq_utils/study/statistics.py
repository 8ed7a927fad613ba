"""Statistics of a study: what is measured of a run, over which groups, with which replicates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils import metrics, stats
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import PHASES, plan
from fairq_utils.study.run_record import Run, RunRecord
from fairq_utils.study.study import Study

Statistic = Callable[[NDArray[Any]], NDArray[Any]]
CONFIGURATION = ["architecture", "method", "bits", "ranges", "sampler", "setting"]

STATISTICS: dict[str, Statistic] = {
    "accuracy": lambda table: metrics.overall(table, "accuracy"),
    **{
        name: FAIRNESS[name]
        for name in (
            "worst_group_accuracy",
            "demographic_parity_difference",
            "equalized_odds_difference",
            "equal_opportunity_difference",
            "predictive_equality_difference",
            "disparate_impact",
        )
    },
}


def measured(params: Params) -> dict[str, Statistic]:
    """Statistics of a study: those that always are, and the criteria that its params name."""
    return STATISTICS | {name: FAIRNESS[name] for name in params.analysis.metrics}


def records(study: Study, phases: Sequence[str] = PHASES) -> list[RunRecord]:
    """The study's runs that are in the ledger, in the study's order."""
    store = study.ledger
    return [store.read(run.key) for run in plan(study, phases) if store.contains(run.key)]


def counts(record: RunRecord, attributes: Iterable[str]) -> metrics.Counts:
    """Counts of a run, summed over the attributes that are not named."""
    return metrics.Counts(record.counts, tuple(record.attributes), tuple(record.groups)).by(
        *attributes
    )


def configuration(run: Run) -> dict[str, Any]:
    """Configuration of a run, ready to be shown; seeds are replicates."""
    return {
        "architecture": run.architecture,
        "method": run.method,
        "bits": run.bits or "FP32",
        "ranges": run.ranges or "",
        "sampler": run.sampler or "",
        "setting": run.setting,
    }


def scopes(params: Params) -> dict[str, tuple[str, ...]]:
    """The partitions that gaps are taken over: each attribute alone, and all of them crossed."""
    single = {name: (name,) for name in params.analysis.attributes}
    crossed = " x ".join(params.analysis.attributes)
    return single | {crossed: tuple(params.analysis.attributes)}


Pair = tuple[RunRecord, RunRecord]


def shared(pairs: Sequence[Pair], attributes: Sequence[str]) -> stats.SharedImages:
    """Answers of pairs of runs, reference first, on the test images that all of them share."""
    first = pairs[0][0]
    for record in (record for pair in pairs for record in pair):
        if not np.array_equal(record.cells, first.cells):
            raise ValueError(
                f"runs {first.run.key} and {record.run.key} were evaluated on different images"
            )
    at = [first.attributes.index(name) for name in attributes]
    names = ["|".join(group.split("|")[i] for i in at) for group in first.groups]
    kept = list(dict.fromkeys(names))
    place = np.array([kept.index(name) for name in names])[first.cells // 2]
    return stats.share_images(
        place,
        first.cells % 2,
        np.stack([reference.scores > 0 for reference, _ in pairs]).astype(int),
        np.stack([compared.scores > 0 for _, compared in pairs]).astype(int),
    )
