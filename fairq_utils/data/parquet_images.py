"""Images in Parquet as Hugging Face writes them: a column ``image`` of bytes and path."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fairq_utils.data.decoding import Unreadable
from fairq_utils.errors import BadInput

SHARD = re.compile(r"(?P<split>[a-z]+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")
# Several threads read near each other, in row groups of a hundred images or of thousands: so many
# bytes of them stay in memory, and never fewer than one that ends and one that begins.
KEPT_BYTES, KEPT_GROUPS = 2**27, 2


@dataclass
class ParquetBytes:
    """Encoded images in the rows of Parquet files.

    Attributes
    ----------
    paths : shards
    rows : N pairs of shard and row in it
    """

    paths: tuple[Path, ...]
    rows: tuple[tuple[int, int], ...]
    _groups: OrderedDict[tuple[int, int], tuple[int, Any]] = field(
        default_factory=OrderedDict, repr=False
    )
    _starts: dict[int, list[int]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, i: int) -> bytes:
        """The bytes in row ``i``, none where the row holds no image; Unreadable if damaged."""
        shard, row = self.rows[i]
        try:
            with self._lock:
                start, column = self._group(shard, row)
        except (pa.ArrowException, OSError) as error:
            # Arrow says damage, too, with an OSError, but then without a number of the system's.
            if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
                raise
            reason = f"{self.paths[shard].name}: {str(error).splitlines()[0]}"
            raise Unreadable(f"cannot be read ({reason})") from error
        return column[row - start].as_py() or b""

    def _group(self, shard: int, row: int) -> tuple[int, Any]:
        """First row of the row group that holds this one, and its images."""
        if shard not in self._starts:
            metadata = pq.ParquetFile(self.paths[shard]).metadata
            starts = [0]
            for group in range(metadata.num_row_groups):
                starts.append(starts[-1] + metadata.row_group(group).num_rows)
            self._starts[shard] = starts
        starts = self._starts[shard]
        group = next(g for g in range(len(starts) - 1) if starts[g] <= row < starts[g + 1])
        key = (shard, group)
        if key not in self._groups:
            with pq.ParquetFile(self.paths[shard]) as file:
                table = file.read_row_group(group, columns=["image.bytes"])
            column = table.column("image").combine_chunks()
            self._groups[key] = starts[group], column.field("bytes")
            while len(self._groups) > KEPT_GROUPS and self._bytes() > KEPT_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _bytes(self) -> int:
        return sum(int(column.nbytes) for _, column in self._groups.values())

    def state(self) -> str:
        """Digest of the shards' names, sizes and modification times."""
        digest = hashlib.sha256()
        for path in self.paths:
            seen = path.stat()
            digest.update(f"{path.name} {seen.st_size} {seen.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def shards(folder: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """The Parquet files of each split, in order; a missing shard is refused."""
    found: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for path in sorted(folder.glob("*.parquet")):
        match = SHARD.fullmatch(path.name)
        if match is None or match["split"] not in splits:
            raise BadInput(
                f"{path}: this is no shard of {', '.join(splits)}, such as "
                f"{splits[0]}-00000-of-00003.parquet; name a folder with these alone"
            )
        split, count = match["split"], int(match["count"])
        if counts.setdefault(split, count) != count:
            raise BadInput(
                f"{path}: this is one of {count} shards and another is one of {counts[split]}; "
                "keep one download's files"
            )
        found.setdefault(split, {})[int(match["number"])] = path
    for split, numbered in found.items():
        missing = [i for i in range(counts[split]) if i not in numbered]
        if missing:
            raise BadInput(
                f"{folder}: {split}-{missing[0]:05d}-of-{counts[split]:05d}.parquet is missing "
                f"({len(numbered)} of {counts[split]} shards are there); fetch it"
            )
    return {split: [numbered[i] for i in sorted(numbered)] for split, numbered in found.items()}


def read_columns(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    """Columns of a shard and ``path``, what the image was called (None if it is not said).

    Raises
    ------
    BadInput
        The file is damaged, or lacks a column.
    """
    try:
        schema = pq.read_schema(path)
        twice = next(
            (name for i, name in enumerate(schema.names) if name in schema.names[:i]), None
        )
        if twice is not None:
            raise BadInput(f"{path}: two columns have the name {twice}; name each once")
        image = schema.field("image").type if "image" in schema.names else None
        if image is None or not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
            raise BadInput(
                f"{path}: there is no column image of bytes and path; the columns are "
                f"{', '.join(schema.names[:8])}"
            )
        for name in wanted:
            if name not in schema.names:
                raise BadInput(
                    f"{path}: there is no column {name}; the columns are "
                    f"{', '.join(schema.names[:8])}{' ...' if len(schema.names) > 8 else ''}"
                )
        named = image.get_field_index("path") >= 0
        with pq.ParquetFile(path) as file:
            table = file.read(columns=[*wanted, *(["image.path"] if named else [])])
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{path}: this Parquet file cannot be read ({str(error).splitlines()[0]}); fetch it "
            "again"
        ) from error
    columns: dict[str, Any] = {name: table.column(name).to_pylist() for name in wanted}
    rows = table.column("image").to_pylist() if named else [None] * table.num_rows
    columns["path"] = [row["path"] if row else None for row in rows]
    return pd.DataFrame(columns, dtype=object)


def class_names(path: Path, column: str) -> list[str] | None:
    """Names that a column's integers stand for, from what Hugging Face keeps in the file."""
    metadata: Mapping[bytes, bytes] = pq.read_schema(path).metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def gather(
    root: Path, folder: Path, splits: Mapping[str, str], wanted: Sequence[str]
) -> tuple[pd.DataFrame, tuple[Path, ...]]:
    """The rows of all shards but for their images.

    Parameters
    ----------
    splits : name of a split in the shards' names -> official split

    Returns
    -------
    table, paths
        Columns ``wanted``, ``file`` (``FILE.parquet#ROW``), ``split``, ``shard`` (a number in
        ``paths``), ``row`` in it, and ``key``, what decides the split of an image.
    """
    found = shards(folder, tuple(splits))
    for split in dict.fromkeys(splits.values()):
        if not any(splits[name] == split for name in found):
            raise BadInput(
                f"{folder}: there is no {split}-*.parquet; fetch the shards of all splits"
            )
    tables: list[pd.DataFrame] = []
    paths: list[Path] = []
    for name, parts in found.items():
        for path in parts:
            table = read_columns(path, wanted)
            shown = path.relative_to(root)
            tables.append(
                table.assign(
                    file=[f"{shown}#{row}" for row in range(len(table))],
                    split=splits[name],
                    shard=len(paths),
                    row=range(len(table)),
                )
            )
            paths.append(path)
    table = pd.concat(tables, ignore_index=True)
    return table.assign(key=_keys(table)), tuple(paths)


def _keys(table: pd.DataFrame) -> pd.Series:
    """The image's own name where every row tells another; else its number in its split.

    That number stays when shards are cut differently.
    """
    names = table.path.map(lambda path: str(path).rsplit("/", 1)[-1] if path else "")
    if names.all() and names.is_unique:
        return names
    return table.split + "#" + table.groupby("split").cumcount().astype(str)
