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
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from fairq_utils.data.decoding import Unreadable, decode
from fairq_utils.data.faces import StoredImages
from fairq_utils.data.listing import Finding, Listing
from fairq_utils.data.whole_files import readable, says_place, written_whole
from fairq_utils.errors import BadInput, Fault
from fairq_utils.fingerprint import code_version, fingerprint

Progress = Callable[[str, int, int], None]
CHUNK = 64  # images that are decoded, written and checked together
SYNCED = 16  # chunks between two waits for the disk
JOURNAL = "journal.jsonl"  # a line per chunk: first row, its images' digests, what was left out
MANIFEST = "manifest.json"
IMAGES = "images.npy"
DIGEST = 16  # bytes of an image's digest
DECODER = "fairq_utils.data.decoding"


class Decoded(NamedTuple):
    """Images of a listing that could be decoded, and findings of the others.

    Attributes
    ----------
    images : N of them, in the listing's order
    rows : int64 (N,)
        Their rows in the listing.
    digests : array of str (N,)
        BLAKE2b of each image's pixels, in hexadecimal.
    findings : what is wrong with each of the others, in the order of their files
    """

    images: StoredImages
    rows: NDArray[np.int64]
    digests: NDArray[np.str_]
    findings: tuple[Finding, ...]


def decoded(
    listing: Listing,
    size: int,
    cache: Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Decoded:
    """Images of a listing, decoded unless they were before.

    They stand in ``CACHE/photographs/FINGERPRINT/images.npy``, one row per image of the listing,
    in the order of their files. The fingerprint is of the names, the files' sizes and times, the
    pixels per side and the decoder; an image that changes gets another one. Every chunk that is on
    disk is noted in a journal with the digest of each image, so that a decoding that was stopped
    goes on, a damaged file is mended where it is damaged, and what an image shows has a name
    without a look at its pixels. Threads decode: Pillow works without the interpreter's lock.

    Parameters
    ----------
    threads : as many as there are processors unless named
    progress : called as ``progress(name, done, total)``

    Raises
    ------
    BadInput
        The disk cannot hold them.
    Fault
        A file could not be read, or memory was short: nothing is noted about such an image, and
        it is read again the next time.
    """
    order = listing.as_stored()
    listing = listing.take(order)
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
    entries = _journal(folder, len(listing))
    left_out = [item for entry in entries for item in entry["left_out"]]
    digests = np.array([digest for entry in entries for digest in entry["digests"]], np.str_)
    kept = np.ones(len(listing), bool)
    kept[[i for i, _, _ in left_out]] = False
    row_of = np.argsort(order)  # row in the array of each image of the listing
    rows = np.flatnonzero(kept[row_of])
    return Decoded(
        StoredImages(folder / IMAGES, row_of[rows]),
        rows,
        digests[row_of[rows]],
        tuple(Finding(str(listing.files[i]), kind, why) for i, kind, why in left_out),
    )


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
    """Lock out other processes: they wait, and find the same images decoded."""
    with says_place(path, "name another cache"):
        lock = path.open("w")
    with lock:
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
            digests = [_digest(image.data.cast("B")) for image in pixels]
            return {"start": start, "digests": digests, "left_out": left_out}

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
    """Pixels of a chunk, zeros where an image cannot be used, and why it cannot."""
    pixels = np.zeros((_length(start, len(listing)), 3, size, size), np.uint8)
    left_out = []
    for i in range(len(pixels)):
        try:
            pixels[i] = decode(listing.read(start + i), size)
        except Unreadable as error:
            left_out.append((start + i, error.kind, str(error)))
        except (OSError, MemoryError) as error:
            # Of the disk or of this machine at this moment, not of the image.
            reason = getattr(error, "strerror", None) or str(error) or "memory is short"
            raise Fault(
                f"{listing.files[start + i]}: cannot be read now ({reason}); see to it and run the "
                "same command, which goes on"
            ) from error
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
        with readable(path):
            array = np.lib.format.open_memmap(path, mode="r")
            size = path.stat().st_size
    except (FileNotFoundError, ValueError, EOFError):
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
    for entry in _journal(folder, total):
        start = entry["start"]
        pixels = os.pread(images, _length(start, total) * row, header + start * row)
        there = [_digest(pixels[at : at + row]) for at in range(0, len(pixels), row)]
        if there == entry["digests"]:
            found[start] = entry
    return found


def _journal(folder: Path, total: int) -> list[dict[str, Any]]:
    """Whole lines of the journal, by their rows; one may be cut where a process was killed."""
    try:
        with readable(folder / JOURNAL):
            lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    found = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not {"start", "digests", "left_out"} <= entry.keys():
            continue
        if len(entry["digests"]) == _length(entry["start"], total):
            found[int(entry["start"])] = entry
    return [found[start] for start in sorted(found)]


def _replace(path: Path, entries: list[dict[str, Any]]) -> None:
    with written_whole(path) as place:
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        place.write_text(text, encoding="utf-8")


def _finish(scratch: Path, folder: Path, recipe: dict[str, Any], listing: Listing) -> None:
    """Write the manifest and give the folder its name."""
    seen = (scratch / IMAGES).stat()
    manifest = {
        "recipe": recipe,
        "listing": listing.digest,
        "bytes": seen.st_size,
        "modified_ns": seen.st_mtime_ns,
        "journal": fingerprint(_journal(scratch, len(listing)), 64),
    }
    with says_place(folder, "free some space or name another cache"):
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        scratch.rename(folder)


def _damage(folder: Path, recipe: dict[str, Any]) -> str | None:
    """Damage of kept images in words, or None.

    Pixels are read through only where the file's size or time is no longer the one noted: that is
    some seconds per gigabyte.
    """
    try:
        with readable(folder):
            manifest = json.loads((folder / MANIFEST).read_text())
            seen = (folder / IMAGES).stat()
    except (FileNotFoundError, ValueError) as error:
        return f"it cannot be read ({error})"
    if not isinstance(manifest, dict) or manifest.get("recipe") != recipe:
        return f"{MANIFEST} was written for other images"
    if seen.st_size != manifest.get("bytes"):
        return f"{IMAGES} has {seen.st_size} bytes, not {manifest.get('bytes')}"
    if fingerprint(_journal(folder, recipe["pictures"]), 64) != manifest.get("journal"):
        return f"{JOURNAL} does not match its checksum"
    if seen.st_mtime_ns == manifest.get("modified_ns"):
        return None
    side = recipe["size"]
    header = _header(folder / IMAGES, (recipe["pictures"], 3, side, side))
    if header is None:
        return f"{IMAGES} is not the array of these images"
    row = 3 * side**2
    images = os.open(folder / IMAGES, os.O_RDONLY)
    try:
        sound = _sound(folder, images, header, row, recipe["pictures"])
    finally:
        os.close(images)
    if len(sound) == len(range(0, recipe["pictures"], CHUNK)):
        return None
    return f"{IMAGES} does not match its checksums"


def _digest(pixels: bytes | memoryview) -> str:
    return hashlib.blake2b(pixels, digest_size=DIGEST).hexdigest()
