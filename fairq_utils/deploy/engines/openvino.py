"""OpenVINO, on files of its own (``.xml`` and ``.bin``) that come from ONNX files."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.whole_files import TEMPORARY, NotWritten, temporary_folder, written_whole
from fairq_utils.deploy.engines.loaded_model import Kernels, LoadedModel, NotRunning, first_line
from fairq_utils.deploy.engines.registry import engine

if TYPE_CHECKING:
    from torch import Tensor, nn

LAYERS = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")


def write(model: nn.Module, example: Tensor, path: Path, weight_bits: int) -> None:
    """Write OpenVINO's own file, ``path``, which ends in ``.xml``, and its weights beside it.

    Arguments and errors are those of :func:`fairq_utils.deploy.engines.onnx_file.to_onnx`.
    """
    import openvino

    from fairq_utils.deploy.engines.onnx_file import to_onnx, write_onnx

    proto = to_onnx(model, example, weight_bits, signed_products=True)
    with temporary_folder() as folder:
        try:
            read = openvino.Core().read_model(write_onnx(proto, folder / "model.onnx"))
        except RuntimeError as error:
            raise NotRunning(
                f"{path}: OpenVINO cannot take this model ({_reason(error)}); write it for another "
                "engine"
            ) from error
        try:
            openvino.save_model(read, folder / path.name, compress_to_fp16=False)
        except RuntimeError as error:  # what it read it can write, where there is room
            raise NotWritten(
                f"{folder / path.name}: could not be written ({first_line(error)}); {TEMPORARY}"
            ) from error
        for made in (path.with_suffix(".bin"), path):
            with written_whole(made) as place:
                shutil.copyfile(folder / made.name, place)


def load(path: str | os.PathLike[str], threads: int) -> LoadedModel:
    """Load a file; each new batch size is compiled once, which takes about a second.

    Floats stay float32: by itself OpenVINO takes bfloat16 on processors that have it.

    Raises
    ------
    NotRunning
        The file cannot be read or compiled.
    """
    import openvino

    core = openvino.Core()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    compiled: dict[tuple[int, ...], Any] = {}
    compiling = threading.Lock()
    own = threading.local()  # a request has one input and one output: each thread has its own

    def request(shape: tuple[int, ...]) -> Any:
        requests = vars(own)
        if str(shape) not in requests:
            with compiling:
                if shape not in compiled:
                    model = core.read_model(os.fspath(path))
                    model.reshape(list(shape))
                    try:
                        compiled[shape] = core.compile_model(model, "CPU", settings)
                    except RuntimeError as error:
                        raise _not_running(path, error) from error
            requests[str(shape)] = compiled[shape].create_infer_request()
        return requests[str(shape)]

    try:
        model = core.read_model(os.fspath(path))
        shape = tuple(axis.get_length() for axis in list(model.input(0).partial_shape)[1:])
        kernels = _kernels(core.compile_model(model, "CPU", settings).get_runtime_model())
    except RuntimeError as error:
        raise _not_running(path, error) from error

    def logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
        running = request(images.shape)
        running.infer({0: images}, share_inputs=True)
        found: NDArray[np.float32] = running.get_output_tensor(0).data.copy()
        return found

    return LoadedModel("openvino", logits, threads, kernels, shape=shape, reentrant=True)


def _not_running(path: str | os.PathLike[str], error: RuntimeError) -> NotRunning:
    version = importlib.metadata.version("openvino")
    return NotRunning(
        f"{path}: OpenVINO {version} cannot load this file ({_reason(error)}); export the model "
        "again with this version, or take another engine"
    )


def _reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason given"


def _kernels(runtime: Any) -> Kernels:
    found: Counter[str] = Counter()
    for node in runtime.get_ordered_ops():
        info = node.get_rt_info()
        kind, primitive = (_text(info[key]) for key in ("layerType", "primitiveType"))
        if kind.startswith(LAYERS):
            found[f"{kind} {primitive}"] += 1
    integer = sum(n for name, n in found.items() if name.lower().endswith("_i8"))
    return Kernels(integer, sum(found.values()) - integer, dict(found))


def _text(value: Any) -> str:
    return str(value.value if hasattr(value, "value") else value)


engine(
    "openvino",
    label="OpenVINO",
    package="openvino",
    extra="engines",
    file="model.xml",
    further=("model.bin",),
    write=write,
    load=load,
)
