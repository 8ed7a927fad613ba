"""Vouching for a folder: the published collection, whole and sound, every image looked at."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.data.decoding import Unreadable, upright
from fairq_utils.data.listing import KINDS, Finding, Listing
from fairq_utils.data.photographs.terms import Published
from fairq_utils.data.splits import duplicates

COLUMNS = ("check", "of", "found", "expected", "ok")
WORDS = {
    "name": "names that say nothing",
    "label": "labels that are none",
    "missing": "labels without an image",
    "unlabelled": "images without a label",
    "unreadable": "images that cannot be read",
    "size": "images of another size",
    "duplicate": "the same image twice",
    "unsafe": "unsafe paths or images",
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """Result of vouching for a folder of photographs.

    Attributes
    ----------
    table : DataFrame
        ``check``, ``of`` (what was counted), ``found``, ``expected`` (a number or words; empty
        where no source says), ``ok``.
    findings : the reader's, and those of the images themselves
    lost : images that cannot be used
    max_bad : how many may be
    """

    table: pd.DataFrame
    findings: tuple[Finding, ...]
    lost: int
    max_bad: int

    @property
    def ok(self) -> bool:
        """True if every check holds."""
        return bool(self.table.ok.all())

    def findings_table(self) -> pd.DataFrame:
        """All findings: ``place``, ``kind``, ``problem``, ``counts``."""
        return pd.DataFrame(
            map(asdict, self.findings), columns=["place", "kind", "problem", "counts"]
        )


def vouch(
    listing: Listing,
    *,
    pixels: bool = True,
    max_bad: int = 0,
    published: Published | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare a folder with the published collection and look for damage and duplicates.

    An image that stands in two splits counts as lost to all but one of them, one that stands twice
    in a split does not, and one that stands twice with other labels is lost to all: see
    :func:`~fairq_utils.data.splits.duplicates`.

    Parameters
    ----------
    listing : Listing
        Of all images, with what its reader left out in ``findings``.
    pixels : bool
        Decode every image; the same image is then found under another encoding as well.
        Without it only bytes are compared, and damage inside a file is not seen.
    max_bad : int
        Images that may be lost; published counts may be missed by as many.
    published : Published, optional
        Counts to compare with; none for a part of a collection.
    progress : callable, optional
        Called as ``progress(images looked at, images)``.

    Raises
    ------
    ValueError
        ``max_bad`` is negative.
    """
    if max_bad < 0:
        raise ValueError(f"max_bad: {max_bad} images; it needs 0 or more")
    seen = list(_images(listing, pixels, published, progress))
    findings = (*listing.findings, *seen)
    lost = sum(finding.counts for finding in findings)
    rows = [
        *_counts(listing, published, max_bad),
        *_groups(listing, published, max_bad),
        *_kinds(findings, pixels),
        (
            "lost",
            "images that cannot be used",
            lost,
            f"at most {max_bad}" if max_bad else "0",
            lost <= max_bad,
        ),
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Report(table, findings, lost, max_bad)


Row = tuple[str, str, int, str, bool]


def _compared(check: str, of: str, found: int, expected: int | None, max_bad: int) -> Row:
    if expected is None:
        return check, of, found, "", True
    return check, of, found, str(expected), abs(found - expected) <= max_bad


def _counts(listing: Listing, published: Published | None, max_bad: int) -> Iterator[Row]:
    """Images in all and by official split."""
    whole = None if published is None else published.images
    yield _compared("images", "all", len(listing), whole, max_bad)
    here = Counter(listing.split.tolist())
    if published is None or not published.splits:
        for name, found in sorted(here.items()):
            yield _compared("images", name, found, None, max_bad)
        return
    for parts, expected in published.splits.items():
        found = sum(here[part] for part in parts)
        yield _compared("images", " + ".join(parts), found, expected, max_bad)


def _groups(listing: Listing, published: Published | None, max_bad: int) -> Iterator[Row]:
    """Images of every value of every attribute, and of every cell that the source counts."""
    for attribute in listing.groups:
        for value, found in listing.groups[attribute].value_counts(sort=False).items():
            yield "group", f"{attribute}={value}", int(found), "more than 0", bool(found > 0)
    if published is None or not published.joint:
        return
    target = str(listing.meta.get("target", ""))
    # Which of the collection's attributes each of ours is, where its reader lets one choose.
    chosen = {**published.attributes, **listing.meta.get("groups", {})}
    attributes = tuple(
        name
        for name, attribute in published.attributes.items()
        if name in listing.groups and chosen[name] == attribute
    )
    names = [listing.groups[name].astype(str) for name in attributes]
    if target == published.target:
        names.append(pd.Series(listing.target, index=listing.groups.index).astype(str))
    cells = Counter("|".join(values) for values in zip(*names, strict=True))
    label = "|".join([*attributes, *([target] if target == published.target else [])])
    for cell, expected in published.cells(attributes, target).items():
        yield _compared(label, cell, cells[cell], expected, max_bad)


def _kinds(findings: tuple[Finding, ...], pixels: bool) -> Iterator[Row]:
    """One row for each kind of fault; whether they are too many is for the last row to say."""
    for kind in KINDS:
        of_kind = [finding for finding in findings if finding.kind == kind]
        told = sum(not finding.counts for finding in of_kind)
        words = f"{WORDS[kind]} ({told} without loss)" if told else WORDS[kind]
        if kind == "size" and not pixels:
            words += " (not looked at)"
        yield kind, words, len(of_kind), "", True


def _images(
    listing: Listing, pixels: bool, published: Published | None, progress: Progress | None
) -> Iterator[Finding]:
    """Findings of the images themselves, in the order of their files."""
    digests: dict[int, bytes] = {}
    sizes = np.zeros((len(listing), 2), np.int32)
    for done, i in enumerate(listing.as_stored().tolist(), 1):
        name = str(listing.files[i])
        try:
            sizes[i], digests[i] = _look(listing.read(i), pixels)
        except Unreadable as error:
            yield Finding(name, error.kind, str(error))
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "memory is short"
            yield Finding(name, "unreadable", f"cannot be read ({reason})")
        if progress is not None:
            progress(done, len(listing))
    yield from duplicates(listing, digests).values()
    yield from _sizes(listing, sizes, published)


def _look(encoded: bytes, pixels: bool) -> tuple[tuple[int, int], bytes]:
    """Width and height, and the SHA-256 of the pixels; (0, 0) and that of the bytes without."""
    if not encoded:
        raise Unreadable("is empty (0 bytes)")
    if not pixels:
        return (0, 0), hashlib.sha256(encoded).digest()
    image = upright(encoded)
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return image.size, digest.digest()


def _sizes(
    listing: Listing, sizes: NDArray[np.int32], published: Published | None
) -> Iterator[Finding]:
    """Images of another size than the published one, or than most are of."""
    decoded = np.flatnonzero(sizes[:, 0])
    if not len(decoded):
        return
    if published is not None and published.size is not None:
        expected, whose = np.array(published.size), "the collection's images are"
    else:
        kinds, counts = np.unique(sizes[decoded], axis=0, return_counts=True)
        expected, whose = kinds[counts.argmax()], "most are"
    odd = (sizes != expected).any(axis=1) & (sizes[:, 0] > 0)
    for i in [i for i in listing.as_stored() if odd[i]]:
        yield Finding(
            str(listing.files[i]),
            "size",
            f"is {sizes[i, 0]} x {sizes[i, 1]} pixels, where {whose} {expected[0]} x {expected[1]}",
            counts=False,  # it is cropped and resized as all are
        )
