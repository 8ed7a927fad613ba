"""A model of photographs as a folder that ships: what its card and its answers call things."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fairq_utils.bench import photograph_folders
from fairq_utils.cli import app
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.deploy import engines, model_card
from fairq_utils.report import measuring
from fairq_utils.report.chapter import Chapter
from fairq_utils.study import execution
from fairq_utils.study.params.file import load_params
from fairq_utils.study.study import Study

ROOT = Path(__file__).resolve().parents[1]
MODEL = "squeezenet1_1"
SMALL = {
    "data.size": 32,
    "data.held_out": {"calibration": 0.3, "validation": 0.1, "test": 0.3},
    "training.seeds": [0],
    "training.pretrained": False,
    "training.models": {MODEL: {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16}},
    "quantization.calibration_images": 16,
    "grid": [{"method": "ptq", "bits": "W8A8", "sampler": ["random", "label_balanced"]}],
    "analysis.replicates": 100,
    "execution.threads": 1,
}
FOREIGN = ("smil", "rendered", "human model", "Apache")  # words for another model's card


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photographs")


@pytest.fixture(scope="module")
def settings(place: Path) -> dict[str, Any]:
    return SMALL | {
        "data.root": str(photograph_folders.utkface(place / "faces", 10)),
        "execution.ledger": str(place / "ledger"),
        "execution.cache": str(place / "cache"),
        "execution.results": str(place / "results"),
    }


@pytest.fixture(scope="module")
def study(settings: dict[str, Any]) -> Study:
    return Study(load_params(ROOT / "params" / "utkface.yaml", settings))


@pytest.fixture(scope="module")
def trained(study: Study) -> Study:
    execution.execute(study, ("baseline",))
    return study


def fairq(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(place: Path, settings: dict[str, Any], trained: Study) -> Path:
    """A folder that the command line wrote."""
    try:
        engines.installed("onnxruntime")
    except engines.NotInstalled as error:
        pytest.skip(str(error))
    asked = ["--engine", "onnxruntime", "--params", ROOT / "params" / "utkface.yaml"]
    for key, value in settings.items():
        asked += ["--set", f"{key}={json.dumps(value)}"]
    answer = fairq("export", MODEL, "--out", place / "out", *asked)
    assert answer.exit_code == 0, answer.output
    return place / "out"


def test_its_card_is_about_these_photographs(exported: Path, study: Study) -> None:
    card = json.loads((exported / "card.json").read_text())
    data = study.faces
    test = data.subset("test")
    assert study.params.data.target == "young"  # type: ignore[union-attr]
    assert card["task"] == {"target": "young", "classes": ["old", "young"], "logit": 1}
    assert card["data"]["images"] == {
        split: int((data.split == split).sum()) for split in ("train", "test")
    }
    assert 0 < sum(card["data"]["images"].values()) < len(data)
    assert card["data"]["share_positive"] == pytest.approx(test.target.mean())
    assert "non-commercial" in card["licence"]
    assert "UTKFace" in card["data"]["source"]
    measured = card["measured"]
    assert set(measured["groups"]) == {"gender", "race", "gender x race"}
    indian = (test.groups["race"] == "indian").to_numpy()
    found = measured["groups"]["race"]["indian"]
    assert (found["images"], found["positive"]) == (indian.sum(), test.target[indian].sum())


def test_its_page_says_what_it_may_be_used_for(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    assert "which it is, *old* or *young*: two logits" in text
    assert "of the latter young." in text
    assert "| Group | Images | Young |" in text
    assert "non-commercial research only" in text
    assert "ship it in no product. Cite Zhang, Song and Qi (2017)" in text
    assert "a network estimated age, gender and race" in text
    assert "Young is below 40 years" in text
    assert "03_photographs" in text
    for word in FOREIGN:
        assert word not in text
        assert word not in (exported / "card.json").read_text()


def test_its_answers_are_about_age(exported: Path, place: Path) -> None:
    picture = sorted((place / "faces").rglob("*.jpg"))[0]
    plain = fairq("predict", exported, picture)
    assert plain.exit_code == 0, plain.output
    path, label, last = plain.stdout.strip().split("  ")
    assert path == str(picture)
    probability = float(last.removeprefix("young: "))
    assert label == ("young" if probability > 0.5 else "old")
    answer = fairq("predict", exported, picture, "--json")
    found = json.loads(answer.stdout)
    assert found.keys() == {"image", "class", "target", "probability"}
    assert (found["class"], found["target"]) == (label, "young")
    assert found["probability"] == pytest.approx(probability, abs=1e-4)


def test_null_bands_say_whom_they_count(trained: Study) -> None:
    found = measuring.null_bands(Chapter(trained))
    assert dict(zip(found.rate, found.among, strict=True)) == {
        "accuracy": "everybody",
        "selection_rate": "everybody",
        "true_positive_rate": "those labelled young",
        "false_positive_rate": "those labelled old",
    }


@pytest.mark.parametrize("name", COLLECTIONS)
def test_every_collection_has_limits_of_its_own(name: str, tmp_path: Path) -> None:
    folder = getattr(photograph_folders, name)(tmp_path / name, 1)
    changed = {"data.root": str(folder), "data.max_bad": 0}
    if name == "celeba":
        changed |= {"data.target": "Wearing_Hat"}
    if name == "folder":
        own = {"target": "smiling", "groups": {"sex": "gender"}, "held_out": {"test": 0.3}}
        changed |= {f"data.{key}": value for key, value in {"name": name, **own}.items()}
    file = f"{name}.yaml" if COLLECTIONS[name].published else "utkface.yaml"
    study = Study(load_params(ROOT / "params" / file, changed))
    text = "\n".join(model_card.limits(study))
    assert COLLECTIONS[name].title in text
    assert COLLECTIONS[name].labelled in text
    assert "ImageNet" in text  # these studies begin from its weights
    assert ("Young is below 40" in text) == (name in ("utkface", "fairface"))
    assert ("in no product" in text) == (name in ("celeba", "utkface"))
    assert ("Cite " in text) == (name != "folder")
    assert ("CC BY 4.0" in model_card.licence(study.params, "X")) == (name == "fairface")
    assert "X" not in model_card.licence(study.params, "X")
    if name == "celeba":
        assert study.classes == ("no hat", "hat")
    for word in FOREIGN:
        assert word not in text or (name, word) == ("folder", "smil")


def test_rendered_people_keep_theirs() -> None:
    study = Study(load_params(ROOT / "params" / "smoke.yaml"))
    text = "\n".join(model_card.limits(study))
    assert "are rendered" in text
    assert "ImageNet" not in text
    assert model_card.licence(study.params, "Apache-2.0") == "Apache-2.0"
    assert study.classes == ("not smiling", "smiling")
