"""What every reader returns: pictures, a target, and who is in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fairq_utils.data.pictures import Images, Pictures


@dataclass(frozen=True)
class FaceData:
    """Pictures with a binary target and sensitive attributes.

    Attributes
    ----------
    images : uint8 tensor (N, 3, H, W), or pictures on disk that read like one
    target : int8 (N,)
        1 where the target attribute (Smiling, for rendered people) is present.
    groups : DataFrame of N rows
        One categorical column per sensitive attribute.
    split : array of str (N,)
        ``train``, ``calibration``, ``validation`` or ``test``.
    factors : DataFrame of N rows, optional
        Continuous coefficients that made the picture, where they are known.
    meta : dict
        Source, licence, ``answers`` (what a target of 0 and of 1 means, in words) and whatever else
        says where the pictures come from.
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
        """The same data at these rows; pictures on disk stay there."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return FaceData(
            images=self.images.take(rows)
            if isinstance(self.images, Pictures)
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
