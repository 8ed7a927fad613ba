"""Who is clipped: each group's inputs, layer by layer, beside the range that all share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import torch

from fairq_utils.faults import BadInput
from fairq_utils.mitigation.ranges import GroupedStatistics
from fairq_utils.quantizers.grids import input_grid
from fairq_utils.quantizers.ptq import Observed, edge_spec
from fairq_utils.quantizers.spec import QuantSpec

Ranges = Mapping[str, tuple[float, float]]
COLUMNS = [
    "layer",
    "group",
    "images",
    "low",
    "high",
    "range_low",
    "range_high",
    "clipped",
    "error",
]


def input_ranges(seen: Observed, spec: QuantSpec) -> dict[str, tuple[float, float]]:
    """Layer -> the range that ``spec`` gives its input, in order of execution.

    The first and the last layer have the bits of :meth:`QuantSpec.at_edge`.
    """
    return {name: seen.range(name, edge_spec(spec, name, seen.order)) for name in seen.order}


def clipped(seen: Observed, spec: QuantSpec, ranges: Ranges | None = None) -> pd.DataFrame:
    """What the range of each layer's input does to each group.

    Parameters
    ----------
    seen : from :func:`fairq_utils.mitigation.ranges.observe_groups`
        Its images are those that are judged by.
    spec : QuantSpec
        Bits, scheme and, where no ranges are given, the rule.
    ranges : mapping of layer to (low, high), optional
        Ranges to judge instead of its own, such as :func:`input_ranges` of another calibration of
        the same model; only these layers are shown.

    Returns
    -------
    DataFrame
        A row per layer, in order of execution, and group: ``layer``; ``group``; ``images`` of that
        group; ``low`` and ``high``, its smallest and largest input; ``range_low`` and
        ``range_high``; ``clipped``, the share of its values that neither the range nor the grid
        made of it reaches (a grid always holds 0, and a symmetric one as much below it as above);
        ``error``, its mean relative squared error (see :meth:`GroupedStatistics.errors`). A layer
        that a group's images never reach has no row of it.

    Raises
    ------
    BadInput
        Inputs that were not seen group by group, or have no static grid; a range of an unknown
        layer, or one that is not finite or upside down.
    ValueError
        The spec's rule was not observed.

    Examples
    --------
    >>> from fairq_utils.mitigation.ranges import observe_groups
    >>> from fairq_utils.mitigation.sample import sample
    >>> ages = {"age": ["young", "young", "old"]}
    >>> faces = sample(torch.tensor([[1.0], [1.0], [3.0]]), [0, 1, 1], ages)
    >>> seen = observe_groups(torch.nn.Linear(1, 2), faces)
    >>> table = clipped(seen, QuantSpec(), {"": (0.0, 2.0)}).set_index("group")
    >>> table["clipped"].to_dict(), table["error"].round(2).to_dict()
    ({'old': 1.0, 'young': 0.0}, {'old': 0.11, 'young': 0.0})
    """
    if spec.activation != "static":
        raise BadInput(
            f"clipped: spec.activation is {spec.activation!r}, so there are no fixed ranges; give "
            "a spec with activation='static'"
        )
    chosen = input_ranges(seen, spec) if ranges is None else dict(ranges)
    _check(seen, chosen)
    rows = []
    for name in (name for name in seen.order if name in chosen):
        statistics = seen.statistics[name]
        if not isinstance(statistics, GroupedStatistics):
            raise BadInput(
                f"clipped: the input of {name!r} was not seen group by group; give what "
                "observe_groups returns"
            )
        own = edge_spec(spec, name, seen.order)
        low, high = chosen[name]
        errors = statistics.errors(low, high, own.activation_bits, own.activation_scheme)
        outside = statistics.outside(*_reach(low, high, own))
        for group, images in statistics.images.items():
            ends = statistics.groups[group].extremes
            row = (group, images, ends.low, ends.high, low, high, outside[group], errors[group])
            rows.append((name, *row))
    return pd.DataFrame(rows, columns=COLUMNS)


def _reach(low: float, high: float, spec: QuantSpec) -> tuple[float, float]:
    """Ends of a range or, where that is further out, of the grid made of it."""
    bits, ends = spec.activation_bits, torch.tensor([low, high], dtype=torch.float64)
    scale, zero = map(float, input_grid(ends[0], ends[1], bits, spec.activation_scheme))
    return min(low, -zero * scale), max(high, (2**bits - 1 - zero) * scale)


def _check(seen: Observed, ranges: Ranges) -> None:
    for name, (low, high) in ranges.items():
        if name not in seen.order:
            raise BadInput(
                f"clipped: ranges: there is no layer {name!r}; those that calibration reached are "
                f"{', '.join(seen.order[:5])}{' ...' if len(seen.order) > 5 else ''}"
            )
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise BadInput(
                f"clipped: ranges: that of {name!r} is {low} to {high}; give two finite numbers, "
                "the smaller first"
            )
