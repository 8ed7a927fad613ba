"""A list of a collection's photographs and who is in them, before a pixel is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Finding:
    """Something in a collection that cannot be used as it is.

    Attributes
    ----------
    place : file, with the line or row where there is one, such as ``list_attr_celeba.txt:17``
    kind : one of :data:`KINDS`
    problem : what is wrong there, as half a sentence
    counts : whether an image is lost by it, so that it counts towards ``max_bad``
    """

    place: str
    kind: str
    problem: str
    counts: bool = True


KINDS = (
    "name",  # of a file, cannot be parsed
    "label",  # missing, or not one of the values
    "missing",  # a label without its image
    "unlabelled",  # an image without its label
    "unreadable",  # truncated, empty, or not an image
    "size",  # of another size than the collection's images
    "duplicate",  # the same image twice
    "unsafe",  # a path that leaves the folder, or an image too large to be one
)


@dataclass(frozen=True)
class Listing:
    """The images of a collection.

    Readers list them by their names. :func:`fairq_utils.data.photographs.reading.listing` puts
    them in the order of their places by hash, so that the first so many are a sample and not, where
    a name tells an age, the youngest.

    Attributes
    ----------
    name : of the collection
    files : array of str (N,)
        What names each image: its path under the root, or ``FILE.parquet#ROW``.
    target : int8 (N,)
    groups : DataFrame of N rows
        One categorical column per sensitive attribute.
    split : array of str (N,)
        ``train``, ``calibration``, ``validation`` or ``test``.
    read : callable
        ``read(i)`` gives the encoded bytes of image ``i``; several threads may call it.
    findings : what was left out, and why
    meta : source, licence, citation, layout, target and how splits were made
    state : callable, optional
        Digest of the sizes and modification times of the files that ``read`` reads.
    keys : array of str (N,), optional
        What decides an image's split: its name without folder and distribution.
    stored : int64 (N,), optional
        Where each image stands among the files, which are quickest to read in that order; as
        they are listed unless named.
    """

    name: str
    files: NDArray[np.str_]
    target: NDArray[np.int8]
    groups: pd.DataFrame
    split: NDArray[np.str_]
    read: Callable[[int], bytes] = field(repr=False, compare=False)
    findings: tuple[Finding, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    state: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    keys: NDArray[np.str_] | None = field(default=None, repr=False)
    stored: NDArray[np.int64] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("target", "groups", "split"):
            if len(getattr(self, name)) != len(self.files):
                raise ValueError(
                    f"Listing.{name} has {len(getattr(self, name))} rows but there are "
                    f"{len(self.files)} files"
                )

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, targets, groups and splits: what decides a study's people."""
        table = self.groups.astype(str).assign(
            file=self.files, target=self.target, split=self.split
        )
        return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()

    def digest_of(self, split: str, images: NDArray[np.str_] | None = None) -> str:
        """SHA-256 of names, targets and groups in one split: what decides its people.

        With a digest of each of the N images, it is of what these show as well.
        """
        rows = self.split == split
        table = self.groups[rows].astype(str)
        table = table.assign(file=self.files[rows], target=self.target[rows])
        if images is not None:
            table = table.assign(picture=images[rows])
        return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()

    def take(self, rows: NDArray[np.int64]) -> Listing:
        """The same collection at these rows; findings and meta stay."""
        read = self.read
        return replace(
            self,
            files=self.files[rows],
            target=self.target[rows],
            groups=self.groups.iloc[rows].reset_index(drop=True),
            split=self.split[rows],
            read=lambda i: read(int(rows[i])),
            keys=None if self.keys is None else self.keys[rows],
            stored=rows if self.stored is None else self.stored[rows],
        )

    def as_stored(self) -> NDArray[np.int64]:
        """Rows in the order in which files are quickest to read."""
        if self.stored is None:
            return np.arange(len(self))
        return np.argsort(self.stored, kind="stable")
