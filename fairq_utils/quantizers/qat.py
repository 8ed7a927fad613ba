"""Quantization-aware training: from the calibrated solution on, steps and weights together.

The forward pass quantizes as the finished model will; gradients pass straight through the rounding
and reach weights, biases and step sizes (LSQ, Esser et al. 2020); the grids of operations between
layers keep their calibrated steps. Batch norms have been folded before: what is trained is what is
deployed, with no running average in between (static folding, Nagel et al. 2021, section 4.2.1,
which per-channel weights make as good as any other treatment). The FP32 fine-tuning control that
belongs to it trains :func:`folded_float`, the same folded network without the grids.
"""

from __future__ import annotations

from typing import cast

from torch import nn

from fairq_utils.errors import BadInput
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.checks import check_model
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.learned import LearnedLayer, StepWeight
from fairq_utils.quantizers.methods import MSE, Result, Task, method
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.operations import quantize_operations
from fairq_utils.quantizers.post_training import (
    LayerSpecs,
    finished,
    layer_specs,
    restore_bypassed,
)
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.tracing import BYPASSED, replace


@usual_modes()
def prepare_qat(observed: Observed, spec: QuantSpec, layers: LayerSpecs | None = None) -> nn.Module:
    """Make a trainable model on the grids of calibration; ``observed`` stays as it is.

    Step sizes are trained too (LSQ, Esser et al. 2020). Train it with any loop
    (:func:`fairq_utils.training.loop.fit`), then give it to :func:`finish_qat`.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
    spec : QuantSpec
        Its ``rounding`` and ``bias_correction`` must be left at their defaults: training does both.
    layers : see :func:`fairq_utils.quantizers.quantize_observed`

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fairq_utils.quantizers import QuantSpec, finish_qat, observe, prepare_qat
    >>> model, spec = nn.Sequential(nn.Linear(3, 2)), QuantSpec.parse("W4A4", first_last_bits=None)
    >>> observed = observe(model, [torch.randn(64, 3)])
    >>> trained = prepare_qat(observed, spec)
    >>> optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    >>> trained(torch.randn(8, 3)).square().mean().backward()
    >>> optimizer.step()
    >>> quantized, report = finish_qat(trained, observed, spec)
    >>> report.layers
    {'0': 'W4A4'}
    """
    if spec.rounding != "nearest" or spec.bias_correction:
        raise BadInput(
            "prepare_qat: rounding and bias_correction are what training replaces; leave them out"
        )
    specs, _ = layer_specs(observed, spec, layers)
    work = folded_float(observed)
    for name, own in specs.items():
        layer = cast(nn.Conv2d | nn.Linear, work.get_submodule(name))
        ends = observed.range(name, own) if own.activation == "static" else None
        work = replace(work, name, LearnedLayer(layer, own, StepWeight, ends))
    work, _ = restore_bypassed(work, observed, specs, {})
    quantize_operations(work, observed.operations, spec)
    return work


@usual_modes()
def finish_qat(
    model: nn.Module, observed: Observed, spec: QuantSpec, layers: LayerSpecs | None = None
) -> tuple[nn.Module, QuantReport]:
    """Turn the trained model into integers; ``model`` stays as it is.

    Parameters
    ----------
    model : from :func:`prepare_qat`, trained
    observed, spec, layers : what it was prepared from
    """
    check_model(model, "finish_qat")
    specs, asked = layer_specs(observed, spec, layers)
    learnt = {n: m.spec for n, m in model.named_modules() if isinstance(m, LearnedLayer)}
    for name, own in learnt.items():
        if own != specs.get(name):
            raise ValueError(
                f"finish_qat: layer {name} was prepared as {own.label}, and spec or layers say "
                "otherwise; give those that prepare_qat was given"
            )
    asked |= {name: BYPASSED for name in specs if name not in learnt}
    notes = {"equalization": dict(observed.equalized)} if observed.equalized is not None else {}
    work = copied(model, "finish_qat").eval().requires_grad_(False)
    for name, module in list(work.named_modules()):
        if isinstance(module, LearnedLayer):
            work = replace(work, name, module.settled())
    return finished(work, observed, spec, asked, notes)


@usual_modes()
def folded_float(observed: Observed) -> nn.Module:
    """The float model with folded batch norms, all weights trainable: FP32 fine-tuning control."""
    return copied(observed.model, "prepare_qat").requires_grad_(True)


def _trained(task: Task) -> Result:
    observed = task.observed()
    network = prepare_qat(observed, task.spec)
    task.train(network, None)
    return finish_qat(network, observed, task.spec)


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
