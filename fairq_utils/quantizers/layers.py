"""Quantized convolution and linear layers: integers inside, float simulation outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.quantizers import kernels
from fairq_utils.quantizers.ranges import affine, quantize_weight
from fairq_utils.quantizers.spec import QuantSpec


class _Quantized(nn.Module):
    """Integers of the weight, scales, and the grid of the input.

    Buffers
    -------
    weight_integers : int8, shape of the weight
    weight_scale : float32 (out channels,)
    input_scale, input_zero_point : float32 and int32 scalars (static only)
    """

    weight_integers: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero_point: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        self.integer = False
        integers, scale = quantize_weight(
            weight, spec.weight_bits, spec.weight_granularity, spec.weight_range, spec.percentile
        )
        self.register_buffer("weight_integers", integers)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("input_scale", torch.ones((), device=weight.device))
        self.register_buffer(
            "input_zero_point", torch.zeros((), dtype=torch.int32, device=weight.device)
        )
        self._weight: Tensor | None = None
        self._packed: tuple[Any, Tensor] | None = None
        self.register_load_state_dict_post_hook(_forget)

    def forget(self) -> None:
        """Drop what is derived from the integers; it is made again when it is needed."""
        self._weight = self._packed = None

    def set_input_range(self, low: float, high: float) -> None:
        """Fix the static grid of the input."""
        scale, zero = affine(torch.tensor(low), torch.tensor(high), self.spec.activation_bits)
        self.input_scale.copy_(scale)
        self.input_zero_point.copy_(zero.to(torch.int32))
        self.forget()

    def weight(self) -> Tensor:
        """Dequantized weight ``s * q``, cached."""
        cached = self._weight
        if cached is None or cached.device != self.weight_integers.device:
            shape = (-1, *[1] * (self.weight_integers.ndim - 1))
            cached = self.weight_integers.float() * self.weight_scale.view(shape)
            if cached.ndim == 4:
                cached = cached.contiguous(memory_format=torch.channels_last)
            self._weight = cached
        return cached

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input after a round trip through its grid."""
        top = 2**self.spec.activation_bits - 1
        if self.spec.activation == "static":
            return torch.fake_quantize_per_tensor_affine(
                x,
                self.input_scale,
                self.input_zero_point,
                0,
                top,
            )
        # One range per sample, so that an answer does not depend on who shares the batch.
        flat = x.reshape(x.shape[0], -1)
        low, high = torch.aminmax(flat, dim=1)
        scale, zero = affine(low, high, self.spec.activation_bits)
        shape = (-1, *[1] * (x.ndim - 1))
        s, z = scale.view(shape), zero.view(shape)
        return torch.round(x / s).add_(z).clamp_(0, top).sub_(z).mul_(s)

    def input_grid(self) -> tuple[float, int, int]:
        """Scale, zero-point and largest integer of a static input."""
        top = 2**self.spec.activation_bits - 1
        return float(self.input_scale), int(self.input_zero_point), top


def _forget(module: nn.Module, _: object) -> None:
    if isinstance(module, _Quantized):
        module.forget()


class QuantConv2d(_Quantized):
    """``nn.Conv2d`` on quantized inputs and weights."""

    def __init__(self, layer: nn.Conv2d, spec: QuantSpec) -> None:
        super().__init__(layer.weight, layer.bias, spec)
        self.stride = layer.stride
        self.padding: Any = layer.padding  # numbers, or a word such as "same"
        self.dilation, self.groups = layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        if not self.integer:
            return F.conv2d(self.quantized_input(x), self.weight(), self.bias, *geometry)
        scale, zero, top = self.input_grid()
        if self._packed is None or self._packed[0] != x.shape:
            packed = kernels.pack_conv(
                self.weight_integers, self.weight_scale, *geometry, shape=x.shape
            )
            self._packed = (x.shape, packed)
        return kernels.conv2d(
            kernels.quantize(x, scale, zero, top),
            scale,
            zero,
            self._packed[1],
            self.weight_scale,
            self.bias,
            *geometry,
        )


class QuantLinear(_Quantized):
    """``nn.Linear`` on quantized inputs and weights."""

    def __init__(self, layer: nn.Linear, spec: QuantSpec) -> None:
        super().__init__(layer.weight, layer.bias, spec)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in features) to (..., out features)."""
        if not self.integer:
            return F.linear(self.quantized_input(x), self.weight(), self.bias)
        scale, zero, top = self.input_grid()
        if self._packed is None:
            self._packed = (None, kernels.pack_linear(self.weight_integers))
        return kernels.linear(
            kernels.quantize(x, scale, zero, top),
            scale,
            zero,
            self._packed[1],
            self.weight_scale,
            self.bias,
        )


def use_integers(model: nn.Module) -> int:
    """Let the static quantized layers of ``model`` run on integer kernels, in place.

    Returns
    -------
    int
        How many layers do; 0 where the processor has no exact kernels (see
        :func:`fairq_utils.quantizers.kernels.available`) and the model stays a float simulation.
        Layers with dynamic inputs, and convolutions whose padding is given in words, stay one.
    """
    if not kernels.available():
        return 0
    changed = 0
    for module in model.modules():
        if isinstance(module, _Quantized) and module.spec.activation == "static":
            module.integer = not isinstance(getattr(module, "padding", None), str)
            changed += module.integer
    return changed


def quantizable(module: nn.Module) -> bool:
    """Whether a layer has a quantized counterpart here."""
    if type(module) is nn.Linear:
        return True
    plain = isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward
    return plain and getattr(module, "padding_mode", "zeros") == "zeros"


def quantized(module: nn.Module, spec: QuantSpec) -> QuantConv2d | QuantLinear:
    """The quantized counterpart of a layer."""
    if isinstance(module, nn.Conv2d):
        return QuantConv2d(module, spec)
    if isinstance(module, nn.Linear):
        return QuantLinear(module, spec)
    raise TypeError(f"{type(module).__name__} has no quantized counterpart")
