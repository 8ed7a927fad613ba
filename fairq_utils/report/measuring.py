"""Chapter on measuring: null bands, what pairing gains, two worked examples, and what is found."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fairq_utils.metrics.gaps import difference
from fairq_utils.metrics.rates import overall
from fairq_utils.report.chapter import POINT, Chapter, glue
from fairq_utils.report.figures import COLOURS, finished, legend_of, named_rows
from fairq_utils.report.rows import PARITY, quantized_rows, rows_at_bits, static_rows
from fairq_utils.report.tables import html_table, label, title
from fairq_utils.stats.floors import null_gaps
from fairq_utils.stats.paired import replicate
from fairq_utils.stats.power import change_sd, detectable_change
from fairq_utils.stats.significance import adjusted
from fairq_utils.stats.verdicts import judge
from fairq_utils.study import statistics
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import baseline_of
from fairq_utils.study.recorded import read_benchmark
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.statistics import CONFIGURATION, STATISTICS

# Rates whose gaps are drawn over their null band, and the label that their denominators count; all
# labels where it is None.
BANDS = {
    "accuracy": None,
    "selection_rate": None,
    "true_positive_rate": 1,
    "false_positive_rate": 0,
}
BETWEEN = 0.003  # standard deviation over seeds of what eight bits change, for planning
# Statistics of the printed coverage table; the recorded one has more.
COVERED = (
    "group's accuracy",
    "group's true positive rate",
    "signed accuracy difference",
    "accuracy gap",
    "demographic parity gap",
    "equalized odds gap",
)


def null_bands(chapter: Chapter) -> pd.DataFrame:
    """Max-min gaps between the crossed groups, and what they would be if no group differed.

    Returns
    -------
    DataFrame
        One row per rate of :data:`BANDS` and FP32 run: ``rate``, ``among`` (whom its denominator
        counts, in the target's words), ``architecture``, its ``gap``; ``mean`` and
        ``high`` (95th percentile) of the null gap at these denominators and this model's overall
        rate. Fractions.
    """
    rows = []
    params, words = chapter.params, chapter.study.classes
    for record in chapter.runs:
        if record.run.method != "fp32":
            continue
        counted = statistics.counts(record, params.analysis.attributes)
        table, target = counted.reference, counted.seen.sum(axis=(2, 3))  # of images, not people
        for rate, label_of in BANDS.items():
            sizes = target.sum(axis=1) if label_of is None else target[:, label_of]
            null = null_gaps(
                sizes[sizes > 0],  # as the gap itself leaves out groups without a rate
                float(overall(table, rate)),
                replicates=params.analysis.replicates,
                seed=params.data.seed,
            )
            rows.append(
                {
                    "rate": rate,
                    "among": (
                        "everybody" if label_of is None else f"those labelled {words[label_of]}"
                    ),
                    "architecture": record.run.architecture,
                    "gap": float(difference(table, rate)),
                    "mean": float(null.mean()),
                    "high": float(np.quantile(null, 0.95)),
                }
            )
    return pd.DataFrame(rows)


def null_bands_figure(bands: pd.DataFrame) -> Figure:
    """Gaps of FP32 models over what chance makes of a gap at these groups' sizes.

    Parameters
    ----------
    bands : of :func:`null_bands`
    """
    rates = list(dict.fromkeys(bands.rate))
    figure, axis = plt.subplots(figsize=(7.2, 0.7 + 0.62 * len(rates)))
    for i, rate in enumerate(rates):
        rows = bands[bands.rate == rate]
        axis.barh(i, 100 * rows.high.mean(), 0.7, color="0.86", zorder=0)
        mean = 100 * rows["mean"].mean()
        axis.plot([mean, mean], [i - 0.35, i + 0.35], color="0.5", linewidth=1.2)
        spread = np.linspace(-0.22, 0.22, len(rows)) if len(rows) > 1 else [0.0]
        for offset, row in zip(spread, rows.itertuples(), strict=True):
            axis.plot(100 * row.gap, i + offset, "o", markersize=5, color=COLOURS[row.architecture])
    among = bands.drop_duplicates("rate").among
    names = [f"{r.replace('_', ' ')}\n({a})" for r, a in zip(rates, among, strict=True)]
    named_rows(axis, names, fontsize=9)
    axis.set_xlim(left=0)
    axis.set_xlabel("gap between the groups (points)")
    legend_of(axis, dict.fromkeys(bands.architecture), "o", "no group differs")
    return finished(figure)


def glue_null_bands(bands: pd.DataFrame) -> None:
    """Glue what chance makes of the gap in accuracy, and how many models stay inside."""
    accuracy = bands[bands.rate == "accuracy"]
    glue("null_mean", accuracy["mean"].mean() / POINT)
    glue("null_high", accuracy["high"].mean() / POINT)
    glue("inside", int((accuracy.gap <= accuracy.high).sum()))
    glue("models", len(accuracy))


def pairing_gain(record: RunRecord, baseline: RunRecord, params: Params) -> float:
    """Ratio of the widths at which the parity gap's change is known without and with pairing.

    The standard deviation of the difference of two independent test sets over that of the paired
    change, from the same bootstrap replicates; NaN where no prediction flipped.
    """
    drawn = replicate(
        statistics.shared([(baseline, record)], params.analysis.attributes),
        {PARITY: STATISTICS[PARITY]},
        replicates=params.analysis.replicates,
        seed=params.data.seed,
        accelerate=False,
    )[PARITY].drawn
    reference, compared, change = (np.nanstd(values) for values in drawn)
    return float(np.hypot(reference, compared) / change) if change > 0 else float("nan")


def glue_pairing(chapter: Chapter) -> None:
    """Glue the least and the largest gain by pairing, at the most bits."""
    rows = rows_at_bits(chapter.effects, fewest=False)
    pairs = _pairs(chapter.runs, rows)
    gains = [pairing_gain(record, base, chapter.params) for base, record in pairs]
    glue("gain_low", np.nanmin(gains))
    glue("gain_high", np.nanmax(gains))
    glue("most_bits", rows.bits.iloc[0])


def apparent_bias(frame: pd.DataFrame, scope: str, replicates: int | None = None) -> pd.Series:
    """Find the largest change of the parity gap, of a quantized model, that its floor explains.

    Where none is inside its floor, the one that is nearest to it.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.by_configuration`
    scope : str
    replicates : int, optional
        See :func:`fairq_utils.stats.verdicts.judge`.

    Returns
    -------
    Series
        The row, judged among all changes of the parity gap in the frame.
    """
    rows = judge(quantized_rows(frame, PARITY, scope), replicates=replicates)
    inside = rows[rows.change.abs() <= rows.floor]
    if len(inside):
        return inside.loc[inside.change.abs().idxmax()]
    return rows.loc[(rows.change.abs() / rows.floor).idxmin()]


def glue_apparent_bias(chapter: Chapter) -> None:
    """Glue the change of :func:`apparent_bias`, judged among those of the static configurations."""
    row = apparent_bias(
        static_rows(chapter.effects), chapter.crossed, chapter.params.analysis.replicates
    )
    glue("bias_model", title(row.architecture))
    glue("bias_configuration", label(row))
    glue("bias_before", row.reference / POINT)
    glue("bias_after", row.compared / POINT)
    for name in ("change", "floor", "low", "high"):
        glue(f"bias_{name}", row[name] / POINT)
    glue("bias_p", row.p_value)
    glue("bias_verdict", "shown" if row.shown else "undecided")


def silent_flips(frame: pd.DataFrame, groups: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """Find a quantized model whose accuracy stands still while one group's predictions change.

    Returns
    -------
    accuracy : Series
        The row of :func:`fairq_utils.report.effects.by_configuration`. Its change is no larger than
        its floor, or, where every model's is, it is the smallest of all relative to its floor. Of
        those, it is the model with the smallest p-value of any group.
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


def glue_silent_flips(accuracy: pd.Series, groups: pd.DataFrame) -> None:
    """Glue a model of :func:`silent_flips`, and its group that changes most clearly."""
    glue("still_model", title(accuracy.architecture))
    glue("still_configuration", label(accuracy))
    glue("still_change", accuracy.change / POINT)
    glue("still_flips", accuracy.flips)
    holm = adjusted(dict(zip(groups.group, groups.p_value, strict=True))).set_index("test").holm
    clearest = groups.loc[groups.p_value.idxmin()]
    glue("still_group", clearest.group)
    glue("still_lost", clearest.lost)
    glue("still_won", clearest.won)
    glue("still_p", clearest.p_value)
    glue("still_groups", len(groups))
    glue("still_holm", holm[clearest.group])


def coverage_table() -> HTML:
    """Percent of simulated test sets whose nominal 95 % interval holds the truth, as recorded.

    One row per world and statistic; columns are images per group, percentile intervals.
    """
    rows = pd.DataFrame(read_benchmark("coverage")["cells"])
    rows = rows[(rows.method == "percentile") & rows.statistic.isin(COVERED)]
    rows = rows.assign(percent=100 * rows.coverage)
    wide = rows.pivot_table(
        index=["world", "quantity", "statistic"], columns="images", values="percent", sort=False
    )
    return html_table(wide.round(0).astype(int).reset_index().rename_axis(columns=None))


def glue_coverage(images: int, coverage: tuple[float, float]) -> None:
    """Glue how many recorded cells are covered as they should be.

    Such as ``18 of 18``, of a model's level and of its change; groups apart, percentile intervals.

    Parameters
    ----------
    images, coverage : ``PROMISED_FROM`` and ``PROMISED`` of :mod:`fairq_utils.bench.coverage`:
        images per group, and the fractions that coverage must lie between
    """
    worlds = read_benchmark("coverage")["worlds"]
    for what in ("level", "change"):
        glue(f"kept_{what}", worlds[f"apart {what} percentile"]["kept"])
    glue("covered_from", images)
    glue("covered_low", coverage[0] / POINT)
    glue("covered_high", coverage[1] / POINT)


def detectable(flips: float, sizes: NDArray[Any], between: float) -> pd.DataFrame:
    """Smallest change of an accuracy gap that is found four times in five, in points.

    Between the smallest and the largest group, by training seeds, all tested on the same images,
    and by size of the test set.

    Parameters
    ----------
    flips : float
        Share of right predictions gained or lost; taken as one prediction where none is.
    sizes : int (G,)
        Test images by group.
    between : standard deviation of the true change over training seeds
    """
    ends = np.array([np.min(sizes), np.max(sizes)])
    flips = max(flips, 1 / float(np.sum(sizes)))
    table = {}
    for times in (1, 5, 25):
        images = change_sd([flips, flips], ends * times)
        table[f"{int(np.sum(sizes)) * times:,} images"] = {
            f"{seeds} seed{'s' if seeds > 1 else ''}": detectable_change(
                0.0 if seeds == 1 else between, seeds, shared=images
            )
            / POINT
            for seeds in (1, 3, 5, 10)
        }
    return pd.DataFrame(table).round(1).rename_axis("").reset_index()


def power(chapter: Chapter) -> pd.DataFrame:
    """:func:`detectable` in this study, if as many predictions flip as at the most bits."""
    flips = rows_at_bits(chapter.effects, fewest=False).flips.median()
    counted = statistics.counts(chapter.runs[0], chapter.params.analysis.attributes)
    return detectable(float(flips), counted.sizes, BETWEEN)


def glue_power(frame: pd.DataFrame) -> None:
    """Glue the smallest change that one seed and this test set find, and what is assumed."""
    glue("detectable", frame.iloc[0, 1])
    glue("between_seeds", BETWEEN / POINT)


def _pairs(runs: list[RunRecord], frame: pd.DataFrame) -> list[statistics.Pair]:
    """FP32 run and quantized run of every configuration in a frame, first replicate of each."""
    wanted = set(frame[CONFIGURATION].itertuples(index=False, name=None))
    by_key = {record.run.key: record for record in runs}
    found: dict[tuple[Any, ...], statistics.Pair] = {}
    for record in runs:
        name = tuple(statistics.configuration(record.run).values())
        base = by_key.get(baseline_of(record.run).key)
        if name in wanted and name not in found and base is not None:
            found[name] = (base, record)
    return list(found.values())
