"""Whether an image was seen before, by the hash of its values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fairq_utils.faults import BadInput
from fairq_utils.mitigation.sample import Sample


class Seen:
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
