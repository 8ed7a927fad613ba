"""Calibration statistics by group, and ranges by the errors of the groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fairq_utils.quantizers.observers import CountObserver, central, filled
from fairq_utils.quantizers.ranges import (
    InputStatistics,
    clipping_error,
    input_grids,
    search_ends,
    search_pairs,
    summed_error,
)

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
    groups : group -> statistics of its values; groups that never reached this tensor are not there
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
        """Group -> how many of its images were observed."""
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
        """True if :meth:`range` knows this rule."""
        return rule in RULES and (rule == "minmax" or rule in self._rules)

    def range(
        self, rule: str, bits: int, scheme: str = "affine", percentile: float = 99.9
    ) -> tuple[float, float]:
        """Smallest and largest value to represent, within the smallest and largest observed.

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
        low = min(own.minmax.low for own in each)
        high = max(own.minmax.high for own in each)
        if rule == "minmax":
            return low, high
        if rule == "mse":
            return self._least_error(bits, scheme, low, high)
        if self.weighting == "worst":
            ends = [own.range(rule, bits, scheme, percentile) for own in each]
            return min(left for left, _ in ends), max(right for _, right in ends)
        histograms = [own.histogram for own in each if own.histogram is not None]
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
        relative = [own.relative for own in self.groups.values() if own.relative is not None]
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
        ends = {n: (own.minmax.low, own.minmax.high) for n, own in self.groups.items()}
        return {n: kept.outside(low, high, ends[n]) for n, kept in self.counts.items()}
