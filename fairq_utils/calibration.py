"""Calibration sets: samplers over demographic groups, all of equal size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fairq_utils.errors import BadInput
from fairq_utils.given import each_name, numbers
from fairq_utils.registry import Registry

__all__ = ["SAMPLERS", "Pool", "Sampler", "draw", "sampler"]

Indices = NDArray[np.int64]
NEEDS = ("group", "losses", "features", "population")  # what a sampler may need besides the pool


@dataclass(frozen=True)
class Pool:
    """Pool of N images that a sampler draws from, without the images themselves.

    Attributes
    ----------
    groups : DataFrame of N rows
        A column per attribute, such as ``gender`` with ``female`` and ``male``.
    target : int8 (N,), the labels
    count : rows to return
    rng : generator of the draw's seed
    attributes : columns of ``groups`` that are crossed to cells
    group, losses, features, population : see :func:`draw`
        Each is there for a sampler that needs it.
    """

    groups: pd.DataFrame
    target: NDArray[np.int8]
    count: int
    rng: np.random.Generator
    attributes: Sequence[str]
    group: str | None
    losses: NDArray[np.float64] | None
    features: NDArray[np.float64] | None
    population: Mapping[str, float] | None

    def cells(self, attributes: Sequence[str] | None = None) -> NDArray[np.str_]:
        """Name of the cell of each image (N,): its values joined by a space."""
        names = self.attributes if attributes is None else each_name(attributes)
        missing = [name for name in names if name not in self.groups]
        if missing or not len(names):
            wrong = f"there is no attribute {missing[0]!r}" if missing else "no attribute is named"
            there = ", ".join(map(str, self.groups.columns)) or "none; give it groups"
            raise ValueError(f"calibration: {wrong}; the pool has {there}")
        first, *rest = (self.groups[name].astype(str) for name in names)
        found: NDArray[np.str_] = (first.str.cat(rest, sep=" ") if rest else first).to_numpy(str)
        return found


Draw = Callable[[Pool], Indices]


@dataclass(frozen=True)
class Sampler:
    """One way to draw a calibration set.

    Attributes
    ----------
    name, label : by which it is asked for; how figures and tables call it
    draw : from a :class:`Pool` to the rows that are drawn
    needs : of :data:`NEEDS`, the argument of :func:`draw` without which it cannot draw, or ""
        ``losses`` and ``features`` are what a float model makes of the pool's images.
    meaning : what that is
    source : of the method
    """

    name: str
    label: str
    draw: Draw
    needs: str = ""
    meaning: str = ""
    source: str = ""

    @property
    def looks(self) -> bool:
        """True if it needs a float model's view of the whole pool."""
        return self.needs in ("losses", "features")


SAMPLERS: Registry[Sampler] = Registry("sampler", "fairq_utils.calibration")


def sampler(
    name: str, *, label: str, needs: str = "", meaning: str = "", source: str = ""
) -> Callable[[Draw], Draw]:
    """Register a function from a :class:`Pool` to rows of it as a sampler.

    Parameters
    ----------
    name, label, needs, meaning, source : see :class:`Sampler`

    Raises
    ------
    BadInput
        It needs what samplers are not given.
    """
    if needs and needs not in NEEDS:
        raise BadInput(
            f"sampler {name}: needs={needs!r} is not one of {', '.join(NEEDS)}; labels and groups "
            "are always there, images never"
        )

    def registered(drawn: Draw) -> Draw:
        SAMPLERS.add(name, Sampler(name, label, drawn, needs, meaning, source))
        return drawn

    return registered


@sampler("random", label="random")
def _at_random(pool: Pool) -> Indices:
    return pool.rng.permutation(len(pool.target))[: pool.count]


@sampler("label_balanced", label="labels alike")
def _label_balanced(pool: Pool) -> Indices:
    return _evenly(np.array([f"label {y}" for y in pool.target]), pool)


@sampler("group_balanced", label="groups alike")
def _group_balanced(pool: Pool) -> Indices:
    return _evenly(pool.cells(), pool)


@sampler("intersection_balanced", label="all attributes crossed alike")
def _intersection_balanced(pool: Pool) -> Indices:
    return _evenly(pool.cells(list(pool.groups.columns)), pool)


@sampler(
    "worst_group",
    label="worst group only",
    needs="losses",
    meaning="the float model's loss of every image of the pool",
)
def _worst_group(pool: Pool) -> Indices:
    cells = pool.cells()
    means = pd.Series(pool.losses).groupby(cells).mean()  # by name, so of equals the first
    return _by_quota(cells, {str(means.idxmax()): pool.count}, pool.rng)


@sampler(
    "one_group",
    label="one group only",
    needs="group",
    meaning="the name of the group to draw from, such as 'female old'",
)
def _one_group(pool: Pool) -> Indices:
    cells = pool.cells()
    _refuse_unknown([str(pool.group)], cells)
    return _by_quota(cells, {str(pool.group): pool.count}, pool.rng)


@sampler(
    "matched",
    label="as in the population",
    needs="population",
    meaning="a mapping of group to weight, such as {'female old': 0.2}",
)
def _matched(pool: Pool) -> Indices:
    cells, weights = pool.cells(), dict(pool.population or {})
    _refuse_unknown([name for name, weight in weights.items() if weight != 0], cells)
    return _by_quota(cells, apportion(weights, pool.count), pool.rng)


@sampler(
    "core_set",
    label="core-set",
    needs="features",
    meaning="the float model's features (N, D) of the pool",
    source="Sener and Savarese 2018, algorithm 1",
)
def _core_set(pool: Pool) -> Indices:
    """k-centre greedy: each next image is the one furthest from all that were taken."""
    assert pool.features is not None
    features = pool.features
    taken = np.empty(pool.count, np.int64)
    nearest = np.full(len(features), np.inf)  # squared distance to what was taken
    off = np.empty_like(features)
    chosen = int(pool.rng.integers(len(features)))
    for at in range(pool.count):
        taken[at] = chosen
        np.subtract(features, features[chosen], out=off)
        np.minimum(nearest, np.einsum("nd,nd->n", off, off), out=nearest)
        nearest[chosen] = -1  # below the distance between equal images, so each is taken once
        chosen = int(nearest.argmax())
    return pool.rng.permutation(taken)


def apportion(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """Whole numbers in the proportions of ``weights`` that sum to ``count``.

    The largest remainder's way: each gets its share rounded down, and what is left goes, one each,
    to the largest fractions that were cut off (of equals, to the first by name).

    Raises
    ------
    ValueError
        A weight that is negative or not finite, or no weight above 0.

    Examples
    --------
    >>> apportion({"young": 0.7, "old": 0.3}, 5)  # 3.5 and 1.5
    {'old': 2, 'young': 3}
    """
    names = sorted(weights)
    values = np.array([weights[name] for name in names], np.float64)
    for name, value in zip(names, values, strict=True):
        if not 0 <= value < np.inf:
            raise ValueError(
                f"calibration: population: the weight of {name!r} is {value}; it must be 0 or more"
            )
    if not values.max(initial=0) > 0:
        raise ValueError(
            "calibration: population has no weight above 0; give each group its share of people, "
            "such as {'female old': 0.2, 'male old': 0.3}"
        )
    shares = count * (values / values.max()) / (values / values.max()).sum()
    quota = np.floor(shares).astype(int)
    # Rounded, for two equal remainders may differ in their last bit.
    order = np.argsort(-np.round(shares - quota, 9), kind="stable")
    quota[order[: count - quota.sum()]] += 1
    return {name: int(wanted) for name, wanted in zip(names, quota, strict=True)}


def _refuse_unknown(names: Sequence[str], cells: NDArray[np.str_]) -> None:
    there = [str(name) for name in np.unique(cells)]
    for name in names:
        if name not in there:
            raise ValueError(
                f"calibration: the pool has no image of the group {name!r}; its groups are "
                f"{', '.join(map(repr, there))}"
            )


def _evenly(cells: NDArray[np.str_], pool: Pool) -> Indices:
    """The same number from every cell; a remainder goes to cells drawn at random."""
    names = np.unique(cells)
    quota = np.full(len(names), pool.count // len(names))
    quota[pool.rng.permutation(len(names))[: pool.count % len(names)]] += 1
    return _by_quota(cells, dict(zip(names.tolist(), quota.tolist(), strict=True)), pool.rng)


def _by_quota(
    cells: NDArray[np.str_], quota: Mapping[str, int], rng: np.random.Generator
) -> Indices:
    """So many from each cell, at random, in random order."""
    parts = []
    for name, wanted in quota.items():
        members = np.flatnonzero(cells == name)
        if len(members) < wanted:
            raise ValueError(
                f"calibration: the group {name!r} has {len(members)} images in the pool where "
                f"{wanted} are needed; enlarge the pool, or calibrate on fewer images"
            )
        parts.append(rng.permutation(members)[:wanted])
    return rng.permutation(np.concatenate(parts))


def draw(
    sampler: str,
    groups: pd.DataFrame,
    target: NDArray[np.int8],
    count: int,
    *,
    seed: int,
    attributes: Sequence[str] = ("gender", "age"),
    group: str | None = None,
    losses: ArrayLike | None = None,
    features: ArrayLike | None = None,
    population: Mapping[str, float] | None = None,
) -> Indices:
    """Draw a calibration set.

    Parameters
    ----------
    sampler : str
        ``random``; ``label_balanced`` (as many of each label); ``group_balanced`` (as many of each
        cell of ``attributes``); ``intersection_balanced`` (as many of each cell of all columns of
        ``groups``); ``worst_group`` (only the cell with the highest mean of ``losses``);
        ``one_group`` (only the cell ``group``, to probe what one group's ranges do to others);
        ``matched`` (cells in the proportions of ``population``, by largest remainders);
        ``core_set`` (k-centre greedy over ``features`` from a random start, so that no image of
        the pool is far from all that are drawn: Sener and Savarese 2018, "Active learning for
        convolutional neural networks: a core-set approach", algorithm 1).
    groups : DataFrame of N rows
    target : int8 (N,)
    count : int
        Images to draw; the same for every sampler, without replacement.
    seed : int
    attributes : columns of ``groups`` that are crossed to cells
        A cell's name is its values, joined by a space.
    group : str, optional
        A cell, for ``one_group``.
    losses : float (N,), optional
        Loss of the float model on each image, for ``worst_group``; see
        :func:`fairq_utils.mitigation.pool.pool_losses`.
    features : float (N, D), optional
        For ``core_set``; see :func:`fairq_utils.mitigation.pool.pool_features`.
    population : mapping of cell to weight, optional
        For ``matched``: weights of 0 or more, of any sum. A cell that is not named gets no image.

    Returns
    -------
    int64 (count,)
        Distinct rows of the pool, in random order.

    Raises
    ------
    ValueError
        Unknown sampler, or one without the option it needs (others are not looked at); a pool that
        is too small; an unknown attribute or group, or a group with too few images (it is named);
        losses or features of another number of images, or not finite; impossible weights.
    BadInput
        A sampler of somebody else's raises, or returns something else than ``count`` distinct rows.

    Examples
    --------
    >>> pool = pd.DataFrame({"gender": ["f", "f", "m", "m", "m"]})
    >>> rows = draw("matched", pool, np.zeros(5, np.int8), 3, seed=0, attributes=["gender"],
    ...             population={"f": 1, "m": 2})
    >>> sorted(pool["gender"].iloc[rows])
    ['f', 'm', 'm']
    """
    chosen = SAMPLERS.find(sampler, "calibration: sampler")
    if not 1 <= count <= len(target):
        raise ValueError(
            f"calibration: {count} images are asked for from a pool of {len(target)}; "
            "ask for at least 1 and no more than there are"
        )
    given = {"group": group, "losses": losses, "features": features, "population": population}
    need = chosen.needs
    if need and given[need] is None:
        raise ValueError(f"calibration: sampler {sampler!r} needs {need}: {chosen.meaning}")
    pool = Pool(
        groups,
        target,
        count,
        np.random.default_rng(seed),
        each_name(attributes),
        group,
        _of_pool(losses, "losses", 1, len(target)) if need == "losses" else None,
        _of_pool(features, "features", 2, len(target)) if need == "features" else None,
        population,
    )
    try:
        rows = chosen.draw(pool)
    except ValueError:  # sentences of our own
        raise
    except Exception as error:
        raise BadInput(
            f"calibration: sampler {sampler!r} of {SAMPLERS.home(sampler)} raised "
            f"{type(error).__name__}: {error}; the pool has the attributes "
            f"{', '.join(map(str, groups.columns)) or '(none)'}"
        ) from error
    return _distinct(rows, sampler, count, len(target))


def _distinct(rows: object, sampler: str, count: int, images: int) -> Indices:
    """Rows as they came from a sampler; refuses what would calibrate on other images."""
    found = np.asarray(rows)
    wrong = None
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        wrong = f"{type(rows).__name__} of {found.dtype}, {found.shape}"
    elif len(found) != count:
        wrong = f"{len(found)} rows"
    elif len(found) and not 0 <= found.min() <= found.max() < images:
        wrong = f"row {found.max() if found.max() >= images else found.min()}"
    elif len(np.unique(found)) != count:
        wrong = "a row twice"
    if wrong is not None:
        raise BadInput(
            f"calibration: sampler {sampler!r} returned {wrong} where {count} distinct rows of a "
            f"pool of {images} are wanted; return their numbers, int64 ({count},)"
        )
    return found.astype(np.int64, copy=False)


def _of_pool(values: ArrayLike | None, name: str, ndim: int, images: int) -> NDArray[np.float64]:
    """Finite numbers, a row for each image of the pool."""
    found = numbers(values, f"calibration: {name}")
    if found.ndim != ndim or len(found) != images:
        wanted = f"({images},)" if ndim == 1 else f"({images}, D)"
        raise ValueError(
            f"calibration: {name} has shape {found.shape}, but it must be {wanted}: a row for each "
            "image of the pool"
        )
    bad = np.flatnonzero(~np.isfinite(found.reshape(images, -1)).all(axis=1))
    if len(bad):
        raise ValueError(f"calibration: {name}: that of image {bad[0]} of the pool is not finite")
    return found
