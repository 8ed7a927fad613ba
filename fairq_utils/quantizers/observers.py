"""Observers: calibration statistics of the values of one tensor, in a fixed amount of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BINS = 4096
HALF = 16  # bits of a float32 that decide its bin
COUNTED = 1 << 18  # values at a time on a CPU: they stay in a core's cache between the passes
MOMENTUM = 0.1  # weight of a batch in the moving average


class MinMaxObserver:
    """Smallest and largest value: of all batches, and as a moving average over batches.

    The moving average is that of Jacob et al. 2018, section 3.1. Its value depends on the size and
    the order of batches.
    """

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")
        self.average: tuple[float, float] | None = None

    def update(self, x: Tensor) -> None:
        """Take one batch into account."""
        x = x.detach()
        low, high = float(x.amin()), float(x.amax())  # aminmax is ten times as slow
        self.low, self.high = min(self.low, low), max(self.high, high)
        old = self.average or (low, high)
        self.average = (
            old[0] + MOMENTUM * (low - old[0]),
            old[1] + MOMENTUM * (high - old[1]),
        )


class HistogramObserver:
    """Counts of all values, in bins of one width that merge in pairs as the range grows.

    There are at least ``BINS / 2`` bins between the smallest and the largest value.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.origin, self.width = 0.0, 0.0

    def update(self, x: Tensor) -> None:
        """Take one batch into account."""
        x = x.detach().float().reshape(-1)
        low, high = float(x.amin()), float(x.amax())
        if self.width == 0.0:
            spread = high - low
            self.width = spread / BINS if spread > 0 else max(abs(low), 1e-12) / BINS
            self.origin = low
        self._cover(low, high)
        index = ((x - self.origin) / self.width).long().clamp_(0, BINS - 1)
        self.counts += torch.bincount(index, minlength=BINS).double().cpu()

    def _cover(self, low: float, high: float) -> None:
        """Double the width until the histogram spans low to high; old bins merge, none is split."""
        while high > self.origin + self.width * BINS or low < self.origin:
            pairs = self.counts.reshape(-1, 2).sum(dim=1)
            grown = torch.zeros_like(self.counts)
            if low < self.origin:  # room below: the old bins become the upper half
                grown[BINS // 2 :] = pairs
                self.origin -= self.width * BINS
            else:
                grown[: BINS // 2] = pairs
            self.counts, self.width = grown, self.width * 2

    def centres(self) -> Tensor:
        """Middle of every bin, float64 (BINS,)."""
        return self.origin + self.width * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def without_zeros(self) -> Tensor:
        """Counts, the bin of zero no fuller than its fuller neighbour.

        What a ReLU cuts off is zero exactly, which every grid holds; left in, it would outweigh all
        else (Migacz 2017 leaves the first bin out).
        """
        counts = self.counts.clone()
        place = int((0.0 - self.origin) / self.width) if self.width else 0
        if 0 <= place < BINS:
            beside = counts[max(place - 1, 0) : place + 2].clone()
            beside[min(place, 1)] = 0
            counts[place] = torch.minimum(counts[place], beside.max())
        return counts

    def central(self, percentile: float) -> tuple[float, float]:
        """Bounds of the central share of all values; half of the rest lies below, half above."""
        return central([self], [1.0], percentile)


class RelativeHistogramObserver:
    """Values by the upper half of their float32, every sample weighted by one over its mean square.

    Sign, exponent and seven bits of the mantissa: 128 bins between a magnitude and its double. What
    is ordinary keeps its resolution however large the largest value, and nothing ever has to be
    merged. Sums over the bins of a squared error times the weight are sums of every sample's error
    relative to its power.
    """

    def __init__(self) -> None:
        self._kept = _Bins()

    @property
    def weights(self) -> Tensor:
        """Weight of every bin, float64 (65536,)."""
        return self._kept.all()

    def update(self, x: Tensor) -> None:
        """Take one batch (B, ...) into account."""
        x = _in_order_of_memory(x)
        power = torch.linalg.vector_norm(x, dim=1).double().square()
        self._kept = self._kept.plus(x, torch.where(power > 0, x.shape[1] / power, 0.0))

    def filled(self) -> tuple[Tensor, Tensor]:
        """Value in the middle of every bin with a weight, ascending, and its weight; float64."""
        return filled(self.weights)


class CountObserver:
    """Number of values, by the upper half of their float32."""

    def __init__(self) -> None:
        self._kept = _Bins()

    @property
    def total(self) -> float:
        """Number of all values."""
        return float(self._kept.weights.sum())

    def update(self, x: Tensor) -> None:
        """Take one batch into account."""
        self._kept = self._kept.plus(_in_order_of_memory(x))

    def outside(self, low: float, high: float, ends: tuple[float, float]) -> float:
        """Share of the values below ``low`` or above ``high``.

        Parameters
        ----------
        low, high : float
        ends : the smallest and the largest value that was observed
            A bin that holds one of them is taken to be evenly filled up to it.
        """
        index, counts = self._kept.index, self._kept.weights
        codes = torch.stack([index << HALF, (index << HALF) + (1 << HALF) - 1]).to(torch.int32)
        edges = codes.view(torch.float32).double().clamp(*ends)
        first, last = edges.amin(dim=0), edges.amax(dim=0)
        lies_out = (low - first).clamp(min=0) + (last - high).clamp(min=0)
        width = last - first
        point = ((first < low) | (first > high)).double()
        share = torch.where(width > 0, lies_out / width, point).clamp(max=1)
        return float((counts * share).sum() / counts.sum())


def central(
    histograms: Sequence[HistogramObserver], weights: Sequence[float], percentile: float
) -> tuple[float, float]:
    """Bounds of the central share of a mixture of histograms, each value by its own's weight."""
    steps = torch.arange(BINS, dtype=torch.float64)
    lower = torch.cat([h.origin + steps * h.width for h in histograms])
    upper = torch.cat([h.origin + (steps + 1) * h.width for h in histograms])
    counts = torch.cat([h.counts * w for h, w in zip(histograms, weights, strict=True)])
    total = float(counts.sum())
    out = (1 - percentile / 100) / 2 * total

    def passed(edges: Tensor, wanted: float, right: bool) -> float:
        """The first edge, from below, with more (or no less) than what is wanted."""
        order = edges.argsort(stable=True)
        at = int(torch.searchsorted(counts[order].cumsum(0), wanted, right=right))
        return float(edges[order][min(at, len(edges) - 1)])

    return passed(lower, out, True), passed(upper, total - out, False)


def filled(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Middles of the bins that have a weight in some row, and the weights.

    Parameters
    ----------
    weights : float64 (65536,) or (G, 65536)
        See :class:`RelativeHistogramObserver`.

    Returns
    -------
    float64 (K,), ascending, and (K,) or (G, K)
    """
    index = weights.view(-1, 1 << HALF).ne(0).any(dim=0).nonzero()[:, 0]
    middles = ((index << HALF) + (1 << (HALF - 1))).to(torch.int32)
    values, order = middles.view(torch.float32).double().sort()
    return values, weights[..., index[order]]


@dataclass(frozen=True)
class _Bins:
    """Sums by the upper half of a float32, of the bins that hold something.

    These are one in ten, and there are statistics by the thousand.
    """

    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    weights: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def all(self) -> Tensor:
        """Sums of all bins, float64 (65536,)."""
        out = torch.zeros(1 << HALF, dtype=torch.float64)
        out[self.index] = self.weights
        return out

    def plus(self, x: Tensor, each: Tensor | None = None) -> _Bins:
        """Add values, float32 (B, N): each the weight (B,) of its sample, or 1."""
        total = self.all()
        rows = max(COUNTED // x.shape[1], 1) if x.is_cpu else len(x)
        for at in range(0, len(x), rows):
            bins = _upper_half(x[at : at + rows])
            weights = None
            if each is not None:
                weights = each[at : at + rows, None].expand_as(bins).reshape(-1)
            total += torch.bincount(bins.view(-1), weights, minlength=1 << HALF).cpu()
        index = total.nonzero()[:, 0]
        return _Bins(index, total[index])


def _upper_half(x: Tensor) -> Tensor:
    """Sign, exponent and seven bits of the mantissa of float32 values: their bin."""
    return (x.view(torch.int32) >> HALF).bitwise_and_((1 << HALF) - 1)


def _in_order_of_memory(x: Tensor) -> Tensor:
    """The values of every sample as float32 (B, N), in any order that needs no copy."""
    x = x.detach().float()
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    return x.reshape(len(x), -1).contiguous()
