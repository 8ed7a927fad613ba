"""Predictions of a deployed model for image files, without PyTorch unless it is the engine.

A folder is what :func:`fairq_utils.deploy.export.export_run` writes. Its card is checked against
the files and against this machine before anything is predicted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.decoding import Unreadable, decode
from fairq_utils.deploy import processor
from fairq_utils.deploy.engines.loaded_model import LoadedModel, NotRunning
from fairq_utils.deploy.engines.registry import ENGINES, installed, load
from fairq_utils.errors import BadInput, Fault
from fairq_utils.registry import unknown

FORMAT = 1  # of a folder; one of another format is not read
CARD = "card.json"
BATCH = 32  # images at a time
AGAIN = "export the model again (`fairq export`)"
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


class BadDeployable(BadInput):
    """A folder does not hold a model that can run here; the message says what, and the way out."""


class NoImage(Fault):
    """A file is missing or is no image that can be read; the message names it."""


@dataclass(frozen=True)
class Terms:
    """Terms of a card that predictions depend on.

    Attributes
    ----------
    engine, version : name in :data:`fairq_utils.deploy.engines.registry.ENGINES`, and what the
        folder was made with
    opset : of the ONNX file; None where there is none
    machine, instructions : of the processor that compiled the file; empty where nothing was
    files : name -> (SHA-256, bytes)
    size : int
        Pixels per side of the input.
    mean, std : of the three channels, of values between 0 and 1
    classes : names of the classes, the logits' order
    target : int
        The logit whose probability is given.
    """

    engine: str
    version: str
    opset: int | None
    machine: str
    instructions: tuple[str, ...]
    files: dict[str, tuple[str, int]]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    target: int


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
        return f"{self.image}  {self.label}  {self.target}: {self.probability:.4f}"

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


def open_deployable(folder: str | os.PathLike[str], threads: int = 1) -> Deployed:
    """Check a folder and load its model.

    Raises
    ------
    BadDeployable
        The card or a file is missing, damaged, of another format, or belongs to another engine
        version, opset or processor.
    NotInstalled
        The engine is not there.
    """
    folder = Path(folder)
    terms = _terms(folder / CARD)
    _check_files(folder, terms)
    _check_engine(folder, terms)
    try:
        model = load(terms.engine, folder, threads)
    except NotRunning as error:
        raise BadDeployable(str(error)) from error
    _check_opset(folder, terms)
    if model.shape not in (None, (3, terms.size, terms.size)):
        raise BadDeployable(
            f"{folder / CARD}: the card says images of {terms.size} pixels, and "
            f"{ENGINES[terms.engine].file} takes {model.shape}; {AGAIN}"
        )
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


def _terms(path: Path) -> Terms:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BadDeployable(
            f"{path}: there is no such file; name a folder that `fairq export` wrote"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadDeployable(f"{path}: cannot be read ({error}); {AGAIN}") from error
    except json.JSONDecodeError as error:
        raise BadDeployable(f"{path}: this card is no JSON ({error}); {AGAIN}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise BadDeployable(
            f"{path}: this card's format is {found}, and this version of fairq_utils reads "
            f"{FORMAT}; {AGAIN}"
        )
    try:
        terms = _read_terms(card)
    except (KeyError, TypeError, ValueError) as error:
        raise BadDeployable(
            f"{path}: this card lacks something, or holds it in another form ({error!r}); {AGAIN}"
        ) from error
    _check_input(path, terms)
    if terms.engine not in ENGINES:
        raise BadDeployable(f"{path}: the engine {unknown(terms.engine, ENGINES)}; or {AGAIN}")
    return terms


def _read_terms(card: dict[str, Any]) -> Terms:
    engine, images, task = card["engine"], card["input"], card["task"]
    opset = engine["onnx_opset"]
    return Terms(
        engine=str(engine["name"]),
        version=str(engine["version"]),
        opset=None if opset is None else int(opset),
        machine=str(engine["processor"]["machine"]),
        instructions=tuple(map(str, engine["processor"]["instructions"])),
        files={
            str(name): (str(of["sha256"]), int(of["bytes"])) for name, of in card["files"].items()
        },
        size=int(images["size"]),
        mean=tuple(map(float, images["mean"])),
        std=tuple(map(float, images["std"])),
        classes=tuple(map(str, task["classes"])),
        target=int(task["logit"]),
    )


def _check_input(path: Path, terms: Terms) -> None:
    """Refuse a card by which all images would get one prediction, or one under a false name."""
    numbers = (*terms.mean, *terms.std)
    if len(terms.mean) != 3 or len(terms.std) != 3 or not all(map(math.isfinite, numbers)):
        wrong = "mean and std are not three finite numbers each"
    elif min(terms.std) <= 0:
        wrong = "a std is not above 0"
    elif not 0 <= terms.target < len(terms.classes):
        wrong = f"logit {terms.target} is none of its {len(terms.classes)} classes"
    else:
        return
    raise BadDeployable(f"{path}: {wrong}; {AGAIN}")


def _check_files(folder: Path, terms: Terms) -> None:
    for name in ENGINES[terms.engine].files:
        path = folder / name
        if name not in terms.files:
            raise BadDeployable(f"{folder / CARD}: this card does not list {name}; {AGAIN}")
        if not path.is_file():
            raise BadDeployable(f"{path}: there is no such file, and the card lists it; {AGAIN}")
        sha256, size = terms.files[name]
        if path.stat().st_size != size or checksum(path) != sha256:
            raise BadDeployable(f"{path}: this file is not the one that the card lists; {AGAIN}")


def checksum(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def onnx_opset(path: Path) -> int:
    """Opset that an ONNX file is written in."""
    import onnx

    imports = onnx.load(path, load_external_data=False).opset_import
    return next(int(entry.version) for entry in imports if entry.domain in ("", "ai.onnx"))
