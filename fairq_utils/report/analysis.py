"""Chapter on the analysis: which changes are shown, shown to be none, or undecided."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pandas as pd

from fairq_utils import stats
from fairq_utils.report.chapter import POINT, glue, of
from fairq_utils.study import statistics
from fairq_utils.study.ledger import RunRecord
from fairq_utils.study.params.study import Params
from fairq_utils.training.zoo import display_name


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
    glue("same_models", ", ".join(display_name(name) for name in same) or "none here")
    glue("margin", params.analysis.equivalence_margin / POINT)
    glue("unflipped", int((rows.flips == 0).sum()))
    accuracy = of(frame, "accuracy", scope).set_index(statistics.CONFIGURATION).change
    shown = rows[rows.some == "supported"].set_index(statistics.CONFIGURATION)
    glue("shown_broken", int((accuracy.loc[shown.index] < -10 * POINT).sum()))
