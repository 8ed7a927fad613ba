"""A folder of one's own with a table of labels: read as it says, split as it says or by hash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fairq_utils.bench import photograph_folders
from fairq_utils.data import load, splits
from fairq_utils.data.listing import Listing
from fairq_utils.data.photographs.reading import listing
from fairq_utils.data.vouch import vouch
from fairq_utils.errors import BadInput


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photograph_folders.folder(tmp_path_factory.mktemp("folder"), 1, "split")


def table(root: Path, found: Listing) -> pd.DataFrame:
    return pd.read_csv(root / "labels.csv", dtype=str).set_index("file").loc[found.files]


def test_a_table_is_read_as_it_says(root: Path) -> None:
    found = listing("folder", root, target="smiling", groups={"sex": "gender", "age": "age"})
    rows = table(root, found)
    assert len(found) == 32 and not found.findings
    assert found.target.tolist() == rows.smiling.astype(int).tolist()
    assert found.groups.sex.tolist() == rows.gender.tolist()
    assert found.groups.sex.cat.categories.tolist() == ["man", "woman"]
    assert found.split.tolist() == rows.split.tolist()
    assert found.meta["classes"] == ("not smiling", "smiling")
    assert found.read(3) == (root / str(found.files[3])).read_bytes()
    assert (np.diff(splits.positions(found.files.tolist())) > 0).all()


def test_what_is_not_named_are_all_columns_and_the_second_is_the_target(root: Path) -> None:
    found = listing("folder", root)
    assert found.meta["target"] == "smiling"
    assert found.meta["groups"] == {"gender": "gender", "age": "age"}
    assert (
        listing("folder", root, target="smiling", groups=["gender", "age"]).digest == found.digest
    )


def test_a_value_can_be_the_target(root: Path) -> None:
    found = listing("folder", root, target="age=old", groups=["gender", "smiling"])
    assert (found.target == (table(root, found).age == "old")).all()
    assert found.meta["classes"] == ("not old", "old")
    assert found.groups.smiling.cat.categories.tolist() == ["0", "1"]


def test_a_table_without_splits_is_carved_by_hash(tmp_path: Path) -> None:
    root = photograph_folders.folder(tmp_path, 2)
    found = listing("folder", root, held_out={"test": 0.5})
    assert found.meta["held_out"] == {"calibration": 0.05, "validation": 0.05, "test": 0.5}
    place = splits.positions(found.keys.tolist())
    expected = np.select(
        [place < 0.05, place < 0.1, place < 0.6], ["calibration", "validation", "test"], "train"
    )
    np.testing.assert_array_equal(found.split, expected)


def test_splits_that_nobody_is_in_are_carved_out_of_training(tmp_path: Path) -> None:
    root = photograph_folders.folder(tmp_path, 4, "split")
    text = (root / "labels.csv").read_text()
    for split in ("calibration", "validation"):
        text = text.replace(split, "train")
    (root / "labels.csv").write_text(text)
    found = listing("folder", root, held_out={"calibration": 0.3, "validation": 0.2})
    own = table(root, found).split
    np.testing.assert_array_equal(found.split == "test", own == "test")
    place = splits.positions(found.keys.tolist())
    np.testing.assert_array_equal(found.split == "calibration", (own == "train") & (place < 0.3))
    assert found.meta["held_out"] == {"calibration": 0.3, "validation": 0.2}


def test_numbers_in_names_of_groups_are_in_order(tmp_path: Path) -> None:
    root = photograph_folders.folder(tmp_path, 1)
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(text.replace("old", "10-19").replace("young", "3-9"))
    assert listing("folder", root).groups.age.cat.categories.tolist() == ["3-9", "10-19"]


def test_damage_and_duplicates_are_found_as_in_any_collection(tmp_path: Path) -> None:
    root = photograph_folders.folder(tmp_path / "faces", 1, "split")
    rows = table(root, listing("folder", root))
    train, test = (rows.index[rows.split == split] for split in ("train", "test"))
    (root / train[0]).write_bytes((root / train[0]).read_bytes()[:200])
    labels = rows.drop(columns="split").agg(tuple, axis=1)
    copy, of = next((a, b) for a in train[1:] for b in test if labels[a] == labels[b])
    (root / copy).write_bytes((root / of).read_bytes())
    options = {"root": root, "size": 16, "cache": tmp_path / "cache"}
    with pytest.raises(BadInput, match=f"2 images or labels of .*{train[0]}: cannot be decoded"):
        load("folder", **options)
    data = load("folder", max_bad=2, **options)
    assert len(data) == 30
    problems = {one["place"]: one["problem"] for one in data.meta["findings"]}
    assert problems[copy].startswith(f"is the same image as {of}, which is in test")


def test_of_one_image_with_contradicting_labels_neither_row_is_used(tmp_path: Path) -> None:
    root = photograph_folders.folder(tmp_path / "faces", 1, "split")
    rows = table(root, listing("folder", root))
    labels = rows.drop(columns="split").agg(tuple, axis=1)
    train = rows.index[rows.split == "train"]
    copy, of = next((a, b) for a in train for b in train if labels[a] != labels[b])
    (root / copy).write_bytes((root / of).read_bytes())
    options = {"root": root, "size": 16, "cache": tmp_path / "cache"}
    with pytest.raises(BadInput, match=r"2 images or labels .* with other labels; .* with other"):
        load("folder", **options)
    report = vouch(listing("folder", root))
    assert not report.ok and report.lost == 2
    data = load("folder", max_bad=report.lost, **options)
    assert len(data) == len(rows) - 2
    assert {one["place"] for one in data.meta["findings"]} == {copy, of}


def test_other_files_are_told_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    root = photograph_folders.folder(tmp_path / "faces", 1)
    (root / "notes.txt").write_text("mine")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "1.jpg").touch()
    (root / "again").symlink_to(root / "man")
    found = listing("folder", root)
    assert [(f.place, f.problem, f.counts) for f in found.findings] == [
        ("again", "is a link to a folder, which is not followed", False),
        ("notes.txt", "is no image file", False),
    ]


PLUGIN = """
import json
import subprocess
import sys
from pathlib import Path
from fairq_utils.data.photographs import folder
from fairq_utils.data.photographs.registry import collection


def listing(root: Path, *, target, groups, held_out, year="2024"):
    return folder.listing(root / year, target=target, groups=groups, held_out=held_out)


collection(
    "yearly", title="Yearly", listing=listing, groups={}, shares=dict, source=folder.source,
    labelled="nobody", passing_on="nothing", options={"year": ("2023", "2024")},
)
"""


def test_a_collection_of_somebody_else_s_is_one_statement(tmp_path: Path) -> None:
    photograph_folders.folder(tmp_path / "faces" / "2023", 1)
    (tmp_path / "mine.py").write_text(PLUGIN)
    study = {
        "name": "mine",
        "plugins": ["mine"],
        "data": {"name": "yearly", "root": "faces", "size": 32, "year": 2023},
        "training": {"models": {"squeezenet1_1": {"epochs": 1, "learning_rate": 0.1}}},
        "grid": [{"method": "ptq", "bits": "W8A8"}],
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(study))
    asked = (
        "import sys; from fairq_utils.study.params.file import load_params\n"
        "from fairq_utils.study import Study\n"
        "print(len(Study(load_params(sys.argv[1])).listing))\n"
        "load_params(sys.argv[1], {'data.year': 2022})"
    )
    command = [sys.executable, "-c", asked, str(tmp_path / "mine.yaml")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout == "32\n", found.stderr
    assert found.stderr.endswith("data.year: '2022' is not one of 2023, 2024\n")
