"""Weights of trained models between a ledger's store and this machine.

Where the ledger is a folder, its files are these weights and there is nothing to copy. A store
elsewhere has the copy that counts; each machine that works on one takes it into its cache.
"""

from __future__ import annotations

import posixpath
import uuid
from pathlib import Path

from fairq_utils.ledger import Ledger, LedgerError


def fetch(store: Ledger, key: str) -> Path:
    """Path of a model's weights on this machine, copied from the store where only that has them.

    There is no file where nobody has trained the model.

    Raises
    ------
    LedgerError
        The store has the weights but they cannot be copied.
    """
    path, kept = store.checkpoint_path(key), store.kept_checkpoint(key)
    if store.local or path.exists() or not store.fs.exists(kept):
        return path
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.fs.get_file(kept, str(temporary))
        temporary.replace(path)
    except OSError as error:
        raise LedgerError(
            f"{kept}: could not be copied to {path} ({error.strerror or error}); free some space, "
            "or name another folder in execution.cache"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def keep(store: Ledger, key: str) -> None:
    """Put weights of this machine into the store; where it has some, those take their place here.

    So the first weights that were kept are those that everybody evaluates.

    Raises
    ------
    LedgerError
        The store cannot be written.
    """
    if store.local:
        return
    path, kept = store.checkpoint_path(key), store.kept_checkpoint(key)
    if store.fs.exists(kept):
        path.unlink(missing_ok=True)
        fetch(store, key)
        return
    temporary = f"{kept}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        store.fs.makedirs(posixpath.dirname(kept), exist_ok=True)
        store.fs.put_file(str(path), temporary)
        store.fs.mv(temporary, kept)
    except OSError as error:
        raise LedgerError(
            f"{kept}: could not be written ({error.strerror or error}); name another place in "
            "execution.ledger"
        ) from error


def set_aside(store: Ledger, key: str) -> Path:
    """Rename damaged weights, here and in the store, and return their new path here."""
    path, kept = store.checkpoint_path(key), store.kept_checkpoint(key)
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    if not store.local and store.fs.exists(kept):
        store.fs.mv(kept, f"{kept}.damaged")
    return aside
