"""Report of a quantization: layers, what stayed in float and why, and the size."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from fairq_utils.quantizers.corrections import ChannelClip
from fairq_utils.quantizers.layers import Quantized, why_not
from fairq_utils.quantizers.operations import quantized_operations
from fairq_utils.quantizers.sizes import packed_bytes
from fairq_utils.quantizers.tracing import SILU

# Operations without a quantized counterpart here; they are named in the report, not hidden.
WEIGHTLESS = (
    nn.Identity,
    nn.Sequential,
    nn.ModuleList,
    nn.Dropout,
    nn.Flatten,
    nn.ReLU,
    nn.ReLU6,
    ChannelClip,
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
        Also for what is computed outside layers: ``head.forward: F.linear`` with a weight that no
        layer holds, and operations on feature maps by kind.
    folded : convolutions into which a batch norm was folded
    size_bytes : int
        Integers packed at their bits, float32 scales (and int32 zero-points of affine weights), one
        float32 scale and one int32 zero-point per statically quantized input of a layer or operand
        of an operation, and everything else in float32. Channels that are kept at more bits are
        counted at these, with an int32 number each.
    float_bytes : int
        The same for the model that came in, all in float32.
    calibration_images : int
    corrections : what was done beyond rounding to nearest
        ``equalization``: first -> second layer of each pair; ``bias_correction``: layer -> size of
        its correction; ``reconstruction``: unit -> its error before and after; ``preserved``: layer
        -> how many of its output channels have more bits than ``layers`` says.
    operations : name -> ``A<bits>`` of every operation between layers that is quantized
        ``blocks.0.attn: scores x values``, ``layer1.0: addition``.
    """

    spec: dict[str, Any]
    layers: dict[str, str]
    left_float: dict[str, str]
    folded: tuple[str, ...]
    size_bytes: int
    float_bytes: int
    calibration_images: int
    corrections: dict[str, Any] = field(default_factory=dict)
    operations: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return asdict(self)


def float_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers as they are."""
    values = [*model.parameters(), *model.buffers()]
    return sum(v.numel() * v.element_size() for v in values)


def report(
    model: nn.Module,
    spec: Any,
    folded: list[str],
    left: dict[str, str],
    before: int,
    calibration_images: int,
    corrections: dict[str, Any],
) -> QuantReport:
    """Collect the report of a quantized model."""
    layers, reasons = {}, dict(left)
    operations = quantized_operations(model)
    for name, module in model.named_modules():
        if isinstance(module, Quantized):
            layers[name] = module.spec.label
        elif f"{name}: {SILU}" in operations:
            continue
        elif not isinstance(module, WEIGHTLESS) and (
            not list(module.children()) or hasattr(module, "parametrizations")
        ):
            reasons.setdefault(name, why_not(module) or f"{type(module).__name__} stays in float")
    return QuantReport(
        spec=asdict(spec),
        layers=layers,
        left_float=reasons,
        folded=tuple(folded),
        size_bytes=packed_bytes(model),
        float_bytes=before,
        calibration_images=calibration_images,
        corrections=corrections,
        operations=operations,
    )
