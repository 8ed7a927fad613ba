"""Appearance of rendered people: dials of the head model, the smile, skin, hair, light and pose.

Each is a function of who somebody is and of numbers drawn for that person: uniforms ``u`` in
[0, 1) and standard normals ``z``, (N, K).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FACIAL_ACTIONS = (
    "browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekSquintLeft "
    "cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookInLeft eyeLookInRight eyeLookUpLeft "
    "eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight jawOpen jawLeft jawRight "
    "mouthFrownLeft mouthFrownRight mouthLeft mouthRight mouthPressLeft mouthPressRight "
    "mouthPucker mouthSmileLeft mouthSmileRight mouthStretchLeft mouthStretchRight "
    "mouthUpperUpLeft mouthUpperUpRight noseSneerLeft noseSneerRight"
).split()

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


def phenotype(
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


def shape(labels: list[str], z: Floats) -> Floats:
    """Head-shape dials, -1 to 1; those of the two halves of the face move together."""
    sides = [label.removeprefix("l-").removeprefix("r-") for label in labels]
    column = {name: i for i, name in enumerate(dict.fromkeys(sides))}
    if len(column) > z.shape[1]:
        raise ValueError(f"{len(column)} head shapes, but {z.shape[1]} normals are drawn for them")
    return np.clip(0.22 * z[:, [column[s] for s in sides]], -1, 1)


def actions(smile: Floats, u: Floats) -> Floats:
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


def look(
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


def _between(u: Floats, low: float | Floats, high: float | Floats) -> Floats:
    return np.asarray(low + (np.asarray(high) - low) * u, float)
