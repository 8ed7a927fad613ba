"""What a params file names: its people, pictures, ledger, device, and folder of results."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch

from fairq_utils.data import FaceData, load
from fairq_utils.data.group_dials import GroupDials
from fairq_utils.data.population import CELEBA_JOINT, SPLITS, Population
from fairq_utils.data_params import Data, Photographs
from fairq_utils.faults import BadInput, Fault
from fairq_utils.ledger import Ledger, Run
from fairq_utils.params import Params
from fairq_utils.progress import rendering
from fairq_utils.resume import Checkpoints


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
        One of them cannot be made or written; a GPU was asked for and there is none; or the devices
        cannot train what is to be trained. A cluster's devices are those that the params name:
        this machine's say nothing about its workers'.
    """
    store = ledger(params)
    if params.cluster.kind == "none":
        device(params)  # workers look for their own
    elif store.alone:
        raise BadInput(
            f"execution.ledger: {store.url} lives in one process and workers would not see it; "
            "name a folder or a store that every machine of the cluster reaches"
        )
    _check_recipes(params)
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


def devices(params: Params) -> int:
    """How many devices train an FP32 model together; more GPUs than there are is an error."""
    wanted, kind = params.execution.devices, device(params)
    gpus = torch.cuda.device_count() if kind == "cuda" else 0
    if wanted == "auto":
        # A cluster has one worker for each GPU, and its workers start no processes.
        return 1 if multiprocessing.current_process().daemon else max(gpus, 1)
    if kind == "cuda" and wanted > gpus:
        raise Fault(
            f"execution.devices: {wanted} were asked for but PyTorch finds {gpus} "
            f"{'GPU' if gpus == 1 else 'GPUs'}; use auto"
        )
    return wanted


def _check_recipes(params: Params) -> None:
    """Refuse what the devices that are to train, here or on a cluster's workers, cannot train."""
    if params.cluster.kind == "none":
        gpu, count, here = device(params) == "cuda", devices(params), "this study runs on the CPU"
    else:
        # Whether a worker has what it was promised, it finds itself.
        gpu = params.cluster.gpus > 0 and params.execution.device != "cpu"
        count = 1 if params.execution.devices == "auto" else params.execution.devices
        here = "the workers have none by execution.device and cluster.gpus"
    for name, recipe in params.training.models.items():
        if recipe.precision == "fp16" and not gpu:
            raise Fault(
                f"training.models.{name}.precision: fp16 needs a GPU, and {here}; take bf16 or fp32"
            )
        if recipe.batch_size % count:
            raise Fault(
                f"training.models.{name}.batch_size: {recipe.batch_size} images do not divide "
                f"among {count} devices; take a multiple of {count}, or set execution.devices"
            )


def unfinished(params: Params, run: Run) -> Checkpoints | None:
    """Where a run's training keeps how far it is, or None where it shall not."""
    minutes = params.training.checkpoint_minutes
    return Checkpoints(_unfinished(ledger(params), run), minutes, run.key) if minutes else None


def remove_abandoned(store: Ledger, finished: Iterable[Run]) -> None:
    """Remove what is kept here of stopped trainings that were finished elsewhere or otherwise.

    Parameters
    ----------
    finished : runs that are in the ledger
        An FP32 model whose weights are gone is trained again, and its file stays.
    """
    for run in finished:
        path = _unfinished(store, run)
        if path.exists() and (
            run.method != "fp32" or store.fs.exists(store.kept_checkpoint(run.key))
        ):
            path.unlink(missing_ok=True)


def _unfinished(store: Ledger, run: Run) -> Path:
    return store.checkpoint_path(run.key).with_suffix(".unfinished")


def results(params: Params) -> Path:
    """Folder of the study's tables as files."""
    return Path(params.execution.results) / params.name
