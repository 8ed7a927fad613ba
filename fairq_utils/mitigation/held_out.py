"""Held-out images: kept apart from those that make candidates, and counted by their groups."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairq_utils.data.batches import Batch, divided, joined, read
from fairq_utils.errors import BadInput
from fairq_utils.metrics.counts import count
from fairq_utils.metrics.model_metrics import TWO_CLASSES, Predictions
from fairq_utils.mitigation.sample import Sample, of_batch

LEAST = 20  # images of every group, among those that make the candidates, and among the others


def split(
    calibration_data: Iterable[Any],
    certification_data: Iterable[Any] | None,
    attributes: Sequence[str],
    making_images: int,
) -> tuple[Sample, Iterator[Any]]:
    """Images that make candidates, and batches of those to test on, streamed; one pass.

    Parameters
    ----------
    calibration_data, certification_data : iterables of (images, labels, groups)
        See :meth:`fairq_utils.FairnessAwareQuantizer.quantize`.
    attributes : names of the sensitive attributes, crossed
    making_images : the first of ``calibration_data``

    Raises
    ------
    BadInput
        As :func:`two_groups`, or no images are left to test on.
    """
    stream = read(calibration_data, "calibration_data", attributes)
    parts, rest = divided(stream, making_images)
    sample = two_groups(parts, attributes, "calibration_data", first=making_images)
    if certification_data is not None:
        rest = read(certification_data, "certification_data", attributes)
    elif (ahead := next(rest, None)) is not None:
        rest = itertools.chain([ahead], rest)
    else:
        raise BadInput(
            f"calibration_data: its {len(sample)} images all make candidates, so that none are "
            "left to test these on; give more images, certification_data, or fewer "
            "making_images"
        )
    return sample, ((batch.images, batch.labels, batch.groups) for batch in rest)


def two_groups(
    parts: Sequence[Batch], attributes: Sequence[str], what: str, first: int | None = None
) -> Sample:
    """Batches as one :class:`Sample` of labels 0 and 1 and at least two groups.

    Parameters
    ----------
    what : name of the images, for errors
    first : how many of a loader's images these should be, for errors

    Raises
    ------
    BadInput
        No images, other labels, a group of fewer than :data:`LEAST`, or one group only.
    """
    if not parts:
        raise BadInput(f"{what} gave no images; give at least one batch")
    found = of_batch(joined(parts, what), attributes, least=LEAST, what=what)
    wrong = sorted(set(found.labels.tolist()) - {0, 1})
    if wrong:
        raise BadInput(f"{what}: label {wrong[0]} is neither 0 nor 1; {TWO_CLASSES}")
    if len(found.present) < 2:
        which, way = "every image", "give images of others too"
        if first is not None and len(found) == first:
            which = f"each of the first {first} images, which make the candidates,"
            way = "shuffle the images, or raise making_images"
        raise BadInput(
            f"{what}: {which} is of the group {found.name(found.present[0])!r}, so that there "
            f"is nothing to compare; {way}"
        )
    return found


def triples(sample: Sample) -> Iterator[Any]:
    """Batches of (images, labels, groups) as a loader yields them."""
    for images, labels, codes in sample.batches():
        names = [sample.groups.names[code].split("|") for code in codes.tolist()]
        columns: list[Any] = list(zip(*names, strict=True))
        yield images, labels, dict(zip(sample.groups.attributes, columns, strict=True))


def table_of(
    found: Predictions, name: str, reference: str, sample: Sample, what: str
) -> NDArray[Any]:
    """Counts of a candidate's predictions, (G, label, float prediction, prediction).

    Parameters
    ----------
    found : predictions of the candidates and of the float model
    name, reference : which of its models is the candidate, and which the float model
    sample : images that make candidates
        Their G groups, in their order.
    what : name of the images, for errors

    Raises
    ------
    BadInput
        A group that is not among those of ``sample``, or one of fewer than :data:`LEAST` images.
    """
    crossed = found.groups[list(sample.groups.attributes)].astype(str).agg("|".join, axis=1)
    known = sample.groups.names
    unknown = [value for value in crossed.unique() if value not in known]
    if unknown:
        raise BadInput(
            f"{what}: the group {unknown[0].replace('|', ' ')!r} is among the images to test "
            f"on, but not among the {len(sample)} that make the candidates; shuffle the "
            "images, add some of it, or spell groups alike"
        )
    cells = pd.Categorical(crossed, categories=list(known))
    sizes = cells.value_counts()
    if sizes.min() < LEAST:
        few = str(sizes.idxmin())
        raise BadInput(
            f"{what}: the group {few.replace('|', ' ')!r} has {sizes.min()} images to test on "
            f"where {LEAST} are needed; add images of it, or leave an attribute out"
        )
    table: NDArray[Any] = count(
        found.truth,
        found.predictions[name],
        sensitive_features=pd.DataFrame({"group": cells.rename_categories(range(len(known)))}),
        reference=found.predictions[reference],
    ).table
    return table


class UsedImages:
    """Images that had a part in making candidates, and those that these were tested on.

    A certificate holds for images that are independent of how a candidate came about, and of each
    other. Equal values are found; an image that was cropped or mirrored is another one.
    """

    def __init__(self) -> None:
        self._used: dict[bytes, str] = {}

    def use(self, sample: Sample, what: str) -> None:
        """Remember images that candidates are made from; some may be alike."""
        keys = (key for images, _, _ in sample.batches() for key in _keys(images))
        for at, key in enumerate(keys):
            self._used.setdefault(key, f"image {at} of {what}")

    def tested(self, batches: Iterable[Any], what: str) -> Iterator[Any]:
        """Pass on batches of (images, ...) to test on.

        Raises
        ------
        BadInput
            An image that was used, or tested on, before.
        """
        at = 0
        for images, *others in batches:
            for key in _keys(images):
                before = self._used.setdefault(key, f"image {at} to test on")
                if before != f"image {at} to test on":
                    raise BadInput(
                        f"{what}: image {at} to test on is the same as {before}; candidates are "
                        "tested on images that had no part in making them, and none may come "
                        "twice: leave repeats out (a sampler that draws with replacement makes "
                        "them)"
                    )
                at += 1
            yield (images, *others)


def _keys(images: Tensor) -> Iterator[bytes]:
    for image in images.detach().cpu().contiguous():
        raw = image.flatten().view(torch.uint8).numpy().tobytes()
        yield hashlib.blake2b(raw, digest_size=16).digest()
