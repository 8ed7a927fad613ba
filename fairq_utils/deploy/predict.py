"""Predictions of a deployed model for image files, without PyTorch unless it is the engine.

A folder is what :func:`fairq_utils.deploy.export.export_run` writes. Its card is checked against
the files and against this machine before anything is predicted.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.decoding import Unreadable, decode
from fairq_utils.deploy import processor
from fairq_utils.deploy.card_terms import (
    AGAIN,
    CARD,
    BadDeployable,
    Terms,
    check_model,
    checksum,
    logits_of_classes,
    onnx_opset,
    read_terms,
)
from fairq_utils.deploy.engines.loaded_model import LoadedModel, NotRunning, first_line
from fairq_utils.deploy.engines.registry import ENGINES, installed, load
from fairq_utils.errors import BadInput, Fault, printable

BATCH = 32  # images at a time


class NoImage(Fault):
    """A file is missing or is no image that can be read; the message names it."""


@dataclass(frozen=True)
class Deployed:
    """Folder that was checked, and its model, loaded."""

    terms: Terms
    model: LoadedModel


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes
    ----------
    image : the file
    label, target : names of the class that it is given, and of the target class
    probability : float
        Of the target class, 0 to 1.
    """

    image: Path
    label: str
    target: str
    probability: float

    def line(self) -> str:
        """Line for people: the file, the class, the probability of the target class."""
        return printable(f"{self.image}  {self.label}  {self.target}: {self.probability:.4f}")

    def as_json(self) -> str:
        """Line for machines: the same as one JSON object."""
        return json.dumps(
            {
                "image": str(self.image),
                "class": self.label,
                "target": self.target,
                "probability": self.probability,
            }
        )


def open_deployable(
    folder: str | os.PathLike[str], threads: int = 1, *, trust: bool = False
) -> Deployed:
    """Check a folder and load its model.

    Parameters
    ----------
    folder : that :func:`fairq_utils.deploy.export.export_run` wrote, or
        :func:`~fairq_utils.deploy.card_terms.write_card` completed
    threads : int
        Of the engine.
    trust : bool
        Whether a file that is machine code, as Inductor's is, may be run. The checksum beside it
        shows damage alone: whoever can change the one can change the other.

    Raises
    ------
    BadDeployable
        The card or a file is missing, damaged, of another format, or belongs to another engine
        version, opset or processor; or the file is machine code, and nobody vouches for it.
    NotInstalled
        The engine is not there.
    """
    folder = Path(folder)
    terms = read_terms(folder)
    _check_files(folder, terms)
    _check_engine(folder, terms)
    if ENGINES[terms.engine].compiled and not trust:
        raise BadDeployable(
            f"{folder / ENGINES[terms.engine].file}: this file is machine code that would run with "
            "your rights, and a checksum in the same folder does not say whose it is; give --trust "
            "(Python: trust=True) if you know who wrote it"
        )
    try:
        model = load(terms.engine, folder, threads)
        _check_opset(folder, terms)
        check_model(model, terms)
    except NotRunning as error:
        raise BadDeployable(str(error)) from error
    except BadDeployable:
        raise
    except BadInput as error:
        raise BadDeployable(f"{folder / CARD}: {error}; {AGAIN}") from error
    except Fault:
        raise
    except Exception as error:  # an engine raises what damage leads it to
        raise BadDeployable(
            f"{folder / ENGINES[terms.engine].file}: cannot be read ({first_line(error)}); {AGAIN}"
        ) from error
    return Deployed(terms, model)


def classify(
    deployed: Deployed, files: Sequence[str | os.PathLike[str]]
) -> Iterator[Prediction | NoImage]:
    """Predict for image files, in their order; what cannot be read comes back as its error."""
    paths = [Path(file) for file in files]
    size = deployed.model.batch or BATCH
    for start in range(0, len(paths), size):
        read = [_image_or_why(path, deployed.terms.size) for path in paths[start : start + size]]
        images = [found for found in read if not isinstance(found, NoImage)]
        predictions = iter(_predictions(deployed, np.stack(images)) if images else ())
        for path, found in zip(paths[start : start + size], read, strict=True):
            if isinstance(found, NoImage):
                yield found
            else:
                label, probability = next(predictions)
                target = deployed.terms.classes[deployed.terms.target]
                yield Prediction(path, label, target, probability)


def _predictions(deployed: Deployed, images: NDArray[np.uint8]) -> list[tuple[str, float]]:
    """Class and probability of the target class, of each image (N, 3, H, W)."""
    terms = deployed.terms
    logits = deployed.model.in_batches(normalize(images, terms.mean, terms.std), BATCH)
    if not np.isfinite(logits).all():
        raise Fault(
            f"{ENGINES[terms.engine].file}: gives infinite numbers or none at all for these "
            f"images; compare the mean and std in {CARD} with those of its training, or {AGAIN}"
        )
    logits = logits_of_classes(logits)
    shifted = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    return [(terms.classes[row.argmax()], float(row[terms.target])) for row in shares]


def normalize(
    images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """Input of a model, as :func:`fairq_utils.training.architectures.normalize` makes it.

    Parameters
    ----------
    images : uint8 (N, 3, H, W)
    mean, std : of the three channels, of values between 0 and 1

    Returns
    -------
    float32 (N, 3, H, W), contiguous

    Examples
    --------
    >>> normalize(np.full((1, 3, 1, 1), 255, np.uint8), (0.5, 0.5, 1.0), (0.5, 0.25, 1.0)).ravel()
    array([1., 2., 0.], dtype=float32)
    """
    m, s = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) for v in (mean, std))
    return np.ascontiguousarray((images.astype(np.float32) / np.float32(255) - m) / s)


def read_image(path: str | os.PathLike[str], size: int) -> NDArray[np.uint8]:
    """Read an image file as the model expects it: upright, RGB, its middle square, resized.

    Parameters
    ----------
    path : in a format of :data:`fairq_utils.data.decoding.FORMATS`, 8 bits a channel
    size : int
        Pixels per side; resizing averages over what it leaves out.

    Returns
    -------
    uint8 (3, size, size)

    Raises
    ------
    NoImage
        The file is missing, no image, damaged, too large, or has more than 8 bits a channel.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise NoImage(f"{path}: this is a folder; name the images in it")
        if path.exists() and not path.is_file():
            raise NoImage(f"{path}: this is no regular file; name an image")
        return decode(path.read_bytes(), size, draft=False)
    except FileNotFoundError:
        raise NoImage(f"{path}: there is no such file; check its name") from None
    except Unreadable as error:
        raise NoImage(f"{path}: {error}; save it as PNG or JPEG, 8 bits a channel") from error
    except OSError as error:
        raise NoImage(f"{path}: cannot be read ({error.strerror}); check the file") from error


def _image_or_why(path: Path, size: int) -> NDArray[np.uint8] | NoImage:
    try:
        return read_image(path, size)
    except NoImage as error:
        return error


def _check_files(folder: Path, terms: Terms) -> None:
    for name in ENGINES[terms.engine].files:
        path = folder / name
        if name not in terms.files:
            raise BadDeployable(f"{folder / CARD}: this card does not list {name}; {AGAIN}")
        if not path.is_file():
            raise BadDeployable(f"{path}: there is no such file, and the card lists it; {AGAIN}")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BadDeployable(
                f"{path}: this is a link that leads out of the folder; copy the file into it"
            )
        sha256, size = terms.files[name]
        if path.stat().st_size != size or checksum(path) != sha256:
            raise BadDeployable(f"{path}: this file is not the one that the card lists; {AGAIN}")


def _check_engine(folder: Path, terms: Terms) -> None:
    here, engine = installed(terms.engine), ENGINES[terms.engine]
    if here.split(".")[:2] != terms.version.split(".")[:2]:
        raise BadDeployable(
            f"{folder / CARD}: this model was written with {engine.label} {terms.version} and was "
            f"only tested there, and {here} is installed; install {engine.package} "
            f"{'.'.join(terms.version.split('.')[:2])}, or {AGAIN}"
        )
    if not engine.compiled:
        return
    missing = sorted(set(terms.instructions) - set(processor.instructions()))
    if missing or terms.machine != platform.machine():
        what = f"{terms.machine} with {', '.join(missing)}" if missing else terms.machine
        raise BadDeployable(
            f"{folder / engine.file}: this file was compiled for another processor ({what}) than "
            f"this one ({platform.machine()}, {processor.model_name()}); {AGAIN}, here"
        )


def _check_opset(folder: Path, terms: Terms) -> None:
    path = folder / ENGINES[terms.engine].file
    if path.suffix != ".onnx":
        return
    opset = onnx_opset(path)
    if opset != terms.opset:
        raise BadDeployable(
            f"{folder / CARD}: the card says ONNX opset {terms.opset}, but {path.name} is written "
            f"in opset {opset}; {AGAIN}"
        )
