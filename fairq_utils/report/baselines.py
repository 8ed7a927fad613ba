"""Chapter on baselines: the best and the weakest FP32 model, and what is attainable."""

from __future__ import annotations

import pandas as pd

from fairq_utils.report.chapter import POINT, Chapter, glue, of
from fairq_utils.training.zoo import display_name


def attainable(chapter: Chapter) -> str:
    """The best accuracy that anybody could have, in words."""
    ceiling = chapter.ceiling()
    return "what is attainable is unknown" if ceiling is None else f"{ceiling:.1%} is attainable"


def glue_baselines(frame: pd.DataFrame, scope: str) -> None:
    """Glue the best and the weakest FP32 model, and whether their intervals overlap."""
    rows = of(frame[frame.method == "fp32"], "accuracy", scope)
    best, worst = rows.loc[rows.compared.idxmax()], rows.loc[rows.compared.idxmin()]
    for name, row in (("best", best), ("worst", worst)):
        glue(name, display_name(row.architecture))
        glue(f"{name}_accuracy", row.compared)
    glue("models", len(rows))
    glue("overlapping", int((rows.compared_high >= best.compared_low).sum()))
    glue("seeds", int(rows.seeds.max()))
    odds = of(frame[frame.method == "fp32"], "equalized_odds_difference", scope)
    parity = of(frame[frame.method == "fp32"], "demographic_parity_difference", scope)
    for name, gaps in (("odds", odds), ("parity", parity)):
        glue(f"{name}_low", gaps.compared.min() / POINT)
        glue(f"{name}_high", gaps.compared.max() / POINT)
