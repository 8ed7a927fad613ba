"""ONNX Runtime, on ONNX files.

Its rewriting ``WeightBiasQuantization``, which its integer kernels need, rounds every bias to a
multiple of the input's step times the weight's. The simulation does not, and networks without
additions around their layers magnify it: of a ShuffleNetV2 at W8A8 about one prediction in a
hundred, half as many as quantization itself changes, falls on the other side.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.whole_files import TEMPORARY, NotWritten, temporary_folder
from fairq_utils.deploy.engines.loaded_model import Kernels, LoadedModel, NotRunning, first_line
from fairq_utils.deploy.engines.registry import engine

if TYPE_CHECKING:
    from torch import Tensor, nn

# Names of nodes, after optimization, that multiply integers, and that compute layers in float.
INTEGER = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger")
FLOAT = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def write(model: nn.Module, example: Tensor, path: Path, weight_bits: int) -> None:
    """Write an ONNX file whose biases, which ONNX Runtime rounds, are rounded finely.

    Arguments and errors are those of :func:`fairq_utils.deploy.engines.onnx_file.to_onnx`.
    """
    from fairq_utils.deploy.engines.onnx_file import to_onnx, write_onnx

    write_onnx(to_onnx(model, example, weight_bits, fine_biases=True), path)


def load(path: str | os.PathLike[str], threads: int) -> LoadedModel:
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
    # Sums of products in 32 bits where a processor without VNNI would take 16, which saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    with temporary_folder() as folder:
        optimized = folder / "optimized.onnx"
        options.optimized_model_filepath = os.fspath(optimized)
        try:
            session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own exception types share no base
            if optimized.exists():  # it was loaded, and writing how it is computed failed
                raise NotWritten(
                    f"{optimized}: could not be written ({first_line(error)}); {TEMPORARY}"
                ) from error
            raise NotRunning(
                f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load this file "
                f"({first_line(error)}); export the model again with this version"
            ) from error
        kernels = _kernels(optimized)
    images = session.get_inputs()[0]
    name, shape = images.name, tuple(images.shape[1:])

    def logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, {name: images})[0]
        return found

    return LoadedModel("onnxruntime", logits, threads, kernels, shape=shape, reentrant=True)


def _kernels(optimized: Path) -> Kernels:
    import onnx

    nodes = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    return Kernels(
        sum(nodes[name] for name in INTEGER), sum(nodes[name] for name in FLOAT), dict(nodes)
    )


engine(
    "onnxruntime",
    label="ONNX Runtime",
    package="onnxruntime",
    extra="engines",
    file="model.onnx",
    write=write,
    load=load,
    method="gates",
)
