"""A folder of one's own: images below a root, and a table ``labels.csv`` that says who is in them.

A column of the table, the first whose values end in ``.jpg`` and the like, names files below the
root. The others are a target and sensitive attributes, in words or numbers of one's own, and
perhaps ``split``. No code is needed for it::

    data: {name: folder, root: faces, target: smiling, groups: {sex: gender, age: age}}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fairq_utils.data import questions
from fairq_utils.data import splits as carving
from fairq_utils.data.files import FileBytes, nowhere, with_images
from fairq_utils.data.label_tables import Labels, columns_of, read_labels
from fairq_utils.data.listing import Finding, Listing
from fairq_utils.data.photographs.registry import collection
from fairq_utils.data.photographs.terms import Source
from fairq_utils.data.population import SPLITS
from fairq_utils.errors import BadInput
from fairq_utils.registry import unknown

TABLE = "labels.csv"
SPLIT = "split"  # the column that puts images into splits
HELD_OUT = {"calibration": 0.05, "validation": 0.05, "test": 0.2}  # where no row names the split
MOST = 32  # values of an attribute: one with more is a number, or names each image
TITLE = "a folder of one's own"
LICENCE = "the terms of whoever made them"


def listing(
    root: Path,
    *,
    target: str | None = None,
    groups: Mapping[str, str] | Sequence[str] | None = None,
    held_out: Mapping[str, float] | None = None,
) -> Listing:
    """List what a folder with ``labels.csv`` holds, images in folders below it included.

    Links to folders are not followed. Rows in which a column that is asked for is empty are
    findings.

    Parameters
    ----------
    target : a column of 0 and 1, or ``COLUMN=VALUE``, 1 where it says that; the second column
        unless named
    groups : our name -> column, or names of columns; all others unless named
        An attribute's values are in the order of the alphabet, and of the numbers in them.
    held_out : shares of images that become ``calibration``, ``validation`` and ``test``, by SHA-256
        of the name; 0.05, 0.05 and 0.2 unless named
        What ``split`` puts into a split stays there. Splits that it names nobody in are carved out
        of its ``train``.
    """
    path = root / TABLE
    if not path.is_file():
        raise nowhere(root, "labels", TABLE)
    header = columns_of(path)
    columns = [name for name in header if name != SPLIT]
    asked, value = _target(target, columns, path)
    chosen = _chosen(groups, columns, asked, path)
    wanted = list(dict.fromkeys([asked, *chosen.values()]))
    own = [SPLIT] if SPLIT in header else []
    labels = read_labels(path, [*wanted, *own], {SPLIT: SPLITS})
    named = {values[-1] for _, values in labels.rows.values()} if own else set()
    carved = carving.shares(
        held_out, {part: share for part, share in HELD_OUT.items() if part not in named}, "train"
    )
    _refuse_values(labels, asked, value)
    _leave_out(labels, wanted, value)
    images, findings = with_images(labels, root, root, deep=True)
    names = list(images)
    rows = [labels.rows[name][1] for name in names]
    table = pd.DataFrame(rows, columns=[*wanted, *own], dtype=object)
    split = np.array(table[SPLIT] if own else ["train"] * len(names), "U11")
    train = np.flatnonzero(split == "train")
    split[train] = carving.carve([names[i] for i in train], carved, rest="train")
    read = FileBytes(root, tuple(images.values()))
    return Listing(
        name="folder",
        files=np.array(list(images.values()), np.str_),
        target=(table[asked] == (value or "1")).to_numpy(np.int8),
        groups=pd.DataFrame(
            {ours: _categories(table[theirs], f"groups.{ours}") for ours, theirs in chosen.items()}
        ),
        split=split,
        read=read,
        state=read.state,
        keys=np.array(names, np.str_),
        findings=(*labels.findings, *(found for found in findings if found.place != TABLE)),
        meta={
            "source": f"{TITLE}, {TABLE}",
            "licence": LICENCE,
            "citation": "",
            "layout": TABLE,
            "target": target or asked,
            "classes": (f"not {_words(value or asked)}", _words(value or asked)),
            "groups": chosen,
            "splits": f"{TABLE}; what it does not hold out by SHA-256 of the name",
            "held_out": carved,
        },
    )


def source() -> Source:
    """Terms, which only the folder's owner knows; nothing is to be fetched."""
    return Source(title=TITLE, home="", licence=LICENCE, citation="", files=())


collection(
    "folder",
    title=TITLE,
    listing=listing,
    groups={},
    shares=partial(carving.shares, defaults=HELD_OUT, rest="train"),
    source=source,
    labelled="its own table says what each image shows, and who wrote it is not known here",
    passing_on="whoever passes on a model trained on them keeps to those",
    ages=False,
)


def _target(target: str | None, columns: Sequence[str], path: Path) -> tuple[str, str]:
    """Column that is predicted, and its value that is 1 ("" of a column of 0 and 1)."""
    if len(columns) < 2:
        raise BadInput(
            f"{path}: the header names no target and group beside the file; write columns such as "
            "file, smiling, gender"
        )
    column, _, value = (target or columns[0]).partition("=")
    if column not in columns:
        raise BadInput(f"target: {path.name} has no such column: {unknown(column, columns)}")
    return column, value


def _chosen(
    groups: Mapping[str, str] | Sequence[str] | None,
    columns: Sequence[str],
    asked: str,
    path: Path,
) -> dict[str, str]:
    """Our name -> column; all but the target's unless some are named."""
    usual = [name for name in columns if name != asked] if groups is None else groups
    chosen = questions.chosen(usual, {name: name for name in columns})
    for ours, column in chosen.items():
        if column not in columns:
            wrong = unknown(column, columns)
            raise BadInput(f"groups.{ours}: {path.name} has no such column: {wrong}")
    return chosen


def _refuse_values(labels: Labels, asked: str, value: str) -> None:
    """Refuse a target that no row can be of, before every row is called wrong."""
    there = sorted({values[0] for _, values in labels.rows.values()})
    some = ", ".join(map(repr, there[:4])) + (" and others" if len(there) > 4 else "")
    if value and there and value not in there:
        raise BadInput(f"target: no row of {labels.path} says {asked}={value}, but {some}")
    if not value and there and not {"0", "1"} & set(there):
        raise BadInput(
            f"target: {labels.path} says {some} in the column {asked}; name the value that is "
            f"predicted, as {asked}={there[-1]}"
        )


def _leave_out(labels: Labels, wanted: Sequence[str], value: str) -> None:
    """Make a finding of every row whose labels cannot be used."""
    for name, (line, values) in list(labels.rows.items()):
        problem = ""
        for column, text in zip(wanted, values, strict=False):  # a split, if any, is the last
            if not text:
                problem = f"{column} is empty"
            elif column == wanted[0] and not value and text not in ("0", "1"):
                problem = f"{column} is {text[:40]!r}, not 0 or 1"
            elif column != wanted[0] and "|" in text:
                problem = f"{column} is {text[:40]!r}; the name of a group has no |"
            if problem:
                labels.findings.append(Finding(labels.place(line), "label", problem))
                del labels.rows[name]
                break


def _categories(values: pd.Series, place: str) -> pd.Categorical:
    names = sorted(set(values), key=lambda name: [
        part.zfill(20) if part.isdecimal() else part for part in re.split(r"(\d+)", name)
    ])  # fmt: skip
    if len(names) > MOST:
        raise BadInput(
            f"{place}: has {len(names)} values such as {names[0]!r}, more than {MOST}; put them "
            "into fewer groups, or name other columns"
        )
    return pd.Categorical(values, categories=names)


def _words(name: str) -> str:
    return name.replace("_", " ")
