"""Bootstrap replicates of counts: images, seeds and calibration draws.

Drawing n images with replacement and counting them is one multinomial draw over the cells that the
images fall in, so a replicate costs as much as there are cells, however many images there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[Any]
Floats = NDArray[np.float64]
AT_ONCE = 1000  # replicates, whose weights of patterns stand in memory together
WEIGHTED = (
    "tables: hold sums of weights (sample_weight), and images are drawn one by one; give counts "
    "without weights"
)
ROUNDING = 1e-6  # of a number of images that fractions add up to


@dataclass(frozen=True)
class SharedImages:
    """Predictions of several training seeds on the *same* images, counted by pattern.

    Tables of one seed each do not say that the seeds were tested on the same images, so a bootstrap
    of tables draws images anew for every seed and averages away what the image set as a whole did.
    Here the unit is an image: its group, its label, and the two predictions of every run. Images
    that agree in all of these form a pattern; there are far fewer patterns than images, and one
    multinomial draw over the patterns moves all runs together.

    Attributes
    ----------
    images : int64 (K,)
        Images of each pattern.
    cells : int64 (S, C, K)
        The cell of each pattern under each training seed and calibration draw: ``((group * 2 +
        label) * 2 + reference) * 2 + compared``.
    groups : int
        Number of groups G.
    weights : float64 (K,), optional
        How many people of the population an image of a pattern stands for.
    strata : int64 (K,), optional
        Stratum of each pattern, of which the test set has a fixed number of images.
    """

    images: NDArray[np.int64]
    cells: NDArray[np.int64]
    groups: int
    weights: Floats | None = None
    strata: NDArray[np.int64] | None = None

    @property
    def tables(self) -> NDArray[Any]:
        """Counts of every run, or sums of weights, (S * C, G, 2, 2, 2)."""
        return self.counted(self.images[None])[:, 0]

    def counted(self, images: NDArray[Any]) -> NDArray[Any]:
        """Tables of all runs where a pattern has other numbers of images.

        Parameters
        ----------
        images : (R, K)

        Returns
        -------
        int64, or float64 where images are weighted, (S * C, R, G, 2, 2, 2)
        """
        width = self.groups * 8
        each = images if self.weights is None else images * self.weights
        runs = self.cells.reshape(-1, self.cells.shape[-1])
        found = np.stack([each.astype(float) @ np.eye(width)[cells] for cells in runs])
        if self.weights is None:  # sums of whole numbers: exact
            found = found.astype(np.int64)
        return found.reshape(len(runs), len(images), self.groups, 2, 2, 2)


def share_images(
    group: ArrayLike,
    label: ArrayLike,
    reference: ArrayLike,
    compared: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    stratum: ArrayLike | None = None,
) -> SharedImages:
    """Count the images of several seeds by pattern; see :class:`SharedImages`.

    Parameters
    ----------
    group : int (N,)
        0 ... G - 1, one per image.
    label : 0 or 1, (N,)
    reference, compared : 0 or 1, (S, N) or (S, C, N)
        Predictions of each seed's two models, or of each seed and calibration draw, images in the
        same order throughout.
    weight : (N,), optional
        Above 0; of a test set that has not the make-up of the population.
    stratum : int (N,), optional
        0 ... of images of which a fixed number was taken; they are resampled among themselves.

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
    if place.ndim != 1 or not len(place) or place.dtype.kind not in "iu" or place.min() < 0:
        raise ValueError("group: must be a non-empty row of integers from 0 up")
    one_each("label", truth, place)
    for name, values in (("reference", before), ("compared", after)):
        if values.ndim not in (2, 3) or values.shape[-1] != len(place):
            raise ValueError(
                f"{name} has shape {values.shape}; it must be (seeds, {len(place)}), or (seeds, "
                f"calibration draws, {len(place)})"
            )
    if before.shape != after.shape:
        raise ValueError(f"compared has shape {after.shape}, reference has {before.shape}")
    for name, values in (("label", truth), ("reference", before), ("compared", after)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name}: some values are neither 0 nor 1")
    runs = (len(before), 1 if before.ndim == 2 else before.shape[1])
    every = ((place * 2 + truth) * 2 + before.reshape(-1, len(place))) * 2
    every = (every + after.reshape(-1, len(place))).astype(np.int64)
    told = [every]
    if stratum is not None:
        told.append(one_each("stratum", stratum, place)[None].astype(np.int64))
    if weight is not None:
        heavy = one_each("weight", weight, place).astype(float)
        if not (np.isfinite(heavy) & (heavy > 0)).all():
            raise ValueError("weight: some values are not above 0")
        masses, kind = np.unique(heavy, return_inverse=True)
        told.append(kind[None])
    cells, images = np.unique(np.concatenate(told), axis=1, return_counts=True)
    return SharedImages(
        images,
        cells[: len(every)].reshape(*runs, -1),
        int(place.max()) + 1,
        None if weight is None else masses[cells[-1]],
        None if stratum is None else cells[len(every)],
    )


def one_each(name: str, values: ArrayLike, place: NDArray[Any]) -> NDArray[Any]:
    """Values as an array, one for each image as the groups are.

    Raises
    ------
    ValueError
        Another shape than that of the groups; names the argument.
    """
    found = np.asarray(values)
    if found.shape != place.shape:
        raise ValueError(f"{name} has shape {found.shape}, group has {place.shape}")
    return found


Source = Sequence[Counts] | Counts | SharedImages


def resample(tables: Source, replicates: int, seed: int, *, stratify: bool = False) -> NDArray[Any]:
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
    int64, or float64 where images are weighted, (S * C, replicates, G, 2, 2, 2)
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
        raise ValueError(WEIGHTED)
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


def images_alone(tables: Source, replicates: int, seed: int) -> NDArray[Any]:
    """Bootstrap replicates of the images, every run staying what it is.

    Parameters and errors as in :func:`resample`. Tables of counts have images of their own each.

    Returns
    -------
    int64, or float64 where images are weighted, (S * C, replicates, G, 2, 2, 2)
    """
    if isinstance(tables, SharedImages):
        rng = np.random.default_rng(seed)
        return np.concatenate(list(_drawn_images(tables, replicates, rng)), axis=1)
    runs = stack(tables)
    runs = runs.reshape(-1, *runs.shape[2:])
    each = np.random.default_rng(seed).integers(2**32, size=len(runs)).tolist()
    return np.concatenate(
        [resample([run], replicates, own) for run, own in zip(runs, each, strict=True)]
    )


def stack(tables: Source) -> NDArray[Any]:
    """Tables as one array (S, C, G, 2, 2, 2), checked; C is 1 unless calibration draws are crossed.

    Raises
    ------
    ValueError
        Names the table that is empty, negative, or of another shape than the first.
    """
    if isinstance(tables, SharedImages):
        return tables.tables.reshape(*tables.cells.shape[:2], tables.groups, 2, 2, 2)
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
) -> NDArray[Any]:
    every = np.concatenate(list(_drawn_images(shared, replicates, rng, stratify)), axis=1)
    seeds, draws = shared.cells.shape[:2]
    every = every.reshape(seeds, draws, *every.shape[1:])
    by_seed = rng.integers(seeds, size=(seeds, 1, replicates))
    by_draw = rng.integers(draws, size=(1, draws, replicates))
    drawn = every[by_seed, by_draw, np.arange(replicates)]
    return drawn.reshape(seeds * draws, *every.shape[2:])


def _drawn_images(
    shared: SharedImages, replicates: int, rng: np.random.Generator, stratify: bool = False
) -> Iterator[NDArray[Any]]:
    """Tables of all runs under one draw of images a replicate, some replicates at a time."""
    for first in range(0, replicates, AT_ONCE):
        some = min(AT_ONCE, replicates - first)
        drawn = np.zeros((some, len(shared.images)), np.int64)
        for inside in _strata(shared, stratify):
            images = shared.images[inside]
            drawn[:, inside] = rng.multinomial(images.sum(), images / images.sum(), size=some)
        yield shared.counted(drawn)


def _strata(shared: SharedImages, stratify: bool) -> list[NDArray[np.bool_]]:
    """Patterns whose images are drawn among themselves."""
    kind = np.zeros(len(shared.images), np.int64) if shared.strata is None else shared.strata
    if stratify:
        kind = kind * shared.groups + shared.cells[0, 0] // 8
    return [kind == each for each in np.unique(kind)]
