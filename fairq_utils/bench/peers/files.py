"""INT8 files that other toolkits make for the engines of this project, as they recommend it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor, nn

from fairq_utils.bench.peers import Task, installed
from fairq_utils.deploy import engines
from fairq_utils.deploy.quiet import silence


def write(model: nn.Module, engine: str, folder: Path, example: Tensor, pictures: Tensor) -> None:
    """Quantize with the engine's own toolkit and write the file that the engine runs.

    ONNX Runtime: its ``quantize_static``; OpenVINO: NNCF on OpenVINO's model; Inductor: torchao's
    PT2E.

    Parameters
    ----------
    model : float, in evaluation mode
    engine : str
        One of :data:`fairq_utils.deploy.engines.ENGINES`.
    example : float32 (N, 3, H, W)
        See :func:`fairq_utils.deploy.engines.write`.
    pictures : float32 (N, 3, H, W)
        For calibration.

    Raises
    ------
    NotInstalled
        Names the extra that brings the toolkit.
    """
    transformer = any("Attention" in type(m).__name__ for m in model.modules())
    task = Task(model, 8, 8, tuple(pictures.split(8)), "", "", transformer)
    path = engines.files(engine, folder)[0]
    with silence():
        if engine == "onnxruntime":
            from fairq_utils.bench.peers import onnxruntime_qdq

            onnxruntime_qdq.write(task, path)
        elif engine == "inductor":
            from fairq_utils.bench.peers import torchao_pt2e

            engines.write(torchao_pt2e.converted(task), engine, folder, example)
        else:
            _openvino(task, path)


def _openvino(task: Task, path: Path) -> None:
    installed("nncf")
    import nncf
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        engines.write(task.model, "openvino", folder, task.batches[0])
        model = openvino.Core().read_model(engines.files("openvino", folder)[0])
        images = [image.numpy() for batch in task.batches for image in batch.split(1)]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER if task.transformer else None,
        )
        openvino.save_model(quantized, path, compress_to_fp16=False)
