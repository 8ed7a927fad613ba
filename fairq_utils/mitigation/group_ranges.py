"""Group-aware input ranges, and whom a range clips."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.sample import Sample
from fairq_utils.quantizers.calibrate import Observed, observe
from fairq_utils.quantizers.grids import input_grid
from fairq_utils.quantizers.methods import MSE, Fit, Result, Task, method
from fairq_utils.quantizers.observers import CountObserver, central, filled
from fairq_utils.quantizers.post_training import edge_spec, quantize_observed
from fairq_utils.quantizers.ranges import (
    InputStatistics,
    clipping_error,
    input_grids,
    search_ends,
    search_pairs,
    summed_error,
)
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.training.inference import device_of

Weighting = Literal["mean", "worst"]
RULES = ("minmax", "percentile", "mse")


@dataclass
class Turn:
    """Group whose images the model looks at.

    Attributes
    ----------
    images : group -> how many images there are of it
    group : whose turn it is
    """

    images: Mapping[str, int]
    group: str = ""


class GroupedStatistics:
    """Calibration statistics of one tensor by group; a range by the groups' errors.

    It stands where :class:`~fairq_utils.quantizers.ranges.InputStatistics` does.

    Parameters
    ----------
    rules : names of range rules
        What judges a range (relative errors, counts of values) is kept whatever they are.
    weighting : str
        ``mean`` or ``worst``; see :func:`observe_groups`.
    turn : Turn
        Says which group a batch is of.

    Attributes
    ----------
    groups : group -> what was seen of it; groups that never reached this tensor are not there
    counts : group -> counts of its values
    """

    def __init__(self, rules: Collection[str], weighting: Weighting, turn: Turn) -> None:
        self.groups: dict[str, InputStatistics] = {}
        self.counts: dict[str, CountObserver] = {}
        self.weighting = weighting
        self._rules, self._turn = {*rules, "mse"}, turn
        self._found: dict[tuple[str, int, str, float], tuple[float, float]] = {}

    @property
    def images(self) -> dict[str, int]:
        """Group -> how many of its images were seen."""
        return {name: self._turn.images[name] for name in self.groups}

    def update(self, x: Tensor) -> None:
        """Take one batch (B, ...) of the group whose turn it is into account."""
        self._found.clear()
        name = self._turn.group
        if name not in self.groups:
            self.groups[name], self.counts[name] = InputStatistics(self._rules), CountObserver()
        self.groups[name].update(x)
        self.counts[name].update(x)

    def has(self, rule: str) -> bool:
        """True if :meth:`range` can answer for this rule."""
        return rule in RULES and (rule == "minmax" or rule in self._rules)

    def range(
        self, rule: str, bits: int, scheme: str = "affine", percentile: float = 99.9
    ) -> tuple[float, float]:
        """Smallest and largest value to represent, within the extremes seen.

        Raises
        ------
        ValueError
            A rule that is not among those that were named.
        """
        if not self.has(rule):
            raise ValueError(
                f"ranges by {rule!r} were not observed by groups; name one of {', '.join(RULES)} "
                "in the rules of observe_groups"
            )
        asked = (rule, bits, scheme, percentile)
        if asked not in self._found:
            self._found[asked] = self._range(*asked)
        return self._found[asked]

    def _range(self, rule: str, bits: int, scheme: str, percentile: float) -> tuple[float, float]:
        each = list(self.groups.values())
        low = min(seen.minmax.low for seen in each)
        high = max(seen.minmax.high for seen in each)
        if rule == "minmax":
            return low, high
        if rule == "mse":
            return self._least_error(bits, scheme, low, high)
        if self.weighting == "worst":
            ends = [seen.range(rule, bits, scheme, percentile) for seen in each]
            return min(left for left, _ in ends), max(right for _, right in ends)
        histograms = [seen.histogram for seen in each if seen.histogram is not None]
        sizes = [float(histogram.counts.sum()) for histogram in histograms]
        weights = [max(sizes) / size for size in sizes]  # of groups of one size, exactly 1
        left, right = central(histograms, weights, percentile)
        return max(low, left), min(high, right)

    def _least_error(self, bits: int, scheme: str, low: float, high: float) -> tuple[float, float]:
        values, weights = self._weights()
        grid = input_grids(bits, scheme)
        if self.weighting == "mean":
            return search_ends(summed_error(values, weights.mean(dim=0), grid), low, high)
        each, lost = (of(values, weights, grid) for of in (summed_error, clipping_error))
        return search_pairs(
            lambda left, right: each(left, right).amax(dim=0),
            lambda left, right: lost(left, right).amax(dim=0),
            low,
            high,
        )

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Values (K,), and the weight that the square of its error has for each group (G, K)."""
        sizes = torch.tensor([self.counts[n].total for n in self.groups], dtype=torch.float64)
        relative = [seen.relative for seen in self.groups.values() if seen.relative is not None]
        weights = torch.stack([kept.weights for kept in relative]) / sizes[:, None]
        return filled(weights)

    def errors(
        self, low: float, high: float, bits: int, scheme: str = "affine"
    ) -> dict[str, float]:
        """Group -> mean of ``|x - x^|^2 / |x|^2`` over its images, on the grid that holds a range.

        Where a layer takes an image in several parts (windows), the mean is over parts. Values are
        known to one part in 256: of steps finer than that, what is computed is a fair estimate for
        values that vary freely, and may be off by a third for those that repeat, as pixels do.
        """
        values, weights = self._weights()
        left, right = torch.tensor([[low], [high]], dtype=torch.float64)
        found = summed_error(values, weights, input_grids(bits, scheme))(left, right)[:, 0]
        return dict(zip(self.groups, found.clamp(min=0).tolist(), strict=True))

    def outside(self, low: float, high: float) -> dict[str, float]:
        """Group -> share of its values below ``low`` or above ``high``."""
        extremes = {n: (seen.minmax.low, seen.minmax.high) for n, seen in self.groups.items()}
        return {n: kept.outside(low, high, extremes[n]) for n, kept in self.counts.items()}


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
        Its statistics, and those of operations, are :class:`GroupedStatistics`.

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
    >>> seen = observe_groups(nn.Linear(1, 2), faces, ["minmax"])
    >>> seen.statistics[""].range("minmax", 8)
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
                f"{', '.join(RULES)}, or observe without groups"
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


def input_ranges(seen: Observed, spec: QuantSpec) -> dict[str, tuple[float, float]]:
    """Layer -> the range that ``spec`` gives its input, in order of execution.

    The first and the last layer have the bits of :meth:`QuantSpec.at_edge`.
    """
    return {name: seen.range(name, edge_spec(spec, name, seen.order)) for name in seen.order}


def clipped(seen: Observed, spec: QuantSpec, ranges: Ranges | None = None) -> pd.DataFrame:
    """Clipping and error of each group under the range of each layer's input.

    Parameters
    ----------
    seen : from :func:`fairq_utils.mitigation.group_ranges.observe_groups`
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
    >>> from fairq_utils.mitigation.group_ranges import observe_groups
    >>> from fairq_utils.mitigation.sample import as_sample
    >>> ages = {"age": ["young", "young", "old"]}
    >>> faces = as_sample(torch.tensor([[1.0], [1.0], [3.0]]), [0, 1, 1], ages)
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
            ends = statistics.groups[group].minmax
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


def _fit(weighting: Weighting) -> Fit:
    def fit(task: Task) -> Result:
        spec = task.spec
        options = {"equalization": spec.equalization, "keep": spec.bias_correction}
        seen = observe_groups(
            task.model, task.calibration(), [spec.activation_range], weighting=weighting, **options
        )
        return quantize_observed(seen, spec)

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
