"""The sensitive attributes of rendered people, and the values of each."""

from __future__ import annotations

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": ("female", "male"),
    "age": ("old", "young"),
    "race": ("african", "asian", "caucasian"),
}
