"""Fairness of quantized classifiers: quantizers, metrics, statistics, certificates, and a study."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairq_utils.apply import apply_quantization
    from fairq_utils.compare import compare_quantization_methods
    from fairq_utils.metrics.model_metrics import compute_fairness_metrics
    from fairq_utils.mitigation.certified import FairnessAwareQuantizer
    from fairq_utils.mitigation.sequential_test import NotCertified

__all__ = [
    "FairnessAwareQuantizer",
    "NotCertified",
    "apply_quantization",
    "compare_quantization_methods",
    "compute_fairness_metrics",
]

_HOMES = {
    "FairnessAwareQuantizer": "fairq_utils.mitigation.certified",
    "NotCertified": "fairq_utils.mitigation.sequential_test",
    "apply_quantization": "fairq_utils.apply",
    "compare_quantization_methods": "fairq_utils.compare",
    "compute_fairness_metrics": "fairq_utils.metrics",
}


def __getattr__(name: str) -> Any:
    """The published study's calls, imported when they are asked for: torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fairq_utils' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
