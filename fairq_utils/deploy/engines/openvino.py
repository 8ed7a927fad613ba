"""ONNX files and OpenVINO's own (``.xml`` and ``.bin``) run by OpenVINO."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils.deploy.engines.answering import Answering, Kernels, NotRunning

LAYERS = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")


def load(path: str | os.PathLike[str], threads: int) -> Answering:
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

    def request(shape: tuple[int, ...]) -> Any:
        if shape not in compiled:
            model = core.read_model(os.fspath(path))
            model.reshape(list(shape))
            compiled[shape] = core.compile_model(model, "CPU", settings).create_infer_request()
        return compiled[shape]

    try:
        model = core.read_model(os.fspath(path))
        shape = tuple(axis.get_length() for axis in list(model.input(0).partial_shape)[1:])
        kernels = _kernels(core.compile_model(model, "CPU", settings).get_runtime_model())
    except RuntimeError as error:
        version = openvino.__version__.split("-")[0]
        raise NotRunning(
            f"{path}: OpenVINO {version} cannot load this file ({_reason(error)}); export the "
            "model again with this version"
        ) from error

    def answer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        running = request(images.shape)
        running.infer({0: images}, share_inputs=True)
        logits: NDArray[np.float32] = running.get_output_tensor(0).data.copy()
        return logits

    return Answering("openvino", answer, threads, kernels, shape=shape)


def convert(onnx_file: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Write OpenVINO's own file, ``path`` and ``path`` with ``.bin``, from an ONNX file."""
    import openvino

    model = openvino.Core().read_model(os.fspath(onnx_file))
    openvino.save_model(model, os.fspath(path), compress_to_fp16=False)


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
