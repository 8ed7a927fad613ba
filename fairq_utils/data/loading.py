"""Loading a data set by name, and the cache of rendered people."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fairq_utils.data.faces import FaceData
from fairq_utils.data.photographs.reading import load_photographs
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.pixel_cache import Progress
from fairq_utils.data.population import SPLITS, Population
from fairq_utils.data.questions import ATTRIBUTES
from fairq_utils.data.whole_files import readable, says_place
from fairq_utils.errors import BadInput, needs
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.registry import unknown

CLASSES = ("not smiling", "smiling")  # what a target of 0 and of 1 means of rendered people
RENDERER = ("fairq_utils.data.population", "fairq_utils.data.render")  # and what they import
FILES = ("images.npy", "people.parquet")  # of a rendered split


def load(name: str, **options: Any) -> FaceData:
    """Load a data set by name.

    Parameters
    ----------
    name : str
        ``population``, the rendered people; options as in :func:`load_population`. Or one of
        :data:`~fairq_utils.data.photographs.registry.COLLECTIONS`, such as ``celeba``; options as
        in :func:`fairq_utils.data.photographs.reading.load_photographs`.

    Raises
    ------
    ValueError
        Unknown name, or an option out of range.
    """
    if name == "population":
        return load_population(**options)
    if name not in COLLECTIONS:
        raise BadInput(f"data.name: {unknown(name, ['population', *COLLECTIONS])}")
    return load_photographs(name, **options)


@needs("rendering people", "study")
def load_population(
    *,
    sizes: Mapping[str, int],
    size: int = 64,
    population: Population | Mapping[str, Population] | None = None,
    cache: str | os.PathLike[str] = "build/cache",
    device: str | None = None,
    progress: Progress | None = None,
) -> FaceData:
    """Render a population, or read it from the cache where it was rendered before.

    Parameters
    ----------
    sizes : mapping of split to number of faces
        Splits of :data:`fairq_utils.data.population.SPLITS`.
    size : int
        Pixels per side, 16 to 512.
    population : Population, or mapping of split to Population, optional
    cache : path
        Folder of rendered splits; each carries the checksum of its files and what made them.
    device : str, optional
        Warp device that renders.
    progress : callable, optional
        Called as ``progress(split, done, total)``.

    Returns
    -------
    FaceData
        Splits in the order given; ``factors`` holds the renderer's coefficients.
    """
    population = population or Population()
    people = (
        {split: population for split in sizes}
        if isinstance(population, Population)
        else dict(population)
    )
    if not 16 <= size <= 512:
        raise ValueError(f"data.size: {size} pixels is not between 16 and 512")
    parts = []
    for split, count in sizes.items():
        if split not in SPLITS:
            raise ValueError(f"data: split {split!r} is not one of {', '.join(SPLITS)}")
        if count < 1:
            raise ValueError(f"data.{split}: {count} faces; it needs at least one")
        parts.append(_split(people[split], split, count, size, Path(cache), device, progress))
    images = torch.cat([torch.from_numpy(image) for image, _ in parts])
    table = pd.concat([table for _, table in parts], ignore_index=True)
    groups = pd.DataFrame(
        {
            name: pd.Categorical(table.pop(f"group_{name}"), categories=list(values))
            for name, values in ATTRIBUTES.items()
        }
    )
    return FaceData(
        images=images,
        target=table.pop("target").to_numpy(np.int8),
        groups=groups,
        split=np.repeat(list(sizes), [len(t) for _, t in parts]),
        factors=table,
        meta={
            "source": "rendered population (Anny, Warp)",
            "licence": "CC0-1.0 (MakeHuman assets)",
            "classes": CLASSES,
            "population": {split: asdict(people[split]) for split in sizes},
            "size": size,
        },
    )


def short_of_room(split: str, count: int, size: int, cache: Path) -> str:
    """What rendered images of a split take, where this machine does not have it; else empty.

    Examples
    --------
    >>> short_of_room("test", 1000, 64, Path("build"))
    ''
    >>> short_of_room("train", 10**9, 64, Path("build")).partition("; ")[0]
    'data.train: 1,000,000,000 images of 64 pixels take 11,444 GiB on disk and in memory'
    """
    needed = count * 3 * size**2
    place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed <= min(free, memory):
        return ""
    return (
        f"data.{split}: {count:,} images of {size} pixels take {_amount(needed)} on disk and in "
        f"memory; {cache} has {_amount(free)} free and this machine {_amount(memory)} of memory, "
        "so ask for fewer"
    )


def _amount(size: int) -> str:
    return f"{size / 2**30:,.0f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _recipe(population: Population, split: str, count: int, size: int) -> dict[str, Any]:
    return {
        "population": asdict(population),
        "split": split,
        "count": count,
        "size": size,
        "anny": version("anny"),
        "code": code_version(*RENDERER),
    }


def _split(
    population: Population,
    split: str,
    count: int,
    size: int,
    cache: Path,
    device: str | None,
    progress: Progress | None,
) -> tuple[np.ndarray, pd.DataFrame]:
    recipe = _recipe(population, split, count, size)
    folder = cache / "population" / f"{split}-{fingerprint(recipe, 16)}"
    if folder.exists():
        damage = _damage(folder, recipe)
        if damage is None:
            return np.load(folder / "images.npy"), pd.read_parquet(folder / "people.parquet")
        warnings.warn(f"{folder}: {damage}; rendering these faces again", stacklevel=4)
        shutil.rmtree(folder)
    short = short_of_room(split, count, size, cache)
    if short:
        raise BadInput(short)
    # Rendering pulls in Warp and the head model: not before there is something to render.
    from fairq_utils.data.render import render

    done = 0

    def tick(faces: int) -> None:
        nonlocal done
        done += faces
        if progress is not None:
            progress(split, done, count)

    images, people = render(population, split, np.arange(count), size, device=device, progress=tick)
    table = pd.concat(
        [
            p.factors().assign(
                target=p.target, **{f"group_{c}": p.groups[c].astype(str) for c in p.groups}
            )
            for p in people
        ],
        ignore_index=True,
    )
    with says_place(folder, "free some space, or name another folder in execution.cache"):
        _keep(folder, recipe, images, table)
    return images, table


def _keep(folder: Path, recipe: dict[str, Any], images: np.ndarray, table: pd.DataFrame) -> None:
    """Write a split into a folder that is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        scratch.mkdir()
        np.save(scratch / "images.npy", images)
        table.to_parquet(scratch / "people.parquet")
        manifest = {"recipe": recipe, "sha256": {f: _sha256(scratch / f) for f in FILES}}
        (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.exists():  # else another process has finished the same faces
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _damage(folder: Path, recipe: dict[str, Any]) -> str | None:
    """Damage of a cached split in words, or None; what cannot be read raises ``NotRead``."""
    try:
        with readable(folder / "manifest.json"):
            manifest = json.loads((folder / "manifest.json").read_text())
    except (FileNotFoundError, ValueError) as error:
        return f"manifest.json cannot be read ({error})"
    if manifest.get("recipe") != json.loads(json.dumps(recipe)):
        return "manifest.json was written for other faces"
    for name in FILES:
        try:
            with readable(folder / name):
                found = _sha256(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        if found != manifest["sha256"].get(name):
            return f"{name} does not match its checksum"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
