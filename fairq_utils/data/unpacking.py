"""Archives of strangers: nothing is written outside their folder, and none of it by halves."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fairq_utils.faults import Fault

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """One entry of an archive: its name, bytes when unpacked, whether it is a file, a folder."""

    name: str
    size: int
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, root: Path, folders: tuple[str, ...]) -> list[Path]:
    """Unpack these folders of a zip or tar archive under ``root``.

    Each may stand at the archive's top or in one folder below it; what is in none of them is left
    out. They are written to a hidden folder and renamed when all are complete.

    Parameters
    ----------
    archive : zip, tar, or compressed tar; told by its content
    root : folder that exists
    folders : names of what to take

    Returns
    -------
    list of Path
        The folders, in the order given.

    Raises
    ------
    Fault
        The archive is damaged, a name in it leaves the folder, an entry is a link or a device, a
        folder is not in it, or the disk has no room; nothing is under a final name.
    """
    scratch = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=root))
    try:
        with _opened(archive) as members:
            places = _places(archive, members, folders)
            _room(archive, root, sum(member.size for member, _ in places))
            for member, place in places:
                target = scratch / place
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, target.open("wb") as stream:
                    shutil.copyfileobj(source, stream)
                if target.stat().st_size != member.size:
                    raise EOFError(f"{member.name} is cut short")
        found = []
        for name in folders:
            if not (scratch / name).is_dir():
                raise Fault(f"{archive}: there is no folder {name} in it")
            if not (root / name).exists():
                (scratch / name).rename(root / name)
            found.append(root / name)
        return found
    except DAMAGED as error:
        raise Fault(
            f"{archive}: the archive is damaged ({error}); delete it, and the same command "
            "fetches it again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[list[Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield [_of_zip(file, entry) for entry in file.infolist()]
    else:
        with tarfile.open(archive) as file:
            entries = file.getmembers()
            # A tar that is cut short looks like a shorter one; its compression knows better.
            while file.fileobj is not None and file.fileobj.read(1 << 20):
                pass
            yield [_of_tar(file, entry) for entry in entries]


def _of_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member:
    # The upper half of external_attr is the mode that Unix gave; its type bits are 0 elsewhere.
    kind = (entry.external_attr >> 16) & 0o170000
    folder = entry.is_dir()
    return Member(
        entry.filename,
        entry.file_size,
        not folder and kind in (0, 0o100000),
        folder,
        lambda: archive.open(entry),
    )


def _of_tar(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Member:
    def opened() -> IO[bytes]:
        stream = archive.extractfile(entry)
        assert stream is not None  # only files are opened
        return stream

    return Member(entry.name, entry.size, entry.isfile(), entry.isdir(), opened)


def _places(
    archive: Path, members: list[Member], folders: tuple[str, ...]
) -> list[tuple[Member, PurePosixPath]]:
    """Files to take, and where each goes; every name is looked at before anything is written."""
    found = []
    for member in members:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
            raise Fault(
                f"{archive}: {member.name!r} would be written outside the folder; this is not the "
                "collection's archive, nothing was unpacked"
            )
        if member.is_folder:
            continue
        if not member.is_file:
            raise Fault(
                f"{archive}: {member.name!r} is a link or a device; this is not the collection's "
                "archive, nothing was unpacked"
            )
        parts = [part for part in path.parts if part != "."]
        start = next((i for i, part in enumerate(parts[:2]) if part in folders), None)
        if start is not None and len(parts) > start + 1 and parts[0] != "__MACOSX":
            found.append((member, PurePosixPath(*parts[start:])))
    return found


def _room(archive: Path, root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise Fault(
            f"{archive}: unpacked it takes {needed / 1e6:.0f} MB, but {os.fspath(root)} has "
            f"{free / 1e6:.0f} MB free; free some space and run the same command"
        )
