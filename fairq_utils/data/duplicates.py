"""The same picture twice: told of within a split, left out of all but one where it is in two."""

from __future__ import annotations

from collections.abc import Mapping

from fairq_utils.data.listing import Finding, Listing
from fairq_utils.data.splits import SPLITS


def duplicates(listing: Listing, digests: Mapping[int, str | bytes]) -> dict[int, Finding]:
    """What is to be said of pictures that stand somewhere else as well.

    Of a picture in several splits the copies in one of them stay: those in ``test`` if there are
    any, else in ``validation``, else in ``calibration``. The others count as lost, so that nobody
    is tested, or calibrated, on a picture that was trained on. Copies within one split stay.

    Parameters
    ----------
    listing : Listing
    digests : mapping
        Row -> what is equal where pictures are.

    Returns
    -------
    dict
        Row -> finding, in the order of ``digests``; those that count are of pictures to leave out.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> faces = Listing(
    ...     name="faces", files=np.array(["a.jpg", "b.jpg"]), target=np.zeros(2, np.int8),
    ...     groups=pd.DataFrame(index=range(2)), split=np.array(["train", "test"]), read=bytes,
    ... )
    >>> duplicates(faces, {0: "same", 1: "same"})[0].problem
    'is the same picture as b.jpg, which is in test and this one in train'
    """
    stays: dict[str | bytes, int] = {}
    for row, digest in digests.items():
        if digest not in stays or _held_out(listing, row) > _held_out(listing, stays[digest]):
            stays[digest] = row
    return {
        row: _finding(listing, stays[digest], row)
        for row, digest in digests.items()
        if stays[digest] != row
    }


def _held_out(listing: Listing, row: int) -> int:
    return SPLITS.index(str(listing.split[row]))


def _finding(listing: Listing, stays: int, row: int) -> Finding:
    other, here = str(listing.split[stays]), str(listing.split[row])
    problem = f"is the same picture as {listing.files[stays]}"
    if other != here:
        problem += f", which is in {other} and this one in {here}"
    labels = [
        (int(listing.target[i]), tuple(listing.groups.iloc[i].astype(str))) for i in (stays, row)
    ]
    if labels[0] != labels[1]:
        problem += ", with other labels"
    return Finding(str(listing.files[row]), "duplicate", problem, counts=other != here)
