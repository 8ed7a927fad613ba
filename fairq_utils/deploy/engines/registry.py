"""Engines by name: write a model's file, and load it, by the engine that its folder is for.

Loading and predicting import neither PyTorch nor this package's training code, except where PyTorch
is the engine.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fairq_utils.data.whole_files import says_place, temporary_folder, written_whole
from fairq_utils.deploy.engines.loaded_model import (
    FloatKernelsWarning,
    LoadedModel,
    NotRunning,
)
from fairq_utils.errors import BadInput, MissingExtra, needs
from fairq_utils.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

Write: TypeAlias = "Callable[[nn.Module, Tensor, Path, int], None]"
Load = Callable[[Path, int], LoadedModel]


@dataclass(frozen=True)
class Engine:
    """One way to run a model from a file.

    Attributes
    ----------
    name, label : by which it is asked for; how tables and figures call it
    package : what is imported and installed
    file : name of the model's file in a folder
    write : from a model, an example, the file's path and the bits of weights to the file
        The arguments of :func:`write`; the folder is there, the engine too.
    load : from the file's path and a number of threads to a :class:`LoadedModel`
    extra : the optional dependencies of this project that bring it, or "" where it always comes
    further : names of files that belong to the model's, all written by ``write``
    method : the method of :mod:`fairq_utils.quantizers.methods` after which it finds most integers
        ONNX Runtime fuses no SiLU behind a convolution; the others do.
    compiled : whether the file is machine code
        It then takes batches of one size only, on processors like the one that wrote it.
    """

    name: str
    label: str
    package: str
    file: str
    write: Write
    load: Load
    extra: str = ""
    further: tuple[str, ...] = ()
    method: str = "operations"
    compiled: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Names of a model's files, the one that is loaded first."""
        return (self.file, *self.further)


ENGINES: Registry[Engine] = Registry("engine", "fairq_utils.deploy.engines")


def engine(name: str, **attributes: Any) -> Engine:
    """Register an engine; its attributes are those of :class:`Engine`."""
    return ENGINES.add(name, Engine(name, **attributes))


class NotInstalled(MissingExtra):
    """An engine is not there; the message names what brings it."""


def installed(engine: str) -> str:
    """Version of an engine.

    Raises
    ------
    BadInput
        There is no engine of that name; names the nearest.
    NotInstalled
        It is not there; names the extra that brings it.
    """
    found = ENGINES.find(engine, "engine")
    if importlib.util.find_spec(found.package) is None:
        what = f"fairq_utils[{found.extra}]" if found.extra else found.package
        raise NotInstalled(f"{found.label} is not installed; pip install '{what}' brings it")
    return version(found.package)


def files(engine: str, folder: str | os.PathLike[str]) -> list[Path]:
    """Files of a model in a folder, the one that is loaded first."""
    return [Path(folder) / name for name in ENGINES[engine].files]


def write(
    model: nn.Module,
    engine: str,
    folder: str | os.PathLike[str],
    example: Tensor,
    weight_bits: int = 8,
    *,
    check: bool = True,
) -> list[Path]:
    """Write the file that an engine runs, and compare its outputs with the model's.

    Both get the example, zeros, and the example times 100; their outputs may differ by a
    thousandth of the largest one, and where inputs are quantized by three times what another
    rounding of them changes.

    Parameters
    ----------
    model : nn.Module
        Float, or from a quantizer of :mod:`fairq_utils.quantizers` with static inputs or float
        ones; it stays as it is.
    engine : str
        One of :data:`ENGINES`.
    folder : where the file goes; made where it is not there
    example : float32 (N, 3, H, W), normalized
        A compiled file takes batches of this size only; others take any, and N is 2 or more.
    weight_bits : int
        At 4 or less, weights are packed two to a byte (ONNX Runtime and OpenVINO), but for layers
        with integers beyond four bits, as those with channels kept at 8 bits are.
    check : bool
        Whether the file is compared; without, it is written as it comes.

    Returns
    -------
    list of Path
        All files that were written; see :func:`files`.

    Raises
    ------
    BadInput, NotInstalled
        See :func:`installed`; or the model gives no tensor.
    ValueError
        The example is no batch of images of that kind.
    NotExact
        Integer kernels would not compute what the model computes, or the file does not; names the
        layer. Nothing is written.
    NotRunning
        The engine cannot take this model.
    NotWritten
        The folder, or one for temporary files, cannot be written.

    Warns
    -----
    SaturationWarning
        The file is right, and this processor's integer kernels are not exact.
    FloatKernelsWarning
        Most of the quantized layers are computed in float; names what would change that.
    """
    installed(engine)
    found = ENGINES[engine]
    _check_example(example, 1 if found.compiled else 2)
    from fairq_utils.deploy.engines import agreement
    from fairq_utils.quantizers.copying import copied

    model = copied(model, "engines.write")
    agreement.outputs_of(model, example)
    with says_place(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    with needs(f"writing for {found.label}", "engines"), temporary_folder() as held:

        def written(model: nn.Module, example: Tensor) -> Path:
            place = held / str(len(list(held.iterdir())))
            place.mkdir()
            found.write(model, example, place / found.file, weight_bits)
            return place

        def again(part: nn.Module, given: Tensor) -> LoadedModel:
            return load(engine, written(part, given), 1)

        place = written(model, example)
        if check:
            loaded = load(engine, place, 1)
            agreement.check(model, loaded, example, again, f"engines.write, {found.label}")
            _say_what_stays_float(model, loaded, found)
        for path in reversed(files(engine, folder)):  # the one that is loaded first at last
            with written_whole(path) as whole:
                shutil.copyfile(place / path.name, whole)
    return files(engine, folder)


def _say_what_stays_float(model: nn.Module, loaded: LoadedModel, engine: Engine) -> None:
    """Warn where most layers that are quantized run on kernels for floats."""
    from fairq_utils.quantizers.layers import Quantized

    layers = [layer for layer in model.modules() if isinstance(layer, Quantized)]
    count = sum(layer.spec.activation == "static" for layer in layers)
    if loaded.kernels is None or 2 * loaded.kernels.integer >= count:
        return
    warnings.warn(
        f"engines.write: {engine.label} has integer kernels for {loaded.kernels.integer} of "
        f"{count} quantized layers of this model, and computes the others in float, because of "
        f"what is between them; it finds most after the method {engine.method!r}, and another "
        "engine may find all",
        FloatKernelsWarning,
        stacklevel=3,
    )


def _check_example(example: Tensor, least: int) -> None:
    import torch

    if not isinstance(example, torch.Tensor) or example.dtype != torch.float32:
        found = example.dtype if isinstance(example, torch.Tensor) else type(example).__name__
        raise ValueError(f"engines.write: example is {found}, not a float32 tensor; convert it")
    if example.ndim != 4 or len(example) < least:
        raise ValueError(
            f"engines.write: example has shape {tuple(example.shape)}; give {least} or more "
            "images, (N, 3, H, W)"
        )


def load(engine: str, folder: str | os.PathLike[str], threads: int) -> LoadedModel:
    """Let an engine load a model.

    Parameters
    ----------
    engine : str
        One of :data:`ENGINES`.
    folder : written by :func:`write`
    threads : int

    Raises
    ------
    BadInput, NotInstalled
        See :func:`installed`; or fewer than one thread.
    NotRunning
        A file is missing, damaged, or of another version.
    """
    installed(engine)
    if not isinstance(threads, int) or threads < 1:
        raise BadInput(f"threads: {threads!r} is no number of threads; name 1 or more")
    found, paths = ENGINES[engine], files(engine, folder)
    for path in paths:
        if not path.is_file():
            raise NotRunning(f"{path}: there is no such file; export the model again")
    try:
        return found.load(paths[0], threads)
    except ImportError as error:
        raise NotInstalled(
            f"{found.label} is installed but cannot be imported ({error}); install "
            f"{found.package} again"
        ) from error
