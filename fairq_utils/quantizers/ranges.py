"""Range rules: which part of the values a grid should hold.

``minmax`` holds all. ``percentile`` leaves out a fixed share. ``mse`` and ``entropy`` weigh what
is clipped against a coarser step, by squared error (Banner et al. 2019; Nagel et al. 2021,
equation 7) or by the Kullback-Leibler divergence of the distributions (Migacz 2017, "8-bit
inference with TensorRT"); both depend on the bits. The squared error of inputs is relative to the
power of each sample, ``sum_i |x_i - x^_i|**2 / |x_i|**2``: in absolute terms one picture whose
activations are a hundred times those of all others would weigh as much as ten thousand of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor

from fairq_utils.quantizers.grids import (
    input_grid,
    on_grid,
    to_integers,
    weight_codes,
    weight_grid,
)
from fairq_utils.quantizers.observers import Extremes, Histogram, RelativeHistogram

# Fractions of the full range that are tried, each the same factor narrower than the one before:
# how many, and the last. A weight's range is a few times its spread; an input's, where one picture
# is odd, hundreds of times.
WEIGHT_FRACTIONS = (80, 0.02)
INPUT_FRACTIONS = (60, 1e-3)
TURNS = 2  # of searching each end of a range alone
WEIGHT_BINS = 1024
SEARCHED = 1 << 16  # weights at a time: they stay in a core's cache between the passes
HISTOGRAM_RULES = ("percentile", "mse", "entropy")
Grid = tuple[Tensor, Tensor, int, int]  # scale, zero-point, lowest and highest integer
MakeGrid = Callable[[Tensor, Tensor], Grid]


class InputStatistics:
    """What calibration saw of one tensor; answers with a range for the rules that were named.

    Parameters
    ----------
    rules : names of range rules
        Extremes are always kept; histograms only where one of these needs them.
    """

    def __init__(self, rules: Collection[str] = HISTOGRAM_RULES) -> None:
        self.extremes = Extremes()
        self.histogram = Histogram() if {"percentile", "entropy"} & set(rules) else None
        self.relative = RelativeHistogram() if "mse" in rules else None

    def see(self, x: Tensor) -> None:
        """Take one batch (B, ...) into account."""
        self.extremes.see(x)
        for kept in (self.histogram, self.relative):
            if kept is not None:
                kept.see(x)

    def has(self, rule: str) -> bool:
        """Whether :meth:`range` can answer for this rule."""
        needed = {"percentile": self.histogram, "entropy": self.histogram, "mse": self.relative}
        return rule not in needed or needed[rule] is not None

    def range(
        self, rule: str, bits: int, scheme: str = "affine", percentile: float = 99.9
    ) -> tuple[float, float]:
        """Smallest and largest value to represent, within the extremes seen.

        Raises
        ------
        ValueError
            The rule needs a histogram that was not kept.
        """
        low, high = self.extremes.low, self.extremes.high
        if rule == "minmax":
            return low, high
        if rule == "moving_average":
            return self.extremes.average or (low, high)

        def grid(lower: Tensor, upper: Tensor) -> Grid:
            scale, zero = input_grid(lower, upper, bits, scheme)
            return scale, zero, 0, 2**bits - 1

        start = (torch.tensor([low], dtype=torch.float64), torch.tensor([high]).double())
        if rule == "mse" and self.relative is not None:
            live = self.relative.weights > 0
            values, weights = self.relative.values()[live], self.relative.weights[live]
            error = _squared_error(values[None], weights[None], grid)
        elif rule == "percentile" and self.histogram is not None:
            left, right = self.histogram.central(percentile)
            return max(low, left), min(high, right)
        elif rule == "entropy" and self.histogram is not None:
            values = self.histogram.centres()[None]
            counts = self.histogram.without_zeros()[None]
            error = _divergence_of(values, counts, grid)
        else:
            raise ValueError(f"the rule {rule!r} needs a histogram, and none was kept")
        found = _search(error, *start)
        return float(found[0]), float(found[1])


def weight_limits(
    rows: Tensor, rule: str, bits: int, scheme: str, percentile: float
) -> tuple[Tensor, Tensor]:
    """Smallest and largest value to represent of every row (R, K); two tensors (R,)."""
    some = max(SEARCHED // rows.shape[1], 1)  # rows at a time: a search passes over them often
    if len(rows) > some:
        parts = [weight_limits(part, rule, bits, scheme, percentile) for part in rows.split(some)]
        return torch.cat([low for low, _ in parts]), torch.cat([high for _, high in parts])
    rows = rows.float()
    low, high = rows.amin(dim=1), rows.amax(dim=1)
    if scheme == "symmetric":
        high = torch.maximum(-low, high)
        low = -high
    if rule == "minmax":
        return low, high
    if rule == "percentile":
        if scheme == "symmetric":
            limit = _quantile(rows.abs(), percentile / 100)
            return -limit, limit
        outside = (1 - percentile / 100) / 2
        return _quantile(rows, outside), _quantile(rows, 1 - outside)

    def grid(lower: Tensor, upper: Tensor) -> Grid:
        return *weight_grid(lower, upper, bits, scheme), *weight_codes(bits, scheme)

    if rule == "mse":
        return _search(_squared_error(rows, None, grid), low, high, both=True)
    values, counts = _row_histograms(rows, low, high)
    return _search(_divergence_of(values, counts, grid), low, high, both=True)


def _quantile(rows: Tensor, share: float) -> Tensor:
    """Nearest-rank quantile of every row; ``torch.quantile`` refuses large layers."""
    rank = min(max(round(share * (rows.shape[1] - 1)) + 1, 1), rows.shape[1])
    return rows.kthvalue(rank, dim=1).values


def _fractions(count: int, last: float) -> list[float]:
    steps = torch.arange(count, dtype=torch.float64) / (count - 1)
    return (last**steps).tolist()


def _search(
    error: Callable[[Tensor, Tensor], Tensor], low: Tensor, high: Tensor, *, both: bool = False
) -> tuple[Tensor, Tensor]:
    """Shrink each end of every row's range (of weights ``both`` alike) to the least error."""

    def best(candidates: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        found = (torch.full_like(low, torch.inf), low, high)
        for left, right in candidates:
            now = error(left, right)
            better = now < found[0]
            found = (
                torch.where(better, now, found[0]),
                torch.where(better, left, found[1]),
                torch.where(better, right, found[2]),
            )
        return found[1], found[2]

    fractions = _fractions(*(WEIGHT_FRACTIONS if both else INPUT_FRACTIONS))
    left, right = best((low * f, high * f) for f in fractions)
    if both:
        return left, right
    # An end far out would hide what the other one gains: together first, then each in turn.
    for _ in range(TURNS):
        left, _unused = best((low * f, right) for f in fractions)
        _unused, right = best((left, high * f) for f in fractions)
    return left, right


def _squared_error(
    values: Tensor, weights: Tensor | None, grid: MakeGrid
) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared error of every row (R, K) on the grid that holds a range."""

    def error(left: Tensor, right: Tensor) -> Tensor:
        scale, zero, lowest, highest = grid(left, right)
        off = (on_grid(values, scale[:, None], zero[:, None], lowest, highest) - values).square()
        return (off if weights is None else off * weights).sum(dim=1)

    return error


def _row_histograms(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    width = torch.clamp((high - low) / WEIGHT_BINS, min=1e-12)[:, None]
    index = ((rows - low[:, None]) / width).long().clamp_(0, WEIGHT_BINS - 1)
    counts = torch.zeros(len(rows), WEIGHT_BINS, device=rows.device)
    counts.scatter_add_(1, index, torch.ones_like(rows))
    steps = torch.arange(WEIGHT_BINS, device=rows.device) + 0.5
    return low[:, None] + width * steps, counts


def _divergence_of(
    values: Tensor, counts: Tensor, grid: MakeGrid
) -> Callable[[Tensor, Tensor], Tensor]:
    """How much a row's quantized distribution diverges from the real one.

    The reference keeps the bins inside and adds what is clipped to the outermost of them; the
    candidate spreads each code's mass evenly over the occupied bins of that code.
    """
    occupied = counts > 0

    def divergence(left: Tensor, right: Tensor) -> Tensor:
        scale, zero, lowest, highest = grid(left, right)
        inside = (values >= left[:, None]) & (values <= right[:, None])
        code = to_integers(values, scale[:, None], zero[:, None], lowest, highest) - lowest
        code = code.long()

        def per_code(x: Tensor) -> Tensor:
            out = torch.zeros(len(x), highest - lowest + 1, dtype=x.dtype, device=x.device)
            return out.scatter_add_(1, code, x).gather(1, code)

        mass = per_code(counts * inside)
        bins = per_code((occupied & inside).to(counts.dtype))
        candidate = torch.where(occupied & inside, mass / bins.clamp(min=1), 0.0)
        return _divergence(_clipped(counts, inside, values, left, right), candidate)

    return divergence


def _clipped(counts: Tensor, inside: Tensor, values: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Counts inside, with what lies outside added to the outermost bin on its side."""
    out = counts * inside
    below = (counts * (values < left[:, None])).sum(dim=1)
    above = (counts * (values > right[:, None])).sum(dim=1)
    number = torch.arange(values.shape[1], device=values.device).expand_as(values)
    first = torch.where(inside, number, values.shape[1] - 1).amin(dim=1, keepdim=True)
    last = torch.where(inside, number, 0).amax(dim=1, keepdim=True)
    out = out.scatter_add(1, first, below[:, None])
    return out.scatter_add(1, last, above[:, None])


def _divergence(reference: Tensor, candidate: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two rows of counts; infinite where the candidate has none."""
    p = reference / reference.sum(dim=1, keepdim=True).clamp(min=1e-12)
    q = candidate / candidate.sum(dim=1, keepdim=True).clamp(min=1e-12)
    terms = torch.where(p > 0, p * (torch.log(p.clamp(min=1e-30)) - torch.log(q)), 0.0)
    total = terms.sum(dim=1)
    return torch.where(torch.isnan(total), torch.inf, total)
