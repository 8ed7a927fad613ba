"""Tables of labels: what each says of which image, and what is wrong with its rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fairq_utils.data.listing import Finding
from fairq_utils.errors import BadInput

MARK = "\ufeff"  # a byte-order mark, which some programs write before the first letter
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # of images
INDEX = re.compile(r"Unnamed: \d+")  # what pandas calls a column without a name
SEPARATORS = ",;\t"  # a file whose first line has none of them is split at blanks


@dataclass
class Labels:
    """The rows of a label file that can be used, and what is wrong with the others.

    Attributes
    ----------
    path : of the file
    rows : file name -> its line, and the values of the columns that were asked for
    named : every file name, that of a row with faults too
    findings : one for every other row
    count : how many rows there are
    promised : how many the file says that there are; None where it says nothing
    """

    path: Path
    rows: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    count: int = 0
    promised: int | None = None

    def place(self, line: int) -> str:
        """``FILE:LINE``."""
        return f"{self.path.name}:{line}"


def columns_of(path: Path) -> list[str]:
    """Names of a file's columns, but for those without a name and the one that names images."""
    return [name for name in _table(path, lines_of(path)).columns[1:] if name]


def lines_of(path: Path) -> list[str]:
    """Lines without their ends; other systems' line ends and a byte-order mark are taken off.

    Raises
    ------
    BadInput
        It is no file, cannot be read, is empty, or is no text.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would keep its reader waiting
            raise BadInput(f"{path}: this is no regular file; put the table of labels there")
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
    text = text.removeprefix(MARK).replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
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
    """Read a table of which a column names images: the first whose values end as images' names do.

    Columns are separated by the commas, semicolons or tabs of the first line; by blanks where it
    has none. Of rows that contradict each other about an image none is used.

    Parameters
    ----------
    wanted : columns whose values are kept
    allowed : values that a column may have; other columns may have any
    columns : names of all columns but the first, of a file without a header
    counted : the file begins with its number of rows, and its header may leave out the first
        column, as CelebA's text files do

    Raises
    ------
    BadInput
        The file as a whole cannot be used: unreadable, without a column that is wanted, or with one
        that it names twice.
    """
    lines = lines_of(path)
    found = Labels(path)
    table = _table(path, lines, columns=columns, counted=counted)
    if counted:
        found.promised = _count(lines[0], found)
    names = table.columns[1:]
    for name in wanted:
        if name not in names:
            raise BadInput(
                f"{path}:{table.start}: the header names no column {name} among {len(names)}"
                f"{': ' + ', '.join(names) if len(names) < 10 else ''}; copy the file again"
            )
    checked = [(i, name, frozenset(allowed[name])) for i, name in enumerate(names, 1)
               if name in allowed]  # fmt: skip
    common = frozenset.intersection(*(values for _, _, values in checked)) if checked else None
    common = common if len(checked) == len(names) else None
    places = [names.index(name) + 1 for name in wanted]
    disputed = set()
    for number, line in enumerate(lines[table.start :], table.start + 1):
        if not line.strip():
            continue
        found.count += 1
        fields = table.cut(line)
        found.named.add(fields[0])
        problem = _problem(fields, len(names), checked, common)
        if problem is not None:
            found.findings.append(Finding(found.place(number), *problem))
            continue
        name, values = fields[0], tuple(fields[i] for i in places)
        if name in found.rows:
            before, known = found.rows[name]
            said = f"{name} is on line {before}"
            other = known != values
            found.findings.append(
                Finding(
                    found.place(number),
                    "duplicate",
                    f"{said}, there with other labels" if other else said,
                    counts=other and name not in disputed,
                )
            )
            disputed |= {name} if other else set()
            continue
        found.rows[name] = (number, values)
    for name in disputed:
        del found.rows[name]
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
class _Table:
    """How the lines of a table are cut.

    Attributes
    ----------
    start : lines before the first row
    separator : of fields; None where they are separated by blanks
    columns : names of the columns, that of images first
    image : where that column stands in the file
    """

    start: int
    separator: str | None
    columns: list[str]
    image: int

    def cut(self, line: str) -> list[str]:
        """The fields of a row in the order of ``columns``; the image's path without detours."""
        fields = _fields(line, self.separator)
        while len(fields) > len(self.columns) and not fields[-1]:  # separators at the line's end
            fields.pop()
        if 0 < self.image < len(fields):
            fields.insert(0, fields.pop(self.image))
        if "./" in fields[0] or "//" in fields[0]:
            fields[0] = str(PurePosixPath(fields[0]))
        return fields


def _table(
    path: Path,
    lines: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    counted: bool = False,
) -> _Table:
    start = int(counted)
    if columns is None and start == len(lines):
        raise BadInput(f"{path}: the file ends before its header; copy it again")
    separator = max(SEPARATORS, key=lines[start].count)
    cut = separator if separator in lines[start] else None
    if columns is not None:
        return _Table(start, cut, ["", *columns], 0)
    row = next((_fields(line, cut) for line in lines[start + 1 :] if line.strip()), [])
    header = [INDEX.sub("", name) for name in _fields(lines[start], cut)]
    while header and not header[-1]:
        header.pop()
    if counted and len(header) < len(row):
        header = ["", *header]
    for i, name in enumerate(header):
        if name and name in header[:i]:
            raise BadInput(
                f"{path}:{start + 1}: the header names the column {name} twice, as number "
                f"{header.index(name) + 1} and {i + 1}; name each once"
            )
    image = next((i for i, text in enumerate(row[: len(header)])
                  if text.lower().endswith(SUFFIXES)), 0)  # fmt: skip
    header.insert(0, header.pop(image))
    return _Table(start + 1, cut, header, image)


def _fields(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.split()
    # The csv module is needed for quotes only, and takes ten times as long.
    if '"' not in line:
        return [field.strip() for field in line.split(separator)]
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator))]
    except csv.Error:  # a quote that nothing ends
        return [line]


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
