"""Quantized convolution and linear layers: integers inside, float simulation outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.quantizers import onednn
from fairq_utils.quantizers.grids import input_grid, on_grid, on_static_grid
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.weights import (
    FLOAT_BITS,
    INDEX_BYTES,
    KEPT_BITS,
    WeightIntegers,
    dequantize_weight,
    quantize_weight,
)

# What spectral_norm, prune and weight_norm leave of a layer whose weight or bias they compute.
COMPUTED = ("weight_orig", "weight_g", "bias_orig", "bias_g")


class Quantized(nn.Module):
    """Integers of the weight, scales, and the grid of the input.

    Buffers
    -------
    weight_integers : int8, shape of the weight
    weight_scale, weight_zero_point : float32 and int32, (out channels,) or (out channels, groups)
    input_scale, input_zero_point : float32 and int32 scalars (static only)
    kept_rows : int32 (R,), or None
        Output channels whose weights have more bits; their integers and scales are those of the
        8-bit grid.
    kept_values : float32 (R, ...), or None
        These rows, where they are kept in float instead.
    """

    weight_integers: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero_point: Tensor
    kept_rows: Tensor | None
    kept_values: Tensor | None

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        spec: QuantSpec,
        integers: WeightIntegers | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.integer = False
        found = quantize_weight(layer.weight, spec) if integers is None else integers
        bias, device = layer.bias, layer.weight.device
        self.register_buffer("weight_integers", found.integers)
        self.register_buffer("weight_scale", found.scale)
        self.register_buffer("weight_zero_point", found.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("input_scale", torch.ones((), device=device))
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.int32, device=device))
        self.register_buffer("kept_rows", found.rows)
        self.register_buffer("kept_values", found.values)
        self._weight: Tensor | None = None
        self._packed: tuple[Any, Tensor] | None = None
        self.register_load_state_dict_post_hook(_forget)

    def forget(self) -> None:
        """Drop what is derived from the integers; it is made again when it is needed."""
        self._weight = self._packed = None

    def set_input_range(self, low: float, high: float) -> None:
        """Fix the static grid of the input."""
        self.set_input_grid(
            *input_grid(
                torch.tensor(low),
                torch.tensor(high),
                self.spec.activation_bits,
                self.spec.activation_scheme,
            )
        )

    def set_input_grid(self, scale: Tensor, zero: Tensor) -> None:
        """Fix the static grid of the input by its scale and zero-point."""
        self.input_scale.copy_(scale)
        self.input_zero_point.copy_(zero.round().to(torch.int32))
        self.forget()

    def weight(self) -> Tensor:
        """Dequantized weight ``s (q - z)``, cached."""
        cached = self._weight
        if cached is None or cached.device != self.weight_integers.device:
            integers = WeightIntegers(
                self.weight_integers,
                self.weight_scale,
                self.weight_zero_point,
                self.kept_rows,
                self.kept_values,
            )
            cached = dequantize_weight(integers, self.spec)
            if cached.ndim == 4:
                cached = cached.contiguous(memory_format=torch.channels_last)
            self._weight = cached
        return cached

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input after a round trip through its grid."""
        if self.spec.activation == "float":
            return x
        top = 2**self.spec.activation_bits - 1
        if self.spec.activation == "static":
            return on_static_grid(x, self.input_scale, self.input_zero_point, top)
        if x.numel() == 0:
            return x
        # One range per sample, so that an output does not depend on what shares the batch.
        flat = x.reshape(x.shape[0], -1)
        low, high = torch.aminmax(flat, dim=1)
        scale, zero = input_grid(low, high, self.spec.activation_bits, self.spec.activation_scheme)
        shape = (-1, *[1] * (x.ndim - 1))
        return on_grid(x, scale.view(shape), zero.view(shape), 0, top)

    def packed_bits(self) -> int:
        """Bits of all weights together, every row at its own."""
        bits = self.weight_integers.numel() * self.spec.weight_bits
        if self.kept_rows is not None:
            own = KEPT_BITS if self.kept_values is None else FLOAT_BITS
            values = len(self.kept_rows) * self.weight_integers[0].numel()
            bits += values * (own - self.spec.weight_bits)
        return bits

    def packed_bytes(self) -> int:
        """Bytes of all its buffers, integers packed at their bits; see :class:`QuantReport`."""
        total = -(-self.packed_bits() // 8)
        scales = 1 if self.spec.weight_granularity == "tensor" else self.weight_scale.numel()
        if self.kept_rows is not None:
            total += INDEX_BYTES * len(self.kept_rows)
            scales -= 0 if self.kept_values is None else len(self.kept_values)
        total += (8 if self.spec.weight_scheme == "affine" else 4) * scales
        total += 8 if self.spec.activation == "static" else 0
        return total + (0 if self.bias is None else 4 * self.bias.numel())

    def input_grid(self) -> tuple[float, int, int]:
        """Scale, zero-point and largest integer of a static input."""
        top = 2**self.spec.activation_bits - 1
        return float(self.input_scale), int(self.input_zero_point), top

    def __getstate__(self) -> dict[str, Any]:
        """Without what is derived: packed weights can be neither copied nor saved."""
        return {**self.__dict__, "_weight": None, "_packed": None}

    def runs_on_integers(self) -> bool:
        """Check that the integer kernels compute exactly this layer."""
        return (
            self.weight_integers.is_cpu
            and self.spec.activation == "static"
            and self.spec.weight_scheme == "symmetric"
            and self.spec.weight_granularity != "group"
            and self.kept_values is None
            and not isinstance(getattr(self, "padding", None), str)
        )


class QuantConv2d(Quantized):
    """``nn.Conv2d`` on quantized inputs and weights."""

    def __init__(
        self, layer: nn.Conv2d, spec: QuantSpec, integers: WeightIntegers | None = None
    ) -> None:
        super().__init__(layer, spec, integers)
        self.stride = layer.stride
        self.padding: Any = layer.padding  # numbers, or a word such as "same"
        self.dilation, self.groups = layer.dilation, layer.groups

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        if not self.integer or input.ndim != 4 or input.numel() == 0 or not input.is_cpu:
            return F.conv2d(self.quantized_input(input), self.weight(), self.bias, *geometry)
        scale, zero, top = self.input_grid()
        if self._packed is None or self._packed[0] != input.shape:
            packed = onednn.pack_conv(
                self.weight_integers, self.weight_scale, geometry, input.shape
            )
            self._packed = (input.shape, packed)
        q = onednn.quantize(input, scale, zero, top)
        return onednn.conv2d(
            q, scale, zero, self._packed[1], self.weight_scale, self.bias, geometry
        )


class QuantLinear(Quantized):
    """``nn.Linear`` on quantized inputs and weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in features) to (..., out features)."""
        if not self.integer or input.numel() == 0 or not input.is_cpu:
            return F.linear(self.quantized_input(input), self.weight(), self.bias)
        scale, zero, top = self.input_grid()
        if self._packed is None:
            self._packed = (None, onednn.pack_linear(self.weight_integers))
        q = onednn.quantize(input, scale, zero, top)
        return onednn.linear(q, scale, zero, self._packed[1], self.weight_scale, self.bias)


def quantized(
    module: nn.Module, spec: QuantSpec, integers: WeightIntegers | None = None
) -> QuantConv2d | QuantLinear:
    """The quantized counterpart of a layer."""
    if isinstance(module, nn.Conv2d):
        return QuantConv2d(module, spec, integers)
    if isinstance(module, nn.Linear):
        return QuantLinear(module, spec, integers)
    raise TypeError(f"{type(module).__name__} has no quantized counterpart")


REPLACEABLE = {"forward", "_conv_forward"}  # what a layer may have been given in place of its own


def quantizable(module: nn.Module) -> bool:
    """Check that a layer has a quantized counterpart here."""
    return why_not(module) is None


def why_not(module: nn.Module) -> str | None:
    """Reason why a layer has no quantized counterpart here; None where it has one."""
    if getattr(module, "parametrizations", None) or any(hasattr(module, n) for n in COMPUTED):
        return "its weight or bias is parametrized; remove the parametrization first"
    if REPLACEABLE & vars(module).keys():
        return "its forward was replaced by another function; it is computed in float"
    if type(module) is nn.Linear:
        return None
    own = type(module)
    plain = issubclass(own, nn.Conv2d) and (
        own.forward is nn.Conv2d.forward and own._conv_forward is nn.Conv2d._conv_forward
    )
    if not isinstance(module, nn.Conv2d) or not plain:
        return f"{type(module).__name__} is computed in float"
    if module.padding_mode != "zeros":
        return f"its padding mode is {module.padding_mode!r}; only zeros are on every grid"
    return None


def refuse_quantized(model: nn.Module, what: str) -> None:
    """Refuse a model that is quantized already."""
    found = next((n for n, m in model.named_modules() if isinstance(m, Quantized)), None)
    if found is not None:
        raise ValueError(
            f"{what}: layer {found or 'of this model'} is quantized already; give the float model"
        )


def use_integers(model: nn.Module) -> int:
    """Let the static quantized layers of ``model`` run on integer kernels, in place.

    Returns
    -------
    int
        How many layers do; 0 where the processor has no exact kernels (see
        :func:`fairq_utils.quantizers.onednn.available`) and the model stays a float simulation.
        Layers on a GPU, with dynamic or float inputs, affine or group-wise weights, or channels
        kept in float, and convolutions whose padding is given in words, stay one.
    """
    if not onednn.available():
        return 0
    changed = 0
    for module in model.modules():
        if isinstance(module, Quantized):
            module.integer = module.runs_on_integers()
            changed += module.integer
    return changed


def _forget(module: nn.Module, _: object) -> None:
    if isinstance(module, Quantized):
        module.forget()
