"""Flaws of photographs and of their labels: each is a finding, and counted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fairq_utils.bench import photograph_folders as folders
from fairq_utils.bench.flaws import (
    ATTR,
    FLAWS,
    IMG,
    PARTITION,
    TABLE,
    TRAIN,
    UTK,
    Flaw,
    column,
    copied,
    edited,
    linked,
)
from fairq_utils.data.listing import KINDS
from fairq_utils.data.photographs.reading import listing
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.errors import BadInput

Expected = list[tuple[str, str, str] | tuple[str, str, str, bool]]

FIELDS = "the 4 of [age]_[gender]_[race]_[date&time].jpg"
BANDS = "0-2, 10-19, 20-29, 3-9, 30-39, 40-49, 50-59, 60-69, more than 70"
RECORDED = {(flaw.collection, flaw.name): flaw for flaw in FLAWS}


def recorded_flaw(collection: str, name: str) -> Flaw:
    return RECORDED[collection, name]


# The place, the kind and the sentence of each finding, and how many pictures are left.
FINDINGS: list[tuple[Flaw, Expected, int]] = [
    (
        recorded_flaw("celeba", "a missing row"),
        [
            (f"{ATTR}:1", "label", "says 24 rows and 23 follow", False),
            (f"{IMG}/000003.jpg", "unlabelled", f"has no row in {ATTR}"),
        ],
        23,
    ),
    (
        recorded_flaw("celeba", "an extra column"),
        [(f"{ATTR}:4", "label", "has 42 fields, not 41")],
        23,
    ),
    (
        recorded_flaw("celeba", "a wrong count"),
        [(f"{ATTR}:1", "label", "says 202599 rows and 24 follow")],
        24,
    ),
    (
        Flaw("celeba", "no count", edited(ATTR, 1, lambda line: "pictures")),
        [(f"{ATTR}:1", "label", "says 'pictures' in place of a number of rows")],
        24,
    ),
    (
        recorded_flaw("celeba", "a value that is none of -1, 0 and 1"),
        [(f"{ATTR}:6", "label", "Young is '2', not one of -1, 0, 1")],
        23,
    ),
    (
        recorded_flaw("celeba", "an unknown split"),
        [(f"{PARTITION}:2", "label", "partition is '3', not one of 0, 1, 2")],
        23,
    ),
    (
        Flaw("celeba", "no split", edited(PARTITION, 2, lambda line: None)),
        [(f"{ATTR}:4", "label", f"000002.jpg has no row in {PARTITION}")],
        23,
    ),
    (
        recorded_flaw("celeba", "an image listed twice"),
        [
            (f"{ATTR}:4", "duplicate", "000001.jpg is on line 3, there with other labels"),
            (f"{IMG}/000002.jpg", "unlabelled", f"has no row in {ATTR}"),
        ],
        22,
    ),
    (
        recorded_flaw("celeba", "a path above the folder"),
        [
            (f"{ATTR}:4", "unsafe", "'../000002.jpg' leads out of the folder"),
            (f"{IMG}/000002.jpg", "unlabelled", f"has no row in {ATTR}", False),
        ],
        23,
    ),
    (
        recorded_flaw("celeba", "an absolute path"),
        [
            (f"{ATTR}:4", "unsafe", "'/etc/000002.jpg' is an absolute path"),
            (f"{IMG}/000002.jpg", "unlabelled", f"has no row in {ATTR}", False),
        ],
        23,
    ),
    (
        recorded_flaw("celeba", "a link that leaves the root"),
        [(f"{IMG}/000002.jpg", "unsafe", "is a link that leads out of the root")],
        23,
    ),
    (
        recorded_flaw("celeba", "a label without an image"),
        [(f"{ATTR}:4", "missing", f"{IMG}/000002.jpg is not there")],
        23,
    ),
    (
        recorded_flaw("celeba", "an image without a label"),
        [(f"{IMG}/000099.jpg", "unlabelled", f"has no row in {ATTR}")],
        24,
    ),
    (
        Flaw(
            "celeba",
            "a value that is none in Parquet",
            column(
                "data/train-00001-of-00003.parquet",
                "Smiling",
                lambda v: [5 if not i else x for i, x in enumerate(v)],
            ),
            layout="parquet_numbers",
        ),
        [("data/train-00001-of-00003.parquet#0", "label", "Smiling is 5, not one of -1, 0, 1")],
        23,
    ),
    (
        recorded_flaw("utkface", "a name without a race"),
        [("61_1_20170109142408075.jpg", "name", f"has 3 fields, not {FIELDS}")],
        20,
    ),
    (
        Flaw(
            "utkface", "a blank in the name", copied("24_0_1_20170116220224657 .jpg.chip.jpg", UTK)
        ),
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
        Flaw("utkface", "two dots", copied("24_0_1_20170116220224657..jpg", UTK)),
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
        Flaw("utkface", "no date", copied("24_0_1.jpg", UTK)),
        [("24_0_1.jpg", "name", f"has 3 fields, not {FIELDS}")],
        20,
    ),
    (
        Flaw("utkface", "another ending", copied("44_1_4_20170116235150272.pg", UTK)),
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
        Flaw("utkface", "an age that nobody has", copied("0_1_4_20170116235150272.jpg", UTK)),
        [("0_1_4_20170116235150272.jpg", "name", "tells an age of '0', not 1 to 116")],
        20,
    ),
    (
        Flaw("utkface", "a gender that is none", copied("20_3_4_20170116235150272.jpg", UTK)),
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
        recorded_flaw("utkface", "a race that is none"),
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
        Flaw(
            "utkface", "the crop of a picture that is there", copied(f"crops/{UTK}.chip.jpg", UTK)
        ),
        [(f"crops/{UTK}.chip.jpg", "duplicate", f"is {UTK} too; name one folder as the root")],
        20,
    ),
    (
        recorded_flaw("fairface", "an age band that is none"),
        [(f"{TRAIN}:3", "label", f"age is '0-3', not one of {BANDS}")],
        27,
    ),
    (
        Flaw(
            "fairface",
            "a picture of the other split",
            edited(TRAIN, 3, lambda line: line.replace("train/2.jpg", "val/2.jpg")),
        ),
        [
            (f"{TRAIN}:3", "name", "'val/2.jpg' is no image of train"),
            ("train/2.jpg", "unlabelled", f"has no row in {TRAIN}", False),
        ],
        27,
    ),
    (
        Flaw("fairface", "a field too few", edited(TRAIN, 3, lambda line: "train/2.jpg,0-2,Male")),
        [(f"{TRAIN}:3", "label", "has 3 fields, not 5")],
        27,
    ),
    (
        recorded_flaw("folder", "a value that is neither 0 nor 1"),
        [(f"{TABLE}:3", "label", "smiling is '2', not 0 or 1")],
        31,
    ),
    (
        recorded_flaw("folder", "an empty value"),
        [(f"{TABLE}:2", "label", "gender is empty")],
        31,
    ),
    (
        recorded_flaw("folder", "an unknown split"),
        [
            (
                f"{TABLE}:2",
                "label",
                "split is 'val', not one of calibration, test, train, validation",
            )
        ],
        31,
    ),
    (
        recorded_flaw("folder", "a label without an image"),
        [(f"{TABLE}:6", "missing", "man/4.jpg is not there")],
        31,
    ),
    (
        Flaw(
            "folder", "a bar in a name", edited(TABLE, 2, lambda line: line.replace("young", "a|b"))
        ),
        [(f"{TABLE}:2", "label", "age is 'a|b'; the name of a group has no |")],
        31,
    ),
    (
        Flaw("folder", "an image without a label", copied("man/new/1.jpg", "man/4.jpg")),
        [("man/new/1.jpg", "unlabelled", f"has no row in {TABLE}")],
        32,
    ),
    (
        Flaw("folder", "an image listed twice", edited(TABLE, 3, lambda line: "woman/0.jpg,1,a,b")),
        [
            (f"{TABLE}:3", "duplicate", "woman/0.jpg is on line 2, there with other labels"),
            ("woman/1.jpg", "unlabelled", f"has no row in {TABLE}"),
        ],
        30,
    ),
    (
        Flaw(
            "folder", "a row twice", edited(TABLE, 3, lambda line: f"{line}\n{line}\nman/4.jpg,x,,")
        ),
        [
            (f"{TABLE}:4", "duplicate", "woman/1.jpg is on line 3", False),
            (f"{TABLE}:8", "duplicate", "man/4.jpg is on line 5, there with other labels"),
        ],
        31,
    ),
    (
        Flaw("folder", "a path above the folder", edited(TABLE, 2, lambda line: "../" + line)),
        [
            (f"{TABLE}:2", "unsafe", "'../woman/0.jpg' leads out of the folder"),
            ("woman/0.jpg", "unlabelled", f"has no row in {TABLE}", False),
        ],
        31,
    ),
    (
        Flaw("folder", "a link that leaves the root", linked("man/4.jpg")),
        [("man/4.jpg", "unsafe", "is a link that leads out of the root")],
        31,
    ),
]


def named(case: tuple) -> str:
    return f"{case[0].collection}, {case[0].name}"


def lost_by(expected: Expected) -> Expected:
    return [one for one in expected if one[3:] != (False,)]


def too_many(root: str | Path, flaw: Flaw, expected: Expected, allowed: int) -> str:
    lost = lost_by(expected)
    quoted = "; ".join(f"{place}: {problem}" for place, _, problem, *_ in lost[:3])
    noun = "image or label" if len(lost) == 1 else "images or labels"
    return (
        f"{root}: {len(lost)} {noun} of {COLLECTIONS[flaw.collection].title} cannot be used "
        f"and max_bad allows {allowed}: {quoted}. Mend them, or leave them out with "
        f"max_bad: {len(lost)}"
    )


@pytest.mark.parametrize("case", FINDINGS, ids=named)
def test_what_cannot_be_used_is_a_finding(case: tuple, tmp_path: Path) -> None:
    flaw, expected, left = case
    root = flaw.folder(tmp_path / "root")
    lost = len(lost_by(expected))
    found = listing(flaw.collection, root, max_bad=lost)
    assert [(f.place, f.kind, f.problem, f.counts) for f in found.findings] == [
        (*one[:3], one in lost_by(expected)) for one in expected
    ]
    assert all(f.kind in KINDS for f in found.findings)
    assert len(found) == left
    with pytest.raises(BadInput) as refusal:
        listing(flaw.collection, root, max_bad=lost - 1)
    assert str(refusal.value) == too_many(root, flaw, expected, lost - 1)


def test_many_findings_are_counted_and_three_are_quoted(tmp_path: Path) -> None:
    root = folders.celeba(tmp_path, n=1)
    for name in ("000003", "000004", "000007", "000010", "000020"):
        (root / IMG / f"{name}.jpg").unlink()
    with pytest.raises(BadInput) as refusal:
        listing("celeba", root)
    assert str(refusal.value) == (
        f"{root}: 5 images or labels of CelebA cannot be used and max_bad allows 0: "
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


TABLES = {
    "semicolons": lambda rows: [line.replace(",", ";") for line in rows],
    "tabs": lambda rows: [line.replace(",", "\t") for line in rows],
    "an index": lambda rows: [f",{rows[0]}", *(f"{i},{line}" for i, line in enumerate(rows[1:]))],
    "an index, written twice": lambda rows: [
        f",Unnamed: 0,{rows[0]}",
        *(f"{i},{i},{line}" for i, line in enumerate(rows[1:])),
    ],
    "the file last": lambda rows: [
        ",".join([*line.split(",")[1:], line.split(",")[0]]) for line in rows
    ],
    "quotes": lambda rows: ['"' + line.replace(",", '","') + '"' for line in rows],
    "blanks": lambda rows: [line.replace(",", " , ") for line in rows],
    "separators at the ends": lambda rows: [f"{line},," for line in rows],
    "separators at the rows' ends": lambda rows: [rows[0], *(f"{line}," for line in rows[1:])],
    "a byte-order mark": lambda rows: ["\ufeff" + rows[0], *rows[1:]],
    "old line ends": lambda rows: ["\r".join(rows)],
    "./": lambda rows: [rows[0], *("./" + line.replace("/", "//") for line in rows[1:])],
    "other endings": lambda rows: [line.replace(".jpg", ".PNG") for line in rows],
    "no endings": lambda rows: [line.replace(".jpg", "") for line in rows],
}


@pytest.mark.parametrize("way", TABLES)
@pytest.mark.parametrize("collection", ["folder", "celeba", "fairface"])
def test_tables_are_read_as_others_write_them(collection: str, way: str, tmp_path: Path) -> None:
    flaw = Flaw(collection, way, layout={"celeba": "csv"}.get(collection))
    root = flaw.folder(tmp_path / "root")
    before = listing(collection, root)
    for path in root.glob("*.csv"):
        path.write_text("\n".join(TABLES[way](path.read_text().splitlines())) + "\n")
    after = listing(collection, root)
    assert not after.findings and sorted(after.files) == sorted(before.files)
    by_file = [found.groups.assign(y=found.target).set_axis(found.files).sort_index()
               for found in (before, after)]  # fmt: skip
    assert by_file[0].astype(str).equals(by_file[1].astype(str))


@pytest.mark.parametrize("ending", [".png", ".JPG", ".webp"])
def test_images_of_another_ending_have_the_labels_and_the_split_of_their_names(
    ending: str, tmp_path: Path
) -> None:
    root = folders.celeba(tmp_path / "root", n=1)
    before = listing("celeba", root)
    for path in (root / IMG).iterdir():
        path.rename(path.with_suffix(ending))
    after = listing("celeba", root)
    assert not after.findings and after.keys.tolist() == before.keys.tolist()
    assert (after.target == before.target).all() and (after.split == before.split).all()
    assert [Path(name).with_suffix(".jpg").as_posix() for name in after.files] == list(before.files)
    # The names that a table has come first, and one image is not two people.
    whole = root / IMG / f"000001{ending}"
    (root / IMG / "000001.jpg").write_bytes(whole.read_bytes())
    found = listing("celeba", root, max_bad=1)
    assert f"{IMG}/000001.jpg" in found.files
    assert [f.place for f in found.findings] == [f"{IMG}/000001{ending}"]


@pytest.mark.parametrize(
    ("layout", "name", "line", "places"),
    [("text", ATTR, 2, "32 and 33"), ("csv", "list_attr_celeba.csv", 1, "32 and 33")],
)
def test_a_header_names_each_column_once(
    layout: str, name: str, line: int, places: str, tmp_path: Path
) -> None:
    other = edited(name, line, lambda text: text.replace("Sideburns", "Smiling"))
    root = Flaw("celeba", "Smiling twice", other, layout=layout).folder(tmp_path / "root")
    with pytest.raises(BadInput) as refusal:
        listing("celeba", root)
    assert str(refusal.value) == (
        f"{root / name}:{line}: the header names the column Smiling twice, as number {places}; "
        "name each once"
    )


def test_columns_of_parquet_are_named_once(tmp_path: Path) -> None:
    root = folders.celeba(tmp_path / "root", n=1, layout="parquet")
    path = sorted(root.rglob("*.parquet"))[0]
    table = pq.read_table(path)
    names = ["Smiling" if name == "Bald" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names), path)
    with pytest.raises(BadInput, match="parquet: two columns have the name Smiling; "):
        listing("celeba", root)


def nested(root: Path) -> None:
    deep = root / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    for path in sorted(root.glob("*.jpg"))[::2]:
        path.rename(deep / path.name)


def test_utkface_is_found_however_deep_and_links_in_a_circle_end(tmp_path: Path) -> None:
    root = folders.utkface(tmp_path / "root", n=1)
    before = listing("utkface", root)
    nested(root)
    (root / "a" / "b" / "up").symlink_to(root)
    (root / "loop").symlink_to(root / "loop")
    after = listing("utkface", root)
    assert after.keys.tolist() == before.keys.tolist()
    assert [(f.place, f.counts) for f in after.findings] == [("loop", False)]


@pytest.mark.parametrize("kind", ["archive", "loop", "nothing"])
@pytest.mark.parametrize(
    ("collection", "place"), [("celeba", IMG), ("fairface", "train"), ("folder", "man")]
)
def test_what_is_no_folder_is_one_sentence(
    collection: str, place: str, kind: str, tmp_path: Path
) -> None:
    root = Flaw(collection, kind).folder(tmp_path / "root")
    (root / place).rename(tmp_path / "away")
    if kind == "archive":
        (root / place).write_bytes(b"PK")
    elif kind == "loop":
        (root / place).symlink_to(root / place)
    with pytest.raises(BadInput, match=place) as refusal:
        listing(collection, root)
    assert "\n" not in str(refusal.value)


def test_a_table_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    root = folders.celeba(tmp_path / "root", n=1)
    (root / ATTR).unlink()
    os.mkfifo(root / ATTR)
    with pytest.raises(BadInput, match=f"{ATTR}: this is no regular file"):
        listing("celeba", root)


def test_a_folder_that_this_user_may_not_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folders.utkface(tmp_path / "root", n=1)

    def refused(path: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(BadInput, match=r"root: cannot be read \(Permission denied\); give"):
        listing("utkface", root)


def test_names_that_are_no_text_are_findings_in_characters_that_any_terminal_has(
    tmp_path: Path,
) -> None:
    root = folders.utkface(tmp_path / "root", n=1)
    image = next(root.glob("*.jpg")).read_bytes()
    (root / os.fsdecode(b"26_1_3_\xff.jpg")).write_bytes(image)
    (root / "26_1_3_\x1b[2J.jpg").write_bytes(image)
    folder = root / os.fsdecode(b"part\xe9")
    folder.mkdir()
    (folder / "26_1_3_20170117175041574.jpg").write_bytes(image)
    found = listing("utkface", root, max_bad=3)
    assert [(f.place, f.counts) for f in found.findings] == [
        ("26_1_3_\\udcff.jpg", True),
        ("part\\udce9", True),
        ("26_1_3_\x1b[2J.jpg", True),
    ]
    assert found.digest and found.state
