"""Independence: the prediction does not depend on the group.

The first of the three families of group criteria in Barocas, Hardt and Narayanan, "Fairness and
Machine Learning" (2023), chapter 3. Labels play no part, so a perfect classifier has a gap wherever
base rates differ.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from numpy.typing import ArrayLike

from fairq_utils.metrics.counts import count
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.metrics.evaluation import measured, value_of
from fairq_utils.metrics.gaps import Method
from fairq_utils.metrics.rows import Features


def demographic_parity_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Difference in selection rate, r_g = P(prediction = 1 | group = g): max_g r_g - min_g r_g.

    0 where every group is selected equally often. As fairlearn's function of this name; Dwork et
    al. 2012, "Fairness through Awareness", section 3.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> demographic_parity_difference([1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0],
    ...                               sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.0
    """
    return measured(
        "demographic_parity_difference",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def demographic_parity_ratio(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Ratio of selection rates, r_g = P(prediction = 1 | group = g): min_g r_g / max_g r_g.

    1 where every group is selected equally often. As fairlearn's function of this name, but an
    error where fairlearn returns NaN (nobody is selected).
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> demographic_parity_ratio([1, 1, 0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0],
    ...                          sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "demographic_parity_ratio",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def disparate_impact(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
) -> float:
    """Ratio of the least to the most selected group's selection rate; 1 is parity.

    Feldman et al. 2015, "Certifying and Removing Disparate Impact", definition 1.1, for any number
    of groups. AIF360 divides a named unprivileged group by a named privileged one instead, which
    can exceed 1: that is ``directed_ratio("selection_rate", ..., privileged=...)``.
    Parameters, warnings and errors as in :func:`~fairq_utils.metrics.fairness`.

    Examples
    --------
    >>> disparate_impact([1, 1, 0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0],
    ...                  sensitive_features=["a", "a", "a", "a", "b", "b", "b", "b"])
    0.5
    """
    return measured(
        "disparate_impact",
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        method=method,
        min_cell=min_cell,
        pos_label=pos_label,
    )


def four_fifths_rule(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    min_cell: int = 1,
    pos_label: Any = None,
) -> bool:
    """Whether every group's selection rate is at least four fifths of the highest.

    The rule of thumb of the Uniform Guidelines on Employee Selection Procedures (29 CFR 1607.4 D,
    1978). Compared in whole numbers: 0.36 / 0.45 passes, though as floats it is below 0.8. Where
    nobody is selected, no group is selected less often than another, and the rule is met.
    Parameters and errors as in :func:`disparate_impact`; it needs two groups of ``min_cell`` images
    unless there is only one group.

    Examples
    --------
    >>> four_fifths_rule([1, 1, 0, 0], [1, 1, 1, 0], sensitive_features=["a", "a", "b", "b"])
    False
    """
    counts = count(y_true, y_pred, sensitive_features=sensitive_features, pos_label=pos_label)
    # Its warning and its errors for groups that are too small.
    value_of(
        "four_fifths_rule",
        FAIRNESS["demographic_parity_difference"],
        counts,
        min_cell=min_cell,
        stacklevel=3,
    )
    selected = counts.compared[:, :, 1].sum(axis=1)
    rates = [
        Fraction(int(k), int(n))
        for k, n in zip(selected, counts.sizes, strict=True)
        if n >= min_cell
    ]
    return min(rates) >= Fraction(4, 5) * max(rates)
