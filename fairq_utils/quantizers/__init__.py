"""Quantizers: from a model and a :class:`QuantSpec` to a quantized model and its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.quantizers.calibrate import Observed, observe
    from fairq_utils.quantizers.layers import use_integers
    from fairq_utils.quantizers.methods import METHODS, Method, Size, Task, method
    from fairq_utils.quantizers.mixed_precision import (
        allocate,
        float_classifier,
        quantize_mixed,
    )
    from fairq_utils.quantizers.post_training import (
        quantize_dynamic,
        quantize_observed,
        quantize_static,
    )
    from fairq_utils.quantizers.qat import finish_qat, folded_float, prepare_qat
    from fairq_utils.quantizers.report import QuantReport
    from fairq_utils.quantizers.sensitivity import sensitivities
    from fairq_utils.quantizers.spec import QuantSpec

__all__ = [
    "METHODS",
    "Method",
    "Observed",
    "QuantReport",
    "QuantSpec",
    "Size",
    "Task",
    "allocate",
    "finish_qat",
    "float_classifier",
    "folded_float",
    "method",
    "observe",
    "prepare_qat",
    "quantize_dynamic",
    "quantize_mixed",
    "quantize_observed",
    "quantize_static",
    "sensitivities",
    "use_integers",
]

__getattr__, __dir__ = passed_on(__name__)
