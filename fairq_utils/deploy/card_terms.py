"""Terms of a card: what a prediction depends on, as it is written into ``card.json`` and read.

A folder may come from anyone. Every value of a card is checked before something is done with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.decoding import MOST_PIXELS
from fairq_utils.deploy import processor
from fairq_utils.deploy.engines.loaded_model import LoadedModel, first_line
from fairq_utils.deploy.engines.registry import ENGINES, installed
from fairq_utils.errors import BadInput, printable
from fairq_utils.given import each_name
from fairq_utils.registry import unknown

FORMAT = 1  # of a folder; one of another format is not read
CARD = "card.json"
AGAIN = "export the model again (`fairq export`)"
CHANNELS, SCALE = ["R", "G", "B"], 1 / 255
MOST_BYTES = 2**24  # of a card, which has a few hundred for each layer
LONGEST = 200  # letters of a name, and of what a sentence quotes
# Of pixels over 255; means and stds of pixels from 0 to 255 are beyond them.
MEANS, STDS = (-1.0, 2.0), (1e-3, 10.0)

Fits = Callable[[Any], bool]


class BadDeployable(BadInput):
    """A folder does not hold a model that can run here; the message says what, and the way out."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it may quote the folder


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


def sections(
    loaded: LoadedModel,
    files: Sequence[Path],
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
    target: int,
) -> dict[str, Any]:
    """The parts of a card that :class:`Terms` are read from, ready for JSON.

    Parameters
    ----------
    loaded : the file, as its engine has loaded it
    files : the engine's files, the one that is loaded first in front
    size, mean, std, classes, target : see :class:`Terms`
    """
    import torch  # here, because a card is also read where PyTorch is not

    found = ENGINES[loaded.engine]
    return {
        "format": FORMAT,
        "task": {"target": classes[target], "classes": list(classes), "logit": target},
        "input": {
            "size": size,
            "channels": CHANNELS,
            "scale": SCALE,
            "mean": list(mean),
            "std": list(std),
        },
        "engine": {
            "name": loaded.engine,
            "label": found.label,
            "version": installed(loaded.engine),
            "onnx_opset": onnx_opset(files[0]) if files[0].suffix == ".onnx" else None,
            "batch": loaded.batch,
            "processor": {
                "machine": platform.machine(),
                "name": processor.model_name(),
                "capability": torch.backends.cpu.get_cpu_capability(),
                # Engines that compile nothing choose their kernels when they load a file.
                "instructions": list(processor.instructions()) if found.compiled else [],
            },
        },
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": checksum(path)} for path in files
        },
    }


def read_terms(folder: Path) -> Terms:
    """Read the card of a folder.

    Raises
    ------
    BadDeployable
        It is missing, damaged or of another format, or a value on it cannot be; names the key.
    """
    path = folder / CARD
    try:
        if path.exists() and not path.is_file():
            raise BadDeployable(f"{path}: this is no regular file; {AGAIN}")
        if path.stat().st_size > MOST_BYTES:
            raise BadDeployable(f"{path}: has more than {MOST_BYTES:,} bytes; {AGAIN}")
        card = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (FileNotFoundError, NotADirectoryError):
        raise BadDeployable(
            f"{path}: there is no such file; name a folder that `fairq export` wrote, or write the "
            "card of a model of your own with fairq_utils.deploy.write_card"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadDeployable(f"{path}: cannot be read ({error}); {AGAIN}") from error
    except BadDeployable:
        raise
    except RecursionError:
        raise BadDeployable(f"{path}: this card is nested too deep; {AGAIN}") from None
    except ValueError as error:
        raise BadDeployable(f"{path}: this card is no JSON ({error}); {AGAIN}") from error
    found = card.get("format") if isinstance(card, dict) else None
    if type(found) is not int or found != FORMAT:
        raise BadDeployable(
            f"{path}: this card's format is {_short(found)}, and this version of fairq_utils reads "
            f"{FORMAT}; {AGAIN}"
        )
    try:
        return terms_of(card)
    except BadInput as error:
        raise BadDeployable(f"{path}: {error}; {AGAIN}") from None


def terms_of(card: dict[str, Any]) -> Terms:
    """Terms of a card's parsed JSON.

    Raises
    ------
    BadInput
        A value is missing, or cannot be; the message names its key.
    """

    def at(keys: tuple[str, ...], what: str, fits: Fits) -> Any:
        value: Any = card
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise BadInput(f"{'.'.join(keys)} is not there")
            value = value[key]
        if not fits(value):
            raise BadInput(f"{'.'.join(keys)} is {_short(value)}, not {what}")
        return value

    def three(name: str, least: float, most: float) -> tuple[float, ...]:
        what = f"three numbers from {least:g} to {most:g}, of pixels over 255"
        of_three = at(("input", name), what, lambda of: _all(of, _is_number) and len(of) == 3)
        if not all(least <= value <= most for value in of_three):
            raise BadInput(f"input.{name} is {_short(of_three)}, not {what}")
        return tuple(map(float, of_three))

    engine = at(("engine", "name"), "an engine's name", _is_name)
    if engine not in ENGINES:
        raise BadInput(f"the engine {unknown(engine, ENGINES)}")
    classes = at(("task", "classes"), "two names or more", lambda of: _all(of, _is_name, 2))
    if len(set(classes)) < len(classes):
        raise BadInput(f"task.classes is {_short(classes)}, which names one twice")
    target = at(("task", "logit"), "a class's number", _is_count)
    if target >= len(classes):
        raise BadInput(f"logit {_short(target)} is none of its {len(classes)} classes")
    at(
        ("task", "target"),
        f"{_short(classes[target])}, its logit's",
        lambda of: of == classes[target],
    )
    at(("input", "channels"), "R, G and B", lambda of: of == CHANNELS)
    at(("input", "scale"), "1/255", lambda n: _is_number(n) and 0.99 * SCALE < n < 1.01 * SCALE)
    files = at(("files",), "files by their names", lambda of: isinstance(of, dict))
    for name in files:
        if not _is_name(name) or Path(name).name != name or name == "..":
            raise BadInput(f"files has {_short(name)}, which is no name of a file in this folder")
    made = ("engine", "processor")
    return Terms(
        engine=engine,
        version=at(("engine", "version"), "a version", _is_name),
        opset=at(("engine", "onnx_opset"), "a number", lambda n: n is None or _is_count(n)),
        machine=at((*made, "machine"), "a name", _is_name),
        instructions=tuple(at((*made, "instructions"), "names", lambda of: _all(of, _is_name))),
        files={
            name: (
                at(("files", name, "sha256"), "64 hex digits", _is_sha256),
                at(("files", name, "bytes"), "a number of bytes", _is_count),
            )
            for name in files
        },
        size=at(
            ("input", "size"),
            "a number of pixels",
            lambda n: _is_count(n) and 1 <= n <= MOST_PIXELS**0.5,
        ),
        mean=three("mean", *MEANS),
        std=three("std", *STDS),
        classes=tuple(classes),
        target=target,
    )


def check_model(loaded: LoadedModel, terms: Terms) -> None:
    """Refuse a model that takes other images than the terms say, or gives other outputs.

    Raises
    ------
    BadInput
        Says what the card has and what the file does.
    """
    file, size = ENGINES[terms.engine].file, terms.size
    if loaded.shape not in (None, (3, size, size)):
        raise BadInput(f"the card says images of {size} pixels, and {file} takes {loaded.shape}")
    try:
        found = loaded.in_batches(np.zeros((1, 3, size, size), np.float32), 1)
    except Exception as error:  # an engine's, of its own types
        raise BadInput(f"{file} cannot run ({first_line(error)})") from error
    if logits_of_classes(found).shape != (1, len(terms.classes)):
        raise BadInput(
            f"the card names {len(terms.classes)} classes, and {file} gives outputs of shape "
            f"{found.shape} for one image; name as many, or let the model return as many logits"
        )


def logits_of_classes(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (N, C) of each class; where a model has one logit, (N, 1) or (N,), those are 0 and it.

    Examples
    --------
    >>> logits_of_classes(np.float32([3, -1])).tolist()
    [[0.0, 3.0], [0.0, -1.0]]
    """
    if outputs.shape[1:] not in ((), (1,)):
        return outputs
    return np.stack([np.zeros(len(outputs), np.float32), outputs.reshape(-1)], axis=1)


def write_card(
    folder: str | os.PathLike[str],
    engine: str,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    target: int | None = None,
    threads: int = 1,
) -> Path:
    """Write the card of a model of one's own, so that ``fairq predict`` runs its file.

    Parameters
    ----------
    folder : where :func:`fairq_utils.deploy.engines.write` wrote the file
    engine : str
        The engine that it was written for.
    classes : names of the classes, the logits' order
        Of a model with one logit, first the class below 0, then the one above.
    mean, std : of the three channels of the images that it was trained on, of values between 0
        and 1; ``(0, 0, 0)`` and ``(1, 1, 1)`` where they were not normalized
    target : int, optional
        The class whose probability is given; the last unless named.
    threads : int
        Of the engine, which loads the file for it.

    Returns
    -------
    Path
        Of the card.

    Raises
    ------
    BadInput
        There is no such engine, or a value cannot be.
    NotInstalled, NotRunning
        See :func:`fairq_utils.deploy.engines.load`.
    """
    from fairq_utils.data.whole_files import written_whole
    from fairq_utils.deploy.engines.registry import files, load

    classes, paths = each_name(classes), files(engine, folder)
    loaded = load(engine, folder, threads)
    shape = loaded.shape or ()
    if len(shape) != 3 or shape[0] != len(CHANNELS) or shape[1] != shape[2]:
        raise BadInput(
            f"{paths[0]}: takes images of shape {shape}, and `fairq predict` gives it square ones "
            "of three channels; write the model for such"
        )
    logit = len(classes) - 1 if target is None else target
    if not _is_count(logit) or logit >= len(classes):
        raise BadInput(f"target: {logit!r} is none of the {len(classes)} classes; name one of them")
    try:
        mean, std = list(map(float, mean)), list(map(float, std))
    except (TypeError, ValueError) as error:
        raise BadInput(f"mean and std are not three numbers each ({error}); name them") from None
    card = sections(loaded, paths, size=shape[1], mean=mean, std=std, classes=classes, target=logit)
    check_model(loaded, terms_of(card))
    _refuse_probabilities(loaded, shape, paths[0])
    place = Path(folder) / CARD
    with written_whole(place) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return place


def _refuse_probabilities(loaded: LoadedModel, shape: tuple[int, ...], file: Path) -> None:
    """Refuse one output per image that looks like a probability, for noise of any size too."""
    noise = (
        np.random.default_rng(0).normal(size=(8, *shape))
        * np.logspace(0, 3, 8)[:, None, None, None]
    )
    found = loaded.in_batches(noise.astype(np.float32), len(noise))
    if found.shape[1:] in ((), (1,)) and ((found >= 0) & (found <= 1)).all():
        raise BadInput(
            f"{file}: its one output lies between 0 and 1 for noise of any size, as probabilities "
            "do (a sigmoid at its end?), and a logit is wanted; write the model without it"
        )


def onnx_opset(path: Path) -> int | None:
    """Opset that an ONNX file is written in; None where it does not say."""
    import onnx

    imports = onnx.load(path, load_external_data=False).opset_import
    return next((int(entry.version) for entry in imports if entry.domain in ("", "ai.onnx")), None)


def checksum(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {_short(twice)} twice")
    return found


def _short(value: Any) -> str:
    """A value as a sentence quotes it."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _is_name(value: Any) -> bool:
    """A text of one line."""
    return isinstance(value, str) and len(value) <= LONGEST and value.splitlines() == [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _all(values: Any, fits: Fits, least: int = 0) -> bool:
    return isinstance(values, list) and len(values) >= least and all(map(fits, values))
