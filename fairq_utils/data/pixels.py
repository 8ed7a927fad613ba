"""Photographs decoded once and kept: an array on disk, and what was left out of it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from fairq_utils.data.decoding import Unreadable, decode
from fairq_utils.data.listing import Finding, Listing
from fairq_utils.data.pictures import Pictures
from fairq_utils.faults import BadInput
from fairq_utils.fingerprint import code_version, fingerprint

__all__ = ["CHUNK", "Pictures", "Progress", "decoded"]

Progress = Callable[[str, int, int], None]
CHUNK = 64  # pictures that are decoded, written and checked together
SYNCED = 16  # chunks between two waits for the disk
JOURNAL = "journal.jsonl"  # a line per chunk: first row, checksum, what was left out
MANIFEST = "manifest.json"
IMAGES = "images.npy"
DECODER = ("fairq_utils.data.decoding",)


def decoded(
    listing: Listing,
    size: int,
    cache: Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Pictures, tuple[Finding, ...]]:
    """Pictures of a listing, decoded unless they were before.

    They stand in ``CACHE/photographs/FINGERPRINT/images.npy``, one row per picture of the listing.
    The fingerprint is of the names, the files' sizes and times, the pixels per side and the
    decoder; a picture that changes gets another one. Every chunk that is on disk is noted in a
    journal with its checksum, so that a decoding that was stopped goes on, and a damaged file is
    mended where it is damaged. Threads decode: Pillow works without the interpreter's lock.

    Parameters
    ----------
    threads : as many as there are processors unless named
    progress : called as ``progress(name, done, total)``

    Returns
    -------
    pictures, findings
        Those that could be decoded, ``pictures.rows`` being their rows in the listing, and what is
        wrong with each of the others.

    Raises
    ------
    BadInput
        The disk cannot hold them.
    """
    recipe = _recipe(listing, size)
    folder = cache / "photographs" / fingerprint(recipe, 20)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{folder.parent}: cannot be made ({error.strerror or error}); name another cache"
        ) from error
    with _alone(folder.with_name(f".{folder.name}.lock")):
        damage = _damage(folder, recipe) if folder.exists() else "it is not there"
        if damage is not None:
            scratch = folder.with_name(f".{folder.name}.part")
            if folder.exists():
                warnings.warn(f"{folder}: {damage}; decoding these again", stacklevel=3)
                shutil.rmtree(scratch, ignore_errors=True)
                folder.rename(scratch)
            _decode(listing, size, scratch, threads or _processors(), progress)
            _finish(scratch, folder, recipe, listing)
    left_out = json.loads((folder / MANIFEST).read_text())["left_out"]
    findings = tuple(Finding(str(listing.files[i]), kind, why) for i, kind, why in left_out)
    kept = np.ones(len(listing), bool)
    kept[[i for i, _, _ in left_out]] = False
    return Pictures(folder / IMAGES, np.flatnonzero(kept)), findings


def _recipe(listing: Listing, size: int) -> dict[str, Any]:
    return {
        "files": hashlib.sha256("\n".join(listing.files.tolist()).encode()).hexdigest(),
        "state": listing.state() if listing.state is not None else None,
        "pictures": len(listing),
        "size": size,
        "pillow": PIL.__version__,
        "code": code_version(DECODER),
    }


def _processors() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Only one process decodes the same pictures; the others wait and find them decoded."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _decode(
    listing: Listing, size: int, scratch: Path, threads: int, progress: Progress | None
) -> None:
    """Fill ``scratch`` with what is missing there."""
    row = 3 * size * size
    images = -1
    try:
        scratch.mkdir(exist_ok=True)
        header = _allocated(scratch / IMAGES, (len(listing), 3, size, size))
        images = os.open(scratch / IMAGES, os.O_RDWR)
        entries = _sound(scratch, images, header, row, len(listing))
        done = sum(_length(start, len(listing)) for start in entries)
        # Only sound chunks stand in the journal that goes on.
        _replace(scratch / JOURNAL, [entries[start] for start in sorted(entries)])
        missing = [start for start in range(0, len(listing), CHUNK) if start not in entries]

        def chunk(start: int) -> dict[str, Any]:
            pixels, left_out = _chunk(listing, start, size)
            _write(images, pixels, header + start * row)
            return {"start": start, "sha256": _sha256(pixels), "left_out": left_out}

        with (
            ThreadPoolExecutor(threads) as pool,
            (scratch / JOURNAL).open("a", encoding="utf-8") as journal,
        ):
            for first in range(0, len(missing), SYNCED):
                running: list[Future[dict[str, Any]]] = [
                    pool.submit(chunk, start) for start in missing[first : first + SYNCED]
                ]
                finished = []
                for future in running:
                    finished.append(future.result())
                    done += _length(finished[-1]["start"], len(listing))
                    if progress is not None:
                        progress(listing.name, done, len(listing))
                os.fdatasync(images)
                journal.writelines(json.dumps(entry) + "\n" for entry in finished)
                journal.flush()
    except OSError as error:
        raise BadInput(
            f"{scratch}: cannot be written ({error.strerror or error}); "
            f"{len(listing) * row / 2**30:.1f} GiB are needed, or another cache"
        ) from error
    finally:
        if images >= 0:
            os.close(images)


def _chunk(
    listing: Listing, start: int, size: int
) -> tuple[NDArray[np.uint8], list[tuple[int, str, str]]]:
    """Pixels of a chunk, zeros where a picture cannot be used, and why it cannot."""
    pixels = np.zeros((_length(start, len(listing)), 3, size, size), np.uint8)
    left_out = []
    for i in range(len(pixels)):
        try:
            pixels[i] = decode(listing.read(start + i), size)
        except Unreadable as error:
            left_out.append((start + i, error.kind, str(error)))
        except OSError as error:
            why = f"cannot be read ({error.strerror or error})"
            left_out.append((start + i, "unreadable", why))
    return pixels, left_out


def _length(start: int, total: int) -> int:
    return min(CHUNK, total - start)


def _allocated(path: Path, shape: tuple[int, ...]) -> int:
    """Make the array's file unless it is there in full; returns where its pixels begin."""
    header = _header(path, shape)
    if header is None:
        path.unlink(missing_ok=True)
        header = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).offset
    return header


def _header(path: Path, shape: tuple[int, ...]) -> int | None:
    """Bytes before the pixels, as the file says; None unless it holds this array and no more."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except (OSError, ValueError, EOFError):
        return None
    there = array.shape == shape and array.dtype == np.uint8 and array.flags.c_contiguous
    return array.offset if there and size == array.offset + array.nbytes else None


def _write(file: int, pixels: NDArray[np.uint8], offset: int) -> None:
    rest = pixels.data.cast("B")
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def _sound(
    folder: Path, images: int, header: int, row: int, total: int
) -> dict[int, dict[str, Any]]:
    """Entries of the journal whose pixels are on disk as they were written."""
    found = {}
    for line in _journal(folder):
        start = line["start"]
        pixels = os.pread(images, _length(start, total) * row, header + start * row)
        if hashlib.sha256(pixels).hexdigest() == line["sha256"]:
            found[start] = line
    return found


def _journal(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of the journal; the last one may be cut where a process was killed."""
    try:
        lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"start", "sha256", "left_out"} <= entry.keys():
            found.append(entry)
    return found


def _replace(path: Path, entries: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    temporary.replace(path)


def _finish(scratch: Path, folder: Path, recipe: dict[str, Any], listing: Listing) -> None:
    """Write the manifest and give the folder its name."""
    seen = (scratch / IMAGES).stat()
    entries = sorted(_journal(scratch), key=lambda entry: int(entry["start"]))
    manifest = {
        "recipe": recipe,
        "listing": listing.digest,
        "bytes": seen.st_size,
        "modified_ns": seen.st_mtime_ns,
        "sha256": fingerprint([entry["sha256"] for entry in entries], 64),
        "left_out": [item for entry in entries for item in entry["left_out"]],
    }
    (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    scratch.rename(folder)


def _damage(folder: Path, recipe: dict[str, Any]) -> str | None:
    """What is wrong with kept pictures, or None.

    Pixels are read through only where the file's size or time is no longer the one noted: that is
    some seconds per gigabyte.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        seen = (folder / IMAGES).stat()
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"
    if not isinstance(manifest, dict) or manifest.get("recipe") != recipe:
        return f"{MANIFEST} was written for other pictures"
    if seen.st_size != manifest.get("bytes"):
        return f"{IMAGES} has {seen.st_size} bytes, not {manifest.get('bytes')}"
    entries = sorted(_journal(folder), key=lambda entry: int(entry["start"]))
    if fingerprint([entry["sha256"] for entry in entries], 64) != manifest.get("sha256"):
        return f"{JOURNAL} does not match its checksum"
    if seen.st_mtime_ns == manifest.get("modified_ns"):
        return None
    side = recipe["size"]
    header = _header(folder / IMAGES, (recipe["pictures"], 3, side, side))
    if header is None:
        return f"{IMAGES} is not the array of these pictures"
    row = 3 * side**2
    images = os.open(folder / IMAGES, os.O_RDONLY)
    try:
        sound = _sound(folder, images, header, row, recipe["pictures"])
    finally:
        os.close(images)
    if len(sound) == len(range(0, recipe["pictures"], CHUNK)):
        return None
    return f"{IMAGES} does not match its checksums"


def _sha256(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(pixels.data.cast("B")).hexdigest()
