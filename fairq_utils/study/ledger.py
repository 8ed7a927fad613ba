"""The store of runs: one run, one file, written whole or not at all.

A run is named by its content, so the same run asked twice is computed once, and a study that was
killed goes on from the files that exist. Every file is written under a temporary name and renamed,
which is atomic on a local disk and one put on an object store.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

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

FORMAT = 2  # of the files; a file of another format is not read
FORMAT_KEY, CHECKSUM = b"fairq_format", b"fairq_checksum"  # in a file's metadata
WAY_OUT = (
    "free some space or name another place in execution.ledger. The runs that are there are whole"
)


class LedgerError(Fault):
    """The ledger cannot be read or written; names the file and the way out."""


class _Damaged(ValueError):
    """A file's content is not what was written; says why, without the path."""


class _Foreign(ValueError):
    """A sound Parquet file that is no run of this format."""


@dataclass(frozen=True)
class Run:
    """Everything that decides a result, and nothing else.

    Attributes
    ----------
    data : population parameters and split sizes that matter to the run
    architecture : name that :func:`fairq_utils.training.zoo.find` knows
    training : seed and hyperparameters
    method : ``fp32``, or a name in :data:`fairq_utils.quantizers.methods.METHODS`
    bits : such as ``W4A8``; None for FP32
    ranges, percentile, sampler, calibration_images, calibration_seed : of static quantization
    settings : of the method, and ``attributes`` where groups have a say
    code : version of the code that the run depends on
    """

    data: dict[str, Any]
    architecture: str
    training: dict[str, Any]
    method: str
    bits: str | None
    ranges: str | None
    percentile: float | None
    sampler: str | None
    calibration_images: int | None
    calibration_seed: int | None
    settings: dict[str, Any]
    code: str

    @cached_property
    def key(self) -> str:
        """Twenty hex digits: the hash of the run's content."""
        return fingerprint({entry.name: getattr(self, entry.name) for entry in fields(self)})

    @property
    def setting(self) -> str:
        """Images and settings that runs of one method may differ in, in words."""
        images = [f"{self.calibration_images} images"] if self.calibration_images else []
        named = {k: v for k, v in sorted(self.settings.items()) if k != "attributes"}
        own = [f"{name} {value}" for name, value in named.items() if value is not None]
        return ", ".join(images + own)

    def __str__(self) -> str:
        parts = (self.method, self.bits, self.ranges, self.sampler, self.setting)
        return " ".join(part for part in parts if part)

    def __hash__(self) -> int:
        return int(self.key, 16)


@dataclass(frozen=True)
class RunRecord:
    """Record of a run: predictions, counts, sizes and provenance.

    Attributes
    ----------
    counts : int64 (G, 2, 2, 2)
        Group x label x FP32 prediction x this run's prediction.
    scores : float16 (N,)
        Margin of every test image; its sign is the prediction.
    cells : int16 (N,)
        Group number x 2 + label of every test image.
    size_bytes : int
        Weights as they would be stored.
    seconds : float
        Wall time of the run.
    measures, provenance, report : mappings
        Further figures, where they came from, and what the quantizer did.
    """

    run: Run
    attributes: tuple[str, ...]
    groups: tuple[str, ...]
    counts: NDArray[np.int64]
    scores: NDArray[np.float16]
    cells: NDArray[np.int16]
    size_bytes: int
    seconds: float
    measures: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


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
        except _Damaged as error:
            self._set_aside(path, str(error))
            return False
        except _Foreign:
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
        """One run's table, checked: of this format, whole, and of the run that its name says."""
        table = self._table(self.path(key))
        metadata = table.schema.metadata or {}
        form = metadata.get(FORMAT_KEY)
        if form is None:
            raise _Damaged("it is a table of something else")
        if form != str(FORMAT).encode():
            raise _Foreign(f"its format is {form.decode(errors='replace')}, not {FORMAT}")
        missing = SCHEMA.keys() - set(table.column_names)
        if missing or table.num_rows != 1:
            raise _Damaged("it does not hold the columns of one run")
        found, content = table["key"][0].as_py(), table["run"][0].as_py()
        if found != key:
            raise _Damaged(f"it holds run {found}")
        try:
            run = json.loads(content)
            named = fingerprint(run)  # written before there was a checksum, its name is one
        except ValueError as error:
            raise _Damaged(str(error)) from None
        if set(run) != {entry.name for entry in fields(Run)}:
            raise _Foreign("it was written by another version of fairq_utils")
        if named != key:
            raise _Damaged(f"it holds run {named}")
        return table

    def _table(self, path: str) -> pa.Table:
        """A file's table, checked where it has a checksum."""
        content = self.content(path)
        try:
            table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
            expected = (table.schema.metadata or {}).get(CHECKSUM)
            found = expected and _checksum(table)
        except Exception as error:  # what is raised depends on which byte is another
            raise _Damaged(next(iter(str(error).splitlines()), type(error).__name__)) from error
        if found != expected:
            raise _Damaged("it does not match its checksum")
        return table

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
        run = asdict(record.run)
        row = {
            "key": record.run.key,
            "run": json.dumps(run, sort_keys=True),
            **{k: run[k] for k in FLAT},
            "training_seed": run["training"].get("seed"),
            "attributes": list(record.attributes),
            "groups": list(record.groups),
            "counts": np.asarray(record.counts, np.int64).ravel(),
            "scores": np.asarray(record.scores, np.float16),
            "cells": np.asarray(record.cells, np.int16),
            "size_bytes": record.size_bytes,
            "seconds": record.seconds,
            "measures": json.dumps(record.measures, sort_keys=True),
            "provenance": json.dumps(record.provenance, sort_keys=True),
            "report": json.dumps(record.report, sort_keys=True),
        }
        table = pa.table({name: pa.array([value], SCHEMA[name]) for name, value in row.items()})
        self._put(
            self.path(record.run.key),
            table.replace_schema_metadata({FORMAT_KEY: str(FORMAT).encode()}),
        )

    def read(self, key: str) -> RunRecord:
        """Read one run.

        Raises
        ------
        LedgerError
            It is not there, or damaged.
        """
        path = self.path(key)
        try:
            row = self._run(key).to_pylist()[0]
        except FileNotFoundError:
            raise LedgerError(f"{path}: the ledger has no such run; run the study first") from None
        except (_Damaged, _Foreign) as error:
            what = "is damaged" if isinstance(error, _Damaged) else "is none of this version"
            raise LedgerError(
                f"{path}: this run's file {what} ({error}); delete it and the run is computed again"
            ) from error
        groups = tuple(row["groups"])
        return RunRecord(
            run=Run(**json.loads(row["run"])),
            attributes=tuple(row["attributes"]),
            groups=groups,
            counts=np.array(row["counts"], np.int64).reshape(len(groups), 2, 2, 2),
            scores=np.array(row["scores"], np.float16),
            cells=np.array(row["cells"], np.int16),
            size_bytes=row["size_bytes"],
            seconds=row["seconds"],
            measures=json.loads(row["measures"]),
            provenance=json.loads(row["provenance"]),
            report=json.loads(row["report"]),
        )

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
        rows = []
        for table in self._tables():
            row = table.select([c for c in SCHEMA if c not in ("scores", "cells")]).to_pylist()[0]
            rows.append(
                {
                    "key": row["key"],
                    **_flat(json.loads(row["run"])),
                    **{name: row[name] for name in ("attributes", "groups", "counts")},
                    "size_bytes": row["size_bytes"],
                    "seconds": row["seconds"],
                    **_flat({name: json.loads(row[name]) for name in ("measures", "provenance")}),
                }
            )
        return pd.DataFrame(rows)

    def compact(self, target: str | os.PathLike[str]) -> None:
        """Write all runs as one Parquet file, per-image columns included."""
        tables = [table.select(list(SCHEMA)).replace_schema_metadata() for table in self._tables()]
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
            except (_Damaged, _Foreign) as error:
                warnings.warn(
                    f"{self.path(key)}: left out, since this is no whole run ({error}); remove it, "
                    "or run its study again",
                    stacklevel=4,
                )

    def read_table(self, name: str) -> pd.DataFrame | None:
        """A table kept beside the runs, or None where there is none that can be read."""
        path = posixpath.join(self.root, "tables", f"{name}.parquet")
        try:
            return self._table(path).to_pandas()
        except FileNotFoundError:
            return None
        except _Damaged as error:
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
        metadata = dict(table.schema.metadata or {})
        table = table.replace_schema_metadata(metadata | {CHECKSUM: _checksum(table)})
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


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Values by their paths, lists in words.

    Examples
    --------
    >>> _flat({"training": {"seed": 1}, "attributes": ["gender", "age"]})
    {'training.seed': 1, 'attributes': 'gender, age'}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{path}{name}.")
        else:
            words = isinstance(value, list)
            found[f"{path}{name}"] = ", ".join(map(str, value)) if words else value
    return found


def _checksum(table: pa.Table) -> bytes:
    """SHA-256 of a table's values, with their names and types, and of what is said of them."""
    found = hashlib.sha256()
    metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != CHECKSUM}
    found.update(repr(sorted(metadata.items())).encode())
    for name in sorted(table.column_names):
        column = table[name].combine_chunks()
        listed = pa.types.is_list(column.type)
        values = column.flatten() if listed else column
        lengths = column.value_lengths().to_pylist() if listed else []
        numeric = not values.null_count and pa.types.is_primitive(values.type)
        content = values.to_numpy(zero_copy_only=False).tobytes() if numeric else values.to_pylist()
        found.update(repr((name, str(values.type), lengths, content)).encode())
    return found.hexdigest().encode()


FLAT = (
    "architecture",
    "method",
    "bits",
    "ranges",
    "percentile",
    "sampler",
    "calibration_images",
    "calibration_seed",
    "code",
)

SCHEMA: dict[str, pa.DataType] = {
    "key": pa.string(),
    "run": pa.string(),
    "architecture": pa.string(),
    "method": pa.string(),
    "bits": pa.string(),
    "ranges": pa.string(),
    "percentile": pa.float64(),
    "sampler": pa.string(),
    "calibration_images": pa.int64(),
    "calibration_seed": pa.int64(),
    "code": pa.string(),
    "training_seed": pa.int64(),
    "attributes": pa.list_(pa.string()),
    "groups": pa.list_(pa.string()),
    "counts": pa.list_(pa.int64()),
    "scores": pa.list_(pa.float16()),
    "cells": pa.list_(pa.int16()),
    "size_bytes": pa.int64(),
    "seconds": pa.float64(),
    "measures": pa.string(),
    "provenance": pa.string(),
    "report": pa.string(),
}
