"""Images with demographics. Every reader returns the same :class:`FaceData`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.data.batches import Batch, read
    from fairq_utils.data.faces import FaceData
    from fairq_utils.data.group_dials import GroupDials
    from fairq_utils.data.loading import load, load_population
    from fairq_utils.data.photographs.registry import COLLECTIONS, Collection, collection
    from fairq_utils.data.population import Population

__all__ = [
    "COLLECTIONS",
    "Batch",
    "Collection",
    "FaceData",
    "GroupDials",
    "Population",
    "collection",
    "load",
    "load_population",
    "read",
]

__getattr__, __dir__ = passed_on(__name__, extra="study")
