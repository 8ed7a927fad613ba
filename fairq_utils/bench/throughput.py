"""Throughput: runs of a study per minute, beside a plain loop over the same runs.

The plain loop is what a script does without this project: for every run it takes the FP32 model
anew, puts PyTorch's own fake-quantization modules at the input and the weight of every layer, lets
their observers see the calibration images, and predicts for the test images in eager mode. Both
start from trained checkpoints. Methods that train or learn are left out: their time is not that of
an evaluation.
"""

from __future__ import annotations

import copy
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils import calibration
from fairq_utils.bench.outcome import Outcome, say, words
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.bench.subjects import pinned_threads, with_trained
from fairq_utils.data.faces import FaceData
from fairq_utils.deploy.quiet import silence
from fairq_utils.quantizers.calibrate import observe
from fairq_utils.quantizers.layers import quantizable, use_integers
from fairq_utils.quantizers.post_training import quantize_observed
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.study.execution import execute
from fairq_utils.study.ledger import Ledger
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import PHASES, baseline_of, plan
from fairq_utils.study.run_models import trained
from fairq_utils.study.run_record import Run
from fairq_utils.study.runs import EVALUATED
from fairq_utils.study.study import Study
from fairq_utils.training import architectures
from fairq_utils.training import loop as training

METHOD = "ptq"


@benchmark("study", title="runs evaluated per minute, beside a plain loop", needs="study")
def bench_study(subject: Subject) -> Outcome:
    """Evaluate the static runs of a study by the study, and by a plain loop.

    They are those of the grid's entries of ``ptq``. The plain
    loop is timed on one calibration sampler; the others cost it the same.

    Returns
    -------
    Outcome
        ``runs_per_minute``, ``plain_runs_per_minute``, ``speedup_vs_eager``, ``runs``; and
        ``study``: the same by architecture, with seconds for the test images in FP32 and W8A8.

    Raises
    ------
    Fault
        A model is not trained yet.
    """
    study = subject.study
    threads = pinned_threads(study.params)
    data = study.faces
    rows = []
    for architecture in study.params.training.models:
        alone = Study(static_runs(study.params, architecture))
        wanted = plan(alone, PHASES[1:])
        model = trained(study, wanted[0])
        ours = _by_the_study(alone, study.ledger, wanted)
        plain = [run for run in wanted if run.sampler == "random"]
        loop = sum(_plainly(study, run, data) for run in plain) / len(plain)
        rows.append(
            {
                "architecture": architecture,
                "runs": len(wanted),
                "seconds_per_run": ours / len(wanted),
                "plain_seconds_per_run": loop,
                **_evaluations(model, data),
            }
        )
        say(f"study: {rows[-1]}")
    table = pd.DataFrame(rows)
    figures = _figures(table, threads)
    shown = table.assign(
        faster=table.plain_seconds_per_run / table.seconds_per_run,
        w8a8_over_fp32=table.w8a8_seconds / table.fp32_seconds,
    )
    return Outcome(figures, words(shown.round(2), figures), {"study": table})


def _figures(table: pd.DataFrame, threads: int) -> dict[str, Any]:
    count = int(table.runs.sum())
    ours = float((table.runs * table.seconds_per_run).sum())
    plain = float((table.runs * table.plain_seconds_per_run).sum())
    return {
        "runs": count,
        "runs_per_minute": round(60 * count / ours, 2),
        "plain_runs_per_minute": round(60 * count / plain, 2),
        "speedup_vs_eager": round(plain / ours, 2),
        "threads": threads,
    }


def _by_the_study(alone: Study, store: Ledger, wanted: Sequence[Run]) -> float:
    """Seconds in which a study evaluates its runs, in a fresh ledger with the trained models."""
    with tempfile.TemporaryDirectory() as folder:
        where = alone.params.execution.model_copy(update={"ledger": folder})
        fresh = Study(alone.params.model_copy(update={"execution": where}))
        with_trained(store, fresh.ledger, [baseline_of(run) for run in wanted])
        began = time.perf_counter()
        execute(fresh, PHASES[1:], stream=io.StringIO())
        return time.perf_counter() - began


def static_runs(params: Params, architecture: str) -> Params:
    """Same study of one architecture, with nothing but the static runs of every sampler."""
    given = params.model_dump()
    given["training"]["models"] = {architecture: given["training"]["models"][architecture]}
    given["grid"] = [
        {**entry, "models": ()}
        for entry in given["grid"]
        if entry["method"] == (METHOD,) and (not entry["models"] or architecture in entry["models"])
    ]
    given["dials"] = {"models": []}
    return type(params).model_validate(given)


def _evaluations(model: nn.Module, data: FaceData) -> dict[str, float]:
    """Seconds for the test images, in FP32 and in integers."""
    images = data.subset("test").images
    batch = architectures.normalize(data.subset("calibration").images[:64])
    quantized, _ = quantize_observed(observe(model, [batch]), QuantSpec.parse("W8A8"))
    use_integers(quantized)
    seconds = {}
    for name, network in (("fp32_seconds", model), ("w8a8_seconds", quantized)):
        training.predict(network, images[:EVALUATED], batch_size=EVALUATED)
        began = time.perf_counter()
        training.predict(network, images, batch_size=EVALUATED)
        seconds[name] = time.perf_counter() - began
    return seconds


def _plainly(study: Study, run: Run, data: FaceData) -> float:
    """Seconds that a plain loop needs for one run, from the checkpoint to the predictions."""
    began = time.perf_counter()
    pool = data.subset("calibration")
    rows = calibration.draw(
        run.sampler or "random",
        pool.groups,
        pool.target,
        int(run.calibration_images or 0),
        seed=int(run.calibration_seed or 0),
    )
    images = pool.images[torch.from_numpy(rows)]
    with silence():
        model = fake_quantized(
            trained(study, run),
            QuantSpec.parse(str(run.bits)),
            run.ranges,
        )
        with torch.no_grad():
            for part in images.split(64):
                model(architectures.normalize(part))
        switch(model, observing=False)
        training.predict(model, data.subset("test").images, batch_size=EVALUATED)
    return time.perf_counter() - began


def fake_quantized(model: nn.Module, spec: QuantSpec, ranges: str | None) -> nn.Module:
    """Copy of a model with torchao's observing fake-quantization at every layer's operands.

    Parameters
    ----------
    model : float, in evaluation mode
    spec : QuantSpec
        Bits; first and last layer stand at eight.
    ranges : ``minmax``; for all others torchao's histogram with its search for the least MSE
    """
    model = copy.deepcopy(model)
    layers = [m for m in model.modules() if quantizable(m)]
    for layer in layers:
        own = spec.at_edge() if layer in (layers[0], layers[-1]) else spec
        layer.register_module("of_input", _inputs(own.activation_bits, ranges))
        layer.register_module("of_weight", _weights(own.weight_bits))
        layer.forward = _Forward(layer)
    switch(model, observing=True)
    return model


class _Forward:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = [layer]

    def __call__(self, input: Tensor) -> Tensor:
        layer: Any = self.layer[0]
        x, weight = layer.of_input(input), layer.of_weight(layer.weight)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        out: Tensor = layer._conv_forward(x, weight, layer.bias)
        return out


def switch(model: nn.Module, *, observing: bool) -> None:
    """Let the fake-quantization modules observe, or quantize."""
    for module in _fake(model):
        module.observer_enabled[0] = int(observing)
        module.fake_quant_enabled[0] = int(not observing)


def _fake(model: nn.Module) -> Iterator[Any]:
    from torchao.quantization.pt2e import FakeQuantize

    return (m for m in model.modules() if isinstance(m, FakeQuantize))


def _inputs(bits: int, ranges: str | None) -> nn.Module:
    from torchao.quantization.pt2e import FakeQuantize, HistogramObserver, MinMaxObserver

    observer = MinMaxObserver if ranges == "minmax" else HistogramObserver
    module: nn.Module = FakeQuantize(
        observer=observer,
        quant_min=0,
        quant_max=2**bits - 1,
        dtype=torch.uint8,
        qscheme=torch.per_tensor_affine,
    )
    return module


def _weights(bits: int) -> nn.Module:
    from torchao.quantization.pt2e import FakeQuantize, PerChannelMinMaxObserver

    module: nn.Module = FakeQuantize(
        observer=PerChannelMinMaxObserver,
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        dtype=torch.int8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    return module
