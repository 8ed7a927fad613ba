"""Quantization-aware training: from the calibrated solution on, steps and weights together.

The forward pass quantizes as the finished model will; gradients pass straight through the rounding
and reach weights, biases and step sizes (LSQ, Esser et al. 2020); the grids of operations between
layers keep their calibrated steps. Batch norms have been folded
before: what is trained is what is deployed, with no running average in between (static folding,
Nagel et al. 2021, section 4.2.1, which per-channel weights make as good as any other treatment).
The control that belongs to it, :func:`folded_float`, is the same folded network without the grids.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn

from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.checks import check_model, refuse_not_finite
from fairq_utils.quantizers.grids import input_grid
from fairq_utils.quantizers.learned import LearnedLayer, StepInput, StepWeight
from fairq_utils.quantizers.methods import MSE, Result, Task, method
from fairq_utils.quantizers.operations import float_operations, quantize_operations
from fairq_utils.quantizers.post_training import LayerSpecs, layer_specs, restore_bypassed
from fairq_utils.quantizers.report import QuantReport, report
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.tracing import BYPASSED, replace


def prepare_qat(seen: Observed, spec: QuantSpec, layers: LayerSpecs | None = None) -> nn.Module:
    """A trainable model on the grids of calibration; ``seen`` stays as it is.

    Train it with any loop (:func:`fairq_utils.training.loop.fit`), then give it to
    :func:`finish_qat`.

    Parameters
    ----------
    seen : from :func:`fairq_utils.quantizers.observe`
    spec : QuantSpec
        Its ``rounding`` and ``bias_correction`` must be left at their defaults: training does both.
    layers : see :func:`fairq_utils.quantizers.quantize_observed`
    """
    if spec.rounding != "nearest" or spec.bias_correction:
        raise ValueError(
            "prepare_qat: rounding and bias_correction are what training replaces; leave them out"
        )
    specs, _ = layer_specs(seen, spec, layers)
    work = folded_float(seen)
    for name, own in specs.items():
        layer = cast(nn.Conv2d | nn.Linear, work.get_submodule(name))
        inputs = None
        if own.activation == "static":
            device = layer.weight.device
            low, high = (torch.tensor(x, device=device) for x in seen.range(name, own))
            bits = own.activation_bits
            inputs = StepInput(*input_grid(low, high, bits, own.activation_scheme), bits)
        learned = LearnedLayer(layer, own, StepWeight(layer.weight, own), inputs)
        work = replace(work, name, learned)
    work, _ = restore_bypassed(work, seen, specs, {})
    quantize_operations(work, seen.operations, spec)
    return work


def folded_float(seen: Observed) -> nn.Module:
    """The observed float model with its batch norms folded, all weights trainable: the control."""
    return copy.deepcopy(seen.model).requires_grad_(True)


def finish_qat(
    model: nn.Module, seen: Observed, spec: QuantSpec, layers: LayerSpecs | None = None
) -> tuple[nn.Module, QuantReport]:
    """The trained model in integers, and its report; ``model`` stays as it is.

    Parameters
    ----------
    model : from :func:`prepare_qat`, trained
    seen, spec, layers : what it was prepared from
    """
    check_model(model, "finish_qat")
    specs, asked = layer_specs(seen, spec, layers)
    learnt = {n: m.spec for n, m in model.named_modules() if isinstance(m, LearnedLayer)}
    for name, own in learnt.items():
        if own != specs.get(name):
            raise ValueError(
                f"finish_qat: layer {name} was prepared as {own.label}, and spec or layers say "
                "otherwise; give those that prepare_qat was given"
            )
    asked |= {name: BYPASSED for name in specs if name not in learnt}
    notes = {"equalization": dict(seen.equalized)} if seen.equalized is not None else {}
    work = copy.deepcopy(model).eval().requires_grad_(False)
    for name, module in list(work.named_modules()):
        if isinstance(module, LearnedLayer):
            work = replace(work, name, module.settled())
    if spec.activation != "float":
        work.register_forward_pre_hook(refuse_not_finite, with_kwargs=True)
    left = {**seen.left, **asked, **float_operations(work, seen.operations.found)}
    result = report(work.eval(), spec, seen.folded, left, seen.float_bytes, seen.images, notes)
    return work, result


def _trained(task: Task) -> Result:
    seen = task.observed()
    network = prepare_qat(seen, task.spec)
    task.train(network, None)
    return finish_qat(network, seen, task.spec)


def _trained_in_float(task: Task) -> Result:
    network = folded_float(task.observed())
    task.train(network, None)
    return network, None


method(
    "qat",
    label="QAT (LSQ)",
    family="fine-tuning",
    fit=_trained,
    options=MSE,
    needs="images labels",
    trains=True,
    source="Esser et al. 2020",
)
method(
    "fp32_finetuning",
    label="FP32 fine-tuning",
    family="fine-tuning",
    fit=_trained_in_float,
    needs="labels",
    trains=True,
)
