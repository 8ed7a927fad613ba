"""From one sensitivity per group to one number: the mean, everyone, the worst, the worst tail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.faults import BadInput

Reducer = Literal["overall", "mean", "worst_group", "cvar"]
Floats: TypeAlias = NDArray[np.float64]
KEY = ["layer", "bits"]


def tail_mean(values: Floats, alpha: float) -> Floats:
    r"""Conditional value at risk at level ``alpha`` of values (..., G), each weighing 1/G.

    The mean of the largest ``(1 - alpha) G`` values, the last of them by its fraction; equal to
    ``min over eta of  eta + sum_g max(v_g - eta, 0) / ((1 - alpha) G)`` (Rockafellar & Uryasev
    2000). The mean at 0; the maximum from ``1 - 1 / G`` on.

    Examples
    --------
    >>> float(tail_mean(np.array([1.0, 5.0, 3.0, 2.0]), 0.5))  # of the worst two
    4.0
    >>> float(tail_mean(np.array([1.0, 5.0, 3.0]), 0.5))  # (5 + 3 / 2) / 1.5
    4.333333333333333
    """
    mass = (1 - alpha) * values.shape[-1]
    shares = np.clip(mass - np.arange(values.shape[-1]), 0, 1)
    found: Floats = np.sort(values, axis=-1)[..., ::-1] @ (shares / shares.sum())
    return found


# (values (..., G), weights of the groups (G,), alpha) -> (...)
REDUCERS: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "overall": lambda values, weights, alpha: values @ weights,
    "mean": lambda values, weights, alpha: values.mean(axis=-1),
    "worst_group": lambda values, weights, alpha: values.max(axis=-1),
    "cvar": lambda values, weights, alpha: tail_mean(values, alpha),
}


@dataclass(frozen=True)
class ByGroup:
    """Sensitivities as an array, and how to reduce it over groups.

    Attributes
    ----------
    rows : DataFrame of R rows
        ``layer``, ``bits`` and ``bytes`` of every candidate, in the table's order.
    names : G names of groups
    values : float64 (R, G)
        Sensitivities.
    reduce : (..., G) -> (...)
    """

    rows: pd.DataFrame
    names: tuple[str, ...]
    values: Floats
    reduce: Callable[[Floats], Floats]


def by_group(
    table: pd.DataFrame,
    reducer: str,
    alpha: float = 0.5,
    weights: Mapping[str, float] | None = None,
    what: str = "reduced",
) -> ByGroup:
    """Read a table of group sensitivities; parameters and errors as in :func:`reduced`."""
    needed = [*KEY, "group", "images", "sensitivity", "bytes"]
    lacking = [column for column in needed if column not in table]
    if lacking or not len(table):
        raise BadInput(
            f"{what}: table: has no {lacking[0] if lacking else 'rows'}; give what "
            "group_sensitivities returns"
        )
    refuse_settings(reducer, alpha, weights, what)
    groups = table.drop_duplicates("group")
    names = tuple(groups["group"])
    rows = table.drop_duplicates(KEY)[[*KEY, "bytes"]].reset_index(drop=True)
    twice = table[table.duplicated([*KEY, "group"])]
    if len(twice) or len(table) != len(rows) * len(names):
        raise BadInput(
            f"{what}: table: has {len(table)} rows, not one for each of {len(rows)} candidates and "
            f"{len(names)} groups; give what group_sensitivities returns"
        )
    wide = table.set_index([*KEY, "group"])["sensitivity"].unstack("group")
    values = wide.loc[pd.MultiIndex.from_frame(rows[KEY]), list(names)].to_numpy(float)
    each = _weights(names, groups["images"].to_numpy(float), weights, what)
    return ByGroup(rows, names, values, lambda found: REDUCERS[reducer](found, each, alpha))


def reduced(
    table: pd.DataFrame,
    reducer: Reducer = "worst_group",
    *,
    alpha: float = 0.5,
    weights: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """One sensitivity per layer and candidate, as :func:`fairq_utils.quantizers.allocate` takes it.

    Parameters
    ----------
    table : from :func:`~fairq_utils.mitigation.sensitivity.group_sensitivities`
    reducer : str
        ``overall``: groups by ``weights``; ``mean``: each group alike; ``worst_group``: the
        largest; ``cvar``: the mean of the worst tail, see :func:`tail_mean`. Taken for each layer
        by itself, a worst group need not be the same from layer to layer;
        :func:`~fairq_utils.mitigation.allocation.allocate_for_groups` reduces the groups' sums.
    alpha : float
        Of ``cvar``, in [0, 1): 0.5 is the worst half.
    weights : mapping of group to weight, optional
        For ``overall``, of any sum; the groups' shares of the images if not given.

    Returns
    -------
    DataFrame
        ``layer``, ``bits``, ``sensitivity``, ``bytes``.

    Raises
    ------
    BadInput
        An unknown reducer, an alpha outside [0, 1), weights of other groups, negative ones or for
        another reducer, or a table that lacks a row.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": "a", "bits": "W4A8", "group": ["f", "m"],
    ...                       "images": [30, 10], "sensitivity": [0.2, 0.6], "bytes": 8})
    >>> reduced(table).sensitivity.item(), round(reduced(table, "overall").sensitivity.item(), 3)
    (0.6, 0.3)
    """
    found = by_group(table, reducer, alpha, weights)
    values = found.reduce(found.values)
    return found.rows.assign(sensitivity=values)[[*KEY, "sensitivity", "bytes"]]


def refuse_settings(
    reducer: str, alpha: float, weights: Mapping[str, float] | None, what: str
) -> None:
    """Refuse an unknown reducer, an alpha outside [0, 1), and weights that it does not use."""
    if reducer not in REDUCERS:
        raise BadInput(f"{what}: {reducer!r} is not one of {', '.join(REDUCERS)}")
    if not 0 <= alpha < 1:
        raise BadInput(f"{what}: alpha: {alpha!r} is not in [0, 1), such as 0.5")
    if weights is not None and reducer != "overall":
        raise BadInput(
            f"{what}: weights: only 'overall' weighs groups, {reducer!r} does not; leave them out"
        )


def _weights(
    names: tuple[str, ...], images: Floats, weights: Mapping[str, float] | None, what: str
) -> Floats:
    """Weight of each group, summing to 1: as given, or its share of the images, (G,)."""
    if weights is None:
        return images / images.sum()
    if set(weights) != set(names):
        raise BadInput(
            f"{what}: weights: are those of {', '.join(map(str, weights))}, but the groups are "
            f"{', '.join(names)}"
        )
    found = np.array([float(weights[name]) for name in names])
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise BadInput(f"{what}: weights: {dict(weights)} must be 0 or more, and not all of them 0")
    return found / found.sum()
