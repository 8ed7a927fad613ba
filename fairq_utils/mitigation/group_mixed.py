"""Mixed precision for groups: bits per layer by what each group notices of all layers together.

With ``x[l, b]`` in {0, 1} saying that layer ``l`` gets candidate ``b``, group g notices ``S_g(x) =
sum over l, b of s[l, b, g] x[l, b]``. Under one candidate per layer and a budget of bytes, as in
:mod:`fairq_utils.quantizers.mixed_precision`::

    overall      minimise  sum_g w_g S_g(x),  w_g the groups' shares of the images
    mean         minimise  sum_g S_g(x) / G
    worst_group  minimise  t  with  S_g(x) <= t  for every group
    cvar         minimise  eta + sum_g u_g / ((1 - alpha) G)  with  S_g(x) - eta <= u_g,  u_g >= 0

The last is the conditional value at risk (Rockafellar & Uryasev 2000): the mean of the worst ``1 -
alpha`` of the groups. The first two are linear in ``x``, the other two mixed-integer programmes.
Reducing over groups comes after the sum over layers: the worst group of the whole model, not one of
each layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import nn

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.group_sensitivity import (
    KEY,
    ByGroup,
    Floats,
    Measure,
    Reducer,
    by_group,
    group_sensitivities,
    reduced,
    refuse_settings,
)
from fairq_utils.mitigation.sample import Sample
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.methods import MSE, Fit, Result, Size, Task, method
from fairq_utils.quantizers.mixed_precision import (
    Further,
    allocate,
    in_bytes,
    solve,
    uniform_budget,
    weight_widths,
    within_budget,
)
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.post_training import edge_spec
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec


def allocate_for_groups(
    table: pd.DataFrame,
    budget: int,
    objective: Reducer,
    *,
    alpha: float = 0.5,
    weights: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Bits per layer with the best objective over the groups' summed sensitivities.

    An optimum to the solver's tolerance, a millionth of the largest sensitivity that can be part of
    one; ``overall`` and ``mean`` are :func:`fairq_utils.quantizers.allocate` of the reduced table.

    Parameters
    ----------
    table : from :func:`~fairq_utils.mitigation.group_sensitivity.group_sensitivities`
    budget : int
        Bytes for these layers together.
    objective : ``overall``, ``mean``, ``worst_group`` or ``cvar``
    alpha : float
        Of ``cvar``, in [0, 1): 0.5 is the worst half of the groups.
    weights : mapping of group to weight, optional
        For ``overall``; the groups' shares of the images if not given.

    Returns
    -------
    dict
        Layer -> bits.

    Raises
    ------
    BadInput
        See :func:`~fairq_utils.mitigation.group_sensitivity.reduced`.
    ValueError
        No allocation is so small: names the smallest.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": np.repeat(["a", "b"], 4), "group": ["f", "m"] * 4,
    ...                       "bits": ["W4A8", "W4A8", "W8A8", "W8A8"] * 2, "images": [90, 10] * 4,
    ...                       "sensitivity": [3, 1, 0, 0, 2, 9, 0, 0], "bytes": [4, 4, 8, 8] * 2})
    >>> allocate_for_groups(table, 12, "overall")  # 0.9 x 2 + 0.1 x 9 against 2.8
    {'a': 'W8A8', 'b': 'W4A8'}
    >>> allocate_for_groups(table, 12, "worst_group")
    {'a': 'W4A8', 'b': 'W8A8'}
    """
    found = by_group(table, objective, alpha, weights, "allocate_for_groups")
    if objective in ("overall", "mean"):
        return allocate(reduced(table, objective, weights=weights), budget)
    chosen: dict[str, str] = {}
    best, kept = np.inf, np.ones(len(found.rows), bool)
    bounds, rounding = found.reduce(_others_at_best(found)), 1e-12 * np.abs(found.values).sum()
    while True:
        rows, values = found.rows[kept], found.values[kept]
        # The solver's tolerances are absolute, so they are relative to the largest entry.
        scaled = values / max(float(np.abs(values).max()), 1e-300)
        further = _worst(scaled) if objective == "worst_group" else _tail(scaled, alpha)
        again = solve(rows, budget, np.zeros(len(rows)), further)
        value = float(found.reduce(summed(found, again)))
        if value >= best:
            return chosen
        # What is worse than this with all other layers at their best is no part of the optimum, and
        # without such entries the tolerances are finer.
        chosen, best = again, value
        kept = bounds <= best + rounding


def summed(found: ByGroup, chosen: Mapping[str, str]) -> Floats:
    """Sensitivity of each group to an allocation, ``S_g``, (G,)."""
    at = found.rows["bits"] == found.rows["layer"].map(chosen)
    sums: Floats = found.values[at.to_numpy()].sum(axis=0)
    return sums


def _others_at_best(found: ByGroup) -> Floats:
    """The least ``S_g`` that any allocation with a row has, (R, G)."""
    least = pd.DataFrame(found.values).groupby(found.rows["layer"].to_numpy(), sort=False).min()
    own = least.loc[found.rows["layer"]].to_numpy()
    return least.to_numpy().sum(axis=0) - own + found.values


def _worst(values: Floats) -> Further:
    """One variable t, at least every ``S_g``."""
    groups = values.shape[1]
    free = np.array([np.inf])
    return Further(np.ones(1), -free, free, np.hstack([values.T, -np.ones((groups, 1))]))


def _tail(values: Floats, alpha: float) -> Further:
    """Variables eta and u_g, at least what ``S_g`` has above eta."""
    rows, groups = values.shape
    # No sum of entries of at most 1 is beyond their number; at alpha = 0 eta may go anywhere.
    ends = np.r_[float(rows), np.full(groups, np.inf)]
    return Further(
        cost=np.r_[1.0, np.full(groups, 1 / ((1 - alpha) * groups))],
        low=np.r_[-float(rows), np.zeros(groups)],
        high=ends,
        rows=np.hstack([values.T, -np.ones((groups, 1)), -np.eye(groups)]),
    )


@usual_modes()
def quantize_mixed_for_groups(
    observed: Observed,
    budget: int | float,
    spec: QuantSpec | None,
    sample: Sample,
    *,
    objective: Reducer,
    candidates: Sequence[QuantSpec] | None = None,
    measure: Measure = "output",
    table: pd.DataFrame | None = None,
    alpha: float = 0.5,
    weights: Mapping[str, float] | None = None,
) -> tuple[nn.Module, QuantReport]:
    """Give each layer the bits that are best for groups, within a budget of bytes.

    As :func:`fairq_utils.quantizers.quantize_mixed`, by :func:`allocate_for_groups`.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
        It stays as it is.
    budget : int or float
        Size of the whole quantized model: a whole number of bytes, or a fraction in (0, 1] of the
        size of the float model that came in.
    spec : QuantSpec or None
        What all layers share but their bits; W8A8 if None.
    sample : Sample
        Images of every group, not those that the model will be tested on.
    objective, alpha, weights : see :func:`allocate_for_groups`
    candidates : specs, optional
        What a layer may get; ``spec`` with weights of 2, 3, 4, 6 and 8 bits if not given.
    measure : see :func:`~fairq_utils.mitigation.group_sensitivity.group_sensitivities`
    table : its result for these candidates and groups, optional
        To measure once for several budgets and objectives; ``measure`` then says what it holds.

    Returns
    -------
    module, report
        ``report.size_bytes <= budget``, and ``report.corrections["mixed_precision"]`` has the
        budget in bytes, what was measured, the ``objective``, its value (``sensitivity``), and each
        group's sum over layers (``groups``).

    Raises
    ------
    BadInput
        See :func:`allocate_for_groups`; a table of other candidates or groups.
    ValueError
        A budget that no candidate meets: names the smallest size that is possible.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fairq_utils.mitigation import as_sample, quantize_mixed_for_groups
    >>> from fairq_utils.quantizers import observe
    >>> images, groups = torch.randn(80, 3), {"gender": ["f", "m"] * 40}
    >>> sample = as_sample(images, [0, 0, 1, 1] * 20, groups)
    >>> model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
    >>> observed = observe(model, [images])
    >>> _, report = quantize_mixed_for_groups(observed, 0.2, None, sample, objective="worst_group")
    >>> report.size_bytes <= 0.2 * report.float_bytes
    True
    """
    what = "quantize_mixed_for_groups"
    spec = QuantSpec() if spec is None else spec
    candidates = weight_widths(spec) if candidates is None else candidates
    allowed = in_bytes(budget, observed.float_bytes, what)
    refuse_settings(objective, alpha, weights, what)
    if table is None:
        table = group_sensitivities(observed, candidates, sample, measure=measure)
    found = by_group(table, objective, alpha, weights, what)
    _refuse_another(observed, candidates, sample, found, what)

    def choose(left: int) -> dict[str, str]:
        return allocate_for_groups(table, left, objective, alpha=alpha, weights=weights)

    module, report, chosen = within_budget(
        observed, allowed, spec, candidates, found.rows, choose, what
    )
    sums = summed(found, chosen)
    note = {
        "budget": allowed,
        "measure": "loss" if measure == "loss" else f"{measure} noise over signal",
        "objective": objective,
        **({"alpha": alpha} if objective == "cvar" else {}),
        "sensitivity": float(found.reduce(sums)),
        "groups": dict(zip(found.names, sums.tolist(), strict=True)),
    }
    corrections = {**report.corrections, "mixed_precision": note}
    return module, dataclasses.replace(report, corrections=corrections)


def _refuse_another(
    observed: Observed, candidates: Sequence[QuantSpec], sample: Sample, found: ByGroup, what: str
) -> None:
    """Refuse a table that was measured for other candidates, layers or groups."""
    wanted = {
        (name, edge_spec(candidate, name, observed.order).label)
        for name in observed.order
        for candidate in candidates
    }
    odd = wanted ^ set(found.rows[KEY].itertuples(index=False, name=None))
    if odd:
        layer, bits = sorted(odd)[0]
        raise BadInput(
            f"{what}: table: {bits} of layer {layer!r} is in the table or among the candidates, "
            "not in both; give what group_sensitivities returns for these candidates"
        )
    groups = {sample.name(code) for code in sample.present}
    if groups != set(found.names):
        raise BadInput(
            f"{what}: table: is of the groups {', '.join(found.names)}, and the sample's are "
            f"{', '.join(sorted(groups))}; give the table of this sample"
        )


def _fit(objective: Reducer) -> Fit:
    def fit(task: Task) -> Result:
        observed, budget = task.observed(), task.settings["budget"]
        allowed = uniform_budget(observed, task.spec) if budget is None else budget
        return quantize_mixed_for_groups(
            observed, allowed, task.spec, task.calibration(), objective=objective, measure="layer"
        )

    return fit


def _each_width(size: Size) -> int:
    return (1 + len(WIDTHS)) * size.calibration


method(
    "mixed_overall",
    label="overall",
    family="group-aware mixed precision",
    fit=_fit("overall"),
    options=MSE,
    needs="images kept groups",
    settings={"budget": None},
    images=_each_width,
)
method(
    "mixed_worst",
    label="worst group",
    family="group-aware mixed precision",
    fit=_fit("worst_group"),
    options=MSE,
    needs="images kept groups",
    settings={"budget": None},
    images=_each_width,
)
method(
    "mixed_cvar",
    label="worst half of groups",
    family="group-aware mixed precision",
    fit=_fit("cvar"),
    options=MSE,
    needs="images kept groups",
    settings={"budget": None},
    images=_each_width,
)
