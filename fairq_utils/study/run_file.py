"""A run's file: a Parquet table of one row, and the checks that it is whole and of its run.

A checksum over values, names and types stands in the table's metadata. Files that were written
before there was one are checked by their key, which is a hash of their content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fairq_utils.fingerprint import fingerprint
from fairq_utils.study.run_record import Run, RunRecord

FORMAT = 3  # of the files; a file of another format is not read
FORMAT_KEY, CHECKSUM = b"fairq_format", b"fairq_checksum"  # in a file's metadata
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
    "validation_scores": pa.list_(pa.float16()),
    "validation_cells": pa.list_(pa.int16()),
    "size_bytes": pa.int64(),
    "seconds": pa.float64(),
    "measures": pa.string(),
    "provenance": pa.string(),
    "report": pa.string(),
}
PER_IMAGE = ("scores", "cells", "validation_scores", "validation_cells")


class Damaged(ValueError):
    """A file's content is not what was written; says why, without the path."""


class Foreign(ValueError):
    """A sound Parquet file that is no run of this format."""


def to_table(record: RunRecord) -> pa.Table:
    """A record as a table of one row; columns are those of :data:`SCHEMA`."""
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
        "validation_scores": np.asarray(record.validation_scores, np.float16),
        "validation_cells": np.asarray(record.validation_cells, np.int16),
        "size_bytes": record.size_bytes,
        "seconds": record.seconds,
        "measures": json.dumps(record.measures, sort_keys=True),
        "provenance": json.dumps(record.provenance, sort_keys=True),
        "report": json.dumps(record.report, sort_keys=True),
    }
    table = pa.table({name: pa.array([value], SCHEMA[name]) for name, value in row.items()})
    return table.replace_schema_metadata({FORMAT_KEY: str(FORMAT).encode()})


def to_record(table: pa.Table) -> RunRecord:
    """The record that a table of one row holds."""
    row = table.to_pylist()[0]
    groups = tuple(row["groups"])
    return RunRecord(
        run=Run(**json.loads(row["run"])),
        attributes=tuple(row["attributes"]),
        groups=groups,
        counts=np.array(row["counts"], np.int64).reshape(len(groups), 2, 2, 2),
        scores=np.array(row["scores"], np.float16),
        cells=np.array(row["cells"], np.int16),
        validation_scores=np.array(row["validation_scores"], np.float16),
        validation_cells=np.array(row["validation_cells"], np.int16),
        size_bytes=row["size_bytes"],
        seconds=row["seconds"],
        measures=json.loads(row["measures"]),
        provenance=json.loads(row["provenance"]),
        report=json.loads(row["report"]),
    )


def to_row(table: pa.Table) -> dict[str, Any]:
    """A run as a row of figures: parameters by their paths, without per-image columns."""
    row = table.select([c for c in SCHEMA if c not in PER_IMAGE]).to_pylist()[0]
    return {
        "key": row["key"],
        **_flat(json.loads(row["run"])),
        **{name: row[name] for name in ("attributes", "groups", "counts")},
        "size_bytes": row["size_bytes"],
        "seconds": row["seconds"],
        **_flat({name: json.loads(row[name]) for name in ("measures", "provenance")}),
    }


def table_of(content: bytes) -> pa.Table:
    """The table in a file's bytes, checked where it has a checksum.

    Raises
    ------
    Damaged
        It cannot be read, or is not what was written.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        expected = (table.schema.metadata or {}).get(CHECKSUM)
        found = expected and _checksum(table)
    except Exception as error:  # what is raised depends on which byte is another
        raise Damaged(next(iter(str(error).splitlines()), type(error).__name__)) from error
    if found != expected:
        raise Damaged("it does not match its checksum")
    return table


def run_of(content: bytes, key: str) -> pa.Table:
    """The table of one run in a file's bytes: of this format, whole, and of that key.

    Raises
    ------
    Damaged
        See :func:`table_of`; or it is another run, or none.
    Foreign
        It is of another format or version.
    """
    table = table_of(content)
    metadata = table.schema.metadata or {}
    form = metadata.get(FORMAT_KEY)
    if form is None:
        raise Damaged("it is a table of something else")
    if form != str(FORMAT).encode():
        raise Foreign(f"its format is {form.decode(errors='replace')}, not {FORMAT}")
    missing = SCHEMA.keys() - set(table.column_names)
    if missing or table.num_rows != 1:
        raise Damaged("it does not hold the columns of one run")
    found, said = table["key"][0].as_py(), table["run"][0].as_py()
    if found != key:
        raise Damaged(f"it holds run {found}")
    try:
        run = json.loads(said)
        named = fingerprint(run)  # written before there was a checksum, its name is one
    except ValueError as error:
        raise Damaged(str(error)) from None
    if set(run) != {entry.name for entry in fields(Run)}:
        raise Foreign("it was written by another version of fairq_utils")
    if named != key:
        raise Damaged(f"it holds run {named}")
    return table


def with_checksum(table: pa.Table) -> pa.Table:
    """The table with the checksum of its content in its metadata."""
    metadata = dict(table.schema.metadata or {})
    return table.replace_schema_metadata(metadata | {CHECKSUM: _checksum(table)})


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
