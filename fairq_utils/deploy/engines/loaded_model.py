"""Models that an engine has loaded: images in, logits out, and the kernels that compute them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fairq_utils.errors import Fault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class NotRunning(Fault):
    """An engine cannot load or run a file; the message names the file and the way out."""


class NotExact(Fault):
    """An integer engine would not compute what a model computes; the message says why."""


class KernelsWarning(UserWarning):
    """Integer kernels are not used, or not as a file says; the message names the way out."""


class FloatKernelsWarning(KernelsWarning):
    """An engine computes most quantized layers of a model in float."""


class SaturationWarning(KernelsWarning):
    """A file is right, and this processor's integer kernels do not compute what it says."""


def first_line(error: BaseException) -> str:
    """Reason that an engine's own error gives, for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@dataclass(frozen=True)
class Kernels:
    """Kernels that an engine has chosen for convolutions, linear layers and products.

    Attributes
    ----------
    integer, floating : how many multiply integers, and how many floats
    names : the engine's own names -> how often
    """

    integer: int
    floating: int
    names: dict[str, int]


@dataclass(frozen=True)
class LoadedModel:
    """Model that an engine has loaded; several threads may call it.

    Attributes
    ----------
    engine : name in :data:`fairq_utils.deploy.engines.registry.ENGINES`
    logits : float32 (N, 3, H, W), normalized, contiguous -> float32 (N, classes);
        of two classes also one logit, (N, 1) or (N,)
    threads : int
    kernels : Kernels, or None where the engine does not say
    batch : the only batch size that the file takes; None where any will do
    shape : of one image, such as (3, 224, 224); None where the engine does not say
    reentrant : whether ``logits`` may be called by several threads at once
        Calls wait for each other where it may not.
    """

    engine: str
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    threads: int
    kernels: Kernels | None = None
    batch: int | None = None
    shape: tuple[int, ...] | None = None
    reentrant: bool = False
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch.

        Raises
        ------
        ValueError
            These are no images that the file takes: their type, number or shape.
        """
        self._check(images)
        if self.batch not in (None, len(images)):
            raise ValueError(
                f"{self.engine}: this file takes batches of {self.batch} images, not "
                f"{len(images)}; give them to in_batches, or export it for that size"
            )
        return self._asked(images)

    def _asked(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.reentrant:
            return self.logits(images)
        with self._lock:
            return self.logits(images)

    def in_batches(self, images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        """Logits of any number of images, ``size`` at a time; the last batch is filled up.

        A file that takes one batch size gets that one.

        Raises
        ------
        ValueError
            There is no image, or they are not what the file takes.

        Examples
        --------
        >>> import numpy as np
        >>> echo = LoadedModel("echo", lambda x: x.reshape(len(x), -1), 1)
        >>> echo.in_batches(np.zeros((5, 1, 1, 2), np.float32), 3).shape
        (5, 2)
        """
        import numpy as np  # names of engines are listed without it

        self._check(images)
        size = self.batch or size
        if not len(images) or size < 1:
            raise ValueError(
                f"{self.engine}: {len(images)} images in batches of {size}; give at least one of "
                "each"
            )
        parts = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            missing = size - len(batch)
            if missing and (start or self.batch):
                batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
            parts.append(self._asked(np.ascontiguousarray(batch))[: size - missing])
        return np.concatenate(parts)

    def _check(self, images: NDArray[np.float32]) -> None:
        """Refuse another type or shape, which engines read as if it were theirs.

        An array that is not contiguous is copied by them.
        """
        found, wanted = tuple(images.shape[1:]), self.shape
        if images.dtype.name != "float32" or (wanted is not None and found != wanted):
            shape = "three axes of its own" if wanted is None else "x".join(map(str, wanted))
            raise ValueError(
                f"{self.engine}: images are {images.dtype}, {'x'.join(map(str, found)) or 'flat'} "
                f"each, and this file takes float32, {shape} each; convert them"
            )
