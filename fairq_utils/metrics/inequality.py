"""Inequality of benefits over people and over groups: generalized entropy and Theil's index.

Speicher et al. 2018, "A Unified Approach to Quantifying Algorithmic Unfairness", give each person i
the benefit b_i = 1 + prediction_i - label_i: 0 for a false negative, 1 for a right prediction, 2
for a false positive. With mean benefit m over n people,

    E_a = sum_i ((b_i / m)^a - 1) / (n a (a - 1)),  E_1 = sum_i (b_i / m) ln(b_i / m) / n,
    E_0 = -sum_i ln(b_i / m) / n.

The benefits are functions of the counts, so these too are vectorised over leading axes of a table
(..., G, 2, 2). Where everyone's benefit is 0 the result is NaN, and an error for rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairq_utils.errors import BadInput
from fairq_utils.metrics.counts import count, everyone
from fairq_utils.metrics.rates import Floats, Table
from fairq_utils.metrics.rows import Features

# Benefit of each cell label x prediction.
BENEFIT = np.array([[1.0, 2.0], [0.0, 1.0]])


def entropy(benefits: Floats, people: NDArray[Any], alpha: float) -> Floats:
    """Generalized entropy of benefits (..., K), each had by so many people (..., K); (...)."""
    n = people.sum(axis=-1)
    mean = (people * benefits).sum(axis=-1) / np.where(n == 0, 1, n)
    positive = mean > 0
    share = benefits / np.where(positive, mean, 1)[..., None]
    # 0 ln 0 = 0, ln 0 and 0^negative are infinite; classes without people must not turn that into
    # NaN, so they do not enter.
    with np.errstate(divide="ignore", invalid="ignore"):
        if alpha == 1:
            each = np.where(share > 0, share * np.log(share), 0)
        elif alpha == 0:
            each = -np.log(share)
        else:
            each = (share**alpha - 1) / (alpha * (alpha - 1))
        total = np.where(people > 0, people * each, 0).sum(axis=-1)
    return np.where(positive, total / np.where(n == 0, 1, n), np.nan)


def between_people(table: Table, alpha: float = 2) -> Floats:
    """Entropy E_a over all people of a table (..., G, 2, 2), whatever their group; (...).

    Examples
    --------
    >>> float(between_people([[[1, 1], [1, 1]]]))  # benefits 1, 2, 0, 1
    0.25
    """
    people = np.asarray(table).sum(axis=-3)
    cells = people.reshape(*people.shape[:-2], 4)
    return entropy(np.broadcast_to(BENEFIT.ravel(), cells.shape), cells, alpha)


def between_groups(table: Table, alpha: float = 2) -> Floats:
    """Entropy E_a after everyone's benefit is replaced by the mean of the group; (...).

    Examples
    --------
    >>> table = [[[1, 1], [1, 1]], [[0, 0], [1, 3]]]  # mean benefits 1 and 0.75
    >>> round(float(between_groups(table)), 6)
    0.010204
    """
    counts = np.asarray(table)
    n = counts.sum(axis=(-2, -1))
    mean = (counts * BENEFIT).sum(axis=(-2, -1)) / np.where(n == 0, 1, n)
    return entropy(mean, n, alpha)


def variation(table: Table) -> Floats:
    """Coefficient of variation of the benefits over people, sqrt(2 E_2); (...)."""
    out: Floats = np.sqrt(2 * between_people(table, 2))
    return out


INEQUALITY: dict[str, Callable[[Table], Floats]] = {
    "generalized_entropy_index": between_people,
    "theil_index": partial(between_people, alpha=1),
    "coefficient_of_variation": variation,
    "between_group_generalized_entropy_index": between_groups,
    "between_group_theil_index": partial(between_groups, alpha=1),
}


def generalized_entropy_index(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    alpha: float = 2,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Inequality E_a of benefits over people; 0 where everyone benefits alike.

    As AIF360's metric of this name, but for ``alpha=0``, where AIF360 divides the formula of
    Speicher et al. by the mean benefit once more. Infinite for ``alpha <= 0`` if
    anyone's benefit is 0.

    Examples
    --------
    >>> generalized_entropy_index([0, 0, 1, 1], [0, 1, 0, 1])
    0.25
    """
    index = partial(between_people, alpha=alpha)
    return _measured(
        "generalized_entropy_index", index, y_true, y_pred, None, pos_label, sample_weight
    )


def theil_index(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Theil index E_1 over people, in nats; as AIF360's metric of this name.

    Examples
    --------
    >>> round(theil_index([0, 0, 1, 1], [0, 1, 0, 1]), 6)
    0.346574
    """
    index = INEQUALITY["theil_index"]
    return _measured("theil_index", index, y_true, y_pred, None, pos_label, sample_weight)


def coefficient_of_variation(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Standard deviation over mean of the benefits, sqrt(2 E_2); as AIF360 defines it.

    Examples
    --------
    >>> round(coefficient_of_variation([0, 0, 1, 1], [0, 1, 0, 1]), 6)
    0.707107
    """
    return _measured(
        "coefficient_of_variation", variation, y_true, y_pred, None, pos_label, sample_weight
    )


def between_group_generalized_entropy_index(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    alpha: float = 2,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Part of the inequality that lies between groups, not within them.

    E_a with each benefit replaced by its group's mean (Speicher et al. 2018); as
    AIF360's ``between_all_groups_generalized_entropy_index``, but for ``alpha=0``, as in
    :func:`generalized_entropy_index`. ``alpha=1`` is AIF360's between-group Theil index.

    Examples
    --------
    >>> between_group_generalized_entropy_index([0, 0, 1, 1], [1, 0, 0, 1],
    ...                                         sensitive_features=["a", "a", "b", "b"])
    0.125
    """
    index = partial(between_groups, alpha=alpha)
    name = "between_group_generalized_entropy_index"
    return _measured(name, index, y_true, y_pred, sensitive_features, pos_label, sample_weight)


def _measured(
    name: str,
    index: Callable[[Table], Floats],
    y_true: ArrayLike,
    y_pred: ArrayLike,
    features: Features | None,
    pos_label: Any,
    sample_weight: ArrayLike | None,
) -> float:
    read: dict[str, Any] = {"pos_label": pos_label, "sample_weight": sample_weight}
    if features is None:
        table = everyone(y_true, y_pred, **read)
    else:
        counts = count(y_true, y_pred, sensitive_features=features, **read)
        table = counts.compared
    value = float(index(table))
    if np.isnan(value):
        raise BadInput(
            f"{name} is not defined: every row is a false negative, of benefit 0, and there is no "
            "mean to compare with; give rows that are not all refused wrongly"
        )
    return value
