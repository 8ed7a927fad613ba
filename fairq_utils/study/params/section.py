"""Base of all sections of a params file, and the types that they share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, each of which may stand there once."""
    twice = [v for i, v in enumerate(values) if v in values[:i]]
    if twice:
        raise ValueError(f"{twice[0]!r} stands there twice; name it once")
    return values


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen part of a params file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        inside = value if isinstance(value, list | tuple) else [value]
        truths = [one for one in inside if isinstance(one, bool)]
        if truths and "bool" not in str(field.annotation):
            raise ValueError(f"{str(truths[0]).lower()} is no number or name; write one")
        return value

    def __hash__(self) -> int:
        return hash(self.model_dump_json())
