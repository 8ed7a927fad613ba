"""ONNX Runtime's biases: 32-bit integers, multiples of ``s_x s_w``, the steps of input and weight.

At eight bits that is as good as a float. A weight of fewer bits is a byte on a finer step, with the
same values: its integers multiplied, its step divided by a power of two. An input of fewer bits
stays coarse whatever its step, because a value that falls on the other side of an edge is a whole
step off; there the engine's answers are not the model's.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from fairq_utils.engines.answering import NotExact
from fairq_utils.quantizers.layers import Quantized

BITS = 8


def refuse_coarse_inputs(model: nn.Module) -> None:
    """Refuse a model with static inputs of fewer than eight bits.

    Raises
    ------
    NotExact
        Names a layer and the way out.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, Quantized) and layer.spec.activation == "static":
            bits = layer.spec.activation_bits
            if bits < BITS:
                raise NotExact(
                    f"layer {name}: ONNX Runtime rounds biases to multiples of the steps of input "
                    f"and weight, which at {bits}-bit inputs changes answers; take OpenVINO or "
                    f"Inductor, or {BITS}-bit inputs, which cost no more time"
                )


def refine_weights(graph: onnx.GraphProto) -> None:
    """Let weights that leave bits of their bytes unused use them, in place; values stay.

    Parameters
    ----------
    graph : of Q/DQ operators, every weight's scale and zero-point a constant of its own
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shifts: dict[str, int] = {}  # of weights; several nodes may read one
    for node in graph.node:
        weight = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.data_type != onnx.TensorProto.INT8:
            continue
        if weight.name not in shifts:
            values = numpy_helper.to_array(weight).astype(np.int16)
            shifts[weight.name] = unused_bits(int(np.abs(values).max()))
            _multiply(weight, 2 ** shifts[weight.name])
        scale, zero = (constants[name] for name in node.input[1:3])  # each node has its own
        _multiply(scale, 0.5 ** shifts[weight.name])
        _multiply(zero, 2 ** shifts[weight.name])


def _multiply(tensor: onnx.TensorProto, times: float) -> None:
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * times).astype(array.dtype), tensor.name))


def unused_bits(largest: int) -> int:
    """Bits by which signed integers up to ``largest`` can be shifted and stay bytes.

    Examples
    --------
    >>> unused_bits(31), unused_bits(7), unused_bits(127)
    (2, 4, 0)
    """
    return int(np.log2(127 / largest)) if largest else 0
