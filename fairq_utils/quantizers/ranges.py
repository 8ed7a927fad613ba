"""Range rules: which part of the values a grid should hold.

``minmax`` holds all. ``percentile`` leaves out a fixed share. ``mse`` and ``entropy`` weigh what
is clipped against a coarser step, by squared error (Banner et al. 2019; Nagel et al. 2021,
equation 7) or by the Kullback-Leibler divergence of the distributions (Migacz 2017, "8-bit
inference with TensorRT"); both depend on the bits. The squared error of inputs is relative to the
power of each sample, ``sum_i |x_i - x^_i|**2 / |x_i|**2``: in absolute terms one image whose
activations are a hundred times those of all others would weigh as much as ten thousand of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fairq_utils.quantizers.grids import input_grid, to_integers, weight_codes, weight_grid
from fairq_utils.quantizers.observers import (
    HistogramObserver,
    MinMaxObserver,
    RelativeHistogramObserver,
)

# Fractions of the full range that are tried, each the same factor narrower than the one before:
# how many, and the last. A weight's range is a few times its spread; an input's, where one image
# is odd, hundreds of times.
WEIGHT_FRACTIONS = (80, 0.02)
INPUT_FRACTIONS = (60, 1e-3)
BETWEEN_CHECKS = 3  # fractions that are tried until it is asked whether to go on
TURNS = 2  # of searching each end of a range alone
WEIGHT_BINS = 1024
SEARCHED = 1 << 18  # weights at a time: they stay in a core's cache between the passes
HISTOGRAM_RULES = ("percentile", "mse", "entropy")
Grid = tuple[Tensor, Tensor, int, int]  # scale, zero-point, lowest and highest integer
MakeGrid = Callable[[Tensor, Tensor], Grid]
Error = Callable[[Tensor, Tensor], Tensor]  # of each of C ranges, from their ends (C,)


class InputStatistics:
    """Calibration statistics of one tensor, and its range by the rules that were named.

    Parameters
    ----------
    rules : names of range rules
        Minimum and maximum are always kept; histograms only where one of these needs them.
    """

    def __init__(self, rules: Collection[str] = HISTOGRAM_RULES) -> None:
        self.minmax = MinMaxObserver()
        self.histogram = HistogramObserver() if {"percentile", "entropy"} & set(rules) else None
        self.relative = RelativeHistogramObserver() if "mse" in rules else None
        self._found: dict[tuple[str, int, str, float], tuple[float, float]] = {}

    def update(self, x: Tensor) -> None:
        """Take one batch (B, ...) into account."""
        self._found.clear()
        for observer in (self.minmax, self.histogram, self.relative):
            if observer is not None:
                observer.update(x)

    def has(self, rule: str) -> bool:
        """Check that :meth:`range` has what this rule needs."""
        needed = {"percentile": self.histogram, "entropy": self.histogram, "mse": self.relative}
        return rule not in needed or needed[rule] is not None

    def range(
        self, rule: str, bits: int, scheme: str = "affine", percentile: float = 99.9
    ) -> tuple[float, float]:
        """Smallest and largest value to represent, within those that were observed.

        Raises
        ------
        ValueError
            The rule needs a histogram that was not kept.
        """
        asked = (rule, bits, scheme, percentile)
        if asked not in self._found:
            self._found[asked] = self._range(*asked)
        return self._found[asked]

    def _range(self, rule: str, bits: int, scheme: str, percentile: float) -> tuple[float, float]:
        low, high = self.minmax.low, self.minmax.high
        if rule == "minmax":
            return low, high
        if rule == "moving_average":
            return self.minmax.average or (low, high)
        grid = input_grids(bits, scheme)
        if rule == "mse" and self.relative is not None:
            return search_ends(summed_error(*self.relative.filled(), grid), low, high)
        if rule == "percentile" and self.histogram is not None:
            left, right = self.histogram.central(percentile)
            return max(low, left), min(high, right)
        if rule == "entropy" and self.histogram is not None:
            values, counts = self.histogram.centres(), self.histogram.without_zeros()
            return search_ends(_divergence_of(values[None], counts[None], grid), low, high)
        raise ValueError(f"the rule {rule!r} needs a histogram, and none was kept")


class Statistics(Protocol):
    """Calibration statistics of one tensor, of any kind; see :class:`InputStatistics`."""

    def update(self, x: Tensor) -> None:
        """Take one batch (B, ...) into account."""

    def has(self, rule: str) -> bool:
        """Check that :meth:`range` has what this rule needs."""

    def range(
        self, rule: str, bits: int, scheme: str = "affine", percentile: float = 99.9
    ) -> tuple[float, float]:
        """Smallest and largest value to represent, within those that were observed."""


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
        symmetric = scheme == "symmetric"  # an affine grid may reach further than its range
        clipping = _squared_clipping(rows) if symmetric else None
        return _search(_squared_error(rows, grid), low, high, clipping)
    return _search(_divergence_of(*_row_histograms(rows, low, high), grid), low, high)


def input_grids(bits: int, scheme: str) -> MakeGrid:
    """Make, from the ends of C ranges, the grids of inputs that hold them."""

    def grid(lower: Tensor, upper: Tensor) -> Grid:
        scale, zero = input_grid(lower, upper, bits, scheme)
        return scale, zero, 0, 2**bits - 1

    return grid


def search_ends(error: Error, low: float, high: float) -> tuple[float, float]:
    """Shrink each end of a range until the error is smallest.

    An end far out would hide what the other one gains: together first, then each in turn.

    Parameters
    ----------
    error : of each of C ranges, from their ends (C,)
    low, high : ends of the widest range
    """
    fractions = _fractions(*INPUT_FRACTIONS)
    lows, highs = low * fractions, high * fractions

    def best(left: Tensor, right: Tensor) -> int:
        found = error(left, right)
        return int((found == found.min()).nonzero()[0])  # of equals the widest

    place = best(lows, highs)
    left, right = lows[place], highs[place]
    for _ in range(TURNS):
        left = lows[best(lows, right.expand_as(lows))]
        right = highs[best(left.expand_as(highs), highs)]
    return float(left), float(right)


def search_pairs(error: Error, least: Error, low: float, high: float) -> tuple[float, float]:
    """The pair of ends with the smallest error of all that :func:`search_ends` may come to.

    For an error with kinks, where turning one end at a time stops short of the minimum.

    Parameters
    ----------
    error, low, high : see :func:`search_ends`
    least : what the error of a range cannot be below
        Where it is above an error that was found, nothing is tried.
    """
    fractions = _fractions(*INPUT_FRACTIONS)
    start = torch.tensor(search_ends(error, low, high), dtype=torch.float64)[:, None]
    lows, highs = torch.cartesian_prod(low * fractions, high * fractions).T
    bounds = least(lows, highs)
    # The two are rounded differently, and an error of nothing may come out below nothing.
    worth = bounds <= torch.maximum(error(*start) * (1 + 1e-9), bounds.min())
    lows, highs = lows[worth], highs[worth]
    parts = zip(lows.split(len(fractions)), highs.split(len(fractions)), strict=True)
    errors = torch.cat([error(left, right) for left, right in parts])
    at = int((errors == errors.min()).nonzero()[0])  # of equals the widest
    return float(lows[at]), float(highs[at])


def summed_error(values: Tensor, weights: Tensor, grid: MakeGrid) -> Error:
    """Weighted squared error of ascending values (K,) on the grids that hold C ranges.

    The values of one code lie side by side: their error is ``sum w x**2 - 2 c sum w x + c**2 sum
    w``, differences of sums that are made once.

    Parameters
    ----------
    values : float64 (K,)
    weights : float64 (K,), or (G, K) for an error (G, C)
    grid : from the ends of C ranges to their grids
    """
    sums = _running_sums(values, weights)

    def error(left: Tensor, right: Tensor) -> Tensor:
        scale, zero, lowest, highest = grid(left, right)
        codes = torch.arange(lowest, highest + 1) - zero[:, None]
        points = codes * scale[:, None]
        ends = torch.searchsorted(values, (codes[:, :-1] + 0.5) * scale[:, None])
        edge = torch.zeros(len(ends), 1, dtype=ends.dtype)
        ends = torch.cat([edge, ends, edge + len(values)], dim=1)
        return _squared([total[..., ends].diff(dim=-1) for total in sums], points).sum(dim=-1)

    return error


def clipping_error(values: Tensor, weights: Tensor, grid: MakeGrid) -> Error:
    """The part of :func:`summed_error` of values beyond the ends of a grid."""
    sums = _running_sums(values, weights)

    def error(left: Tensor, right: Tensor) -> Tensor:
        scale, zero, lowest, highest = grid(left, right)
        first, last = (lowest - zero) * scale, (highest - zero) * scale
        below, above = torch.searchsorted(values, first), torch.searchsorted(values, last)
        under = _squared([total[..., below] for total in sums], first)
        return under + _squared([total[..., -1:] - total[..., above] for total in sums], last)

    return error


def _search(
    error: Error, low: Tensor, high: Tensor, clipping: Error | None = None
) -> tuple[Tensor, Tensor]:
    """Shrink every row's range until its error is smallest.

    Parameters
    ----------
    clipping : a part of the error that only grows as ranges shrink
        Where it alone is above the smallest error of every row, nothing narrower is tried.
    """
    least, left, right = torch.full_like(low, torch.inf), low, high
    for number, fraction in enumerate(_fractions(*WEIGHT_FRACTIONS).tolist()):
        lower, upper = low * fraction, high * fraction
        if clipping is not None and number % BETWEEN_CHECKS == 0:
            hopeless = clipping(lower, upper) > least
            if hopeless.all():
                break
        now = error(lower, upper)
        better = now < least
        least = torch.where(better, now, least)
        left, right = torch.where(better, lower, left), torch.where(better, upper, right)
    return left, right


def _fractions(count: int, last: float) -> Tensor:
    """Numbers from 1 to ``last``, each the same factor smaller than the one before; float64."""
    return last ** (torch.arange(count, dtype=torch.float64) / (count - 1))


def _quantile(rows: Tensor, share: float) -> Tensor:
    """Nearest-rank quantile of every row; ``torch.quantile`` refuses large layers."""
    rank = min(max(round(share * (rows.shape[1] - 1)) + 1, 1), rows.shape[1])
    return rows.kthvalue(rank, dim=1).values


def _running_sums(values: Tensor, weights: Tensor) -> list[Tensor]:
    """Sums of ``w``, ``w x`` and ``w x**2`` up to every value, from 0 on."""
    return [F.pad((weights * values**n).cumsum(-1), (1, 0)) for n in range(3)]


def _squared(sums: list[Tensor], points: Tensor) -> Tensor:
    """``sum w (x - c)**2`` from the sums of ``w``, ``w x`` and ``w x**2``."""
    mass, first, second = sums
    return second - 2 * points * first + points.square() * mass


def _squared_error(rows: Tensor, grid: MakeGrid) -> Error:
    """Squared error of every row (R, K) on the grid that holds a range."""
    off = torch.empty_like(rows)

    def error(left: Tensor, right: Tensor) -> Tensor:
        scale, zero, lowest, highest = grid(left, right)
        torch.div(rows, scale[:, None], out=off)
        off.round_()
        if zero.any():
            off.clamp_(lowest - zero[:, None], highest - zero[:, None])
        else:  # many times as fast
            off.clamp_(lowest, highest)
        off.mul_(scale[:, None]).sub_(rows)
        return torch.linalg.vector_norm(off, dim=1).square_()

    return error


def _squared_clipping(rows: Tensor) -> Error:
    """Squared error of what lies outside a range that is symmetric around zero."""
    size, off = rows.abs(), torch.empty_like(rows)

    def error(left: Tensor, right: Tensor) -> Tensor:
        torch.sub(size, right[:, None], out=off)
        return torch.linalg.vector_norm(off.clamp_(min=0), dim=1).square_()

    return error


def _row_histograms(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    width = torch.clamp((high - low) / WEIGHT_BINS, min=1e-12)[:, None]
    index = ((rows - low[:, None]) / width).long().clamp_(0, WEIGHT_BINS - 1)
    counts = torch.zeros(len(rows), WEIGHT_BINS, device=rows.device)
    counts.scatter_add_(1, index, torch.ones_like(rows))
    steps = torch.arange(WEIGHT_BINS, device=rows.device) + 0.5
    return low[:, None] + width * steps, counts


def _divergence_of(values: Tensor, counts: Tensor, grid: MakeGrid) -> Error:
    """Divergence of every row's quantized distribution from the real one.

    The reference keeps the bins inside and adds what is clipped to the outermost of them that is
    occupied; the candidate spreads each code's mass evenly over the occupied bins of that code. A
    range that holds fewer occupied bins than there are codes could be told from all the others by
    nothing, however much it clips, and is no candidate (Migacz begins at as many bins as codes).
    """
    occupied = counts > 0
    every = occupied.sum(dim=1)

    def divergence(left: Tensor, right: Tensor) -> Tensor:
        scale, zero, lowest, highest = grid(left, right)
        held = occupied & (values >= left[:, None]) & (values <= right[:, None])
        code = to_integers(values, scale[:, None], zero[:, None], lowest, highest) - lowest
        code = code.long()

        def per_code(x: Tensor) -> Tensor:
            out = torch.zeros(len(x), highest - lowest + 1, dtype=x.dtype, device=x.device)
            return out.scatter_add_(1, code, x).gather(1, code)

        mass, bins = per_code(counts * held), per_code(held.to(counts.dtype))
        candidate = torch.where(held, mass / bins.clamp(min=1), 0.0)
        found = _divergence(_clipped(counts, held, values, left, right), candidate)
        enough = held.sum(dim=1) >= every.clamp(max=highest - lowest + 1)
        return torch.where(enough, found, torch.inf)

    return divergence


def _clipped(counts: Tensor, held: Tensor, values: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Counts of bins held, with what lies outside added to the outermost of them on its side."""
    below = (counts * (values < left[:, None])).sum(dim=1)
    above = (counts * (values > right[:, None])).sum(dim=1)
    number = torch.arange(values.shape[1], device=values.device).expand_as(held)
    first = torch.where(held, number, values.shape[1] - 1).amin(dim=1, keepdim=True)
    last = torch.where(held, number, 0).amax(dim=1, keepdim=True)
    out = (counts * held).scatter_add(1, first, below[:, None])
    return out.scatter_add(1, last, above[:, None])


def _divergence(reference: Tensor, candidate: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two rows of counts; infinite where the candidate has none."""
    p = reference / reference.sum(dim=1, keepdim=True).clamp(min=1e-12)
    q = candidate / candidate.sum(dim=1, keepdim=True).clamp(min=1e-12)
    terms = torch.where(p > 0, p * (torch.log(p.clamp(min=1e-30)) - torch.log(q)), 0.0)
    total = terms.sum(dim=1)
    return torch.where(torch.isnan(total), torch.inf, total)
