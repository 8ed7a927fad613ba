"""Dials of one group's images, whoever else is in the population."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.data.appearance import Floats
from fairq_utils.data.questions import ATTRIBUTES


@dataclass(frozen=True)
class GroupDials:
    """Differences of one group's people, in each of their images.

    Attributes
    ----------
    difficulty : float or None
        In place of the population's; None leaves it.
    light : float
        Factor on sun and sky; sensor noise stays, so that a dark image has less contrast.
    reflectance : float
        Factor on the reflectance of skin and lips.
    """

    difficulty: float | None = None
    light: float = 1.0
    reflectance: float = 1.0

    def __post_init__(self) -> None:
        if self.difficulty is not None and not 0 <= self.difficulty <= 3:
            raise ValueError(f"difficulty: {self.difficulty} is not between 0 and 3")
        for name in ("light", "reflectance"):
            if not 0 < getattr(self, name) <= 2:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0 and at most 2")


def _members(groups: pd.DataFrame, value: str) -> NDArray[np.bool_]:
    attribute = next(name for name, values in ATTRIBUTES.items() if value in values)
    return (groups[attribute] == value).to_numpy()


def difficulties(usual: float, of_group: Mapping[str, GroupDials], groups: pd.DataFrame) -> Floats:
    """Difficulty of each person's smile, (N,); the largest of their groups', or the usual one."""
    own = np.full(len(groups), -1.0)
    for value, dials in of_group.items():
        if dials.difficulty is not None:
            inside = _members(groups, value)
            own[inside] = np.maximum(own[inside], dials.difficulty)
    return np.where(own < 0, usual, own)


def dim(look: dict[str, Floats], of_group: Mapping[str, GroupDials], groups: pd.DataFrame) -> None:
    """Put the factors of groups on light and reflectance, in place."""
    for value, dials in of_group.items():
        inside = _members(groups, value)
        for factor, names in (
            (dials.light, ("light_colour", "ambient")),
            (dials.reflectance, ("skin", "lip")),
        ):
            for name in names:
                look[name][inside] *= factor
