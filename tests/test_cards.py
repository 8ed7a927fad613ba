"""Cards: written for a model of one's own, and read with suspicion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from fairq_utils.cli import app
from fairq_utils.deploy import BadDeployable, engines, open_deployable, write_card
from fairq_utils.deploy.card_terms import CARD
from fairq_utils.deploy.predict import Prediction, classify
from fairq_utils.errors import BadInput, Fault

OWN = {"classes": ["no", "yes"], "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()


@pytest.fixture(scope="module")
def written(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    engines.write(model, "onnxruntime", folder, torch.randn(2, 3, 16, 16))
    assert write_card(folder, "onnxruntime", **OWN) == folder / CARD
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "face"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "face.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def predicted(folder: Path, *images: Path, options: tuple[str, ...] = ()) -> Any:
    return CliRunner().invoke(app, ["predict", str(folder), *map(str, images), *options])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_model_of_one_s_own_predicts(
    model: nn.Module, engine: str, image: Path, tmp_path: Path
) -> None:
    engines.write(model, engine, tmp_path, torch.randn(2, 3, 16, 16))
    with pytest.raises(BadDeployable, match=r"there is no such file; .* write_card|write_card"):
        open_deployable(tmp_path)
    write_card(tmp_path, engine, **OWN)
    (found,) = classify(open_deployable(tmp_path), [image])
    assert isinstance(found, Prediction)
    pixels = torch.from_numpy(np.asarray(Image.open(image)).copy()).permute(2, 0, 1) / 255
    expected = model(((pixels - 0.5) / 0.25)[None]).softmax(1)[0, 1].item()
    assert found.probability == pytest.approx(expected, abs=1e-4)
    assert (found.target, found.label) == ("yes", "yes" if expected > 0.5 else "no")
    answer = predicted(tmp_path, image)
    assert answer.exit_code == 0 and f"yes: {expected:.3f}"[:9] in answer.stdout


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("end", [nn.Identity(), nn.Flatten(0)])
def test_a_model_of_one_logit_predicts(
    model: nn.Module, end: nn.Module, engine: str, image: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    one = nn.Sequential(*model[:4], nn.Linear(4, 1), end).eval()
    engines.write(one, engine, tmp_path, torch.randn(2, 3, 16, 16))
    write_card(tmp_path, engine, **OWN)
    (found,) = classify(open_deployable(tmp_path), [image])
    assert isinstance(found, Prediction)
    pixels = torch.from_numpy(np.asarray(Image.open(image)).copy()).permute(2, 0, 1) / 255
    expected = one(((pixels - 0.5) / 0.25)[None]).sigmoid().item()
    assert found.probability == pytest.approx(expected, abs=1e-4)
    assert (found.target, found.label) == ("yes", "yes" if expected > 0.5 else "no")
    write_card(tmp_path, engine, **OWN, target=0)
    (other,) = classify(open_deployable(tmp_path), [image])
    assert isinstance(other, Prediction) and other.label == found.label
    assert other.probability == pytest.approx(1 - expected, abs=1e-4)
    with pytest.raises(BadInput, match=r"names 3 classes, and .* gives outputs of shape \(1,"):
        write_card(tmp_path, engine, **OWN | {"classes": list("abc")})


def test_one_output_that_may_be_a_probability_gets_no_card(
    model: nn.Module, tmp_path: Path
) -> None:
    ended = nn.Sequential(*model[:4], nn.Linear(4, 1), nn.Sigmoid()).eval()
    engines.write(ended, "onnxruntime", tmp_path, torch.randn(2, 3, 16, 16))
    with pytest.raises(BadInput, match="lies between 0 and 1 for noise of any size, as probab"):
        write_card(tmp_path, "onnxruntime", **OWN)
    assert not (tmp_path / CARD).exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": ["a", "b", "c"]}, r"names 3 classes, and model\.onnx gives .* \(1, 2\)"),
        ({"classes": ["a"]}, "task.classes is .*, not two names or more"),
        ({"classes": "no"}, r"task.classes is \['no'\], not two names or more"),
        ({"classes": ["a", "b\nc"]}, "task.classes is .*, not two names or more"),
        ({"classes": []}, "target: -1 is none of the 0 classes"),
        ({"classes": ["a", "a"]}, "names one twice"),
        ({"target": 2}, "target: 2 is none of the 2 classes"),
        ({"target": "yes"}, "target: 'yes' is none of the 2 classes"),
        ({"threads": 0}, "threads: 0 is no number of threads; name 1 or more"),
        ({"mean": (127, 127, 127)}, "input.mean is .*, not .* from -1 to 2, of pixels over 255"),
        ({"std": (58.4, 57.1, 57.4)}, "input.std is .*, not three numbers from 0.001 to 10"),
        ({"std": (1e-300, 1, 1)}, "input.std is .*, not three numbers from 0.001 to 10"),
        ({"std": (1, 1)}, "input.std is"),
        ({"mean": (float("nan"), 0, 0)}, "input.mean is"),
        ({"mean": "abc"}, "mean and std are not three numbers each"),
    ],
)
def test_a_card_that_cannot_be_is_not_written(
    folder: Path, options: dict[str, Any], sentence: str
) -> None:
    (folder / CARD).unlink()
    with pytest.raises(BadInput, match=sentence):
        write_card(folder, "onnxruntime", **OWN | options)
    assert not (folder / CARD).exists()


HUGE = int("9" * 400)
WRONG = [None, True, -1, 1.5, HUGE, 1e-300, float("inf"), float("nan"), "", "x" * 10_000,
         "\x1b[2J", "../../etc/passwd", [], [[]], [1, "a"], {}, {"a": {}}]  # fmt: skip
# Nothing that is predicted depends on these.
FREE = {("engine", "label"), ("engine", "batch"), ("engine", "processor", "name"),
        ("engine", "processor", "capability"), ("engine", "processor", "machine"),
        ("engine", "processor", "instructions")}  # fmt: skip


def places(card: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    keys = card if isinstance(card, dict) else range(len(card)) if isinstance(card, list) else ()
    for key in keys:
        yield (*at, key)
        yield from places(card[key], (*at, key))


def spoiled(card: Any, place: tuple[str | int, ...], value: Any) -> Any:
    new = json.loads(json.dumps(card))
    inner = new
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return new


def harmless(place: tuple[str | int, ...], value: Any) -> bool:
    """Whether a value can stand on a card: images get predictions by it, under printable names."""
    if place in FREE or place == ("engine", "onnx_opset"):
        return True
    if place[0] == "task":
        return value in ("\x1b[2J", "../../etc/passwd")
    return place[:2] == ("input", "mean") or (place[:2] == ("input", "std") and value == 1.5)


def test_a_wrong_value_of_any_key_is_one_sentence(folder: Path, image: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    for place in places(card):
        for value in WRONG:
            (folder / CARD).write_text(json.dumps(spoiled(card, place, value)))
            try:
                found = list(classify(open_deployable(folder), [image]))
            except BadDeployable as error:
                assert len(str(error)) < 1000 and "\x1b" not in str(error)
                assert str(error).startswith(str(folder)), (place, value)
                continue
            assert harmless(place, value), (place, value)
            assert isinstance(found[0], Prediction)
            assert "\x1b" not in found[0].line() and "\x1b" not in found[0].as_json()


def digits(folder: Path) -> None:
    text = (folder / CARD).read_text()
    (folder / CARD).write_text(text.replace('"size": 16', '"size": ' + "1" * 5000))


def linked_out(folder: Path) -> None:
    outside = folder.parent / "outside.onnx"
    (folder / "model.onnx").rename(outside)
    (folder / "model.onnx").symlink_to(outside)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda f: (f / CARD).write_text("[" * 100_000), "nested too deep"),
        (lambda f: (f / CARD).write_text('{"a":' * 100_000), "nested too deep"),
        (digits, "is no JSON .*4300 digits"),
        (lambda f: (f / CARD).write_text('{"format": 1, "format": 1}'), "the key 'format' twice"),
        (lambda f: (f / CARD).write_text(" " * 2**24 + "{}"), "has more than 16,777,216 bytes"),
        (lambda f: ((f / CARD).unlink(), (f / CARD).mkdir()), "this is no regular file"),
        (linked_out, r"model\.onnx: this is a link that leads out of the folder; copy"),
        (lambda f: (f / "model.onnx").unlink(), r"model\.onnx: there is no such file"),
    ],
)
def test_a_folder_of_ill_will_is_one_sentence(
    folder: Path, harm: Callable[[Path], object], sentence: str
) -> None:
    harm(folder)
    with pytest.raises(BadDeployable, match=sentence):
        open_deployable(folder)
    answer = predicted(folder, folder / "x.png")
    assert answer.exit_code == 2 and len(answer.stderr.splitlines()) == 1
    assert len(answer.stderr) < 1000


@pytest.mark.parametrize("name", ["../model.onnx", "/model.onnx", "a/model.onnx", "..", "."])
def test_files_of_a_card_stay_in_its_folder(folder: Path, name: str) -> None:
    card = json.loads((folder / CARD).read_text())
    card["files"][name] = card["files"]["model.onnx"]
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(BadDeployable, match="which is no name of a file in this folder"):
        open_deployable(folder)


def test_machine_code_is_run_for_those_who_trust_it(
    folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / "model.pt2").write_bytes((folder / "model.onnx").read_bytes())
    card["files"]["model.pt2"] = card["files"].pop("model.onnx")
    card["engine"] |= {"name": "inductor", "version": engines.installed("inductor")}
    (folder / CARD).write_text(json.dumps(card))

    def refuse(*asked: object) -> None:
        raise engines.NotRunning("model.pt2: is no package")

    monkeypatch.setattr("fairq_utils.deploy.predict.load", refuse)
    with pytest.raises(BadDeployable, match=r"model\.pt2: this file is machine code .* --trust"):
        open_deployable(folder)
    assert "give --trust" in predicted(folder, image).stderr
    assert "is no package" in predicted(folder, image, options=("--trust",)).stderr
    with pytest.raises(BadDeployable, match="is no package"):
        open_deployable(folder, trust=True)
    assert "--trust" in CliRunner().invoke(app, ["predict", "--help"]).stdout


def test_outputs_that_are_no_numbers_are_refused(folder: Path, image: Path) -> None:
    deployed = open_deployable(folder)
    nan = replace(deployed.model, logits=lambda images: np.full((len(images), 2), np.nan, "f4"))
    with pytest.raises(Fault, match=r"model\.onnx: gives infinite numbers or none at all"):
        list(classify(replace(deployed, model=nan), [image]))


def test_an_image_of_very_many_pixels_is_not_decoded(folder: Path, tmp_path: Path) -> None:
    Image.new("1", (13_000, 13_000)).save(tmp_path / "large.png")
    answer = predicted(folder, tmp_path / "large.png")
    assert answer.exit_code == 1
    assert "large.png: has 13000 x 13000 pixels, more than 64,000,000" in answer.stderr


def test_names_of_images_do_not_steer_the_terminal(folder: Path, image: Path) -> None:
    odd = folder / "\x1b[2J\n.png"
    shutil.copy(image, odd)
    answer = predicted(folder, odd, folder / "\x1b[2Jgone.png")
    assert "\x1b" not in answer.output and "\\x1b[2J\\n.png" in answer.stdout
    assert len(answer.stdout.splitlines()) == len(answer.stderr.splitlines()) == 1
