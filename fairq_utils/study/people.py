"""People of a study: drawn or listed, split by split, and their images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.data.faces import FaceData
from fairq_utils.data.group_dials import GroupDials
from fairq_utils.data.listing import Listing
from fairq_utils.data.loading import CLASSES, load
from fairq_utils.data.photographs import reading
from fairq_utils.data.population import CELEBA_JOINT, SPLITS, Population, demographics
from fairq_utils.data.questions import ATTRIBUTES
from fairq_utils.errors import BadInput
from fairq_utils.study.params.data import Data, Photographs
from fairq_utils.study.params.study import Params, ParamsError
from fairq_utils.study.progress import rendering


def population(params: Params, split: str = "train") -> Population:
    """The population that a split is drawn from.

    Raises
    ------
    TypeError
        The study's people are in photographs.
    """
    if not isinstance(params.data, Data):
        raise TypeError(f"{params.name}: the people of this study are in photographs")
    return _population(params.data, split)


def _population(data: Data, split: str) -> Population:
    joint = data.joint_of.get(split, data.joint)  # type: ignore[call-overload]
    return Population(
        seed=data.seed,
        difficulty=data.difficulty,
        joint=dict(CELEBA_JOINT if joint == "celeba" else joint),
        race=dict(data.race),
        of_group={
            value: GroupDials(**dials.model_dump()) for value, dials in data.of_group.items()
        },
    )


def faces(params: Params) -> FaceData:
    """The study's pictures, all four splits; rendered or decoded on the first call, then cached."""
    return _faces(params.data, params.execution.cache)


@lru_cache(maxsize=2)
def _faces(data: Data | Photographs, cache: str) -> FaceData:
    if isinstance(data, Photographs):
        return load(
            data.name,
            root=data.root,
            size=data.size,
            cache=cache,
            progress=rendering(sys.stderr),
            **data.options(),
        )
    return load(
        data.name,
        sizes={split: getattr(data, split) for split in SPLITS},
        size=data.size,
        population={split: _population(data, split) for split in SPLITS},
        cache=cache,
        progress=rendering(sys.stderr),
    )


@lru_cache(maxsize=4)
def _listing(data: Photographs) -> Listing:
    options = data.options()
    try:
        return reading.listing(data.name, data.root, **options)
    except BadInput as error:
        key = str(error).partition(":")[0]
        if key.partition(".")[0] not in options:
            raise
        raise ParamsError(f"data.{error}") from error


@lru_cache(maxsize=16)
def _listed(data: Photographs, split: str) -> tuple[NDArray[np.int8], pd.DataFrame]:
    found = _listing(data)
    rows = found.split == split
    return found.target[rows], found.groups[rows].reset_index(drop=True)


def listing(params: Params) -> Listing:
    """The photographs of a study.

    Raises
    ------
    TypeError
        The study's people are rendered.
    BadInput
        See :func:`fairq_utils.data.photographs.reading.listing`.
    """
    if not isinstance(params.data, Photographs):
        raise TypeError(f"{params.name}: the people of this study are rendered")
    return _listing(params.data)


def people(params: Params, split: str) -> tuple[NDArray[np.int8], pd.DataFrame]:
    """Target (N,) and groups (N rows, a categorical column per attribute) of one split.

    Nothing is rendered and no picture is read, so that a study can be refused in moments.
    """
    if isinstance(params.data, Data):
        count = int(getattr(params.data, split))
        return demographics(population(params, split), split, np.arange(count))
    return _listed(params.data, split)


def values(params: Params) -> dict[str, tuple[str, ...]]:
    """Attribute -> its values, in their order."""
    if isinstance(params.data, Data):
        return dict(ATTRIBUTES)
    groups = listing(params).groups
    return {str(name): tuple(map(str, groups[name].cat.categories)) for name in groups}


def answers(params: Params) -> tuple[str, str]:
    """Meanings of a target of 0 and of 1, in words."""
    if isinstance(params.data, Data):
        return CLASSES
    absent, present = listing(params).meta["classes"]
    return str(absent), str(present)


def described(params: Params, splits: Sequence[str]) -> dict[str, Any]:
    """Description of the subjects and images of these splits, as JSON.

    A run depends on the people that it is trained, calibrated, validated and tested on, and on no
    others. Photographs are decoded for it, if they are not yet: what is in the pictures decides.
    """
    if isinstance(params.data, Photographs):
        there = faces(params)
        for split in splits:
            if split not in there.split:
                raise ParamsError(
                    f"data.root: no picture of {params.data.name} in the split {split} can be "
                    "used; mend them, see `fairq data check`"
                )
        return {
            "name": params.data.name,
            "size": params.data.size,
            "target": there.meta["target"],
            "people": {split: there.meta["contents"][split] for split in splits},
            "images": {split: int((there.split == split).sum()) for split in splits},
        }
    data = params.data.model_dump(mode="json")
    joints = {split: dict(population(params, split).joint) for split in splits}
    del data["joint_of"]
    data["joint"] = {split: joints[split] for split in ("train", "test") if split in splits}
    for split in ("calibration", "validation"):
        images = data.pop(split)
        if split in splits:
            data[split] = {"images": images, "joint": joints[split]}
    return data


def shares(params: Params, attributes: Sequence[str], train: pd.DataFrame) -> dict[str, float]:
    """Share of each crossed group among the people a study is about, by its name.

    Of rendered people it is known. Of photographs it is that of ``train``, the groups of the
    training split: nothing is learnt from the test split.
    """
    found: dict[str, float] = {}
    if isinstance(params.data, Photographs):
        cells = train[list(attributes)].astype(str).agg(" ".join, axis=1)
        return {str(name): float(part) for name, part in cells.value_counts(normalize=True).items()}
    who = population(params, "test")
    races = sum(who.race.values())
    for cell, weight in who.joint.items():
        gender, age, _ = cell.split("|")
        for name, part in who.race.items():
            each = {"gender": gender, "age": age, "race": name}
            group = " ".join(each[attribute] for attribute in attributes)
            found[group] = found.get(group, 0.0) + weight * part / races
    return found
