"""From the worlds of the dials to frames: what quantization does to the dialled group there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils import metrics, stats
from fairq_utils.data.attributes import ATTRIBUTES
from fairq_utils.dials import World, attribute_of
from fairq_utils.effects import Pair, records, shared
from fairq_utils.ledger import Ledger, RunRecord
from fairq_utils.params import Params
from fairq_utils.planning import baseline_of
from fairq_utils.stats import Statistic

MEASURED_BY = ("fairq_utils.dials", "fairq_utils.dial_effects")
PLAIN = "plain"


def statistics(params: Params) -> dict[str, Statistic]:
    """The gaps, and how far the dialled group's accuracy lies below the others': signed."""
    attribute = attribute_of(params.dials)
    inside = ATTRIBUTES[attribute].index(params.dials.group)

    def behind(table: NDArray[Any]) -> NDArray[Any]:
        rates = metrics.rate(table, "accuracy")
        out: NDArray[Any] = rates[..., 1 - inside] - rates[..., inside]
        return out

    return {
        "behind": behind,
        "demographic_parity_difference": metrics.FAIRNESS["demographic_parity_difference"],
        "equalized_odds_difference": metrics.FAIRNESS["equalized_odds_difference"],
    }


def _line(record: RunRecord) -> str:
    run = record.run
    if run.method != "ptq":
        return run.method
    return PLAIN if run.sampler == "random" else str(run.sampler)


def _by_line(runs: list[RunRecord]) -> dict[tuple[str, str, str], list[Pair]]:
    """(architecture, bits, line) -> each run behind its FP32 model."""
    by_key = {record.run.key: record for record in runs}
    found: dict[tuple[str, str, str], list[Pair]] = {}
    for record in runs:
        base = by_key.get(baseline_of(record.run).key)
        if base is not None and record.run.bits is not None and record.run.sampler:
            key = (record.run.architecture, record.run.bits, _line(record))
            found.setdefault(key, []).append((base, record))
    return found


def harms(worlds: list[World], store: Ledger, params: Params) -> pd.DataFrame:
    """What quantization adds to the disadvantage of the dialled group, in every world.

    Returns
    -------
    DataFrame
        ``dial``, ``level``, ``architecture``, ``bits``, ``line`` (plain, or the mitigation), and of
        each of :func:`statistics` as ``statistic``: ``reference`` (FP32), ``compared``, ``change``
        with ``low`` and ``high``, ``floor`` and ``p_value``, as in
        :func:`fairq_utils.effects.by_configuration`; ``mended``, ``mended_low``, ``mended_high``:
        the mitigated model's statistic less the plainly quantized one's, on the same images (NaN of
        plain), and its ``mended_floor``.
    """
    measured = statistics(params)
    options: dict[str, Any] = {
        "replicates": params.analysis.replicates,
        "seed": params.data.seed,
    }
    parts = []
    for world in worlds:
        attributes = list(world.params.analysis.attributes)
        lines = _by_line(records(store, world.params))
        for (architecture, bits, line), members in lines.items():
            table = _changes(members, attributes, measured, params, options)
            table = table.assign(
                dial=world.dial,
                level=world.level,
                architecture=architecture,
                bits=bits,
                line=line,
            )
            plain = lines.get((architecture, bits, PLAIN), [])
            table[["mended", "mended_low", "mended_high", "mended_floor"]] = np.nan
            pairs = _beside(plain, members)
            if line != PLAIN and pairs:
                against = _changes(pairs, attributes, measured, params, options)
                table["mended"] = against.change.to_numpy()
                table["mended_low"] = against.low.to_numpy()
                table["mended_high"] = against.high.to_numpy()
                table["mended_floor"] = against.floor.to_numpy()
            parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _beside(plain: list[Pair], members: list[Pair]) -> list[Pair]:
    """Runs beside the plain ones of the same training and calibration draw."""

    def place(record: RunRecord) -> tuple[str, int | None]:
        return json.dumps(record.run.training, sort_keys=True), record.run.calibration_seed

    by_place = {place(record): record for _, record in plain}
    return [(by_place[place(r)], r) for _, r in members if place(r) in by_place]


def _changes(
    pairs: list[Pair],
    attributes: Sequence[str],
    measured: Mapping[str, Statistic],
    params: Params,
    options: dict[str, Any],
) -> pd.DataFrame:
    answers = shared(pairs, attributes)
    table = stats.paired_bootstrap(
        answers, measured, confidence=params.analysis.confidence, **options
    )
    chance = stats.exchange_floors(answers, measured, **options)
    return table.assign(floor=chance.floor, p_value=chance.p_value)
