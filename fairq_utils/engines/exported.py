"""The graph of a quantized model, as the exporters of engines take it.

Where the output of a concatenation or of a max pooling is rounded, its inputs are rounded too:
moving a rounding across either changes nothing, and engines concatenate and pool bytes only where
they find them on both sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from fairq_utils.engines.qdq import to_qdq

_ops = torch.ops.quantized_decomposed
QUANTIZE = _ops.quantize_per_tensor.default
DEQUANTIZE = _ops.dequantize_per_tensor.default
DROPOUT = torch.ops.aten.dropout.default
CONCATENATE = torch.ops.aten.cat.default
COMMUTING = (CONCATENATE, torch.ops.aten.max_pool2d.default)
LARGEST_BATCH = 1 << 16


def export(
    model: nn.Module, example: Tensor, *, any_batch: bool, signed_products: bool
) -> ExportedProgram:
    """Trace a float or quantized model.

    Parameters
    ----------
    model : nn.Module
    example : float32 (N, 3, H, W); N of 2 or more for any batch
    any_batch : bool
        Whether the graph answers about batches of all sizes.
    signed_products : see :func:`fairq_utils.engines.qdq.to_qdq`

    Raises
    ------
    NotExact
        The model's quantization has no counterpart in integer engines.
    """
    shapes: Any = None
    if any_batch:
        shapes = ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},)
    prepared = to_qdq(model, signed_products=signed_products)
    with torch.no_grad():
        program = torch.export.export(prepared, (example,), dynamic_shapes=shapes)
        module = program.module(check_guards=False)
        for node in module.graph.find_nodes(op="call_function", target=DROPOUT):
            node.replace_all_uses_with(node.args[0])  # the model is in evaluation mode
            module.graph.erase_node(node)
        if not _round_before(module.graph):
            return program
        module.recompile()
        return torch.export.export(module, (example,), dynamic_shapes=shapes)


def _round_before(graph: Graph) -> int:
    """Round, in place, the inputs of commuting operations as their output is; how many."""
    changed = 0
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
                changed += 1
            new.append(value)
        node.args = (new if node.target is CONCATENATE else new[0], *node.args[1:])
    return changed


def _behind(quantize: Node) -> list[Node]:
    """From integers back to floats: the clamp, where there is one, and the dequantization."""
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
