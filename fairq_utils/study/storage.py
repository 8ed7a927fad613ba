"""Storage of a study: its ledger, folders, and what is kept of trainings in hand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fairq_utils.errors import BadInput, Fault
from fairq_utils.study.devices import _check_recipes, device
from fairq_utils.study.ledger import Ledger, Run
from fairq_utils.study.params.study import Params
from fairq_utils.training.resume import Checkpoints


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


def unfinished(params: Params, run: Run) -> Checkpoints | None:
    """Checkpoints of a run's training, or None where none are kept."""
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
