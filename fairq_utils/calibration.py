"""Who is in the calibration set: samplers over demographic groups, all of equal size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Sampler = Callable[
    [pd.DataFrame, NDArray[np.int8], int, np.random.Generator, Sequence[str]], Indices
]


def _at_random(
    groups: pd.DataFrame,
    target: NDArray[np.int8],
    count: int,
    rng: np.random.Generator,
    attributes: Sequence[str],
) -> Indices:
    return rng.permutation(len(target))[:count]


def _label_balanced(
    groups: pd.DataFrame,
    target: NDArray[np.int8],
    count: int,
    rng: np.random.Generator,
    attributes: Sequence[str],
) -> Indices:
    return _evenly(np.array([f"label {y}" for y in target]), count, rng)


def _group_balanced(
    groups: pd.DataFrame,
    target: NDArray[np.int8],
    count: int,
    rng: np.random.Generator,
    attributes: Sequence[str],
) -> Indices:
    first, *rest = (groups[attribute].astype(str) for attribute in attributes)
    cells = first.str.cat(rest, sep=" ") if rest else first
    return _evenly(cells.to_numpy(), count, rng)


def _evenly(cells: NDArray[np.str_], count: int, rng: np.random.Generator) -> Indices:
    """The same number from every cell; a remainder goes to cells drawn at random."""
    names = np.unique(cells)
    quota = np.full(len(names), count // len(names))
    quota[rng.permutation(len(names))[: count % len(names)]] += 1
    parts = []
    for name, wanted in zip(names, quota, strict=True):
        members = np.flatnonzero(cells == name)
        if len(members) < wanted:
            raise ValueError(
                f"calibration: the group {name!r} has {len(members)} images in the pool where "
                f"{wanted} are needed; enlarge data.calibration, or calibrate on fewer images"
            )
        parts.append(rng.permutation(members)[:wanted])
    return rng.permutation(np.concatenate(parts))


SAMPLERS: dict[str, Sampler] = {
    "random": _at_random,
    "label_balanced": _label_balanced,
    "group_balanced": _group_balanced,
}


def draw(
    sampler: str,
    groups: pd.DataFrame,
    target: NDArray[np.int8],
    count: int,
    *,
    seed: int,
    attributes: Sequence[str] = ("gender", "age"),
) -> Indices:
    """Draw a calibration set.

    Parameters
    ----------
    sampler : str
        ``random``, ``label_balanced`` (as many of each label), or ``group_balanced`` (as many of
        each cell of ``attributes``).
    groups : DataFrame of N rows
    target : int8 (N,)
    count : int
        Images to draw; the same for every sampler, without replacement.
    seed : int

    Returns
    -------
    int64 (count,)
        Distinct rows of the pool, in random order.

    Raises
    ------
    ValueError
        Unknown sampler, a pool that is too small, or a group with too few images (it is named).
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"calibration: sampler {sampler!r} is not one of {', '.join(SAMPLERS)}")
    if not 1 <= count <= len(target):
        raise ValueError(
            f"calibration: {count} images are asked for from a pool of {len(target)}; "
            "ask for at least 1 and no more than there are"
        )
    return SAMPLERS[sampler](groups, target, count, np.random.default_rng(seed), attributes)
