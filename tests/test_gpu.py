"""The study, and what engineers call, on a GPU that is not there.

The stand-in computes with the processor's kernels and refuses what a GPU would refuse, such as
operands on two devices. It cannot be taken away again, so that it has a process of its own.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import loader, needs_kernels
from stand_in_gpu import GPU, install
from torch import nn

from fairq_utils import FairnessAwareQuantizer, apply_quantization, compute_fairness_metrics
from fairq_utils.apply import PUBLISHED
from fairq_utils.calibration import SAMPLERS
from fairq_utils.quantizers import onednn, use_integers
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.study import execution, planning, run_models, runs
from fairq_utils.study.params.data import CELLS
from fairq_utils.study.params.file import load_params
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.study import Study
from fairq_utils.training import loop
from fairq_utils.training.inference import device_of

SMALL = {
    "name": "small",
    "data": {
        "size": 32,
        "train": 64,
        "calibration": 160,
        "validation": 80,
        "test": 80,
        "joint": dict.fromkeys(CELLS, 1.0),
        "race": {"african": 1, "asian": 1, "caucasian": 1},
    },
    "analysis.replicates": 100,
}
LIMITED = [name for name, method in METHODS.items() if "max_reverted" in method.settings]
PRESERVING = [name for name, method in METHODS.items() if method.settings.get("budget")]
APART = ("ptq", CONTROL, "operations", *LIMITED)  # methods with an entry of their own, or without
EVERYTHING = {
    "training.models": {
        "squeezenet1_1": {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16},
    },
    "grid": [
        {"method": "ptq", "bits": "W4A8", "range": "mse", "sampler": list(SAMPLERS)},
        {"method": [name for name in METHODS if name not in APART], "bits": "W4A8"},
        {"method": "operations", "bits": "W8A8"},
        {"method": LIMITED, "bits": "W4A8", "max_reverted": 2},
    ],
    "quantization": {"calibration_images": 16, "tuning": {"images": 64}, "iterations": 3},
}
ATTENTION = {
    "training.models": {"vit_small": {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16}},
    "grid": [
        {"method": "ptq", "bits": "W8A8", "range": "mse", "sampler": ["random", "group_balanced"]},
        {"method": "operations", "bits": "W8A8"},
        {"method": "equalized", "bits": "W4A8"},
    ],
    "quantization": {"calibration_images": 16},
}
NEAR = 0.5  # of what quantization moves an answer by, it may differ from the processor's
STUDIES = {"everything": EVERYTHING, "attention": ATTENTION}


Call = Callable[..., Any]  # of a function of this module, in another process


@pytest.fixture(scope="module")
def here() -> Iterator[Call]:
    """A process without a GPU."""
    yield from _process(False)


@pytest.fixture(scope="module")
def there(here: Call) -> Iterator[Call]:
    """A process with the stand-in."""
    yield from _process(True)


def _process(on_gpu: bool) -> Iterator[Call]:
    settings = (torch.get_num_threads(), on_gpu)
    with ProcessPoolExecutor(1, get_context("spawn"), _begin, settings) as pool:
        yield lambda work, *args: pool.submit(work, *args).result()


def _begin(threads: int, on_gpu: bool) -> None:
    torch.set_num_threads(threads)
    predict, calibrated = loop.predict, run_models.calibrated
    loop.predict = _noting(predict)
    run_models.calibrated = _noting(calibrated)
    if on_gpu:
        install()
        Study.device = GPU  # type: ignore[assignment]


def _noting(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, and a note of how convolutions are computed in it."""

    @functools.wraps(call)
    def noted(*args: Any, **named: Any) -> Any:
        PRECISIONS.add((call.__name__, cast(Any, torch.backends.cudnn).conv.fp32_precision))
        return call(*args, **named)

    return noted


PRECISIONS: set[tuple[str, str]] = set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all ledgers."""
    return tmp_path_factory.mktemp("gpu")


def _study(folder: Path, name: str) -> Study:
    folder.mkdir(exist_ok=True)
    path = folder / "small.yaml"
    path.write_text("{}")
    place = {"cache": str(folder.parent / "cache"), "ledger": str(folder / name)}
    return Study(load_params(path, {**SMALL, **STUDIES[name], "execution": place}))


def _studied(
    folder: Path, name: str, trained: Path | None = None
) -> tuple[list[RunRecord], set[tuple[str, str]]]:
    """A study's runs, and how convolutions were computed in them.

    Parameters
    ----------
    trained : folder of another such study, whose FP32 models this one has too
    """
    study = _study(folder, name)
    if trained is not None:
        other = _study(trained, name).ledger
        for run in planning.plan(study, ["baseline"]):
            weights = study.ledger.checkpoint_path(run.weights)
            weights.parent.mkdir(parents=True)
            shutil.copy(other.checkpoint_path(run.weights), weights)
    execution.execute(study)
    store = study.ledger
    return [store.read(key) for key in sorted(store.keys())], PRECISIONS


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_comes_out_as_on_the_processor(
    name: str, here: Call, there: Call, folder: Path
) -> None:
    expected, _ = here(_studied, folder / "here", name)
    found, precisions = there(_studied, folder / "there", name, folder / "here")
    # Not in TF32, to which a GPU rounds unless it is told not to.
    assert precisions == {("predict", "none"), ("calibrated", "none")}
    assert [r.run.key for r in found] == [r.run.key for r in expected]
    methods = {record.run.method for record in found}
    if name == "everything":
        assert methods == {"fp32", *METHODS}
    fp32 = (record for record in expected if record.run.method == "fp32")
    floats = {record.run.architecture: record.scores.astype(float) for record in fp32}
    for one, other in zip(found, expected, strict=True):
        label = f"{one.run.method} {one.run.sampler}"
        assert one.size_bytes == other.size_bytes, label
        apart = np.abs(one.scores.astype(float) - other.scores.astype(float))
        if one.run.method in ("fp32", CONTROL):
            np.testing.assert_array_equal(one.scores, other.scores, label)
        # What the processor adds in integers is added in float here: a value at the edge of a grid
        # may fall to its other side.
        if one.run.bits is not None:
            moved = np.abs(one.scores.astype(float) - floats[one.run.architecture])
            assert np.median(moved) > 0, label
            assert np.median(apart) <= NEAR * np.median(moved), label
        assert one.measures.get("integer_layers", 0) == 0
        if one.run.method == "ptq" and onednn.available():
            assert other.measures["integer_layers"] > 0, label


def _rebuilt(folder: Path) -> tuple[set[str], float, set[tuple[str, str]]]:
    study = _study(folder, "attention")
    execution.execute(study)
    store = study.ledger
    records = map(store.read, store.keys())
    record = next(found for found in records if found.run.method == "operations")
    PRECISIONS.clear()
    rebuilt = run_models.rebuild(study, record.run)
    precisions = set(PRECISIONS)
    parts = (*rebuilt.model.parameters(), *rebuilt.model.buffers(), *rebuilt.fp32.parameters())
    data = study.faces
    scores = runs.margins(rebuilt.model, data, "cpu")["test"]
    apart = np.abs(scores.astype(float) - record.scores.astype(float)).max()
    return {part.device.type for part in parts}, float(apart), precisions


def test_what_is_rebuilt_to_be_shipped_comes_back_to_the_processor(
    there: Call, folder: Path
) -> None:
    devices, apart, precisions = there(_rebuilt, folder / "there")
    assert devices == {"cpu"}
    assert precisions == {("calibrated", "none")}
    assert apart < 0.01


def _answers(model: nn.Module, batches: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(images.to(device_of(model))).cpu() for images, _, _ in batches])


def _network() -> nn.Module:
    """A network that tells the labels apart, and has a layer between the first and the last."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for images, labels, _ in list(loader(2000, 1)) * 8:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _moved(groups: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values, device=GPU) for name, values in groups.items()}


def _applied(batches_there: bool) -> dict[str, tuple[str, float, float]]:
    """Where each method leaves the model, how far answers are from the processor's and from FP32's.

    A loader may have its groups on the device too.
    """
    model, held_out = _network(), list(loader(256, 3))
    pool = list(loader(512, 2))
    batches = [(x.to(GPU), y.to(GPU), _moved(g)) for x, y, g in pool] if batches_there else pool
    found = {}
    for method in (*METHODS, PUBLISHED):
        asked: dict[str, Any] = {"sensitive_attrs": ["gender"], "calibration_images": 128}
        if method in ("adaround", "block"):
            asked["iterations"] = 20
        if method in PRESERVING:
            asked["budget"] = 0.5
        here = apply_quantization(model, method, 4, pool, **asked)
        there = apply_quantization(_network().to(GPU), method, 4, batches, **asked)
        apart = (_answers(here, held_out) - _answers(there, held_out)).abs().max()
        moved = (_answers(model, held_out) - _answers(there, held_out)).abs().max()
        found[method] = device_of(there).type, float(apart), float(moved)
        metrics = compute_fairness_metrics(there, held_out, "gender")
        assert metrics["accuracy"] > 0.5
    return found


@pytest.mark.parametrize("batches_there", [False, True])
def test_every_method_works_where_the_model_is(batches_there: bool, there: Call) -> None:
    found = there(_applied, batches_there)
    assert found.keys() == {*METHODS, PUBLISHED}
    for method, (device, apart, moved) in found.items():
        assert device == "gpu", method
        assert moved > 0, method
        assert apart <= NEAR * moved, method


def _certified() -> tuple[str, str]:
    model = _network().to(GPU)
    quantizer = FairnessAwareQuantizer(
        bit_width=8, max_dp_gap=0.05, sensitive_attributes=["gender"]
    )
    found = quantizer.quantize(model, loader(20_000, 4), train_data=loader(512, 5))
    return device_of(found).type, str(quantizer.certificate)


def test_a_certificate_of_a_model_on_a_gpu(there: Call) -> None:
    device, certificate = there(_certified)
    assert device == "gpu"
    assert re.search(r"bound", certificate)


def _moved_after() -> tuple[int, float]:
    model, batches = _network(), list(loader(256, 3))
    quantized = apply_quantization(model, "ptq", 8, batches)
    on_integers = use_integers(quantized)
    before = _answers(quantized, batches)
    after = _answers(quantized.to(GPU), batches)
    assert use_integers(quantized) == 0
    return on_integers, float((before - after).abs().max())


@needs_kernels
def test_a_model_on_integers_can_be_moved_to_a_gpu(there: Call) -> None:
    on_integers, apart = there(_moved_after)
    assert on_integers > 0
    assert apart < 0.05


REFUSED: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "sum": lambda here, there: here + there,
    "number": lambda here, there: here + there.sum(),
    "joined": lambda here, there: torch.cat([here, there]),
    "layer": lambda here, there: nn.Linear(3, 1).to(GPU)(here),
    "index": lambda here, there: here[there.long()],
    "written": lambda here, there: here.add_(there),
    "generator": lambda here, there: torch.rand(3, device=GPU, generator=torch.Generator()),
    "array": lambda here, there: there.numpy(),
}


def _refused(name: str) -> str:
    try:
        REFUSED[name](torch.ones(3), torch.ones(3, device=GPU))
    except (RuntimeError, TypeError) as error:
        return str(error)
    return "nothing was refused"


def test_the_stand_in_refuses_what_a_gpu_refuses(there: Call) -> None:
    said = {name: there(_refused, name) for name in REFUSED}
    kinds = {"generator": "device type for generator", "array": r"numpy\(\)"}
    for name, sentence in said.items():
        assert re.search(kinds.get(name, "on the same device"), sentence), (name, sentence)


def _computed() -> list[Any]:
    x = torch.ones(3, device=GPU, requires_grad=True)
    (x * torch.tensor(2.0)).square().sum().backward()
    assert x.grad is not None and x.grad.device == x.device == torch.device(GPU)
    y = torch.zeros(4, device=GPU)
    y[1:][torch.tensor([0, 2])] = 5.0
    return [x.grad.tolist(), y.cpu().tolist(), os.getpid()]


def test_the_stand_in_computes_what_a_gpu_computes(there: Call) -> None:
    gradient, written, process = there(_computed)
    assert (gradient, written) == ([8, 8, 8], [0, 5, 0, 5])
    assert process != os.getpid()
