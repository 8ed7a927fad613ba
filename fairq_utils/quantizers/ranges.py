"""Range rules: which part of the values a grid should hold.

``minmax`` holds all. ``percentile`` leaves out a fixed share. ``mse`` and ``entropy`` weigh what
is clipped against a coarser step, by squared error (Banner et al. 2019; Nagel et al. 2021,
equation 7) or by the Kullback-Leibler divergence of the distributions (Migacz 2017, "8-bit
inference with TensorRT"); both depend on the bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fairq_utils.quantizers.grids import (
    input_grid,
    on_grid,
    to_integers,
    weight_codes,
    weight_grid,
)
from fairq_utils.quantizers.observers import Extremes, Histogram

CANDIDATES = 80  # fractions of the full range that are tried
SMALLEST = 0.01  # the narrowest of them; each is the same factor narrower than the one before
WEIGHT_BINS = 1024
SEARCHED = 1 << 16  # weights at a time: they stay in a core's cache between the passes
HISTOGRAM_RULES = ("percentile", "mse", "entropy")
Grid = tuple[Tensor, Tensor, int, int]  # scale, zero-point, lowest and highest integer
MakeGrid = Callable[[Tensor, Tensor], Grid]


class InputStatistics:
    """What calibration saw of one tensor; answers with a range for any rule.

    Parameters
    ----------
    histogram : bool
        Whether to keep one; the rules in :data:`HISTOGRAM_RULES` need it.
    """

    def __init__(self, histogram: bool = True) -> None:
        self.extremes = Extremes()
        self.histogram = Histogram() if histogram else None

    def see(self, x: Tensor) -> None:
        """Take one batch into account."""
        self.extremes.see(x)
        if self.histogram is not None:
            self.histogram.see(x)

    def range(
        self, rule: str, bits: int, scheme: str = "affine", percentile: float = 99.9
    ) -> tuple[float, float]:
        """Smallest and largest value to represent, within the extremes seen.

        Raises
        ------
        ValueError
            The rule needs a histogram and none was kept.
        """
        low, high = self.extremes.low, self.extremes.high
        if rule == "minmax":
            return low, high
        if rule == "moving_average":
            return self.extremes.average or (low, high)
        if self.histogram is None:
            raise ValueError(f"the rule {rule!r} needs a histogram, and none was kept")
        if rule == "percentile":
            left, right = self.histogram.central(percentile)
            return max(low, left), min(high, right)

        def grid(lower: Tensor, upper: Tensor) -> Grid:
            scale, zero = input_grid(lower, upper, bits, scheme)
            return scale, zero, 0, 2**bits - 1

        values, counts = self.histogram.centres()[None], self.histogram.counts[None]
        start = (torch.tensor([low], dtype=torch.float64), torch.tensor([high]).double())
        search = _least_squared_error if rule == "mse" else _least_divergence
        found = search(values, counts, *start, grid)
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
        return _least_squared_error(rows, None, low, high, grid, both=True)
    values, counts = _row_histograms(rows, low, high)
    return _least_divergence(values, counts, low, high, grid)


def _quantile(rows: Tensor, share: float) -> Tensor:
    """Nearest-rank quantile of every row; ``torch.quantile`` refuses large layers."""
    rank = min(max(round(share * (rows.shape[1] - 1)) + 1, 1), rows.shape[1])
    return rows.kthvalue(rank, dim=1).values


def _fractions() -> list[float]:
    steps = torch.arange(CANDIDATES, dtype=torch.float64) / (CANDIDATES - 1)
    return (SMALLEST**steps).tolist()


def _least_squared_error(
    values: Tensor,
    counts: Tensor | None,
    low: Tensor,
    high: Tensor,
    grid: MakeGrid,
    *,
    both: bool = False,
) -> tuple[Tensor, Tensor]:
    """Shrink each end of every row's range (or both ends together) to the least squared error."""

    def error(lower: Tensor, upper: Tensor) -> Tensor:
        scale, zero, lowest, highest = grid(lower, upper)
        off = (on_grid(values, scale[:, None], zero[:, None], lowest, highest) - values).square()
        return (off if counts is None else off * counts).sum(dim=1)

    def shrink(lower: Tensor, upper: Tensor, ends: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
        best = (error(lower, upper), lower, upper)
        for fraction in _fractions()[1:]:
            left = lower * fraction if ends[0] else lower
            right = upper * fraction if ends[1] else upper
            now = error(left, right)
            better = now < best[0]
            best = (
                torch.where(better, now, best[0]),
                torch.where(better, left, best[1]),
                torch.where(better, right, best[2]),
            )
        return best[1], best[2]

    if both:
        return shrink(low, high, (True, True))
    low, high = shrink(low, high, (False, True))
    return shrink(low, high, (True, False))


def _row_histograms(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    width = torch.clamp((high - low) / WEIGHT_BINS, min=1e-12)[:, None]
    index = ((rows - low[:, None]) / width).long().clamp_(0, WEIGHT_BINS - 1)
    counts = torch.zeros(len(rows), WEIGHT_BINS, device=rows.device)
    counts.scatter_add_(1, index, torch.ones_like(rows))
    steps = torch.arange(WEIGHT_BINS, device=rows.device) + 0.5
    return low[:, None] + width * steps, counts


def _least_divergence(
    values: Tensor, counts: Tensor, low: Tensor, high: Tensor, grid: MakeGrid
) -> tuple[Tensor, Tensor]:
    """The fraction of the range whose quantized distribution diverges least from the real one.

    The reference keeps the bins inside and adds what is clipped to the outermost of them; the
    candidate spreads each code's mass evenly over the occupied bins of that code.
    """
    best = (torch.full_like(low, float("inf")), low, high)
    occupied = counts > 0
    for fraction in _fractions():
        left, right = low * fraction, high * fraction
        scale, zero, lowest, highest = grid(left, right)
        inside = (values >= left[:, None]) & (values <= right[:, None])
        code = to_integers(values, scale[:, None], zero[:, None], lowest, highest) - lowest
        code = code.long()
        levels = highest - lowest + 1

        def per_code(x: Tensor, code: Tensor = code, levels: int = levels) -> Tensor:
            out = torch.zeros(len(x), levels, dtype=x.dtype, device=x.device)
            return out.scatter_add_(1, code, x).gather(1, code)

        mass = per_code(counts * inside)
        bins = per_code((occupied & inside).to(counts.dtype))
        candidate = torch.where(occupied & inside, mass / bins.clamp(min=1), 0.0)
        reference = _clipped(counts, inside, values, left, right)
        now = _divergence(reference, candidate)
        better = now < best[0]
        best = (
            torch.where(better, now, best[0]),
            torch.where(better, left, best[1]),
            torch.where(better, right, best[2]),
        )
    return best[1], best[2]


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
