"""Errors that a user can mend: the command line says them in one sentence, and ends.

It ends with 0, or with one sentence and 1, 2 or 130.
"""

from __future__ import annotations

import os
import select
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

# Unicode's categories of control, format, surrogate, private and unassigned characters, and of ends
# of lines and paragraphs.
UNPRINTED = frozenset("Cc Cf Cs Co Cn Zl Zp".split())


class Fault(RuntimeError):
    """Something went wrong that the message names, with the place and the way out."""

    exit_code = 1


class BadInput(Fault, ValueError):
    """Input that cannot be used; nothing was computed or written."""

    exit_code = 2


class MissingExtra(Fault, ImportError):
    """Optional dependencies are not installed; the message names the extra that brings them."""


@contextmanager
def needs(what: str, extra: str | None) -> Iterator[None]:
    """Say in one sentence which optional dependencies are missing, where a package is.

    Parameters
    ----------
    what : that was asked for, such as ``"`fairq run`"``
    extra : of ``pyproject.toml``, or several with commas; None where what is missing is a defect

    Raises
    ------
    MissingExtra
        A package that is imported within is not there.

    Examples
    --------
    >>> try:
    ...     with needs("`fairq run`", "study"):
    ...         import missing_package
    ... except MissingExtra as error:
    ...     print(error)
    `fairq run` needs the study extra (no missing_package): pip install 'fairq_utils[study]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if extra is None or missing == __name__.partition(".")[0]:
            raise
        extras = f"{extra.replace(',', ' and ')} extra{'s' if ',' in extra else ''}"
        raise MissingExtra(
            f"{what} needs the {extras} (no {missing}): pip install 'fairq_utils[{extra}]'"
        ) from None


def printable(text: str) -> str:
    r"""Text whose characters that a terminal obeys, or that are no text, are written as escapes.

    >>> printable("a\x1b[2Jb\udcff")
    'a\\x1b[2Jb\\udcff'
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in UNPRINTED else c
        for c in text
    )


@contextmanager
def in_one_sentence(kept: str = "every finished run is kept") -> Iterator[None]:
    """Say what a user can mend in one sentence, not in a traceback, and end the command.

    Exit code 2 is input that cannot be used, 130 an interruption, 1 anything else.

    Parameters
    ----------
    kept : what an interruption leaves, as the same command goes on from there
    """
    import typer  # here, because it takes a fifth of a second

    try:
        yield
    except Fault as error:
        typer.echo(_lines(error), err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo(f"fairq: stopped; {kept}, the same command goes on", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError as error:
        if not _nobody_reads():
            typer.echo(f"fairq: {error}", err=True)
        raise typer.Exit(1) from None
    except (FloatingPointError, OSError, ValueError) as error:
        typer.echo(f"fairq: {_lines(error)}", err=True)
        raise typer.Exit(1) from error


def _lines(error: Exception) -> str:
    return "\n".join(map(printable, str(error).splitlines()))


def _nobody_reads() -> bool:
    """True if what reads the output is gone, as ``head`` is; then no more is written to it."""
    output = 1
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # else the end of the process writes to it
    return True


def stops_quietly() -> None:
    """Say an interruption of this process that nothing else says in one line, as while it loads."""
    usual = sys.excepthook

    def said(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("fairq: stopped", file=sys.stderr)
        else:
            usual(kind, error, place)

    sys.excepthook = said
