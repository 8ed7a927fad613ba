"""Files that are there whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairq_utils.errors import Fault

TEMPORARY = "name a folder that can be written in TMPDIR"
ANYBODY_WRITES = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
WAY_OUT = "free some space or name another place"


class NotWritten(Fault):
    """A place cannot be written; the message names it. What was there stays."""


class NotRead(Fault):
    """A file that is there cannot be read; the message names it. It is not damaged by that."""


@contextmanager
def written_whole(
    path: str | os.PathLike[str], *, first_stays: bool = False, way_out: str = WAY_OUT
) -> Iterator[Path]:
    """Path to write to instead; renamed to ``path`` at the end, removed if anything is raised.

    Two processes, also of two hosts on one disk, write under names of their own. Who may read the
    file is decided by the umask, whoever writes it. A link is followed, and a device written to; a
    file that nobody may write stays.

    Parameters
    ----------
    first_stays : bool
        Whether a file that is there by then stays, and what was written is dropped.
    way_out : str
        What to do where the place cannot be written.

    Raises
    ------
    NotWritten
        The disk is full, the file that is there is read-only, or the place cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a" / "table.csv"
    >>> with written_whole(target) as place:
    ...     _ = place.write_text("x")
    >>> target.read_text(), [p.name for p in target.parent.iterdir()]
    ('x', ['table.csv'])
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    with says_place(path, way_out):
        if target.exists() and not (target.is_file() or target.is_dir()):
            yield target
            return
        if target.is_file() and not first_stays and not target.stat().st_mode & ANYBODY_WRITES:
            raise PermissionError(errno.EACCES, "it is read-only")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            allowed = temporary.stat().st_mode
            yield temporary
            _settle(temporary, allowed)
            _rename(temporary, target, first_stays)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def says_place(path: str | os.PathLike[str], way_out: str = WAY_OUT) -> Iterator[None]:
    """Say in one sentence that a place cannot be written, where an :class:`OSError` says so.

    Raises
    ------
    NotWritten
        Whatever within raised an :class:`OSError`.

    Examples
    --------
    >>> with says_place("a.csv"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    fairq_utils.data.whole_files.NotWritten: a.csv: could not be written (No space left on \
device); free some space or name another place
    """
    try:
        yield
    except OSError as error:
        raise NotWritten(
            f"{os.fspath(path)}: could not be written ({reason(error)}); {way_out}"
        ) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is gone afterwards.

    Raises
    ------
    NotWritten
        There is no place for it.
    """
    with says_place("temporary files", TEMPORARY):
        folder = tempfile.TemporaryDirectory()
    with folder as name:
        yield Path(name)


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one sentence that a file which is there cannot be read; its content says nothing.

    Raises
    ------
    FileNotFoundError
        There is none.
    NotRead
        Whatever within raised another :class:`OSError`: permissions, a disk, a folder of that name.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotRead(
            f"{os.fspath(path)}: cannot be read ({reason(error)}); nothing was changed, see to its "
            "permissions or its disk"
        ) from error


def in_the_way(folder: str | os.PathLike[str]) -> str:
    """What keeps a folder from being made or used, in words; empty if nothing does.

    Examples
    --------
    >>> in_the_way("/tmp/new/folder"), in_the_way("/dev/null/folder")
    ('', '/dev/null is no folder')
    """
    path = Path(os.path.abspath(folder))
    for place in (path, *path.parents):
        if os.path.lexists(place):
            break
    if place.is_symlink() and not place.exists():
        return f"{place} is a link to nothing"
    return "" if place.is_dir() else f"{place} is no folder"


def reason(error: OSError) -> str:
    """What the system says, without the place.

    Examples
    --------
    >>> reason(OSError(28, "No space left on device", "/tmp/x")), reason(OSError("3 of 9 written"))
    ('No space left on device', '3 of 9 written')
    """
    return error.strerror or str(error) or type(error).__name__


def _settle(path: Path, allowed: int) -> None:
    """Put a file on the disk, with these permissions."""
    if path.stat().st_mode != allowed:
        path.chmod(stat.S_IMODE(allowed))
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _rename(temporary: Path, target: Path, first_stays: bool) -> None:
    if first_stays:
        try:
            os.link(temporary, target)
            return
        except FileExistsError:
            return
        except OSError:  # a file system without links
            pass
    temporary.replace(target)
