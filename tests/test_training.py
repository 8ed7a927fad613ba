"""Architectures, checkpoints and the training loop."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from fairq_utils.data import FaceData, load
from fairq_utils.errors import BadInput
from fairq_utils.quantizers.post_training import quantize_static
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.study import cost, execution
from fairq_utils.study.params.study import Params
from fairq_utils.study.study import Study
from fairq_utils.training import architectures, checkpoints, loop, objectives, resume
from fairq_utils.training.image_sizes import check_size
from fairq_utils.training.zoo import ARCHITECTURES


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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_give_two_logits(name: str) -> None:
    model = architectures.build(name, image_size=64)
    with torch.no_grad():
        logits = model(architectures.normalize(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))
    assert logits.shape == (2, 2)
    assert architectures.classifier(model).weight.shape[0] == 2


def test_names_and_labels_are_listed_without_pytorch() -> None:
    code = (
        "import sys; from fairq_utils.training.zoo import ARCHITECTURES, display_name; "
        "print(*ARCHITECTURES, *map(display_name, ['squeezenet1_1', 'convnext_atto']), sep=',');"
        "assert 'torch' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = said.stdout.strip().split(",")
    assert {"resnet50", "vit_small", "googlenet"} <= set(names)
    assert names[-2:] == ["SqueezeNet 1.1", "convnext_atto"]


ANY = (
    "convnext_atto",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "regnet_y_400mf",  # of torchvision, the others of timm
)


@pytest.mark.parametrize("name", ANY)
def test_any_architecture_is_trained_and_quantized(name: str, squares: FaceData) -> None:
    check_size(name, 32, "data.size")
    data = squares.take(np.arange(128))
    torch.manual_seed(0)
    model = architectures.build(name, image_size=32)
    architectures.initialise(model, data.images)
    objective = objectives.WithFactors(data, model, 1.0)
    recipe = loop.Recipe(epochs=2, learning_rate=5e-4, batch_size=32)
    history = loop.fit(model, data, recipe, objective, seed=0)
    objective.close()
    assert history.loss[-1] < history.loss[0]
    quantized, report = quantize_static(
        model, QuantSpec.parse("W8A8"), [architectures.normalize(data.images)]
    )
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert report.layers.keys() | report.left_float.keys() >= layers
    assert all(report.left_float.values())  # each with its reason
    assert report.size_bytes < 0.3 * report.float_bytes
    before, after = (loop.predict(m, data.images) for m in (model, quantized))
    assert (after != before).any()
    assert np.corrcoef(before, after)[0, 1] > 0.9


def test_a_study_of_an_architecture_without_an_entry(tmp_path: Path) -> None:
    params = Params.model_validate(
        {
            "name": "other",
            "data": {"size": 32, "train": 64, "calibration": 200, "validation": 16, "test": 100},
            "training": {"models": {"regnet_y_400mf": {}}},
            "grid": [{"method": "ptq", "bits": "W8A8"}, {"method": "dynamic", "bits": "W8A8"}],
            "quantization": {"calibration_images": 16},
            "execution": {name: str(tmp_path / name) for name in ("ledger", "cache", "results")},
        }
    )
    stream = io.StringIO()
    store = execution.execute(Study(params), stream=stream)
    runs = {record.run.method: record for record in map(store.read, store.keys())}
    assert runs.keys() == {"fp32", "ptq", "dynamic"}
    assert len(runs["fp32"].scores) == 100
    assert "loss_3" in runs["fp32"].measures  # of as many epochs as a recipe has by itself
    for method in ("ptq", "dynamic"):
        assert runs[method].size_bytes < 0.3 * runs["fp32"].size_bytes
        assert (runs[method].scores != runs["fp32"].scores).any()
    assert "regnet_y_400mf · fp32" in stream.getvalue()
    with pytest.raises(BadInput, match="there are no rates of regnet_y_400mf"):
        cost.hours(cost.jobs(params))


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
    with pytest.raises(
        BadInput, match=r"'regnet_y_400m' is unknown; did you mean 'regnet_y_400mf'"
    ):
        architectures.build("regnet_y_400m")
    with pytest.raises(BadInput, match=r"'zzzzzz' is unknown; it is one of resnet50, .* names\)"):
        architectures.build("zzzzzz")


@pytest.mark.parametrize(
    ("name", "size", "way_out"),
    [
        ("vit_small", 50, "take a multiple of 16"),
        ("deit_tiny_patch16_224", 40, "take a multiple of 16"),  # timm would leave a border out
        ("vit_h_14", 64, "take a multiple of 14"),
        ("inception_v3", 64, "take 75 or more"),
        ("maxvit_t", 64, "take 224"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name: str, size: int, way_out: str) -> None:
    with pytest.raises(
        BadInput, match=rf"^data.size: {name} .* {size} pixels; {way_out}, or leave"
    ):
        check_size(name, size, "data.size")


def test_missing_pretrained_weights_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    for name in ("resnet50", "regnet_y_400mf", "squeezenet1_1"):
        with pytest.raises(
            architectures.PretrainedUnavailable, match=r"unreachable.* pretrained: f"
        ):
            architectures.build(name, pretrained=True)


@pytest.mark.parametrize("name", ["regnet_y_400mf", "squeezenet1_1"])
def test_pretrained_weights_of_a_thousand_classes_get_a_head_of_two(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torchvision.models.get_model(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: whole.state_dict())
    model = architectures.build(name, pretrained=True)
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
    first, same = (next(m.parameters()) for m in (model, whole))
    assert torch.equal(first, same)


@pytest.mark.parametrize(
    ("name", "size", "whitened"),
    [("vit_small_patch14_reg4_dinov2", 28, True), ("vit_small_patch8_224", 32, False)],
)
def test_vision_transformers_of_all_kinds_start_from_images(
    name: str, size: int, whitened: bool, squares: FaceData
) -> None:
    """Register tokens have no positions; an embedding may be wider than a patch has values."""
    images = squares.images[:64, :, :size, :size]
    model = architectures.build(name, image_size=size)
    before = copy.deepcopy(model.state_dict())
    architectures.initialise(model, images)
    after = model.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    patches = {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert changed == {"pos_embed"} | (patches if whitened else set())
    assert np.isfinite(loop.predict(model, images)).all()


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


def test_no_bit_of_a_checkpoint_can_be_another_and_go_unnoticed(tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), tmp_path / "m.safetensors"
    checkpoints.save_checkpoint(model, path, {"run": "a"})
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 29):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        try:
            checkpoints.load_checkpoint(other, path, "a")
        except ValueError as error:
            assert str(path) in str(error)
            continue
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], value)


def test_a_checkpoint_under_another_s_name_is_none(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    checkpoints.save_checkpoint(nn.Linear(2, 2), path, {"run": "a"})
    with pytest.raises(ValueError, match=r"b\.safetensors.*holds the weights of run a"):
        checkpoints.load_checkpoint(nn.Linear(2, 2), path, "b")
    checkpoints.load_checkpoint(nn.Linear(2, 2), path)


def test_a_checkpoint_from_before_there_was_a_checksum_is_read(tmp_path: Path) -> None:
    model, path = nn.Linear(2, 2), tmp_path / "m.safetensors"
    save_file(model.state_dict(), path)
    assert torch.equal(checkpoints.load_checkpoint(nn.Linear(2, 2), path, "a").weight, model.weight)


def test_the_umask_says_who_may_read_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    before = os.umask(0o022)
    try:
        checkpoints.save_checkpoint(nn.Linear(2, 2), path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


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
    write, places = Path.write_bytes, list[Path]()

    def noted(place: Path, content: bytes) -> int:
        places.append(place)
        return write(place, content)

    monkeypatch.setattr(Path, "write_bytes", noted)
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


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_not_imitated(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without it takes twenty times as long, and computes in FP32 instead."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    found: set[torch.dtype] = set()

    class Noting(nn.Module):
        def forward(self, model: nn.Module, x: Tensor) -> Tensor:
            logits = model(x)
            found.add(logits.dtype)
            return logits.float().square().mean()

    batch = (torch.randn(4, 3),)
    recipe = loop.Recipe(epochs=1, learning_rate=0.01, precision="bf16")
    loop.optimise(nn.Linear(3, 2), Noting(), lambda: [batch], 1, recipe)
    assert found == {torch.bfloat16 if native else torch.float32}
