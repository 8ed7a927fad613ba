"""FairFace: 97,698 photographs balanced over seven races.

Karkkainen and Joo 2021, "FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age for
Bias Measurement and Mitigation", WACV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.data import questions
from fairq_utils.data import splits as carving
from fairq_utils.data.files import (
    FileBytes,
    Held,
    first_that_is,
    nowhere,
    standing_in,
    with_images,
)
from fairq_utils.data.label_tables import read_labels
from fairq_utils.data.listing import Finding, Listing
from fairq_utils.data.parquet_images import ParquetBytes, class_names, gather
from fairq_utils.data.photographs.registry import collection
from fairq_utils.data.photographs.terms import DRIVE, Published, RemoteFile, Source
from fairq_utils.errors import BadInput

# Labels as the files have them -> our names, in the order of the published classifier's outputs.
RACES = {
    "White": "white",
    "Black": "black",
    "Latino_Hispanic": "latino hispanic",
    "East Asian": "east asian",
    "Southeast Asian": "southeast asian",
    "Indian": "indian",
    "Middle Eastern": "middle eastern",
}
BANDS = {
    "0-2": "0-2",
    "3-9": "3-9",
    "10-19": "10-19",
    "20-29": "20-29",
    "30-39": "30-39",
    "40-49": "40-49",
    "50-59": "50-59",
    "60-69": "60-69",
    "more than 70": "70+",
}
STARTS = (0, 3, 10, 20, 30, 40, 50, 60, 70)  # first year of each band
GENDERS = {"Female": "female", "Male": "male"}
VALUES = {"age": tuple(BANDS), "gender": tuple(GENDERS), "race": tuple(RACES)}
GROUPS = {"gender": "gender", "age": "age", "race": "race"}
HELD_OUT = {"calibration": 0.05, "validation": 0.05}  # of the official train split
# Margin -> the folder that its archive unpacks to, and the archive's identifier.
MARGINS = {
    "0.25": ("fairface-img-margin025-trainval", "1Z1RqRo0_JiavaZw2yzZG6WETdZQ8qX86"),
    "1.25": ("fairface-img-margin125-trainval", "1g7qNOZz9wC7OfOhcPqH1EZ5bk1UFGmlL"),
}
LABELS = {
    "fairface_label_train.csv": "1i1L3Yqwaio7YSOCj7ftgk8ZZchPG7dmH",
    "fairface_label_val.csv": "1wOdja-ezstMEp81tX1a-EYkFebev4h7D",
}
SHARDS = {"train": "train", "validation": "val"}
META = {
    "source": "FairFace (Karkkainen and Joo 2021), github.com/joojs/fairface",
    "licence": "CC BY 4.0",
    "citation": "karkkainen2021fairface",
}


def listing(
    root: Path,
    *,
    target: str | None = None,
    groups: Mapping[str, str] | Sequence[str] | None = None,
    held_out: Mapping[str, float] | None = None,
    margin: str | None = None,
) -> Listing:
    """List what a folder with FairFace holds.

    Layouts: ``fairface_label_train.csv``, ``fairface_label_val.csv`` and the images in ``train/``
    and ``val/`` of the distribution's folder for a margin or of the root; or the Parquet files of
    Hugging Face, one folder a margin, which say themselves what their integers stand for.

    Parameters
    ----------
    target : ``gender`` (1 is male; unless named), ``young`` (``age<40``), ``age>=N`` or ``age<N``
        where N begins a band
    groups : our name -> ``gender``, ``race`` (seven), ``age`` (nine bands), ``young`` or
        ``age>=N``; or names among gender, age and race; all three unless named
    held_out : shares of the official train split that become ``calibration`` and ``validation``,
        0.05 each unless named; test is the official val split
    margin : ``0.25`` or ``1.25``, where both are there
    """
    question = target or "gender"
    chosen = questions.chosen(groups, GROUPS)
    found = carving.shares(held_out, HELD_OUT, "train")
    if question != "gender":
        questions.threshold(question, "target", STARTS[1:])
    held = _files(root, margin)
    split = np.array(["test"] * len(held.files), "U11")
    train = np.flatnonzero(held.official == "train")
    split[train] = carving.carve([held.keys[i] for i in train], found, rest="train")
    years = np.array(STARTS)[held.labels["age"]]
    return Listing(
        name="fairface",
        files=np.array(held.files, np.str_),
        target=questions.targets(question, held.labels["gender"] == 1, years, STARTS[1:]),
        groups=_groups(chosen, held.labels),
        split=split,
        read=held.read,
        state=held.read.state,
        keys=np.array(held.keys, np.str_),
        findings=tuple(held.findings),
        meta={
            **META,
            "layout": held.layout,
            "target": question,
            "classes": questions.classes(question),
            "groups": chosen,
            "splits": "official val is test; calibration and validation by SHA-256 of the name, "
            "out of train",
            "held_out": found,
        },
    )


def source(margin: str = "0.25") -> Source:
    """Terms and files, of the images with that margin around the face."""
    folder, identifier = MARGINS[margin]
    images = RemoteFile(f"{folder}.zip", DRIVE.format(identifier), gives=("train", "val"),
                        into=folder)  # fmt: skip
    return Source(
        title=f"FairFace, margin {margin}",
        home="https://github.com/joojs/fairface",
        licence="CC BY 4.0",
        citation="Karkkainen and Joo (2021), FairFace: Face Attribute Dataset for Balanced Race, "
        "Gender, and Age for Bias Measurement and Mitigation, WACV",
        files=(*(RemoteFile(name, DRIVE.format(drive)) for name, drive in LABELS.items()), images),
    )


collection(
    "fairface",
    title="FairFace",
    listing=listing,
    groups=GROUPS,
    shares=partial(carving.shares, defaults=HELD_OUT, rest="train"),
    source=source,
    labelled="three crowd workers guessed age, gender and race, and a network trained on their "
    "answers revised them",
    passing_on="whoever passes on a model trained on them names them and that licence",
    options={"margin": tuple(MARGINS)},
    # The paper counts 108,501 images; the labels of these were published.
    published=Published(
        images=97_698,
        source="Karkkainen and Joo 2021, FairFace: fairface_label_train.csv and "
        "fairface_label_val.csv",
        splits={("train", "calibration", "validation"): 86_744, ("test",): 10_954},
    ),
)


def _groups(chosen: Mapping[str, str], codes: Mapping[str, NDArray[np.int64]]) -> pd.DataFrame:
    names = {"age": BANDS, "gender": GENDERS, "race": RACES}
    columns = {}
    for name, source in chosen.items():
        if source in names:
            columns[name] = pd.Categorical.from_codes(
                codes[source].astype(np.int8), categories=list(names[source].values())
            )
        else:
            years = np.array(STARTS)[codes["age"]]
            columns[name] = questions.halves(source, years, f"groups.{name}", STARTS[1:])
    return pd.DataFrame(columns)


def _files(root: Path, margin: str | None) -> Held:
    shown = {m: root / folder for m, (folder, _) in MARGINS.items() if (root / folder).is_dir()}
    parquet = {m: root / m for m in MARGINS if any((root / m).glob("*.parquet"))}
    there = shown or parquet
    if len(there) > 1 and margin is None:
        raise BadInput(f"{root}: both margins are there; name margin: 0.25 or 1.25")
    if there and margin is not None and margin not in there:
        raise BadInput(
            f"{root}: margin {margin} is not there, but {', '.join(there)} is; name that"
        )
    if parquet and not shown:
        return _parquet(root, parquet[margin or next(iter(parquet))])
    base = shown[margin or next(iter(shown))] if shown else root
    labels = [first_that_is([root / name, base / name]) for name in LABELS]
    if labels == [None, None]:
        if any(root.glob("*.parquet")):
            return _parquet(root, root)
        raise nowhere(root, "FairFace", "fairface_label_train.csv, fairface_label_val.csv and "
                      "0.25/train-*.parquet")  # fmt: skip
    parts = []
    for split, path in zip(("train", "val"), labels, strict=True):
        if path is None:
            raise BadInput(
                f"{root / f'fairface_label_{split}.csv'}: there is no such file, and "
                f"{standing_in(root)}; copy it there"
            )
        if not (base / split).is_dir():
            raise BadInput(
                f"{base / split}: there is no such folder, and {standing_in(base)}; unpack the "
                "images there"
            )
        parts.append(_labelled(root, base, split, path))
    return _joined(root, base, parts)


_Part = tuple[dict[str, str], list[tuple[str, ...]], list[Finding]]


def _labelled(root: Path, base: Path, split: str, path: Path) -> _Part:
    columns = list(VALUES)
    labels = read_labels(path, columns, VALUES)
    images, findings = with_images(labels, root, base / split, f"{split}/")
    return images, [labels.rows[name][1] for name in images], [*labels.findings, *findings]


def _joined(root: Path, base: Path, parts: Sequence[_Part]) -> Held:
    keys = [name for images, _, _ in parts for name in images]
    rows = [row for _, values, _ in parts for row in values]
    files = [image for images, _, _ in parts for image in images.values()]
    return Held(
        layout=f"fairface_label_*.csv, {base.relative_to(root)}/",
        read=FileBytes(root, tuple(files)),
        files=files,
        keys=keys,
        labels={
            column: np.array([VALUES[column].index(row[i]) for row in rows], np.int64)
            for i, column in enumerate(VALUES)
        },
        official=np.array([name.split("/")[0] for name in keys], "U11"),
        findings=[finding for _, _, found in parts for finding in found],
    )


def _parquet(root: Path, folder: Path) -> Held:
    table, paths = gather(root, folder, SHARDS, list(VALUES))
    findings: list[Finding] = []
    good = np.ones(len(table), bool)
    for column, values in VALUES.items():
        usable = np.zeros(len(table), bool)
        for shard, path in enumerate(paths):
            rows = np.flatnonzero((table.shard == shard).to_numpy())
            words = _words(path, column, table[column].iloc[rows])
            usable[rows] = words.isin(values).to_numpy()
            table.loc[rows, column] = words
        for row in np.flatnonzero(good & ~usable):
            problem = f"{column} is {table[column][row]!r}, not one of {', '.join(values)}"
            findings.append(Finding(table.file[row], "label", problem))
        good &= usable
    table = table[good]
    return Held(
        layout=f"{folder.relative_to(root) / '*.parquet'}",
        read=ParquetBytes(paths, tuple(zip(table.shard, table.row, strict=True))),
        files=table.file.tolist(),
        keys=table.key.tolist(),
        labels={
            column: table[column].map(values.index).to_numpy(np.int64)
            for column, values in VALUES.items()
        },
        official=table.split.to_numpy("U11"),
        findings=findings,
    )


def _words(path: Path, column: str, values: pd.Series) -> pd.Series:
    """Labels in words; the integers of two copies of FairFace stand for different ones."""
    if values.map(lambda value: isinstance(value, str)).all():
        return values
    names = class_names(path, column)
    if names is None:
        raise BadInput(
            f"{path}: nothing says what the integers in {column} stand for (the file has no "
            "Hugging Face features); fetch it again, or write the labels in words"
        )
    return values.map(
        lambda v: names[v] if isinstance(v, int) and 0 <= v < len(names) else v
    ).astype(object)
