"""Sensitive attributes and targets: which there are, and what can be asked of labelled people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.errors import BadInput
from fairq_utils.given import each_name

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": ("female", "male"),
    "age": ("old", "young"),
    "race": ("african", "asian", "caucasian"),
}

# Nothing published says when one is young. Forty is where one of FairFace's bands begins, so that
# the same question can be asked of its people and of UTKFace's.
YOUNG_BELOW = 40
CONDITION = re.compile(r"age\s*(?P<sign>>=|<)\s*(?P<years>\d+)")
TARGETS = "gender, young, age>=N, age<N"
SOURCES = "race, gender, age, young, age>=N, age<N"  # of a group


def threshold(question: str, place: str, known: Sequence[int] | None = None) -> tuple[str, int]:
    """Sign and years of ``age>=N``, ``age<N`` or ``young`` (``age<40``).

    Raises
    ------
    BadInput
        No such question, or one that the ages in ``known`` (where bands begin) cannot answer.
    """
    if question == "young":
        return "<", YOUNG_BELOW
    match = CONDITION.fullmatch(question)
    if match is None:
        known_ones = TARGETS if place == "target" else SOURCES
        raise BadInput(f"{place}: {question!r} is not one of {known_ones}")
    years = int(match["years"])
    if known is not None and years not in known:
        raise BadInput(
            f"{place}: {question!r} cuts through an age band; N is one of "
            f"{', '.join(map(str, known))}"
        )
    if not 0 < years < 117:
        raise BadInput(f"{place}: {question!r} divides nobody from nobody; N is from 1 to 116")
    return match["sign"], years


def targets(
    question: str,
    male: NDArray[np.bool_],
    age: NDArray[np.int64],
    known: Sequence[int] | None = None,
) -> NDArray[np.int8]:
    """The target (N,): of ``gender``, 1 is male; of an age, 1 is that the condition holds.

    >>> targets("age>=40", np.array([True, False]), np.array([39, 40])).tolist()
    [0, 1]
    """
    if question == "gender":
        return male.astype(np.int8)
    sign, years = threshold(question, "target", known)
    return ((age < years) if sign == "<" else (age >= years)).astype(np.int8)


def classes(question: str) -> tuple[str, str]:
    """Names of a target's two classes: of 0, and of 1.

    >>> classes("age>=40")
    ('age<40', 'age>=40')
    """
    if question in ("gender", "young"):
        no, yes = ATTRIBUTES["gender" if question == "gender" else "age"]
        return no, yes
    sign, years = threshold(question, "target")
    sides = (f"age<{years}", f"age>={years}")
    return sides if sign == ">=" else (sides[1], sides[0])


def genders(male: NDArray[np.bool_]) -> pd.Categorical:
    """Female and male, in the order of all data sets."""
    return pd.Categorical.from_codes(male.astype(np.int8), categories=list(ATTRIBUTES["gender"]))


def halves(
    question: str, age: NDArray[np.int64], place: str, known: Sequence[int] | None = None
) -> pd.Categorical:
    """Old and young, or the two sides of ``age>=N`` or ``age<N``, the older first."""
    _, years = threshold(question, place, known)
    names = ATTRIBUTES["age"] if question == "young" else (f"age>={years}", f"age<{years}")
    return pd.Categorical.from_codes((age < years).astype(np.int8), categories=list(names))


def check_names(groups: Mapping[str, str] | Sequence[str]) -> None:
    """Refuse groups of which there is none, or whose names other files could not hold."""
    if not groups:
        raise BadInput("groups: none is named; name one, or leave groups out for all")
    for name in groups:
        if not isinstance(name, str) or not name.isidentifier():
            raise BadInput(f"groups: {name!r} is no name; use letters, digits and _")


def chosen(
    groups: Mapping[str, str] | Sequence[str] | None, known: Mapping[str, str]
) -> dict[str, str]:
    """Our name -> what it is made from: all that are ``known`` unless some are named."""
    if groups is None:
        return dict(known)
    groups = groups if isinstance(groups, Mapping) else each_name(groups)
    check_names(groups)
    if isinstance(groups, Mapping):
        return dict(groups)
    for name in groups:
        if name not in known:
            raise BadInput(f"groups: {name!r} is not one of {', '.join(known)}")
    return {name: known[name] for name in groups}
