"""One training on several devices: what one device would have made of the same batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.data import FaceData
from fairq_utils.errors import BadInput, Fault
from fairq_utils.study import devices as study_devices
from fairq_utils.study import planning, runs, storage
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.training import architectures, loop, objectives
from fairq_utils.training import distributed as ranks
from fairq_utils.training.distributed import ALONE, Ranks, together
from fairq_utils.training.resume import Checkpoints

RECIPE = loop.Recipe(epochs=2, learning_rate=1e-3, batch_size=16)


class Stopped(Exception):
    """A training is stopped here, in every process."""


def squares(count: int = 88) -> FaceData:
    """Pictures whose target is whether the left half is brighter than the right."""
    rng = np.random.default_rng(0)
    images = rng.integers(90, 130, (count, 3, 8, 8)).astype(np.uint8)
    target = rng.integers(0, 2, count).astype(np.int8)
    images[target == 1, :, 2:6] += 60
    groups = pd.DataFrame({"gender": pd.Categorical(["female", "male"] * (count // 2))})
    factors = pd.DataFrame(
        {"yaw": rng.standard_normal(count), "height": target + rng.random(count)}
    )
    return FaceData(torch.from_numpy(images), target, groups, np.repeat("train", count), factors)


def network(*, dropout: float = 0.0) -> nn.Module:
    """Both kinds of batch norm; no bias before them, whose gradient would be noise."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        BatchNormAct2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8, 2),
    )


def trained(
    here: Ranks,
    *,
    dropout: float = 0.0,
    checkpoints: Checkpoints | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    stop_at: int = 0,
) -> dict[str, Any]:
    """Weights, losses, and a gradient of each step."""
    model, data = network(dropout=dropout), squares()
    objective = objectives.WithFactors(data, model, 0.5)
    torch.manual_seed(7 + here.rank)
    gradients: list[Tensor] = []
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Stopped

    hooks = [model.register_forward_pre_hook(count)]
    kept = model[0].weight.register_post_accumulate_grad_hook(
        lambda weight: gradients.append(weight.grad.clone())
    )
    try:
        history = loop.fit(
            model,
            data,
            RECIPE,
            objective,
            seed=3,
            ranks=here,
            checkpoints=checkpoints,
            progress=progress,
        )
    finally:
        for hook in (*hooks, kept):
            hook.remove()
    objective.close()
    return {"state": model.state_dict(), "loss": history.loss, "gradients": gradients}


def exact(here: Ranks) -> list[Tensor]:
    """Gradients of MobileNetV2 in float64: what is left of a difference is none of rounding."""
    torch.manual_seed(2)
    images, target = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.arange(6) % 2
    model = architectures.build("mobilenet_v2", image_size=32).double().train()
    module = here.wrapped(model)
    with here.whole_batch():
        F.cross_entropy(module(here.part(images)), here.part(target)).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def several(here: Ranks, folder: str, said: list[int] | None = None) -> dict[str, Any]:
    """All that two processes are asked for, in one go: starting them is what takes long."""
    progress = None if said is None else lambda step, steps, loss: said.append(step)
    answers = {"plain": trained(here, progress=progress)}
    # A part of a batch through one batch norm, and what flows back.
    torch.manual_seed(1)
    x, weigh = torch.randn(6, 3, 4, 4) + 5, torch.randn(6, 3, 4, 4)
    norm = nn.BatchNorm2d(3, momentum=0.3)
    mine = here.part(x).requires_grad_()
    with here.whole_batch():
        (norm(mine) * here.part(weigh)).sum().backward()
    answers["norm"] = {
        "input": here.gathered(mine.grad).flatten(0, 1),
        "weight": here.average(norm.weight.grad) * here.count,
        "mean": norm.running_mean,
        "var": norm.running_var,
    }
    answers["mobilenet"] = [here.average(g) for g in exact(here)]
    # Stopped at the 8th of ten steps, after the checkpoint before the 6th; then again, to the end.
    kept = Checkpoints(Path(folder, "training.unfinished"), 0.0, "run")
    answers["whole"] = trained(here, dropout=0.4)
    with pytest.raises(Stopped):
        trained(here, dropout=0.4, checkpoints=kept, stop_at=8)
    answers["there"] = kept.path.exists()
    answers["resumed"] = trained(here, dropout=0.4, checkpoints=kept)
    masks = here.gathered(F.dropout(torch.ones(32)))
    answers["same masks"] = bool((masks[0] == masks[-1]).all())
    return answers


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    said: list[int] = []
    answers = together(
        several,
        (str(tmp_path_factory.mktemp("ranks")),),
        count=2,
        device="cpu",
        first={"said": said},
    )
    return {**answers, "said": said}


def test_two_processes_train_what_one_does(two: dict[str, Any]) -> None:
    one, both = trained(ALONE), two["plain"]
    np.testing.assert_allclose(both["loss"], one["loss"], rtol=1e-5)
    assert one["loss"][1] < one["loss"][0]
    assert one["state"].keys() == both["state"].keys()
    for name, value in one["state"].items():
        torch.testing.assert_close(both["state"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert two["said"] == [10]  # the last of the steps, said by the first process alone


def test_gradients_are_those_of_the_whole_batch(two: dict[str, Any]) -> None:
    one, both = exact(ALONE), two["mobilenet"]
    assert len(one) == len(both) > 150
    for mine, theirs in zip(one, both, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-6, atol=1e-9)


def test_a_batch_norm_sees_the_whole_batch(two: dict[str, Any]) -> None:
    torch.manual_seed(1)
    x, weigh = (torch.randn(6, 3, 4, 4) + 5).requires_grad_(), torch.randn(6, 3, 4, 4)
    norm = nn.BatchNorm2d(3, momentum=0.3)
    (norm(x) * weigh).sum().backward()
    found = two["norm"]
    torch.testing.assert_close(found["input"], x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["weight"], norm.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["mean"], norm.running_mean)
    torch.testing.assert_close(found["var"], norm.running_var)


def test_two_processes_go_on_where_they_were_stopped(two: dict[str, Any]) -> None:
    assert two["there"]
    assert two["resumed"]["loss"] == two["whole"]["loss"]
    for name, value in two["whole"]["state"].items():
        assert torch.equal(two["resumed"]["state"][name], value), name
    # It was not trained from its beginning: of ten steps, those after the fifth.
    assert len(two["whole"]["gradients"]) == 10
    assert len(two["resumed"]["gradients"]) < 10
    assert not two["same masks"]


def failing(here: Ranks) -> Tensor:
    """The second process has a reason of its own; the first one waits for it."""
    if here.rank:
        raise ValueError("there is no such picture")
    return here.average(torch.zeros(1))


def test_another_process_that_fails_is_named_with_its_reason() -> None:
    threads = torch.get_num_threads()
    with pytest.raises(Fault, match=r"process 1 of a training failed: .*no such picture"):
        together(failing, count=2, device="cpu")
    assert not torch.distributed.is_initialized()
    assert torch.get_num_threads() == threads


def test_one_process_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "torch_multiprocessing", None)
    assert together(lambda here: here.count, count=1, device="cpu") == 1


def test_a_daemon_is_told_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = SimpleNamespace(daemon=True)
    monkeypatch.setattr(ranks.multiprocessing, "current_process", lambda: daemon)
    with pytest.raises(Fault, match=r"set devices: 1, or .*distributed\.worker\.daemon"):
        together(failing, count=2, device="cpu")


def test_every_process_of_every_seed_draws_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, drawn = study(tmp_path), dict[tuple[int, int], Tensor]()
    base = planning.plan(params, ("baseline",))[0]

    def built(*_: Any) -> Tensor:
        drawn[seed, rank] = torch.rand(8)
        raise InterruptedError

    monkeypatch.setattr(runs, "_built", built)
    for seed, rank in product(range(4), range(4)):
        run = replace(base, training={**base.training, "seed": seed})
        with pytest.raises(InterruptedError):
            runs._trained(Ranks(rank, 4), params, run)
    assert len({tuple(x.tolist()) for x in drawn.values()}) == 16
    for seed in range(4):  # the first process draws what one device does
        torch.manual_seed(seed)
        assert torch.equal(drawn[seed, 0], torch.rand(8))
    assert Ranks(1, 2).stream(0) == Ranks(1, 4).stream(0)


def study(folder: Path, **sections: Any) -> Params:
    """A study of one model, read from a file."""
    content = {
        "name": "devices",
        "training": {"models": {"mobilenet_v2": {"epochs": 1, "learning_rate": 0.001}}},
        "grid": [{"method": "ptq", "bits": "W8A8"}],
        "execution": {"device": "cpu"},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    path = folder / "devices.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_params(path)


def test_devices_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study_devices.devices(study(tmp_path)) == 1
    assert study_devices.devices(study(tmp_path, execution={"devices": "auto"})) == 1
    assert study_devices.devices(study(tmp_path, execution={"devices": 2})) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    gpus = {"device": "cuda", "devices": "auto"}
    assert study_devices.devices(study(tmp_path, execution=gpus)) == 4
    with pytest.raises(Fault, match=r"execution\.devices: 5 .* finds 4 GPUs; use auto"):
        study_devices.devices(study(tmp_path, execution={**gpus, "devices": 5}))
    daemon = SimpleNamespace(daemon=True)
    monkeypatch.setattr(study_devices.multiprocessing, "current_process", lambda: daemon)
    assert study_devices.devices(study(tmp_path, execution=gpus)) == 1


@pytest.mark.parametrize(
    ("recipe", "execution", "message"),
    [
        ({"precision": "fp16"}, {}, r"mobilenet_v2\.precision: fp16 needs a GPU"),
        ({"batch_size": 64}, {"devices": 3}, r"batch_size: 64 images do not divide among 3"),
    ],
)
def test_what_devices_cannot_train_is_refused_before_anything_is_rendered(
    recipe: dict[str, Any], execution: dict[str, Any], message: str, tmp_path: Path
) -> None:
    models = {"mobilenet_v2": {"epochs": 1, "learning_rate": 0.001, **recipe}}
    params = study(tmp_path, training={"models": models}, execution=execution)
    with pytest.raises(Fault, match=message):
        storage.prepare(params)


@pytest.mark.parametrize("gpus_here", [0, 3])
def test_a_clusters_devices_are_not_those_of_the_machine_that_starts_it(
    gpus_here: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus_here > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus_here)
    models = {"mobilenet_v2": {"epochs": 1, "learning_rate": 0.001, "precision": "fp16"}}
    where = {name: str(tmp_path / name) for name in ("ledger", "cache", "results")}

    def prepared(device: str, gpus: int, devices: Any = "auto") -> None:
        storage.prepare(
            study(
                tmp_path,
                training={"models": models},
                execution={"device": device, "devices": devices, **where},
                cluster={"kind": "slurm", "memory": "8GB", "gpus": gpus},
            )
        )

    # 64 images divide by the one GPU of a worker, and not by the three here.
    for device in ("cuda", "auto"):
        prepared(device, gpus=1)
    for device, gpus in (("auto", 0), ("cpu", 1)):
        with pytest.raises(Fault, match=r"fp16 needs a GPU, and the workers have none"):
            prepared(device, gpus)
    with pytest.raises(Fault, match="64 images do not divide among 5 devices"):
        prepared("cuda", gpus=1, devices=5)


def test_the_loop_refuses_what_it_cannot_do() -> None:
    data, model = squares(), network()
    objective = objectives.Classification(data)
    with pytest.raises(BadInput, match="fp16 needs a GPU"):
        recipe = loop.Recipe(1, 1e-3, 16, precision="fp16")
        loop.fit(model, data, recipe, objective, seed=0)
    with pytest.raises(BadInput, match="16 images do not divide among 3 devices"):
        loop.fit(model, data, RECIPE, objective, seed=0, ranks=Ranks(0, 3))


def test_settings_that_change_no_result_change_no_key(tmp_path: Path) -> None:
    plain = [run.key for run in planning.plan(study(tmp_path))]
    other = study(
        tmp_path,
        training={"checkpoint_minutes": 1},
        execution={"devices": 2},
        tracking={"tensorboard": "shown", "mlflow": "sqlite:///shown.db"},
    )
    assert [run.key for run in planning.plan(other)] == plain
    assert other.tracking.tensorboard == str(tmp_path / "shown")
    assert other.tracking.mlflow == "sqlite:///shown.db"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_fp16_trains_on_a_gpu() -> None:
    data, model = squares(), network()
    recipe = loop.Recipe(4, 1e-2, 16, precision="fp16")
    objective = objectives.Classification(data)
    history = loop.fit(model, data, recipe, objective, seed=0, device="cuda")
    assert history.loss[-1] < history.loss[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs on this machine")
def test_two_gpus_train_what_one_does(tmp_path: Path) -> None:
    two = together(several, (str(tmp_path),), count=2, device="cuda")
    one = trained(Ranks(device="cuda:0"))
    np.testing.assert_allclose(two["plain"]["loss"], one["loss"], rtol=1e-3)
