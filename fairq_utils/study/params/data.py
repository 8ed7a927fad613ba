"""The ``data`` section of a params file: rendered people, or photographs on disk."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from fairq_utils.study.params.section import Section, Weight

CELLS = tuple(f"{g}|{a}|{y}" for g, a, y in product(("female", "male"), ("old", "young"), "01"))
Joint = Literal["celeba"] | dict[str, Weight]
Value = Literal["female", "male", "old", "young", "african", "asian", "caucasian"]
RENDERED = ("gender", "age", "race")  # attributes of rendered people
Split = Literal["train", "calibration", "validation", "test"]


class OfGroup(Section):
    """What is different in the pictures of one group; see ``GroupDials`` of the population."""

    difficulty: Annotated[float, Field(ge=0, le=3)] | None = None
    light: Annotated[float, Field(gt=0, le=2)] = 1.0
    reflectance: Annotated[float, Field(gt=0, le=2)] = 1.0


class Data(Section):
    """Who is in the pictures, and how many of them.

    ``joint_of`` gives single splits a distribution of their own; ``of_group`` says what is
    different in the pictures of a group.
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


Collection = Literal["celeba", "utkface", "fairface"]
Margin = Literal["0.25", "1.25"]  # how much FairFace shows around a face, as a share of it
HeldOut = Literal["calibration", "validation", "test"]


class Photographs(Section):
    """Which photographs, what is asked about them, and how they are split.

    ``root`` is their folder. ``target`` is what is told from a picture, ``groups`` are the
    sensitive attributes, with a name of ours such as ``{gender: Male}``; the readers
    (:mod:`fairq_utils.data.photographs.celeba`, ``utkface``, ``fairface``) say what there is.
    ``held_out`` are the shares that are carved, by the hash of a file's name, out of what the
    collection itself does not hold out; ``images`` keeps the first so many of a split, by the same
    hash. ``max_bad`` pictures may be unusable before a study stops. ``seed`` is that of the
    resampling.
    """

    name: Collection
    root: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 2026
    size: Annotated[int, Field(ge=32, le=512)] = 224
    target: str | None = None
    groups: dict[str, str] | tuple[str, ...] | None = None
    margin: Margin | None = None
    held_out: dict[HeldOut, Annotated[float, Field(gt=0, lt=1)]] | None = None
    images: dict[Split, Annotated[int, Field(ge=1)]] = Field(default={})
    max_bad: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _of_this_collection(self) -> Photographs:
        if self.margin is not None and self.name != "fairface":
            raise ValueError(f"margin: {self.name} comes with one margin; leave the key out")
        names = list(self.groups or ())
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"groups: {twice!r} is named twice; name each attribute once")
        return self

    def options(self) -> dict[str, Any]:
        """Arguments of :func:`fairq_utils.data.photographs.registry.listing`, without the root."""
        kept = ("target", "groups", "margin", "held_out", "images", "max_bad")
        return {name: value for name in kept if (value := getattr(self, name)) is not None}


def data_kind(section: Any) -> str:
    """Which of the two a ``data`` section is: by its name, rendered people if it has none."""
    if isinstance(section, Mapping):
        name = section.get("name", "population")
    else:
        name = getattr(section, "name", "population")
    return "photographs" if name in get_args(Collection) else "population"
