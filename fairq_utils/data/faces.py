"""Images with a target and demographics: :class:`FaceData`, in memory or mapped from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

Index = int | slice | Tensor | NDArray[Any] | Sequence[int]


class StoredImages:
    """Rows of an ``images.npy`` of uint8 (M, 3, S, S), read when they are indexed.

    What is indexed is a copy, so that changing it changes nothing on disk. The pages that were read
    belong to the system, which takes them back when memory is short. A copy sent to another process
    is the path and the rows.

    Parameters
    ----------
    path : of the array
    rows : int64 (N,), optional
        Which of its rows these are, all unless named.
    """

    ndim = 4
    dtype = torch.uint8

    def __init__(self, path: str | Path, rows: NDArray[np.int64] | None = None) -> None:
        self.path = Path(path)
        self._array: NDArray[np.uint8] = np.load(self.path, mmap_mode="r")
        self.rows = np.arange(len(self._array)) if rows is None else np.asarray(rows, np.int64)
        if len(self.rows) and not 0 <= self.rows.min() <= self.rows.max() < len(self._array):
            raise IndexError(f"{self.path}: rows go beyond its {len(self._array)} images")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""
        return torch.Size((len(self), *self._array.shape[1:]))

    def __getitem__(self, index: Index) -> Tensor:
        """A tensor (3, S, S) of one image, or (B, 3, S, S) of several."""
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        elif not isinstance(index, (int, np.integer, slice, np.ndarray)):
            index = np.asarray(index, np.int64)
        if isinstance(index, np.ndarray) and index.dtype == bool and len(index) != len(self):
            raise IndexError(f"a mask of {len(index)} for {len(self)} images")
        picked = self.rows[index]
        if isinstance(picked, np.ndarray) and not (len(picked) and _consecutive(picked)):
            return torch.from_numpy(np.asarray(self._array[picked]))  # a copy already
        block = slice(picked[0], picked[-1] + 1) if isinstance(picked, np.ndarray) else picked
        return torch.from_numpy(np.array(self._array[block], np.uint8, subok=False))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def split(self, size: int) -> Iterator[Tensor]:
        """Tensors of ``size`` images each, the last of what is left; one at a time in memory."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> StoredImages:
        """The images at these rows, none of them read."""
        return StoredImages(self.path, self.rows[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "rows": self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["rows"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"StoredImages({str(self.path)!r}, {len(self)} of {len(self._array)})"


Images = Tensor | StoredImages


@dataclass(frozen=True)
class FaceData:
    """Images with a binary target and sensitive attributes.

    Attributes
    ----------
    images : uint8 tensor (N, 3, H, W), or images on disk that read like one
    target : int8 (N,)
        1 where the target attribute (Smiling, for rendered people) is present.
    groups : DataFrame of N rows
        One categorical column per sensitive attribute.
    split : array of str (N,)
        ``train``, ``calibration``, ``validation`` or ``test``.
    factors : DataFrame of N rows, optional
        Continuous coefficients that made the image, where they are known.
    meta : dict
        Source, licence, ``classes`` (names of a target of 0 and of 1) and whatever else
        says where the images come from.
    """

    images: Images
    target: NDArray[np.int8]
    groups: pd.DataFrame
    split: NDArray[np.str_]
    factors: pd.DataFrame | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.target)
        lengths = {"images": len(self.images), "groups": len(self.groups), "split": len(self.split)}
        if self.factors is not None:
            lengths["factors"] = len(self.factors)
        for name, length in lengths.items():
            if length != n:
                raise ValueError(f"FaceData.{name} has {length} rows but target has {n}")
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError("FaceData.images must be a uint8 tensor of shape (N, 3, H, W)")

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> FaceData:
        """The same data at these rows; images on disk stay there."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return FaceData(
            images=self.images.take(rows)
            if isinstance(self.images, StoredImages)
            else self.images[torch.from_numpy(rows)],
            target=self.target[rows],
            groups=self.groups.iloc[rows].reset_index(drop=True),
            split=self.split[rows],
            factors=None
            if self.factors is None
            else self.factors.iloc[rows].reset_index(drop=True),
            meta=self.meta,
        )

    def subset(self, split: str) -> FaceData:
        """The rows of one split; an unknown or empty split is an error."""
        rows = self.split == split
        if not rows.any():
            known = ", ".join(sorted(set(self.split.tolist())))
            raise ValueError(f"split: {split!r} has no images; there are {known}")
        return self.take(rows)

    def describe(self) -> pd.DataFrame:
        """Images and share of the target in every cell of the sensitive attributes."""
        table = self.groups.assign(images=1, base_rate=self.target.astype(float))
        grouped = table.groupby(list(self.groups.columns), observed=False)
        return grouped.agg({"images": "sum", "base_rate": "mean"}).reset_index()


def _consecutive(rows: NDArray[np.int64]) -> bool:
    return bool(rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all())
