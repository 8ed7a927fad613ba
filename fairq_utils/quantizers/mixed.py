"""Mixed precision: bits per layer under a budget of bytes, and the float classifier.

Which bits each layer gets is an integer programme (as in Hubara et al. 2021, AdaQuant, and Yao et
al. 2021, HAWQ-V3): with ``x[l, b]`` in {0, 1} saying that layer ``l`` gets candidate ``b``::

    minimise    sum over l, b of  sensitivity[l, b] x[l, b]
    subject to  sum over b of x[l, b] = 1  for every layer l
                sum over l, b of  bytes[l, b] x[l, b] <= budget
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from fairq_utils.quantizers.ptq import Observed, edge_spec, quantize_observed
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.sensitivity import (
    Labelled,
    Measure,
    bytes_of_the_rest,
    sensitivities,
)
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec


def quantize_mixed(
    seen: Observed,
    budget: int | float,
    spec: QuantSpec | None = None,
    *,
    candidates: Sequence[QuantSpec] | None = None,
    labelled: Labelled | None = None,
    measure: Measure = "output",
) -> tuple[nn.Module, QuantReport]:
    """Give each layer the bits that cost least in sum, within a budget of bytes.

    Parameters
    ----------
    seen : from :func:`fairq_utils.quantizers.observe`
        With ``keep=True`` where there are no labels. It stays as it is.
    budget : int or float
        Size of the whole quantized model: a whole number of bytes, or a fraction in (0, 1] of the
        size of the float model that came in.
    spec : QuantSpec, optional
        What all layers share but their bits; W8A8 if not given.
    candidates : specs, optional
        What a layer may get; ``spec`` with weights of 2, 3, 4, 6 and 8 bits if not given. They
        differ from each other in their bits. Those of the first and the last layer have at least
        ``first_last_bits``.
    labelled, measure : see :func:`~fairq_utils.quantizers.sensitivities`

    Returns
    -------
    module, report
        ``report.layers`` has the bits of every layer, ``report.size_bytes <= budget``, and
        ``report.corrections["mixed_precision"]`` the budget in bytes, what was measured, and its
        sum over layers.

    Raises
    ------
    ValueError
        A budget that no candidate meets: names the smallest size that is possible.
    """
    spec = QuantSpec() if spec is None else spec
    if candidates is None:
        candidates = [dataclasses.replace(spec, weight_bits=width) for width in WIDTHS]
    allowed = _in_bytes(budget, seen.float_bytes)
    table = sensitivities(seen, candidates, labelled=labelled, measure=measure)
    rest = bytes_of_the_rest(seen, candidates[0])
    over = 0
    while True:
        # Corrections add biases and operations grids, which only a quantized model shows.
        rest += over
        smallest = rest + _smallest(table)
        if allowed < smallest:
            raise ValueError(
                f"quantize_mixed: budget: {allowed} bytes are fewer than the {smallest} that the "
                f"model takes at the fewest bits ({rest} of them outside the quantized layers); "
                f"raise the budget to at least {smallest} bytes, or allow fewer bits"
            )
        chosen = allocate(table, allowed - rest)
        layers = {
            name: next(
                own
                for own in (edge_spec(c, name, seen.order) for c in candidates)
                if own.label == chosen[name]
            )
            for name in seen.order
        }
        module, report = quantize_observed(seen, spec, layers)
        over = report.size_bytes - allowed
        if over <= 0:
            break
    note = {
        "budget": allowed,
        "measure": "loss" if labelled is not None else f"{measure} noise over signal",
        "sensitivity": total(table, chosen)[0],
    }
    corrections = {**report.corrections, "mixed_precision": note}
    return module, dataclasses.replace(report, corrections=corrections)


def float_classifier(seen: Observed, spec: QuantSpec) -> tuple[nn.Module, QuantReport]:
    """The published study's "FP32 classifier + quantized backbone".

    The last quantizable layer, in the order of execution, stays in float; all others follow
    ``spec``.

    Raises
    ------
    ValueError
        The classifier is the only layer that could be quantized.
    """
    if len(seen.order) < 2:
        raise ValueError(
            f"float_classifier: {len(seen.order)} layers can be quantized, and the last of them is "
            "to stay in float; of such a model there is no backbone to quantize"
        )
    return quantize_observed(seen, spec, {seen.order[-1]: None})


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
    _affordable(table, budget)
    layers = table["layer"].to_numpy()
    names = list(dict.fromkeys(layers))
    one_each = np.array([layers == name for name in names], float)
    bytes_ = table["bytes"].to_numpy(float)
    cost = table["sensitivity"].to_numpy(float)
    cost = cost / max(float(np.abs(cost).max()), 1e-300)  # the solver's tolerances are absolute
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(bytes_, -np.inf, budget)]
    while True:
        found = milp(
            cost,
            integrality=np.ones(len(cost)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0},
        )
        if found.x is None:
            raise RuntimeError(f"allocate: the integer programme was not solved: {found.message}")
        choice = found.x > 0.5
        if bytes_[choice].sum() <= budget:
            return dict(zip(layers[choice], table["bits"].to_numpy()[choice], strict=True))
        # It kept the budget within the solver's tolerance only: this one choice is ruled out.
        constraints.append(LinearConstraint(choice.astype(float), -np.inf, len(names) - 1))


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


def _smallest(table: pd.DataFrame) -> int:
    return int(table.groupby("layer")["bytes"].min().sum())


def _affordable(table: pd.DataFrame, budget: int) -> None:
    smallest = _smallest(table)
    if budget < smallest:
        raise ValueError(
            f"allocate: budget: {budget} bytes are fewer than the {smallest} that these layers "
            "take at the fewest bits; raise it, or allow fewer bits"
        )


def _in_bytes(budget: int | float, float_bytes: int) -> int:
    whole = isinstance(budget, int) and not isinstance(budget, bool) and budget > 0
    if whole:
        return int(budget)
    if isinstance(budget, float) and 0 < budget <= 1:
        return int(budget * float_bytes)
    raise ValueError(
        f"quantize_mixed: budget: {budget!r} is neither a whole number of bytes nor a fraction in "
        "(0, 1] of the float model's size, such as 0.2"
    )
