"""Graph of a quantized model, as the exporters of engines take it.

Where the output of a concatenation or of a max pooling is rounded, its inputs are rounded too:
moving a rounding across either changes nothing, and engines concatenate and pool bytes only where
they find them on both sides. A clip such as ReLU6's whose ends lie outside the grid behind it is
left out: rounding clips there as well, and engines compute a convolution in float that is followed
by a clip they cannot fuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from fairq_utils.deploy.engines.loaded_model import NotRunning, first_line
from fairq_utils.deploy.engines.qdq import to_qdq
from fairq_utils.quantizers.modes import usual_modes

_ops = torch.ops.quantized_decomposed
QUANTIZE = _ops.quantize_per_tensor.default
DEQUANTIZE = _ops.dequantize_per_tensor.default
DROPOUT = torch.ops.aten.dropout.default
CONCATENATE = torch.ops.aten.cat.default
CLAMP = torch.ops.aten.clamp.default
# Operators that clip, and the ends of those that have fixed ones.
CLIPS: dict[Any, tuple[float, float] | None] = {
    torch.ops.aten.hardtanh.default: None,
    torch.ops.aten.hardtanh_.default: None,
    torch.ops.aten.relu6.default: (0.0, 6.0),
}
COMMUTING = (CONCATENATE, torch.ops.aten.max_pool2d.default)
LARGEST_BATCH = 1 << 16


@usual_modes()
def export(
    model: nn.Module, example: Tensor, *, any_batch: bool, signed_products: bool
) -> ExportedProgram:
    """Trace a float or quantized model.

    Parameters
    ----------
    model : nn.Module
    example : float32 (N, 3, H, W); N of 2 or more for any batch
    any_batch : bool
        Whether the graph takes batches of all sizes.
    signed_products : see :func:`fairq_utils.deploy.engines.qdq.to_qdq`

    Raises
    ------
    NotExact
        The model's quantization has no counterpart in integer engines.
    NotRunning
        torch.export cannot follow the model.
    """
    shapes: Any = None
    if any_batch:
        shapes = ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},)
    prepared = to_qdq(model, signed_products=signed_products)
    try:
        with torch.no_grad():
            program = torch.export.export(prepared, (example,), dynamic_shapes=shapes)
            module = program.module(check_guards=False)
            _simplify(module.graph)
            module.recompile()
            return torch.export.export(module, (example,), dynamic_shapes=shapes)
    except Exception as error:  # what is raised depends on what it cannot follow
        raise NotRunning(
            f"{type(model).__name__}: torch.export cannot follow this model on images "
            f"{tuple(example.shape)} ({first_line(error)}); what it computes may not depend on "
            "values"
        ) from error


def _simplify(graph: Graph) -> None:
    """Take out, in place, what changes no value."""
    node: Any
    for node in graph.find_nodes(op="call_function", target=DROPOUT):
        node.replace_all_uses_with(node.args[0])  # the model is in evaluation mode
        graph.erase_node(node)
    _round_once(graph)
    _round_before(graph)
    _leave_out_clips(graph)


def _round_once(graph: Graph) -> None:
    """Take out, in place, roundings of what is on the same grid already."""
    quantize: Any
    for quantize in list(graph.find_nodes(op="call_function", target=QUANTIZE)):
        source = quantize.args[0]
        if source.target is DEQUANTIZE and source.args[1:] == quantize.args[1:]:
            quantize.replace_all_uses_with(source.args[0])
            graph.erase_node(quantize)


def _leave_out_clips(graph: Graph) -> None:
    """Take out, in place, clips that every rounding behind them implies."""
    node: Any
    for node in list(graph.nodes):
        if node.target not in CLIPS or not node.users:
            continue
        ends = CLIPS[node.target] or tuple(node.args[1:3])
        if len(ends) == 2 and all(_implies(user, *ends) for user in node.users):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _implies(quantize: Any, low: float, high: float) -> bool:
    """True where a rounding does to a value what it does to the value clipped to [low, high]."""
    if quantize.target is not QUANTIZE:
        return False
    _, scale, zero_point, lowest, top, _ = quantize.args
    if quantize.users and all(user.target is CLAMP for user in quantize.users):
        top = max(user.args[2] for user in quantize.users)
    ends = torch.tensor([low, high]) * (1.0 / torch.tensor(scale))
    first, last = (ends.round() + zero_point).tolist()
    return bool(first <= lowest and last >= top)


def _round_before(graph: Graph) -> None:
    """Round, in place, the inputs of commuting operations as their output is."""
    node: Any
    for node in reversed(list(graph.nodes)):
        if node.target not in COMMUTING or len(node.users) != 1:
            continue
        quantize = next(iter(node.users))
        if quantize.target is not QUANTIZE:
            continue
        chain = [quantize, *_behind(quantize)]
        if chain[-1].target is not DEQUANTIZE:
            continue
        inputs = node.args[0] if node.target is CONCATENATE else [node.args[0]]
        new = []
        for value in inputs:
            if value.target is not DEQUANTIZE:
                with graph.inserting_before(node):
                    for step in chain:
                        value = graph.call_function(
                            step.target, (value, *step.args[1:]), dict(step.kwargs)
                        )
            new.append(value)
        node.args = (new if node.target is CONCATENATE else new[0], *node.args[1:])


def _behind(quantize: Node) -> list[Node]:
    """Steps from integers back to floats: the clamp, if there is one, and the dequantization."""
    steps = []
    node = quantize
    while node.target is not DEQUANTIZE:
        if not node.users:
            break
        node = next(iter(node.users))
        steps.append(node)
        if len(steps) > 2:
            break
    return steps
