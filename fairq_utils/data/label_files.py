"""Tables of labels as text or CSV, read with the line of every fault."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fairq_utils.data.listing import Finding
from fairq_utils.faults import BadInput

MARK = "\ufeff"  # a byte-order mark, which some programs write before the first letter


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


def read_labels(
    path: Path,
    wanted: Sequence[str],
    allowed: Mapping[str, Collection[str]],
    *,
    columns: Sequence[str] | None = None,
    counted: bool = False,
) -> Labels:
    """Read a table whose first column names pictures.

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


def leaves(name: str) -> str | None:
    """Why a path in a label file is not one below the pictures' folder, or None.

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
