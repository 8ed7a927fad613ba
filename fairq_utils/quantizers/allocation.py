"""Which bits each layer gets: the least sum of sensitivities under a budget of bytes.

An integer programme (as in Hubara et al. 2021, AdaQuant, and Yao et al. 2021, HAWQ-V3): with
``x[l, b]`` in {0, 1} saying that layer ``l`` gets candidate ``b``::

    minimise    sum over l, b of  sensitivity[l, b] x[l, b]
    subject to  sum over b of x[l, b] = 1  for every layer l
                sum over l, b of  bytes[l, b] x[l, b] <= budget
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp


def allocate(table: pd.DataFrame, budget: int) -> dict[str, str]:
    """Bits per layer with the least sum of sensitivities, exactly, by an integer programme.

    Parameters
    ----------
    table : from :func:`~fairq_utils.quantizers.sensitivities`
        ``layer``, ``bits``, ``sensitivity`` and ``bytes``.
    budget : int
        Bytes for these layers together.

    Returns
    -------
    dict
        Layer -> bits.

    Raises
    ------
    ValueError
        No allocation is so small: names the smallest.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": ["a", "a", "b", "b"], "bits": ["W4A8", "W8A8"] * 2,
    ...                       "sensitivity": [3.0, 1.0, 9.0, 2.0], "bytes": [4, 8, 4, 8]})
    >>> allocate(table, 12)
    {'a': 'W4A8', 'b': 'W8A8'}
    """
    return solve(table, budget, table["sensitivity"].to_numpy(float))


@dataclass(frozen=True)
class Further:
    """Continuous variables v beside the choices x of :func:`solve`.

    Attributes
    ----------
    cost : (K,)
        What the sum of costs gains by ``cost @ v``.
    low, high : (K,)
        Bounds of v, infinite where there are none.
    rows : (M, R + K)
        ``rows @ (x, v) <= 0``.
    """

    cost: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    rows: NDArray[np.float64]


def solve(
    table: pd.DataFrame, budget: int, cost: NDArray[np.float64], further: Further | None = None
) -> dict[str, str]:
    """Bits per layer with the least sum of costs under a budget, by an integer programme.

    Parameters
    ----------
    table : R rows of ``layer``, ``bits`` and ``bytes``
    budget : int
        Bytes for these layers together.
    cost : (R,)
        Of each row; it may be of any size, ``further`` must be of the order of 1.
    further : continuous variables and constraints, if there are any

    Returns
    -------
    dict
        Layer -> bits.

    Raises
    ------
    ValueError
        As in :func:`allocate`.
    """
    _affordable(table, budget)
    layers = table["layer"].to_numpy()
    names = list(dict.fromkeys(layers))
    one_each = np.array([layers == name for name in names], float)
    bytes_ = table["bytes"].to_numpy(float)
    none = np.zeros(0)
    more = Further(none, none, none, np.zeros((0, len(cost)))) if further is None else further
    beside = len(more.cost)
    cost = cost / max(float(np.abs(cost).max()), 1e-300)  # the solver's tolerances are absolute

    def at_most(rows: NDArray[np.float64], high: float, low: float = -np.inf) -> LinearConstraint:
        """A constraint on the choices alone."""
        return LinearConstraint(np.pad(np.atleast_2d(rows), ((0, 0), (0, beside))), low, high)

    constraints = [at_most(one_each, 1, 1), at_most(bytes_, budget)]
    constraints += [LinearConstraint(more.rows, -np.inf, 0)] if len(more.rows) else []
    while True:
        found = milp(
            np.r_[cost, more.cost],
            integrality=np.r_[np.ones(len(cost)), np.zeros(beside)],
            bounds=Bounds(
                np.r_[np.zeros(len(cost)), more.low], np.r_[np.ones(len(cost)), more.high]
            ),
            constraints=constraints,
            options={"mip_rel_gap": 0},
        )
        if found.x is None:
            raise RuntimeError(f"allocate: the integer programme was not solved: {found.message}")
        choice = found.x[: len(cost)] > 0.5
        if bytes_[choice].sum() <= budget:
            return dict(zip(layers[choice], table["bits"].to_numpy()[choice], strict=True))
        # It kept the budget within the solver's tolerance only: this one choice is ruled out.
        constraints.append(at_most(choice.astype(float), len(names) - 1))


def allocate_greedily(table: pd.DataFrame, budget: int) -> dict[str, str]:
    """Bits per layer by the best step at a time: a cross-check of :func:`allocate`.

    From the smallest candidate of every layer on, the step that lowers the sensitivity most per
    byte is taken, of those along the layers' Pareto fronts that the budget still allows.

    Parameters, returns and errors as in :func:`allocate`.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": ["a", "a", "b", "b"], "bits": ["W4A8", "W8A8"] * 2,
    ...                       "sensitivity": [3.0, 1.0, 9.0, 2.0], "bytes": [4, 8, 4, 8]})
    >>> allocate_greedily(table, 12)
    {'a': 'W4A8', 'b': 'W8A8'}
    """
    _affordable(table, budget)
    fronts = {name: _front(part) for name, part in table.groupby("layer", sort=False)}
    at = dict.fromkeys(fronts, 0)
    left = budget - sum(int(front["bytes"].iloc[0]) for front in fronts.values())
    while True:
        steps = []
        for name, front in fronts.items():
            here = front.iloc[at[name]]
            for later in range(at[name] + 1, len(front)):
                there = front.iloc[later]
                price = int(there["bytes"] - here["bytes"])
                if price <= left:
                    gain = float(here["sensitivity"] - there["sensitivity"]) / price
                    steps.append((gain, name, later, price))
        if not steps:
            return {name: str(front["bits"].iloc[at[name]]) for name, front in fronts.items()}
        _, name, at_now, price = max(steps, key=lambda step: step[0])
        at[name] = at_now
        left -= price


def total(table: pd.DataFrame, chosen: dict[str, str]) -> tuple[float, int]:
    """Summed sensitivity and bytes of an allocation."""
    rows = table[table["bits"] == table["layer"].map(chosen)]
    return float(rows["sensitivity"].sum()), int(rows["bytes"].sum())


def _front(part: pd.DataFrame) -> pd.DataFrame:
    """Candidates of one layer that none beats in both bytes and sensitivity, smallest first."""
    ordered = part.sort_values(["bytes", "sensitivity"])
    best = ordered["sensitivity"].cummin().shift(fill_value=np.inf)
    return ordered[ordered["sensitivity"] < best]


def smallest_size(table: pd.DataFrame) -> int:
    """Bytes of all layers at the fewest that each can take."""
    return int(table.groupby("layer")["bytes"].min().sum())


def _affordable(table: pd.DataFrame, budget: int) -> None:
    smallest = smallest_size(table)
    if budget < smallest:
        raise ValueError(
            f"allocate: budget: {budget} bytes are fewer than the {smallest} that these layers "
            "take at the fewest bits; raise it, or allow fewer bits"
        )
