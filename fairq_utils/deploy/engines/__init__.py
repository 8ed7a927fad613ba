"""Quantized models on real integer kernels: written to a file, run by an engine.

:func:`write` turns a model into the file that ships, :func:`load` lets an engine run it. Loading
and running import neither PyTorch nor this package's training code, except where PyTorch is the
engine.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fairq_utils.deploy.engines.answering import Answering, Kernels, NotExact, NotRunning
from fairq_utils.errors import Fault

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "ENGINES",
    "Answering",
    "Engine",
    "Kernels",
    "NotExact",
    "NotInstalled",
    "NotRunning",
    "files",
    "installed",
    "load",
    "write",
]


@dataclass(frozen=True)
class Engine:
    """What runs a file.

    Attributes
    ----------
    label : how tables and figures call it
    package : what is imported and installed
    extra : the optional dependencies of this project that bring it; None where it always comes
    file : name of the model's file in a folder
    further : files that belong to it
    method : the method of :mod:`fairq_utils.quantizers.methods` after which it finds most integers
        ONNX Runtime fuses no SiLU behind a convolution; the others do.
    """

    label: str
    package: str
    extra: str | None
    file: str
    further: tuple[str, ...] = ()
    method: str = "operations"


ENGINES: dict[str, Engine] = {
    "onnxruntime": Engine("ONNX Runtime", "onnxruntime", None, "model.onnx", method="gates"),
    "openvino": Engine("OpenVINO", "openvino", "engines", "model.xml", ("model.bin",)),
    "inductor": Engine("Inductor", "torch", None, "model.pt2"),
}


class NotInstalled(Fault):
    """An engine is not there; the message names what brings it."""


def installed(engine: str) -> str:
    """The version of an engine.

    Raises
    ------
    ValueError
        There is no engine of that name.
    NotInstalled
        It is not there; names the extra that brings it.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    found = ENGINES[engine]
    if importlib.util.find_spec(found.package) is None:
        what = f"fairq_utils[{found.extra}]" if found.extra else found.package
        raise NotInstalled(f"{found.label} is not installed; pip install '{what}' brings it")
    return version(found.package)


def files(engine: str, folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a model in a folder, the one that is loaded first."""
    found = ENGINES[engine]
    return [Path(folder) / name for name in (found.file, *found.further)]


def write(
    model: nn.Module,
    engine: str,
    folder: str | os.PathLike[str],
    example: Tensor,
    weight_bits: int = 8,
) -> list[Path]:
    """Write the file that an engine runs.

    Parameters
    ----------
    model : nn.Module
        Float, or from a quantizer of :mod:`fairq_utils.quantizers` with static inputs or float
        ones; it stays as it is.
    engine : str
        One of :data:`ENGINES`.
    folder : where the file goes; made where it is not there
    example : float32 (N, 3, H, W), normalized, N of 2 or more
        Inductor's file answers about batches of this size only, the others' about any.
    weight_bits : int
        At 4 or less, weights are packed two to a byte (ONNX Runtime and OpenVINO), but for layers
        with integers beyond four bits, as those with channels kept at 8 bits are.

    Returns
    -------
    list of Path
        All files that were written; see :func:`files`.

    Raises
    ------
    ValueError
        There is no engine of that name, or the example is no batch of images of that kind.
    NotInstalled
        See :func:`installed`.
    NotExact
        Integer kernels would not compute what the model computes.
    NotRunning
        The engine cannot take this model.
    """
    installed(engine)
    _check_example(example, 1 if engine == "inductor" else 2)
    paths = files(engine, folder)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    if engine == "inductor":
        from fairq_utils.deploy.engines import inductor

        inductor.write(model, example, paths[0])
        return paths
    from fairq_utils.deploy.engines.onnx_file import to_onnx, write_onnx

    proto = to_onnx(
        model,
        example,
        weight_bits,
        signed_products=engine == "openvino",
        fine_biases=engine == "onnxruntime",
    )
    if engine == "onnxruntime":
        write_onnx(proto, paths[0])
        return paths
    from fairq_utils.deploy.engines import openvino

    with tempfile.TemporaryDirectory() as temporary:
        openvino.convert(write_onnx(proto, Path(temporary) / "model.onnx"), paths[0])
    return paths


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


def load(engine: str, folder: str | os.PathLike[str], threads: int) -> Answering:
    """Let an engine load a model.

    Parameters
    ----------
    engine : str
        One of :data:`ENGINES`.
    folder : written by :func:`write`
    threads : int

    Raises
    ------
    ValueError, NotInstalled
        See :func:`installed`.
    NotRunning
        A file is missing, damaged, or of another version.
    """
    installed(engine)
    for path in files(engine, folder):
        if not path.is_file():
            raise NotRunning(f"{path}: there is no such file; export the model again")
    module = importlib.import_module(f"fairq_utils.deploy.engines.{engine}")
    try:
        answering: Answering = module.load(files(engine, folder)[0], threads)
    except ImportError as error:
        raise NotInstalled(
            f"{ENGINES[engine].label} is installed but cannot be imported ({error}); install "
            f"{ENGINES[engine].package} again"
        ) from error
    return answering
