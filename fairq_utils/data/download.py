"""Downloads: resumed, checked, unpacked, and under their final name only when whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fairq_utils.data.photographs.terms import RemoteFile, Source
from fairq_utils.data.whole_files import says_place
from fairq_utils.errors import Fault

CHUNK = 1 << 20  # bytes
UNPACKED = "free some space or name another --root"
TRIES = 3  # connections that break off, one after the other, without a further byte
SILENCE = 60.0  # seconds without a byte that end a connection
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)

Progress = Callable[[str, int, int], None]


def get(
    source: Source, root: str | os.PathLike[str], progress: Progress | None = None
) -> list[Path]:
    """Fetch what is missing of a collection, check it, and unpack archives.

    What is there already is left alone; what was begun is gone on with. An archive is removed once
    its folders are there.

    Parameters
    ----------
    source : Source
    root : folder, made where missing
    progress : callable, optional
        Called as ``progress(name, bytes done, bytes in all or 0)``.

    Returns
    -------
    list of Path
        Files and folders under the root, in the order of ``source.files``.

    Raises
    ------
    Fault
        No network, a wrong checksum, no space, an archive that is damaged or leaves its folder.
        Nothing unfinished is under a final name; parts are kept as ``NAME.part``.
    """
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    there: list[Path] = []
    for file in source.files:
        place = folder / file.into
        targets = [place / name for name in file.gives or (file.name,)]
        there += targets
        if file.gives and all(target.exists() for target in targets):
            continue
        path = fetch(file, folder, progress, otherwise=source.by_hand(str(folder)))
        if file.gives:
            place.mkdir(exist_ok=True)
            unpack(path, place, file.gives)
            path.unlink()
    return there


def fetch(
    file: RemoteFile, folder: Path, progress: Progress | None = None, *, otherwise: str = ""
) -> Path:
    """One file, whole and checked, in ``folder``.

    Parameters
    ----------
    file : RemoteFile
    folder : Path
    progress : as in :func:`get`
    otherwise : what to do by hand where the network does not give the file

    Raises
    ------
    Fault
        As in :func:`get`.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    if path.exists():
        if file.md5 and _md5(path) != file.md5:
            raise Fault(
                f"{path}: is not the collection's file, whose MD5 is {file.md5}; move it away and "
                "run the same command, which fetches it"
            )
        return path
    advice = f"; by hand, {otherwise}" if otherwise else ""
    tries = 0
    while True:
        before = _size(part)
        try:
            if _receive(file, part, progress, advice):
                break
            reason = "the connection broke off"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as e:
            if isinstance(e, urllib.error.HTTPError):
                raise Fault(f"{file.name}: {file.url} answered {e.code} {e.reason}{advice}") from e
            reason = str(getattr(e, "reason", "") or e or type(e).__name__)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Fault(
                f"{part}: the disk is full after {_size(part) / 1e6:.0f} MB; free some space and "
                "run the same command, which goes on"
            ) from error
        tries = 1 if _size(part) > before else tries + 1
        if tries >= TRIES:
            got = _size(part)
            kept = f"; {got / 1e6:.1f} MB are kept, the same command goes on" if got else ""
            raise Fault(f"{file.name}: {file.url} cannot be reached ({reason}){kept}{advice}")
    _check(file, part, advice)
    os.replace(part, path)
    return path


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
    with says_place(root, UNPACKED):
        scratch = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=root))
    try:
        with _opened(archive) as members:
            places = _places(archive, members, folders)
            size = sum(member.size for member, _ in places)
            whole = f"{archive}: unpacked it takes {size / 1e6:.0f} MB"
            _room(root, size, whole, "free some space and run the same command")
            for member, place in places:
                target = scratch / place
                with member.open() as source, says_place(root, UNPACKED):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as stream:
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


def _receive(file: RemoteFile, part: Path, progress: Progress | None, advice: str) -> bool:
    """Append what is missing to a part; whether all of it is there now."""
    have = _size(part)
    request = urllib.request.Request(file.url, headers={"User-Agent": "fairq"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # There is nothing after what we have: all is there, or the part is of something else.
        unmet = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
        if unmet is None or int(unmet[1]) != have:
            part.unlink()
            return False
        return True
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise Fault(
                f"{file.name}: {file.url} answers with a page in the place of the file, as Google "
                f"Drive does when too many have fetched it today; try again tomorrow{advice}"
            )
        length = int(answer.headers.get("Content-Length") or 0)
        goes_on = getattr(answer, "status", None) == 206
        start = have if goes_on else 0
        total = start + length if length else 0
        if goes_on:
            begins, whole = _range(answer.headers.get("Content-Range"))
            # Without a header only a checksum can tell whether this is what was asked for.
            if begins != have and not (begins is None and file.md5):
                if not have:
                    raise Fault(
                        f"{file.name}: {file.url} answers with a part of the file that nobody "
                        f"asked for; try again later{advice}"
                    )
                part.unlink()
                return False
            total = whole or total
        more = f"{file.name}: needs {length / 1e6:.0f} MB more"
        _room(part.parent, length, more, "choose another --root or free some space")
        done = start
        with part.open("ab" if goes_on else "wb") as stream:
            while chunk := answer.read(CHUNK):
                stream.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(file.name, done, total)
    return not total or done == total


def _range(header: str | None) -> tuple[int | None, int]:
    """Where a part begins, None if that is not said, and the size of the whole, 0 if not.

    Examples
    --------
    >>> _range("bytes 5-9/10"), _range("bytes 5-9/*"), _range("5-9/10")
    ((5, 10), (5, 0), (None, 0))
    """
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", header or "")
    return (int(found[1]), int(found[2].replace("*", "0"))) if found else (None, 0)


def _check(file: RemoteFile, part: Path, advice: str) -> None:
    """Refuse, and remove, what is not the file."""
    if file.md5:
        found = _md5(part)
        problem = "" if found == file.md5 else f"its MD5 is {found} in the place of {file.md5}"
    else:
        problem = "" if _size(part) else "it is empty"
    if problem:
        part.unlink()
        raise Fault(
            f"{file.name}: what {file.url} gave is not the collection's file: {problem}; it was "
            f"removed, the same command fetches it again{advice}"
        )


def _room(folder: Path, needed: int, said: str, way_out: str) -> None:
    """Refuse what the disk has no room for."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Fault(f"{said}, but {folder} has {free / 1e6:.0f} MB free; {way_out}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@dataclass(frozen=True)
class Member:
    """One entry of an archive: its name, bytes when unpacked, whether it is a file, a folder."""

    name: str
    size: int
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes]]


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
