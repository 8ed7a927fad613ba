"""Quantized models in the operators that engines know: to integers, back to floats, and between.

Every layer becomes ``Q -> DQ -> convolution of DQ(weight)``, every operand of an addition or of
attention ``Q -> DQ``. Engines find integer kernels for such patterns; computed as they stand they
are the simulation. Grids of fewer than eight bits get their own clamp on the integers, ``Q -> min
-> DQ``: kernels that write bytes saturate at 255 and would let larger values through.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.deploy.engines.loaded_model import NotExact
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.layers import QuantConv2d, Quantized
from fairq_utils.quantizers.operations import Forward
from fairq_utils.quantizers.tracing import ATTENTION, PRODUCT, Site, replace
from fairq_utils.quantizers.weights import KEPT_BITS

BYTE, MIDDLE = 255, 128
# Of inputs that were constant in calibration; OpenVINO computes nonsense on finer ones.
SMALLEST_STEP = 1e-8
_ops = torch.ops.quantized_decomposed


def to_qdq(model: nn.Module, *, signed_products: bool = False) -> nn.Module:
    """Copy of a model with standard quantization operators; a float model is only copied.

    Parameters
    ----------
    model : from :func:`fairq_utils.quantizers.quantize_static` or another quantizer
    signed_products : bool
        Write operands of products whose zero-point is in the middle as signed bytes without one:
        the same values, in the only form in which OpenVINO multiplies two activations as integers.

    Returns
    -------
    module
        It has the signature of ``model`` and, computed by PyTorch, the same logits.

    Raises
    ------
    NotExact
        A layer is dynamic (a range per sample), its weights have scales by group, or some of its
        channels are kept in float.
    """
    model = copied(model, "write").eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, Quantized):
            model = replace(model, name, _Layer(name, module))
    forward = vars(model).get("forward")
    if isinstance(forward, Forward):
        vars(model)["forward"] = _Forward(model, forward, signed_products)
    return model


def on_grid(x: Tensor, scale: float, zero_point: int, top: int) -> Tensor:
    """Round ``x`` to unsigned integers 0 ... top, and back to floats."""
    grid = (max(scale, SMALLEST_STEP), zero_point, 0, BYTE, torch.uint8)
    integers = _ops.quantize_per_tensor(x, *grid)
    if top < BYTE:
        integers = integers.clamp(max=top)
    out: Tensor = _ops.dequantize_per_tensor(integers, *grid)
    return out


def on_signed_grid(x: Tensor, scale: float) -> Tensor:
    """Round ``x`` to signed bytes, and back to floats."""
    grid = (max(scale, SMALLEST_STEP), 0, -MIDDLE, MIDDLE - 1, torch.int8)
    out: Tensor = _ops.dequantize_per_tensor(_ops.quantize_per_tensor(x, *grid), *grid)
    return out


def _as_bytes(layer: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, scales and zero-points of a weight; with channels of 8 bits, all are such bytes.

    The other channels' integers are multiplied and their steps divided by a power of two, which
    changes no value: one row of bytes keeps the layer from being packed, and engines that round
    biases to steps of the weight would round those of the coarse rows most.
    """
    found = layer.weight_integers, layer.weight_scale, layer.weight_zero_point
    if layer.kept_rows is None:
        return found
    finer = torch.full_like(found[2], 2 ** (KEPT_BITS - layer.spec.weight_bits))
    finer[layer.kept_rows.long()] = 1
    times = finer.view(-1, *[1] * (found[0].ndim - 1)).to(torch.int8)
    return found[0] * times, found[1] / finer, found[2] * finer


class _Layer(nn.Module):
    """A quantized convolution or linear layer, in standard operators."""

    weight_integers: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(self, name: str, layer: Quantized) -> None:
        super().__init__()
        spec = layer.spec
        if spec.activation == "dynamic":
            raise NotExact(
                f"layer {name}: dynamic ranges, one per sample, have no counterpart in integer "
                "engines, which take one per batch; use activation='static'"
            )
        if spec.weight_granularity == "group":
            raise NotExact(
                f"layer {name}: weights with a scale per group of input channels have no integer "
                "kernel in these engines; use weight_granularity='channel'"
            )
        if layer.kept_values is not None:
            raise NotExact(
                f"layer {name}: {len(layer.kept_values)} of its output channels are kept in float, "
                "and integer kernels take all channels of a layer or none; keep them at 8 bits, or "
                "the whole layer in float"
            )
        self.grid = None if spec.activation == "float" else layer.input_grid()
        integers, scale, zero = _as_bytes(layer)
        self.register_buffer("weight_integers", integers)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero.to(torch.int64))
        self.bias = layer.bias
        self.geometry = None
        if isinstance(layer, QuantConv2d):
            self.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, input: Tensor) -> Tensor:
        """Output of the quantized layer."""
        x = input if self.grid is None else on_grid(input, *self.grid)
        weight = _ops.dequantize_per_channel(
            self.weight_integers,
            self.weight_scale,
            self.weight_zero_point,
            0,
            -MIDDLE,
            MIDDLE - 1,
            torch.int8,
        )
        if self.geometry is None:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, *self.geometry)


class _Forward(Forward):
    """The forward pass of a model with quantized operations, in standard operators."""

    def __init__(self, model: nn.Module, other: Forward, signed_products: bool) -> None:
        super().__init__(model, other.operations, other.bits)
        self.inner, self.signed_products = other.inner, signed_products
        scales, zeros = model.operation_scales, model.operation_zero_points
        assert isinstance(scales, Tensor) and isinstance(zeros, Tensor)
        self.grids = list(zip(scales.tolist(), zeros.tolist(), strict=True))

    def _quantize(self, site: Site, number: int, x: Tensor) -> Tensor:
        scale, zero_point = self.grids[self.rows[site] + number]
        top = 2**self.bits - 1
        product = self.signed_products and site.kind in (PRODUCT, ATTENTION)
        if product and zero_point == MIDDLE and top == BYTE:
            return on_signed_grid(x, scale)
        return on_grid(x, scale, zero_point, top)
