"""The quantization methods of the study, by name: what each changes in a :class:`QuantSpec`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fairq_utils.quantizers.spec import QuantSpec

BEST_RANGES = {"weight_range": "mse", "activation_range": "mse"}
OPERATIONS = {**BEST_RANGES, "residuals": True, "attention_products": True}


@dataclass(frozen=True)
class Method:
    """One way to quantize.

    Attributes
    ----------
    label : how it is called in figures and tables
    options : attributes of the spec
    trains : whether labels and further epochs are needed
    """

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    trains: bool = False

    def spec(self, bits: str, **options: Any) -> QuantSpec:
        """The spec at some bits; further options take precedence."""
        return QuantSpec.parse(bits, **{**self.options, **options})


METHODS: dict[str, Method] = {
    "ptq": Method("static"),
    "dynamic": Method("dynamic", {"activation": "dynamic"}),
    "naive": Method(
        "min-max, per tensor", {"weight_granularity": "tensor", "first_last_bits": None}
    ),
    "equalized": Method(
        "equalized, bias-corrected", {**BEST_RANGES, "equalization": True, "bias_correction": True}
    ),
    "adaround": Method("AdaRound", {**BEST_RANGES, "rounding": "adaround"}),
    "block": Method("block reconstruction", {**BEST_RANGES, "rounding": "block"}),
    "mixed": Method("mixed precision", BEST_RANGES),
    "float_classifier": Method("float classifier", BEST_RANGES),
    "operations": Method("additions and attention too", OPERATIONS),
    "gates": Method("additions, attention and gates too", {**OPERATIONS, "gates": True}),
    "qat": Method("QAT (LSQ)", BEST_RANGES, trains=True),
}
CONTROL = "control"  # FP32 trained on as long as `qat` is
