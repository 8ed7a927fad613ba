"""Pictures that stay on disk: rows of a memory-mapped array that reads like a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Index = int | slice | Tensor | NDArray[Any] | Sequence[int]


class Pictures:
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
            raise IndexError(f"{self.path}: rows go beyond its {len(self._array)} pictures")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""
        return torch.Size((len(self), *self._array.shape[1:]))

    def __getitem__(self, index: Index) -> Tensor:
        """A tensor (3, S, S) of one picture, or (B, 3, S, S) of several."""
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        elif not isinstance(index, (int, np.integer, slice, np.ndarray)):
            index = np.asarray(index, np.int64)
        if isinstance(index, np.ndarray) and index.dtype == bool and len(index) != len(self):
            raise IndexError(f"a mask of {len(index)} for {len(self)} pictures")
        picked = self.rows[index]
        if isinstance(picked, np.ndarray) and not (len(picked) and _consecutive(picked)):
            return torch.from_numpy(np.asarray(self._array[picked]))  # a copy already
        block = slice(picked[0], picked[-1] + 1) if isinstance(picked, np.ndarray) else picked
        return torch.from_numpy(np.array(self._array[block], np.uint8, subok=False))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def split(self, size: int) -> Iterator[Tensor]:
        """Tensors of ``size`` pictures each, the last of what is left; one at a time in memory."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Pictures:
        """The pictures at these rows, none of them read."""
        return Pictures(self.path, self.rows[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "rows": self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["rows"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Pictures({str(self.path)!r}, {len(self)} of {len(self._array)})"


def _consecutive(rows: NDArray[np.int64]) -> bool:
    return bool(rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all())


Images = Tensor | Pictures
