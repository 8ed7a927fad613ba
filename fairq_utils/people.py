"""Who is in a study's splits: people who are drawn, or photographs that are listed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.data import photographs
from fairq_utils.data.attributes import ATTRIBUTES
from fairq_utils.data.listing import Listing
from fairq_utils.data.population import demographics
from fairq_utils.data.store import ANSWERS
from fairq_utils.data_params import Data, Photographs
from fairq_utils.faults import BadInput
from fairq_utils.params import Params, ParamsError
from fairq_utils.resources import faces, population


@lru_cache(maxsize=4)
def _listing(data: Photographs) -> Listing:
    options = data.options()
    try:
        return photographs.listing(data.name, data.root, **options)
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
        See :func:`fairq_utils.data.photographs.listing`.
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
    """What a target of 0 and of 1 means, in words."""
    if isinstance(params.data, Data):
        return ANSWERS
    absent, present = listing(params).meta["answers"]
    return str(absent), str(present)


def described(params: Params, splits: Sequence[str]) -> dict[str, Any]:
    """What decides the people and pictures of these splits, as JSON.

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
