"""The device that trains: what it cannot do, and what of it changes no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from fairq_utils.data.faces import FaceData
from fairq_utils.errors import BadInput, Fault
from fairq_utils.study import planning
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params, ParamsError
from fairq_utils.study.study import Study
from fairq_utils.training import loop, objectives


def squares(count: int = 88) -> FaceData:
    """Images whose target is whether their middle is brighter."""
    rng = np.random.default_rng(0)
    images = rng.integers(90, 130, (count, 3, 8, 8)).astype(np.uint8)
    target = rng.integers(0, 2, count).astype(np.int8)
    images[target == 1, :, 2:6] += 60
    groups = pd.DataFrame({"gender": pd.Categorical(["female", "male"] * (count // 2))})
    return FaceData(torch.from_numpy(images), target, groups, np.repeat("train", count))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


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


def test_several_devices_for_one_training_are_told_of_the_cluster(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"execution: devices: .*cluster: \{kind: local, .*\}"):
        study(tmp_path, execution={"devices": 2})
    side_by_side = study(tmp_path, cluster={"kind": "local", "workers": 2, "gpus": 1})
    assert side_by_side.cluster.gpus == 1


def test_fp16_without_a_gpu_is_refused_before_anything_is_rendered(tmp_path: Path) -> None:
    models = {"mobilenet_v2": {"epochs": 1, "learning_rate": 0.001, "precision": "fp16"}}
    params = study(tmp_path, training={"models": models})
    with pytest.raises(Fault, match=r"mobilenet_v2\.precision: fp16 needs a GPU"):
        Study(params).prepare()


@pytest.mark.parametrize("gpus_here", [0, 3])
def test_a_clusters_gpus_are_not_those_of_the_machine_that_starts_it(
    gpus_here: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus_here > 0)
    models = {"mobilenet_v2": {"epochs": 1, "learning_rate": 0.001, "precision": "fp16"}}
    where = {name: str(tmp_path / name) for name in ("ledger", "cache", "results")}

    def prepared(device: str, gpus: int) -> None:
        Study(
            study(
                tmp_path,
                training={"models": models},
                execution={"device": device, **where},
                cluster={"kind": "slurm", "memory": "8GB", "gpus": gpus},
            )
        ).prepare()

    for device in ("cuda", "auto"):
        prepared(device, gpus=1)
    for device, gpus in (("auto", 0), ("cpu", 1)):
        with pytest.raises(Fault, match=r"fp16 needs a GPU, and the workers have none"):
            prepared(device, gpus)


def test_the_loop_refuses_what_it_cannot_do() -> None:
    data, model = squares(), network()
    objective = objectives.Classification(data)
    with pytest.raises(BadInput, match="fp16 needs a GPU"):
        recipe = loop.Recipe(1, 1e-3, 16, precision="fp16")
        loop.fit(model, data, recipe, objective, seed=0)


def test_settings_that_change_no_result_change_no_key(tmp_path: Path) -> None:
    plain = [run.key for run in planning.plan(Study(study(tmp_path)))]
    other = study(
        tmp_path,
        training={"checkpoint_minutes": 1},
        execution={"threads": 2},
        tracking={"tensorboard": "shown", "mlflow": "sqlite:///shown.db"},
    )
    assert [run.key for run in planning.plan(Study(other))] == plain
    assert other.tracking.tensorboard == str(tmp_path / "shown")
    assert other.tracking.mlflow == "sqlite:///shown.db"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_fp16_trains_on_a_gpu() -> None:
    data, model = squares(), network()
    recipe = loop.Recipe(4, 1e-2, 16, precision="fp16")
    objective = objectives.Classification(data)
    history = loop.fit(model, data, recipe, objective, seed=0, device="cuda")
    assert history.loss[-1] < history.loss[0]
