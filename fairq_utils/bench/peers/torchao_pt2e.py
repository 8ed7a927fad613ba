"""torchao's PT2E: export, annotate, calibrate with observers, convert.

At eight bits with its quantizer for x86 and that one's default recipe; below, where no quantizer of
its own goes, with a quantizer of ours in its vocabulary, as its tutorial "How to write a Quantizer"
describes: the same observers, with narrower ``quant_min`` and ``quant_max``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from fairq_utils.bench.peers.registry import EDGE_BITS, Logits, Task, peer
from fairq_utils.deploy.engines.registry import write as write_file

LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
EPS = 2**-12  # smallest scale, as in torchao's own recipes


def quantize(task: Task) -> Logits:
    """Quantize a model; returns its logits as a function of images."""
    model = _converted(task)

    def logits(images: Tensor) -> Tensor:
        found: Tensor = model(images)
        return found

    return logits


def write(task: Task, example: Tensor, path: Path) -> None:
    """Write an Inductor file, for the example's batch size."""
    write_file(_converted(task), "inductor", path.parent, example)


def _converted(task: Task) -> GraphModule:
    """Quantized model."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = task.batches[0].contiguous()
    graph = torch.export.export(task.model, (example,), dynamic_shapes=({0: batch},)).module()
    prepared: Any = prepare_pt2e(graph, _quantizer(task))
    with torch.no_grad():
        for images in task.batches:
            prepared(images)
    quantized: GraphModule = convert_pt2e(prepared)
    return quantized


def _quantizer(task: Task) -> Any:
    if (task.weight_bits, task.activation_bits) == (8, 8):
        quantizer = X86InductorQuantizer()
        return quantizer.set_global(get_default_x86_inductor_quantization_config())
    return _FewBits(task.weight_bits, task.activation_bits)


class _FewBits(Quantizer):
    """Weights and inputs of convolutions and linear layers at any bits up to eight."""

    def __init__(self, weight_bits: int, activation_bits: int) -> None:
        super().__init__()
        self.bits = (weight_bits, activation_bits)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Note how the operands of every layer are quantized."""
        layers = [node for node in model.graph.nodes if node.target in LAYERS]
        for node in layers:
            at_edge = node in (layers[0], layers[-1])
            weight, activation = (EDGE_BITS, EDGE_BITS) if at_edge else self.bits
            images, filters = node.args[:2]
            assert isinstance(images, Node) and isinstance(filters, Node)
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map={images: _inputs(activation), filters: _weights(weight)},
                _annotated=True,
            )
        return model

    def validate(self, model: GraphModule) -> None:
        """Check nothing: nothing is left to check."""


class _Histogram(HistogramObserver):
    """torchao's observer, whose search for the least MSE knows how many levels there are."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.dst_nbins = self.quant_max - self.quant_min + 1  # 256 otherwise, whatever the bits


def _inputs(bits: int) -> Any:
    return QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=2**bits - 1,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=_Histogram.with_args(eps=EPS),
    )


def _weights(bits: int) -> Any:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=EPS),
    )


peer(
    "torchao_pt2e",
    label="torchao PT2E",
    package="torchao",
    quantize=quantize,
    engine="inductor",
    write=write,
)
