"""The ``data`` section of a params file: rendered people, or photographs on disk."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.questions import ATTRIBUTES
from fairq_utils.errors import BadInput
from fairq_utils.registry import unknown
from fairq_utils.study.params.section import Section, Weight, unique

CELLS = tuple(f"{g}|{a}|{y}" for g, a, y in product(("female", "male"), ("old", "young"), "01"))
Joint = Literal["celeba"] | dict[str, Weight]
Value = Literal["female", "male", "old", "young", "african", "asian", "caucasian"]
RENDERED = ("gender", "age", "race")  # attributes of rendered people
Split = Literal["train", "calibration", "validation", "test"]


class OfGroup(Section):
    """Differences of one group's images; see ``GroupDials`` of the population."""

    difficulty: Annotated[float, Field(ge=0, le=3)] | None = None
    light: Annotated[float, Field(gt=0, le=2)] = 1.0
    reflectance: Annotated[float, Field(gt=0, le=2)] = 1.0


class Data(Section):
    """Rendered people: who is in the images, and how many of them.

    ``joint_of`` gives single splits a distribution of their own; ``of_group`` says what is
    different in the images of a group. With ``test_design: even`` the test split has the same
    number of images in each cell of the attributes ``even_over``; what is said of the population
    weighs them by its make-up.
    """

    name: Literal["population"] = "population"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 2026
    size: Annotated[int, Field(ge=32, le=512)] = 64
    train: Annotated[int, Field(ge=64)] = 16000
    calibration: Annotated[int, Field(ge=1)] = 2000
    validation: Annotated[int, Field(ge=1)] = 500
    test: Annotated[int, Field(ge=50)] = 2000
    difficulty: Annotated[float, Field(ge=0, le=3)] = 1.0
    joint: Joint = "celeba"
    joint_of: dict[Split, Joint] = Field(default={})
    race: dict[str, Weight] = Field(default={"african": 0.2, "asian": 0.2, "caucasian": 0.6})
    of_group: dict[Value, OfGroup] = Field(default={})
    test_design: Literal["population", "even"] = "population"
    even_over: Annotated[
        tuple[Literal["gender", "age", "race"], ...], Field(min_length=1), AfterValidator(unique)
    ] = ("gender", "age")

    @model_validator(mode="after")
    def _shares(self) -> Data:
        places = {"joint": self.joint} | {f"joint_of.{k}": v for k, v in self.joint_of.items()}
        for place, joint in places.items():
            if isinstance(joint, dict):
                _check_joint(place, joint)
        known = {"african", "asian", "caucasian"}
        if set(self.race) != known:
            odd = sorted(set(self.race) ^ known)
            raise ValueError(
                f"race: {odd[0]!r} is unknown or missing; name {', '.join(sorted(known))}"
            )
        if sum(self.race.values()) <= 0:
            raise ValueError("race: all weights are zero; give one ancestry a positive weight")
        return self

    @model_validator(mode="after")
    def _evenly(self) -> Data:
        if self.test_design == "population":
            if self.even_over != ("gender", "age"):
                raise ValueError("even_over: is of test_design: even; give that too, or leave it")
            return self
        turns = prod(len(ATTRIBUTES[name]) for name in self.even_over)
        if self.test % turns:
            raise ValueError(
                f"test: {self.test} images are not the same number in each of {turns} cells; give "
                f"a multiple of {turns}"
            )
        if "race" in self.even_over and not all(self.race.values()):
            raise ValueError(
                "even_over: race has an ancestry without weight; give it one, or leave race out"
            )
        return self


def _check_joint(place: str, joint: Mapping[str, float]) -> None:
    if set(joint) != set(CELLS):
        odd = sorted(set(joint) ^ set(CELLS))
        raise ValueError(
            f"{place}: {odd[0]!r} is unknown or missing; the cells are {', '.join(CELLS)}"
        )
    for gender, age in product(("female", "male"), ("old", "young")):
        if joint[f"{gender}|{age}|0"] + joint[f"{gender}|{age}|1"] <= 0:
            raise ValueError(
                f"{place}: the group {gender}|{age} has no weight, so it would have no image; give "
                "one of its cells a positive weight"
            )


HeldOut = Literal["calibration", "validation", "test"]


class Photographs(Section):
    """Photographs, what is told from them, and how they are split.

    ``name`` is one of :data:`fairq_utils.data.photographs.registry.COLLECTIONS` and ``root`` its
    folder. ``target`` is what is told from an image, ``groups`` are the sensitive attributes, with
    a name of ours such as ``{gender: Male}``; the collection's reader says what there is.
    ``held_out`` are the shares that are carved, by the hash of a file's name, out of what the
    collection itself does not hold out; ``images`` keeps the first so many of a split, by the same
    hash. ``max_bad`` images may be unusable before a study stops. ``seed`` is that of the
    resampling. Other keys are options of the collection alone, such as ``margin`` of FairFace.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    root: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 2026
    size: Annotated[int, Field(ge=32, le=512)] = 224
    target: str | None = None
    groups: dict[str, str] | tuple[str, ...] | None = None
    held_out: dict[HeldOut, Annotated[float, Field(gt=0, lt=1)]] | None = None
    images: dict[Split, Annotated[int, Field(ge=1)]] = Field(default={})
    max_bad: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _its_own_options(self) -> Photographs:
        entry = COLLECTIONS.find(self.name, "name")
        for key, value in self._own().items():
            if key not in entry.options:
                known = [*type(self).model_fields, *entry.options]
                raise _refusal(key, value, unknown(key, known))
            try:
                entry.checked({key: value})
            except BadInput as error:
                raise _refusal(key, value, str(error).removeprefix(f"{key}: ")) from None
        return self

    @model_validator(mode="after")
    def _each_group_once(self) -> Photographs:
        names = list(self.groups or ())
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"groups: {twice!r} is named twice; name each attribute once")
        return self

    def options(self) -> dict[str, Any]:
        """Arguments of :func:`fairq_utils.data.photographs.reading.listing`, without the root."""
        kept = ("target", "groups", "held_out", "images", "max_bad")
        common = {name: value for name in kept if (value := getattr(self, name)) is not None}
        return common | COLLECTIONS[self.name].checked(self._own())

    def _own(self) -> dict[str, Any]:
        """Keys beside those that every collection has."""
        return {key: value for key, value in (self.model_extra or {}).items() if value is not None}


def _refusal(key: str, value: object, why: str) -> ValidationError:
    """Refusal of a key's value, where it stands."""
    kind = PydanticCustomError("value_error", "{error}", {"error": why})
    return ValidationError.from_exception_data(
        "data", [InitErrorDetails(type=kind, loc=(key,), input=value)]
    )


def data_kind(section: Any) -> str:
    """Kind of a ``data`` section: by its name, rendered people if it has none."""
    if isinstance(section, Mapping):
        name = section.get("name", "population")
    else:
        name = getattr(section, "name", "population")
    known = isinstance(name, str) and name in COLLECTIONS
    return "photographs" if known else "population"
