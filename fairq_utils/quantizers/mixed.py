"""Mixed precision: bits per layer under a budget of bytes, and the float classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pandas as pd
from torch import nn

from fairq_utils.quantizers.allocation import allocate, smallest_size, total
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
    candidates = weight_widths(spec) if candidates is None else candidates
    allowed = in_bytes(budget, seen.float_bytes, "quantize_mixed")
    table = sensitivities(seen, candidates, labelled=labelled, measure=measure)
    module, report, chosen = within_budget(
        seen, allowed, spec, candidates, table, lambda left: allocate(table, left), "quantize_mixed"
    )
    note = {
        "budget": allowed,
        "measure": "loss" if labelled is not None else f"{measure} noise over signal",
        "sensitivity": total(table, chosen)[0],
    }
    corrections = {**report.corrections, "mixed_precision": note}
    return module, dataclasses.replace(report, corrections=corrections)


def weight_widths(spec: QuantSpec) -> list[QuantSpec]:
    """The spec with weights of 2, 3, 4, 6 and 8 bits."""
    return [dataclasses.replace(spec, weight_bits=width) for width in WIDTHS]


def within_budget(
    seen: Observed,
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
    rest = bytes_of_the_rest(seen, candidates[0])
    over = 0
    while True:
        # Corrections add biases and operations grids, which only a quantized model shows.
        rest += over
        smallest = rest + smallest_size(table)
        if allowed < smallest:
            raise ValueError(
                f"{what}: budget: {allowed} bytes are fewer than the {smallest} that the "
                f"model takes at the fewest bits ({rest} of them outside the quantized layers); "
                f"raise the budget to at least {smallest} bytes, or allow fewer bits"
            )
        chosen = choose(allowed - rest)
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
            return module, report, chosen


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


def in_bytes(budget: int | float, float_bytes: int, what: str) -> int:
    """A budget, in bytes or as a fraction of the float model's, in bytes."""
    whole = isinstance(budget, int) and not isinstance(budget, bool) and budget > 0
    if whole:
        return int(budget)
    if isinstance(budget, float) and 0 < budget <= 1:
        return int(budget * float_bytes)
    raise ValueError(
        f"{what}: budget: {budget!r} is neither a whole number of bytes nor a fraction in "
        "(0, 1] of the float model's size, such as 0.2"
    )
