"""Mixed precision: bits per layer under a budget of bytes, by an integer programme."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from fairq_utils.errors import BadInput
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.methods import MSE, Result, Task, method
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.post_training import edge_spec, quantize_observed
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.sensitivity import (
    Labelled,
    Measure,
    bytes_of_the_rest,
    nearest,
    sensitivities,
)
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec

FEWER = 2  # bits below eight of the uniform model that sets the budget


@usual_modes()
def quantize_mixed(
    observed: Observed,
    budget: int | float,
    spec: QuantSpec | None = None,
    *,
    candidates: Sequence[QuantSpec] | None = None,
    labelled: Labelled | None = None,
    measure: Measure = "output",
) -> tuple[nn.Module, QuantReport]:
    """Give each layer the bits that cost least in sum, within a budget of bytes.

    An integer programme over measured sensitivities, as in Yao et al. 2021 (HAWQ-V3).

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
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

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fairq_utils.quantizers import observe, quantize_mixed
    >>> model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
    >>> observed = observe(model, [torch.randn(64, 3)], keep=True)
    >>> _, report = quantize_mixed(observed, 0.2)  # a fifth of the float model's bytes
    >>> report.size_bytes <= 0.2 * report.float_bytes
    True
    """
    spec = QuantSpec() if spec is None else spec
    candidates = weight_widths(spec) if candidates is None else candidates
    allowed = in_bytes(budget, observed.float_bytes, "quantize_mixed")
    table = sensitivities(observed, candidates, labelled=labelled, measure=measure)
    module, report, chosen = within_budget(
        observed,
        allowed,
        spec,
        candidates,
        table,
        lambda left: allocate(table, left),
        "quantize_mixed",
    )
    note = {
        "budget": allowed,
        "measure": "loss" if labelled is not None else f"{measure} noise over signal",
        "sensitivity": total(table, chosen)[0],
    }
    corrections = {**report.corrections, "mixed_precision": note}
    return module, dataclasses.replace(report, corrections=corrections)


def float_classifier(observed: Observed, spec: QuantSpec) -> tuple[nn.Module, QuantReport]:
    """The published study's "FP32 classifier + quantized backbone".

    The last quantizable layer, in the order of execution, stays in float; all others follow
    ``spec``.

    Raises
    ------
    ValueError
        The classifier is the only layer that could be quantized.
    """
    if len(observed.order) < 2:
        raise BadInput(
            f"float_classifier: {len(observed.order)} layers can be quantized, and the last of "
            "them is to stay in float; of such a model there is no backbone to quantize"
        )
    return quantize_observed(observed, spec, {observed.order[-1]: None})


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


def total(table: pd.DataFrame, chosen: dict[str, str]) -> tuple[float, int]:
    """Sum of sensitivities, and bytes, of an allocation."""
    rows = table[table["bits"] == table["layer"].map(chosen)]
    return float(rows["sensitivity"].sum()), int(rows["bytes"].sum())


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
        with _silent():
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


@contextmanager
def _silent() -> Iterator[None]:
    """Keep from the reader what HiGHS prints past Python, whatever its options say."""
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


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


def within_budget(
    observed: Observed,
    allowed: int,
    spec: QuantSpec,
    candidates: Sequence[QuantSpec],
    table: pd.DataFrame,
    choose: Callable[[int], dict[str, str]],
    what: str,
) -> tuple[nn.Module, QuantReport, dict[str, str]]:
    """The model at the bits that are chosen for what the budget leaves to its layers.

    Parameters
    ----------
    allowed : int
        Bytes of the whole quantized model.
    spec, candidates : as in :func:`quantize_mixed`
    table : ``layer`` and ``bytes`` of every candidate
    choose : bytes for the layers -> layer -> bits
    what : str
        Name of the caller, for errors.

    Returns
    -------
    module, report, choice

    Raises
    ------
    ValueError
        As in :func:`quantize_mixed`.
    """
    rest = bytes_of_the_rest(observed, candidates[0])
    over = 0
    while True:
        # Corrections add biases and operations grids, which only a quantized model shows.
        rest += over
        smallest = rest + smallest_size(table)
        if allowed < smallest:
            raise BadInput(
                f"{what}: budget: {allowed} bytes are fewer than the {smallest} that the "
                f"model takes at the fewest bits ({rest} of them outside the quantized layers); "
                f"raise the budget to at least {smallest} bytes, or allow fewer bits"
            )
        chosen = choose(allowed - rest)
        layers = {
            name: next(
                own
                for own in (edge_spec(c, name, observed.order) for c in candidates)
                if own.label == chosen[name]
            )
            for name in observed.order
        }
        module, report = quantize_observed(observed, spec, layers)
        over = report.size_bytes - allowed
        if over <= 0:
            return module, report, chosen


def weight_widths(spec: QuantSpec) -> list[QuantSpec]:
    """The spec with weights of 2, 3, 4, 6 and 8 bits."""
    return [dataclasses.replace(spec, weight_bits=width) for width in WIDTHS]


def in_bytes(budget: int | float, float_bytes: int, what: str) -> int:
    """A budget, in bytes or as a fraction of the float model's, in bytes."""
    whole = isinstance(budget, int) and not isinstance(budget, bool) and budget > 0
    if whole:
        return int(budget)
    if isinstance(budget, float) and 0 < budget <= 1:
        return int(budget * float_bytes)
    raise BadInput(
        f"{what}: budget: {budget!r} is neither a whole number of bytes nor a fraction in "
        "(0, 1] of the float model's size, such as 0.2"
    )


def uniform_budget(observed: Observed, spec: QuantSpec) -> int:
    """Bytes for mixed precision: of uniform bits, or of six where uniform is eight.

    Uniform eight bits would leave it no choice.
    """
    width = spec.weight_bits - (FEWER if spec.weight_bits == max(WIDTHS) else 0)
    uniform = dataclasses.replace(nearest(spec), weight_bits=width)
    return quantize_observed(observed, uniform)[1].size_bytes


def smallest_size(table: pd.DataFrame) -> int:
    """Bytes of all layers at the fewest that each can take."""
    return int(table.groupby("layer")["bytes"].min().sum())


def _affordable(table: pd.DataFrame, budget: int) -> None:
    smallest = smallest_size(table)
    if budget < smallest:
        raise BadInput(
            f"allocate: budget: {budget} bytes are fewer than the {smallest} that these layers "
            "take at the fewest bits; raise it, or allow fewer bits"
        )


def _mixed(task: Task) -> Result:
    observed, budget = task.observed(), task.settings["budget"]
    allowed = uniform_budget(observed, task.spec) if budget is None else budget
    # Not by the loss, though there may be labels: of a calibration set, it is mostly chance.
    return quantize_mixed(observed, allowed, task.spec, measure="layer")


def _float_classifier(task: Task) -> Result:
    return float_classifier(task.observed(), task.spec)


method(
    "mixed",
    label="mixed precision",
    family="mixed precision",
    fit=_mixed,
    options=MSE,
    needs="images kept",
    settings={"budget": None},
    images=lambda size: (1 + len(WIDTHS)) * size.calibration,
)
method(
    "float_classifier",
    label="float classifier",
    family="mixed precision",
    fit=_float_classifier,
    options=MSE,
)
