"""Subjects that a params file's data section names: drawn or listed, and their images."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from fairq_utils.data.faces import FaceData
from fairq_utils.data.group_dials import GroupDials
from fairq_utils.data.listing import Listing
from fairq_utils.data.loading import load
from fairq_utils.data.photographs import reading
from fairq_utils.data.population import CELEBA_JOINT, SPLITS, Population
from fairq_utils.errors import BadInput
from fairq_utils.study.params.data import Data, Photographs
from fairq_utils.study.params.study import ParamsError
from fairq_utils.study.progress import rendering


# Studies may have the same images in ledgers of their own; worlds of the dials have each their own
# images, which memory need not hold all.
@lru_cache(maxsize=2)
def images(data: Data | Photographs, cache: str) -> FaceData:
    """Images of all four splits; rendered or decoded unless they are in the cache."""
    options: dict[str, Any] = (
        {"root": data.root, **data.options()}
        if isinstance(data, Photographs)
        else {
            "sizes": {split: getattr(data, split) for split in SPLITS},
            "population": {split: population(data, split) for split in SPLITS},
        }
    )
    return load(data.name, size=data.size, cache=cache, progress=rendering(sys.stderr), **options)


@lru_cache(maxsize=4)
def listing(data: Photographs) -> Listing:
    """Photographs of a collection, none of them read.

    Raises
    ------
    ParamsError
        A setting of the data section cannot be met; names its key.
    BadInput
        See :func:`fairq_utils.data.photographs.reading.listing`.
    """
    options = data.options()
    try:
        return reading.listing(data.name, data.root, **options)
    except BadInput as error:
        key = str(error).partition(":")[0]
        if key.partition(".")[0] not in options:
            raise
        raise ParamsError(f"data.{error}") from error


def population(data: Data, split: str) -> Population:
    """The population that a split is drawn from."""
    joint = data.joint_of.get(split, data.joint)  # type: ignore[call-overload]
    return Population(
        seed=data.seed,
        difficulty=data.difficulty,
        joint=dict(CELEBA_JOINT if joint == "celeba" else joint),
        race=dict(data.race),
        of_group={
            value: GroupDials(**dials.model_dump()) for value, dials in data.of_group.items()
        },
        even=data.even_over if split == "test" and data.test_design == "even" else (),
    )
