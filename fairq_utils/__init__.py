"""What quantizing a face classifier does to its fairness, measured on people one can render."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairq_utils.apply import apply_quantization
    from fairq_utils.comparison import compare_quantization_methods

__all__ = ["apply_quantization", "compare_quantization_methods"]

_HOMES = {
    "apply_quantization": "fairq_utils.apply",
    "compare_quantization_methods": "fairq_utils.comparison",
}


def __getattr__(name: str) -> Any:
    """The two calls, imported when they are asked for: torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fairq_utils' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
