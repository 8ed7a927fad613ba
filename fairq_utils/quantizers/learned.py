"""Quantized layers while they are learnt: step sizes (LSQ) and roundings (AdaRound)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.quantizers.grids import (
    SMALLEST_SCALE,
    fake_quantize,
    input_grid,
    on_grid,
    weight_codes,
)
from fairq_utils.quantizers.layers import QuantConv2d, QuantLinear, quantized
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.weights import WeightIntegers, find_grid, quantize_weight, spread

UNKNOWN_STEP = 1e-2  # of a layer whose weights are all zero
STRETCH = (-0.1, 1.1)  # gamma and zeta of the rectified sigmoid (Louizos et al. 2018)


class LearnedStep(torch.autograd.Function):
    """Fake quantization whose gradient reaches the values and the step size.

    With ``v = x / s`` and the clipping points ``-Q_N = lowest - z`` and ``Q_P = highest - z``
    (Esser et al. 2020, equations 1 to 3 and 5)::

        d x^ / d x = 1                 where -Q_N < v < Q_P, else 0
        d x^ / d s = round(v) - v      where -Q_N < v < Q_P
                     -Q_N              where v <= -Q_N
                     Q_P               where v >= Q_P

    and the second is multiplied by ``factor``, the paper's gradient scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero: Tensor,
        lowest: int,
        highest: int,
        factor: float,
    ) -> Tensor:
        """Values on the grid; scale and zero broadcast against x."""
        if scale.numel() == 1:
            out = fake_quantize(x, float(scale), int(zero), lowest, highest)
        else:
            out = on_grid(x, scale, zero, lowest, highest)
        ctx.save_for_backward(x, scale, zero, out)
        ctx.codes, ctx.factor = (lowest, highest), factor
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Straight through inside; see the class for the step's."""
        [gradient] = gradients
        x, scale, zero, out = ctx.saved_tensors
        low, high = ((code - zero) * scale for code in ctx.codes)
        # Inside, round(v) - v = (x^ - x) / s; outside, the clipping point is x^ / s.
        if scale.numel() == 1:
            passed = torch.ops.aten.hardtanh_backward(gradient, x, float(low), float(high))
            step = (_inner(gradient, out) - _inner(passed, x)).reshape(scale.shape) / scale
        else:
            passed = gradient * ((x > low) & (x < high))
            step = (gradient * out - passed * x).sum_to_size(scale.shape) / scale
        return passed, step * ctx.factor, None, None, None, None


class StepInput(nn.Module):
    """The static grid of an input, its step learnt as a multiple of the calibrated one.

    Adam moves every parameter by about the learning rate, whatever its gradient; as a multiple
    a step of 0.001 and one of 10 are learnt at the same pace.
    """

    start: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor, bits: int) -> None:
        super().__init__()
        self.register_buffer("start", scale.detach().clone().float().reshape(()))
        self.register_buffer("zero", zero.detach().clone().float().reshape(()))
        self.multiple = nn.Parameter(torch.ones_like(self.start))
        self.highest = 2**bits - 1

    def scale(self) -> Tensor:
        """The step size, a scalar above 0."""
        return (self.start * self.multiple).clamp(min=SMALLEST_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """The input on its grid."""
        reach = max(self.highest - float(self.zero), 1.0)
        factor = 1 / math.sqrt(max(x[0].numel(), 1) * reach)
        out: Tensor = LearnedStep.apply(x, self.scale(), self.zero, 0, self.highest, factor)
        return out


class StepWeight(nn.Module):
    """The grid of a weight, its steps learnt as multiples of the calibrated ones (LSQ)."""

    start: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        scale, zero = find_grid(weight, spec)
        # A channel of zeros has no range; on the step of the others it can still learn.
        empty = scale <= SMALLEST_SCALE
        usual = scale[~empty].median() if bool((~empty).any()) else torch.tensor(UNKNOWN_STEP)
        self.register_buffer("start", torch.where(empty, usual.to(scale), scale))
        self.register_buffer("zero", zero)
        # One dimension: optimizers decay weights by their having more.
        count = 1 if spec.weight_granularity == "tensor" else scale.numel()
        self.multiple = nn.Parameter(torch.ones(count, device=weight.device))
        self.codes = weight_codes(spec.weight_bits, spec.weight_scheme)

    def scale(self) -> Tensor:
        """Step sizes (O,) or (O, groups), above 0."""
        multiple = self.multiple if len(self.multiple) == 1 else self.multiple.view_as(self.start)
        return (self.start * multiple).clamp(min=SMALLEST_SCALE)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid."""
        shared = weight.numel() / self.multiple.numel()
        out: Tensor = LearnedStep.apply(
            weight,
            spread(self.scale(), weight, self.spec),
            spread(self.zero, weight, self.spec),
            *self.codes,
            1 / math.sqrt(shared * self.codes[1]),
        )
        return out

    def integers(self, weight: Tensor) -> WeightIntegers:
        """The integers that the weight has now."""
        return quantize_weight(weight, self.spec, (self.scale().detach(), self.zero))


class SoftRounding(nn.Module):
    """Round every weight up or down, whichever the loss prefers (AdaRound).

    ``w^ = s clip(floor(w / s) + z + h(V), lowest, highest)`` with the rectified sigmoid ``h(V) =
    clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)`` (Nagel et al. 2020, equations 22 and 23). It
    starts at the real weight: ``h(V) = w / s - floor(w / s)``.
    """

    floor: Tensor
    step: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        scale, zero = find_grid(weight, spec)
        self.grid = (scale, zero)
        self.codes = weight_codes(spec.weight_bits, spec.weight_scheme)
        self.register_buffer("step", spread(scale, weight, spec))
        self.register_buffer("zero", spread(zero, weight, spec))
        ratio = weight.detach() / self.step
        self.register_buffer("floor", torch.floor(ratio) + self.zero)
        low, high = STRETCH
        rest = ratio - torch.floor(ratio)
        self.choice = nn.Parameter(-torch.log((high - low) / (rest - low) - 1))
        self.decided = False  # whether to round as `integers` does

    def up(self) -> Tensor:
        """``h(V)``: 0 rounds down, 1 rounds up."""
        low, high = STRETCH
        return (torch.sigmoid(self.choice) * (high - low) + low).clamp(0, 1)

    def undecided(self, beta: float) -> Tensor:
        """``sum 1 - |2 h(V) - 1| ** beta``, a scalar (Nagel et al. 2020, equation 24)."""
        return (1 - (2 * self.up() - 1).abs().pow(beta)).sum()

    def forward(self, weight: Tensor) -> Tensor:
        """The softly rounded weight."""
        up = (self.choice >= 0).to(weight.dtype) if self.decided else self.up()
        return (torch.clamp(self.floor + up, *self.codes) - self.zero) * self.step

    def integers(self, weight: Tensor) -> WeightIntegers:
        """Every weight rounded where it tends to."""
        found = torch.clamp(self.floor + (self.choice.detach() >= 0), *self.codes)
        scale, zero = self.grid
        return WeightIntegers(found.to(torch.int8), scale, zero.to(torch.int32))


class LearnedLayer(nn.Module):
    """A convolution or linear layer on learnt grids.

    Parameters
    ----------
    layer : nn.Conv2d or nn.Linear
        Its weight and bias are trained too where they ask for gradients.
    spec : QuantSpec
    weights : StepWeight or SoftRounding
        The class that learns its weights.
    ends : float, float
        Calibrated range of its inputs; None where they stay in float.

    Attributes
    ----------
    weights : StepWeight or SoftRounding
    inputs : StepInput or None
    """

    inputs: StepInput | None

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        spec: QuantSpec,
        weights: type[StepWeight] | type[SoftRounding],
        ends: tuple[float, float] | None,
    ) -> None:
        super().__init__()
        self.layer, self.spec = layer, spec
        self.weights = weights(layer.weight, spec)
        self.inputs = None
        if ends is not None:
            low, high = (torch.tensor(x, device=layer.weight.device) for x in ends)
            grid = input_grid(low, high, spec.activation_bits, spec.activation_scheme)
            self.inputs = StepInput(*grid, spec.activation_bits)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output on its grids."""
        x = input if self.inputs is None else self.inputs(input)
        layer, weight = self.layer, self.weights(self.layer.weight)
        if isinstance(layer, nn.Conv2d):
            return layer._conv_forward(x, weight, layer.bias)
        return F.linear(x, weight, layer.bias)

    def settled(self) -> QuantConv2d | QuantLinear:
        """The layer in integers, as it has been learnt."""
        integers = self.weights.integers(self.layer.weight)
        out = quantized(self.layer, self.spec, integers)
        if self.inputs is not None:
            out.set_input_grid(self.inputs.scale().detach(), self.inputs.zero)
        return out


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, without a copy where both lie in memory alike."""
    order = torch.channels_last if a.ndim == 4 else torch.contiguous_format
    for layout in (torch.contiguous_format, order):
        if a.is_contiguous(memory_format=layout) and b.is_contiguous(memory_format=layout):
            count = (a.numel(),)
            return torch.dot(a.as_strided(count, (1,)), b.as_strided(count, (1,)))
    return (a * b).sum()
