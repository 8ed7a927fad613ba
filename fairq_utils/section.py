"""What all sections of a params file are: typed, frozen, and without keys that nobody reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Keys of one part of a params file; hashed by what it says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())
