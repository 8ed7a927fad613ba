"""UTKFace: some 24,000 photographs whose names tell age, gender and race.

Zhang, Song and Qi 2017, "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.data import questions
from fairq_utils.data import splits as carving
from fairq_utils.data.files import FileBytes, images_in, is_text, nowhere
from fairq_utils.data.listing import Finding, Listing
from fairq_utils.data.photographs.registry import collection
from fairq_utils.data.photographs.terms import (
    DRIVE,
    RESEARCH_ONLY,
    Published,
    RemoteFile,
    Source,
)

RACES = ("white", "black", "asian", "indian", "others")  # 0 to 4 in a name
OLDEST = 116
GROUPS = {"gender": "gender", "age": "young", "race": "race"}
HELD_OUT = {"calibration": 0.05, "validation": 0.05, "test": 0.2}  # the rest is train
PATTERN = "[age]_[gender]_[race]_[date&time].jpg"
# Aligned crops end in .jpg.chip.jpg; the time has 17 digits, to the millisecond.
ENDING = re.compile(r"\d{17}(\.jpg\.chip)?\.(jpe?g|png)", re.IGNORECASE)
IMAGE = re.compile(r"\d+_")  # how the name of an image begins, even one with faults
META = {
    "source": "UTKFace (Zhang et al. 2017), susanqq.github.io/UTKFace",
    "licence": "non-commercial research only",
    "citation": "zhang2017age",
}


def listing(
    root: Path,
    *,
    target: str | None = None,
    groups: Mapping[str, str] | Sequence[str] | None = None,
    held_out: Mapping[str, float] | None = None,
) -> Listing:
    """List what a folder with UTKFace holds, in ``part1`` to ``part3``, other folders or flat.

    The distribution has a handful of names with a field too few, a blank, or a dot too few; each is
    a finding, since nobody can tell which field is missing.

    Parameters
    ----------
    target : ``gender`` (1 is male, as in CelebA; unless named), ``young`` (``age<40``),
        ``age>=N`` or ``age<N``
    groups : our name -> ``gender``, ``race``, ``young`` (old and young), ``age>=N``; or names among
        gender, age and race; all three unless named
    held_out : shares of all images, by SHA-256 of the name: there are no official splits.
        ``calibration`` 0.05, ``validation`` 0.05 and ``test`` 0.2 unless named
    """
    question = target or "gender"
    chosen = questions.chosen(groups, GROUPS)
    found = carving.shares(held_out, HELD_OUT, "train")
    if question != "gender":
        questions.threshold(question, "target")
    people, findings = _images(root)
    files = sorted(people, key=lambda place: (Path(place).name, place))
    codes = np.array([people[place] for place in files], np.int64).reshape(-1, 3)
    age, male, race = codes[:, 0], codes[:, 1] == 0, codes[:, 2]
    keys = [_key(name) for name in files]
    read = FileBytes(root, tuple(files))
    return Listing(
        name="utkface",
        files=np.array(files, np.str_),
        target=questions.targets(question, male, age),
        groups=_groups(chosen, male, age, race),
        split=carving.carve(keys, found, rest="train"),
        read=read,
        state=read.state,
        keys=np.array(keys, np.str_),
        findings=tuple(findings),
        meta={
            **META,
            "layout": PATTERN,
            "target": question,
            "classes": questions.classes(question),
            "groups": chosen,
            "splits": "by SHA-256 of the name",
            "held_out": found,
        },
    )


def source() -> Source:
    """Terms and files."""
    archive = RemoteFile(
        "UTKFace.tar.gz", DRIVE.format("0BxYys69jI14kYVM3aVhKS1VhRUk"), gives=("UTKFace",)
    )
    return Source(
        title="UTKFace, aligned and cropped",
        home="https://susanqq.github.io/UTKFace/",
        licence="for non-commercial research only; the images belong to their original owners",
        citation="Zhang, Song and Qi (2017), Age Progression/Regression by Conditional "
        "Adversarial Autoencoder, CVPR",
        files=(archive,),
    )


collection(
    "utkface",
    title="UTKFace",
    listing=listing,
    groups=GROUPS,
    shares=partial(carving.shares, defaults=HELD_OUT, rest="train"),
    source=source,
    labelled="a network estimated age, gender and race, and a person checked them",
    passing_on=RESEARCH_ONLY,
    published=Published(
        images=23_708,
        source="the files of UTKFace.tar.gz, aligned and cropped; Zhang, Song and Qi 2017 say "
        "over 20,000",
    ),
)


def _groups(
    chosen: Mapping[str, str],
    male: NDArray[np.bool_],
    age: NDArray[np.int64],
    race: NDArray[np.int64],
) -> pd.DataFrame:
    columns = {}
    for name, source in chosen.items():
        if source == "gender":
            columns[name] = questions.genders(male)
        elif source == "race":
            columns[name] = pd.Categorical.from_codes(race.astype(np.int8), categories=list(RACES))
        else:
            columns[name] = questions.halves(
                "young" if source == "age" else source, age, f"groups.{name}"
            )
    return pd.DataFrame(columns)


def _images(root: Path) -> tuple[dict[str, tuple[int, int, int]], list[Finding]]:
    """People in each usable image, and the faults of the others."""
    people: dict[str, tuple[int, int, int]] = {}
    kept: dict[str, str] = {}
    findings: list[Finding] = []
    seen = 0
    for folder in _folders(root):
        there, found = images_in(root, folder)
        for finding in found:
            name = Path(finding.place).name
            if finding.kind == "name" and not finding.counts and IMAGE.match(name):
                seen += 1
                finding = Finding(finding.place, "name", f"does not end in .jpg, as in {PATTERN}")
            findings.append(finding)
        for name in sorted(there):
            place = str((folder / name).relative_to(root))
            if not there[name]:
                continue
            seen += 1
            person = _person(name)
            if isinstance(person, str):
                findings.append(Finding(place, "name", person))
            elif _key(name) in kept:
                other = kept[_key(name)]
                way = "" if folder == (root / other).parent else "; name one folder as the root"
                findings.append(Finding(place, "duplicate", f"is {other} too{way}"))
            else:
                kept[_key(name)] = place
                people[place] = person
    if not seen:
        raise nowhere(root, "UTKFace", f"images named {PATTERN}, such as "
                      "26_1_3_20170117175041574.jpg, here or in folders")  # fmt: skip
    return people, findings


def _folders(root: Path) -> list[Path]:
    """The root and all folders below it, each once, in the order of their depths and names."""
    found: dict[Path, Path] = {}
    level = [root]
    while level:
        new = [folder for folder in level if found.setdefault(folder.resolve(), folder) is folder]
        level = sorted(
            (
                path
                for folder in new
                for path in folder.iterdir()
                if path.is_dir() and not path.name.startswith(".") and is_text(path.name)
            ),
            key=lambda path: (path.is_symlink(), path),
        )
    return list(found.values())


def _person(name: str) -> tuple[int, int, int] | str:
    """Age in years, gender (0 is male) and race (of :data:`RACES`); or what is wrong with a name.

    >>> _person("26_1_3_20170117175041574.jpg.chip.jpg")
    (26, 1, 3)
    >>> _person("61_1_20170109142408075.jpg.chip.jpg")
    'has 3 fields, not the 4 of [age]_[gender]_[race]_[date&time].jpg'
    """
    fields = name.split("_")
    if len(fields) != 4:
        count = f"{len(fields)} field{'s' if len(fields) != 1 else ''}"
        return f"has {count}, not the 4 of {PATTERN}"
    age, gender, race, ending = fields
    if not age.isdecimal() or not 1 <= int(age) <= OLDEST:
        return f"tells an age of {age!r}, not 1 to {OLDEST}"
    if gender not in ("0", "1"):
        return f"tells a gender of {gender!r}, not 0 (male) or 1 (female)"
    if race not in tuple("01234"):
        return f"tells a race of {race!r}, not 0 to 4 ({', '.join(RACES)})"
    if not ENDING.fullmatch(ending):
        return f"ends in {ending!r}, not in 17 digits of a date and time and .jpg or .jpg.chip.jpg"
    return int(age), int(gender), int(race)


def _key(name: str) -> str:
    """An image's name, whether it is the aligned crop or not."""
    return Path(name).name.split(".")[0]
