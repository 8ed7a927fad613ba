"""Quantized models as ONNX files: Q/DQ nodes, integer weights, and biases that fit 32 bits.

Engines want two things that the exporter does not do: a zero-point of its own for every weight
(OpenVINO takes a layer for float whose zero-point another one shares), and four-bit weights packed
two to a byte.

ONNX Runtime's biases are 32-bit integers, multiples of ``s_x s_w``, the steps of input and weight.
At eight bits that is as good as a float. A weight of fewer bits becomes a byte on a finer step, of
the same value: its integer multiplied, its step divided by a power of two. An input of fewer bits
stays coarse whatever its step, because a value that falls on the other side of an edge is a whole
step off; there the engine would not compute what the model does.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fairq_utils.data.whole_files import written_whole
from fairq_utils.deploy.engines.exported import export
from fairq_utils.deploy.engines.loaded_model import NotExact, NotRunning, first_line
from fairq_utils.deploy.quiet import silence
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.modes import usual_modes

OPSET = 21  # the first with four-bit integers
INPUT, OUTPUT = "images", "logits"
DEQUANTIZE = "DequantizeLinear"
INPUT_BITS = 8  # of the inputs at which biases are fine
FACTOR = "finer"  # name of the constant
FINER = 16  # integers of four bits times this still are bytes


def to_onnx(
    model: nn.Module,
    example: Tensor,
    weight_bits: int = 8,
    *,
    signed_products: bool = False,
    fine_biases: bool = False,
) -> onnx.ModelProto:
    """Export a float or quantized model, for batches of any size.

    Parameters
    ----------
    model : nn.Module
        See :func:`fairq_utils.deploy.engines.qdq.to_qdq`.
    example : float32 (N, 3, H, W), N of 2 or more
    weight_bits : int
        Weights that fit into four bits are packed two to a byte where this is 4 or less.
    signed_products : see :func:`fairq_utils.deploy.engines.qdq.to_qdq`
    fine_biases : bool
        Weights of fewer than eight bits use all bits of a byte, and inputs have eight.

    Raises
    ------
    NotExact
        The model's quantization has no counterpart in integer engines, or its inputs are too coarse
        for fine biases.
    NotRunning
        torch.export cannot follow the model, or ONNX has no counterpart of an operation.
    """
    if fine_biases:
        _refuse_coarse_inputs(model)
    followed = export(model, example.contiguous(), any_batch=True, signed_products=signed_products)
    try:
        with usual_modes(), torch.no_grad(), silence():
            program = torch.onnx.export(
                followed,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
        assert program is not None
        proto = program.model_proto
    except Exception as error:  # what is raised depends on what it cannot write
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise NotRunning(
            f"{type(model).__name__}: torch.onnx cannot write this model ({first_line(cause)}); "
            "compute it by other operations, or use the engine inductor"
        ) from error
    del proto.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]  # paths of source files, for one
    graph = proto.graph
    _separate_zero_points(graph)
    _pool_averages(graph)
    if weight_bits <= 4:
        _pack(graph, FINER if fine_biases else 1)
    if fine_biases:
        refine_weights(graph)
    onnx.checker.check_model(proto)
    return proto


def write_onnx(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> Path:
    """Write a file, under a temporary name first: a kill leaves no half of it."""
    with written_whole(path) as place:
        onnx.save_model(proto, place)
    return Path(path)


def refine_weights(graph: onnx.GraphProto) -> None:
    """Let weights that leave bits of their bytes unused use them, in place; values stay.

    Parameters
    ----------
    graph : of Q/DQ operators, every weight's scale and zero-point a constant of its own
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shifts: dict[str, int] = {}  # of weights; several nodes may read one
    for node in graph.node:
        weight = constants.get(node.input[0]) if node.op_type == DEQUANTIZE else None
        if weight is None or weight.data_type != TensorProto.INT8:
            continue
        if weight.name not in shifts:
            values = numpy_helper.to_array(weight).astype(np.int16)
            shifts[weight.name] = unused_bits(int(np.abs(values).max()))
            _multiply(weight, 2 ** shifts[weight.name])
        scale, zero = (constants[name] for name in node.input[1:3])  # each node has its own
        _multiply(scale, 0.5 ** shifts[weight.name])
        _multiply(zero, 2 ** shifts[weight.name])


def unused_bits(largest: int) -> int:
    """Bits by which signed integers up to ``largest`` can be shifted and stay bytes.

    Examples
    --------
    >>> unused_bits(31), unused_bits(7), unused_bits(127)
    (2, 4, 0)
    """
    return int(np.log2(127 / largest)) if largest else 0


def _multiply(tensor: TensorProto, times: float) -> None:
    """Multiply a constant in place; its type stays."""
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * times).astype(array.dtype), tensor.name))


def _refuse_coarse_inputs(model: nn.Module) -> None:
    """Refuse static inputs of fewer than eight bits."""
    for name, layer in model.named_modules():
        if isinstance(layer, Quantized) and layer.spec.activation == "static":
            bits = layer.spec.activation_bits
            if bits < INPUT_BITS:
                raise NotExact(
                    f"layer {name}: ONNX Runtime rounds biases to multiples of the steps of input "
                    f"and weight, which at {bits}-bit inputs changes predictions; take OpenVINO or "
                    f"Inductor, or {INPUT_BITS}-bit inputs, which cost no more time"
                )


def _separate_zero_points(graph: onnx.GraphProto) -> None:
    """Give every weight a scale and a zero-point of its own, in place."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type != DEQUANTIZE or len(node.input) < 3 or node.input[0] not in constants:
            continue
        for position in (1, 2):
            name = node.input[position]
            if name in taken:
                own = TensorProto()
                own.CopyFrom(constants[name])
                own.name = f"{node.output[0]}_{'scale' if position == 1 else 'zero_point'}"
                graph.initializer.append(own)
                node.input[position] = own.name
            taken.add(node.input[position])


def _pool_averages(graph: onnx.GraphProto) -> None:
    """Write means over the pixels of rounded maps as pooling, which has an integer kernel."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    rounded = {node.output[0] for node in graph.node if node.op_type == DEQUANTIZE}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    for node in graph.node:
        if node.op_type != "ReduceMean" or node.input[0] not in rounded:
            continue
        if len(node.input) != 2 or node.input[1] not in constants:
            continue
        rank, axes = ranks.get(node.input[0]), numpy_helper.to_array(constants[node.input[1]])
        kept = all(a.i for a in node.attribute if a.name == "keepdims")
        if kept and rank == 4 and sorted(axes % rank) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _pack(graph: onnx.GraphProto, finer: int) -> None:
    """Store weights in the range of four bits as INT4, widened to bytes when the file is loaded.

    They are widened to ``finer q`` on a scale of ``s / finer``, which is the same.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if finer != 1:
        graph.initializer.append(numpy_helper.from_array(np.array(finer, np.int32), FACTOR))
    widened: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        name = node.input[0] if node.op_type == DEQUANTIZE else ""
        weight = constants.get(name)
        if name not in widened and weight is not None and weight.data_type == TensorProto.INT8:
            values = numpy_helper.to_array(weight)
            if values.min() >= -8 and values.max() <= 7:
                weight.CopyFrom(_four_bits(name, values))
                nodes += _widening(name, finer)
                widened[name] = nodes[-1].output[0]
        if name in widened:
            node.input[0] = widened[name]
            for position, times in ((1, 1 / finer), (2, finer)):  # scale, zero-point
                _multiply(constants[node.input[position]], times)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _widening(name: str, finer: int) -> list[onnx.NodeProto]:
    """Nodes from a four-bit constant to bytes, times ``finer``; engines fold them at loading."""
    if finer == 1:
        return [helper.make_node("Cast", [name], [f"{name}_bytes"], to=TensorProto.INT8)]
    steps = [name, f"{name}_wide", f"{name}_finer", f"{name}_bytes"]
    return [
        helper.make_node("Cast", steps[:1], steps[1:2], to=TensorProto.INT32),
        helper.make_node("Mul", [steps[1], FACTOR], steps[2:3]),
        helper.make_node("Cast", steps[2:3], steps[3:], to=TensorProto.INT8),
    ]


def _four_bits(name: str, values: NDArray[np.int8]) -> TensorProto:
    """Two to a byte, the first in the lower half (ONNX, "4 bit integer types")."""
    flat = values.reshape(-1).astype(np.uint8) & 0xF
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    packed = flat[0::2] | (flat[1::2] << 4)
    return helper.make_tensor(name, TensorProto.INT4, values.shape, packed.tobytes(), raw=True)
