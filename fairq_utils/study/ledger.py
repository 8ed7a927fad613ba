"""The store of runs: one run, one file, written whole or not at all.

A run is named by its content, so the same run asked twice is computed once, and a study that was
killed goes on from the files that exist. Every file is written under a temporary name and renamed,
which is atomic on a local disk and one put on an object store.
"""

from __future__ import annotations

import os
import posixpath
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fairq_utils.data.whole_files import (
    NotRead,
    NotWritten,
    in_the_way,
    readable,
    reason,
    written_whole,
)
from fairq_utils.errors import Fault
from fairq_utils.fingerprint import fingerprint
from fairq_utils.study import run_file
from fairq_utils.study.run_file import Damaged, Foreign
from fairq_utils.study.run_record import RunRecord

WAY_OUT = (
    "free some space or name another place in execution.ledger. The runs that are there are whole"
)


class LedgerError(Fault):
    """The ledger cannot be read or written; names the file and the way out."""


class Ledger:
    """A folder, or any fsspec URL, that holds one Parquet file per run.

    Parameters
    ----------
    url : str
        Such as ``build/ledger`` or ``s3://bucket/ledger``.
    cache : path, optional
        Folder of this machine for weights that are kept in a store elsewhere.
    """

    def __init__(
        self, url: str | os.PathLike[str], cache: str | os.PathLike[str] = "build/cache"
    ) -> None:
        self.url = os.fspath(url)
        self.cache = Path(cache)
        # What stands in no URL is a path, whatever signs are in it.
        if "://" not in self.url:
            self.fs = fsspec.filesystem("file")
            self.root = os.path.abspath(os.path.expanduser(self.url))
            return
        try:
            # Other machines write to the same store: what it held a while ago says nothing.
            self.fs, self.root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise LedgerError(f"execution.ledger: {self.url} cannot be opened: {error}") from error

    def __repr__(self) -> str:
        return f"Ledger({self.url!r})"

    def check(self) -> None:
        """Raise :class:`LedgerError` where the place cannot be a ledger; nothing is made."""
        found = in_the_way(posixpath.join(self.root, "runs")) if self.local else ""
        if found:
            raise LedgerError(
                f"execution.ledger: {self.root} cannot be made ({found}); name another folder"
            )

    def prepare(self) -> None:
        """Make the folder of runs; raises :class:`LedgerError` where it cannot be."""
        self.check()
        folder = posixpath.join(self.root, "runs")
        try:
            self.fs.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise LedgerError(
                f"execution.ledger: {folder} cannot be made ({reason(error)}); name another "
                "folder, or one for all with --work DIR"
            ) from error
        if self.local and not os.access(folder, os.W_OK):
            raise LedgerError(
                f"execution.ledger: {folder} cannot be written; name another folder, or one for "
                "all with --work DIR"
            )

    def path(self, key: str) -> str:
        """Path of a run's file."""
        return posixpath.join(self.root, "runs", f"{key}.parquet")

    def contains(self, key: str) -> bool:
        """True if a run is there and whole; what else has its name is set aside with a warning.

        Raises
        ------
        LedgerError
            A file is there and cannot be read, which is no damage; nothing is moved.
        """
        path = self.path(key)
        try:
            self._run(key)
        except FileNotFoundError:
            return False
        except Damaged as error:
            self._set_aside(path, str(error))
            return False
        except Foreign:
            return False
        return True

    def content(self, path: str) -> bytes:
        """Bytes of a file of the store.

        Raises
        ------
        FileNotFoundError
            There is none.
        LedgerError
            It is there and cannot be read.
        """
        try:
            with readable(path):
                return bytes(self.fs.cat_file(path))
        except NotRead as error:
            raise LedgerError(f"execution.ledger: {error}") from error

    def _run(self, key: str) -> pa.Table:
        """One run's table, checked."""
        return run_file.run_of(self.content(self.path(key)), key)

    def _set_aside(self, path: str, damage: str) -> None:
        aside = f"{path}.damaged"
        while self.fs.exists(aside):
            aside = f"{path}.{uuid.uuid4().hex[:8]}.damaged"
        done = f"set aside as {posixpath.basename(aside)}"
        try:
            self.fs.mv(path, aside)
        except OSError as error:  # such as in somebody else's ledger
            done = f"left there ({reason(error)})"
        warnings.warn(
            f"{path}: this run's file is damaged ({damage}); it is {done} and the run is computed "
            "again",
            stacklevel=3,
        )

    def keys(self) -> list[str]:
        """Keys of all runs that are there, sorted.

        Raises
        ------
        LedgerError
            The folder of runs cannot be read.
        """
        folder = posixpath.join(self.root, "runs")
        try:
            with readable(folder):
                names = [posixpath.basename(p) for p in self.fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
        except NotRead as error:
            raise LedgerError(f"execution.ledger: {error}") from error
        return sorted(n.removesuffix(".parquet") for n in names if n.endswith(".parquet"))

    def state(self) -> str:
        """Digest of the names, sizes and times of the files of all runs, which none reads."""
        folder = posixpath.join(self.root, "runs")
        there = self.fs.ls(folder, detail=True) if self.fs.exists(folder) else []
        seen = [
            [posixpath.basename(file["name"]), file["size"], str(file.get("mtime"))]
            for file in there
            if file["name"].endswith(".parquet")
        ]
        return fingerprint(sorted(seen))

    def write(self, record: RunRecord) -> None:
        """Write one run; afterwards it is there whole, or not at all.

        Raises
        ------
        LedgerError
            The disk is full or the place cannot be written; names the file.
        """
        self._put(self.path(record.run.key), run_file.to_table(record))

    def read(self, key: str) -> RunRecord:
        """Read one run.

        Raises
        ------
        LedgerError
            It is not there, or damaged.
        """
        path = self.path(key)
        try:
            return run_file.to_record(self._run(key))
        except FileNotFoundError:
            raise LedgerError(f"{path}: the ledger has no such run; run the study first") from None
        except (Damaged, Foreign) as error:
            what = "is damaged" if isinstance(error, Damaged) else "is none of this version"
            raise LedgerError(
                f"{path}: this run's file {what} ({error}); delete it and the run is computed again"
            ) from error

    def frame(self) -> pd.DataFrame:
        """One row per run of any number of studies, with its parameters as columns.

        Files are only read: one that is no whole run is left out with a warning that names it.

        Returns
        -------
        DataFrame
            ``key``; the parameters, those within others by their path, such as ``training.seed``
            or ``data.train``, missing where a run has none; ``attributes``, ``groups`` and
            ``counts`` (as in :class:`RunRecord`, flat); ``size_bytes``, ``seconds``, and what was
            measured and noted as ``measures.*`` and ``provenance.*``. Per-image columns and
            reports are left to :meth:`read`.

        Examples
        --------
        >>> Ledger("memory://empty").frame().empty
        True
        """
        return pd.DataFrame([run_file.to_row(table) for table in self._tables()])

    def compact(self, target: str | os.PathLike[str]) -> None:
        """Write all runs as one Parquet file, per-image columns included."""
        tables = [
            table.select(list(run_file.SCHEMA)).replace_schema_metadata()
            for table in self._tables()
        ]
        if not tables:
            raise LedgerError(f"{self.url}: the ledger holds no run to compact")
        other = Ledger(posixpath.dirname(os.fspath(target)) or ".")
        other._put(
            posixpath.join(other.root, posixpath.basename(os.fspath(target))),
            pa.concat_tables(tables),
        )

    def _tables(self) -> Iterator[pa.Table]:
        """Tables of all runs; a file that is none is named in a warning."""
        for key in self.keys():
            try:
                yield self._run(key)
            except FileNotFoundError:  # set aside by another process since it was listed
                continue
            except (Damaged, Foreign) as error:
                warnings.warn(
                    f"{self.path(key)}: left out, since this is no whole run ({error}); remove it, "
                    "or run its study again",
                    stacklevel=4,
                )

    def read_table(self, name: str) -> pd.DataFrame | None:
        """A table kept beside the runs, or None where there is none that can be read."""
        path = posixpath.join(self.root, "tables", f"{name}.parquet")
        try:
            return run_file.table_of(self.content(path)).to_pandas()
        except FileNotFoundError:
            return None
        except Damaged as error:
            self._set_aside(path, str(error))
            return None

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Keep a table beside the runs."""
        path = posixpath.join(self.root, "tables", f"{name}.parquet")
        self._put(path, pa.Table.from_pandas(frame, preserve_index=False))

    def checkpoint_path(self, key: str) -> Path:
        """Path of a trained model's weights on this machine.

        A ledger in a local folder holds them itself; :mod:`fairq_utils.study.weights` copies those
        of a store elsewhere into the cache, apart from other ledgers'.
        """
        if self.local:
            return Path(self.kept_checkpoint(key))
        return self.cache / "checkpoints" / fingerprint(self.url, 12) / f"{key}.safetensors"

    def kept_checkpoint(self, key: str) -> str:
        """Path of a trained model's weights in the store."""
        return posixpath.join(self.root, "checkpoints", f"{key}.safetensors")

    @contextmanager
    def mark(self) -> Iterator[str]:
        """Name of a mark that is there meanwhile; who :meth:`sees` it shares the store."""
        name = uuid.uuid4().hex
        self.fs.pipe_file(self._mark(name), b"mark")
        try:
            yield name
        finally:
            if self.sees(name):
                self.fs.rm(self._mark(name))

    def sees(self, name: str) -> bool:
        """True if a mark is in this store."""
        return bool(self.fs.exists(self._mark(name)))

    def _mark(self, name: str) -> str:
        return posixpath.join(self.root, "runs", f".{name}.mark")

    @property
    def alone(self) -> bool:
        """True if the ledger lives in this process's memory, where no other process sees it."""
        return "memory" in self._protocols

    @property
    def local(self) -> bool:
        """True if the ledger is a folder of this machine, or mounted on it."""
        return "file" in self._protocols

    @property
    def _protocols(self) -> tuple[str, ...]:
        protocol = self.fs.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)

    def _put(self, path: str, table: pa.Table) -> None:
        """Write a table with its checksum: whole, or not at all."""
        table = run_file.with_checksum(table)
        if self.local:
            try:
                with written_whole(path, way_out=WAY_OUT) as place, place.open("wb") as stream:
                    pq.write_table(table, stream)
            except NotWritten as error:
                raise LedgerError(str(error)) from error
            return
        folder, name = posixpath.split(path)
        temporary = posixpath.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self.fs.makedirs(folder, exist_ok=True)
            with self.fs.open(temporary, "wb") as stream:
                pq.write_table(table, stream)
            self.fs.mv(temporary, path)
        except OSError as error:
            raise LedgerError(
                f"{path}: could not be written ({reason(error)}); {WAY_OUT}"
            ) from error
        finally:
            if self.fs.exists(temporary):
                self.fs.rm(temporary)
