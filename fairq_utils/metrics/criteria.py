"""Fairness criteria on tables: which rates, compared how; one line each in a registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fairq_utils.metrics.gaps import difference, ratio, worst_group
from fairq_utils.metrics.rates import Floats, Table

Aggregate = Literal["worst_case", "mean"]


@dataclass(frozen=True)
class Criterion:
    """One or more rates, compared over groups.

    Attributes
    ----------
    rates : names in :data:`~fairq_utils.metrics.RATES`
    compare : function
        :func:`~fairq_utils.metrics.difference`, :func:`~fairq_utils.metrics.ratio` or
        :func:`~fairq_utils.metrics.worst_group`.
    agg : how several rates become one number
        ``worst_case`` or ``mean``; a rate whose comparison is not defined takes no part.
    """

    rates: tuple[str, ...]
    compare: Callable[..., Floats]
    agg: Aggregate = "worst_case"

    def __call__(self, table: Table, *, agg: Aggregate | None = None, **options: Any) -> Floats:
        """From counts (..., G, 2, 2) to values (...); ``options`` go to ``compare``."""
        agg = self.agg if agg is None else agg
        if agg not in get_args(Aggregate):
            raise ValueError(f"agg: {agg!r} is not one of {', '.join(get_args(Aggregate))}")
        parts = np.stack([self.compare(table, name, **options) for name in self.rates])
        if agg == "mean":
            here = ~np.isnan(parts)
            total, n = np.where(here, parts, 0).sum(axis=0), here.sum(axis=0)
            return np.where(n > 0, total / np.maximum(n, 1), np.nan)
        # The worst ratio is the smallest, the worst difference the largest.
        worst = np.fmin if self.compare is ratio else np.fmax
        out: Floats = worst.reduce(parts, axis=0)
        return out


_ODDS = ("true_positive_rate", "false_positive_rate")

FAIRNESS: dict[str, Criterion] = {
    "demographic_parity_difference": Criterion(("selection_rate",), difference),
    "demographic_parity_ratio": Criterion(("selection_rate",), ratio),
    "equalized_odds_difference": Criterion(_ODDS, difference),
    "equalized_odds_ratio": Criterion(_ODDS, ratio),
    "average_abs_odds_difference": Criterion(_ODDS, difference, "mean"),
    "equal_opportunity_difference": Criterion(("true_positive_rate",), difference),
    "equal_opportunity_ratio": Criterion(("true_positive_rate",), ratio),
    "predictive_equality_difference": Criterion(("false_positive_rate",), difference),
    "predictive_equality_ratio": Criterion(("false_positive_rate",), ratio),
    "predictive_parity_difference": Criterion(("positive_predictive_value",), difference),
    "predictive_parity_ratio": Criterion(("positive_predictive_value",), ratio),
    "treatment_equality_difference": Criterion(("treatment_ratio",), difference),
    "treatment_equality_ratio": Criterion(("treatment_ratio",), ratio),
    "accuracy_difference": Criterion(("accuracy",), difference),
    "accuracy_ratio": Criterion(("accuracy",), ratio),
    "worst_group_accuracy": Criterion(("accuracy",), worst_group),
    # The ratio of selection rates; the four-fifths rule asks for at least 0.8 (EEOC 1978).
    "disparate_impact": Criterion(("selection_rate",), ratio),
}


def equalized_odds(table: Table, **options: Any) -> Floats:
    """The larger of the differences in true and in false positive rate (Hardt et al. 2016)."""
    return FAIRNESS["equalized_odds_difference"](table, **options)
