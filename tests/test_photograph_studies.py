"""Whole studies on small folders of photographs, and what is refused before they begin."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from fairq_utils.bench import photograph_folders
from fairq_utils.calibration import draw
from fairq_utils.cli import app
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.population import SPLITS
from fairq_utils.report import effects
from fairq_utils.study import cost, execution, planning, run_models
from fairq_utils.study.feasibility import check
from fairq_utils.study.params.data import Photographs
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import ParamsError
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.study import Study

ROOT = Path(__file__).resolve().parents[1]
STATIC = {
    "method": "ptq",
    "bits": ["W8A8", "W4A4"],
    "range": "mse",
    "sampler": ["random", "label_balanced"],
}
SMALL = {
    "data.size": 32,
    "training.seeds": [0],
    "training.pretrained": False,
    "training.models": {"squeezenet1_1": {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16}},
    "grid": [
        STATIC,
        {"method": "dynamic", "bits": "W8A8"},
        {"method": "qat", "bits": "W4A4"},
        {**STATIC, "sampler": "matched"},
        {"method": "ranges_worst", "bits": ["W8A8", "W4A4"]},
    ],
    "quantization.tuning": {"epochs": 1, "images": 64},
    "quantization.calibration_images": 32,
    "quantization.calibration_seeds": [0],
    "analysis.replicates": 200,
}
PEOPLE = {
    "celeba": (16, {}, {"gender": ("female", "male"), "age": ("old", "young")}),
    "utkface": (
        20,
        {"data.held_out": {"calibration": 0.3, "validation": 0.1, "test": 0.2}},
        {
            "gender": ("female", "male"),
            "age": ("old", "young"),
            "race": ("white", "black", "asian", "indian", "others"),
        },
    ),
    "fairface": (2, {"data.held_out": {"calibration": 0.4, "validation": 0.1}}, None),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for name, (count, _, _) in PEOPLE.items():
        getattr(photograph_folders, name)(root / name, count)
    return root


def small(name: str, folders: Path, **overrides: Any) -> Study:
    settings = {
        **SMALL,
        **PEOPLE[name][1],
        "data.root": str(folders / name),
        "execution.ledger": str(folders / "ledger"),
        "execution.cache": str(folders / "cache"),
        "execution.results": str(folders / "results"),
        "execution.threads": 1,
    }
    return Study(load_params(ROOT / "params" / f"{name}.yaml", {**settings, **overrides}))


def runs_of(study: Study) -> list[RunRecord]:
    return [study.ledger.read(run.key) for run in planning.plan(study)]


@pytest.mark.parametrize("name", PEOPLE)
def test_a_study_runs_on_each_collection(name: str, folders: Path) -> None:
    study = small(name, folders)
    execution.execute(study)
    records = runs_of(study)
    assert {r.run.method for r in records} >= {"fp32", "ptq", "dynamic", "qat", "ranges_worst"}
    data = study.faces
    test = data.subset("test")
    known = PEOPLE[name][2]
    if known is not None:
        assert study.values == known
    for record in records:
        assert record.attributes == tuple(data.groups.columns)
        assert record.counts.sum() == len(test)
        assert len(record.groups) == np.prod([len(v) for v in study.values.values()])
    # The counts are those of the pictures: one group, by hand.
    attributes = list(study.params.analysis.attributes)
    by_group = effects.by_group(records, study.params)
    fp32 = by_group[by_group.method == "fp32"]
    baseline = next(r for r in records if r.run.method == "fp32")
    right = (baseline.scores > 0) == (test.target == 1)
    cells = test.groups[attributes].astype(str).agg(" ".join, axis=1).to_numpy()
    for row in fp32.itertuples():
        inside = cells == row.group.replace("|", " ")
        assert row.images == inside.sum()
        assert row.compared == pytest.approx(right[inside].mean())


def test_a_study_runs_on_a_folder_with_a_table(tmp_path: Path) -> None:
    root = photograph_folders.folder(tmp_path / "faces", 8, "split")
    own = {"data.name": "folder", "data.target": "smiling", "data.held_out": None}
    settings = {
        "data.groups": {"sex": "gender", "age": "age"},
        "data.root": str(root),
        "grid": [{"method": ["ptq", "ranges_worst"], "bits": "W8A8"}],
        "analysis.attributes": ["sex", "age"],
        "execution.ledger": str(tmp_path / "ledger"),
        "execution.cache": str(tmp_path / "cache"),
        "execution.results": str(tmp_path / "results"),
    }
    study = small("utkface", tmp_path, **own, **settings)
    assert cost.counts(study.params) == dict.fromkeys(SPLITS, 64)
    execution.execute(study)
    records = runs_of(study)
    assert {record.run.method for record in records} == {"fp32", "ptq", "ranges_worst"}
    assert study.values == {"sex": ("man", "woman"), "age": ("old", "young")}
    assert study.classes == ("not smiling", "smiling")
    test = study.faces.subset("test")
    labels = pd.read_csv(root / "labels.csv").query("split == 'test'")
    assert test.target.sum() == labels.smiling.sum() == 32
    for record in records:
        assert record.counts.sum() == 64
        assert record.groups == ("man|old", "man|young", "woman|old", "woman|young")


def test_the_command_line_runs_a_study_and_goes_on_with_it(folders: Path, tmp_path: Path) -> None:
    arguments = ["run", "--params", str(ROOT / "params" / "celeba.yaml")]
    settings = {
        **SMALL,
        "data.root": str(folders / "celeba"),
        "execution.ledger": str(tmp_path / "ledger"),
        "execution.cache": str(folders / "cache"),
        "execution.results": str(tmp_path / "results"),
        "grid": [STATIC],
    }
    for key, value in settings.items():
        arguments += ["--set", f"{key}={value}".replace("True", "true").replace("False", "false")]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert list((tmp_path / "results").glob("celeba-*/baseline_results.csv"))
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert "runs are in the ledger" in again.stderr


def test_a_run_is_named_by_who_is_in_the_pictures_not_by_their_folder(
    folders: Path, tmp_path: Path
) -> None:
    here = small("celeba", folders).params
    shutil.copytree(folders / "celeba", tmp_path / "celeba")
    there = here.model_copy(
        update={"data": here.data.model_copy(update={"root": str(tmp_path / "celeba")})}
    )
    assert [run.key for run in planning.plan(Study(there))] == [
        run.key for run in planning.plan(Study(here))
    ]
    labels = tmp_path / "celeba" / "list_attr_celeba.txt"
    lines = labels.read_text().splitlines()
    rows = Study(here).listing
    changed = Path(str(rows.files[np.flatnonzero(rows.split == "calibration")[0]])).name
    at = next(i for i, line in enumerate(lines) if line.startswith(changed))
    smiling = lines[1].split().index("Smiling") + 1
    words = lines[at].split()
    words[smiling] = "-1" if words[smiling] == "1" else "1"
    lines[at] = " ".join(words)
    shutil.copytree(tmp_path / "celeba", tmp_path / "other")
    (tmp_path / "other" / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    other = here.model_copy(
        update={"data": here.data.model_copy(update={"root": str(tmp_path / "other")})}
    )
    for mine, its in zip(planning.plan(Study(here)), planning.plan(Study(other)), strict=True):
        # Only runs that look at calibration pictures depend on what these show.
        assert (mine.key == its.key) == (mine.sampler is None)


def test_baselines_are_found_behind_their_quantized_runs(folders: Path) -> None:
    planned = planning.plan(small("celeba", folders))
    fp32 = {run.key for run in planned if run.method == "fp32"}
    assert {planning.baseline_of(run).key for run in planned} == fp32


def test_matched_calibration_is_in_the_proportions_of_training(folders: Path) -> None:
    study = small("utkface", folders)
    attributes = list(study.params.analysis.attributes)
    _, train = study.people("train")
    wanted = train[attributes].astype(str).agg(" ".join, axis=1).value_counts(normalize=True)
    assert study.shares(attributes, train) == pytest.approx(wanted.to_dict())
    record = next(r for r in runs_of_after(study) if r.run.sampler == "matched")
    pool = study.faces.subset("calibration")
    model = run_models.trained(study, record.run)
    rows = run_models.calibration_rows(study, record.run, pool, model)
    expected = draw(
        "matched",
        pool.groups,
        pool.target,
        32,
        seed=0,
        attributes=attributes,
        population=wanted.to_dict(),
    )
    assert rows.tolist() == expected.tolist()


def runs_of_after(study: Study) -> list[RunRecord]:
    execution.execute(study)
    return runs_of(study)


def test_what_decides_a_run_is_said_in_numbers(folders: Path) -> None:
    study = small("celeba", folders)
    found = study.described(("train", "test"))
    assert found["images"] == {"train": 128, "test": 128}
    assert "root" not in found
    assert isinstance(study.params.data, Photographs)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("celeba", {"analysis.attributes": ["gender", "race"]}, "'race' is no group of celeba"),
        (
            "utkface",
            {"analysis.attributes": ["age", "race"]},
            "'age' is what the target is made of",
        ),
        (
            "celeba",
            {"quantization.calibration_images": 9999},
            "quantization.calibration_images: 9999 images are asked for, but the split calibration",
        ),
        (
            "celeba",
            {"quantization.tuning": {"images": 9999}},
            "quantization.tuning.images: 9999 images are asked for, but the split train",
        ),
        ("celeba", {"data.images": {"test": 2}}, "none of 2 test images shows the group"),
        ("celeba", {"data.images": {"test": 9999}}, r"^data.images.test: 9999 images are asked"),
        ("celeba", {"data.target": "Smile"}, r"^data.target: 'Smile' is "),
        (
            "utkface",
            {
                "quantization.calibration_images": 8,
                "grid": [{"method": "layers_worst", "bits": "W8A8"}],
            },
            "8 images drawn at random .seed 0. show nobody of the group",
        ),
    ],
)
def test_what_the_people_cannot_serve_is_refused_before_pictures_are_read(
    name: str, overrides: dict[str, Any], said: str, folders: Path, tmp_path: Path
) -> None:
    study = small(name, folders, **{**overrides, "execution.cache": str(tmp_path / "cache")})
    with pytest.raises(ParamsError, match=said):
        check(study)
    assert not (tmp_path / "cache").exists()


def test_celeba_has_enough_people_for_its_profile() -> None:
    """Every group of the calibration pool, as the published counts expect it, can be drawn from."""
    params = load_params(ROOT / "params" / "celeba.yaml")
    assert isinstance(params.data, Photographs)
    assert params.data.held_out is not None
    published = COLLECTIONS["celeba"].published
    assert published is not None
    of_group: dict[str, float] = {}
    for cell, images in published.joint.items():
        group = cell.rsplit("|", 1)[0]
        of_group[group] = of_group.get(group, 0) + images / published.images
    valid = published.splits["calibration", "validation"]
    pool = valid * params.data.held_out["calibration"]
    fewest = binom.ppf(1e-6, round(pool), min(of_group.values()))
    # Which asks one group for all of them.
    assert any("worst_group" in entry.sampler for entry in params.grid)
    assert fewest >= params.quantization.calibration_images


def test_dials_need_rendered_people(folders: Path) -> None:
    with pytest.raises(ParamsError, match="dials are turned in rendered people"):
        small("celeba", folders, **{"dials.models": ["squeezenet1_1"]})


def damaged(folders: Path, to: Path, split: str, keep: int) -> Path:
    """CelebA with all but some pictures of a split emptied."""
    shutil.copytree(folders / "celeba", to)
    found = small("celeba", folders).listing
    rows = np.flatnonzero(found.split == split)[keep:]
    for row in rows:
        (to / str(found.files[row])).write_bytes(b"")
    return to


@pytest.mark.parametrize(
    ("split", "keep", "said"),
    [
        ("test", 0, "has no picture in the split test"),
        ("test", 2, r"none of 2 test images shows the group .* \(126 pictures or labels"),
        ("train", 10, "64 images are asked for, but the split train of celeba holds 10"),
    ],
)
def test_what_is_left_after_damage_is_checked_again(
    split: str, keep: int, said: str, folders: Path, tmp_path: Path
) -> None:
    root = damaged(folders, tmp_path / "celeba", split, keep)
    overrides = {"data.root": str(root), "data.max_bad": 400}
    study = small("celeba", folders, **overrides)
    check(study)  # labels are there
    with pytest.raises(ParamsError, match=said):
        execution.execute(study)
    assert not list((folders / "ledger").glob("**/*.tmp"))


def test_what_is_left_out_is_said(folders: Path, tmp_path: Path) -> None:
    root = damaged(folders, tmp_path / "celeba", "test", 127)
    stream = io.StringIO()
    study = small("celeba", folders, **{"data.root": str(root), "data.max_bad": 1})
    execution.execute(study, stream=stream)
    assert (
        "data: 1 pictures or labels were left out, such as img_align_celeba/" in stream.getvalue()
    )
    assert all(r.counts.sum() == 127 for r in runs_of(study))
