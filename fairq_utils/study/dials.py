"""Dials: one property of a group is varied at a time, all else stays the same.

Only people that are rendered allow this. In the world that all levels depart from, half of the
people are of the dialled group, half of them smile, everybody is lit alike, and training,
calibration and test are drawn alike; whatever disparity quantization makes there is that of two
groups that differ in their faces alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from fairq_utils.data.questions import ATTRIBUTES
from fairq_utils.study.params.data import Data, OfGroup
from fairq_utils.study.params.study import Dials, Params, Quantization

EVEN = 0.5  # share of the group, and of smiles in it


@dataclass(frozen=True)
class World:
    """One level of one dial.

    Attributes
    ----------
    dial, level : which one, and how far it is turned
    params : the small study that is run there
    """

    dial: str
    level: float
    params: Params


def attribute_of(dials: Dials) -> str:
    """The attribute whose value is the dialled group."""
    return next(name for name, values in ATTRIBUTES.items() if dials.group in values)


def joint(dials: Dials, share: float = EVEN, base_rate: float = 0.0) -> dict[str, float]:
    """Weights of gender x age x Smiling, the other attribute even.

    Parameters
    ----------
    share : of the dialled group
    base_rate : by how much more of the group smile than of the others

    Examples
    --------
    >>> from fairq_utils.study.params.study import Dials
    >>> found = joint(Dials(group="old"), 0.1, 0.4)
    >>> round(sum(v for k, v in found.items() if "old" in k), 3)
    0.1
    >>> round(found["female|old|1"] / found["female|old|0"], 2)  # 70 of 100 against 30
    2.33
    """
    out = {}
    for gender, age, smiling in product(ATTRIBUTES["gender"], ATTRIBUTES["age"], (0, 1)):
        inside = dials.group in (gender, age)
        rate = EVEN + (base_rate if inside else -base_rate) / 2
        part = share if inside else 1 - share
        out[f"{gender}|{age}|{smiling}"] = part / 2 * (rate if smiling else 1 - rate)
    return out


def _data(params: Params, **changes: object) -> Data:
    if not isinstance(params.data, Data):
        raise TypeError(f"{params.name}: dials are turned in rendered people, not in photographs")
    dials = params.dials
    fields = {
        "seed": params.data.seed,
        "size": dials.size,
        "train": dials.train,
        "calibration": dials.calibration,
        "validation": dials.validation,
        "test": dials.test,
        "difficulty": params.data.difficulty,
        "joint": joint(dials),
        "race": {race: 1.0 for race in ATTRIBUTES["race"]},
    }
    return Data.model_validate({**fields, **changes})


def _of_group(name: str) -> Callable[[Params, float], Data]:
    return lambda params, level: _data(
        params, of_group={params.dials.group: OfGroup.model_validate({name: level})}
    )


TURNED: dict[str, Callable[[Params, float], Data]] = {
    "training_share": lambda params, level: _data(
        params, joint_of={"train": joint(params.dials, level)}
    ),
    "calibration_share": lambda params, level: _data(
        params, joint_of={"calibration": joint(params.dials, level)}
    ),
    "base_rate": lambda params, level: _data(params, joint=joint(params.dials, base_rate=level)),
    "light": _of_group("light"),
    "reflectance": _of_group("reflectance"),
    "ambiguity": _of_group("difficulty"),
}
LABELS = {
    "": "none turned",
    "training_share": "share in training",
    "calibration_share": "share in calibration",
    "base_rate": "base rate",
    "light": "light",
    "reflectance": "skin reflectance",
    "ambiguity": "ambiguity",
}


def worlds(params: Params) -> list[World]:
    """The even world, and every level of every dial; none where no model is named."""
    if not params.dials.models:
        return []
    found = [World("", 0.0, _study(params, _data(params)))]
    for dial, turned in TURNED.items():
        for level in getattr(params.dials, dial):
            found.append(World(dial, level, _study(params, turned(params, level))))
    return found


def _study(params: Params, data: Data) -> Params:
    """Small study of a world: the grid of ``dials`` and what it is compared with."""
    dials = params.dials
    recipes = {
        name: params.training.models[name].model_copy(
            update={} if dials.epochs is None else {"epochs": dials.epochs}
        )
        for name in dials.models
    }
    quantization = Quantization(
        percentile=params.quantization.percentile,
        iterations=params.quantization.iterations,
        tuning=params.quantization.tuning.model_copy(update={"images": None}),
        calibration_images=dials.calibration_images,
        calibration_seeds=params.quantization.calibration_seeds,
    )
    return params.model_copy(
        update={
            "data": data,
            "training": params.training.model_copy(
                update={"models": recipes, "seeds": dials.seeds}
            ),
            "quantization": quantization,
            "grid": dials.grid,
            "dials": Dials(),
            "analysis": params.analysis.model_copy(update={"attributes": (attribute_of(dials),)}),
        }
    )
