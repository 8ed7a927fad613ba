"""Flaws of folders of photographs: each is a finding or a refusal, in words that are recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from test_findings import FINDINGS, RECORDED, named, recorded_flaw, too_many

from fairq_utils import bench
from fairq_utils.bench import photograph_folders as folders
from fairq_utils.bench.flaws import (
    ATTR,
    FLAWS,
    IMG,
    PARTITION,
    SECOND,
    TABLE,
    Flaw,
    edited,
    emptied,
    linked,
    removed,
)
from fairq_utils.bench.refusals import said
from fairq_utils.data import load
from fairq_utils.data.photographs import celeba
from fairq_utils.data.photographs.reading import listing
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.errors import BadInput
from fairq_utils.report import photographs as photograph_chapter
from fairq_utils.study import recorded


def numbered(root: Path) -> None:
    """A column with another number in each of the table's rows, and images for more of them."""
    header, *rows = (root / TABLE).read_text().splitlines()
    for i in range(len(rows), 41):
        (root / f"{i}.jpg").write_bytes((root / "man/4.jpg").read_bytes())
        rows.append(f"{i}.jpg,0,man,old")
    lines = [f"{header},years", *(f"{row},{i}" for i, row in enumerate(rows))]
    (root / TABLE).write_text("\n".join(lines))


# Refused as a whole, in this sentence.
REFUSED: list[tuple[Flaw, str]] = [
    (
        recorded_flaw("celeba", "a root that is not there"),
        "{root}: there is no such folder; name the one that holds CelebA, or fetch it with "
        "fairq data get celeba --root {root}",
    ),
    (
        Flaw("celeba", "an empty folder", emptied(".")),
        "{root}: no CelebA here; looked for list_attr_celeba.txt, list_attr_celeba.csv and "
        "train-*.parquet, and the folder is empty; name the folder that holds them",
    ),
    (
        recorded_flaw("utkface", "an empty folder"),
        "{root}: no UTKFace here; looked for images named [age]_[gender]_[race]_[date&time].jpg, "
        "such as 26_1_3_20170117175041574.jpg, here or in folders, and the folder is empty; name "
        "the folder that holds them",
    ),
    (
        recorded_flaw("fairface", "a root without labels"),
        "{root}: no FairFace here; looked for fairface_label_train.csv, fairface_label_val.csv and "
        "0.25/train-*.parquet, and there is train, val; name the folder that holds them",
    ),
    (
        Flaw("celeba", "an empty label file", lambda root: (root / ATTR).write_text("")),
        f"{{root}}/{ATTR}: the file is empty; copy it again",
    ),
    (
        Flaw(
            "celeba",
            "a label file that is no text",
            lambda root: (root / ATTR).write_bytes(b"24\n\xff\xfe"),
        ),
        f"{{root}}/{ATTR}: byte 3 is not text (UTF-8), so this is no table of labels, or a damaged "
        "one; copy it again",
    ),
    (
        Flaw(
            "celeba",
            "a header without the target",
            edited(ATTR, 2, lambda line: line.replace("Smiling", "Smirking")),
        ),
        f"{{root}}/{ATTR}:2: the header names no column Smiling among 40; copy the file again",
    ),
    (
        Flaw("celeba", "no splits", removed(PARTITION)),
        f"{{root}}/{PARTITION}: the official splits are missing; copy this file there",
    ),
    (
        Flaw("celeba", "no folder of pictures", removed(IMG)),
        f"{{root}}/{IMG}: there is no such folder, and there is {ATTR}, {PARTITION}; unpack "
        f"{IMG}.zip there",
    ),
    (
        recorded_flaw("celeba", "no images"),
        f"{{root}}/{IMG}: there are no images here, and {ATTR} names 24; unpack them into this "
        "folder",
    ),
    (
        Flaw("celeba", "a link in place of the folder of pictures", linked(IMG)),
        f"{{root}}/{IMG}: this link leads out of {{root}}, to {{root}}-outside; name a root "
        "that holds the images, or copy them there",
    ),
    (
        recorded_flaw("celeba", "a shard missing"),
        "{root}/img_align+identity+attr: train-00001-of-00003.parquet is missing (2 of 3 shards "
        "are there); fetch it",
    ),
    (
        Flaw(
            "celeba",
            "no shard of a split",
            removed("img_align+identity+attr/valid-00000-of-00001.parquet"),
            layout="parquet",
        ),
        "{root}/img_align+identity+attr: there is no valid-*.parquet; fetch the shards of all "
        "splits",
    ),
    (
        recorded_flaw("fairface", "integers that nothing explains"),
        "{root}/0.25/validation-00000-of-00001.parquet: nothing says what the integers in age "
        "stand for (the file has no Hugging Face features); fetch it again, or write the labels in "
        "words",
    ),
    (
        recorded_flaw("fairface", "two margins, and none named"),
        "{root}: both margins are there; name margin: 0.25 or 1.25",
    ),
    (
        Flaw(
            "fairface", "a margin that is not there", options={"margin": "1.25"}, layout="margin025"
        ),
        "{root}: margin 1.25 is not there, but 0.25 is; name that",
    ),
    (
        Flaw("fairface", "a margin that is none", options={"margin": "0.5"}),
        "margin: '0.5' is not one of 0.25, 1.25",
    ),
    (
        Flaw("utkface", "a margin, where there are none", options={"margin": "0.25"}),
        "margin: utkface has no options of its own; leave it out",
    ),
    (
        recorded_flaw("fairface", "a target that cuts a band"),
        "target: 'age>=35' cuts through an age band; N is one of 3, 10, 20, 30, 40, 50, 60, 70",
    ),
    (
        recorded_flaw("utkface", "an unknown target"),
        "target: 'smile' is not one of gender, young, age>=N, age<N",
    ),
    (
        Flaw("celeba", "an attribute that is none", options={"groups": {"gender": "Female"}}),
        f"groups.gender: 'Female' is not one of {', '.join(celeba.ATTRIBUTES)}",
    ),
    (
        Flaw(
            "utkface",
            "shares of more than all",
            options={"held_out": {"calibration": 0.5, "test": 0.5}},
        ),
        "held_out: calibration, validation, test take 1.05 of the images together, which leaves "
        "none for train; name smaller shares",
    ),
    (
        Flaw("celeba", "a share of an official split", options={"held_out": {"test": 0.5}}),
        "held_out: 'test' is not carved by hash here; name calibration, validation",
    ),
    (
        Flaw(
            "celeba",
            "shares that are not all",
            options={"held_out": {"calibration": 0.5, "validation": 0.4}},
        ),
        "held_out: calibration 0.5 and validation 0.4 are shares of CelebA's valid split and must "
        "add up to 1; name one of them",
    ),
    (
        Flaw("celeba", "more pictures than there are", options={"images": {"train": 100}}),
        "images.train: 100 images are asked for and there are 8; name fewer, or give this split "
        "a larger share in held_out",
    ),
    (
        Flaw("celeba", "fewer bad pictures than none", options={"max_bad": -1}),
        "max_bad: -1 is no number of images; name 0 or more",
    ),
    (
        recorded_flaw("celeba", "an archive as the root"),
        "{root}: this is a file; unpack it and name the folder that holds CelebA",
    ),
    (
        recorded_flaw("utkface", "an unknown group"),
        "groups: 'hair' is not one of gender, age, race",
    ),
    (
        recorded_flaw("folder", "no table"),
        "{root}: no labels here; looked for labels.csv, and there is man, woman; name the folder "
        "that holds them",
    ),
    (
        recorded_flaw("folder", "a target in words"),
        "target: {root}/labels.csv says 'man', 'woman' in the column gender; name the value that "
        "is predicted, as gender=woman",
    ),
    (
        recorded_flaw("folder", "a target misspelt"),
        "target: labels.csv has no such column: 'smyling' is unknown; did you mean 'smiling'?",
    ),
    (
        Flaw("folder", "a value that nobody has", options={"target": "gender=girl"}),
        "target: no row of {root}/labels.csv says gender=girl, but 'man', 'woman'",
    ),
    (
        Flaw("folder", "a group misspelt", options={"groups": {"sex": "gendr"}}),
        "groups.sex: labels.csv has no such column: 'gendr' is unknown; did you mean 'gender'?",
    ),
    (
        Flaw("folder", "a column twice", edited(TABLE, 1, lambda line: line + ",age")),
        "{root}/labels.csv:1: the header names the column age twice, as number 4 and 5; name each "
        "once",
    ),
    (
        Flaw("folder", "no group", edited(TABLE, 1, lambda line: "file,smiling,split")),
        "{root}/labels.csv: the header names no target and group beside the file; write columns "
        "such as file, smiling, gender",
    ),
    (
        Flaw("folder", "a number for a group", numbered, options={"groups": ["years"]}),
        "groups.years: has 41 values such as '0', more than 32; put them into fewer groups, or "
        "name other columns",
    ),
    (
        Flaw(
            "folder",
            "a share of what the table holds out",
            options={"held_out": {"test": 0.5}},
            layout="split",
        ),
        "held_out: 'test' is not carved by hash here; leave it out",
    ),
]

# What becomes known only where pictures are decoded: what is wrong with the second one.
UNDECODED = {
    "a truncated JPEG": "cannot be decoded (image file is truncated)",
    "an image of zero bytes": "is empty (0 bytes)",
    "a web page in place of an image": "is no image in a known format "
    "(JPEG, PNG, WEBP, BMP, TIFF, GIF)",
    "an image of test in train": f"is the same image as {IMG}/000018.jpg, which is in test and "
    "this one in train",
    "an image bomb": "has 64000 x 1001 pixels, more than 64,000,000",
}
HARMLESS = {
    ("celeba", "a CMYK JPEG"),
    ("celeba", "a grey JPEG"),
    ("celeba", "a JPEG turned by EXIF"),
    ("celeba", "Windows line ends"),
    ("celeba", "a byte-order mark"),
    ("fairface", "Windows line ends"),
    ("fairface", "a byte-order mark"),
}
ONE_LEFT_OUT = ("celeba", "a truncated JPEG, with max_bad: 1")


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_what_cannot_be_is_refused_in_a_sentence(case: tuple, tmp_path: Path) -> None:
    flaw, sentence = case
    root = flaw.folder(tmp_path / "root")
    with pytest.raises(BadInput) as refusal:
        listing(flaw.collection, root, **flaw.options)
    assert str(refusal.value) == sentence.format(root=root)


def expected_words() -> dict[tuple[str, str], str]:
    """What is to be said of every flaw, from the tables above."""
    words = dict.fromkeys(HARMLESS, "accepted")
    for name, problem in UNDECODED.items():
        flaw = RECORDED["celeba", name]
        words["celeba", name] = too_many("data/celeba", flaw, [(SECOND, "", problem)], 0)
    words[ONE_LEFT_OUT] = f"accepted, and left out: {SECOND}: {UNDECODED['a truncated JPEG']}"
    for flaw, found, _ in FINDINGS:
        words[flaw.collection, flaw.name] = too_many(f"data/{flaw.collection}", flaw, found, 0)
    for flaw, sentence in REFUSED:
        words[flaw.collection, flaw.name] = sentence.format(root=f"data/{flaw.collection}")
    return words


def test_the_recorded_refusals_are_those_of_a_fresh_run(tmp_path: Path) -> None:
    figures, path = bench.run("refusals", tmp_path)
    harmless = len(HARMLESS) + 1
    refused = len(FLAWS) - harmless
    fresh, kept = pd.read_csv(tmp_path / "refusals.csv"), recorded.read_rows("refusals")
    pd.testing.assert_frame_equal(kept, fresh)
    words = expected_words()
    for row in fresh.itertuples():
        assert row.said == words[row.collection, row.fault], row.fault
    assert len(fresh) == len(RECORDED) == len(FLAWS)
    assert json.loads(path.read_text()) == figures
    assert figures == {"folders": len(FLAWS), "refused": refused, "accepted": harmless}
    text = path.with_suffix(".txt").read_text()
    assert "utkface, an unknown group\n  groups: 'hair' is not one of" in text
    assert max(map(len, text.splitlines())) <= 100
    shown = photograph_chapter.refusals_table(kept).data
    assert shown.count("<tr") == len(FLAWS) + 1 and "an image bomb" in shown


def test_every_collection_is_spoiled_and_none_without_a_flaw_is_refused() -> None:
    for name in COLLECTIONS:
        assert any(flaw.collection == name for flaw in FLAWS)
        assert said(Flaw(name, "none")) == "accepted"


@pytest.mark.parametrize(
    ("name", "colours", "turned"),
    [
        ("a CMYK JPEG", "CMYK", None),
        ("a grey JPEG", "L", None),
        ("a JPEG turned by EXIF", "RGB", 6),
    ],
)
def test_harmless_pictures_are_odd_and_read_as_they_were(
    name: str, colours: str, turned: int | None, tmp_path: Path
) -> None:
    plain = folders.celeba(tmp_path / "plain", n=1)
    odd = RECORDED["celeba", name].folder(tmp_path / "odd")
    with Image.open(odd / SECOND) as opened:
        assert opened.mode == colours and opened.getexif().get(0x0112) == turned
        assert opened.size == ((218, 178) if turned else (178, 218))
    row = listing("celeba", plain).files.tolist().index(SECOND)
    before, after = (
        load("celeba", root=root, size=64, cache=tmp_path / "cache").images[row].float()
        for root in (plain, odd)
    )
    if colours == "L":
        assert (after[0] == after[1]).all() and (after[0] == after[2]).all()
        before = (before * before.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    # JPEG is written twice, and the middle square is another one where it is turned.
    assert (after - before).abs().mean() < 6
