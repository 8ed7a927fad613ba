"""Quantized convolution and linear layers: integers inside, float simulation outside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        self.register_load_state_dict_post_hook(lambda module, _: module.forget())

    def forget(self) -> None:
        """Drop the dequantized weight; it is made again from the integers when it is needed."""
        self._weight = None

    def set_input_range(self, low: float, high: float) -> None:
        """Fix the static grid of the input."""
        scale, zero = affine(torch.tensor(low), torch.tensor(high), self.spec.activation_bits)
        self.input_scale.copy_(scale)
        self.input_zero_point.copy_(zero.to(torch.int32))

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
        return (torch.clamp(torch.round(x / s) + z, 0, top) - z) * s


class QuantConv2d(_Quantized):
    """``nn.Conv2d`` on quantized inputs and weights."""

    def __init__(self, layer: nn.Conv2d, spec: QuantSpec) -> None:
        super().__init__(layer.weight, layer.bias, spec)
        self.stride, self.padding = layer.stride, layer.padding
        self.dilation, self.groups = layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        return F.conv2d(
            self.quantized_input(x),
            self.weight(),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )


class QuantLinear(_Quantized):
    """``nn.Linear`` on quantized inputs and weights."""

    def __init__(self, layer: nn.Linear, spec: QuantSpec) -> None:
        super().__init__(layer.weight, layer.bias, spec)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in features) to (..., out features)."""
        return F.linear(self.quantized_input(x), self.weight(), self.bias)


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
