"""Export of a run: the engine's file, a card for machines and one for people, in a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fairq_utils.data.faces import FaceData, Images
from fairq_utils.data.whole_files import says_place
from fairq_utils.deploy.card_page import page
from fairq_utils.deploy.card_terms import CARD
from fairq_utils.deploy.engines.loaded_model import KernelsWarning, LoadedModel
from fairq_utils.deploy.engines.registry import ENGINES, installed, load, write
from fairq_utils.deploy.model_card import Margins, card
from fairq_utils.deploy.predict import normalize
from fairq_utils.errors import BadInput, Fault
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.study import planning, run_models
from fairq_utils.study.feasibility import check
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study
from fairq_utils.training import architectures, loop

PAGE = "README.md"
BITS = "W8A8"  # what an architecture's name stands for
BATCH = 8  # of a compiled file, where none is named
EXAMPLES = 2  # images that a file for any batch size is traced with
CHUNK = 128  # test images at a time
SHORTEST = 4  # digits of a key
HEX = re.compile(r"[0-9a-f]+")


def export_run(
    study: Study,
    model: str,
    engine: str,
    folder: str | os.PathLike[str],
    *,
    batch: int | None = None,
) -> Path:
    """Write a run as a deployable folder, whole or not at all.

    Parameters
    ----------
    study : Study
    model : str
        See :func:`choose`.
    engine : str
        One of :data:`fairq_utils.deploy.engines.registry.ENGINES`.
    folder : new, empty, or an earlier export, which is replaced
    batch : int, optional
        The batch size that a compiled file takes, such as Inductor's; others take any.

    Raises
    ------
    BadInput
        There is no such engine; the model is not in the study, or is fine-tuned after quantization;
        the folder holds something else; a batch size is named for an engine that takes any.
    NotInstalled, NotExact, NotRunning
        See :func:`fairq_utils.deploy.engines.registry.write`.
    Fault
        The model is not trained yet, or the folder cannot be made.

    Warns
    -----
    KernelsWarning
        See there too; the card has the figures.
    """
    installed(engine)
    found = ENGINES[engine]
    if batch is not None and not found.compiled:
        raise BadInput(f"--batch: files for {found.label} take batches of any size; leave it out")
    if batch is not None and batch < 1:
        raise BadInput(f"--batch: {batch} is no batch size; name 1 or more")
    folder = Path(folder)
    check_place(folder)
    run = choose(study, model, engine)
    check(study)
    threads = study.params.execution.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    with _written_whole(folder) as place:
        rebuilt = run_models.rebuild(study, run)
        data = study.faces
        test = data.subset("test")
        count = (batch or BATCH) if found.compiled else EXAMPLES
        example = architectures.normalize(_repeated(test.images, count))
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", KernelsWarning)
            write(rebuilt.model, engine, place, example, _weight_bits(rebuilt.report))
        loaded = load(engine, place, threads)
        fp32 = loop.predict(rebuilt.fp32, test.images)
        same = rebuilt.model is rebuilt.fp32
        margins = Margins(
            fp32=fp32,
            simulated=fp32 if same else loop.predict(rebuilt.model, test.images),
            deployed=_margins(loaded, test),
        )
        of_model = card(study, run, rebuilt, loaded, place, data, margins)
        text = json.dumps(of_model, indent=1, allow_nan=False)
        with says_place(folder):
            (place / CARD).write_text(f"{text}\n", encoding="utf-8")
            (place / PAGE).write_text(page(json.loads(text)), encoding="utf-8")
    for one in heard:
        if issubclass(one.category, KernelsWarning):
            warnings.warn(one.message, stacklevel=2)
    return folder


def choose(study: Study, model: str, engine: str) -> Run:
    """Choose the run that a word stands for.

    Parameters
    ----------
    model : str
        A run's key as ``fairq plan`` lists it, a prefix of it of at least four digits that no other
        key of the study has, or the name of an architecture: its model of the first training seed,
        quantized at W8A8 by the engine's own
        :attr:`~fairq_utils.deploy.engines.registry.Engine.method`, calibrated on the study's first
        random draw.
    engine : str
        One of :data:`fairq_utils.deploy.engines.registry.ENGINES`.

    Raises
    ------
    BadInput
        No run, or several, are meant; says what there is.
    """
    params = study.params
    if model in params.training.models:
        seed, draw = params.training.seeds[0], params.quantization.calibration_seeds[0]
        return planning.single(study, model, seed, ENGINES[engine].method, BITS, draw)
    names = ", ".join(params.training.models)
    if not HEX.fullmatch(model):
        raise BadInput(
            f"model: {model!r} is neither an architecture of this study ({names}) nor the key of "
            "one of its runs; `fairq plan` lists them"
        )
    if len(model) < SHORTEST:
        raise BadInput(f"model: {model!r} is too short for a key; give {SHORTEST} digits or more")
    found = [run for run in planning.plan(study) if run.key.startswith(model)]
    if not found:
        raise BadInput(
            f"model: no run of this study has a key that begins with {model!r}; `fairq plan`, with "
            f"the same params, lists them, and its architectures are {names}"
        )
    if len(found) > 1:
        keys = ", ".join(run.key for run in found)
        raise BadInput(f"model: {model!r} begins several keys ({keys}); give more digits")
    return found[0]


def check_place(folder: Path) -> None:
    """Refuse a place that is taken.

    Raises
    ------
    BadInput
        It is a file, or holds something that no export wrote; names it.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: this is a file; name a folder")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    known = {CARD, PAGE, *(name for engine in ENGINES.values() for name in engine.files)}
    if held and (held - known or CARD not in held):
        odd = sorted(held - known or held)[0]
        raise BadInput(
            f"{folder}: holds {odd} and is no earlier export; name another folder, or empty it"
        )


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """Make a temporary folder beside ``folder`` that takes its place at the end."""
    folder = folder.resolve()
    place = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    before = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise Fault(
            f"{folder}: cannot be made ({error.strerror or error}); name another folder"
        ) from error
    try:
        yield place
        if folder.exists():
            folder.rename(before)
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if before.exists() and not folder.exists():
            before.rename(folder)
        shutil.rmtree(before, ignore_errors=True)


def _repeated(images: Images, count: int) -> torch.Tensor:
    return images[torch.arange(count) % len(images)]


def _weight_bits(report: dict[str, Any]) -> int:
    """Fewest bits that any layer's weights have."""
    labels = report.get("layers", {}).values()
    return min((QuantSpec.parse(label).weight_bits for label in labels), default=8)


def _margins(loaded: LoadedModel, test: FaceData) -> NDArray[np.float32]:
    """Margins on the test split, of images made ready as ``fairq predict`` does it."""
    parts = []
    for images in test.images.split(CHUNK):
        ready = normalize(images.numpy(), architectures.MEAN, architectures.STD)
        logits = loaded.in_batches(ready, CHUNK)
        parts.append(logits[:, 1] - logits[:, 0])
    return np.concatenate(parts)
