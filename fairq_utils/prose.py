"""What the prose of the chapters quotes: figures glued from frames, and words for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pandas as pd

from fairq_utils import (
    effects,
    models,
    recovery,
    shipping,
    stats,
    tables,
)
from fairq_utils.chapters import (
    DEFAULT,
    POINT,
    Chapter,
    at_bits,
    glue,
    of,
    static,
)
from fairq_utils.data.photographs import TITLES
from fairq_utils.data_params import Data
from fairq_utils.engines import ENGINES
from fairq_utils.ledger import RunRecord
from fairq_utils.params import Params
from fairq_utils.params_file import load_params


def attainable(chapter: Chapter) -> str:
    """The best accuracy that anybody could have, in words."""
    ceiling = chapter.ceiling()
    return "what is attainable is unknown" if ceiling is None else f"{ceiling:.1%} is attainable"


def whose(chapter: Chapter) -> str:
    """Whose faces a chapter about rendered people shows, in a sentence."""
    data = chapter.params.data
    if isinstance(data, Data):
        return "The people of this chapter are those of all other chapters."
    return (
        f"The other chapters are about the photographs of {TITLES[data.name]}; the people of this "
        "chapter are rendered, and stand beside them."
    )


def glue_extremes(frame: pd.DataFrame, scope: str) -> None:
    """Glue what the most and the fewest bits do to accuracy, and who bears it worst."""
    rows = of(frame, "accuracy", scope)
    for name, fewest in (("most", False), ("fewest", True)):
        part = at_bits(rows, fewest=fewest)
        worst = part.loc[part.change.idxmin()]
        glue(f"{name}_bits", str(worst.bits))
        glue(f"{name}_worst", worst.change / POINT)
        glue(f"{name}_worst_model", models.DISPLAY_NAMES[worst.architecture])
        glue(f"{name}_worst_ranges", str(worst.ranges))
        glue(f"{name}_configurations", len(part))
        glue(f"{name}_hurt", int((part.high < -POINT).sum()))
        glue(f"{name}_flips", float(part.flips.median()))


def verdicts(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Two claims about every change, judged: that it is none, and that there is one.

    Returns
    -------
    DataFrame
        The rows with ``none`` (within ``margin`` of 0) and ``some`` (different from 0, and larger
        than what chance makes of as many flips): supported, contradicted or undecided.
    """
    judged = []
    for row in rows.itertuples():
        interval = (row.change, row.low, row.high)
        judged.append(
            {
                "none": stats.verdict(stats.near(0, margin), *interval).outcome,
                "some": stats.verdict(
                    stats.differs(), *interval, p_value=row.p_adjusted, floor=row.floor
                ).outcome,
            }
        )
    return rows.assign(**pd.DataFrame(judged, index=rows.index))


def glue_recovery(found: pd.DataFrame) -> None:
    """Glue how much of a clear naive loss the best other method brings back."""
    best = recovery.best_of(found).dropna(subset=["recovered"])
    glue("recovered_cases", len(best))
    if best.empty:
        raise ValueError("recorded study: no naive configuration loses clearly; nothing to recover")
    least = best.loc[best.recovered.idxmin()]
    glue("recovered_median", 100 * best.recovered.median())
    glue("recovered_least", 100 * least.recovered)
    glue("recovered_least_case", f"{models.DISPLAY_NAMES[least.architecture]} at {least.bits}")


def glue_toolkits(found: pd.DataFrame) -> None:
    """Glue how far ours is ahead of, or behind, the best of the other toolkits."""
    full = found[found.bits == "W8A8"]
    low = found[found.bits != "W8A8"]
    glue("toolkits_full", len(full))
    glue("toolkits_full_least", full.ahead.min() / POINT)
    glue("toolkits_low", len(low))
    glue("toolkits_low_best", int((low.ahead >= 0).sum()))
    behind = low[low.ahead < 0].sort_values("ahead")
    names = [
        f"{models.DISPLAY_NAMES[r.architecture]} at {r.bits} ({tables.TOOLKITS[r.who]}, "
        f"{-r.ahead / POINT:.1f} points better)"
        for r in behind.itertuples()
    ]
    glue("toolkits_behind", "; ".join(names) or "none")


def of_one_answer(runs: Iterable[RunRecord]) -> list[str]:
    """Architectures of which an FP32 model answers the same about every test picture.

    Its gaps are zero whatever it does to anyone, so that "no change" says nothing of it.
    """
    fp32 = (record for record in runs if record.run.method == "fp32")
    return sorted({r.run.architecture for r in fp32 if not r.counts.sum(axis=(0, 1, 2)).all()})


def glue_verdicts(
    frame: pd.DataFrame, scope: str, params: Params, same: Collection[str] = ()
) -> None:
    """Glue how many changes of the parity gap are shown, shown to be none, and undecided.

    P-values are corrected over all of them. Of the changes shown, those are counted apart whose
    model has lost more than ten points of accuracy.

    Parameters
    ----------
    same : architectures of :func:`of_one_answer`, of which no absence of a change is counted
    """
    rows = of(frame, "demographic_parity_difference", scope).reset_index(drop=True)
    names = {str(i): p for i, p in enumerate(rows.p_value.fillna(1.0))}
    rows = rows.assign(p_adjusted=stats.adjusted(names).holm.to_numpy())
    rows = verdicts(rows, params.analysis.equivalence_margin)
    glue("comparisons", len(rows))
    glue("outside", int(((rows.low > 0) | (rows.high < 0)).sum()))
    glue("beyond_floor", int((rows.change.abs() > rows.floor).sum()))
    glue("shown", int((rows.some == "supported").sum()))
    judged = ~rows.architecture.isin(list(same))
    glue("equivalent", int((judged & (rows.none == "supported")).sum()))
    glue("same_comparisons", int((~judged).sum()))
    glue("same_models", ", ".join(models.DISPLAY_NAMES[name] for name in same) or "none here")
    glue("margin", params.analysis.equivalence_margin / POINT)
    glue("unflipped", int((rows.flips == 0).sum()))
    accuracy = of(frame, "accuracy", scope).set_index(effects.CONFIGURATION).change
    shown = rows[rows.some == "supported"].set_index(effects.CONFIGURATION)
    glue("shown_broken", int((accuracy.loc[shown.index] < -10 * POINT).sum()))


def glue_mitigation(chapter: Chapter) -> None:
    """Glue how often balance helps, hurts, and had anything to mend."""
    frame = chapter.mitigation_effects
    rows = of(frame, "demographic_parity_difference", chapter.crossed)
    glue("pairs", len(rows))
    glue("mean_change", rows.change.mean() / POINT)
    glue("better", int((rows.high < 0).sum()))
    glue("worse", int((rows.low > 0).sum()))
    glue("beyond_floor", int((rows.change.abs() > rows.floor).sum()))
    accuracy = of(frame, "accuracy", chapter.crossed)
    glue("accuracy_change", accuracy.change.mean() / POINT)
    harm = of(static(chapter.effects), "demographic_parity_difference", chapter.crossed)
    harm = harm[harm.method == "ptq"]
    glue("static", len(harm))
    draws = len(chapter.params.quantization.calibration_seeds)
    glue("draws", "once" if draws == 1 else f"{draws} times")
    glue("harmed", int(((harm.low > 0) & (harm.change > harm.floor)).sum()))


def glue_baselines(frame: pd.DataFrame, scope: str) -> None:
    """Glue the best and the weakest FP32 model, and whether their intervals overlap."""
    rows = of(frame[frame.method == "fp32"], "accuracy", scope)
    best, worst = rows.loc[rows.compared.idxmax()], rows.loc[rows.compared.idxmin()]
    for name, row in (("best", best), ("worst", worst)):
        glue(name, models.DISPLAY_NAMES[row.architecture])
        glue(f"{name}_accuracy", row.compared)
    glue("models", len(rows))
    glue("overlapping", int((rows.compared_high >= best.compared_low).sum()))
    glue("seeds", int(rows.seeds.max()))
    odds = of(frame[frame.method == "fp32"], "equalized_odds_difference", scope)
    parity = of(frame[frame.method == "fp32"], "demographic_parity_difference", scope)
    for name, gaps in (("odds", odds), ("parity", parity)):
        glue(f"{name}_low", gaps.compared.min() / POINT)
        glue(f"{name}_high", gaps.compared.max() / POINT)


def glue_shipping(latency: pd.DataFrame, deployed: pd.DataFrame) -> None:
    """Glue what the benchmarks of what ships found, in percent, times and milliseconds."""
    full, low = deployed[deployed.bits == "W8A8"], deployed[deployed.bits != "W8A8"]
    for name, rows, column in (
        ("differ_most", full, "disagreement"),
        ("differ_worst", full, "worst_disagreement"),
        ("low_differ_most", low, "disagreement"),
    ):
        most = rows.loc[rows[column].idxmax()]
        case = f"{models.DISPLAY_NAMES[most.architecture]} in {ENGINES[most.engine].label}"
        if column == "worst_disagreement":
            case += f", {most.worst_group}, {most.worst_images} pictures"
        glue(name, 100 * most[column])
        glue(f"{name}_case", case if name != "low_differ_most" else f"{case} at {most.bits}")
    gains = shipping.speedups(latency)
    for name in ("over_eager", "over_same"):
        glue(f"{name}_least", gains[name].min())
        glue(f"{name}_most", gains[name].max())
    pairs = shipping.against_toolkits(latency)
    behind = pairs[pairs.ratio < 1 - shipping.LEVEL].sort_values("ratio")
    cases = [
        f"{models.DISPLAY_NAMES[r.architecture]} in {ENGINES[r.engine].label}, batch {r.batch} "
        f"({r.ratio:.2f}x)"
        for r in behind.itertuples()
    ]
    glue("behind_margin", 100 * shipping.LEVEL)
    glue("compared", len(pairs))
    glue("behind", len(behind))
    glue("behind_cases", "; ".join(cases) or "none")
    first = latency.iloc[0]
    glue("threads", int(first.threads))
    glue("processor", str(first.processor))
    glue("flags", str(first["flags"]))
    glue("calls_least", int(latency.calls.min()))
    glue("pixels", int(first.pixels))
    glue("energy", shipping.energy(latency))
    glue("study_size", load_params(DEFAULT).data.size)
