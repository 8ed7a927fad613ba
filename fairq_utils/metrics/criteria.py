"""Registry of fairness criteria: which rates are compared over groups, and how.

An entry is one statement, here or in somebody else's module::

    from fairq_utils.metrics import criterion, difference, row_metric

    criterion(
        "negative_parity_difference",
        "negative_predictive_value",  # of RATES, or a Rate(name, numerator, denominator)
        difference,
        title="Difference in negative predictive value",
        formula="max_g n_g - min_g n_g, with n_g = P(label = 0 | prediction = 0, group = g)",
    )
    negative_parity_difference = row_metric("negative_parity_difference")

From it come the function on tables, ``FAIRNESS["negative_parity_difference"]``, and the one on
labelled rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np

from fairq_utils.errors import BadInput
from fairq_utils.metrics.gaps import difference, ratio, worst_group
from fairq_utils.metrics.rates import Floats, MeanRate, Rate, Table, add_rate, named, rate
from fairq_utils.registry import Registry

Aggregate = Literal["worst_case", "mean"]


@dataclass(frozen=True)
class Criterion:
    """One or more rates, compared over groups.

    Attributes
    ----------
    name : by which it is asked for
    rates : names in :data:`~fairq_utils.metrics.RATES`
        Each is a numerator over a denominator, both sums of the cells label x prediction.
    compare : function
        :func:`~fairq_utils.metrics.difference`, :func:`~fairq_utils.metrics.ratio`,
        :func:`~fairq_utils.metrics.worst_group`, or another one from a table and the name of a rate
        to one value; the first sentence of its docstring says what comes back, with its unit.
    title, formula, source : of its documentation, and what is cited
    agg : how several rates become one number
        ``worst_case`` or ``mean``; a rate whose comparison is not defined takes no part.
    notes : where it differs from what others call so
    example : predictions of eight rows, and the value
        Labels are 1, 1, 0, 0 in each of two groups.
    """

    name: str
    rates: tuple[str, ...]
    compare: Callable[..., Floats]
    title: str = ""
    formula: str = ""
    source: str = ""
    agg: Aggregate = "worst_case"
    notes: str = ""
    example: tuple[tuple[int, ...], float] | None = None

    def __call__(self, table: Table, *, agg: Aggregate | None = None, **options: Any) -> Floats:
        """From counts (..., G, 2, 2) to values (...); ``options`` go to ``compare``."""
        agg = self.agg if agg is None else agg
        if agg not in get_args(Aggregate):
            raise BadInput(f"agg: {agg!r} is not one of {', '.join(get_args(Aggregate))}")
        parts = np.stack([self.compare(table, name, **options) for name in self.rates])
        if agg == "mean":
            here = ~np.isnan(parts)
            total, n = np.where(here, parts, 0).sum(axis=0), here.sum(axis=0)
            return np.where(n > 0, total / np.maximum(n, 1), np.nan)
        # The worst ratio is the smallest, the worst difference the largest.
        worst = np.fmin if self.compare is ratio else np.fmax
        out: Floats = worst.reduce(parts, axis=0)
        return out

    def parts(self, groups: int) -> list[Callable[[Table], Floats]]:
        """Signed quantities that this one is the extreme of, and moves no further than.

        Of a difference those of all pairs of groups, in each rate; of the worst group every
        group's rate; none where it is neither. Where all of them are shown to stay put, so is it;
        the extreme itself hides a change where groups are nearly equal.

        Parameters
        ----------
        groups : how many groups a table has

        Examples
        --------
        >>> len(FAIRNESS["equalized_odds_difference"].parts(4))
        12
        """
        if self.compare is worst_group:
            return [partial(_rate_of, name, i) for name in self.rates for i in range(groups)]
        if self.compare is not difference:
            return []
        pairs = combinations(range(groups), 2)
        return [partial(_rate_less, name, *pair) for pair in pairs for name in self.rates]

    @property
    def options(self) -> tuple[str, ...]:
        """Keywords that can be chosen besides ``min_cell``: ``method``, ``agg``."""
        compared = "method" in inspect.signature(self.compare).parameters
        joined = len(self.rates) > 1 and self.agg == "worst_case"
        return ("method",) * compared + ("agg",) * joined


def _rate_of(name: str, group: int, table: Table) -> Floats:
    out: Floats = rate(table, name)[..., group]
    return out


def _rate_less(name: str, first: int, second: int, table: Table) -> Floats:
    return _rate_of(name, first, table) - _rate_of(name, second, table)


FAIRNESS: Registry[Criterion] = Registry("criterion", "fairq_utils.metrics.criteria")


def criterion(
    name: str,
    rates: str | Rate | MeanRate | Sequence[str | Rate | MeanRate],
    compare: Callable[..., Floats],
    *,
    title: str,
    formula: str,
    source: str = "",
    agg: Aggregate = "worst_case",
    notes: str = "",
    example: tuple[tuple[int, ...], float] | None = None,
) -> Criterion:
    """Register a criterion in :data:`FAIRNESS`.

    Parameters
    ----------
    rates : one or several, by name, or a :class:`~fairq_utils.metrics.Rate`
        A rate that is given whole joins :data:`~fairq_utils.metrics.RATES`.
    name, compare, title, formula, source, agg, notes, example : see :class:`Criterion`

    Raises
    ------
    BadInput
        An unknown rate, or another criterion or rate of that name.
    """
    several = [rates] if isinstance(rates, str | Rate | MeanRate) else rates
    names = tuple(named(r).name if isinstance(r, str) else add_rate(r) for r in several)
    return FAIRNESS.add(
        name, Criterion(name, names, compare, title, formula, source, agg, notes, example)
    )


_ODDS = ("true_positive_rate", "false_positive_rate")
_PREDICTED = (1, 0, 1, 0, 1, 1, 0, 0)

_DWORK = 'Dwork et al. 2012, "Fairness through Awareness", section 3'
_HARDT = 'Hardt et al. 2016, "Equality of Opportunity in Supervised Learning"'
_CORBETT_DAVIES = (
    'Corbett-Davies et al. 2017, "Algorithmic Decision Making and the Cost of Fairness", section 2'
)
_CHOULDECHOVA = 'Chouldechova 2017, "Fair Prediction with Disparate Impact"'
_BERK = 'Berk et al. 2021, "Fairness in Criminal Justice Risk Assessments: The State of the Art"'
_ZAFAR = (
    'Zafar et al. 2017, "Fairness Beyond Disparate Treatment and Disparate Impact", section 2, for '
    "the overall misclassification rate"
)

# The three families of group criteria are those of Barocas, Hardt and Narayanan, "Fairness and
# Machine Learning" (2023), chapter 3. Independence: the prediction does not depend on the group.
# Labels play no part, so a perfect classifier has a gap wherever base rates differ.

criterion(
    "demographic_parity_difference",
    "selection_rate",
    difference,
    title="Demographic parity: difference in selection rate",
    formula="max_g r_g - min_g r_g, with r_g = P(prediction = 1 | group = g)",
    source=_DWORK,
    notes="0 where every group is selected equally often. As fairlearn's function of this name.",
    example=(_PREDICTED, 0.0),
)
criterion(
    "demographic_parity_ratio",
    "selection_rate",
    ratio,
    title="Demographic parity: ratio of selection rates",
    formula="min_g r_g / max_g r_g, with r_g = P(prediction = 1 | group = g)",
    source=_DWORK,
    notes="1 where every group is selected equally often. As fairlearn's function of this name, "
    "but an error where fairlearn returns NaN (nobody is selected).",
    example=((1, 1, 1, 1, 1, 1, 0, 0), 0.5),
)

# Separation: among people of the same label, the prediction does not depend on the group.

criterion(
    "equalized_odds_difference",
    _ODDS,
    difference,
    title="Equalized odds: the larger of the differences in true and in false positive rate",
    formula="max(max_g t_g - min_g t_g, max_g f_g - min_g f_g), with t_g = P(prediction = 1 | "
    'label = 1, group = g) and f_g the same for label 0; their mean with ``agg="mean"``',
    source=f"{_HARDT}, definition 2.1",
    notes="As fairlearn's function of this name, except that fairlearn takes the rate of a group "
    "without such labels as 0, and here the group takes no part. Where one of the two differences "
    "is not defined at all, the other one stands alone.",
    example=(_PREDICTED, 0.5),
)
criterion(
    "equalized_odds_ratio",
    _ODDS,
    ratio,
    title="Equalized odds: the smaller of the ratios of true and of false positive rates",
    formula="min(min_g t_g / max_g t_g, min_g f_g / max_g f_g), with t_g = P(prediction = 1 | "
    'label = 1, group = g) and f_g the same for label 0; their mean with ``agg="mean"``',
    source=f"{_HARDT}, definition 2.1",
    notes="As fairlearn's function of this name where both ratios are defined. Where one is not "
    "(such as 0 / 0: nobody of label 0 is ever selected), the other one stands alone; fairlearn "
    "then returns NaN or the other one, depending on which of the two is missing.",
    example=(_PREDICTED, 0.0),
)
criterion(
    "average_abs_odds_difference",
    _ODDS,
    difference,
    agg="mean",
    title="Equalized odds: the mean of the differences in true and in false positive rate",
    formula="((max_g t_g - min_g t_g) + (max_g f_g - min_g f_g)) / 2, with t_g = P(prediction = 1 "
    "| label = 1, group = g) and f_g the same for label 0",
    source=f"{_HARDT}, definition 2.1; the name is AIF360's",
    notes='``equalized_odds_difference`` with ``agg="mean"``; equal to AIF360\'s for two groups, '
    "and defined here for any number. The signed version is "
    ":func:`~fairq_utils.metrics.average_odds_difference`.",
    example=(_PREDICTED, 0.5),
)
criterion(
    "equal_opportunity_difference",
    "true_positive_rate",
    difference,
    title="Equal opportunity: difference in true positive rate",
    formula="max_g t_g - min_g t_g, with t_g = P(prediction = 1 | label = 1, group = g)",
    source=f"{_HARDT}, definition 2.2",
    notes="As fairlearn's function of this name, except that fairlearn takes the rate of a group "
    "without label 1 as 0, and here the group takes no part. AIF360's is signed: "
    '``directed_difference("true_positive_rate", ..., privileged=...)``.',
    example=(_PREDICTED, 0.5),
)
criterion(
    "equal_opportunity_ratio",
    "true_positive_rate",
    ratio,
    title="Equal opportunity: ratio of true positive rates",
    formula="min_g t_g / max_g t_g, with t_g = P(prediction = 1 | label = 1, group = g)",
    source=f"{_HARDT}, definition 2.2",
    example=(_PREDICTED, 0.5),
)
criterion(
    "predictive_equality_difference",
    "false_positive_rate",
    difference,
    title="Predictive equality: difference in false positive rate",
    formula="max_g f_g - min_g f_g, with f_g = P(prediction = 1 | label = 0, group = g)",
    source=_CORBETT_DAVIES,
    notes="fairlearn calls it ``false_positive_rate_difference`` and takes the rate of a group "
    "without label 0 as 0; here the group takes no part.",
    example=(_PREDICTED, 0.5),
)
criterion(
    "predictive_equality_ratio",
    "false_positive_rate",
    ratio,
    title="Predictive equality: ratio of false positive rates",
    formula="min_g f_g / max_g f_g, with f_g = P(prediction = 1 | label = 0, group = g)",
    source=_CORBETT_DAVIES,
    example=((1, 0, 1, 1, 1, 1, 1, 0), 0.5),
)

# Sufficiency: among people of the same prediction, the label does not depend on the group.

criterion(
    "predictive_parity_difference",
    "positive_predictive_value",
    difference,
    title="Predictive parity: difference in positive predictive value",
    formula="max_g p_g - min_g p_g, with p_g = P(label = 1 | prediction = 1, group = g)",
    source=_CHOULDECHOVA,
    notes="A group in which nobody is selected takes no part; AIF360 and scikit-learn take its "
    "value as 0.",
    example=(_PREDICTED, 0.5),
)
criterion(
    "predictive_parity_ratio",
    "positive_predictive_value",
    ratio,
    title="Predictive parity: ratio of positive predictive values",
    formula="min_g p_g / max_g p_g, with p_g = P(label = 1 | prediction = 1, group = g)",
    source=_CHOULDECHOVA,
    example=(_PREDICTED, 0.5),
)

# Errors alone: how often a prediction is wrong in each group, and in which direction.

criterion(
    "treatment_equality_difference",
    "treatment_ratio",
    difference,
    title="Treatment equality: difference in false negatives per false positive",
    formula="max_g q_g - min_g q_g, with q_g = FN_g / FP_g",
    source=_BERK,
    notes="Not bounded by 1. A group without false positives takes no part.",
    example=((1, 0, 1, 0, 1, 0, 1, 1), 0.5),
)
criterion(
    "treatment_equality_ratio",
    "treatment_ratio",
    ratio,
    title="Treatment equality: ratio of false negatives per false positive",
    formula="min_g q_g / max_g q_g, with q_g = FN_g / FP_g",
    source=_BERK,
    example=((1, 0, 1, 0, 1, 0, 1, 1), 0.5),
)
criterion(
    "accuracy_difference",
    "accuracy",
    difference,
    title="Accuracy parity: difference in accuracy",
    formula="max_g a_g - min_g a_g, with a_g = P(prediction = label | group = g)",
    source=_ZAFAR,
    notes="fairlearn: ``accuracy_score_difference``.",
    example=(_PREDICTED, 0.5),
)
criterion(
    "accuracy_ratio",
    "accuracy",
    ratio,
    title="Accuracy parity: ratio of accuracies",
    formula="min_g a_g / max_g a_g, with a_g = P(prediction = label | group = g)",
    source=_ZAFAR,
    notes="fairlearn: ``accuracy_score_ratio``.",
    example=(_PREDICTED, 0.5),
)
criterion(
    "worst_group_accuracy",
    "accuracy",
    worst_group,
    title="Accuracy of the group with the lowest",
    formula="min_g a_g, with a_g = P(prediction = label | group = g)",
    source='Sagawa et al. 2020, "Distributionally Robust Neural Networks for Group Shifts"',
    notes="fairlearn: ``accuracy_score_group_min``.",
    example=(_PREDICTED, 0.5),
)
criterion(
    "disparate_impact",
    "selection_rate",
    ratio,
    title="Disparate impact: ratio of the lowest to the highest selection rate",
    formula="min_g r_g / max_g r_g, with r_g = P(prediction = 1 | group = g)",
    source='Feldman et al. 2015, "Certifying and Removing Disparate Impact", definition 1.1, for '
    "any number of groups",
    notes="1 is parity; :func:`~fairq_utils.metrics.four_fifths_rule` asks for at least 0.8. "
    "AIF360 divides a named unprivileged group by a named privileged one instead, which can exceed "
    '1: that is ``directed_ratio("selection_rate", ..., privileged=...)``.',
    example=((1, 1, 1, 1, 1, 1, 0, 0), 0.5),
)
