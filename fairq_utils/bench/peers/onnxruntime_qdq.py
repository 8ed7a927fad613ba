"""ONNX Runtime's ``quantize_static``: pre-processing, calibration, QDQ with per-channel weights.

Types as its documentation recommends for x86 with VNNI (unsigned inputs, signed weights). At four
bits the weights are INT4 of opset 21; first and last layer are named by ``TensorQuantOverrides``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from fairq_utils.bench.outcome import NotOffered
from fairq_utils.bench.peers.registry import Logits, Task, peer

OPSET = 21  # the first with four-bit integers
LAYERS = ["Conv", "Gemm", "MatMul"]
WEIGHTS = {4: QuantType.QInt4, 8: QuantType.QInt8}
INPUTS = {4: QuantType.QUInt4, 8: QuantType.QUInt8}
# Share of values kept inside, in percent: fewer levels gain from tighter ranges.
PERCENTILE = {4: 99.9, 8: 99.99}


def quantize(task: Task) -> Logits:
    """Quantize a model; returns its logits as a function of images."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        write(task, task.batches[0], path)
        session = _session(path, optimize=task.activation_bits == 8)

    def logits(images: Tensor) -> Tensor:
        (found,) = session.run(None, {"images": _array(images)})
        return torch.from_numpy(found)

    return logits


def write(task: Task, example: Tensor, path: Path) -> None:
    """Write the quantized model as an ONNX file.

    Parameters
    ----------
    example : float32 (N, 3, H, W), N of 2 or more

    Raises
    ------
    NotOffered
        Bits other than 4 and 8.
    """
    for bits, types in ((task.weight_bits, WEIGHTS), (task.activation_bits, INPUTS)):
        if bits not in types:
            raise NotOffered(f"ONNX has integers of 4 and 8 bits, none of {bits}")
    onnxruntime.set_default_logger_severity(4)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "float.onnx"
        _export(task, example, exported)
        options: dict[str, Any] = {"CalibPercentile": PERCENTILE[task.activation_bits]}
        if (task.weight_bits, task.activation_bits) != (8, 8):
            options["TensorQuantOverrides"] = _edges(onnx.load(exported))
        if task.activation_bits < 8:
            # Only what enters the layers: four bits ruin sums, and attention's products stay in
            # float in the other columns too.
            options["OpTypesToExcludeOutputQuantization"] = LAYERS
            options["MatMulConstBOnly"] = True
        quantize_static(
            exported,
            path,
            _Calibration(task.batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=LAYERS if task.activation_bits < 8 else None,
            per_channel=True,
            weight_type=WEIGHTS[task.weight_bits],
            activation_type=INPUTS[task.activation_bits],
            calibrate_method=CalibrationMethod.Percentile,
            extra_options=options,
        )


def _array(images: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = images.contiguous().numpy()
    return array


def _export(task: Task, example: Tensor, path: Path) -> None:
    """Write the model as ONNX, pre-processed as quantization wants it."""
    raw = path.with_name("raw.onnx")
    torch.onnx.export(
        task.model,
        (example[:2].contiguous(),),
        raw,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    quant_pre_process(raw, path)


def _edges(model: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Eight bits for the operands of the first and the last layer."""
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        operand: [{"quant_type": WEIGHTS[8] if operand in constants else INPUTS[8]}]
        for node in (layers[0], layers[-1])
        for operand in node.input[:2]
    }


def _session(path: Path, *, optimize: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if not optimize:
        # Fusing a clip with the quantizer behind it fails on four-bit inputs (1.32).
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class _Calibration(CalibrationDataReader):
    """The calibration images, batch by batch."""

    def __init__(self, batches: tuple[Tensor, ...]) -> None:
        self.rest: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """One batch, or None at the end."""
        batch = next(self.rest, None)
        return None if batch is None else {"images": _array(batch)}


peer(
    "onnxruntime",
    label="ONNX Runtime",
    package="onnxruntime",
    quantize=quantize,
    engine="onnxruntime",
    write=write,
)
