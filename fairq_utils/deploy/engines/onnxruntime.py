"""ONNX files run by ONNX Runtime."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairq_utils.deploy.engines.answering import Answering, Kernels, NotRunning

# Names of nodes, after optimization, that multiply integers, and that compute layers in float.
INTEGER = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger")
FLOAT = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def load(path: str | os.PathLike[str], threads: int) -> Answering:
    """Load an ONNX file.

    Parameters
    ----------
    path : file with one input and one output
    threads : int
        Within one operation, pinned.

    Raises
    ------
    NotRunning
        The file cannot be read or its operators are unknown here.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = os.fspath(optimized)
        try:
            session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own exception types share no base
            raise NotRunning(
                f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load this file "
                f"({_first_line(error)}); export the model again with this version"
            ) from error
        kernels = _kernels(optimized)
    images = session.get_inputs()[0]
    name, shape = images.name, tuple(images.shape[1:])

    def answer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(None, {name: images})[0]
        return logits

    return Answering("onnxruntime", answer, threads, kernels, shape=shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]


def _kernels(optimized: Path) -> Kernels:
    import onnx

    nodes = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    return Kernels(
        sum(nodes[name] for name in INTEGER), sum(nodes[name] for name in FLOAT), dict(nodes)
    )
