"""The comparison with other toolkits: its figures, its words, and what is said of a missing one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fairq_utils import bench
from fairq_utils.bench import toolkits
from fairq_utils.bench.outcome import Missing, words
from fairq_utils.bench.peers import registry as peers
from fairq_utils.bench.toolkits import compare, outcome
from fairq_utils.data import FaceData
from fairq_utils.errors import Fault
from fairq_utils.quantizers import onednn
from fairq_utils.study.params.file import load_params
from fairq_utils.study.study import Study
from fairq_utils.training.architectures import normalize

PARAMS = Path(__file__).resolve().parents[1] / "params" / "smoke.yaml"


class Small(nn.Module):
    """Convolutions, an addition, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.inner(x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def pictures() -> FaceData:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (48, 3, 2, 2), dtype=np.uint8))
    images = nn.functional.interpolate(coarse, 32)
    target = rng.integers(0, 2, 48).astype(np.int8)
    split = np.array(["test"] * 48)
    return FaceData(images, target, pd.DataFrame(index=range(48)), split)


@pytest.fixture(scope="module")
def small(pictures: FaceData) -> nn.Module:
    """A model that answers half of the pictures each way."""
    torch.manual_seed(0)
    model = Small()
    x = normalize(pictures.images)
    with torch.no_grad():
        model(x)
        model.eval()
        model.head.bias -= model(x).median(dim=0).values
    return model


def task(model: nn.Module, images: Tensor, weight_bits: int, activation_bits: int) -> peers.Task:
    batches = tuple(normalize(images).split(16))
    return peers.Task(model, weight_bits, activation_bits, batches, "stem", "head")


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_toolkit_stays_near_the_model_and_nearer_with_more_bits(
    name: str, small: nn.Module, pictures: FaceData
) -> None:
    if name == "onnxruntime" and not onednn.available():
        pytest.skip("this processor has no exact integer kernels")
    peer = peers.PEERS[name]
    if importlib.util.find_spec(peer.package) is None:
        pytest.skip(f"{peer.label} is not installed; `make toolkits` brings it")
    images = pictures.images
    before = {k: v.clone() for k, v in small.state_dict().items()}
    x = normalize(images)
    with torch.inference_mode():
        reference = small(x)
        error = {}
        for bits in ((8, 8), (4, 4)):
            answer = peers.quantize(name, task(small, images, *bits))
            logits = answer(x)
            assert logits.shape == (48, 2)
            error[bits] = float((logits - reference).pow(2).mean() / reference.var())
    # NNCF clips at the mean of the extremes, which these few pictures feel most.
    assert 0 < error[8, 8] < 0.2
    assert error[8, 8] < error[4, 4] < 1
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_first_and_last_layer_stay_at_eight_bits(pictures: FaceData) -> None:
    """With nothing between them, four bits and eight are the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 2))
    model.eval()
    x = normalize(pictures.images)
    for name in ("torchao_pt2e", "onnxruntime"):
        asked = peers.Task(model, 4, 4, tuple(x.split(16)), "0", "3")
        with torch.inference_mode():
            error = (peers.quantize(name, asked)(x) - model(x)).pow(2).mean()
            assert 0 < error < 0.002 * model(x).var(), name


def test_figures_and_words(
    small: nn.Module, pictures: FaceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        toolkits, "PEERS", {n: peers.PEERS[n] for n in ("torchao_pt2e", "onnxruntime")}
    )
    batches = tuple(normalize(pictures.images).split(16))
    found = outcome(list(compare("resnet50", small, ["W8A8", "W3A8"], batches, pictures)))
    who = ["fp32", "ours_minmax", "ours", "torchao_pt2e", "onnxruntime"]
    by_bits = found.figures["resnet50"]
    assert {bits: list(row) for bits, row in by_bits.items()} == {"W8A8": who, "W3A8": who}
    assert json.loads(json.dumps(found.figures)) == found.figures
    values = [v for row in by_bits.values() for v in row.values() if v is not None]
    assert all(0 <= v <= 1 for v in values)
    assert by_bits["W3A8"]["onnxruntime"] is None
    lines = found.text.splitlines()
    shown = [f"{100 * by_bits['W8A8'][one]:.1f}" for one in who]
    assert [line.split() for line in lines if "W8A8" in line] == [["ResNet-50", "W8A8", *shown]]
    assert lines[-1] == (
        "- ONNX Runtime, ResNet-50 W3A8: not offered: ONNX has integers of 4 and 8 bits, none of 3"
    )


def test_a_toolkit_that_is_missing_is_named_with_what_brings_it(
    small: nn.Module, pictures: FaceData, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fails(task: peers.Task) -> peers.Logits:
        raise KeyError("no such\nlayer")

    two = {
        "elsewhere": peers.Peer("elsewhere", "Elsewhere", "no_such_toolkit", fails),
        "broken": peers.Peer("broken", "Broken", "torchao", fails),
    }
    for module in (peers, toolkits):
        monkeypatch.setattr(module, "PEERS", two)
    batches = (normalize(pictures.images),)
    found = outcome(list(compare("resnet50", small, ["W8A8", "W4A4"], batches, pictures)))
    for row in found.figures["resnet50"].values():
        assert row["elsewhere"] is None and row["broken"] is None
        assert row["ours"] is not None
    lines = found.text.splitlines()
    assert sum("Elsewhere is not installed; `make toolkits`" in line for line in lines) == 1
    assert any(
        line.startswith("- Broken, ResNet-50 W8A8, ResNet-50 W4A4: failed: KeyError:")
        for line in lines
    )


def test_reasons_are_grouped() -> None:
    missing = [Missing((bits, "NNCF"), "no", "not offered") for bits in ("W4A8", "W4A4")]
    assert words(missing=missing) == "- NNCF, W4A8, W4A4: not offered: no"


@pytest.fixture
def untrained(tmp_path: Path) -> Study:
    return Study(load_params(PARAMS, {"execution.ledger": str(tmp_path / "ledger")}))


def test_without_trained_models_it_says_how_to_train_them(untrained: Study, tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"no FP32 .* yet; run `fairq run .*--phase baseline` first"):
        bench.run("toolkits", tmp_path, untrained)
    with pytest.raises(ValueError, match="measures the models of a study"):
        bench.run("toolkits", tmp_path)
