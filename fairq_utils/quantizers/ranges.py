"""From values to ranges, and from ranges to scales and zero-points.

An observer sees one batch after another and keeps a fixed amount of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

BINS = 4096


class Observer(Protocol):
    """Sees batches, then answers with a range."""

    def see(self, x: Tensor) -> None:
        """Take one batch of values into account."""
        ...

    def range(self) -> tuple[float, float]:
        """Smallest and largest value to represent."""
        ...


def check_finite(x: Tensor, what: str) -> None:
    """Refuse values that no range can hold."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{what}: a value is NaN or infinite; check the images and the model")


def check_model(model: nn.Module, what: str) -> None:
    """Refuse what is no module, or whose floating-point weights are not float32."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what}: model is {type(model).__name__}, not a torch module")
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(
                f"{what}: {name} is {value.dtype}; quantize the float32 model, model.float()"
            )


def check_batch(batch: object, what: str) -> None:
    """Refuse a batch that is no tensor of finite values."""
    if not isinstance(batch, Tensor):
        raise TypeError(
            f"{what} is {type(batch).__name__}, not a tensor of images; of a loader of images and "
            "labels give (images for images, *_ in loader)"
        )
    check_finite(batch, what)


def refuse_not_finite(model: nn.Module, inputs: tuple[object, ...]) -> None:
    """Forward pre-hook: a clipped grid would turn NaN into an ordinary answer."""
    for x in inputs:
        if isinstance(x, Tensor) and x.is_floating_point():
            check_finite(x, "the input of the quantized model")


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self, percentile: float = 100.0) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def see(self, x: Tensor) -> None:
        """Take one batch into account."""
        low, high = torch.aminmax(x.detach())
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def range(self) -> tuple[float, float]:
        """Smallest and largest value seen."""
        return self.low, self.high


class Percentile:
    """The central share of all values, from a histogram whose bins merge in pairs as it grows.

    Half of what is left out lies below and half above. The answer is exact to one bin; there are at
    least ``BINS / 2`` bins between the extremes seen.
    """

    def __init__(self, percentile: float) -> None:
        self.percentile = percentile
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.origin, self.width = 0.0, 0.0
        self.extremes = MinMax()

    def see(self, x: Tensor) -> None:
        """Take one batch into account."""
        x = x.detach().float().reshape(-1)
        self.extremes.see(x)
        low, high = self.extremes.range()
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

    def range(self) -> tuple[float, float]:
        """Bounds of the central share, never wider than the extremes."""
        total = float(self.counts.sum())
        if total == 0:
            return self.extremes.range()
        out = (1 - self.percentile / 100) / 2 * total
        cumulative = self.counts.cumsum(0)
        first = int(
            torch.searchsorted(cumulative, torch.tensor(out, dtype=torch.float64), right=True)
        )
        last = int(torch.searchsorted(cumulative, torch.tensor(total - out, dtype=torch.float64)))
        low, high = self.extremes.range()
        return (
            max(low, self.origin + min(first, BINS - 1) * self.width),
            min(high, self.origin + (min(last, BINS - 1) + 1) * self.width),
        )


RANGES: dict[str, Callable[[float], Observer]] = {"minmax": MinMax, "percentile": Percentile}


def affine(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero-point of an unsigned grid 0 ... 2**bits - 1 that holds [low, high] and 0.

    ``s = (high - low) / (2**bits - 1)``, ``z = round(-low / s)`` (Jacob et al. 2018, section 2.1).
    Zero is represented exactly, as padding needs.
    """
    levels = 2**bits - 1
    low, high = torch.clamp(low, max=0.0), torch.clamp(high, min=0.0)
    scale = torch.clamp((high - low) / levels, min=1e-10)
    return scale, torch.clamp(torch.round(-low / scale), 0, levels)


def weight_limit(
    weight: Tensor, bits: int, granularity: str, rule: str, percentile: float
) -> Tensor:
    """Largest magnitude to represent, (out channels,) or (1,)."""
    flat = weight.detach().reshape(weight.shape[0], -1)
    if granularity == "tensor":
        flat = flat.reshape(1, -1)
    magnitude = flat.abs()
    if rule == "percentile":
        return torch.quantile(magnitude.float(), percentile / 100, dim=1)
    return magnitude.amax(dim=1)


def quantize_weight(
    weight: Tensor, bits: int, granularity: str, rule: str, percentile: float
) -> tuple[Tensor, Tensor]:
    """Integers int8 (same shape) and scales (out channels,): symmetric, without the lowest code.

    ``q = clip(round(w / s), -(2**(b-1) - 1), 2**(b-1) - 1)``, ``s = max|w| / (2**(b-1) - 1)``
    (Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 2.1).
    """
    check_finite(weight, "weights")
    top = 2 ** (bits - 1) - 1
    limit = weight_limit(weight, bits, granularity, rule, percentile)
    scale = torch.clamp(limit / top, min=1e-10).expand(weight.shape[0]).contiguous().float()
    shape = (-1, *[1] * (weight.ndim - 1))
    integers = torch.clamp(torch.round(weight.detach() / scale.view(shape)), -top, top)
    return integers.to(torch.int8), scale
