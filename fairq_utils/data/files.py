"""Files of a collection: tables of labels, images below a root, and what a layout holds."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.listing import Finding
from fairq_utils.data.parquet_images import ParquetBytes
from fairq_utils.errors import BadInput

MARK = "\ufeff"  # a byte-order mark, which some programs write before the first letter
SUFFIXES = (".jpg", ".jpeg", ".png")
SHOWN = 6  # names of what stands in a folder where something else was looked for


@dataclass
class Labels:
    """The rows of a label file that can be used, and what is wrong with the others.

    Attributes
    ----------
    path : of the file
    rows : file name -> its line, and the values of the columns that were asked for
    named : every file name, that of a row with faults too
    findings : one for every other row
    """

    path: Path
    rows: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def place(self, line: int) -> str:
        """``FILE:LINE``."""
        return f"{self.path.name}:{line}"


def lines_of(path: Path) -> list[str]:
    """Lines without their ends; Windows line ends and a byte-order mark are taken off.

    Raises
    ------
    BadInput
        The file cannot be read, is empty, or is no text.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: byte {error.start} is not text (UTF-8), so this is no table of labels, or a "
            "damaged one; copy it again"
        ) from None
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror or error}); give it to this user"
        ) from error
    lines = text.removeprefix(MARK).replace("\r\n", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise BadInput(f"{path}: the file is empty; copy it again")
    return lines


def columns_of(path: Path) -> list[str]:
    """Names of all columns of a ``.csv`` file; one that stands twice is refused."""
    names = _fields(lines_of(path)[0], separated=True)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"{path}:1: the header names the column {twice} twice; name each once")
    return names


def read_labels(
    path: Path,
    wanted: Sequence[str],
    allowed: Mapping[str, Collection[str]],
    *,
    columns: Sequence[str] | None = None,
    counted: bool = False,
) -> Labels:
    """Read a table whose first column names images.

    Parameters
    ----------
    path : a ``.csv`` file is split at commas, any other at blanks
    wanted : columns whose values are kept
    allowed : values that a column may have; other columns may have any
    columns : names of all columns but the first, of a file without a header
    counted : the file begins with its number of rows, and its header leaves out the first column,
        as CelebA's text files do

    Raises
    ------
    BadInput
        The file as a whole cannot be used: unreadable, or without a column that is wanted.
    """
    lines = lines_of(path)
    found = Labels(path)
    separated = path.suffix == ".csv"
    start, promised = 0, None
    if counted:
        start, promised = 1, _count(lines[0], found)
    if columns is None:
        if start == len(lines):
            raise BadInput(f"{path}: the file ends before its header; copy it again")
        header = _fields(lines[start], separated)
        columns = header if counted else header[1:]
        start += 1
        for name in wanted:
            if name not in columns:
                raise BadInput(
                    f"{path}:{start}: the header names no column {name} among {len(columns)}"
                    f"{': ' + ', '.join(columns) if len(columns) < 10 else ''}; copy the file again"
                )
    checked = [(i, name, frozenset(allowed[name])) for i, name in enumerate(columns, 1)
               if name in allowed]  # fmt: skip
    common = frozenset.intersection(*(values for _, _, values in checked)) if checked else None
    common = common if len(checked) == len(columns) else None
    places = [list(columns).index(name) + 1 for name in wanted]
    seen = 0
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip():
            continue
        seen += 1
        fields = _fields(line, separated)
        found.named.add(fields[0])
        problem = _problem(fields, len(columns), checked, common)
        if problem is not None:
            found.findings.append(Finding(found.place(number), *problem))
            continue
        name, values = fields[0], tuple(fields[i] for i in places)
        if name in found.rows:
            before, known = found.rows[name]
            other = "" if known == values else ", there with other labels"
            found.findings.append(
                Finding(found.place(number), "duplicate", f"{name} is on line {before}{other}")
            )
            continue
        found.rows[name] = (number, values)
    if promised is not None and promised != seen:
        found.findings.append(
            Finding(found.place(1), "label", f"says {promised} rows and {seen} follow")
        )
    return found


def leaves(name: str) -> str | None:
    """Reason why a path in a label file is not one below the images' folder, or None.

    >>> leaves("train/1.jpg")
    >>> leaves("../1.jpg")
    'leads out of the folder'
    """
    if not name:
        return "is no file's name"
    if "\\" in name or "\0" in name or ":" in name:
        return "is no file's name"
    path = PurePosixPath(name)
    if path.is_absolute():
        return "is an absolute path"
    return "leads out of the folder" if ".." in path.parts else None


@dataclass(frozen=True)
class FileBytes:
    """Encoded images, each in a file of its own.

    Attributes
    ----------
    root : folder that the names are relative to
    files : N names
    """

    root: Path
    files: tuple[str, ...]

    def __call__(self, i: int) -> bytes:
        """The content of file ``i``.

        Raises
        ------
        OSError
            It cannot be read, or is none, such as a pipe, which would keep its reader waiting.
        """
        path = self.root / self.files[i]
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return path.read_bytes()

    def state(self) -> str:
        """Digest of all files' names, sizes and modification times."""
        digest = hashlib.sha256()
        for name in self.files:
            try:
                seen = os.stat(self.root / name)
                digest.update(f"{name} {seen.st_size} {seen.st_mtime_ns}\n".encode())
            except OSError as error:
                digest.update(f"{name} {error.errno}\n".encode())
        return digest.hexdigest()


def images_in(
    root: Path, folder: Path, *, deep: bool = False
) -> tuple[dict[str, bool], list[Finding]]:
    """Image files directly in a folder, and what else is there.

    A link is followed only where it stays below the root: a collection that was unpacked from an
    archive must not name files elsewhere.

    Parameters
    ----------
    deep : in the folders below it too, but for links to folders

    Returns
    -------
    names, findings
        Path of each image in the folder, and whether it may be read. Findings of files that are no
        images do not count: no image is lost by them.
    """
    inside = root.resolve()
    if not folder.resolve().is_relative_to(inside):
        raise BadInput(
            f"{folder}: this link leads out of {root}, to {folder.resolve()}; name a root that "
            "holds the images, or copy them there"
        )
    names: dict[str, bool] = {}
    findings = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or (entry.is_dir() and not deep):
                continue
            place = str(Path(entry.path).relative_to(root))
            if entry.is_dir(follow_symlinks=False):
                inner, found = images_in(root, Path(entry.path), deep=True)
                names |= {f"{entry.name}/{name}": read for name, read in inner.items()}
                findings += found
            elif entry.is_dir():
                problem = "is a link to a folder, which is not followed"
                findings.append(Finding(place, "name", problem, counts=False))
            elif not entry.name.lower().endswith(SUFFIXES):
                findings.append(Finding(place, "name", "is no image file", counts=False))
            elif entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(inside):
                findings.append(Finding(place, "unsafe", "is a link that leads out of the root"))
                names[entry.name] = False
            elif entry.is_symlink() and not Path(entry.path).exists():
                findings.append(Finding(place, "missing", "is a link to what is not there"))
                names[entry.name] = False
            else:
                names[entry.name] = True
    return names, sorted(findings, key=lambda f: f.place)


def with_images(
    labels: Labels, root: Path, folder: Path, prefix: str = "", *, deep: bool = False
) -> tuple[list[str], list[Finding]]:
    """Names in a label file whose images are there, and what is wrong with the others.

    Parameters
    ----------
    folder : that holds the images
    prefix : which the names have in the label file, such as ``train/``
    deep : names may be of images in folders below it

    Returns
    -------
    names, findings
        Sorted names, as the label file has them; an image without a label is a finding too.
    """
    there, findings = images_in(root, folder, deep=deep)
    shown = folder.relative_to(root)
    if not there:
        raise BadInput(
            f"{folder}: there are no images here, and {labels.path.name} names "
            f"{len(labels.rows)}; unpack them into this folder"
        )
    kept = []
    for name, (line, _) in labels.rows.items():
        image = name.removeprefix(prefix)
        if not name.startswith(prefix) or ("/" in image and not deep):
            problem = f"{name!r} is no image of {shown}"
            findings.append(Finding(labels.place(line), "name", problem))
        elif image not in there:
            problem = f"{shown / image} is not there"
            findings.append(Finding(labels.place(line), "missing", problem))
        elif there[image]:
            kept.append(name)
    known = labels.named
    findings += [
        Finding(str(shown / image), "unlabelled", f"has no row in {labels.path.name}")
        for image in sorted(there)
        if there[image] and prefix + image not in known
    ]
    return sorted(kept), findings


@dataclass(frozen=True)
class Held:
    """Content of one layout of a collection, before anything is asked of it.

    Attributes
    ----------
    layout : its name
    read : gives the encoded bytes of image ``i``
    files, keys : N names, and what decides an image's split
    labels : attribute -> (N,) booleans or codes
    official : array of str (N,)
        The split that the collection itself puts each image in.
    findings : what cannot be used, and why
    """

    layout: str
    read: FileBytes | ParquetBytes
    files: list[str]
    keys: list[str]
    labels: dict[str, NDArray[Any]]
    official: NDArray[np.str_]
    findings: list[Finding]


def checked_root(root: str | os.PathLike[str], what: str, command: str = "") -> Path:
    """The root of a collection as a path; a missing one, or a file, is refused.

    Parameters
    ----------
    what : the collection's title
    command : that fetches it into a folder, up to the folder; empty where nothing does
    """
    path = Path(root).expanduser()
    if not path.exists():
        fetched = f", or fetch it with {command} {path}" if command else ""
        raise BadInput(f"{path}: there is no such folder; name the one that holds {what}{fetched}")
    if not path.is_dir():
        raise BadInput(f"{path}: this is a file; unpack it and name the folder that holds {what}")
    return path


def first_that_is(candidates: Iterable[Path]) -> Path | None:
    """The first of these paths that exists."""
    return next((path for path in candidates if path.exists()), None)


def nowhere(root: Path, what: str, looked_for: str) -> BadInput:
    """The error of a root that holds none of a collection's layouts."""
    return BadInput(
        f"{root}: no {what} here; looked for {looked_for}, and {standing_in(root)}; name the "
        "folder that holds them"
    )


def standing_in(folder: Path) -> str:
    """Names of what a folder holds, for a message about what it should hold."""
    names = sorted(os.listdir(folder))
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"there is {', '.join(names[:SHOWN])}{more}"


def _fields(line: str, separated: bool) -> list[str]:
    if not separated:
        return line.split()
    # The csv module is needed for quotes only, and takes ten times as long.
    fields = next(csv.reader([line])) if '"' in line else line.split(",")
    return [field.strip() for field in fields]


def _count(line: str, found: Labels) -> int | None:
    if re.fullmatch(r"\d+", line.strip()):
        return int(line)
    found.findings.append(
        Finding(found.place(1), "label", f"says {line.strip()[:40]!r} in place of a number of rows")
    )
    return None


def _problem(
    fields: list[str],
    columns: int,
    checked: list[tuple[int, str, frozenset[str]]],
    common: frozenset[str] | None,
) -> tuple[str, str] | None:
    """Kind and description of what is wrong with a row, or None."""
    if len(fields) != columns + 1:
        return "label", f"has {len(fields)} fields, not {columns + 1}"
    why = leaves(fields[0])
    if why is not None:
        return "unsafe", f"{fields[0][:80]!r} {why}"
    if common is not None and common.issuperset(fields[1:]):
        return None
    for i, name, values in checked:
        if fields[i] not in values:
            return "label", f"{name} is {fields[i][:40]!r}, not one of {', '.join(sorted(values))}"
    return None
