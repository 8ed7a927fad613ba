"""``fairq data check`` and ``describe`` over folders as the collections come."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from fairq_utils.bench import photograph_folders as folders
from fairq_utils.cli import app
from fairq_utils.data.photographs.reading import listing
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.photographs.terms import Published
from fairq_utils.metrics.prevalence import base_rates


def data(command: str, name: str, root: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["data", command, name, "--root", str(root), *options])


@pytest.fixture
def celeba(tmp_path: Path) -> Iterator[Path]:
    """A CelebA of 24 images, published as such."""
    cells = [f"{g}|{a}|{y}" for g in ("female", "male") for a in ("old", "young") for y in "01"]
    small = Published(
        images=24,
        source="this test",
        splits={("train",): 8, ("calibration", "validation"): 8, ("test",): 8},
        joint=dict.fromkeys(cells, 3),
        attributes={"gender": "Male", "age": "Young"},
        target="Smiling",
        size=(178, 218),
    )
    entry = replace(COLLECTIONS["celeba"], published=small)
    with COLLECTIONS.as_shipped(celeba=entry):
        yield folders.celeba(tmp_path / "faces", n=1)


def test_a_sound_folder(celeba: Path) -> None:
    answer = data("check", "celeba", celeba)
    assert answer.exit_code == 0, answer.output
    assert answer.output.endswith("Published counts: this test\nsound\n")
    assert "celeba · 24 of 24 images" in answer.stderr
    assert "gender|age|Smiling" in answer.output
    assert data("check", "celeba", celeba, "--target", "Young", "--no-pixels").exit_code == 0


def test_damage_and_loss(celeba: Path, tmp_path: Path) -> None:
    images = celeba / "img_align_celeba"
    whole = (images / "000001.jpg").read_bytes()
    (images / "000001.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "000002.jpg").unlink()
    (images / "000016.jpg").write_bytes((images / "000024.jpg").read_bytes())
    found = tmp_path / "findings.csv"
    answer = data("check", "celeba", celeba, "--findings", str(found))
    assert answer.exit_code == 1
    assert answer.output.endswith("not sound: see NO above\n")
    findings = pd.read_csv(found)
    assert sorted(findings.kind) == ["duplicate", "missing", "unreadable"]
    assert findings.counts.all()
    for place, problem in zip(findings.place, findings.problem, strict=True):
        assert f"{place}: {problem}" in answer.output
    assert data("check", "celeba", celeba, "--max-bad", "3").exit_code == 0
    assert data("check", "celeba", celeba, "--max-bad", "2").exit_code == 1
    # The half image is one to those who do not look.
    blind = data("check", "celeba", celeba, "--max-bad", "2", "--no-pixels")
    assert blind.exit_code == 0, blind.output
    assert "(not looked at)" in blind.output


def test_a_part_of_a_collection(tmp_path: Path) -> None:
    root = folders.utkface(tmp_path / "faces", n=1, layout="chips")
    answer = data("check", "utkface", root)
    assert answer.exit_code == 1
    assert "23708" in answer.output
    part = data("check", "utkface", root, "--part")
    assert part.exit_code == 0, part.output
    assert "Published counts" not in part.output


def test_images_that_are_trained_on_and_tested_on(tmp_path: Path) -> None:
    root = folders.fairface(tmp_path / "faces")
    assert data("check", "fairface", root, "--part").exit_code == 0
    for i in (2, 5, 9):
        (root / f"val/{i}.jpg").write_bytes((root / f"train/{i}.jpg").read_bytes())
    answer = data("check", "fairface", root, "--part")
    assert answer.exit_code == 1
    assert (
        "train/5.jpg: is the same image as val/5.jpg, which is in test and this one in train"
    ) in answer.output
    assert re.search(r"duplicate +the same image twice +3\b", answer.output)


@pytest.mark.parametrize("command", ["check", "describe"])
def test_input_that_cannot_be_used(command: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, root, options, what in (
        ("celeba", empty, (), "list_attr_celeba.txt"),
        ("utkface", tmp_path / "nowhere", (), "there is no such folder"),
        ("celeba", empty, ("--set", "margin=0.25"), "margin: celeba has no options of its own"),
    ):
        answer = data(command, name, root, *options)
        assert answer.exit_code == 2, answer.output
        assert what in answer.stderr
        assert answer.stderr.count("\n") == 1
    answer = data(command, "celebra", empty)
    assert answer.exit_code == 2 and "did you mean 'celeba'?" in answer.stderr


def test_a_folder_of_one_s_own(tmp_path: Path) -> None:
    root = folders.folder(tmp_path / "faces", n=1)
    answer = data("check", "folder", root)
    assert answer.exit_code == 0, answer.output
    assert "Published counts" not in answer.output and "gender=woman" in answer.output
    answer = data("describe", "folder", root, "--target", "age=old", "--groups", "sex=gender")
    assert answer.exit_code == 0, answer.output
    assert answer.output.startswith("folder: age=old, base rates in percent")
    answer = data("get", "folder", root, "--accept-licence")
    assert answer.exit_code == 2
    assert "there is nothing to fetch" in answer.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--target", "gender"), "--target: "),
        (("--target", "smyling"), "--target: labels.csv has no such column"),
        (("--groups", "hair"), "--groups.hair: labels.csv has no such column"),
        (("--set", "margin=1.25"), "--set margin: folder has no options of its own"),
    ],
)
@pytest.mark.parametrize("command", ["check", "describe"])
def test_what_is_asked_is_named_as_it_is_given(
    command: str, options: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    answer = data(command, "folder", folders.folder(tmp_path / "faces", n=1), *options)
    assert answer.exit_code == 2
    assert answer.stderr.startswith(sentence) and answer.stderr.count("\n") == 1


def test_names_of_files_do_not_steer_the_terminal(tmp_path: Path) -> None:
    root = folders.folder(tmp_path / "faces", n=1)
    (root / "\x1b[2J\n.jpg").write_bytes(b"")
    (root / os.fsdecode(b"\xff.txt")).write_bytes(b"")
    answer = data("check", "folder", root, "--findings", str(tmp_path / "found.csv"))
    assert answer.exit_code == 1
    assert "\\x1b[2J\\n.jpg: has no row" in answer.output and "\\udcff.txt" in answer.output
    assert "\x1b" not in answer.output
    assert len(pd.read_csv(tmp_path / "found.csv")) == 2


def test_an_option_of_a_collection_is_set(tmp_path: Path) -> None:
    root = folders.fairface(tmp_path / "faces", layout="margins", bands=1)
    answer = data("check", "fairface", root, "--part")
    assert answer.exit_code == 2 and "both margins are there" in answer.stderr
    answer = data("check", "fairface", root, "--part", "--set", "margin=1.25")
    assert "fairface · 28 of 28 images" in answer.stderr


def test_describe(celeba: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    answer = data(
        "describe", "celeba", celeba, "--groups", "gender,hat=Wearing_Hat", "--table", str(table)
    )
    assert answer.exit_code == 0, answer.output
    assert answer.output.startswith("celeba: Smiling, base rates in percent\n\n")
    there = listing("celeba", celeba, groups={"gender": "Male", "hat": "Wearing_Hat"})
    found = base_rates(there.target, there.groups, there.split)
    pd.testing.assert_frame_equal(pd.read_csv(table), found.cells, check_dtype=False)
    words = [line.split() for line in answer.output.splitlines()]
    gap = found.gaps.set_index(["split", "attribute"]).gap["all", "gender x hat"]
    assert ["all", "gender", "x", "hat", f"{gap * 100:.2f}", "4"] in [line[:6] for line in words]
    # Crossed groups are printed for all images; those of every split stand in the file.
    crossed = found.cells[found.cells.attribute == "gender x hat"]
    printed = [line for line in words if line[1:4] == ["gender", "x", "hat"] and len(line) > 7]
    assert len(printed) == (crossed.split == "all").sum()


def test_describe_asks_the_readers_own_questions(tmp_path: Path) -> None:
    root = folders.utkface(tmp_path / "faces", n=1)
    answer = data("describe", "utkface", root, "--target", "young", "--groups", "race")
    assert answer.exit_code == 0, answer.output
    assert answer.output.startswith("utkface: young,")
    assert "gender" not in answer.output
    answer = data("describe", "utkface", root, "--groups", "height")
    assert answer.exit_code == 2
    assert "height" in answer.stderr


def test_a_file_without_its_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    for command, option in (("check", "--findings"), ("describe", "--table")):
        missing = str(tmp_path / "nowhere" / "rows.csv")
        answer = CliRunner().invoke(
            app, ["data", command, "celeba", "--root", str(tmp_path), option, missing]
        )
        assert answer.exit_code == 2
        assert f"{option} {missing}: its folder is not there" in answer.stderr


def test_describe_leaves_out_the_attribute_that_is_told(tmp_path: Path) -> None:
    root = folders.utkface(tmp_path / "faces", n=1)
    answer = data("describe", "utkface", root)
    assert answer.exit_code == 0, answer.output
    told = "utkface: gender, base rates in percent\nwithout gender, which the target is made of\n"
    assert answer.output.startswith(told)
    rest = answer.output.removeprefix(told)
    assert "race" in rest and "gender" not in rest
    answer = data("describe", "utkface", root, "--groups", "gender")
    assert answer.exit_code == 2
    assert "gender is what the target, gender, is made of; name another" in answer.stderr
