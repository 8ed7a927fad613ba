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

from fairq_utils.data.group_dials import GroupDials, difficulties, dim
from fairq_utils.data.questions import ATTRIBUTES

Floats = NDArray[np.float64]

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

FACIAL_ACTIONS = (
    "browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekSquintLeft "
    "cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookInLeft eyeLookInRight eyeLookUpLeft "
    "eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight jawOpen jawLeft jawRight "
    "mouthFrownLeft mouthFrownRight mouthLeft mouthRight mouthPressLeft mouthPressRight "
    "mouthPucker mouthSmileLeft mouthSmileRight mouthStretchLeft mouthStretchRight "
    "mouthUpperUpLeft mouthUpperUpRight noseSneerLeft noseSneerRight"
).split()

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
    """

    seed: int = 2026
    difficulty: float = 1.0
    joint: Mapping[str, float] = field(default_factory=lambda: dict(CELEBA_JOINT))
    race: Mapping[str, float] = field(
        default_factory=lambda: {"african": 0.2, "asian": 0.2, "caucasian": 0.6}
    )
    of_group: Mapping[str, GroupDials] = field(default_factory=dict)

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


def _gender_age() -> tuple[tuple[str, ...], tuple[str, ...]]:
    return ATTRIBUTES["gender"], ATTRIBUTES["age"]


def _generator(key: NDArray[np.uint64]) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


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
    female, old, target, race = _labels(population, np.array(first).reshape(-1, 2))
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
    key = keys(population.seed, split, np.asarray(indices, np.int64))
    n = len(key)
    u = np.empty((n, UNIFORMS))
    z = np.empty((n, NORMALS))
    for i in range(n):
        generator = _generator(key[i])
        u[i] = generator.random(UNIFORMS)
        z[i] = generator.standard_normal(NORMALS)
    female, old, target, race = _labels(population, u)
    groups = _groups(female, old, race)
    difficulty = difficulties(population.difficulty, population.of_group, groups)
    # latent = +-SEPARATION + difficulty * normal; a logistic curve maps it to (0, 1).
    latent = np.where(target == 1, SEPARATION, -SEPARATION) + difficulty * z[:, 0]
    smile = 1 / (1 + np.exp(-1.3 * latent))
    look = _look(female, old, race, u[:, 52:], z[:, 152:])
    dim(look, population.of_group, groups)
    return People(
        target=target,
        groups=groups,
        smile=smile,
        phenotype=_phenotype(female, old, race, u[:, 2:16], z[:, 1:12]),
        actions=_actions(smile, u[:, 16:52]),
        shape=_shape(shape_labels, z[:, 12:152]),
        look=look,
        noise_seed=key ^ np.array([0x5EED, 0], np.uint64),
    )


def _labels(
    population: Population, u: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int8], NDArray[np.int64]]:
    """Female, old, target and ancestry, each (N,), from two uniforms a person."""
    cells = list(product(*_gender_age(), (0, 1)))
    weights = np.array([population.joint[f"{g}|{a}|{y}"] for g, a, y in cells], float)
    cell = _choose(weights, u[:, 0])
    female = np.array([c[0] == "female" for c in cells])[cell]
    old = np.array([c[1] == "old" for c in cells])[cell]
    target = np.array([c[2] for c in cells], np.int8)[cell]
    race = _choose(np.array([population.race[r] for r in ATTRIBUTES["race"]], float), u[:, 1])
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


def _between(u: Floats, low: float | Floats, high: float | Floats) -> Floats:
    return np.asarray(low + (np.asarray(high) - low) * u, float)


def _phenotype(
    female: NDArray[np.bool_],
    old: NDArray[np.bool_],
    race: NDArray[np.int64],
    u: Floats,
    z: Floats,
) -> Floats:
    """Eleven macro dials of the head model, 0 to 1 (its gender axis runs from male to female)."""
    p = np.full((len(u), 11), 0.5)
    away = 0.38 * u[:, 0] ** 1.5
    p[:, 0] = np.where(female, 1 - away, away)
    p[:, 1] = np.where(old, _between(u[:, 1], 0.84, 1.0), _between(u[:, 1], 0.56, 0.73))
    p[:, 2] = _between(u[:, 2], 0.3, 0.8)
    p[:, 3] = np.clip(0.5 + 0.17 * z[:, 0], 0.1, 0.95)
    p[:, 5] = _between(u[:, 3], 0.3, 0.9)
    mix = 0.22 * u[:, 4:7]
    mix[np.arange(len(u)), race] += 1.0
    p[:, 8:11] = mix / mix.sum(axis=1, keepdims=True)
    return p


def _shape(labels: list[str], z: Floats) -> Floats:
    """Head-shape dials, -1 to 1; those of the two halves of the face move together."""
    sides = [label.removeprefix("l-").removeprefix("r-") for label in labels]
    column = {name: i for i, name in enumerate(dict.fromkeys(sides))}
    if len(column) > z.shape[1]:
        raise ValueError(f"{len(column)} head shapes, but {z.shape[1]} normals are drawn for them")
    return np.clip(0.22 * z[:, [column[s] for s in sides]], -1, 1)


def _actions(smile: Floats, u: Floats) -> Floats:
    """Facial actions (N, len(FACIAL_ACTIONS)), 0 to 1: the smile, and all that is not one."""
    index = {name: i for i, name in enumerate(FACIAL_ACTIONS)}
    a = np.zeros((len(u), len(FACIAL_ACTIONS)))
    rest = 1 - smile

    def both(name: str, left: Floats, right: Floats | None = None) -> None:
        a[:, index[f"{name}Left"]] = left
        a[:, index[f"{name}Right"]] = left if right is None else right

    lopsided = _between(u[:, 0], 0.75, 1.0)
    first = u[:, 1] < 0.5
    both(
        "mouthSmile",
        smile * np.where(first, 1, lopsided),
        smile * np.where(first, lopsided, 1),
    )
    both("cheekSquint", smile * _between(u[:, 2], 0.2, 0.8))
    both("mouthUpperUp", smile * _between(u[:, 3], 0.0, 0.55))
    a[:, index["jawOpen"]] = np.where(
        u[:, 4] < 0.45, 0, _between(u[:, 5], 0.0, 0.25) + 0.12 * smile * u[:, 6]
    )
    both("mouthStretch", 0.35 * u[:, 7], 0.35 * u[:, 8])
    both("mouthFrown", rest * 0.5 * np.maximum(u[:, 9] * 2 - 1, 0))
    a[:, index["mouthPucker"]] = rest * 0.5 * np.maximum(u[:, 10] * 2 - 1, 0)
    both("mouthPress", 0.3 * np.maximum(u[:, 11] * 2 - 1, 0))
    sideways = 0.35 * (2 * u[:, 12] - 1)
    both("mouth", np.maximum(sideways, 0), np.maximum(-sideways, 0))
    jaw = 0.3 * (2 * u[:, 13] - 1)
    both("jaw", np.maximum(jaw, 0), np.maximum(-jaw, 0))
    brow = 2 * u[:, 14] - 1
    both("browDown", 0.7 * np.maximum(brow, 0), 0.7 * np.maximum(brow, 0))
    both("browOuterUp", 0.6 * np.maximum(-brow, 0) * u[:, 15])
    a[:, index["browInnerUp"]] = 0.6 * np.maximum(-brow, 0) * u[:, 16]
    lid = 2 * u[:, 17] - 1
    both("eyeBlink", 0.35 * np.maximum(lid, 0))
    both("eyeWide", 0.5 * np.maximum(-lid, 0))
    both("eyeSquint", np.clip(0.5 * u[:, 18] * smile + 0.35 * u[:, 19], 0, 1))
    both("eyeLookIn", 0.3 * u[:, 20], 0.3 * (1 - u[:, 20]))
    both("eyeLookUp", 0.3 * u[:, 21])
    both("noseSneer", 0.3 * np.maximum(u[:, 22] * 2 - 1, 0))
    return a


# Diffuse reflectance (linear RGB) at the ends of each ancestry's range, dark to light.
SKIN = np.array(
    [
        [[0.085, 0.045, 0.030], [0.34, 0.20, 0.135]],
        [[0.42, 0.27, 0.175], [0.70, 0.52, 0.385]],
        [[0.45, 0.285, 0.215], [0.80, 0.60, 0.51]],
    ]
)
HAIR_DARK = np.array([0.018, 0.013, 0.011])
HAIR_LIGHT = np.array([0.36, 0.225, 0.105])
HAIR_GREY = np.array([0.50, 0.50, 0.51])
IRIS_DARK = np.array([0.055, 0.030, 0.016])
IRIS_LIGHT = np.array([0.17, 0.26, 0.33])


def _look(
    female: NDArray[np.bool_],
    old: NDArray[np.bool_],
    race: NDArray[np.int64],
    u: Floats,
    z: Floats,
) -> dict[str, Floats]:
    """All of an image that is not geometry of the face.

    Angles in radians, lengths in metres, colours linear RGB (N, 3), the rest 0 to 1.
    """
    tan = u[:, 0]
    skin = SKIN[race, 0] + (SKIN[race, 1] - SKIN[race, 0]) * tan[:, None]
    skin = np.clip(skin * (1 + 0.05 * z[:, 0:3]), 0.01, 0.95)
    blond = np.where(race == 2, np.clip(u[:, 1] * 1.4 - 0.25, 0, 1), 0.12 * u[:, 1])
    grey = np.where(
        old, np.clip(0.25 + 0.95 * u[:, 2], 0, 1), 0.12 * np.maximum(u[:, 2] * 4 - 3, 0)
    )
    hair = HAIR_DARK + (HAIR_LIGHT - HAIR_DARK) * blond[:, None]
    hair = hair + (HAIR_GREY - hair) * grey[:, None]
    long_hair = np.where(female, u[:, 3] < 0.78, u[:, 3] < 0.05)
    light_eyes = np.where(race == 2, u[:, 6], 0.15 * u[:, 6])
    whiskers = ~female & (u[:, 7] < 0.6)
    direction = np.stack([0.75 * z[:, 6], np.full(len(u), -1.0), 0.35 + 0.45 * z[:, 7]], axis=1)
    warmth = 0.10 * z[:, 8]
    ambient = _between(u[:, 12], 0.25, 0.55)
    return {
        "tan": tan,
        "skin": skin,
        "lip": skin
        * np.stack([_between(u[:, 8], 0.80, 1.0), *[_between(u[:, 9], 0.42, 0.72)] * 2]).T,
        "hair": hair * np.exp(0.10 * z[:, 3])[:, None],
        "grey": grey,
        "hair_length": np.where(long_hair, _between(u[:, 4], 0.5, 1.0), 0.12 * u[:, 4]),
        "hair_volume": np.where(
            long_hair, _between(u[:, 5], 0.010, 0.024), _between(u[:, 5], 0.002, 0.013)
        ),
        "recede": np.where(
            female,
            0.1 * u[:, 10],
            np.where(old, _between(u[:, 10], 0.15, 1.0), 0.35 * u[:, 10] ** 2),
        ),
        "brow": np.where(female, _between(u[:, 11], 0.25, 0.6), _between(u[:, 11], 0.5, 1.0)),
        "beard": np.where(whiskers, _between(u[:, 13], 0.15, 0.95), 0.0),
        "wrinkle": np.where(old, _between(u[:, 14], 0.35, 1.0), 0.15 * u[:, 14]),
        "iris": IRIS_DARK + (IRIS_LIGHT - IRIS_DARK) * light_eyes[:, None],
        "light": direction / np.linalg.norm(direction, axis=1, keepdims=True),
        "light_colour": np.stack([1 + warmth, np.ones(len(u)), 1 - warmth], axis=1)
        * _between(u[:, 15], 0.55, 1.05)[:, None],
        "ambient": ambient,
        "background": _backdrop(u[:, 16:24]),
        "exposure": np.exp(0.18 * z[:, 9]),
        "sensor": _between(u[:, 24], 0.004, 0.016),
        "yaw": np.clip(0.15 * z[:, 10], -0.5, 0.5),
        "pitch": np.clip(0.07 * z[:, 11], -0.25, 0.25),
        "roll": np.clip(0.05 * z[:, 12], -0.2, 0.2),
        "shift": 0.0015 * z[:, 13:15],
        "zoom": np.exp(0.03 * z[:, 15]),
    }


def _backdrop(u: Floats) -> Floats:
    """Two muted colours (N, 6), above and below, between which the background runs."""
    grey = u[:, [6, 6, 6, 7, 7, 7]] ** 1.5 * 0.7
    return np.clip(grey * (1 + 0.7 * (u[:, :6] - 0.5)), 0, 1)
