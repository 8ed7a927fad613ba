"""Sensitive-neuron preservation: more bits for what the worst group needs, under a budget."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.channel_scores import (
    BY,
    MEASURES,
    channel_scores,
    check_sample,
    unit_scores,
)
from fairq_utils.mitigation.group_sensitivity import group_sensitivities
from fairq_utils.mitigation.precision import (
    Kept,
    channel_costs,
    layer_costs,
    noted,
    plainly,
    preserve_channels,
    preserve_layers,
)
from fairq_utils.mitigation.sample import Sample
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.methods import MSE, Fit, Result, Size, Task, method
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.spec import QuantSpec


def choose(scores: pd.Series, costs: pd.Series, budget: float) -> list[Any]:
    """Choose what to keep: the largest increase of loss per byte first, then what still fits.

    Parameters
    ----------
    scores : Series
        Increase of the loss by quantizing each unit; those of 0 or less are never chosen.
    costs : Series, of the same index
        Bytes, 0 or more.
    budget : float
        Bytes for all that is chosen.

    Returns
    -------
    list
        Index values, best first; of equal increase per byte, the earlier first.

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
    increase = scores.to_numpy(float)
    useful = np.flatnonzero(increase > 0)
    ratio = np.divide(increase, price, out=np.full(len(increase), np.inf), where=price > 0)
    order = useful[np.argsort(-ratio[useful], kind="stable")]
    return [scores.index[at] for at in _that_fit(order, price, budget)]


def choose_at_random(costs: pd.Series, budget: float, seed: int) -> list[Any]:
    """Choose what to keep by chance: units in a random order, as long as they fit.

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


__all__ = [
    "BY",
    "MEASURES",
    "channel_scores",
    "choose",
    "choose_at_random",
    "preserve",
    "preserve_channels",
    "preserve_layers",
]

BUDGET = 0.05  # of the bytes of the plainly quantized model
BACKWARD = 2  # a backward pass costs about two forward passes
UNITS = ("layers", "channels")
RANDOM = "random"


@usual_modes()
def preserve(
    observed: Observed,
    spec: QuantSpec,
    sample: Sample,
    *,
    budget: float = BUDGET,
    unit: str = "channels",
    by: str = "worst_group",
    kept: Kept = "more",
    measure: str = "gradient",
    seed: int = 0,
    scores: pd.Series | None = None,
) -> tuple[nn.Module, QuantReport]:
    """Quantize, and spend a budget of bytes on what the worst group needs most.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
        It stays as it is.
    spec : QuantSpec
        Of what is not preserved.
    sample : images, labels and groups
        Other images than those that are tested on.
    budget : float
        In (0, 1], of the bytes of the plainly quantized model, which the result exceeds by no more.
    unit : ``channels`` or ``layers``
        Weights of output channels, or layers with their inputs.
    by : a name of :data:`BY`, or ``random``
        ``worst_group``: the largest increase of any group's loss; ``overall``: that of the loss of
        all images, blind to groups; ``random``: a control, drawn with ``seed``.
    kept : bits, None for float, or ``more``
        ``more`` is 8 bits, or float where there are 8 already.
    measure : a name of :data:`MEASURES`
        Of channels, where no ``scores`` are given.
    seed : int
        Of the random choice.
    scores : Series, optional
        Increase of the loss by each unit, a layer or a (layer, channel), instead of what ``by``
        would measure: for channels :func:`channel_scores`, for layers the ablation of
        ``fairq_utils.mitigation.group_sensitivity.group_sensitivities``.

    Returns
    -------
    module, report
        As :func:`preserve_layers` and :func:`preserve_channels`, and
        ``report.corrections["preservation"]`` has the choices above and the budget in bytes.

    Raises
    ------
    BadInput
        An empty group, a budget that is no such fraction or buys nothing, an unknown name, dynamic
        inputs, scores that lack a unit, or no higher precision than the spec's.
    ValueError
        See :func:`preserve_layers` and :func:`preserve_channels`.
    """
    _check_choices(budget, unit, by, measure)
    check_sample(sample, "preservation")
    size = plainly(observed, spec)[1].size_bytes
    costs, bits = (layer_costs if unit == "layers" else channel_costs)(observed, spec, kept)
    allowed = budget * size
    if costs.min() > allowed:
        raise BadInput(
            f"preservation: budget: {budget} of {size} bytes buys no {unit[:-1]}; the cheapest "
            f"takes {costs.min()} bytes, a budget of {costs.min() / size:.3g}"
        )
    if by == RANDOM:
        chosen = choose_at_random(costs, allowed, seed)
    else:
        if scores is None:
            scores = _measured(observed, spec, sample, unit, by, bits, measure)
        chosen = choose(_aligned(scores, costs), costs, allowed)
    if unit == "layers":
        module, report = preserve_layers(observed, spec, chosen, kept=bits)
    else:
        rows: dict[str, list[int]] = {}
        for name, channel in chosen:
            rows.setdefault(name, []).append(channel)
        module, report = preserve_channels(observed, spec, rows, kept=bits)
    note = {"unit": unit, "by": by, "kept": bits, "budget": int(allowed)}
    return module, noted(report, preservation=note)


def _measured(
    observed: Observed,
    spec: QuantSpec,
    sample: Sample,
    unit: str,
    by: str,
    bits: int | None,
    measure: str,
) -> pd.Series:
    if unit == "channels":
        table = channel_scores(observed, spec, sample, kept=bits, measure=measure)
        return unit_scores(table, ["layer", "channel"], "score", by, sample)
    table = group_sensitivities(observed, [spec], sample)
    return unit_scores(table, ["layer"], "sensitivity", by, sample)


def _aligned(scores: pd.Series, costs: pd.Series) -> pd.Series:
    """The scores of what could be kept."""
    missing = [unit for unit in costs.index if unit not in scores.index]
    if missing:
        raise BadInput(
            f"preservation: scores: there is none for {missing[0]!r}; give one per "
            f"{'(layer, channel)' if isinstance(missing[0], tuple) else 'layer'}"
        )
    return scores.loc[costs.index]


def _check_choices(budget: float, unit: str, by: str, measure: str) -> None:
    if isinstance(budget, bool) or not 0 < budget <= 1:
        raise BadInput(
            f"preservation: budget: {budget!r} is not a fraction in (0, 1] of the quantized "
            "model's bytes, such as 0.05"
        )
    named = {"unit": (unit, UNITS), "by": (by, (*BY, RANDOM)), "measure": (measure, MEASURES)}
    for argument, (name, known) in named.items():
        if name not in known:
            raise BadInput(f"preservation: {argument} {name!r} is not one of {', '.join(known)}")


def _fit(unit: str, by: str) -> Fit:
    def fit(task: Task) -> Result:
        # Ablation passes over the images once for every layer; a gradient, once.
        images = task.calibration() if unit == "layers" else task.validation()
        budget = task.settings["budget"]
        return preserve(
            task.observed(), task.spec, images, budget=budget, unit=unit, by=by, seed=task.seed
        )

    return fit


def _ablated(size: Size) -> int:
    return size.layers * size.calibration


def _differentiated(size: Size) -> int:
    return (1 + BACKWARD) * size.validation


method(
    "layers_random",
    label="layers, at random",
    family="preservation",
    fit=_fit("layers", "random"),
    options=MSE,
    needs="images kept groups everybody",
    settings={"budget": BUDGET},
)
method(
    "layers_overall",
    label="layers, by everybody",
    family="preservation",
    fit=_fit("layers", "overall"),
    options=MSE,
    needs="images kept groups everybody",
    settings={"budget": BUDGET},
    images=_ablated,
)
method(
    "layers_worst",
    label="layers, by the worst group",
    family="preservation",
    fit=_fit("layers", "worst_group"),
    options=MSE,
    needs="images kept groups everybody",
    settings={"budget": BUDGET},
    images=_ablated,
)
method(
    "channels_random",
    label="channels, at random",
    family="preservation",
    fit=_fit("channels", "random"),
    options=MSE,
    needs="images kept groups everybody validation",
    settings={"budget": BUDGET},
)
method(
    "channels_overall",
    label="channels, by everybody",
    family="preservation",
    fit=_fit("channels", "overall"),
    options=MSE,
    needs="images kept groups everybody validation",
    settings={"budget": BUDGET},
    images=_differentiated,
)
method(
    "channels_worst",
    label="channels, by the worst group",
    family="preservation",
    fit=_fit("channels", "worst_group"),
    options=MSE,
    needs="images kept groups everybody validation",
    settings={"budget": BUDGET},
    images=_differentiated,
)
