"""Separation: among people of the same label, the prediction does not depend on the group.

The second family of group criteria in Barocas, Hardt and Narayanan, "Fairness and Machine Learning"
(2023), chapter 3.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from fairq_utils.metrics.criteria import Aggregate
from fairq_utils.metrics.evaluation import measured
from fairq_utils.metrics.gaps import Method
from fairq_utils.metrics.rows import Features


def equalized_odds_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    agg: Aggregate = "worst_case",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Differences in true and in false positive rate, joined.

    With t_g = P(prediction = 1 | label = 1, group = g) and f_g the same for label 0:
    max(max_g t_g - min_g t_g, max_g f_g - min_g f_g), or their mean with ``agg="mean"``. Hardt et
    al. 2016, "Equality of Opportunity in Supervised Learning", definition 2.1.

    As fairlearn's function of this name, except that fairlearn takes the rate of a group without
    such labels as 0, and here the group takes no part. Where one of the two differences is not
    defined at all, the other one stands alone.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> equalized_odds_difference([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                           sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "equalized_odds_difference",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        agg=agg,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def equalized_odds_ratio(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    agg: Aggregate = "worst_case",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Ratios of true and of false positive rates, joined.

    min(min_g t_g / max_g t_g, min_g f_g / max_g f_g), rates as in
    :func:`equalized_odds_difference`, or the mean of the two with ``agg="mean"``.

    As fairlearn's function of this name where both ratios are defined. Where one is not (such as
    0 / 0: nobody of label 0 is ever selected), the other one stands alone; fairlearn then returns
    NaN or the other one, depending on which of the two is missing.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> equalized_odds_ratio([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                      sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.0
    """
    return measured(
        "equalized_odds_ratio",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        agg=agg,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def equal_opportunity_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Difference in true positive rate, t_g = P(prediction = 1 | label = 1, group = g).

    max_g t_g - min_g t_g; Hardt et al. 2016, definition 2.2. As fairlearn's function of this
    name, except that fairlearn takes the rate of a group without label 1 as 0, and here the group
    takes no part. AIF360's is signed:
    ``directed_difference("true_positive_rate", ..., privileged=...)``.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> equal_opportunity_difference([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                              sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "equal_opportunity_difference",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def equal_opportunity_ratio(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Ratio of true positive rates: min_g t_g / max_g t_g.

    See :func:`equal_opportunity_difference`.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> equal_opportunity_ratio([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                         sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "equal_opportunity_ratio",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def predictive_equality_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Difference in false positive rate, f_g = P(prediction = 1 | label = 0, group = g).

    max_g f_g - min_g f_g; Corbett-Davies et al. 2017, "Algorithmic Decision Making and the Cost of
    Fairness", section 2.
    fairlearn calls it ``false_positive_rate_difference`` and takes the rate of a group without
    label 0 as 0; here the group takes no part.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> predictive_equality_difference([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                                sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "predictive_equality_difference",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def predictive_equality_ratio(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Ratio of false positive rates: min_g f_g / max_g f_g.

    See :func:`predictive_equality_difference`.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> predictive_equality_ratio([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1, 1, 0],
    ...                           sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "predictive_equality_ratio",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def average_abs_odds_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Mean of the differences in true and in false positive rate.

    ``equalized_odds_difference`` with ``agg="mean"``, under the name that AIF360 gives it; equal to
    AIF360's for two groups, and defined here for any number. The signed version is
    :func:`~fairq_utils.metrics.average_odds_difference`.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> average_abs_odds_difference([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                             sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "average_abs_odds_difference",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )
