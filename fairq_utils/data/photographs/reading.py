"""Reading a collection of photographs: a list of its images, and the images themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fairq_utils.data import splits
from fairq_utils.data.faces import FaceData
from fairq_utils.data.files import checked_root
from fairq_utils.data.listing import Finding, Listing
from fairq_utils.data.photographs.registry import COLLECTIONS, Collection
from fairq_utils.data.pixel_cache import Progress, decoded
from fairq_utils.errors import BadInput

LEAST, MOST = 16, 512  # pixels per side
SHOWN = 3  # findings that an error quotes

Groups = Mapping[str, str] | Sequence[str]


def listing(
    name: str,
    root: str | os.PathLike[str],
    *,
    target: str | None = None,
    groups: Groups | None = None,
    held_out: Mapping[str, float] | None = None,
    images: Mapping[str, int] | None = None,
    max_bad: int = 0,
    **options: str | float,
) -> Listing:
    """List the images of a folder and who is in them; none is read.

    Parameters
    ----------
    name : one of :data:`~fairq_utils.data.photographs.registry.COLLECTIONS`
    root : folder that holds the collection
    target, groups, held_out, options
        As in the collection's own ``listing``, such as
        :func:`fairq_utils.data.photographs.celeba.listing`.
    images : split -> how many of its images are kept, the first by SHA-256 of their names
    max_bad : how many images may be left out because of what is wrong with them

    Returns
    -------
    Listing
        In the order of SHA-256 of the images' names, whatever the layout: the first images of
        a split are a sample of it. Its findings say what was left out and why.

    Raises
    ------
    BadInput
        The folder does not hold the collection, an option cannot be, or more than ``max_bad``
        images cannot be used.
    """
    entry = COLLECTIONS.find(name, "data.name")
    own = entry.checked(options)
    try:
        place = _root(entry, root)
        found = entry.listing(place, target=target, groups=groups, held_out=held_out, **own)
    except OSError as error:
        raise BadInput(
            f"{error.filename or root}: cannot be read ({error.strerror or error}); give this user "
            "the right to, or name another folder"
        ) from error
    if len(found):
        _refuse(entry, place, found.findings, max_bad)
    else:
        why = f" ({found.findings[0].place}: {found.findings[0].problem})" if found.findings else ""
        raise BadInput(
            f"{place}: no image there can be used as one of {entry.title}{why}; name the folder "
            f"that holds {entry.title}, or mend its images"
        )
    keys = list(found.keys if found.keys is not None else found.files)
    return found.take(splits.ordered(keys, found.split, images))


def load_photographs(
    name: str,
    *,
    root: str | os.PathLike[str],
    size: int = 64,
    cache: str | os.PathLike[str] = "build/cache",
    progress: Progress | None = None,
    threads: int | None = None,
    max_bad: int = 0,
    **options: Any,
) -> FaceData:
    """Decode a collection, or read it from the cache where it was decoded before.

    Parameters
    ----------
    name : one of :data:`~fairq_utils.data.photographs.registry.COLLECTIONS`
    root : folder that holds the collection
    size : pixels per side, 16 to 512
    cache : folder of decoded images; each has the checksums of what it holds
    progress : called as ``progress(name, done, total)``
    threads : that decode; as many as there are processors unless named
    max_bad, options : of :func:`listing`

    Returns
    -------
    FaceData
        Its images stay on disk and are read as they are used. Of an image that is in two splits
        one is left out, and both where their labels contradict each other; see
        :func:`~fairq_utils.data.splits.duplicates`.
        ``meta["contents"]`` has for each split the SHA-256 of names, pixels, targets and groups of
        the images that are in it.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not LEAST <= size <= MOST:
        raise BadInput(f"data.size: {size} pixels is not between {LEAST} and {MOST}")
    entry = COLLECTIONS.find(name, "data.name")
    found = listing(name, root, max_bad=max_bad, **options)
    kept = decoded(found, size, Path(cache), threads=threads, progress=progress)
    found = found.take(kept.rows)
    twice = splits.duplicates(found, {i: str(kept.digests[i]) for i in found.as_stored().tolist()})
    everything = (*found.findings, *kept.findings, *twice.values())
    _refuse(entry, _root(entry, root), everything, max_bad)
    lost = [i for i, finding in twice.items() if finding.counts]
    rows = np.delete(np.arange(len(found)), lost)
    found = replace(found.take(rows), findings=everything)
    return FaceData(
        images=kept.images.take(rows),
        target=found.target,
        groups=found.groups,
        split=found.split,
        meta={
            **found.meta,
            "size": size,
            "images": len(found),
            "findings": [
                {"place": f.place, "kind": f.kind, "problem": f.problem, "counts": f.counts}
                for f in everything
            ],
            "digest": found.digest,
            "contents": {
                str(split): found.digest_of(split, kept.digests[rows])
                for split in np.unique(found.split)
            },
        },
    )


def _root(entry: Collection, root: str | os.PathLike[str]) -> Path:
    command = f"fairq data get {entry.name} --root" if entry.published else ""
    return checked_root(root, entry.title, command)


def _refuse(entry: Collection, root: Path, findings: Sequence[Finding], max_bad: int) -> None:
    """Refuse a collection of which more than ``max_bad`` images cannot be used."""
    if isinstance(max_bad, bool) or not isinstance(max_bad, int) or max_bad < 0:
        raise BadInput(f"max_bad: {max_bad!r} is no number of images; name 0 or more")
    lost = [finding for finding in findings if finding.counts]
    if len(lost) <= max_bad:
        return
    quoted = "; ".join(f"{finding.place}: {finding.problem}" for finding in lost[:SHOWN])
    more = f"; and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    what = "image or label" if len(lost) == 1 else "images or labels"
    raise BadInput(
        f"{root}: {len(lost)} {what} of {entry.title} cannot be used and max_bad allows "
        f"{max_bad}: {quoted}{more}. Mend them, or leave them out with max_bad: {len(lost)}"
    )
