"""Quantizers: from a model and a :class:`QuantSpec` to a quantized model and its report."""

from fairq_utils.quantizers.dynamic import quantize_dynamic
from fairq_utils.quantizers.ptq import quantize_static
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.spec import QuantSpec

__all__ = ["QuantReport", "QuantSpec", "quantize_dynamic", "quantize_static"]
