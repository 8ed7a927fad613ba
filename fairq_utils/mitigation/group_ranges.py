"""Group-aware input ranges, and what a range clips of each group."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.group_statistics import RULES, GroupedStatistics, Turn, Weighting
from fairq_utils.mitigation.sample import Sample
from fairq_utils.quantizers.calibrate import Observed, observe, what_to_observe
from fairq_utils.quantizers.grids import input_grid
from fairq_utils.quantizers.methods import MSE, Fit, Result, Task, method
from fairq_utils.quantizers.post_training import edge_spec, quantize_observed
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.training.inference import device_of


def observe_groups(
    model: nn.Module,
    sample: Sample,
    rules: Collection[str] = ("mse",),
    *,
    weighting: Weighting = "mean",
    **options: bool,
) -> Observed:
    """Calibrate so that every group has the same say in the ranges of inputs.

    As :func:`fairq_utils.quantizers.observe`, in one pass too; what it returns can be quantized,
    trained and allocated bits in the same way. The order of the images does not matter.

    Parameters
    ----------
    model : any module of one tensor argument
        It is copied; the one passed in stays as it is.
    sample : Sample
        Images, on the model's device, with their groups. Groups without an image have no say.
    rules : of ``minmax``, ``percentile``, ``mse``
        ``minmax`` is the union of the groups' ranges, the same as without groups.
    weighting : str
        ``mean``: ``mse`` has the least mean over groups of each group's mean relative error, and
        ``percentile`` keeps the central share of the mixture in which all groups weigh the same:
        the ranges of a sample in which groups are of one size.
        ``worst``: ``mse`` has the least maximum over groups (the criterion of Sagawa et al. 2020,
        "Distributionally robust neural networks for group shifts", of this error), and
        ``percentile`` is the union of the groups' ranges.
    **options : bool
        ``equalization``, ``residuals``, ``attention_products``, ``gates`` and ``keep`` of
        :func:`~fairq_utils.quantizers.observe`.

    Returns
    -------
    Observed
        Its statistics, and those of operations, are
        :class:`~fairq_utils.mitigation.group_statistics.GroupedStatistics`.

    Raises
    ------
    BadInput
        Another weighting; a rule that has no such form (``moving_average`` depends on the order of
        batches; what ``entropy`` measures has no mean over groups), or an unknown one.
    ValueError
        No image, or a value that is not finite.

    Examples
    --------
    >>> from fairq_utils.mitigation.sample import as_sample
    >>> ages = {"age": ["young", "young", "old"]}
    >>> faces = as_sample(torch.tensor([[1.0], [1.0], [3.0]]), [0, 1, 1], ages)
    >>> observed = observe_groups(nn.Linear(1, 2), faces, ["minmax"])
    >>> observed.statistics[""].range("minmax", 8)
    (1.0, 3.0)
    """
    if weighting not in get_args(Weighting):
        raise BadInput(
            f"observe_groups: weighting {weighting!r} is not one of "
            f"{', '.join(get_args(Weighting))}"
        )
    for rule in rules:
        if rule not in RULES:
            raise BadInput(
                f"observe_groups: the rule {rule!r} cannot weigh groups; give of "
                f"{', '.join(RULES)} as activation_range"
            )
    turn = Turn(
        {sample.name(code): int(np.sum(sample.groups.codes == code)) for code in sample.present}
    )
    return observe(
        model,
        _group_by_group(sample, turn, device_of(model)),
        tuple(rules),
        statistics=lambda asked: GroupedStatistics(asked, weighting, turn),
        **options,
    )


def _group_by_group(sample: Sample, turn: Turn, device: torch.device) -> Iterator[Tensor]:
    """Batches of one group each, in an order that the values of the images alone decide."""
    for code in sample.present:
        members = sample.members(code)
        digests = [_digest(image) for images, _, _ in members.batches() for image in images.cpu()]
        order = sorted(range(len(members)), key=digests.__getitem__)
        for images, _, _ in members.take(order).batches():
            turn.group = sample.name(code)
            yield images.to(device)


def _digest(image: Tensor) -> bytes:
    return hashlib.sha256(image.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()


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


def input_ranges(observed: Observed, spec: QuantSpec) -> dict[str, tuple[float, float]]:
    """Layer -> the range that ``spec`` gives its input, in order of execution.

    The first and the last layer have the bits of :meth:`QuantSpec.at_edge`.
    """
    return {
        name: observed.range(name, edge_spec(spec, name, observed.order)) for name in observed.order
    }


def clipped(observed: Observed, spec: QuantSpec, ranges: Ranges | None = None) -> pd.DataFrame:
    """Clipping and error of each group under the range of each layer's input.

    Parameters
    ----------
    observed : from :func:`fairq_utils.mitigation.group_ranges.observe_groups`
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
        ``error``, its mean relative squared error (see
        :meth:`~fairq_utils.mitigation.group_statistics.GroupedStatistics.errors`). A layer
        that a group's images never reach has no row of it.

    Raises
    ------
    BadInput
        Inputs that were not observed group by group, or have no static grid; a range of an unknown
        layer, or one that is not finite or upside down.
    ValueError
        The spec's rule was not observed.

    Examples
    --------
    >>> from fairq_utils.mitigation.group_ranges import observe_groups
    >>> from fairq_utils.mitigation.sample import as_sample
    >>> ages = {"age": ["young", "young", "old"]}
    >>> faces = as_sample(torch.tensor([[1.0], [1.0], [3.0]]), [0, 1, 1], ages)
    >>> observed = observe_groups(torch.nn.Linear(1, 2), faces)
    >>> table = clipped(observed, QuantSpec(), {"": (0.0, 2.0)}).set_index("group")
    >>> table["clipped"].to_dict(), table["error"].round(2).to_dict()
    ({'old': 1.0, 'young': 0.0}, {'old': 0.11, 'young': 0.0})
    """
    if spec.activation != "static":
        raise BadInput(
            f"clipped: spec.activation is {spec.activation!r}, so there are no fixed ranges; give "
            "a spec with activation='static'"
        )
    chosen = input_ranges(observed, spec) if ranges is None else dict(ranges)
    _check(observed, chosen)
    rows = []
    for name in (name for name in observed.order if name in chosen):
        statistics = observed.statistics[name]
        if not isinstance(statistics, GroupedStatistics):
            raise BadInput(
                f"clipped: the input of {name!r} was not observed group by group; give what "
                "observe_groups returns"
            )
        own = edge_spec(spec, name, observed.order)
        low, high = chosen[name]
        errors = statistics.errors(low, high, own.activation_bits, own.activation_scheme)
        outside = statistics.outside(*_reach(low, high, own))
        for group, images in statistics.images.items():
            ends = statistics.groups[group].minmax
            row = (group, images, ends.low, ends.high, low, high, outside[group], errors[group])
            rows.append((name, *row))
    return pd.DataFrame(rows, columns=COLUMNS)


def _reach(low: float, high: float, spec: QuantSpec) -> tuple[float, float]:
    """Ends of a range or, where that is further out, of the grid made of it."""
    bits, ends = spec.activation_bits, torch.tensor([low, high], dtype=torch.float64)
    scale, zero = map(float, input_grid(ends[0], ends[1], bits, spec.activation_scheme))
    return min(low, -zero * scale), max(high, (2**bits - 1 - zero) * scale)


def _check(observed: Observed, ranges: Ranges) -> None:
    for name, (low, high) in ranges.items():
        if name not in observed.order:
            raise BadInput(
                f"clipped: ranges: there is no layer {name!r}; those that calibration reached are "
                f"{', '.join(observed.order[:5])}{' ...' if len(observed.order) > 5 else ''}"
            )
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise BadInput(
                f"clipped: ranges: that of {name!r} is {low} to {high}; give two finite numbers, "
                "the smaller first"
            )


def _fit(weighting: Weighting) -> Fit:
    def fit(task: Task) -> Result:
        rules, options = [task.spec.activation_range], what_to_observe(task.spec)
        observed = observe_groups(
            task.model, task.calibration(), rules, weighting=weighting, **options
        )
        return quantize_observed(observed, task.spec)

    return fit


method(
    "ranges_mean",
    label="each group's error alike",
    family="group-aware ranges",
    fit=_fit("mean"),
    options=MSE,
    needs="images kept groups",
    images=lambda size: size.calibration,
)
method(
    "ranges_worst",
    label="worst group's error",
    family="group-aware ranges",
    fit=_fit("worst"),
    options=MSE,
    needs="images kept groups",
    images=lambda size: size.calibration,
)
