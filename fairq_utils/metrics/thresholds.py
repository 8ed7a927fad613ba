"""Gaps with the threshold taken out: how much of a gap is where the threshold stands.

A gap at one fixed threshold mixes two things: how well scores rank within each group, and where
the threshold falls among each group's scores. Quantization often shifts scores, so the two are
measured apart here:

- :func:`difference_at_common_threshold`: one threshold for all, placed anew for these scores.
  What a shift of all scores did to a gap disappears.
- :func:`difference_at_equal_rate`: each group its own threshold, at which one rate (say, the false
  positive rate) is the same for all. What is left of the gap in another rate no choice of
  thresholds takes away.

Thresholds are a choice, and a choice made on the test set flatters: place them on validation
images and pass ``threshold`` or ``at``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fairq_utils.errors import BadInput
from fairq_utils.metrics import rows
from fairq_utils.metrics.counts import count, everyone
from fairq_utils.metrics.criteria import Criterion
from fairq_utils.metrics.gaps import difference
from fairq_utils.metrics.rates import Floats, check_min_cell, named, refuse_least
from fairq_utils.metrics.row_metrics import value_of
from fairq_utils.metrics.rows import Features
from fairq_utils.metrics.scores import ScoresByGroup, gap_of

ROUNDING = 1e-12  # two fractions that are closer are the same one
EQUAL = ("selection_rate", "true_positive_rate", "false_positive_rate")


def common_threshold(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    maximise: str = "accuracy",
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """The threshold t for which predicting 1 where score >= t is best over all rows.

    Parameters
    ----------
    y_true : 0 or 1, (N,)
        Any labels if ``pos_label`` is given.
    y_score : (N,)
    maximise : str
        A rate of :data:`~fairq_utils.metrics.RATES` that is better when high. With
        ``balanced_accuracy`` it is Youden's threshold (Youden 1950).
    sample_weight : (N,), optional
        Weight of each row, 0 or more.

    Returns
    -------
    float
        Half-way between two scores that occur, so that a rounding error in a score flips nothing;
        the lowest score if all are selected, infinity if none is. The lowest of equally good ones.

    Raises
    ------
    BadInput
        Bad rows, a rate that is not better when high, or one that is defined at no threshold.

    Examples
    --------
    >>> common_threshold([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], maximise="true_negative_rate")
    0.6000000000000001
    """
    truth, scores, weights = rows.scored(y_true, y_score, sample_weight, pos_label=pos_label)
    counted = weights > 0
    truth, scores, weights = truth[counted], scores[counted], weights[counted]
    objective = named(maximise)
    if objective.better != "high":
        raise BadInput(
            f"maximise: {maximise} is not better when high; name a rate that is, such as accuracy"
        )
    levels, at = np.unique(scores, return_inverse=True)
    # Images below each candidate, by label: (candidates, 2). Candidate k selects levels[k:].
    below = np.zeros((len(levels) + 1, 2))
    np.add.at(below, (at + 1, truth), weights)
    below = below.cumsum(axis=0)
    table = np.stack([below, below[-1] - below], axis=-1)[:, None]  # (candidates, 1, 2, 2)
    values = objective(table)[:, 0]
    if np.isnan(values).all():
        raise BadInput(
            f"maximise: {maximise} needs {objective.among}, and y_true has none; give such rows, "
            "or name another rate"
        )
    best = int(np.nanargmax(values))
    if best == 0:
        return float(levels[0])
    return float("inf") if best == len(levels) else float(levels[best - 1 : best + 1].mean())


def difference_at_common_threshold(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sensitive_features: Features,
    rate: str = "selection_rate",
    threshold: float | None = None,
    maximise: str = "accuracy",
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Difference in a rate over groups, max_g r_g - min_g r_g, at the best common threshold.

    Parameters
    ----------
    y_true, y_score, maximise
        As in :func:`common_threshold`.
    sensitive_features, min_cell
        As in :func:`~fairq_utils.metrics.equalized_odds_difference`.
    sample_weight : (N,), optional
        Weight of each row, 0 or more; not together with ``min_cell``.
    rate : str
        Any of :data:`~fairq_utils.metrics.RATES`.
    threshold : float, optional
        One that was placed before, on other images; placed on these images if not given.

    Raises
    ------
    BadInput
        As :func:`common_threshold`; an unknown rate, or fewer than two groups that have it.

    Examples
    --------
    >>> difference_at_common_threshold([1, 0, 1, 0], [-0.9, -3.2, -1.1, -0.7],
    ...                                sensitive_features=["a", "a", "b", "b"])
    0.5
    """
    refuse_least(min_cell, sample_weight is not None)
    truth, scores, _ = rows.scored(y_true, y_score, sample_weight, pos_label=pos_label)
    if threshold is None:
        threshold = common_threshold(truth, scores, maximise=maximise, sample_weight=sample_weight)
    counts = count(
        truth,
        scores >= threshold,
        sensitive_features=sensitive_features,
        sample_weight=sample_weight,
    )
    name = f"{named(rate).name} difference at threshold {threshold:.4g}"
    return value_of(Criterion(name, (rate,), difference), counts, min_cell=min_cell)


def rates_at_equal(
    equal: str,
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sensitive_features: Features,
    at: float | None = None,
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> pd.DataFrame:
    """Rates of each group at its own threshold, where the rate ``equal`` is the same for all.

    A finite group reaches its rates in steps. Between two steps the threshold is drawn between the
    two neighbours with the probability that makes the expected rate exact, as in Hardt et al. 2016,
    section 4.2: linear interpolation along the group's ROC curve.

    Parameters
    ----------
    equal : ``selection_rate``, ``true_positive_rate`` or ``false_positive_rate``
    y_true, y_score, sensitive_features, min_cell, pos_label, sample_weight
        As in :func:`~fairq_utils.metrics.scores_by_group`.
    at : float, optional
        The rate, a fraction; that of all rows at :func:`common_threshold` if not given.

    Returns
    -------
    DataFrame
        One row per group: ``selection_rate``, ``true_positive_rate``, ``false_positive_rate`` and
        ``count`` (images of the rarer label). NaN where that is below ``min_cell``.

    Raises
    ------
    BadInput
        Unknown rate, ``at`` outside 0 to 1, bad rows, or rows of one label only.

    Examples
    --------
    >>> rates_at_equal("false_positive_rate", [1, 1, 0, 0, 1, 1, 0, 0],
    ...                [0.9, 0.4, 0.5, 0.1, 0.6, 0.5, 0.4, 0.3], at=0.0,
    ...                sensitive_features=["a"] * 4 + ["b"] * 4)["true_positive_rate"].tolist()
    [0.5, 1.0]
    """
    check_min_cell(min_cell)
    if equal not in EQUAL:
        raise BadInput(f"equal: {equal!r} is not one of {', '.join(EQUAL)}")
    refuse_least(min_cell, sample_weight is not None)
    truth, scores, weights = rows.scored(y_true, y_score, sample_weight, pos_label=pos_label)
    groups = rows.groups(sensitive_features, rows=len(truth))
    counted = weights > 0
    if truth[counted].min() == truth[counted].max():
        raise BadInput(
            f"y_true: every row is {truth[counted][0]}; a threshold needs both labels: give "
            "rows of the other"
        )
    if at is None:
        predicted = scores >= common_threshold(truth, scores, sample_weight=weights)
        at = float(named(equal)(everyone(truth, predicted, sample_weight=weights))[0])
    if not 0 <= at <= 1:
        raise BadInput(f"at: {at} is not between 0 and 1; give a rate, a fraction")
    found = []
    for code in range(len(groups.names)):
        inside = counted & (groups.codes == code)
        n = int(min((truth[inside] == 1).sum(), (truth[inside] == 0).sum()))
        rates = (
            _on_curve(truth[inside], scores[inside], weights[inside], equal, at)
            if n >= min_cell
            else dict.fromkeys(EQUAL, np.nan)
        )
        found.append({**rates, "count": n})
    return pd.DataFrame(found, index=groups.index)


def difference_at_equal_rate(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sensitive_features: Features,
    rate: str = "true_positive_rate",
    equal: str = "false_positive_rate",
    at: float | None = None,
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Difference in ``rate`` over groups, each at its own threshold where ``equal`` is the same.

    max_g r_g - min_g r_g over :func:`rates_at_equal`, whose parameters and errors these are; by
    default the gap in true positive rate at the same false positive rate, as face verification
    reports it. Groups without both labels take no part (a warning lists them).

    Examples
    --------
    >>> difference_at_equal_rate([1, 1, 0, 0, 1, 1, 0, 0],
    ...                          [0.9, 0.4, 0.5, 0.1, 0.6, 0.5, 0.4, 0.3], at=0.0,
    ...                          sensitive_features=["a"] * 4 + ["b"] * 4)
    0.5
    """
    if rate not in EQUAL or rate == equal:
        others = ", ".join(name for name in EQUAL if name != equal)
        raise BadInput(f"rate: {rate!r} is not one of {others}")
    found = rates_at_equal(
        equal,
        y_true,
        y_score,
        sensitive_features=sensitive_features,
        at=at,
        min_cell=min_cell,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )
    small = found[found[rate].isna()]
    cells = pd.DataFrame(
        {
            "rate": rate,
            "group": ["|".join(np.atleast_1d(group)) for group in small.index],
            "among": "images of the rarer label",
            "count": small["count"].to_numpy(),
            "min_cell": min_cell,
        }
    )
    return gap_of(f"{rate} difference at equal {equal}", ScoresByGroup(found[rate], np.nan, cells))


def _on_curve(
    truth: NDArray[np.int64], scores: Floats, weights: Floats, equal: str, at: float
) -> dict[str, float]:
    """The rates of one group at the point of its ROC curve where ``equal`` is ``at``."""
    from sklearn.metrics import roc_curve  # here, because it takes a second

    false, true, _ = roc_curve(truth, scores, sample_weight=weights, drop_intermediate=False)
    share = np.average(truth, weights=weights)
    selected = share * true + (1 - share) * false
    curve = {
        "selection_rate": selected,
        "true_positive_rate": true,
        "false_positive_rate": false,
    }
    along = curve[equal]
    reached = np.flatnonzero(np.abs(along - at) < ROUNDING)
    if len(reached):
        # Several thresholds can share the rate held equal: of these the best, which has the highest
        # true positive rate (the last) or the lowest false positive rate (the first).
        best = reached[-1 if equal == "false_positive_rate" else 0]
        return {name: float(values[best]) for name, values in curve.items()}
    after = int(np.searchsorted(along, at))
    part = (at - along[after - 1]) / (along[after] - along[after - 1])
    return {
        name: float(values[after - 1] + part * (values[after] - values[after - 1]))
        for name, values in curve.items()
    }
