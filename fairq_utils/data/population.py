"""Population of rendered people: known demographics, drawn one by one.

A person is a pure function of (population seed, split, index): a counter-based generator is
keyed with those three numbers, so any subset on any machine holds the same people, and a larger
training set begins with the smaller one. Splits are different streams of that generator, hence
disjoint by construction.

The joint distribution of gender x age x Smiling is a dial. Its default is CelebA's: the counts of
Male x Young x Smiling over all 202,599 images (Liu et al. 2015, "Deep Learning Face Attributes
in the Wild", list_attr_celeba.txt).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from math import erf, sqrt

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.data import appearance
from fairq_utils.data.appearance import FACIAL_ACTIONS, Floats
from fairq_utils.data.group_dials import GroupDials, difficulties, dim
from fairq_utils.data.questions import ATTRIBUTES

# Liu et al. 2015, list_attr_celeba.txt: images per (Male, Young, Smiling).
CELEBA_JOINT: dict[str, float] = {
    "female|old|0": 4687,
    "female|old|1": 10191,
    "female|young|0": 49607,
    "female|young|1": 53680,
    "male|old|0": 17661,
    "male|old|1": 13326,
    "male|young|0": 32975,
    "male|young|1": 20472,
}

SPLITS = ("train", "calibration", "validation", "test")

# Distance of the two class means of the smile's latent strength from the boundary, in standard
# deviations, at difficulty 1: overlap 3 %, so that no network can pass 97 %.
SEPARATION = 1.9

UNIFORMS, NORMALS = 96, 192


@dataclass(frozen=True)
class Population:
    """The dials of a rendered population.

    Parameters
    ----------
    seed : int
        Population seed, 0 to 2**63 - 1.
    difficulty : float
        Spread of smile strength within a class over the distance of the classes; 0 makes every
        smile unmistakable, 1 leaves 3 % of faces on the wrong side, 3 more than 26 %.
    joint : mapping of "gender|age|smiling" to weight
        Eight cells, weights not negative; they need not sum to one.
    race : mapping of ancestry to weight
        Drawn independently of the other attributes.
    of_group : mapping of a value of an attribute, such as ``female``, to :class:`GroupDials`
        For whom the images differ. Who is in two such groups gets both factors, and the largest
        difficulty.
    even : names of attributes
        Crossed, they take turns: the same number of images in each of their cells, which ``joint``
        and ``race`` else decide. What else a person is, is drawn as in that cell.
    """

    seed: int = 2026
    difficulty: float = 1.0
    joint: Mapping[str, float] = field(default_factory=lambda: dict(CELEBA_JOINT))
    race: Mapping[str, float] = field(
        default_factory=lambda: {"african": 0.2, "asian": 0.2, "caucasian": 0.6}
    )
    of_group: Mapping[str, GroupDials] = field(default_factory=dict)
    even: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        cells = [f"{g}|{a}|{y}" for g, a, y in product(*_gender_age(), (0, 1))]
        if set(self.joint) != set(cells):
            odd = sorted(set(self.joint) ^ set(cells))
            raise ValueError(f"joint: cells {odd} are missing or unknown; it needs exactly {cells}")
        if set(self.race) != set(ATTRIBUTES["race"]):
            raise ValueError(f"race: needs exactly the weights {ATTRIBUTES['race']}")
        for name, weights in (("joint", self.joint), ("race", self.race)):
            w = np.array(list(weights.values()), float)
            if not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
                raise ValueError(f"{name}: weights must be finite, not negative, and not all zero")
        if not 0 <= self.difficulty <= 3:
            raise ValueError(f"difficulty: {self.difficulty} is not between 0 and 3")
        known = [value for values in ATTRIBUTES.values() for value in values]
        unknown = [name for name in self.of_group if name not in known]
        if unknown:
            raise ValueError(f"of_group: {unknown[0]!r} is not one of {', '.join(known)}")
        odd = [name for name in self.even if name not in ATTRIBUTES]
        if odd or len(set(self.even)) < len(self.even):
            listed = ", ".join(ATTRIBUTES)
            raise ValueError(f"even: {', '.join(self.even)} must be some of {listed}, each once")
        none = [cell for cell in self.turns if not self.shares[cell] > 0]
        if none:
            raise ValueError(f"even: nobody is {' '.join(none[0])} by joint and race")

    @property
    def turns(self) -> tuple[tuple[str, ...], ...]:
        """Cells of ``even``, in the order in which they take turns; the empty one if it is."""
        return tuple(product(*(ATTRIBUTES[name] for name in self.even)))

    @property
    def shares(self) -> dict[tuple[str, ...], float]:
        """Share of each cell of ``even`` among the people of ``joint`` and ``race``."""
        return {
            cell: sum(self._chances(dict(zip(self.even, cell, strict=True))).values())
            for cell in self.turns
        }

    def _chances(self, given: Mapping[str, str]) -> dict[tuple[str, str, int, str], float]:
        """Chance of each gender, age, target and race of which ``given`` is true."""
        found = {}
        weight, races = sum(self.joint.values()), sum(self.race.values())
        for gender, age, target, race in product(*_gender_age(), (0, 1), ATTRIBUTES["race"]):
            who = {"gender": gender, "age": age, "race": race}
            if all(who[name] == value for name, value in given.items()):
                chance = self.joint[f"{gender}|{age}|{target}"] * self.race[race]
                found[gender, age, target, race] = chance / (weight * races)
        return found

    @property
    def bayes_accuracy(self) -> float:
        """Accuracy of a classifier that sees the smile's latent strength itself, a fraction."""
        if self.difficulty == 0:
            return 1.0
        return 0.5 * (1 + erf(SEPARATION / self.difficulty / sqrt(2)))


@dataclass(frozen=True)
class People:
    """N people: labels, and every coefficient that the renderer needs.

    Attributes
    ----------
    target : int8 (N,)
        1 where Smiling.
    groups : DataFrame of N rows
        Categorical columns ``gender``, ``age``, ``race``.
    smile : float64 (N,)
        Strength of the smile, 0 to 1; 0.5 is the class boundary.
    phenotype, actions, shape : float64 (N, 11), (N, 52), (N, L)
        Coefficients of the head model, in its own order of labels.
    look : dict of name -> float64 (N, ...)
        Skin, hair, eyes, light, camera, background; see :func:`_look`.
    noise_seed : uint64 (N, 2)
        Key of each image's sensor noise.
    """

    target: NDArray[np.int8]
    groups: pd.DataFrame
    smile: Floats
    phenotype: Floats
    actions: Floats
    shape: Floats
    look: dict[str, Floats]
    noise_seed: NDArray[np.uint64]

    def factors(self) -> pd.DataFrame:
        """Continuous coefficients worth regressing: expression, head shape, pose, skin, hair."""
        columns: dict[str, Floats] = {"smile": self.smile}
        for i, name in enumerate(FACIAL_ACTIONS):
            columns[name] = self.actions[:, i]
        for name in ("yaw", "pitch", "roll", "tan", "grey", "hair_length", "beard", "recede"):
            columns[name] = self.look[name]
        columns["gender"] = self.phenotype[:, 0]
        columns["age"] = self.phenotype[:, 1]
        columns["african"], columns["asian"] = self.phenotype[:, 8], self.phenotype[:, 9]
        return pd.DataFrame(columns)


def keys(seed: int, split: str, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Generator keys (N, 2): the population seed, and split number x 2**40 + index."""
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    stream = np.uint64(SPLITS.index(split) + 1) << np.uint64(40)
    second = stream + indices.astype(np.uint64)
    return np.stack([np.full(len(indices), seed, np.uint64), second], axis=1)


def demographics(
    population: Population, split: str, indices: NDArray[np.int64]
) -> tuple[NDArray[np.int8], pd.DataFrame]:
    """Target and groups of these indices alone: what :func:`draw` gives, in a fraction of the time.

    Returns
    -------
    target : int8 (N,)
    groups : DataFrame of N rows
        Categorical columns ``gender``, ``age``, ``race``.
    """
    first = [_generator(key).random(2) for key in keys(population.seed, split, indices)]
    u = np.array(first).reshape(-1, 2)
    female, old, target, race = _labels(population, indices, u)
    return target, _groups(female, old, race)


def draw(
    population: Population, split: str, indices: NDArray[np.int64], shape_labels: list[str]
) -> People:
    """Draw the people of these indices.

    Parameters
    ----------
    population : Population
    split : one of :data:`SPLITS`
    indices : int64 (N,)
    shape_labels : list of L labels of head shapes, as the head model orders them

    Returns
    -------
    People
        Row i is the same person whatever the other indices are.
    """
    indices = np.asarray(indices, np.int64)
    key = keys(population.seed, split, indices)
    n = len(key)
    u = np.empty((n, UNIFORMS))
    z = np.empty((n, NORMALS))
    for i in range(n):
        generator = _generator(key[i])
        u[i] = generator.random(UNIFORMS)
        z[i] = generator.standard_normal(NORMALS)
    female, old, target, race = _labels(population, indices, u)
    groups = _groups(female, old, race)
    difficulty = difficulties(population.difficulty, population.of_group, groups)
    # latent = +-SEPARATION + difficulty * normal; a logistic curve maps it to (0, 1).
    latent = np.where(target == 1, SEPARATION, -SEPARATION) + difficulty * z[:, 0]
    smile = 1 / (1 + np.exp(-1.3 * latent))
    look = appearance.look(female, old, race, u[:, 52:], z[:, 152:])
    dim(look, population.of_group, groups)
    return People(
        target=target,
        groups=groups,
        smile=smile,
        phenotype=appearance.phenotype(female, old, race, u[:, 2:16], z[:, 1:12]),
        actions=appearance.actions(smile, u[:, 16:52]),
        shape=appearance.shape(shape_labels, z[:, 12:152]),
        look=look,
        noise_seed=key ^ np.array([0x5EED, 0], np.uint64),
    )


def _gender_age() -> tuple[tuple[str, ...], tuple[str, ...]]:
    return ATTRIBUTES["gender"], ATTRIBUTES["age"]


def _generator(key: NDArray[np.uint64]) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def _labels(
    population: Population, indices: NDArray[np.int64], u: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int8], NDArray[np.int64]]:
    """Female, old, target and ancestry, each (N,), from two uniforms a person."""
    cells = list(product(*_gender_age(), (0, 1)))
    weights = np.array([population.joint[f"{g}|{a}|{y}"] for g, a, y in cells], float)
    ancestry = np.array([population.race[r] for r in ATTRIBUTES["race"]], float)
    cell, race = np.empty(len(u), np.int64), np.empty(len(u), np.int64)
    turn = indices % len(population.turns)
    for number, values in enumerate(population.turns):
        mine = turn == number
        given = dict(zip(population.even, values, strict=True))
        fits = [
            given.get("gender", gender) == gender and given.get("age", age) == age
            for gender, age, _ in cells
        ]
        of_race = [given.get("race", name) == name for name in ATTRIBUTES["race"]]
        cell[mine] = _choose(weights * fits, u[mine, 0])
        race[mine] = _choose(ancestry * of_race, u[mine, 1])
    female = np.array([c[0] == "female" for c in cells])[cell]
    old = np.array([c[1] == "old" for c in cells])[cell]
    target = np.array([c[2] for c in cells], np.int8)[cell]
    return female, old, target, race


def _groups(
    female: NDArray[np.bool_], old: NDArray[np.bool_], race: NDArray[np.int64]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "gender": _categorical("gender", np.where(female, 0, 1)),
            "age": _categorical("age", np.where(old, 0, 1)),
            "race": _categorical("race", race),
        }
    )


def _choose(weights: Floats, u: Floats) -> NDArray[np.int64]:
    edges = np.cumsum(weights / weights.sum())
    return np.minimum(np.searchsorted(edges, u, side="right"), np.flatnonzero(weights)[-1])


def _categorical(attribute: str, codes: NDArray[np.int64]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes.tolist(), categories=list(ATTRIBUTES[attribute]))
