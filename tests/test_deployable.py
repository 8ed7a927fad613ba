"""A run as a deployable folder, and its predictions: whole, checked, without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from fairq_utils.cli import app
from fairq_utils.data import FaceData
from fairq_utils.deploy import card_page, card_terms, engines, predict, processor
from fairq_utils.deploy import export as deployable
from fairq_utils.deploy.engines.loaded_model import NotExact
from fairq_utils.deploy.engines.registry import ENGINES, NotInstalled
from fairq_utils.deploy.model_card import Margins, measured
from fairq_utils.errors import BadInput, Fault
from fairq_utils.study import execution, planning, run_models
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.grid import Entry
from fairq_utils.study.params.study import Params
from fairq_utils.study.study import Study
from fairq_utils.training import architectures, checkpoints, loop

MODEL = "squeezenet1_1"
STUDY = {
    "name": "small",
    "data": {"size": 32, "train": 64, "calibration": 48, "validation": 10, "test": 64},
    "training": {"models": {MODEL: {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16}}},
    "grid": [
        {"method": "ptq", "bits": ["W8A8", "W4A4"], "sampler": ["random", "group_balanced"]},
        {"method": "dynamic", "bits": "W8A8"},
        {"method": "mixed", "bits": "W4A8"},
        {"method": "qat", "bits": "W4A4"},
    ],
    "quantization": {"calibration_images": 16, "iterations": 3},
    "analysis": {"replicates": 100},
}
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A params file whose FP32 model is trained, and answers either way about half the pictures."""
    path = tmp_path_factory.mktemp("study") / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    study = Study(load_params(path))
    execution.execute(study, ("baseline",))
    run = planning.plan(study, ("baseline",))[0]
    model = run_models.trained(study, run)
    margins = loop.predict(model, study.faces.subset("test").images)
    with torch.no_grad():  # so short a training ends in one answer for everybody
        architectures.classifier(model).bias[1] -= float(np.median(margins))  # type: ignore[index]
    checkpoint = study.ledger.checkpoint_path(run.weights)
    checkpoint.unlink()
    checkpoints.save_checkpoint(model, checkpoint)
    return path


@pytest.fixture(scope="module")
def study(small: Path) -> Study:
    return Study(load_params(small))


@pytest.fixture(scope="module")
def params(study: Study) -> Params:
    return study.params


@pytest.fixture(scope="module")
def test_faces(study: Study) -> FaceData:
    return study.faces.subset("test")


def fairq(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def card_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return found


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def exported(
    request: pytest.FixtureRequest, small: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder that the command line wrote."""
    try:
        engines.installed(request.param)
    except NotInstalled as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("out") / "deep" / request.param
    asked = ("--engine", request.param, "--out", folder, "--params", small)
    answer = fairq("export", MODEL, *asked)
    assert answer.exit_code == 0, answer.output
    assert answer.stdout == f"{folder}\n"
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """A folder to do damage to."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.fixture(scope="module")
def photographs(test_faces: FaceData, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The test pictures as files."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for i, image in enumerate(test_faces.images.numpy()):
        paths.append(folder / f"{i:03d}.png")
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(paths[-1])
    return paths


# ---- what is written


def test_a_folder_holds_what_its_card_says(exported: Path, params: Params) -> None:
    card = card_of(exported)
    engine = ENGINES[exported.name]
    listed = {engine.file, *engine.further}
    assert {path.name for path in exported.iterdir()} == {"card.json", "README.md", *listed}
    assert set(card["files"]) == listed
    for name, of in card["files"].items():
        assert (exported / name).stat().st_size == of["bytes"]
        assert card_terms.checksum(exported / name) == of["sha256"]
    size = card["size"]
    assert size["on_disk"] == sum(of["bytes"] for of in card["files"].values())
    assert size["ratio_of_bits"] == 4
    assert size["ratio_on_disk"] == pytest.approx(size["fp32"] / size["on_disk"])
    assert size["packed"] < size["on_disk"] < size["fp32"] / 2
    assert not list(exported.parent.glob(".*"))  # nothing is left of the writing

    assert card["run"]["method"] == ENGINES[exported.name].method
    assert card["quantization"]["spec"]["residuals"]
    assert set(card["quantization"]["layers"].values()) == {"W8A8"}
    assert card["quantization"]["kernels"]["integer"] > 0
    assert card["calibration"] == {
        "split": "calibration",
        "images": 16,
        "sampler": "random",
        "seed": 0,
    }
    assert card["engine"]["version"] == engines.installed(exported.name)
    assert card["engine"]["onnx_opset"] == (21 if exported.name == "onnxruntime" else None)
    assert card["input"]["mean"] == list(architectures.MEAN)
    assert card["licence"] == "Apache-2.0"
    assert card["data"]["images"] == {"train": 64, "test": 64}


def test_what_is_measured_is_what_the_folder_answers(
    exported: Path, photographs: list[Path], test_faces: FaceData, study: Study
) -> None:
    """The whole way round: pictures as files, through the command line, beside the card."""
    answer = fairq("predict", exported, *photographs, "--json", "--threads", "1")
    assert answer.exit_code == 0, answer.output
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [line["image"] for line in found] == [str(path) for path in photographs]
    said = np.array([line["class"] == "smiling" for line in found])
    assert (said == np.array([line["probability"] > 0.5 for line in found])).all()
    right = said == (test_faces.target == 1)
    kept = card_of(exported)["measured"]
    assert kept["accuracy"]["value"] == pytest.approx(right.mean())
    assert kept["accuracy"]["low"] <= right.mean() <= kept["accuracy"]["high"]
    assert kept["images"] == 64
    women = (test_faces.groups["gender"] == "female").to_numpy()
    assert kept["groups"]["gender"]["female"]["images"] == women.sum()
    assert kept["groups"]["gender"]["female"]["positive"] == test_faces.target[women].sum()
    accuracy = kept["groups"]["gender"]["female"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right[women].mean())
    gap = kept["gaps"]["gender"]["demographic_parity_difference"]
    assert gap["value"] == pytest.approx(abs(said[women].mean() - said[~women].mean()))
    assert gap["change"] == pytest.approx(gap["value"] - gap["fp32"])
    assert set(kept["gaps"]) == set(kept["groups"]) == {"gender", "age", "gender x age"}
    trained = run_models.trained(study, planning.plan(study, ("baseline",))[0])
    base = (loop.predict(trained, test_faces.images) > 0) == (test_faces.target == 1)
    assert kept["accuracy"]["fp32"] == pytest.approx(base.mean())
    assert 0.2 < said.mean() < 0.8


def test_who_answered_what(study: Study, params: Params, test_faces: FaceData) -> None:
    """FP32, the simulation and the engine disagree, and each figure is of the right one."""
    rng = np.random.default_rng(0)
    margins = Margins(*rng.normal(size=(3, 64)).astype(np.float32))
    run = deployable.choose(study, MODEL, "onnxruntime")
    found = measured(params, run, study.faces, margins)
    label = test_faces.target == 1
    right = {name: (getattr(margins, name) > 0) == label for name in ("fp32", "deployed")}
    accuracy = found["accuracy"]
    assert accuracy["value"] == pytest.approx(right["deployed"].mean())
    assert accuracy["fp32"] == pytest.approx(right["fp32"].mean())
    assert accuracy["change"] == pytest.approx(accuracy["value"] - accuracy["fp32"])
    assert accuracy["change_low"] < accuracy["change"] < accuracy["change_high"]
    differs = (margins.simulated > 0) != (margins.deployed > 0)
    assert found["simulation"]["differs"] == pytest.approx(differs.mean())
    assert found["answered"] == {
        "target": pytest.approx((margins.deployed > 0).mean()),
        "target_fp32": pytest.approx((margins.fp32 > 0).mean()),
        "accuracy_of_one_answer": pytest.approx(max(label.mean(), 1 - label.mean())),
    }
    old = (test_faces.groups["age"] == "old").to_numpy()
    assert found["groups"]["age"]["old"]["accuracy"]["fp32"] == pytest.approx(
        right["fp32"][old].mean()
    )
    groups = test_faces.groups["gender"].astype(str) + " " + test_faces.groups["age"].astype(str)
    shares = {group: differs[(groups == group).to_numpy()].mean() for group in set(groups)}
    worst = found["simulation"]["worst_group"]
    assert shares[worst] == max(shares.values()) == found["simulation"]["differs_in_worst_group"]


def test_the_simulation_is_the_runs_own(exported: Path, study: Study) -> None:
    """What differs from it is counted, overall and in the group where it is most."""
    rebuilt = run_models.rebuild(study, deployable.choose(study, MODEL, exported.name))
    data = study.faces
    test = data.subset("test")
    loaded = engines.load(exported.name, exported, 1)
    with torch.no_grad():
        logits = rebuilt.model(architectures.normalize(test.images)).numpy()
    asked = predict.normalize(test.images.numpy(), architectures.MEAN, architectures.STD)
    differs = (logits.argmax(1) != loaded.in_batches(asked, 64).argmax(1)).astype(float)
    found = card_of(exported)["measured"]["simulation"]
    assert found["images"] == differs.sum()
    assert found["differs"] == pytest.approx(differs.mean())
    groups = test.groups["gender"].astype(str) + " " + test.groups["age"].astype(str)
    by_group = {g: differs[(groups == g).to_numpy()].mean() for g in set(groups)}
    assert found["differs_in_worst_group"] == pytest.approx(max(by_group.values()))
    if differs.any():
        assert by_group[found["worst_group"]] == pytest.approx(max(by_group.values()))
    else:
        assert found["worst_group"] is None


def test_the_readme_is_the_card(exported: Path) -> None:
    card = card_of(exported)
    text = (exported / "README.md").read_text()
    assert text == card_page.page(card)
    accuracy = card["measured"]["accuracy"]
    assert f"| accuracy | everybody | {100 * accuracy['value']:.2f} % (" in text
    for of in card["files"].values():
        assert of["sha256"] in text
        assert f"{of['bytes']:,}" in text
    assert "What rendered people can and cannot tell" in text
    # Another card is another page, and what has no value is said to have none.
    card["measured"]["gaps"]["age"]["equalized_odds_difference"]["value"] = None
    card["measured"]["simulation"] |= {"images": 3, "worst_group": "male old"}
    card["calibration"] = None
    other = card_page.page(card)
    assert "| equalized odds difference | age | not defined (" in other
    assert "in the group male old, where it is most" in other
    assert "Calibrated on" not in other
    assert "predicts the same for every image" not in other
    card["measured"]["answered"]["target"] = 0.0
    assert "**It predicts the same for every image.**" in card_page.page(card)
    card["quantization"]["spec"] |= {"activation_range": "percentile", "percentile": 99.5}
    assert "percentile 99.5" in card_page.page(card)
    assert "percentile" not in text and "iterations" not in text and "group_size" not in text


def test_fewer_bits_are_packed_and_an_fp32_run_is_float(study: Study, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    planned = planning.plan(study)
    four = next(r for r in planned if r.method == "ptq" and r.bits == "W4A4")
    mixed = next(r for r in planned if r.method == "mixed")
    full = next(r for r in planned if r.method == "fp32")
    cards = {}
    for run in (four, mixed, full):
        folder = deployable.export_run(study, run.key, "openvino", tmp_path / run.key)
        cards[run.key] = card_of(folder)
        assert cards[run.key]["run"]["key"] == run.key
    size = cards[four.key]["size"]
    assert size["ratio_of_bits"] == 8
    weights = cards[four.key]["files"]["model.bin"]["bytes"]
    assert size["fp32"] / weights > 4  # bytes would not do it
    assert len(set(cards[mixed.key]["quantization"]["layers"].values())) > 1
    card = cards[full.key]
    assert card["quantization"] is None
    assert card["calibration"] is None
    assert card["size"]["ratio_of_bits"] == 1
    assert card["measured"]["accuracy"]["change"] == 0
    assert card["measured"]["simulation"]["images"] == 0


def test_inputs_too_coarse_for_an_engine_are_refused_and_leave_nothing(
    study: Study, tmp_path: Path
) -> None:
    four = next(r for r in planning.plan(study) if r.method == "ptq" and r.bits == "W4A4")
    with pytest.raises(NotExact, match="4-bit inputs changes predictions; take OpenVINO"):
        deployable.export_run(study, four.key, "onnxruntime", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- which run, and where


def test_a_word_stands_for_a_run(study: Study, params: Params) -> None:
    planned = planning.plan(study)
    for run in planned:
        assert deployable.choose(study, run.key, "onnxruntime") == run
        assert deployable.choose(study, run.key[:12], "onnxruntime") == run
    fused = deployable.choose(study, MODEL, "openvino")
    assert fused.method == "operations"
    chosen = deployable.choose(study, MODEL, "onnxruntime")
    assert (chosen.method, chosen.bits, chosen.sampler) == ("gates", "W8A8", "random")
    # Where the study has that run, it is the same one.
    gates = Entry(method=("gates",), bits=("W8A8",))
    larger = params.model_copy(update={"grid": (*params.grid, gates)})
    assert chosen.key in {run.key for run in planning.plan(Study(larger))}


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("resnet50", r"'resnet50' is neither an architecture of this study \(squeezenet1_1\) nor"),
        ("abc", "'abc' is too short for a key; give 4 digits or more"),
        ("ffffffffff", "no run of this study has a key that begins with 'ffffffffff'; `fairq plan"),
    ],
)
def test_a_word_that_stands_for_nothing(small: Path, tmp_path: Path, word: str, sentence: str):
    asked = ("--engine", "onnxruntime", "--out", tmp_path / "out", "--params", small)
    answer = fairq("export", word, *asked)
    assert answer.exit_code == 2
    assert answer.stderr.startswith("model: ")
    with pytest.raises(BadInput, match=sentence):
        deployable.choose(Study(load_params(small)), word, "onnxruntime")
    assert not (tmp_path / "out").exists()


def test_a_word_that_stands_for_two(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [SimpleNamespace(key="abcd1"), SimpleNamespace(key="abcd2")]
    monkeypatch.setattr(planning, "plan", lambda _: two)
    with pytest.raises(BadInput, match=r"'abcd' begins several keys \(abcd1, abcd2\); give more"):
        deployable.choose(study, "abcd", "onnxruntime")
    assert deployable.choose(study, "abcd2", "onnxruntime") is two[1]


@pytest.mark.parametrize("method", ["qat", "fp32_finetuning", "dynamic"])
def test_what_cannot_ship_says_why(small: Path, study: Study, tmp_path: Path, method: str) -> None:
    run = next(r for r in planning.plan(study) if r.method == method)
    asked = ("--engine", "onnxruntime", "--out", tmp_path / "out", "--params", small)
    answer = fairq("export", run.key, *asked)
    if method == "dynamic":
        assert answer.exit_code == 1
        assert "dynamic ranges, one per sample, have no counterpart" in answer.stderr
    else:
        assert answer.exit_code == 2
        assert f"run {run.key}: {method} trains on after the FP32 checkpoint" in answer.stderr
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_trained_says_how_to_train_it(small: Path, tmp_path: Path) -> None:
    study = Study(load_params(small, {"execution.ledger": str(tmp_path / "ledger")}))
    with pytest.raises(Fault, match=r"no FP32 SqueezeNet 1.1 .*; run `fairq run .*--phase baselin"):
        deployable.export_run(study, MODEL, "onnxruntime", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_is_left_alone(study: Study, exported: Path, tmp_path: Path):
    file, other, own = tmp_path / "file", tmp_path / "other", tmp_path / "own"
    file.write_text("x")
    with pytest.raises(BadInput, match="file: this is a file; name a folder"):
        deployable.check_place(file)
    other.mkdir()
    deployable.check_place(other)  # empty
    (other / "README.md").write_text("mine")
    with pytest.raises(BadInput, match=r"other: holds README\.md and is no earlier export; name"):
        deployable.check_place(other)
    shutil.copytree(exported, own)
    deployable.check_place(own)
    (own / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput, match=r"own: holds thesis\.tex and is no earlier export; name"):
        deployable.export_run(study, MODEL, "onnxruntime", own)
    assert (own / "thesis.tex").read_text() == "mine"
    with pytest.raises(Fault, match=r"file/deep: cannot be made \(Not a directory\); name another"):
        deployable.export_run(study, MODEL, "onnxruntime", file / "deep")


def test_an_earlier_export_is_replaced_or_stays_whole(
    study: Study, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}

    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deployable, "page", stops)
        with pytest.raises(KeyboardInterrupt):
            deployable.export_run(study, MODEL, "onnxruntime", copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    really = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("disk is gone")
        return really(self, target)

    full = planning.plan(study, ("baseline",))[0]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(OSError, match="disk is gone"):
            deployable.export_run(study, full.key, "onnxruntime", copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    deployable.export_run(study, full.key, "onnxruntime", copied)
    assert {path.name for path in copied.iterdir()} == {"card.json", "README.md", "model.onnx"}
    assert card_of(copied)["run"]["key"] == full.key
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


def test_a_batch_size_is_for_files_that_have_one(small: Path, tmp_path: Path) -> None:
    asked = ("--out", tmp_path / "out", "--params", small)
    answer = fairq("export", MODEL, "--engine", "onnxruntime", "--batch", 4, *asked)
    assert answer.exit_code == 2
    assert "--batch: files for ONNX Runtime take batches of any size" in answer.stderr
    answer = fairq("export", MODEL, "--engine", "inductor", "--batch", 0, *asked)
    assert answer.exit_code == 2
    assert "--batch: 0 is no batch size; name 1 or more" in answer.stderr


# ---- predicting


WITHOUT = """
import sys
from fairq_utils.deploy import predict
deployed = predict.open_deployable(sys.argv[1], 1)
found = list(predict.classify(deployed, sys.argv[2:]))
assert [type(one).__name__ for one in found] == ["Prediction", "NoImage"], found
found = [m for m in sys.modules if m.split(".")[0] == "torch" or "fairq_utils.training.loop" in m]
print(found)
"""


def test_a_prediction_needs_no_pytorch(exported: Path, photographs: list[Path]) -> None:
    asked = [sys.executable, "-c", WITHOUT, str(exported), str(photographs[0]), "missing.png"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "[]\n"


def test_the_command_line_loads_no_pytorch_before_it_is_needed() -> None:
    asked = (
        "import sys, fairq_utils.cli as cli, fairq_utils.deploy.predict\n"
        "assert 'inductor' in cli.ENGINES and 'latency' in cli.BENCHMARKS\n"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, check=True)
    assert found.stdout == b"False\n"


def test_pictures_are_normalized_as_in_training(test_faces: FaceData) -> None:
    wanted = architectures.normalize(test_faces.images).numpy()
    found = predict.normalize(test_faces.images.numpy(), architectures.MEAN, architectures.STD)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)


def test_a_picture_of_the_right_size_is_not_touched(
    photographs: list[Path], test_faces: FaceData
) -> None:
    np.testing.assert_array_equal(predict.read_image(photographs[0], 32), test_faces.images[0])


def test_a_picture_is_turned_cut_and_averaged(tmp_path: Path) -> None:
    # 12 x 4: red, blue stripes one pixel wide, green. The middle square is stripes.
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, :4, 0], wide[:, 4:8:2, 2], wide[:, 8:, 1] = 255, 255, 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    middle = predict.read_image(tmp_path / "wide.png", 4)
    np.testing.assert_array_equal(middle, wide[:, 4:8].transpose(2, 0, 1))
    small = predict.read_image(tmp_path / "wide.png", 1)
    assert small[:2].max() == 0
    assert 110 <= small[2].item() <= 145  # the mean of the stripes, not one of them
    # A camera held sideways: what is stored is the picture turned by a quarter.
    upright = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        predict.read_image(tmp_path / "turned.png", 4), upright.transpose(2, 0, 1)
    )


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_kinds_of_pictures_become_colours(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new("RGB", (5, 5), "white").convert(mode).save(path)
    assert predict.read_image(path, 2).tolist() == [[[255, 255], [255, 255]]] * 3


def _sixteen(path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(path)


def _cut(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:4000])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "there is no such file; check its name"),
        (lambda path: path.write_text("x"), "is no image in a known format .*; save it as PNG or"),
        (lambda path: path.mkdir(), "this is a folder; name the images in it"),
        (os.mkfifo, "this is no regular file"),
        (_cut, r"cannot be decoded \(.*\); save it as PNG"),
        (_sixteen, r"more than 8 bits a channel \(mode I;16\); save it as PNG"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(
    tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    make(tmp_path / "face.png")
    with pytest.raises(predict.NoImage, match=rf"face\.png: .*{sentence}"):
        predict.read_image(tmp_path / "face.png", 8)


def test_the_others_are_still_answered(exported: Path, photographs: list[Path], tmp_path: Path):
    (tmp_path / "broken.png").write_text("x")
    images = [photographs[0], tmp_path / "broken.png", tmp_path / "gone.png", photographs[1]]
    answer = fairq("predict", exported, *images)
    assert answer.exit_code == 1
    said = answer.stderr.splitlines()
    assert [line.split(": ")[0] for line in said] == [str(images[1]), str(images[2])]
    lines = [line.split("  ") for line in answer.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(images[0]), str(images[3])]
    for _, label, last in lines:
        probability = float(last.removeprefix("smiling: "))
        assert label == ("smiling" if probability > 0.5 else "not smiling")


def test_answers_come_in_order_whatever_the_batch(
    exported: Path, photographs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed = predict.open_deployable(exported)
    whole = list(predict.classify(deployed, photographs[:9]))
    monkeypatch.setattr(predict, "BATCH", 2)
    parts = list(predict.classify(deployed, photographs[:9]))
    for a, b, path in zip(whole, parts, photographs, strict=False):
        assert isinstance(a, predict.Prediction)
        assert isinstance(b, predict.Prediction)
        assert a.image == b.image == path
        assert a.probability == pytest.approx(b.probability, abs=1e-6)
    assert list(predict.classify(deployed, [])) == []


def test_a_probability_is_the_softmax_of_the_logits(
    exported: Path, photographs: list[Path]
) -> None:
    deployed = predict.open_deployable(exported)

    def fixed(images: np.ndarray) -> np.ndarray:
        return np.tile(np.float32([1000.0, 1000.0 + math.log(3)]), (len(images), 1))

    fixed_model = dataclasses.replace(deployed.model, logits=fixed)
    asked = dataclasses.replace(deployed, model=fixed_model)
    (found,) = predict.classify(asked, photographs[:1])
    assert isinstance(found, predict.Prediction)
    assert found.label == "smiling"
    assert found.probability == pytest.approx(0.75, abs=1e-4)  # float32 near 1000


# ---- folders that cannot be trusted


def change(folder: Path, *keys: str, to: Any) -> None:
    """Another value on the card; ``...`` takes the key out."""
    card = card_of(folder)
    place = card
    for key in keys[:-1]:
        place = place[key]
    if to is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = to
    (folder / "card.json").write_text(json.dumps(card))


def _first(folder: Path) -> Path:
    return folder / ENGINES[card_of(folder)["engine"]["name"]].file


def _damage(folder: Path) -> None:
    data = bytearray(_first(folder).read_bytes())
    data[len(data) // 2] ^= 1
    _first(folder).write_bytes(data)


def _vouch_for_nonsense(folder: Path) -> None:
    path = _first(folder)
    path.write_bytes(b"nonsense")
    change(folder, "files", path.name, to={"bytes": 8, "sha256": card_terms.checksum(path)})


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda f: (f / "card.json").unlink(), r"card\.json: there is no such file; name a folder"),
        (lambda f: (f / "card.json").write_text("{"), r"card\.json: this card is no JSON .*export"),
        (lambda f: (f / "card.json").write_bytes(b"\xff"), r"card\.json: cannot be read .*export"),
        (lambda f: (f / "card.json").write_text("[]"), r"card\.json: .*format is None, and .* 1;"),
        (lambda f: change(f, "format", to=2), r"card\.json: this card's format is 2, .* reads 1;"),
        (lambda f: change(f, "input", to=...), r"card\.json: input\.channels is not there; export"),
        (
            lambda f: change(f, "input", "size", to="x"),
            r"card\.json: input\.size is 'x', not a number of pixels; export",
        ),
        (
            lambda f: change(f, "input", "size", to=7_000),
            r"card\.json: the card says images of 7000 pixels, and model\..* takes \(3, .*;",
        ),
        (
            lambda f: change(f, "input", "std", to=[0.2, 0.0, 0.2]),
            r"card\.json: input\.std is \[0\.2, 0\.0, 0\.2\], not three numbers from .*; export",
        ),
        (
            lambda f: change(f, "input", "mean", to=[0.5, float("nan"), 0.5]),
            r"card\.json: input\.mean is \[0\.5, nan, 0\.5\], not three numbers from .*; export",
        ),
        (
            lambda f: change(f, "task", "logit", to=2),
            r"card\.json: logit 2 is none of its 2 classes; export",
        ),
        (
            lambda f: change(f, "engine", "name", to="tvm"),
            r"card\.json: the engine 'tvm' is unknown; it is one of inductor, .*; export",
        ),
        (lambda f: change(f, "files", to={}), r"card\.json: this card does not list model\."),
        (lambda f: _first(f).unlink(), r"model\..*: there is no such file, and the card lists it;"),
        (_damage, r"model\..*: this file is not the one that the card lists; export"),
        (
            _vouch_for_nonsense,
            r"model\..*: .* cannot load this file \(.*\); export the model again",
        ),
        (
            lambda f: change(f, "engine", "version", to="0.9.1"),
            r"card\.json: .* written with .* 0\.9\.1 and was only tested there, and .* is installed"
            r"; install .* 0\.9, or export",
        ),
    ],
)
def test_a_folder_that_cannot_be_trusted(
    copied: Path, photographs: list[Path], harm: Callable[[Path], object], sentence: str
) -> None:
    harm(copied)
    with pytest.raises(predict.BadDeployable, match=sentence):
        predict.open_deployable(copied)
    answer = fairq("predict", copied, photographs[0])
    assert answer.exit_code == 2
    assert answer.stdout == ""
    assert len(answer.stderr.strip().splitlines()) == 1


def test_another_patch_of_the_engine_will_do(copied: Path) -> None:
    version = card_of(copied)["engine"]["version"].split(".")
    change(copied, "engine", "version", to=".".join([*version[:2], "999"]))
    assert predict.open_deployable(copied).terms.version.endswith(".999")


def test_another_opset_than_the_cards(copied: Path) -> None:
    if copied.joinpath("model.xml").exists():
        pytest.skip("OpenVINO's own file has no opset")
    change(copied, "engine", "onnx_opset", to=19)
    sentence = r"card\.json: the card says ONNX opset 19, but model\.onnx is written in opset 21"
    with pytest.raises(predict.BadDeployable, match=sentence):
        predict.open_deployable(copied)


def test_an_engine_that_is_not_there(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    answer = fairq("predict", copied, "x.png")
    assert answer.exit_code == 1
    assert "is not installed; pip install '" in answer.stderr


def test_the_instructions_of_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPUINFO", place)
    assert processor.instructions() == ()
    place.write_text("model name\t: Some\nflags\t\t: fpu avx512f avx2 hypervisor\n\nflags\t: x\n")
    assert processor.instructions() == ("avx2", "avx512f")
    place.write_text("Features\t: fp asimd i8mm\n")
    assert processor.instructions() == ("asimd", "fp", "i8mm")


@pytest.fixture(scope="module")
def compiled(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if COMPILER is None:
        pytest.skip("Inductor needs a C++ compiler")
    folder = tmp_path_factory.mktemp("inductor") / "out"
    asked = ("--engine", "inductor", "--batch", 3, "--out", folder, "--params", small)
    answer = fairq("export", MODEL, *asked)
    assert answer.exit_code == 0, answer.output
    yield folder


@pytest.mark.slow
def test_inductors_folder_answers_here_and_only_here(
    compiled: Path, photographs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of(compiled)
    assert card["engine"]["batch"] == 3
    assert card["quantization"]["kernels"]["integer"] == len(card["quantization"]["layers"])
    assert "batches of 3." in (compiled / "README.md").read_text()
    assert "--trust" in (compiled / "README.md").read_text()
    found = fairq("predict", compiled, *photographs[:4], "--trust")
    assert found.exit_code == 0, found.output
    assert len(found.stdout.splitlines()) == 4
    monkeypatch.setattr(processor, "instructions", lambda: ())
    answer = fairq("predict", compiled, photographs[0])
    assert answer.exit_code == 2
    assert "model.pt2: this file was compiled for another processor (" in answer.stderr
    assert "; export the model again (`fairq export`), here" in answer.stderr
    monkeypatch.undo()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(
        predict.BadDeployable, match=r"another processor .* than this one \(riscv64"
    ):
        predict.open_deployable(compiled)
