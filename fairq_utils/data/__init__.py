"""Images with demographics. Every reader returns the same :class:`FaceData`."""

from __future__ import annotations

from fairq_utils.data.faces import FaceData
from fairq_utils.data.loading import load

__all__ = ["FaceData", "load"]
