"""Bootstrap replicates of counts: images, seeds and calibration draws.

Drawing n images with replacement and counting them is one multinomial draw over the cells that the
images fall in, so a replicate costs as much as there are cells, however many images there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[Any]
ROUNDING = 1e-6  # of a number of images that fractions add up to


@dataclass(frozen=True)
class SharedImages:
    """Predictions of several training seeds on the *same* images, counted by pattern.

    Tables of one seed each do not say that the seeds were tested on the same images, so a bootstrap
    of tables draws images anew for every seed and averages away what the image set as a whole did.
    Here the unit is an image: its group, its label, and the two predictions of every seed. Images
    that agree in all of these form a pattern; there are far fewer patterns than images, and one
    multinomial draw over the patterns moves all seeds together.

    Attributes
    ----------
    images : int64 (K,)
        Images of each pattern.
    cells : int64 (S, K)
        The cell of each pattern under each seed: ``((group * 2 + label) * 2 + reference) * 2 +
        compared``.
    groups : int
        Number of groups G.
    """

    images: NDArray[np.int64]
    cells: NDArray[np.int64]
    groups: int

    @property
    def tables(self) -> NDArray[np.int64]:
        """Counts of every seed, (S, G, 2, 2, 2)."""
        counts = [np.bincount(c, self.images, minlength=self.groups * 8) for c in self.cells]
        return np.stack(counts).astype(np.int64).reshape(-1, self.groups, 2, 2, 2)


def share_images(
    group: ArrayLike, label: ArrayLike, reference: ArrayLike, compared: ArrayLike
) -> SharedImages:
    """Count the images of several seeds by pattern; see :class:`SharedImages`.

    Parameters
    ----------
    group : int (N,)
        0 ... G - 1, one per image.
    label : 0 or 1, (N,)
    reference, compared : 0 or 1, (S, N)
        Predictions of each seed's two models, images in the same order throughout.

    Raises
    ------
    ValueError
        Names the argument whose shape or values do not fit.

    Examples
    --------
    >>> shared = share_images([0, 0, 1], [1, 1, 0], [[1, 1, 0], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]])
    >>> shared.images  # two images of group 0 agree in everything
    array([2, 1])
    >>> shared.tables.shape
    (2, 2, 2, 2, 2)
    """
    place, truth = np.asarray(group), np.asarray(label)
    before, after = np.asarray(reference), np.asarray(compared)
    if place.ndim != 1 or not len(place) or place.min() < 0 or place.dtype.kind not in "iu":
        raise ValueError("group: must be a non-empty row of integers from 0 up")
    if truth.shape != place.shape:
        raise ValueError(f"label has shape {truth.shape}, group has {place.shape}")
    for name, values in (("reference", before), ("compared", after)):
        if values.ndim != 2 or values.shape[1] != len(place):
            raise ValueError(f"{name} has shape {values.shape}; it must be (seeds, {len(place)})")
    if before.shape != after.shape:
        raise ValueError(f"compared has {len(after)} seeds, reference has {len(before)}")
    for name, values in (("label", truth), ("reference", before), ("compared", after)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name}: some values are neither 0 nor 1")
    every = ((place * 2 + truth) * 2 + before) * 2 + after
    cells, images = np.unique(every.astype(np.int64), axis=1, return_counts=True)
    return SharedImages(images, cells, int(place.max()) + 1)


Source = Sequence[Counts] | Counts | SharedImages


def resample(
    tables: Source, replicates: int, seed: int, *, stratify: bool = False
) -> NDArray[np.int64]:
    """Bootstrap replicates of paired counts.

    With several tables (one per training seed) the seeds are drawn first, then the images within
    each: the hierarchical bootstrap (Davison and Hinkley 1997, section 3.8). Calibration draws that
    are crossed with the seeds are drawn once per replicate, the same for all seeds (the pigeonhole
    bootstrap, Owen 2007). With :class:`SharedImages` one draw of images serves all seeds.

    Parameters
    ----------
    tables
        S arrays (G, 2, 2, 2), or S arrays (C, G, 2, 2, 2) for C calibration draws, or
        :class:`SharedImages`: group x label x reference prediction x compared prediction.
    replicates : int
    seed : int
        Of the resampling.
    stratify : bool
        Keep the size of every group as it is, as if a fixed number of images had been sought out
        in each. Otherwise group sizes vary as they do in a random sample of people.

    Returns
    -------
    int64 (S * C, replicates, G, 2, 2, 2)
        Slot s of replicate b is a resampled image set of the seed drawn for that slot.

    Raises
    ------
    ValueError
        Names the table that counts no image or has another shape.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.array([[[[8, 1], [0, 1]], [[1, 0], [2, 7]]]])
    >>> drawn = resample([table], 1000, seed=0)
    >>> drawn.shape, set(drawn.sum(axis=(2, 3, 4, 5)).ravel().tolist())
    ((1, 1000, 1, 2, 2, 2), {20})
    """
    if replicates < 1:
        raise ValueError(f"replicates: {replicates} is not at least 1")
    rng = np.random.default_rng(seed)
    if isinstance(tables, SharedImages):
        return _draw_shared(tables, replicates, rng, stratify)
    stacked = stack(tables)
    seeds, draws = stacked.shape[:2]
    whole = stacked.sum(axis=(2, 3, 4, 5), dtype=float)
    if np.abs(whole - np.rint(whole)).max() > ROUNDING:
        raise ValueError(
            "tables: hold sums of weights (sample_weight), and images are drawn one by one; give "
            "counts without weights"
        )
    # (S, C, strata, cells): without strata all groups are one.
    cells = stacked.reshape(seeds, draws, stacked.shape[2] if stratify else 1, -1)
    # Null models put fractions of images into cells; how many images are drawn stays whole.
    totals = np.rint(cells.sum(axis=-1)).astype(np.int64)
    shares = cells / np.maximum(totals, 1)[..., None]
    # A group without images draws none; any proper distribution serves.
    shares[..., 0] = np.where(totals == 0, 1.0, shares[..., 0])
    if seeds == draws == 1:
        size = (replicates, cells.shape[2])
        drawn = rng.multinomial(totals[0, 0], shares[0, 0], size=size)
    else:
        by_seed = rng.integers(seeds, size=(seeds, 1, replicates))
        by_draw = rng.integers(draws, size=(1, draws, replicates))
        drawn = rng.multinomial(totals[by_seed, by_draw], shares[by_seed, by_draw])
    return drawn.reshape(seeds * draws, replicates, *stacked.shape[2:])


def stack(tables: Sequence[Counts] | Counts) -> NDArray[Any]:
    """Tables as one array (S, C, G, 2, 2, 2), checked; C is 1 unless calibration draws are crossed.

    Raises
    ------
    ValueError
        Names the table that is empty, negative, or of another shape than the first.
    """
    if not len(tables):
        raise ValueError("tables is empty: there is nothing to resample")
    arrays = [np.asarray(t) for t in tables]
    for s, table in enumerate(arrays):
        if table.ndim not in (4, 5) or table.shape[-3:] != (2, 2, 2):
            raise ValueError(
                f"tables[{s}] has shape {table.shape}; it must be (groups, 2, 2, 2), or "
                "(calibration draws, groups, 2, 2, 2)"
            )
        if table.shape != arrays[0].shape:
            raise ValueError(f"tables[{s}] has shape {table.shape}, tables[0] {arrays[0].shape}")
        if (table < 0).any():
            raise ValueError(f"tables[{s}] has negative counts")
        if (table.sum(axis=(-4, -3, -2, -1)) == 0).any():
            raise ValueError(f"tables[{s}] counts no image")
    stacked = np.stack(arrays)
    return stacked if stacked.ndim == 6 else stacked[:, None]


def _draw_shared(
    shared: SharedImages, replicates: int, rng: np.random.Generator, stratify: bool
) -> NDArray[np.int64]:
    seeds, width = len(shared.cells), shared.groups * 8
    group = shared.cells[0] // 8
    strata = [group == g for g in range(shared.groups)] if stratify else [group >= 0]
    weights = np.zeros((replicates, len(shared.images)))
    for inside in strata:
        if inside.any():
            images = shared.images[inside]
            weights[:, inside] = rng.multinomial(
                images.sum(), images / images.sum(), size=replicates
            )
    by_seed = np.stack([weights @ np.eye(width)[cells] for cells in shared.cells])
    which = rng.integers(seeds, size=(seeds, replicates))
    drawn = by_seed[which, np.arange(replicates)].astype(np.int64)
    return drawn.reshape(seeds, replicates, shared.groups, 2, 2, 2)
