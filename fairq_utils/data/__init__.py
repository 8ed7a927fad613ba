"""Images with demographics. Every reader returns the same :class:`FaceData`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairq_utils.data.faces import FaceData
    from fairq_utils.data.loading import load

__all__ = ["FaceData", "load"]

_HOMES = {"FaceData": "fairq_utils.data.faces", "load": "fairq_utils.data.loading"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch takes seconds, and a list of collections needs none."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fairq_utils.data' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
