"""Speed and memory of photographs becoming pixels: decoded, and read back once they were."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fairq_utils.bench.outcome import Outcome
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.data.decoding import Unreadable, decode
from fairq_utils.data.files import FileBytes
from fairq_utils.data.label_tables import SUFFIXES
from fairq_utils.data.listing import Listing
from fairq_utils.data.pixel_cache import decoded
from fairq_utils.data.population import Population
from fairq_utils.errors import BadInput
from fairq_utils.timers import anonymous_memory

SIZE = 64  # pixels per side, as the study has them
WIDTH, HEIGHT = 178, 218  # pixels of CelebA's files
FACES = 64  # that are rendered; further files have the content of these
IMAGES = (1024, 8192)  # of the two data sets whose memory is compared
QUALITY = 90  # of the JPEG files
BATCH = 64  # images that are read together, as in training
REPEATS = 3


@benchmark(
    "data",
    title="photographs decoded, and read back, per second; in what memory",
    needs="folder",
)
def bench_data(subject: Subject) -> Outcome:
    """Decode photographs and read them back, on one core; note the memory that reading takes.

    Reading is of shuffled batches, as training does it, from the memory-mapped array that decoding
    leaves. Files and array are in the system's page cache, for both.

    All files below the folder are used, over again where they are too few; rendered faces, as JPEG
    of CelebA's size, if no folder is given.

    Returns
    -------
    Outcome
        ``decoded_per_second`` and ``read_per_second`` (median of three runs, one core), ``ratio``;
        ``memory``, for each number of images the MB of anonymous resident memory that opening
        and reading all of them adds at most (absent where the system does not tell);
        ``pixels_mb`` beside it, what they would take in memory; ``size``, ``files``,
        ``bytes_per_file``, ``made_of``.

    Raises
    ------
    BadInput
        There is no image file below the folder, or one that cannot be decoded.
    """
    with tempfile.TemporaryDirectory(prefix="fairq-bench-data-") as scratch:
        work = Path(scratch)
        folder = subject.root or _rendered(work / "rendered")
        names = sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        if not names:
            raise BadInput(f"{folder}: there is no image file ({', '.join(SUFFIXES)}) below it")
        small, large = (_listing(folder, names, count) for count in IMAGES)
        decoding = _rate(lambda: _decode(small), len(small))
        weight = statistics.mean((folder / name).stat().st_size for name in names)
        cache = work / "cache"
        for listing in (small, large):
            images = decoded(listing, SIZE, cache).images
        # Of the larger set, whose pixels no processor's cache holds.
        order = np.random.default_rng(0).permutation(len(images))
        reading = _rate(lambda: _read(images, order), len(images))
        # In a process of its own, whose memory holds nothing of the decoding.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            _, *used = pool.starmap(_memory, [(one, cache) for one in (small, small, large)])
    return Outcome(
        {
            "decoded_per_second": round(decoding, 1),
            "read_per_second": round(reading, 1),
            "ratio": round(reading / decoding, 1),
            "memory": {
                f"{count} images (MB)": round(bytes_ / 1e6, 2)
                for count, bytes_ in zip(IMAGES, used, strict=True)
                if bytes_ is not None
            },
            "pixels_mb": {
                f"{count} images (MB)": round(count * 3 * SIZE**2 / 1e6, 1) for count in IMAGES
            },
            "size": SIZE,
            "files": len(names),
            "bytes_per_file": round(weight),
            "made_of": str(subject.root or "rendered faces"),
        }
    )


def _rendered(folder: Path) -> Path:
    """Rendered faces as JPEG files of CelebA's size."""
    from fairq_utils.data.render import default_device, render

    folder.mkdir()
    images, _ = render(
        Population(), "train", np.arange(FACES), HEIGHT, device=default_device(), threads=1
    )
    left = (HEIGHT - WIDTH) // 2
    for i, image in enumerate(images):
        pixels = np.ascontiguousarray(image[:, :, left : left + WIDTH].transpose(1, 2, 0))
        Image.fromarray(pixels).save(folder / f"{i:06d}.jpg", quality=QUALITY)
    return folder


def _listing(folder: Path, names: list[str], count: int) -> Listing:
    """List so many images of a folder, the same over again where there are fewer."""
    files = tuple(names[i % len(names)] for i in range(count))
    return Listing(
        name=f"bench of {count}",
        files=np.array(files),
        target=np.zeros(count, np.int8),
        groups=pd.DataFrame(index=range(count)),
        split=np.full(count, "train"),
        read=FileBytes(folder, files),
    )


def _rate(action: Callable[[], object], count: int) -> float:
    """Images per second: the median of some runs, after one that is not timed."""
    action()
    return count / statistics.median(timeit.repeat(action, repeat=REPEATS, number=1))


def _decode(listing: Listing) -> None:
    for i in range(len(listing)):
        try:
            decode(listing.read(i), SIZE)
        except Unreadable as error:
            raise BadInput(f"{listing.files[i]}: {error}; mend or remove it") from error


def _read(images: Any, order: np.ndarray) -> int:
    """Read all in batches; returns the anonymous memory at its largest, 0 where it is not told."""
    most = 0
    for start in range(0, len(order), BATCH):
        batch = images[order[start : start + BATCH]]
        most = max(most, anonymous_memory() or 0) if start % (16 * BATCH) == 0 else most
        del batch
    return most


def _memory(listing: Listing, cache: Path) -> int | None:
    """Bytes of anonymous memory that opening the kept pixels and reading all of them adds."""
    gc.collect()
    before = anonymous_memory()
    if before is None:
        return None
    images = decoded(listing, SIZE, cache).images
    order = np.random.default_rng(0).permutation(len(images))
    return max(_read(images, order) - before, 0)
