"""Fairness of quantized classifiers: quantizers, metrics, statistics, certificates, and a study."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.apply import apply_quantization
    from fairq_utils.compare import Comparison, compare_quantization_methods
    from fairq_utils.errors import BadInput, Fault
    from fairq_utils.metrics.model_metrics import compute_fairness_metrics
    from fairq_utils.mitigation.certified import FairnessAwareQuantizer
    from fairq_utils.mitigation.sequential_test import NotCertified

__all__ = [
    "BadInput",
    "Comparison",
    "FairnessAwareQuantizer",
    "Fault",
    "NotCertified",
    "apply_quantization",
    "compare_quantization_methods",
    "compute_fairness_metrics",
]

__version__ = version("fairq-utils")
__getattr__, __dir__ = passed_on(__name__)
