"""Outcomes of benchmarks: figures and tables that are kept, in words that are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from fairq_utils.deploy.engines.registry import NotInstalled
from fairq_utils.errors import Fault

if TYPE_CHECKING:
    import pandas as pd

NOT_INSTALLED = "not installed"  # the same at all places
LONGEST = 200  # characters of a reason that is not ours

Figure = TypeVar("Figure")


class NotOffered(Fault):
    """A toolkit has no way to make a figure; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a benchmark.

    Attributes
    ----------
    figures : ready for JSON
    text : what is printed; the figures one below the other where it is empty
    tables : rows that are kept beside the figures, by name
    """

    figures: dict[str, Any]
    text: str = ""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Missing:
    """A figure that is missing, and why.

    Attributes
    ----------
    place : words that say which, such as architecture, bits and engine
    reason : one line
    kind : what stands in the table's cell
    """

    place: tuple[str, ...]
    reason: str
    kind: str = "failed"

    @classmethod
    def because(cls, place: tuple[str, ...], error: Exception) -> Missing:
        """Figure that an error has cost."""
        line = " ".join(str(error).split())
        if isinstance(error, NotInstalled):
            return cls(place, line, NOT_INSTALLED)
        if isinstance(error, NotOffered):
            return cls(place, line, "not offered")
        if isinstance(error, Fault):
            return cls(place, line)
        return cls(place, f"{type(error).__name__}: {line[:LONGEST]}")


def told(name: str, ones: Iterable[Figure | Missing]) -> tuple[list[Figure], list[Missing]]:
    """Figures, and those that are missing, of a benchmark that says each as it comes."""
    found: list[Figure] = []
    missing: list[Missing] = []
    for one in ones:
        say(f"{name}: {one}")
        if isinstance(one, Missing):
            missing.append(one)
        else:
            found.append(one)
    return found, missing


def nested(figures: Iterable[tuple[tuple[str, ...], float | None]]) -> dict[str, Any]:
    """Nest figures by the words of their places.

    Examples
    --------
    >>> nested([(("resnet50", "W8A8"), 0.9), (("resnet50", "W4A4"), None)])
    {'resnet50': {'W8A8': 0.9, 'W4A4': None}}
    """
    out: dict[str, Any] = {}
    for (*outer, last), figure in figures:
        row = out
        for word in outer:
            row = row.setdefault(word, {})
        row[last] = figure
    return out


def words(*parts: str | Mapping[str, Any] | pd.DataFrame, missing: Iterable[Missing] = ()) -> str:
    """Sentences, figures and tables, one below the other, and below why some figures are missing.

    Parameters
    ----------
    parts : sentence, figures by name, or table, whose index is not shown
    missing : Missing
        One line per reason, with all places that it holds for.

    Examples
    --------
    >>> print(words("Seconds", {"one worker": 4.0}, missing=[Missing(("two", "B"), "none")]))
    Seconds
    <BLANKLINE>
    one worker                   4.0
    <BLANKLINE>
    - B, two: failed: none
    """
    places: dict[tuple[str, str], list[str]] = {}
    for one in missing:
        *where, last = one.place
        if one.kind == NOT_INSTALLED:
            places.setdefault(("", one.reason), [])
        else:
            places.setdefault((last, f"{one.kind}: {one.reason}"), [last]).append(" ".join(where))
    reasons = [
        f"- {', '.join(where)}: {why}" if where else f"- {why}"
        for (_, why), where in places.items()
    ]
    return "\n\n".join([*map(_block, parts), *(["\n".join(reasons)] * bool(reasons))])


def _block(part: str | Mapping[str, Any] | pd.DataFrame) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        text: str = part.to_string(index=False, na_rep="-")
        return text
    lines = []
    for key, value in part.items():
        if isinstance(value, Mapping):
            lines.append(key)
            lines += [f"  {inner:<26} {figure}" for inner, figure in value.items()]
        else:
            shown = f"{len(value)} rows, see the file" if isinstance(value, list) else value
            lines.append(f"{key:<28} {shown}")
    return "\n".join(lines)


def say(line: str) -> None:
    """Tell whoever waits how far a benchmark is."""
    print(line, file=sys.stderr, flush=True)
