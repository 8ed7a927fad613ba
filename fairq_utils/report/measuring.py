"""The chapter "How we measure": null bands, what pairing gains, and two worked examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fairq_utils import metrics, stats
from fairq_utils.study import statistics
from fairq_utils.study import statistics as effects
from fairq_utils.study.ledger import RunRecord
from fairq_utils.study.params.study import Params
from fairq_utils.study.people import answers
from fairq_utils.study.planning import baseline_of
from fairq_utils.study.recorded import read_benchmark
from fairq_utils.study.statistics import CONFIGURATION, STATISTICS

# Rates whose gaps are drawn over their null band, and the label that their denominators count; all
# labels where it is None.
BANDS = {
    "accuracy": None,
    "selection_rate": None,
    "true_positive_rate": 1,
    "false_positive_rate": 0,
}
# Statistics of the printed coverage table; the recorded one has more.
COVERED = (
    "group's accuracy",
    "group's true positive rate",
    "signed accuracy difference",
    "accuracy gap",
    "demographic parity gap",
    "equalized odds gap",
)


def null_bands(runs: list[RunRecord], params: Params) -> pd.DataFrame:
    """What a max-min gap between the crossed groups would be if no group differed.

    Returns
    -------
    DataFrame
        One row per rate of :data:`BANDS` and FP32 run: ``rate``, ``among`` (whom its denominator
        counts, in the target's words), ``architecture``, its ``gap``; ``mean`` and
        ``high`` (95th percentile) of the null gap at these denominators and this model's overall
        rate. Fractions.
    """
    rows = []
    words = answers(params)
    for record in runs:
        if record.run.method != "fp32":
            continue
        table = statistics.counts(record, params.analysis.attributes).reference
        label = table.sum(axis=-1)
        for rate, counted in BANDS.items():
            sizes = label.sum(axis=1) if counted is None else label[:, counted]
            null = stats.null_gaps(
                sizes[sizes > 0],  # as the gap itself leaves out groups without a rate
                float(metrics.overall(table, rate)),
                replicates=params.analysis.replicates,
                seed=params.data.seed,
            )
            rows.append(
                {
                    "rate": rate,
                    "among": "everybody" if counted is None else f"those labelled {words[counted]}",
                    "architecture": record.run.architecture,
                    "gap": float(metrics.difference(table, rate)),
                    "mean": float(null.mean()),
                    "high": float(np.quantile(null, 0.95)),
                }
            )
    return pd.DataFrame(rows)


def apparent_bias(frame: pd.DataFrame, scope: str) -> pd.Series:
    """The largest change of the parity gap, of a quantized model, that its noise floor explains.

    Where none is inside its floor, the one that is nearest to it.
    """
    rows = frame[
        (frame.statistic == "demographic_parity_difference")
        & (frame["scope"] == scope)
        & (frame.method != "fp32")
    ]
    inside = rows[rows.change.abs() <= rows.floor]
    if len(inside):
        return inside.loc[inside.change.abs().idxmax()]
    return rows.loc[(rows.change.abs() / rows.floor).idxmin()]


def silent_flips(frame: pd.DataFrame, groups: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """A quantized model whose accuracy stands still while one group's answers change most clearly.

    Returns
    -------
    accuracy : Series
        The row of :func:`fairq_utils.report.effects.by_configuration`. Its change is no larger than
        its floor, or, where every model's is, it is the smallest of all relative to its floor.
    groups : DataFrame
        That model's rows of :func:`fairq_utils.report.effects.by_group`.
    """
    rows = frame[(frame.statistic == "accuracy") & (frame.method != "fp32")]
    rows = rows.drop_duplicates(CONFIGURATION)
    still = rows[rows.change.abs() <= rows.floor]
    if still.empty:
        still = rows.loc[[(rows.change.abs() / rows.floor).idxmin()]]
    clearest = groups.groupby(CONFIGURATION, sort=False).p_value.min()
    keys = pd.MultiIndex.from_frame(still[CONFIGURATION])
    chosen = still.iloc[int(np.argmin(clearest.loc[keys].to_numpy()))]
    mine = (groups[CONFIGURATION] == chosen[CONFIGURATION]).all(axis=1)
    return chosen, groups[mine]


def pairing_gain(record: RunRecord, baseline: RunRecord, params: Params) -> float:
    """How many times wider the parity gap's change would be known without pairing.

    The standard deviation of the difference of two independent test sets over that of the paired
    change, from the same bootstrap replicates; NaN where no answer flipped.
    """
    name = "demographic_parity_difference"
    answers = effects.shared([(baseline, record)], params.analysis.attributes)
    drawn = stats.replicate(
        answers,
        {name: STATISTICS[name]},
        replicates=params.analysis.replicates,
        seed=params.data.seed,
        accelerate=False,
    )[name].drawn
    reference, compared, change = (np.nanstd(values) for values in drawn)
    return float(np.hypot(reference, compared) / change) if change > 0 else float("nan")


def detectable(flips: float, sizes: np.ndarray[Any, Any]) -> pd.DataFrame:
    """Smallest change of an accuracy gap that is found four times in five, in points.

    Between the smallest and the largest group, by training seeds and size of the test set.

    Parameters
    ----------
    flips : float
        Share of right answers gained or lost; taken as one answer where none is.
    sizes : int (G,)
        Test images by group.
    """
    ends = np.array([np.min(sizes), np.max(sizes)])
    flips = max(flips, 1 / float(np.sum(sizes)))
    table = {}
    for times in (1, 5, 25):
        sd = stats.change_sd([flips, flips], ends * times)
        table[f"{int(np.sum(sizes)) * times:,} images"] = {
            f"{seeds} seed{'s' if seeds > 1 else ''}": 100 * stats.detectable_change(sd, seeds)
            for seeds in (1, 3, 5, 10)
        }
    return pd.DataFrame(table).round(1).rename_axis("").reset_index()


def coverage() -> pd.DataFrame:
    """The recorded simulation of how often nominal 95 % intervals hold the truth, in percent.

    Returns
    -------
    DataFrame
        One row per world and statistic; columns are images per group, percentile intervals.
    """
    rows = pd.DataFrame(read_benchmark("coverage")["cells"])
    rows = rows[(rows.method == "percentile") & rows.statistic.isin(COVERED)]
    rows = rows.assign(percent=100 * rows.coverage)
    wide = rows.pivot_table(
        index=["world", "quantity", "statistic"], columns="images", values="percent", sort=False
    )
    return wide.round(0).astype(int).reset_index().rename_axis(columns=None)


def kept_promises() -> dict[str, str]:
    """How many recorded cells are covered as promised, of a model's level and of its change.

    As often as :data:`fairq_utils.bench.coverage.PROMISED` says, groups apart, percentile
    intervals: such as ``18 of 18``.
    """
    worlds = read_benchmark("coverage")["worlds"]
    return {what: worlds[f"apart {what} percentile"]["kept"] for what in ("level", "change")}


def pairs_at(runs: list[RunRecord], frame: pd.DataFrame) -> list[tuple[RunRecord, RunRecord]]:
    """FP32 run and quantized run of every configuration in a frame, first replicate of each."""
    wanted = set(frame[CONFIGURATION].itertuples(index=False, name=None))
    by_key = {record.run.key: record for record in runs}
    found: dict[tuple[Any, ...], tuple[RunRecord, RunRecord]] = {}
    for record in runs:
        name = tuple(statistics.configuration(record.run).values())
        base = by_key.get(baseline_of(record.run).key)
        if name in wanted and name not in found and base is not None:
            found[name] = (base, record)
    return list(found.values())
