"""Real photographs: every layout gives the same people, and nothing is left out silently."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import photograph_folders as folders
import pyarrow.parquet as pq
import pytest

from fairq_utils.data import celeba, fairface, photographs, splits, utkface
from fairq_utils.data.listing import KINDS
from fairq_utils.data.photographs import listing
from fairq_utils.faults import BadInput

LAYOUTS = {
    "celeba": ("text", "official", "torchvision", "csv", "parquet", "parquet_numbers"),
    "utkface": ("flat", "parts", "chips"),
    "fairface": ("folders", "margin025", "margins", "parquet"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Every folder once; whoever changes one copies it first."""
    made: dict[tuple[str, str], Path] = {}

    def folder(name: str, layout: str) -> Path:
        if (name, layout) not in made:
            root = tmp_path_factory.mktemp(f"{name}-{layout}")
            made[name, layout] = getattr(folders, name)(root, layout=layout)
        return made[name, layout]

    return folder


def people(found: photographs.Listing) -> pd.DataFrame:
    table = found.groups.astype(str).assign(y=found.target, split=found.split)
    return table.set_index(pd.Index(found.keys, name="key")).sort_index()


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_layouts_have_the_same_people(name: str, kept: Callable[[str, str], Path]) -> None:
    first, *others = LAYOUTS[name]
    expected = listing(name, kept(name, first))
    assert not expected.findings and set(expected.split) >= {"train", "test", "calibration"}
    for layout in others:
        options = {"margin": 1.25} if layout == "margins" else {}
        found = listing(name, kept(name, layout), **options)
        assert not found.findings
        if layout == "parquet" and name == "fairface":  # its pictures come without names
            columns = [*expected.groups.columns, "y"]
            want, got = people(expected)[columns], people(found)[columns]
            assert got.value_counts().to_dict() == want.value_counts().to_dict()
            assert (found.split == "test").sum() == (expected.split == "test").sum()
        else:
            pd.testing.assert_frame_equal(people(found), people(expected))
            pictures = dict(
                zip(expected.keys, map(expected.read, range(len(expected))), strict=True)
            )
            for i in range(len(found)):
                assert found.read(i) == pictures[found.keys[i]]
        assert found.read(0)[:2] == b"\xff\xd8"
        assert found.state is not None and found.state() == found.state()


def test_celeba_labels_are_those_of_the_files(kept: Callable[[str, str], Path]) -> None:
    root = kept("celeba", "text")
    lines = (root / "list_attr_celeba.txt").read_text().splitlines()
    columns, rows = lines[1].split(), [line.split() for line in lines[2:]]
    found = listing(
        "celeba",
        root,
        target="Wearing_Hat",
        groups={"gender": "Male", "hair": "Black_Hair", "beard": "No_Beard"},
    )
    table = people(found)
    for row in rows:
        value = dict(zip(columns, row[1:], strict=True))
        person = table.loc[row[0]]
        assert person.y == (value["Wearing_Hat"] == "1")
        assert person.gender == ("male" if value["Male"] == "1" else "female")
        assert person.hair == ("black hair" if value["Black_Hair"] == "1" else "no black hair")
        assert person.beard == ("no beard" if value["No_Beard"] == "1" else "beard")
    official = dict(line.split() for line in (root / "list_eval_partition.txt").open())
    for key, split in table.split.items():
        wanted = {"0": {"train"}, "1": {"calibration", "validation"}, "2": {"test"}}
        assert split in wanted[official[key]]
    assert list(found.groups.hair.cat.categories) == ["no black hair", "black hair"]
    assert found.meta["answers"] == ("no hat", "hat") and "non-commercial" in found.meta["licence"]


def test_celeba_groups_have_the_order_of_rendered_people() -> None:
    assert photographs.attributes("celeba") == {
        "gender": ("female", "male"),
        "age": ("old", "young"),
    }
    assert all(len(set(celeba.categories({"x": a})["x"])) == 2 for a in celeba.ATTRIBUTES)


def test_utkface_reads_names(kept: Callable[[str, str], Path]) -> None:
    found = listing("utkface", kept("utkface", "parts"), target="age>=60")
    for name, y, gender, age, race in zip(
        found.files,
        found.target,
        *(found.groups[c] for c in ("gender", "age", "race")),
        strict=True,
    ):
        years, sex, code, _ = Path(name).name.split("_")
        assert y == (int(years) >= 60)
        assert (gender, age) == (
            "male" if sex == "0" else "female",
            "young" if int(years) < 40 else "old",
        )
        assert race == utkface.RACES[int(code)]
    gender = listing("utkface", kept("utkface", "flat"))
    assert ((gender.groups.gender == "male") == (gender.target == 1)).all()
    assert gender.target.sum() == len(gender) / 2


def test_fairface_has_seven_races_and_nine_bands_in_order(kept: Callable[[str, str], Path]) -> None:
    root = kept("fairface", "folders")
    labels = pd.concat(
        pd.read_csv(root / f"fairface_label_{split}.csv") for split in ("train", "val")
    ).set_index("file")
    found = listing(
        "fairface", root, target="young", groups={"r": "race", "a": "age", "o": "age<60"}
    )
    for i, key in enumerate(found.keys):
        row, group = labels.loc[key], found.groups.iloc[i]
        assert group.r == fairface.RACES[row.race] and group.a == fairface.BANDS[row.age]
        start = int(row.age.split("-")[0].split(" ")[-1])
        assert found.target[i] == (start < 40)
        assert group.o == ("age<60" if start < 60 else "age>=60")
    assert photographs.attributes("fairface")["race"][:3] == ("white", "black", "latino hispanic")
    assert photographs.attributes("fairface")["age"] == tuple(fairface.BANDS.values())
    assert len(photographs.attributes("fairface")["age"]) == 9


def test_a_split_depends_on_the_name_alone(tmp_path: Path) -> None:
    small = folders.utkface(tmp_path / "small", n=2)
    before = people(listing("utkface", small))
    large = folders.utkface(tmp_path / "large", n=4)
    after = people(listing("utkface", large))
    shared = before.index.intersection(after.index)
    assert len(shared) == len(before) < len(after)
    assert (after.loc[shared, "split"] == before.loc[shared, "split"]).all()


def test_shares_are_met_and_a_larger_share_keeps_the_smaller() -> None:
    keys = [f"{i:06d}.jpg" for i in range(20_000)]
    found = splits.carve(keys, {"calibration": 0.05, "validation": 0.1, "test": 0.2}, "train")
    for split, share in {
        "calibration": 0.05,
        "validation": 0.1,
        "test": 0.2,
        "train": 0.65,
    }.items():
        assert abs((found == split).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(keys))
    shuffled = np.random.default_rng(0).permutation(len(keys))
    again = splits.carve([keys[i] for i in shuffled], {"calibration": 0.05}, "train")
    assert ((again == "calibration") == (found[shuffled] == "calibration")).all()


@pytest.mark.parametrize("held_out", [{"calibration": 0.25}, {"validation": 0.75}])
def test_celebas_valid_split_is_shared_by_hash(
    held_out: dict[str, float], kept: Callable[[str, str], Path]
) -> None:
    found = listing("celeba", kept("celeba", "text"), held_out=held_out)
    place = splits.positions(found.keys.tolist())
    valid = np.isin(found.split, ["calibration", "validation"])
    np.testing.assert_array_equal(found.split[valid] == "calibration", place[valid] < 0.25)
    assert valid.sum() == 16
    assert found.meta["held_out"] == {"calibration": 0.25, "validation": 0.75}


def test_the_first_images_are_the_same_people(kept: Callable[[str, str], Path]) -> None:
    root = kept("celeba", "text")
    everybody = people(listing("celeba", root))
    few = listing("celeba", root, images={"train": 4, "test": 3})
    more = listing("celeba", root, images={"train": 7})
    counts = pd.Series(few.split).value_counts()
    assert counts["train"] == 4 and counts["test"] == 3
    assert counts["calibration"] == (everybody.split == "calibration").sum()
    train = set(few.keys[few.split == "train"])
    assert train < set(more.keys[more.split == "train"])
    pd.testing.assert_frame_equal(people(few), everybody.loc[sorted(few.keys)])
    by_name = dict(zip(few.files, range(len(few)), strict=True))
    for name, i in by_name.items():
        assert few.read(i) == (root / name).read_bytes()
    assert few.digest != more.digest


def test_line_ends_and_a_byte_order_mark_are_harmless(tmp_path: Path) -> None:
    for name, layout in (("celeba", "text"), ("celeba", "csv"), ("fairface", "folders")):
        root = getattr(folders, name)(tmp_path / f"{name}-{layout}", n=1, layout=layout)
        before = listing(name, root)
        for path in [*root.glob("*.txt"), *root.glob("*.csv")]:
            text = path.read_text()
            path.write_bytes("\ufeff".encode() + text.replace("\n", "\r\n").rstrip().encode())
        after = listing(name, root)
        assert after.digest == before.digest and not after.findings


Damage = Callable[[Path], object]


def edited(name: str, line: int, change: Callable[[str], str | None]) -> Damage:
    """Change one line (from 1) of a file, or drop it."""

    def damage(root: Path) -> None:
        path = root / name
        lines = path.read_text().split("\n")
        new = change(lines[line - 1])
        lines[line - 1 : line] = [] if new is None else [new]
        path.write_text("\n".join(lines))

    return damage


def touched(name: str, like: str) -> Damage:
    def damage(root: Path) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / like, root / name)

    return damage


def linked(name: str) -> Damage:
    def damage(root: Path) -> None:
        outside = root.parent / f"{root.name}-outside.jpg"
        (root / name).rename(outside)
        (root / name).symlink_to(outside)

    return damage


def column(path: str, name: str, values: Callable[[list], list]) -> Damage:
    def damage(root: Path) -> None:
        table = pq.read_table(root / path)
        place = table.column_names.index(name)
        changed = values(table.column(name).to_pylist())
        new = table.set_column(place, name, [changed])
        pq.write_table(new.replace_schema_metadata(table.schema.metadata), root / path)

    return damage


IMG = "img_align_celeba"
ATTR = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"
TRAIN = "fairface_label_train.csv"
UTK = "18_0_0_20170109142408075.jpg"
FIELDS = "the 4 of [age]_[gender]_[race]_[date&time].jpg"
BANDS = "0-2, 10-19, 20-29, 3-9, 30-39, 40-49, 50-59, 60-69, more than 70"

# What is done to a folder, the place, the kind and the sentence of each finding, and how many
# pictures are left.
FINDINGS: list[tuple[str, str, Damage, list[tuple[str, str, str]], int]] = [
    (
        "celeba text",
        "a missing row",
        edited(ATTR, 5, lambda line: None),
        [
            (f"{ATTR}:1", "label", "says 24 rows and 23 follow"),
            (f"{IMG}/000003.jpg", "unlabelled", f"has no row in {ATTR}"),
        ],
        23,
    ),
    (
        "celeba text",
        "an extra column",
        edited(ATTR, 4, lambda line: line + " 1"),
        [(f"{ATTR}:4", "label", "has 42 fields, not 41")],
        23,
    ),
    (
        "celeba text",
        "a wrong count",
        edited(ATTR, 1, lambda line: "202599"),
        [(f"{ATTR}:1", "label", "says 202599 rows and 24 follow")],
        24,
    ),
    (
        "celeba text",
        "no count",
        edited(ATTR, 1, lambda line: "pictures"),
        [(f"{ATTR}:1", "label", "says 'pictures' in place of a number of rows")],
        24,
    ),
    (
        "celeba text",
        "a value that is none",
        edited(ATTR, 6, lambda line: " ".join([*line.split()[:-1], "2"])),
        [(f"{ATTR}:6", "label", "Young is '2', not one of -1, 0, 1")],
        23,
    ),
    (
        "celeba text",
        "an unknown split",
        edited(PARTITION, 2, lambda line: "000002.jpg 3"),
        [(f"{PARTITION}:2", "label", "partition is '3', not one of 0, 1, 2")],
        23,
    ),
    (
        "celeba text",
        "no split",
        edited(PARTITION, 2, lambda line: None),
        [(f"{ATTR}:4", "label", f"000002.jpg has no row in {PARTITION}")],
        23,
    ),
    (
        "celeba text",
        "a row twice",
        edited(ATTR, 4, lambda line: line.replace("000002", "000001")),
        [
            (f"{ATTR}:4", "duplicate", "000001.jpg is on line 3, there with other labels"),
            (f"{IMG}/000002.jpg", "unlabelled", f"has no row in {ATTR}"),
        ],
        23,
    ),
    (
        "celeba text",
        "a path above the folder",
        edited(ATTR, 4, lambda line: "../" + line),
        [
            (f"{ATTR}:4", "unsafe", "'../000002.jpg' leads out of the folder"),
            (f"{IMG}/000002.jpg", "unlabelled", f"has no row in {ATTR}"),
        ],
        23,
    ),
    (
        "celeba text",
        "an absolute path",
        edited(ATTR, 4, lambda line: "/etc/" + line),
        [
            (f"{ATTR}:4", "unsafe", "'/etc/000002.jpg' is an absolute path"),
            (f"{IMG}/000002.jpg", "unlabelled", f"has no row in {ATTR}"),
        ],
        23,
    ),
    (
        "celeba text",
        "a link that leaves the root",
        linked(f"{IMG}/000002.jpg"),
        [(f"{IMG}/000002.jpg", "unsafe", "is a link that leads out of the root")],
        23,
    ),
    (
        "celeba text",
        "a label without a picture",
        lambda root: (root / IMG / "000002.jpg").unlink(),
        [(f"{ATTR}:4", "missing", f"{IMG}/000002.jpg is not there")],
        23,
    ),
    (
        "celeba text",
        "a picture without a label",
        touched(f"{IMG}/000099.jpg", f"{IMG}/000001.jpg"),
        [(f"{IMG}/000099.jpg", "unlabelled", f"has no row in {ATTR}")],
        24,
    ),
    (
        "celeba parquet_numbers",
        "a value that is none in Parquet",
        column(
            "data/train-00001-of-00003.parquet",
            "Smiling",
            lambda v: [5 if not i else x for i, x in enumerate(v)],
        ),
        [("data/train-00001-of-00003.parquet#0", "label", "Smiling is 5, not one of -1, 0, 1")],
        23,
    ),
    (
        "utkface flat",
        "no race",
        touched("61_1_20170109142408075.jpg", UTK),
        [("61_1_20170109142408075.jpg", "name", f"has 3 fields, not {FIELDS}")],
        20,
    ),
    (
        "utkface flat",
        "a blank in the name",
        touched("24_0_1_20170116220224657 .jpg.chip.jpg", UTK),
        [
            (
                "24_0_1_20170116220224657 .jpg.chip.jpg",
                "name",
                "ends in '20170116220224657 .jpg.chip.jpg', not in 17 digits of a date and time "
                "and .jpg or .jpg.chip.jpg",
            )
        ],
        20,
    ),
    (
        "utkface flat",
        "two dots",
        touched("24_0_1_20170116220224657..jpg", UTK),
        [
            (
                "24_0_1_20170116220224657..jpg",
                "name",
                "ends in '20170116220224657..jpg', not in 17 digits of a date and time and .jpg or "
                ".jpg.chip.jpg",
            )
        ],
        20,
    ),
    (
        "utkface flat",
        "no date",
        touched("24_0_1.jpg", UTK),
        [("24_0_1.jpg", "name", f"has 3 fields, not {FIELDS}")],
        20,
    ),
    (
        "utkface flat",
        "another ending",
        touched("44_1_4_20170116235150272.pg", UTK),
        [
            (
                "44_1_4_20170116235150272.pg",
                "name",
                "does not end in .jpg, as in [age]_[gender]_[race]_[date&time].jpg",
            )
        ],
        20,
    ),
    (
        "utkface flat",
        "an age that nobody has",
        touched("0_1_4_20170116235150272.jpg", UTK),
        [("0_1_4_20170116235150272.jpg", "name", "tells an age of '0', not 1 to 116")],
        20,
    ),
    (
        "utkface flat",
        "a gender that is none",
        touched("20_3_4_20170116235150272.jpg", UTK),
        [
            (
                "20_3_4_20170116235150272.jpg",
                "name",
                "tells a gender of '3', not 0 (male) or 1 (female)",
            )
        ],
        20,
    ),
    (
        "utkface flat",
        "a race that is none",
        touched("20_1_5_20170116235150272.jpg", UTK),
        [
            (
                "20_1_5_20170116235150272.jpg",
                "name",
                "tells a race of '5', not 0 to 4 (white, black, asian, indian, others)",
            )
        ],
        20,
    ),
    (
        "utkface flat",
        "the crop of a picture that is there",
        touched(f"crops/{UTK}.chip.jpg", UTK),
        [(f"crops/{UTK}.chip.jpg", "duplicate", f"is {UTK} too; name one folder as the root")],
        20,
    ),
    (
        "fairface folders",
        "a band that is none",
        edited(TRAIN, 3, lambda line: line.replace("0-2", "0-3")),
        [(f"{TRAIN}:3", "label", f"age is '0-3', not one of {BANDS}")],
        27,
    ),
    (
        "fairface folders",
        "a picture of the other split",
        edited(TRAIN, 3, lambda line: line.replace("train/2.jpg", "val/2.jpg")),
        [
            (f"{TRAIN}:3", "name", "'val/2.jpg' is no picture of train"),
            ("train/2.jpg", "unlabelled", f"has no row in {TRAIN}"),
        ],
        27,
    ),
    (
        "fairface folders",
        "a field too few",
        edited(TRAIN, 3, lambda line: "train/2.jpg,0-2,Male"),
        [(f"{TRAIN}:3", "label", "has 3 fields, not 5")],
        27,
    ),
]


def made(root: Path, what: str) -> Path:
    name, layout = what.split()
    more = {"bands": 1} if name == "fairface" else {}
    return getattr(folders, name)(root, n=1, layout=layout, **more)


@pytest.mark.parametrize("case", FINDINGS, ids=[f"{c[0]}, {c[1]}" for c in FINDINGS])
def test_what_cannot_be_used_is_a_finding(case: tuple, tmp_path: Path) -> None:
    what, _, damage, expected, left = case
    root = made(tmp_path / "root", what)
    damage(root)
    name = what.split()[0]
    found = listing(name, root, max_bad=len(expected))
    assert [(f.place, f.kind, f.problem) for f in found.findings] == expected
    assert all(f.counts and f.kind in KINDS for f in found.findings)
    assert len(found) == left
    title = photographs.TITLES[name]
    with pytest.raises(BadInput) as refusal:
        listing(name, root, max_bad=len(expected) - 1)
    quoted = "; ".join(f"{place}: {problem}" for place, _, problem in expected)
    noun = "picture or label" if len(expected) == 1 else "pictures or labels"
    assert str(refusal.value) == (
        f"{root}: {len(expected)} {noun} of {title} cannot be used and max_bad allows "
        f"{len(expected) - 1}: {quoted}. Mend them, or leave them out with max_bad: {len(expected)}"
    )


def test_many_findings_are_counted_and_three_are_quoted(tmp_path: Path) -> None:
    root = folders.celeba(tmp_path, n=1)
    for name in ("000003", "000004", "000007", "000010", "000020"):
        (root / IMG / f"{name}.jpg").unlink()
    with pytest.raises(BadInput) as refusal:
        listing("celeba", root)
    assert str(refusal.value) == (
        f"{root}: 5 pictures or labels of CelebA cannot be used and max_bad allows 0: "
        f"{ATTR}:5: {IMG}/000003.jpg is not there; {ATTR}:6: {IMG}/000004.jpg is not there; "
        f"{ATTR}:9: {IMG}/000007.jpg is not there; and 2 more. Mend them, or leave them out with "
        "max_bad: 5"
    )


def test_files_that_are_no_pictures_cost_nothing(tmp_path: Path) -> None:
    root = folders.utkface(tmp_path, n=1)
    (root / "README.txt").write_text("faces")
    (root / ".DS_Store").write_text("")
    found = listing("utkface", root)
    assert [(f.place, f.kind, f.counts) for f in found.findings] == [("README.txt", "name", False)]


def emptied(name: str) -> Damage:
    def damage(root: Path) -> None:
        shutil.rmtree(root / name)
        (root / name).mkdir()

    return damage


def outside(name: str) -> Damage:
    def damage(root: Path) -> None:
        place = root.parent / "elsewhere"
        (root / name).rename(place)
        (root / name).symlink_to(place)

    return damage


REFUSED: list[tuple[str, Damage, dict[str, object], str]] = [
    (
        "celeba text",
        shutil.rmtree,
        {},
        "{root}: there is no such folder; name the one that holds CelebA",
    ),
    (
        "celeba text",
        lambda root: (shutil.rmtree(root), root.mkdir()),
        {},
        "{root}: no CelebA here; looked for list_attr_celeba.txt, list_attr_celeba.csv and "
        "train-*.parquet, and the folder is empty; name the folder that holds them",
    ),
    (
        "utkface flat",
        lambda root: (shutil.rmtree(root), root.mkdir()),
        {},
        "{root}: no UTKFace here; looked for pictures named [age]_[gender]_[race]_[date&time].jpg, "
        "such as 26_1_3_20170117175041574.jpg, here or in folders, and the folder is empty; name "
        "the folder that holds them",
    ),
    (
        "fairface folders",
        lambda root: [path.unlink() for path in root.glob("*.csv")],
        {},
        "{root}: no FairFace here; looked for fairface_label_train.csv, fairface_label_val.csv and "
        "0.25/train-*.parquet, and there is train, val; name the folder that holds them",
    ),
    (
        "celeba text",
        lambda root: (root / ATTR).write_text(""),
        {},
        f"{{root}}/{ATTR}: the file is empty; copy it again",
    ),
    (
        "celeba text",
        lambda root: (root / ATTR).write_bytes(b"24\n\xff\xfe"),
        {},
        f"{{root}}/{ATTR}: byte 3 is not text (UTF-8), so this is no table of labels, or a damaged "
        "one; copy it again",
    ),
    (
        "celeba text",
        edited(ATTR, 2, lambda line: line.replace("Smiling", "Smirking")),
        {},
        f"{{root}}/{ATTR}:2: the header names no column Smiling among 40; copy the file again",
    ),
    (
        "celeba text",
        lambda root: (root / PARTITION).unlink(),
        {},
        f"{{root}}/{PARTITION}: the official splits are missing; copy this file there",
    ),
    (
        "celeba text",
        lambda root: shutil.rmtree(root / IMG),
        {},
        f"{{root}}/{IMG}: there is no such folder, and there is {ATTR}, {PARTITION}; unpack "
        f"{IMG}.zip there",
    ),
    (
        "celeba text",
        emptied(IMG),
        {},
        f"{{root}}/{IMG}: there are no pictures here, and {ATTR} names 24; unpack them into this "
        "folder",
    ),
    (
        "celeba text",
        outside(IMG),
        {},
        f"{{root}}/{IMG}: this link leads out of {{root}}, to {{parent}}/elsewhere; name a root "
        "that holds the pictures, or copy them there",
    ),
    (
        "celeba parquet",
        lambda root: (root / "img_align+identity+attr/train-00001-of-00003.parquet").unlink(),
        {},
        "{root}/img_align+identity+attr: train-00001-of-00003.parquet is missing (2 of 3 shards "
        "are there); fetch it",
    ),
    (
        "celeba parquet",
        lambda root: (root / "img_align+identity+attr/valid-00000-of-00001.parquet").unlink(),
        {},
        "{root}/img_align+identity+attr: there is no valid-*.parquet; fetch the shards of all "
        "splits",
    ),
    (
        "fairface parquet",
        lambda root: pq.write_table(
            pq.read_table(
                root / "0.25/validation-00000-of-00001.parquet"
            ).replace_schema_metadata(),
            root / "0.25/validation-00000-of-00001.parquet",
        ),
        {},
        "{root}/0.25/validation-00000-of-00001.parquet: nothing says what the integers in age "
        "stand for (the file has no Hugging Face features); fetch it again, or write the labels in "
        "words",
    ),
    (
        "fairface margins",
        lambda root: None,
        {},
        "{root}: both margins are there; name margin: 0.25 or 1.25",
    ),
    (
        "fairface margin025",
        lambda root: None,
        {"margin": "1.25"},
        "{root}: margin 1.25 is not there, but 0.25 is; name that",
    ),
    (
        "fairface folders",
        lambda root: None,
        {"margin": "0.5"},
        "margin: '0.5' is not one of 0.25, 1.25",
    ),
    (
        "utkface flat",
        lambda root: None,
        {"margin": "0.25"},
        "margin: only fairface has margins, utkface has none; leave it out",
    ),
    (
        "fairface folders",
        lambda root: None,
        {"target": "age>=35"},
        "target: 'age>=35' cuts through an age band; N is one of 3, 10, 20, 30, 40, 50, 60, 70",
    ),
    (
        "utkface flat",
        lambda root: None,
        {"target": "smile"},
        "target: 'smile' is not one of gender, young, age>=N, age<N",
    ),
    (
        "celeba text",
        lambda root: None,
        {"groups": {"gender": "Female"}},
        f"groups.gender: 'Female' is not one of {', '.join(celeba.ATTRIBUTES)}",
    ),
    (
        "utkface flat",
        lambda root: None,
        {"held_out": {"calibration": 0.5, "test": 0.5}},
        "held_out: calibration, validation, test take 1.05 of the pictures together, which leaves "
        "none for train; name smaller shares",
    ),
    (
        "celeba text",
        lambda root: None,
        {"held_out": {"test": 0.5}},
        "held_out: 'test' is not carved by hash here; name calibration, validation",
    ),
    (
        "celeba text",
        lambda root: None,
        {"held_out": {"calibration": 0.5, "validation": 0.4}},
        "held_out: calibration 0.5 and validation 0.4 are shares of CelebA's valid split and must "
        "add up to 1; name one of them",
    ),
    (
        "celeba text",
        lambda root: None,
        {"images": {"train": 100}},
        "images.train: 100 pictures are asked for and there are 8; name fewer, or give this split "
        "a larger share in held_out",
    ),
    (
        "celeba text",
        lambda root: None,
        {"max_bad": -1},
        "max_bad: -1 is no number of pictures; name 0 or more",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=[f"{c[0]} {i}" for i, c in enumerate(REFUSED)])
def test_what_cannot_be_is_refused_in_a_sentence(case: tuple, tmp_path: Path) -> None:
    what, damage, options, sentence = case
    root = made(tmp_path / "root", what)
    damage(root)
    with pytest.raises(BadInput) as refusal:
        listing(what.split()[0], root, **options)
    assert str(refusal.value) == sentence.format(root=root, parent=tmp_path)


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({}, "groups: none is named; name one, or leave groups out for all"),
        ([], "groups: none is named; name one, or leave groups out for all"),
        (["gender", "hair"], "groups: 'hair' is not one of gender, age, race"),
        ({"a|b": "gender"}, "groups: 'a|b' is no name; use letters, digits and _"),
        ({"age": "old"}, "groups.age: 'old' is not one of {known}"),
    ],
)
@pytest.mark.parametrize("name", ["utkface", "fairface"])
def test_groups_that_cannot_be_are_refused(
    name: str, groups: object, sentence: str, kept: Callable[[str, str], Path]
) -> None:
    fields = ["race", "gender", "age", "young", "age>=N", "age<N"]
    for ask in (
        lambda: photographs.attributes(name, groups),
        lambda: listing(name, kept(name, LAYOUTS[name][0]), groups=groups),
    ):
        with pytest.raises(BadInput) as refusal:
            ask()
        assert str(refusal.value) == sentence.format(known=", ".join(fields))


def test_an_unknown_collection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data.name: 'lfw' is not one of celeba, utkface, fairface"):
        listing("lfw", tmp_path)


def test_a_link_within_the_root_is_followed(tmp_path: Path) -> None:
    root = folders.utkface(tmp_path, n=1, layout="parts")
    first = next((root / "part1").iterdir())
    (root / "kept").mkdir()
    target = root / "kept" / "original.data"
    first.rename(target)
    os.symlink(target, first)
    assert len(listing("utkface", root)) == 20


def test_integers_stand_for_what_the_file_says(tmp_path: Path) -> None:
    """Two copies of FairFace number men and women the other way round."""
    root = folders.fairface(tmp_path, layout="parquet", bands=2)
    before = listing("fairface", root)
    for path in (root / "0.25").iterdir():
        table = pq.read_table(path)
        flipped = [1 - v for v in table.column("gender").to_pylist()]
        metadata = table.schema.metadata[b"huggingface"].replace(
            b'["Male", "Female"]', b'["Female", "Male"]'
        )
        table = table.set_column(table.column_names.index("gender"), "gender", [flipped])
        pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), path)
    after = listing("fairface", root)
    pd.testing.assert_frame_equal(people(after), people(before))
