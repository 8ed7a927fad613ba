"""Sufficiency and errors: what a prediction is worth, and how often it is wrong, in each group.

Sufficiency is the third family of group criteria in Barocas, Hardt and Narayanan, "Fairness and
Machine Learning" (2023), chapter 3: among people of the same prediction, the label does not depend
on the group. Criteria on errors alone stand beside it.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from fairq_utils.metrics.evaluation import measured
from fairq_utils.metrics.gaps import Method
from fairq_utils.metrics.rows import Features


def predictive_parity_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Difference in positive predictive value, p_g = P(label = 1 | prediction = 1, g).

    max_g p_g - min_g p_g; Chouldechova 2017, "Fair Prediction with Disparate Impact". A
    group in which nobody is selected takes no part; AIF360 and scikit-learn take its value as
    0.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> predictive_parity_difference([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                              sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "predictive_parity_difference",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def predictive_parity_ratio(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Ratio of positive predictive values: min_g p_g / max_g p_g.

    See :func:`predictive_parity_difference`.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> predictive_parity_ratio([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                         sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "predictive_parity_ratio",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def treatment_equality_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Difference in the ratio of false negatives to false positives, q_g = FN_g / FP_g.

    max_g q_g - min_g q_g, not bounded by 1; Berk et al. 2021, "Fairness in Criminal Justice Risk
    Assessments: The State of the Art". A group without false positives takes no part.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> treatment_equality_difference([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0, 1, 1],
    ...                               sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "treatment_equality_difference",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def treatment_equality_ratio(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Ratio of FN_g / FP_g over groups, between 0 and 1.

    See :func:`treatment_equality_difference`.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> treatment_equality_ratio([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0, 1, 1],
    ...                          sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "treatment_equality_ratio",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def accuracy_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Difference in accuracy, a_g = P(prediction = label | g): accuracy parity.

    max_g a_g - min_g a_g; Zafar et al. 2017, "Fairness Beyond Disparate Treatment and Disparate
    Impact", section 2, states it for the overall misclassification rate. fairlearn:
    ``accuracy_score_difference``.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> accuracy_difference([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                     sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "accuracy_difference",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def accuracy_ratio(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Ratio of accuracies: min_g a_g / max_g a_g; see :func:`accuracy_difference`.

    fairlearn: ``accuracy_score_ratio``.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> accuracy_ratio([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "accuracy_ratio",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def worst_group_accuracy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Accuracy of the group with the lowest.

    Sagawa et al. 2020, "Distributionally Robust Neural Networks for Group Shifts".
    fairlearn: ``accuracy_score_group_min``.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> worst_group_accuracy([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                      sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "worst_group_accuracy",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        min_cell=min_cell,
        pos_label=pos_label,
    )
