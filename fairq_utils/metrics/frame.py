"""Many metrics at once, as pandas objects: by group, overall, gaps, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairq_utils.errors import BadInput
from fairq_utils.given import each_name
from fairq_utils.metrics.counts import Counts, count
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.metrics.gaps import (
    Method,
    difference,
    gap_to_overall,
    left_out,
    ratio,
    standard_deviation,
    worst_group,
)
from fairq_utils.metrics.rates import RATES, named, overall, rate, refuse_least
from fairq_utils.metrics.rows import Features


@dataclass(frozen=True)
class MetricFrame:
    """Rates of one prediction by group, and everything that compares them.

    Attributes
    ----------
    by_group : DataFrame, groups x rates
        Fractions; NaN where a denominator is empty or below ``min_cell``.
    overall : Series over rates
        Of all images together.
    gaps : DataFrame, rates x (``difference``, ``ratio``, ``worst_group``, ``standard_deviation``)
        NaN where fewer than two groups have a rate; ``worst_group`` also where neither end of a
        rate is the worse one.
    to_overall : DataFrame, groups x rates
        Each group's rate minus the overall one.
    fairness : Series over :data:`~fairq_utils.metrics.FAIRNESS`
    counts : DataFrame, groups x (``images``, ``TN``, ``FP``, ``FN``, ``TP``)
        The last four are sums of weights where rows have weights.
    left_out : DataFrame
        The cells that are NaN above, with their counts; see :func:`~fairq_utils.metrics.left_out`.
    """

    by_group: pd.DataFrame
    overall: pd.Series
    gaps: pd.DataFrame
    to_overall: pd.DataFrame
    fairness: pd.Series
    counts: pd.DataFrame
    left_out: pd.DataFrame


def frame_of(
    counts: Counts,
    *,
    metrics: Sequence[str] | None = None,
    method: Method = "between_groups",
    min_cell: int = 1,
) -> MetricFrame:
    """All rates and gaps of the compared predictions of some counts.

    Parameters
    ----------
    counts : Counts
    metrics : names in :data:`~fairq_utils.metrics.RATES`, optional
        All if not given.
    method : ``between_groups`` or ``to_overall``
        For differences and ratios.
    min_cell : int
        Groups whose denominator rests on fewer images take no part.

    Raises
    ------
    BadInput
        Unknown rate, or no group has any of these rates.

    Examples
    --------
    For a target of more than two classes, one frame per class:

    >>> from fairq_utils.metrics import one_vs_rest
    >>> classes = one_vs_rest(["cat", "dog", "cow"], ["cat", "cow", "cow"],
    ...                       sensitive_features=["a", "a", "b"])
    >>> frames = {label: frame_of(counts) for label, counts in classes.items()}
    >>> float(frames["cow"].fairness["demographic_parity_difference"])
    0.5
    """
    names = list(RATES if metrics is None else each_name(metrics))
    if not names:
        raise BadInput("metrics is empty: name at least one rate")
    refuse_least(min_cell, counts.images is not None)
    table, index = counts.compared, counts.index
    values = {name: rate(table, name, min_cell=min_cell) for name in names}
    cells = left_out(counts.seen.sum(axis=2), names, groups=counts.groups, min_cell=min_cell)
    by_group = pd.DataFrame(values, index=index)
    if by_group.isna().all(axis=None):
        raise BadInput(
            f"metrics: no group has a denominator of at least {min_cell} images for any of "
            f"{', '.join(names)}; the largest group has {counts.sizes.max()}; "
            "lower min_cell, or give more images"
        )
    options: dict[str, Any] = {"method": method, "min_cell": min_cell}
    gaps = {
        "difference": [float(difference(table, name, **options)) for name in names],
        "ratio": [float(ratio(table, name, **options)) for name in names],
        "worst_group": [
            float(worst_group(table, name, min_cell=min_cell)) if named(name).better else np.nan
            for name in names
        ],
        "standard_deviation": [
            float(standard_deviation(table, name, min_cell=min_cell)) for name in names
        ],
    }
    fairness = {}
    for name, criterion in FAIRNESS.items():
        chosen = options if "method" in criterion.options else {"min_cell": min_cell}
        fairness[name] = float(criterion(table, **chosen))
    flat = table.reshape(-1, 4)
    return MetricFrame(
        by_group=by_group,
        overall=pd.Series({name: float(overall(table, name)) for name in names}),
        gaps=pd.DataFrame(gaps, index=names),
        to_overall=pd.DataFrame(
            {name: gap_to_overall(table, name, min_cell=min_cell) for name in names}, index=index
        ),
        fairness=pd.Series(fairness),
        counts=pd.DataFrame(
            np.column_stack([counts.sizes, flat]),
            index=index,
            columns=["images", "TN", "FP", "FN", "TP"],
        ),
        left_out=cells,
    )


def metric_frame(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sensitive_features: Features,
    metrics: Sequence[str] | None = None,
    method: Method = "between_groups",
    min_cell: int = 1,
    pos_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> MetricFrame:
    """Many rates of labelled rows: by group, overall, gaps.

    fairlearn's ``MetricFrame`` for the rates that are here, without a class to compute them: what
    comes back holds plain pandas objects. Parameters as in :func:`frame_of` and
    :func:`~fairq_utils.metrics.count`.

    Examples
    --------
    >>> frame = metric_frame([1, 0, 1, 0], [1, 1, 1, 0], sensitive_features=["a", "a", "b", "b"],
    ...                      metrics=["accuracy", "selection_rate"])
    >>> frame.by_group.reset_index()
      group  accuracy  selection_rate
    0     a       0.5             1.0
    1     b       1.0             0.5
    >>> frame.gaps["difference"].to_dict()
    {'accuracy': 0.5, 'selection_rate': 0.5}
    """
    counts = count(
        y_true,
        y_pred,
        sensitive_features=sensitive_features,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )
    return frame_of(counts, metrics=metrics, method=method, min_cell=min_cell)


def marginal_and_intersectional(
    counts: Counts,
    *,
    metrics: Sequence[str] | None = None,
    method: Method = "between_groups",
    min_cell: int = 1,
) -> pd.DataFrame:
    """Fairness of each attribute alone, and of all their crossings.

    Parameters
    ----------
    counts : Counts
    metrics : names in :data:`~fairq_utils.metrics.FAIRNESS`, optional
        All if not given.
    method, min_cell
        As in :func:`frame_of`.

    Returns
    -------
    DataFrame
        One row for each attribute and each crossing of two or more (``gender x age``); a column for
        each metric, ``groups`` (how many there are) and ``smallest`` (images in the smallest). A
        max-min gap over more and smaller groups is larger by chance alone: compare rows only
        beside their noise floors.

    Examples
    --------
    >>> people = {"gender": ["f", "f", "m", "m"], "age": ["old", "young", "old", "young"]}
    >>> counts = count([1, 0, 1, 0], [1, 0, 0, 1], sensitive_features=people)
    >>> found = marginal_and_intersectional(counts, metrics=["demographic_parity_difference"])
    >>> found["demographic_parity_difference"].to_dict()
    {'gender': 0.0, 'age': 0.0, 'gender x age': 1.0}
    """
    asked = FAIRNESS if metrics is None else each_name(metrics)
    names = [FAIRNESS.find(name, "metrics").name for name in asked]
    found = {}
    for size in range(1, len(counts.attributes) + 1):
        for attributes in combinations(counts.attributes, size):
            part = counts.by(*attributes)
            values = frame_of(part, method=method, min_cell=min_cell).fairness[names]
            found[" x ".join(attributes)] = {
                **values.to_dict(),
                "groups": len(part.groups),
                "smallest": int(part.sizes.min()),
            }
    return pd.DataFrame.from_dict(found, orient="index")
