"""What a params file names: its people, pictures, ledger, device, and folder of results."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

import torch

from fairq_utils.data import FaceData, load
from fairq_utils.data.group_dials import GroupDials
from fairq_utils.data.population import CELEBA_JOINT, SPLITS, Population
from fairq_utils.data_params import Data, Photographs
from fairq_utils.faults import BadInput, Fault
from fairq_utils.ledger import Ledger
from fairq_utils.params import Params
from fairq_utils.progress import rendering


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


def ledger(params: Params) -> Ledger:
    """The ledger that a params file names."""
    return Ledger(params.execution.ledger, params.execution.cache)


def prepare(params: Params) -> None:
    """Make the folders that the study will write to, before hours go into what to write there.

    Raises
    ------
    BadInput
        One that has to be a folder is a URL, or a cluster's ledger lives in one process.
    Fault
        One of them cannot be made or written; or a GPU was asked for and there is none.
    """
    store = ledger(params)
    if params.cluster.kind == "none":
        device(params)  # workers look for their own
    elif store.alone:
        raise BadInput(
            f"execution.ledger: {store.url} lives in one process and workers would not see it; "
            "name a folder or a store that every machine of the cluster reaches"
        )
    for name in ("cache", "results"):
        given = getattr(params.execution, name)
        if "://" in given:
            raise BadInput(
                f"execution.{name}: {given} is a URL, which only execution.ledger may be; name a "
                "folder"
            )
    store.prepare()
    for name in ("cache", "results"):
        folder = Path(getattr(params.execution, name))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fault(
                f"execution.{name}: {folder} cannot be made ({error.strerror}); name another folder"
            ) from error
        if not os.access(folder, os.W_OK):
            raise Fault(f"execution.{name}: {folder} cannot be written; name another folder")


def device(params: Params) -> str:
    """``cuda`` or ``cpu``; asking for a GPU where there is none is an error."""
    if params.execution.device == "cuda" and not torch.cuda.is_available():
        raise Fault(
            "execution.device: cuda was asked for but PyTorch finds no GPU; use auto or cpu"
        )
    if params.execution.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return params.execution.device


def results(params: Params) -> Path:
    """Folder of the study's tables as files."""
    return Path(params.execution.results) / params.name
