"""What a budget of bytes buys: the most harm avoided per byte, or what chance draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.faults import BadInput


def choose(scores: pd.Series, costs: pd.Series, budget: float) -> list[Any]:
    """What to keep: the most harm per byte first, then what still fits.

    Parameters
    ----------
    scores : Series
        Harm of quantizing each unit; those of 0 or less are never chosen.
    costs : Series, of the same index
        Bytes, 0 or more.
    budget : float
        Bytes for all that is chosen.

    Returns
    -------
    list
        Index values, best first; of equal harm per byte, the earlier first.

    Raises
    ------
    BadInput
        A score that is not a number, or a unit without a cost.

    Examples
    --------
    >>> scores = pd.Series({"a": 3.0, "b": 4.0, "c": 1.0, "d": -9.0})
    >>> choose(scores, pd.Series({"a": 3, "b": 8, "c": 2, "d": 1}), 6)
    ['a', 'c']
    """
    missing = [unit for unit in scores.index if unit not in costs.index]
    if missing:
        raise BadInput(f"choose: {missing[0]!r} has a score but no cost; give the bytes of each")
    unknown = [unit for unit, score in scores.items() if math.isnan(score)]
    if unknown:
        raise BadInput(f"choose: the score of {unknown[0]!r} is not a number; leave it out")
    price = costs.loc[scores.index].to_numpy(float)
    harm = scores.to_numpy(float)
    useful = np.flatnonzero(harm > 0)
    ratio = np.divide(harm, price, out=np.full(len(harm), np.inf), where=price > 0)
    order = useful[np.argsort(-ratio[useful], kind="stable")]
    return [scores.index[at] for at in _that_fit(order, price, budget)]


def choose_at_random(costs: pd.Series, budget: float, seed: int) -> list[Any]:
    """What to keep by chance: units in a random order, as long as they fit.

    Parameters
    ----------
    costs : Series
        Bytes of each unit.
    budget : float
        Bytes for all that is chosen.
    seed : int

    Returns
    -------
    list
        Index values, in the order in which they were drawn.

    Examples
    --------
    >>> costs = pd.Series({"a": 3, "b": 8, "c": 2})
    >>> sorted(choose_at_random(costs, 6, 0))
    ['a', 'c']
    """
    order = np.random.default_rng(seed).permutation(len(costs))
    return [costs.index[at] for at in _that_fit(order, costs.to_numpy(float), budget)]


def _that_fit(order: NDArray[Any], price: NDArray[Any], budget: float) -> list[int]:
    """Positions in this order, as long as the budget lasts; one that is too dear is passed over."""
    left, found = budget, []
    for at in order:
        if price[at] <= left:
            left -= price[at]
            found.append(int(at))
    return found
