"""Splits: which one an image belongs to, by its name alone; and images that are in two."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.listing import Finding, Listing
from fairq_utils.data.population import SPLITS
from fairq_utils.errors import BadInput


def positions(keys: Sequence[str]) -> NDArray[np.float64]:
    """A place in [0, 1) for every key: the first 48 bits of its SHA-256.

    It stays when images are added, removed or listed in another order.

    >>> positions(["000001.jpg", "000002.jpg"]).round(3).tolist()
    [0.32, 0.753]
    """
    heads = (hashlib.sha256(key.encode()).digest()[:6] for key in keys)
    return np.array([int.from_bytes(head, "big") / 2**48 for head in heads], np.float64)


def shares(
    held_out: Mapping[str, float] | None, defaults: Mapping[str, float], rest: str
) -> dict[str, float]:
    """The shares to carve: those given, the defaults for the others; ``rest`` gets what is left.

    Raises
    ------
    BadInput
        A split that is not carved here, a share that is none, or nothing left for ``rest``.
    """
    given = dict(held_out or {})
    for split, share in given.items():
        if split not in defaults:
            way = f"name {', '.join(defaults)}" if defaults else "leave it out"
            raise BadInput(f"held_out: {split!r} is not carved by hash here; {way}")
        check_share(split, share)
    found = {split: float(given.get(split, share)) for split, share in defaults.items()}
    if sum(found.values()) >= 1:
        raise BadInput(
            f"held_out: {', '.join(found)} take {sum(found.values()):g} of the images together, "
            f"which leaves none for {rest}; name smaller shares"
        )
    return found


def check_share(split: str, share: object) -> None:
    """Refuse what is no share of a set."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise BadInput(f"held_out.{split}: {share!r} is no share; name one between 0 and 1")


def carve(keys: Sequence[str], found: Mapping[str, float], rest: str) -> NDArray[np.str_]:
    """A split for every key: the first shares of [0, 1) in their order, then ``rest``."""
    bounds = np.cumsum(list(found.values()))
    names = np.array([*found, rest])
    return names[np.searchsorted(bounds, positions(keys), side="right")]


def ordered(
    keys: Sequence[str], split: NDArray[np.str_], images: Mapping[str, int] | None
) -> NDArray[np.int64]:
    """Rows in the order of their places by hash: of every split in ``images`` the first so many.

    Asking for more keeps all that fewer would, so that a small study's people are in a larger one.

    Raises
    ------
    BadInput
        An unknown split, a number that is none, or more than there are.
    """
    order = np.argsort(positions(keys), kind="stable")
    kept = np.ones(len(keys), bool)
    for name, count in (images or {}).items():
        if name not in SPLITS:
            raise BadInput(f"images: {name!r} is not one of {', '.join(SPLITS)}")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise BadInput(f"images.{name}: {count!r} is no number of images; name 1 or more")
        rows = order[split[order] == name]
        if len(rows) < count:
            raise BadInput(
                f"images.{name}: {count} images are asked for and there are {len(rows)}; name "
                "fewer, or give this split a larger share in held_out"
            )
        kept[rows[count:]] = False
    return order[kept[order]]


def duplicates(listing: Listing, digests: Mapping[int, str | bytes]) -> dict[int, Finding]:
    """Findings of images that stand somewhere else as well.

    Of an image in several splits the copies in one of them stay: those in ``test`` if there are
    any, else in ``validation``, else in ``calibration``. The others count as lost, so that nobody
    is tested, or calibrated, on an image that was trained on. Copies within one split stay. Of
    copies whose labels contradict each other none stays, as of such rows of a table of labels.

    Parameters
    ----------
    listing : Listing
    digests : mapping
        Row -> what is equal where images are.

    Returns
    -------
    dict
        Row -> finding, in the order of ``digests``; those that count are of images to leave out.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> faces = Listing(
    ...     name="faces", files=np.array(["a.jpg", "b.jpg"]), target=np.zeros(2, np.int8),
    ...     groups=pd.DataFrame(index=range(2)), split=np.array(["train", "test"]), read=bytes,
    ... )
    >>> duplicates(faces, {0: "same", 1: "same"})[0].problem
    'is the same image as b.jpg, which is in test and this one in train'
    """
    copies: dict[str | bytes, list[int]] = {}
    for row, digest in digests.items():
        copies.setdefault(digest, []).append(row)
    found: dict[int, Finding] = {}
    for rows in copies.values():
        if len(rows) > 1:
            found |= _of_copies(listing, rows)
    return {row: found[row] for row in digests if row in found}


def _held_out(listing: Listing, row: int) -> int:
    return SPLITS.index(str(listing.split[row]))


def _of_copies(listing: Listing, rows: Sequence[int]) -> dict[int, Finding]:
    """Findings of the rows of one image."""
    labels = [(int(listing.target[row]), *listing.groups.iloc[row].astype(str)) for row in rows]
    first: dict[tuple[int | str, ...], int] = {}
    for row, own in zip(rows, labels, strict=True):
        first.setdefault(own, row)
    stays = max(rows, key=lambda row: _held_out(listing, row))
    found = {}
    for row, own in zip(rows, labels, strict=True):
        other = next((at for said, at in first.items() if said != own), stays)
        if other != row:
            found[row] = _finding(listing, other, row, contradicted=len(first) > 1)
    return found


def _finding(listing: Listing, other: int, row: int, *, contradicted: bool) -> Finding:
    there, here = str(listing.split[other]), str(listing.split[row])
    problem = f"is the same image as {listing.files[other]}"
    if there != here:
        problem += f", which is in {there} and this one in {here}"
    if contradicted:
        problem += ", with other labels"
    counts = contradicted or there != here
    return Finding(str(listing.files[row]), "duplicate", problem, counts=counts)
