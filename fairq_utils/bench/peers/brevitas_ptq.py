"""Brevitas' post-training flow, in the order and with the settings of its ImageNet example.

Of its own results on MobileNetV2 and ViT-B/32 (``RESULTS_TORCHVISION_BEST_CONFIGS.csv``) the best
with float scales per channel are layerwise with asymmetric inputs, bias correction, graph
equalization, and GPTQ at four-bit weights. At four-bit inputs, of which the example has no results,
a tighter percentile gains accuracy, and equalization, for which ReLU6 becomes ReLU, loses a third
of MobileNetV2's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fairq_utils.bench.peers.registry import EDGE_BITS, Logits, Task, peer

EQUALIZATIONS = 20  # iterations
# Share of values kept inside, in percent.
PERCENTILE = {4: 99.9, 8: 99.99}


def quantize(task: Task) -> Logits:
    """Quantize a model; returns its logits as a function of images."""
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.gptq import gptq_mode
    from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize

    tight = task.activation_bits < 8
    with torch.no_grad():
        model: Any = preprocess_for_quantize(
            copy.deepcopy(task.model),
            equalize_iters=0 if tight else EQUALIZATIONS,
            relu6_to_relu=not tight,
        )
        inner = _layers(task.weight_bits, task.activation_bits)
        model = layerwise_quantize(model, inner, name_blacklist=[task.first, task.last])
        # Layers that are quantized already are left alone: what remains is the first and the last.
        model = layerwise_quantize(model, _layers(EDGE_BITS, EDGE_BITS)).eval()
        model(task.batches[0])  # sets the scales of the weights
        with calibration_mode(model):
            _observe(model, task)
        if task.weight_bits < 8:
            with gptq_mode(model, use_quant_activations=False) as gptq:
                for _ in range(gptq.num_layers):
                    _observe(gptq.model, task)
                    gptq.update()
        with bias_correction_mode(model):
            _observe(model, task)

    def logits(images: Tensor) -> Tensor:
        found: Tensor = model(images)
        return found

    return logits


def _observe(model: Any, task: Task) -> None:
    for images in task.batches:
        model(images)


def _layers(weight_bits: int, activation_bits: int) -> dict[type[nn.Module], Any]:
    """Replacements of layers, and how their operands are quantized."""
    from brevitas import nn as qnn
    from brevitas.core.scaling.standalone import ParameterFromStatsFromParameterScaling
    from brevitas.quant.scaled_int import Int8WeightPerChannelFloat, Int32Bias
    from brevitas.quant.shifted_scaled_int import ShiftedUint8ActPerTensorFloat

    kept = PERCENTILE.get(activation_bits, 99.9)
    options = {
        "weight_quant": Int8WeightPerChannelFloat.let(
            bit_width=weight_bits,
            narrow_range=False,
            scaling_impl=ParameterFromStatsFromParameterScaling,
        ),
        "input_quant": ShiftedUint8ActPerTensorFloat.let(
            bit_width=activation_bits, high_percentile_q=kept, low_percentile_q=100 - kept
        ),
        "bias_quant": Int32Bias,
        "return_quant_tensor": False,
    }
    return {nn.Conv2d: (qnn.QuantConv2d, options), nn.Linear: (qnn.QuantLinear, options)}


peer("brevitas", label="Brevitas", package="brevitas", quantize=quantize)
