"""What a quantizer did: which layers, what stayed in float and why, and the size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from fairq_utils.quantizers.layers import QuantConv2d, QuantLinear

# Operations without a quantized counterpart here; they are named in the report, not hidden.
WEIGHTLESS = (
    nn.Identity,
    nn.Sequential,
    nn.ModuleList,
    nn.Dropout,
    nn.Flatten,
    nn.ReLU,
    nn.ReLU6,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)


@dataclass(frozen=True)
class QuantReport:
    """The report that comes with a quantized model.

    Attributes
    ----------
    spec : the :class:`QuantSpec` as a mapping
    layers : name -> ``W<bits>A<bits>`` of every quantized layer
    left_float : name -> reason, for every layer that was not quantized
    folded : convolutions into which a batch norm was folded
    size_bytes : int
        Integers packed at their bits, float32 scales, one float32 scale and one int32 zero-point
        per statically quantized input, and everything else in float32.
    float_bytes : int
        The same for the model that came in, all in float32.
    calibration_images : int
    """

    spec: dict[str, Any]
    layers: dict[str, str]
    left_float: dict[str, str]
    folded: tuple[str, ...]
    size_bytes: int
    float_bytes: int
    calibration_images: int

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return asdict(self)


def float_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers as they are."""
    values = [*model.parameters(), *model.buffers()]
    return sum(v.numel() * v.element_size() for v in values)


def packed_bytes(model: nn.Module) -> int:
    """Bytes of a quantized model: integers packed at their bits; see :class:`QuantReport`."""
    total = 0
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, (QuantConv2d, QuantLinear)):
            spec = module.spec
            total += -(-module.weight_integers.numel() * spec.weight_bits // 8)
            scales = 1 if spec.weight_granularity == "tensor" else module.weight_scale.numel()
            total += 4 * scales + (8 if spec.activation == "static" else 0)
            total += 0 if module.bias is None else 4 * module.bias.numel()
            inside.update(id(b) for b in module.buffers())
    rest = [v for v in (*model.parameters(), *model.buffers()) if id(v) not in inside]
    return total + sum(v.numel() * v.element_size() for v in rest)


def report(
    model: nn.Module,
    spec: Any,
    folded: list[str],
    left: dict[str, str],
    before: int,
    calibration_images: int,
) -> QuantReport:
    """Collect the report of a quantized model."""
    layers, reasons = {}, dict(left)
    for name, module in model.named_modules():
        if isinstance(module, (QuantConv2d, QuantLinear)):
            layers[name] = f"W{module.spec.weight_bits}A{module.spec.activation_bits}"
        elif not list(module.children()) and not isinstance(module, WEIGHTLESS):
            reasons.setdefault(name, f"{type(module).__name__} is computed in float")
    if any("attn" in name.split(".")[-1] for name, _ in model.named_modules()):
        reasons["attention products"] = "queries x keys and scores x values are computed in float"
    return QuantReport(
        spec=asdict(spec),
        layers=layers,
        left_float=reasons,
        folded=tuple(folded),
        size_bytes=packed_bytes(model),
        float_bytes=before,
        calibration_images=calibration_images,
    )
