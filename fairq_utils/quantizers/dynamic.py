"""Dynamic post-training quantization: weights beforehand, inputs by their own range."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from fairq_utils.full_precision import full_precision
from fairq_utils.quantizers.checks import check_model
from fairq_utils.quantizers.folding import fold_batch_norms
from fairq_utils.quantizers.layers import quantizable, quantized, refuse_quantized
from fairq_utils.quantizers.operations import float_operations
from fairq_utils.quantizers.places import leave_fast_paths, order_of_execution, replace
from fairq_utils.quantizers.ptq import edge_spec
from fairq_utils.quantizers.report import QuantReport, float_bytes, report
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.survey import survey


@full_precision()
def quantize_dynamic(
    model: nn.Module, spec: QuantSpec, example: Tensor | None = None
) -> tuple[nn.Module, QuantReport]:
    """Quantize convolutions and linear layers; every sample's input sets its own range.

    No calibration set is needed. Ranges are per sample, so an answer does not depend on which other
    samples share its batch.

    Parameters
    ----------
    model : any module of one tensor argument
        It is copied; the one passed in stays as it is.
    spec : QuantSpec
        With ``activation="dynamic"``.
    example : Tensor (B, ...), optional
        A batch to find the batch norms that can be folded, the order of the layers, and what is
        computed outside them. Its values set no range. Without it nothing is folded, and layers are
        taken in order of definition.

    Returns
    -------
    module, report
    """
    if spec.activation != "dynamic":
        raise ValueError(
            f"quantize_dynamic: spec.activation is {spec.activation}; use quantize_static"
        )
    check_model(model, "quantize_dynamic")
    refuse_quantized(model, "quantize_dynamic")
    before = float_bytes(model)
    work = copy.deepcopy(model).eval()
    leave_fast_paths(work)
    folded: list[str] = []
    left = {"operations between layers": "are in float; give an example to have them named"}
    layers = {n: m for n, m in work.named_modules() if quantizable(m)}
    if example is not None:
        folded, left = fold_batch_norms(work, example)
        looked = survey(work, example)
        left |= looked.direct | looked.read | float_operations(work, looked.operations)
        layers = {n: m for n, m in layers.items() if n not in looked.read}
    order = list(layers) if example is None else order_of_execution(work, layers, example)
    for name in layers:
        if name not in order:
            left[name] = "was not called on the example; it stays in float"
    for name in order:
        work = replace(work, name, quantized(layers[name], edge_spec(spec, name, order)))
    return work.eval(), report(work, spec, folded, left, before, 0, {})
