"""Statistics of a study: what is measured of a run, over which groups, with which replicates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils import metrics, stats
from fairq_utils.data.population import Population
from fairq_utils.errors import BadInput
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


UNPRIVILEGED = {"gender": "female", "age": "old"}  # unless a params file names another group
DIRECTED = {  # signed differences of that group to all others, and the rates they are of
    "directed_accuracy_difference": "accuracy",
    "directed_selection_rate_difference": "selection_rate",
}


def measured(params: Params) -> dict[str, Statistic]:
    """Statistics of a study: those that always are, and the criteria that its params name."""
    return STATISTICS | {name: FAIRNESS[name] for name in params.analysis.metrics}


def directed(params: Params, groups: Sequence[str], attributes: Sequence[str]) -> int | None:
    """Place of the unprivileged group among the groups of some attributes; None without one.

    Raises
    ------
    BadInput
        The params name a value that no group has.
    """
    named = params.analysis.unprivileged
    chosen = [(named or UNPRIVILEGED).get(name) for name in attributes]
    wanted = "|".join(str(value) for value in chosen)
    if wanted in groups and len(groups) > 1:
        return list(groups).index(wanted)
    if named and None not in chosen:
        raise BadInput(
            f"analysis.unprivileged: {wanted.replace('|', ' ')} is no group; name one of "
            f"{', '.join(group.replace('|', ' ') for group in groups)}"
        )
    return None


def measured_of(
    params: Params, record: RunRecord, attributes: Sequence[str]
) -> dict[str, Statistic]:
    """:func:`measured`, and the signed differences of the unprivileged group to all others."""
    groups = counts(record, attributes).groups
    place = directed(params, groups, attributes)
    if place is None:
        return measured(params)
    return measured(params) | {
        name: partial(metrics.difference_to_rest, name=rate, group=place)
        for name, rate in DIRECTED.items()
    }


def records(study: Study, phases: Sequence[str] = PHASES) -> list[RunRecord]:
    """The study's runs that are in the ledger, in the study's order."""
    store = study.ledger
    return [store.read(run.key) for run in plan(study, phases) if store.contains(run.key)]


def counts(record: RunRecord, attributes: Iterable[str]) -> metrics.Counts:
    """Counts of a run, summed over the attributes that are not named.

    Of a test split that is even over groups they are sums of weights, which make it the population.
    """
    weights = group_weights(record)
    weighed = record.counts if weights is None else record.counts * weights[:, None, None, None]
    images = None if weights is None else record.counts
    return metrics.Counts(weighed, tuple(record.attributes), tuple(record.groups), images).by(
        *attributes
    )


def group_weights(record: RunRecord) -> NDArray[np.float64] | None:
    """People for whom a test image of each group of a run stands, (G,); None if all for one.

    Where a test split has as many images of each cell of some attributes, an image of a cell that
    is a share of the population stands for the share times the number of cells.
    """
    test = record.run.data.get("test")
    if not isinstance(test, Mapping) or "even" not in test:
        return None
    who = Population(joint=test["joint"], race=record.run.data["race"], even=tuple(test["even"]))
    at = [record.attributes.index(name) for name in who.even]
    cells = [tuple(group.split("|")[i] for i in at) for group in record.groups]
    return np.array([who.shares[cell] * len(who.turns) for cell in cells])


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
Expected = Callable[[Statistic], NDArray[np.float64]]


def shared(pairs: Sequence[Pair], attributes: Sequence[str]) -> stats.SharedImages:
    """Answers of pairs of runs, reference first, on the test images that all of them share.

    Seeds and calibration draws are crossed; draws that not every seed has take no part, and where
    there is none that all have, of each seed the first.
    """
    grid = crossed(pairs)
    first = pairs[0][0]
    for record in (record for pair in pairs for record in pair):
        if not np.array_equal(record.cells, first.cells):
            raise ValueError(
                f"runs {first.run.key} and {record.run.key} were evaluated on different images"
            )
    at = [first.attributes.index(name) for name in attributes]
    names = ["|".join(group.split("|")[i] for i in at) for group in first.groups]
    kept = list(dict.fromkeys(names))
    group = first.cells // 2
    weights = group_weights(first)
    strata = None
    if weights is not None:  # the cells of which the split has a fixed number
        even = [first.attributes.index(name) for name in first.run.data["test"]["even"]]
        cells = ["|".join(name.split("|")[i] for i in even) for name in first.groups]
        strata = np.unique(cells, return_inverse=True)[1][group]
    return stats.share_images(
        np.array([kept.index(name) for name in names])[group],
        first.cells % 2,
        np.array([[reference.scores > 0 for reference, _ in row] for row in grid]).astype(int),
        np.array([[compared.scores > 0 for _, compared in row] for row in grid]).astype(int),
        weight=None if weights is None else weights[group],
        stratum=strata,
    )


def crossed(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs by training seed and, within it, by calibration draw: as many of each."""
    by_seed: dict[int, dict[Any, Pair]] = {}
    for pair in pairs:
        run = pair[1].run
        by_seed.setdefault(int(run.training["seed"]), {})[run.calibration_seed] = pair
    rows = list(by_seed.values())
    common = [draw for draw in rows[0] if all(draw in row for row in rows)]
    return [[row[draw] for draw in common] or [next(iter(row.values()))] for row in rows]


def group_blind(pairs: Sequence[Pair], attributes: Sequence[str], replicates: int) -> Expected:
    """Each statistic's change, as it would be if flips did not know the group, run by run.

    Returns
    -------
    function
        From a statistic to its expected change in every run, (S, C); see
        :func:`fairq_utils.stats.group_blind_tables`.
    """
    grid = crossed(pairs)
    drawn = []
    for reference, compared in (pair for row in grid for pair in row):
        tables = stats.group_blind_tables(
            reference.cells // 2,
            reference.cells % 2,
            reference.scores,
            compared.scores > 0,
            groups=len(reference.groups),
            replicates=replicates,
        )
        drawn.append([tables.sum(axis=axis) for axis in (-1, -2)])

    def expected(statistic: Statistic) -> NDArray[np.float64]:
        own = over(pairs[0][0], attributes, statistic)
        means = [float(np.mean(own(after) - own(before))) for before, after in drawn]
        return np.reshape(means, (len(grid), len(grid[0])))

    return expected


def over(record: RunRecord, attributes: Sequence[str], statistic: Statistic) -> Statistic:
    """The statistic over some attributes, of tables (..., G, 2, 2) of all groups of a run.

    Groups are weighed as in :func:`counts`, and summed over the attributes that are not named.
    """
    at = [record.attributes.index(name) for name in attributes]
    names = ["|".join(group.split("|")[i] for i in at) for group in record.groups]
    weights = group_weights(record)
    mass = np.ones(len(names)) if weights is None else weights
    into = np.array(
        [
            [mass[i] * (name == each) for i, name in enumerate(names)]
            for each in dict.fromkeys(names)
        ]
    )
    return lambda tables: statistic(np.einsum("kg,...gij->...kij", into, tables))
