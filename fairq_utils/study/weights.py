"""Weights of trained models between a ledger's store and this machine.

Where the ledger is a folder, its files are these weights and there is nothing to copy. A store
elsewhere has the copy that counts; each machine that works on one takes it into its cache, with a
note of which it took: where the store has another one by now, that is taken in its place.
"""

from __future__ import annotations

import json
import posixpath
import uuid
import warnings
from pathlib import Path

from fairq_utils.data.whole_files import reason, written_whole
from fairq_utils.study.ledger import Ledger, LedgerError
from fairq_utils.training.checkpoints import DamagedCheckpoint, check_run, read_tensors

# What stores say of a file that is another where its content is another.
TELLING = (
    *("size", "ETag", "etag", "md5Hash", "crc32c", "content_md5", "generation", "version_id"),
    *("mtime", "LastModified", "last_modified", "updated", "created"),
)


def fetch(store: Ledger, key: str) -> Path:
    """Path of a model's weights on this machine, copied from the store where it has others.

    There is no file where nobody has trained the model.

    Raises
    ------
    LedgerError
        The store has the weights but they cannot be read.
    NotWritten
        They cannot be copied to this machine.
    """
    path, kept = store.checkpoint_path(key), store.kept_checkpoint(key)
    if store.local:
        return path
    version = _version(store, key)
    if version is None or (path.exists() and _noted(path) == version):
        return path
    way_out = f"it is copied from {store.url}: free some space, or name another execution.cache"
    with written_whole(path, way_out=way_out) as place:
        place.write_bytes(store.content(kept))
        # A kill between the two leaves weights without a note, which are fetched again.
        _note(path).unlink(missing_ok=True)
    with written_whole(_note(path), way_out=way_out) as place:
        place.write_text(version, encoding="utf-8")
    return path


def keep(store: Ledger, key: str) -> None:
    """Put weights of this machine into the store; where it has some, those take their place here.

    So the first weights that were kept are those that everybody evaluates.

    Raises
    ------
    LedgerError
        The store cannot be written, or read.
    """
    if store.local:
        return
    path, kept = store.checkpoint_path(key), store.kept_checkpoint(key)
    if _version(store, key) is None:
        temporary = f"{kept}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            store.fs.makedirs(posixpath.dirname(kept), exist_ok=True)
            store.fs.put_file(str(path), temporary)
            store.fs.mv(temporary, kept)
        except OSError as error:
            raise LedgerError(
                f"{kept}: could not be written ({reason(error)}); name another place in "
                "execution.ledger"
            ) from error
    # Also after writing: who wrote at the same time may have been the last.
    fetch(store, key)


def sound(store: Ledger, key: str) -> bool:
    """True if a model's weights are whole; damaged ones are set aside with a warning.

    Damaged weights in the cache are fetched again, and only where the store's own are damaged too
    are they set aside, here and there.

    Raises
    ------
    NotRead
        They are there and cannot be read, which is no damage.
    """
    path = store.checkpoint_path(key)
    damage = _damage(path, key)
    if damage and not store.local and _version(store, key) is not None:
        warnings.warn(
            f"{path}: this copy of a checkpoint is damaged ({damage}); it is fetched again from "
            f"{store.url}",
            stacklevel=3,
        )
        path.unlink(missing_ok=True)
        damage = _damage(fetch(store, key), key)
    if damage:
        aside = _set_aside(store, key)
        warnings.warn(
            f"{path}: this checkpoint is damaged ({damage}); it is set aside as {aside.name} and "
            "the model is trained again",
            stacklevel=3,
        )
    return not damage


def _damage(path: Path, key: str) -> str:
    """Why weights are not those of a run; empty if they are."""
    try:
        _, metadata = read_tensors(path)
        check_run(metadata, key)
    except (DamagedCheckpoint, FileNotFoundError) as error:
        return str(error)
    return ""


def _set_aside(store: Ledger, key: str) -> Path:
    """Rename weights here, and in the store where it has the same ones; their new path here."""
    path, kept = store.checkpoint_path(key), store.kept_checkpoint(key)
    aside = path.with_name(f"{path.name}.damaged")
    if path.exists():  # what was fetched again may be gone from the store since
        path.replace(aside)
    if not store.local:
        version = _version(store, key)
        if version is not None and version == _noted(path):
            store.fs.mv(kept, f"{kept}.damaged")
        _note(path).unlink(missing_ok=True)
    return aside


def _version(store: Ledger, key: str) -> str | None:
    """Tells one copy in the store from those before and after it; None where there is none."""
    kept = store.kept_checkpoint(key)
    try:
        about = store.fs.info(kept)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(
            f"{kept}: could not be looked up ({reason(error)}); name a place that can be "
            "read in execution.ledger"
        ) from error
    return json.dumps({name: str(about[name]) for name in TELLING if name in about})


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.version")


def _noted(path: Path) -> str | None:
    """Version of the store's copy that was fetched, or None where nothing was."""
    try:
        return _note(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
