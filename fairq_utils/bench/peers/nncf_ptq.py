"""NNCF's ``nncf.quantize`` on PyTorch, with its fast bias correction, SmoothQuant for transformers.

Four bits exist only in what NNCF knows of the NPU; first and last layer are quantized by a second
call that ignores all others, since the number of bits is one for a whole call.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fairq_utils.bench.outcome import NotOffered
from fairq_utils.bench.peers.registry import EDGE_BITS, Logits, Task, peer
from fairq_utils.deploy.engines.registry import files
from fairq_utils.deploy.engines.registry import write as write_float

# What NNCF would also quantize, but has no four-bit grid for; and residual additions, which four
# bits ruin. All of it is computed in float in the other four-bit columns too.
FLOAT_AT_FEW_BITS = [
    "adaptive_avg_pool2d",
    "add",
    "add_",
    "__add__",
    "__iadd__",
    "mul",
    "mul_",
    "max_pool2d",
    "mean",
    "scaled_dot_product_attention",
]


def quantize(task: Task) -> Logits:
    """Quantize a model; returns its logits as a function of images."""
    import nncf

    if task.activation_bits < 8 and _has_depthwise(task.model):
        raise NotOffered(
            "no device that NNCF knows has inputs of depthwise convolutions below 8 bits"
        )
    if (task.weight_bits, task.activation_bits) == (8, 8):
        model = _quantize(task, task.model, 8, 8, nncf.TargetDevice.ANY, {})
    else:
        npu = nncf.TargetDevice.NPU
        edges = [f"{name.replace('.', '/')}/.*" for name in (task.first, task.last)]
        few = {
            "patterns": edges,
            "types": FLOAT_AT_FEW_BITS if task.activation_bits < 8 else [],
            "validate": False,
        }
        rest = {"patterns": [f"(?!{'|'.join(edges)}).*"], "validate": False}
        inner = _quantize(task, task.model, task.weight_bits, task.activation_bits, npu, few)
        model = _quantize(task, inner, EDGE_BITS, EDGE_BITS, npu, rest)

    def logits(images: Tensor) -> Tensor:
        found: Tensor = model(images)
        return found

    return logits


def write(task: Task, example: Tensor, path: Path) -> None:
    """Write an OpenVINO file, quantized by NNCF on OpenVINO's model."""
    import nncf
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        write_float(task.model, "openvino", folder, task.batches[0])
        model = openvino.Core().read_model(files("openvino", folder)[0])
        images = [image.numpy() for batch in task.batches for image in batch.split(1)]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER if task.transformer else None,
        )
        openvino.save_model(quantized, path, compress_to_fp16=False)


def _quantize(
    task: Task,
    model: nn.Module,
    weight_bits: int,
    activation_bits: int,
    device: Any,
    ignored: dict[str, Any],
) -> nn.Module:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        QuantizationParameters,
    )

    # One by one for transformers: NNCF warns of statistics over batches there.
    singly = task.transformer
    data = [image for b in task.batches for image in b.split(1)] if singly else list(task.batches)
    presets = nncf.QuantizationPreset
    quantized: nn.Module = nncf.quantize(
        model,
        nncf.Dataset(data),
        subset_size=len(data),
        target_device=device,
        model_type=nncf.ModelType.TRANSFORMER if task.transformer else None,
        # Asymmetric inputs are the more accurate ones; four bits have only the others.
        preset=presets.MIXED if activation_bits == 8 else presets.PERFORMANCE,
        ignored_scope=nncf.IgnoredScope(**ignored) if ignored else None,
        advanced_parameters=AdvancedQuantizationParameters(
            batchwise_statistics=not singly,
            weights_quantization_params=QuantizationParameters(num_bits=weight_bits),
            activations_quantization_params=QuantizationParameters(num_bits=activation_bits),
        ),
    )
    return quantized


def _has_depthwise(model: nn.Module) -> bool:
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return any(m.groups > 1 and m.groups == m.in_channels for m in convolutions)


peer("nncf", label="NNCF", package="nncf", quantize=quantize, engine="openvino", write=write)
