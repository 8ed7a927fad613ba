"""Metrics of scores, before any threshold: area under the ROC curve, and calibration.

Scores cannot be recovered from counts, so these take rows, and are not vectorised over replicates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fairq_utils.errors import BadInput
from fairq_utils.metrics import rows
from fairq_utils.metrics.gaps import LeftOutWarning, Method, described, difference_of
from fairq_utils.metrics.rates import Floats, check_min_cell, refuse_least
from fairq_utils.metrics.rows import Features
from fairq_utils.registry import unknown

BINS = 15  # as in Guo et al. 2017


def _auc(truth: NDArray[np.int64], scores: Floats, weights: Floats, **_: Any) -> float:
    from sklearn.metrics import roc_auc_score  # here, because it takes a second

    return float(roc_auc_score(truth, scores, sample_weight=weights))


def _ece(truth: NDArray[np.int64], scores: Floats, weights: Floats, *, bins: int = BINS) -> float:
    # Bins are open on the left: a score on an edge belongs to the bin below it.
    at = np.clip(np.ceil(scores * bins).astype(np.int64) - 1, 0, bins - 1)
    excess = np.bincount(at, weights=weights * (truth - scores), minlength=bins)
    return float(np.abs(excess).sum() / weights.sum())


@dataclass(frozen=True)
class ScoreMetric:
    """A metric of labels and scores.

    Attributes
    ----------
    of_rows : function
        From labels (n,), scores (n,) and weights above 0 (n,) to a value.
    support : function
        How many images it rests on, from labels.
    among : what ``support`` counts
    better : ``high`` or ``low``
    probability : whether scores must be between 0 and 1
    """

    of_rows: Callable[..., float]
    support: Callable[[NDArray[np.int64]], int]
    among: str
    better: Literal["high", "low"]
    probability: bool


SCORES: dict[str, ScoreMetric] = {
    "roc_auc": ScoreMetric(
        _auc,
        lambda truth: int(min((truth == 1).sum(), (truth == 0).sum())),
        "images of the rarer label",
        "high",
        False,
    ),
    "calibration_error": ScoreMetric(_ece, len, "images", "low", True),
}


@dataclass(frozen=True)
class ScoresByGroup:
    """A score metric of each group.

    Attributes
    ----------
    by_group : Series, NaN where the group is too small
    overall : float
        Of all rows together.
    left_out : DataFrame
        As :func:`~fairq_utils.metrics.left_out`.
    """

    by_group: pd.Series
    overall: float
    left_out: pd.DataFrame


def scores_by_group(
    name: str,
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sensitive_features: Features,
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
    **options: Any,
) -> ScoresByGroup:
    """A metric of :data:`SCORES` for every group.

    Parameters
    ----------
    name : ``roc_auc`` or ``calibration_error``
    y_true : 0 or 1, (N,)
        Any labels if ``pos_label`` is given.
    y_score : (N,)
        Score of label 1; for ``calibration_error`` a probability.
    sensitive_features, min_cell
        As in :func:`~fairq_utils.metrics.equalized_odds_difference`.
    sample_weight : (N,), optional
        Weight of each row, 0 or more; not together with ``min_cell``.
    bins : int
        For ``calibration_error``.

    Raises
    ------
    BadInput
        Unknown name, bad rows (NaN scores among them), or no group that is large enough.

    Examples
    --------
    >>> found = scores_by_group("roc_auc", [1, 0, 1, 0, 1], [0.9, 0.1, 0.3, 0.6, 0.8],
    ...                         sensitive_features=["a", "a", "b", "b", "c"])
    >>> found.by_group.tolist(), found.left_out["group"].tolist()
    ([1.0, 0.0, nan], ['c'])
    """
    check_min_cell(min_cell)
    if name not in SCORES:
        raise BadInput(f"scores_by_group: {unknown(name, SCORES)}")
    metric = SCORES[name]
    refuse_least(min_cell, sample_weight is not None)
    truth, scores, weights = rows.scored(
        y_true, y_score, sample_weight, pos_label=pos_label, probability=metric.probability
    )
    groups = rows.groups(sensitive_features, rows=len(truth))
    counted = weights > 0
    values = np.full(len(groups.names), np.nan)
    missing = []
    for at, group in enumerate(groups.names):
        inside = counted & (groups.codes == at)
        n = metric.support(truth[inside])
        if n >= min_cell:
            values[at] = metric.of_rows(truth[inside], scores[inside], weights[inside], **options)
        else:
            missing.append((name, group, metric.among, n, min_cell))
    cells = pd.DataFrame(missing, columns=["rate", "group", "among", "count", "min_cell"])
    if np.isnan(values).all():
        raise BadInput(
            f"{name} is not defined in any group: left out {described(cells)}; give more rows of "
            "these, or lower min_cell"
        )
    together = metric.of_rows(truth[counted], scores[counted], weights[counted], **options)
    by_group = pd.Series(values, index=groups.index, name=name)
    return ScoresByGroup(by_group, together, cells)


def roc_auc_difference(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Difference in area under the ROC curve over groups, a fraction.

    A group's area is the chance that one of its members of label 1 scores above one of label 0
    (scikit-learn's ``roc_auc_score``). A group of one label takes no part. How groups rank against
    each other plays no part: equal areas do not make one threshold fair.

    Examples
    --------
    >>> roc_auc_difference([1, 0, 1, 0], [0.9, 0.1, 0.3, 0.6],
    ...                    sensitive_features=["a", "a", "b", "b"])
    1.0
    """
    found = scores_by_group(
        "roc_auc",
        y_true,
        y_score,
        sensitive_features=sensitive_features,
        min_cell=min_cell,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )
    return gap_of("roc_auc_difference", found, method)


def calibration_error(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    bins: int = BINS,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Expected calibration error of the probability of label 1, a fraction.

    ECE = sum_b (n_b / N) abs(mean label in b - mean score in b) over ``bins`` of equal width
    (Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; Guo et
    al. 2017, "On Calibration of Modern Neural Networks", bin the confidence in the predicted class
    instead).

    The error of a perfectly calibrated model is above 0 in a finite sample, the more so the
    smaller it is: small groups look worse calibrated than large ones for that reason alone.

    Examples
    --------
    >>> round(calibration_error([1, 0, 1, 1], [0.9, 0.1, 0.9, 0.9]), 6)
    0.1
    """
    read = rows.scored(y_true, y_score, sample_weight, pos_label=pos_label, probability=True)
    if bins < 1:
        raise BadInput(f"bins: {bins} is not at least 1; 15 is usual")
    return _ece(*read, bins=bins)


def calibration_error_difference(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sensitive_features: Features,
    method: Method = "between_groups",
    bins: int = BINS,
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Difference in :func:`calibration_error` over groups, a fraction.

    Give ``min_cell`` where groups differ much in size, because of what is said there.

    Examples
    --------
    >>> round(calibration_error_difference([1, 0, 1, 1], [0.9, 0.1, 0.5, 0.5],
    ...                                    sensitive_features=["a", "a", "b", "b"]), 6)
    0.4
    """
    if bins < 1:
        raise BadInput(f"bins: {bins} is not at least 1; 15 is usual")
    found = scores_by_group(
        "calibration_error",
        y_true,
        y_score,
        sensitive_features=sensitive_features,
        min_cell=min_cell,
        pos_label=pos_label,
        sample_weight=sample_weight,
        bins=bins,
    )
    return gap_of("calibration_error_difference", found, method)


def gap_of(name: str, found: ScoresByGroup, method: Method = "between_groups") -> float:
    """Difference over groups; a warning points at the caller's caller.

    Raises
    ------
    BadInput
        Fewer than two groups have a value.
    """
    gap = float(difference_of(found.by_group.to_numpy(), np.asarray(found.overall), method))
    if np.isnan(gap):
        raise BadInput(
            f"{name} is not defined: it needs two groups; left out "
            f"{described(found.left_out)}; give more rows of these, or lower min_cell"
        )
    if len(found.left_out):
        warnings.warn(LeftOutWarning(name, found.left_out), stacklevel=3)
    return gap
