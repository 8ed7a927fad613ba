"""Architectures, checkpoints and the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fairq_utils.data import FaceData, load
from fairq_utils.training import architectures, checkpoints, loop, objectives, resume


@pytest.fixture(scope="module")
def squares() -> FaceData:
    """Pictures whose target is whether the left half is brighter than the right."""
    rng = np.random.default_rng(0)
    images = rng.integers(90, 130, (256, 3, 32, 32)).astype(np.uint8)
    target = rng.integers(0, 2, 256).astype(np.int8)
    images[target == 1, :, 8:24] += 60
    groups = pd.DataFrame({"gender": pd.Categorical(["female", "male"] * 128)})
    factors = pd.DataFrame(
        {
            "height": target + 0.1 * rng.standard_normal(256),
            "eyeLeft": rng.random(256),
            "eyeRight": rng.random(256),
            "yaw": rng.standard_normal(256),
        }
    )
    return FaceData(torch.from_numpy(images), target, groups, np.repeat("train", 256), factors)


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_architectures_give_two_logits(name: str) -> None:
    model = architectures.build(name, image_size=64).eval()
    with torch.no_grad():
        logits = model(architectures.normalize(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))
    assert logits.shape == (2, 2)
    assert architectures.classifier(model).weight.shape[0] == 2


# MiB of parameters and buffers at 224 px and two classes; ResNet-50's is the published figure.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 89.89),
        ("mobilenet_v2", 8.62),
        ("efficientnet_b0", 15.46),
        ("vit_small", 82.65),
        ("squeezenet1_1", 2.76),
    ],
)
def test_float_sizes(name: str, size: float) -> None:
    assert architectures.float_megabytes(
        architectures.build(name, image_size=224)
    ) == pytest.approx(size, abs=0.01)


def test_unknown_names_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="'resnet51' is not one of resnet50"):
        architectures.build("resnet51")
    with pytest.raises(ValueError, match="not a multiple of 16"):
        architectures.build("vit_small", image_size=50)


def test_missing_pretrained_weights_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setitem(architectures.ARCHITECTURES, "resnet50", offline)
    with pytest.raises(architectures.PretrainedUnavailable, match="set pretrained: false"):
        architectures.build("resnet50", pretrained=True)


def test_checkpoint_round_trip_and_damage(tmp_path) -> None:
    model = architectures.build("squeezenet1_1").eval()
    path = tmp_path / "model.safetensors"
    checkpoints.save_checkpoint(model, path)
    again = checkpoints.load_checkpoint(architectures.build("squeezenet1_1"), path).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.load_checkpoint(architectures.build("squeezenet1_1"), path)


def test_training_learns_and_repeats(squares: FaceData) -> None:
    margins = []
    for _ in range(2):
        torch.manual_seed(0)
        model = architectures.build("squeezenet1_1", image_size=32)
        objective = objectives.WithFactors(squares, model, 1.0)
        recipe = loop.Recipe(epochs=4, learning_rate=1e-3, batch_size=32)
        history = loop.fit(model, squares, recipe, objective, seed=0)
        objective.close()
        margins.append(loop.predict(model, squares.images))
    assert history.loss[-1] < history.loss[0]
    assert ((margins[0] > 0) == (squares.target == 1)).mean() > 0.95
    np.testing.assert_allclose(margins[0], margins[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", range(1, 12))
def test_trainings_of_few_steps(steps: int) -> None:
    class Distance(nn.Module):
        def forward(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return model(x).square().mean()

    model, x = nn.Linear(2, 1), torch.ones(3, 2)
    recipe = loop.Recipe(epochs=1, learning_rate=1e-3)
    history = loop.optimise(model, Distance(), lambda: [(x,)] * steps, steps, recipe)
    assert len(history.loss) == 1


def test_mirrored_coefficients_swap_sides(squares: FaceData) -> None:
    straight, mirrored = objectives._standardised(squares.factors)
    left, right, yaw = (list(squares.factors).index(n) for n in ("eyeLeft", "eyeRight", "yaw"))
    raw = squares.factors
    expected = (raw.eyeRight - raw.eyeLeft.mean()) / raw.eyeLeft.std(ddof=0)
    np.testing.assert_allclose(mirrored[:, left], expected, rtol=1e-5)
    np.testing.assert_allclose(
        mirrored[:, yaw], (-raw.yaw - raw.yaw.mean()) / raw.yaw.std(ddof=0), rtol=1e-4, atol=1e-6
    )
    assert not torch.equal(straight[:, right], mirrored[:, right])


def test_auxiliary_task_needs_coefficients(squares: FaceData) -> None:
    bare = FaceData(squares.images, squares.target, squares.groups, squares.split)
    with pytest.raises(ValueError, match="auxiliary: 0"):
        objectives.WithFactors(bare, architectures.build("squeezenet1_1"), 1.0)


def test_a_diverging_training_says_where(squares: FaceData) -> None:
    model = architectures.build("squeezenet1_1", image_size=32)
    with torch.no_grad():
        architectures.classifier(model).weight.fill_(float("inf"))
    recipe = loop.Recipe(epochs=1, learning_rate=1e-3, batch_size=64)
    with pytest.raises(FloatingPointError, match="epoch 1"):
        loop.fit(model, squares, recipe, objectives.Classification(squares), seed=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_predictions_agree_between_cpu_and_cuda(squares: FaceData) -> None:
    model = architectures.build("mobilenet_v2", image_size=32).eval()
    cpu = loop.predict(model, squares.images)
    cuda = loop.predict(model, squares.images, device="cuda")
    np.testing.assert_allclose(cpu, cuda, atol=1e-2)


def test_demographics_can_be_seen(tmp_path) -> None:
    """A small network recovers gender, age and ancestry: the signal is there to be used.

    The reduced size of the book's figure; the book's is larger and more accurate.
    """
    from fairq_utils.report.population import recover

    data = load("population", sizes={"train": 3000, "test": 600}, size=48, cache=tmp_path)
    table = recover(data, epochs=5)
    hits = table[table.true == table.predicted].groupby("attribute").images.sum()
    share = hits / table.groupby("attribute").images.sum()
    assert share["gender"] >= 0.90
    assert share["age"] >= 0.85
    assert share["race"] >= 0.90


def test_settled_batch_norms_hold_the_average_of_the_final_weights(squares: FaceData) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5))
    loop.settle_batch_norms(model, squares.images, seed=0)
    norm = model[1]
    with torch.no_grad():
        out = model[0](architectures.normalize(squares.images))
    torch.testing.assert_close(norm.running_mean, out.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert norm.momentum == 0.3
    assert norm.num_batches_tracked == 4


def test_two_hosts_on_one_disk_write_under_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, places = checkpoints.save_file, list[Path]()

    def noted(state: Any, place: Path, **options: Any) -> None:
        places.append(place)
        write(state, place, **options)

    monkeypatch.setattr(checkpoints, "save_file", noted)
    monkeypatch.setattr(resume, "save_file", noted)
    for _ in range(2):  # as two processes of one number on two hosts do
        checkpoints.save_checkpoint(nn.Linear(2, 2), tmp_path / "a.safetensors")
        resume._write(tmp_path / "a.unfinished", {}, {})
    assert len(set(places)) == 4
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors", "a.unfinished"}


def test_the_first_checkpoint_stays(tmp_path: Path) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    path = tmp_path / "weights.safetensors"
    checkpoints.save_checkpoint(first, path)
    checkpoints.save_checkpoint(second, path)
    assert torch.equal(checkpoints.load_checkpoint(nn.Linear(2, 2), path).weight, first.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
