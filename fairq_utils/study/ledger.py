"""The store of runs: one run, one file, written whole or not at all.

A run is named by its content, so the same run asked twice is computed once, and a study that was
killed goes on from the files that exist. Every file is written under a temporary name and renamed,
which is atomic on a local disk and one put on an object store.
"""

from __future__ import annotations

import json
import os
import posixpath
import uuid
import warnings
from collections.abc import Iterator
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

from fairq_utils.errors import Fault
from fairq_utils.fingerprint import fingerprint

FORMAT = 2  # of the files; a file of another format is not read


class LedgerError(Fault):
    """The ledger cannot be read or written; names the file and the way out."""


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
        try:
            # Other machines write to the same store: what it held a while ago says nothing.
            self.fs, self.root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise LedgerError(f"execution.ledger: {self.url} cannot be opened: {error}") from error

    def __repr__(self) -> str:
        return f"Ledger({self.url!r})"

    def prepare(self) -> None:
        """Make the folder of runs; raises :class:`LedgerError` where it cannot be."""
        folder = posixpath.join(self.root, "runs")
        try:
            self.fs.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise LedgerError(
                f"execution.ledger: {folder} cannot be made ({error.strerror or error}); name "
                "another folder, or one for all with --work DIR"
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
        """True if a run is there and whole; a damaged file is set aside with a warning."""
        path = self.path(key)
        if not self.fs.exists(path):
            return False
        try:
            with self.fs.open(path, "rb") as stream:
                metadata = pq.read_metadata(stream).metadata or {}
        except (OSError, pa.ArrowException) as error:
            self._set_aside(path, str(error).splitlines()[0])
            return False
        return int(metadata.get(b"fairq_format", b"0")) == FORMAT

    def _set_aside(self, path: str, reason: str) -> None:
        warnings.warn(
            f"{path}: this run's file is damaged ({reason}); it is set aside as "
            f"{posixpath.basename(path)}.damaged and the run is computed again",
            stacklevel=3,
        )
        if self.fs.exists(path):
            self.fs.mv(path, f"{path}.damaged")

    def keys(self) -> list[str]:
        """Keys of all runs that are there, sorted."""
        folder = posixpath.join(self.root, "runs")
        if not self.fs.exists(folder):
            return []
        names = [posixpath.basename(p) for p in self.fs.ls(folder, detail=False)]
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
        table = table.replace_schema_metadata({"fairq_format": str(FORMAT)})
        self._put(self.path(record.run.key), table)

    def read(self, key: str) -> RunRecord:
        """Read one run.

        Raises
        ------
        LedgerError
            It is not there, or damaged.
        """
        path = self.path(key)
        try:
            with self.fs.open(path, "rb") as stream:
                row = pq.read_table(stream).to_pylist()[0]
        except FileNotFoundError:
            raise LedgerError(f"{path}: the ledger has no such run; run the study first") from None
        except (OSError, pa.ArrowException, IndexError) as error:
            raise LedgerError(
                f"{path}: this run's file is damaged ({str(error).splitlines()[0]}); "
                "delete it and the run is computed again"
            ) from error
        groups = tuple(row["groups"])
        try:
            run = Run(**json.loads(row["run"]))
        except TypeError:
            raise LedgerError(
                f"{path}: this run was written by another version of fairq_utils; delete it and "
                "the run is computed again"
            ) from None
        return RunRecord(
            run=run,
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
        """One row per run, without the per-image columns."""
        columns = [c for c in SCHEMA if c not in ("scores", "cells")]
        parts = []
        for key in self.keys():
            if self.contains(key):
                with self.fs.open(self.path(key), "rb") as stream:
                    parts.append(pq.read_table(stream, columns=columns).to_pandas())
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def compact(self, target: str | os.PathLike[str]) -> None:
        """Write all runs as one Parquet file, per-image columns included."""
        tables = []
        for key in self.keys():
            if self.contains(key):
                with self.fs.open(self.path(key), "rb") as stream:
                    tables.append(pq.read_table(stream))
        if not tables:
            raise LedgerError(f"{self.url}: the ledger holds no run to compact")
        other = Ledger(posixpath.dirname(os.fspath(target)) or ".")
        other._put(
            posixpath.join(other.root, posixpath.basename(os.fspath(target))),
            pa.concat_tables(tables),
        )

    def read_table(self, name: str) -> pd.DataFrame | None:
        """A table kept beside the runs, or None where there is none that can be read."""
        path = posixpath.join(self.root, "tables", f"{name}.parquet")
        if not self.fs.exists(path):
            return None
        try:
            with self.fs.open(path, "rb") as stream:
                return pq.read_table(stream).to_pandas()
        except (OSError, pa.ArrowException) as error:
            self._set_aside(path, str(error).splitlines()[0])
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
        folder, name = posixpath.split(path)
        temporary = posixpath.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self.fs.makedirs(folder, exist_ok=True)
            with self.fs.open(temporary, "wb") as stream:
                pq.write_table(table, stream)
                if self.local:
                    stream.flush()
                    os.fsync(stream.fileno())
            if self.local:
                os.replace(temporary, path)
            else:
                self.fs.mv(temporary, path)
        except OSError as error:
            raise LedgerError(
                f"{path}: could not be written ({error.strerror or error}); free some space or "
                "name another place in execution.ledger. The runs that are there are whole"
            ) from error
        finally:
            if self.fs.exists(temporary):
                self.fs.rm(temporary)


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
