"""Vouching for a folder: counts against published ones, damage, duplicates, sizes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fairq_utils.data.listing import KINDS, Finding, Listing
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.photographs.terms import Published
from fairq_utils.data.population import CELEBA_JOINT
from fairq_utils.data.vouch import vouch

SPLITS = ("train", "calibration", "validation", "test")


def image(seed: int, size: tuple[int, int] = (12, 16), kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def listing(contents: list[bytes], findings: tuple[Finding, ...] = (), **meta: Any) -> Listing:
    """Images of women and men, old and young, in all four splits."""
    n = len(contents)
    rows = np.arange(n)

    def read(i: int) -> bytes:
        if contents[i] == b"gone":
            raise FileNotFoundError(2, "No such file or directory")
        return contents[i]

    return Listing(
        name="faces",
        files=np.array([f"{i:03d}.jpg" for i in rows]),
        target=(rows % 2).astype(np.int8),
        groups=pd.DataFrame(
            {
                "gender": pd.Categorical(np.where(rows // 2 % 2, "male", "female")),
                "age": pd.Categorical(np.where(rows // 4 % 2, "old", "young")),
            }
        ),
        split=np.array(SPLITS)[rows // 8 % 4],
        read=read,
        findings=findings,
        meta={"target": "Smiling", **meta},
    )


JOINT = {
    f"{gender}|{age}|{label}": 4
    for gender in ("female", "male")
    for age in ("old", "young")
    for label in "01"
}
WHOLE = Published(
    images=32,
    source="this test",
    splits={("train", "calibration"): 16, ("validation",): 8, ("test",): 8},
    joint=JOINT,
    attributes={"gender": "Male", "age": "Young"},
    target="Smiling",
    size=(12, 16),
)


@pytest.fixture(scope="module")
def sound() -> list[bytes]:
    return [image(i) for i in range(32)]


def found(report: Any, check: str, of: str) -> Any:
    rows = report.table[(report.table.check == check) & (report.table.of == of)]
    assert len(rows) == 1, report.table
    return rows.iloc[0]


def test_a_sound_collection(sound: list[bytes]) -> None:
    seen: list[tuple[int, int]] = []
    report = vouch(listing(sound), published=WHOLE, progress=lambda *at: seen.append(at))
    assert report.ok
    assert (report.lost, report.findings) == (0, ())
    assert seen == [(i, 32) for i in range(1, 33)]
    whole = found(report, "images", "all")
    assert (whole.found, whole.expected) == (32, "32")
    # An official split is compared as a whole, whatever its reader makes of it.
    assert found(report, "images", "train + calibration").found == 16
    assert found(report, "group", "gender=male").found == 16
    assert found(report, "gender|age|Smiling", "male|old|1").found == 4
    assert set(KINDS) <= set(report.table.check)


def test_counts_that_are_not_the_published_ones(sound: list[bytes]) -> None:
    report = vouch(listing(sound[:-2]), published=WHOLE)
    assert not report.ok
    wrong = report.table[~report.table.ok]
    assert wrong.of.tolist() == ["all", "test", "male|old|0", "male|old|1"]
    assert vouch(listing(sound[:-2]), published=WHOLE, max_bad=2).ok
    assert not vouch(listing(sound[:-2]), published=WHOLE, max_bad=1).ok
    assert vouch(listing(sound[:-2])).ok  # a part of a collection


def test_another_target_is_compared_without_labels(sound: list[bytes]) -> None:
    report = vouch(listing(sound, target="Young"), published=WHOLE)
    assert report.ok
    assert found(report, "gender|age", "male|old").found == 8
    hats = listing(sound, groups={"gender": "Male", "age": "Wearing_Hat"})
    report = vouch(hats, published=WHOLE)
    assert report.ok
    assert found(report, "gender|Smiling", "female|0").found == 8
    assert "gender|age|Smiling" not in set(report.table.check)


DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("unreadable", lambda whole: whole[: len(whole) // 2], "cannot be decoded"),
    ("unreadable", lambda whole: b"", "is empty"),
    ("unreadable", lambda whole: b"<html>no image</html>", "is no image"),
    ("unreadable", lambda whole: b"gone", "No such file"),
]


@pytest.mark.parametrize(("kind", "damage", "problem"), DAMAGE)
@pytest.mark.parametrize("published", [WHOLE, None])
def test_damage(
    sound: list[bytes],
    kind: str,
    damage: Callable[[bytes], bytes],
    problem: str,
    published: Published | None,
) -> None:
    contents = [*sound]
    contents[5] = damage(sound[5])
    report = vouch(listing(contents), published=published)
    assert not report.ok
    (finding,) = report.findings
    assert (finding.place, finding.kind, finding.counts) == ("005.jpg", kind, True)
    assert problem in finding.problem
    assert report.table[report.table.check == kind].found.item() == 1
    assert report.table[~report.table.ok].check.tolist() == ["lost"]
    assert vouch(listing(contents), published=published, max_bad=1).ok


@pytest.mark.parametrize("published", [WHOLE, None])
def test_images_of_another_size_are_told_and_used(
    sound: list[bytes], published: Published | None
) -> None:
    report = vouch(listing([*sound[:31], image(99, (16, 12))]), published=published)
    assert report.ok and report.lost == 0
    (finding,) = report.findings
    assert (finding.place, finding.kind, finding.counts) == ("031.jpg", "size", False)
    assert "is 16 x 12 pixels, where" in finding.problem
    assert report.table[report.table.check == "size"].of.item().endswith("(1 without loss)")


def test_without_pixels_only_bytes_are_seen(sound: list[bytes]) -> None:
    contents = [*sound]
    contents[5] = sound[5][:-40]
    contents[6] = b""
    contents[8] = sound[0]
    report = vouch(listing(contents), pixels=False)
    assert [(f.place, f.kind) for f in report.findings] == [
        ("006.jpg", "unreadable"),
        ("000.jpg", "duplicate"),  # of train, and 008 of calibration
    ]


def test_duplicates_within_and_across_splits(sound: list[bytes]) -> None:
    contents = [*sound, *(image(i) for i in range(32, 40))]  # eight more of train
    contents[24] = contents[32] = sound[0]  # test, and train again, of the same labels
    contents[33] = sound[1]  # train again
    report = vouch(listing(contents))
    assert [f.place for f in report.findings] == ["000.jpg", "032.jpg", "033.jpg"]
    assert {f.kind for f in report.findings} == {"duplicate"}
    across = "is the same image as 024.jpg, which is in test and this one in train"
    within = "is the same image as 001.jpg"
    assert [f.problem for f in report.findings] == [across, across, within]
    assert [f.counts for f in report.findings] == [True, True, False]
    assert report.lost == 2 and not report.ok
    row = report.table[report.table.check == "duplicate"].iloc[0]
    assert row.found == 3
    assert "(1 without loss)" in row.of


def test_of_copies_with_other_labels_none_stays(sound: list[bytes]) -> None:
    contents = [*sound]
    contents[4] = sound[0]  # train, as is 0, and of an old person in the place of a young one
    report = vouch(listing(contents))
    assert [(f.place, f.problem) for f in report.findings] == [
        ("000.jpg", "is the same image as 004.jpg, with other labels"),
        ("004.jpg", "is the same image as 000.jpg, with other labels"),
    ]
    assert report.lost == 2 and not report.ok and vouch(listing(contents), max_bad=2).ok
    contents[24] = sound[0]  # test, of the labels that 0 has
    report = vouch(listing(contents))
    assert report.lost == 3
    assert report.findings[2].problem == (
        "is the same image as 004.jpg, which is in train and this one in test, with other labels"
    )


@pytest.mark.parametrize("there", [(0, 8), (8, 16), (0, 16), (16, 24), (0, 8, 16, 24)])
def test_of_copies_the_one_that_is_held_out_furthest_stays(
    sound: list[bytes], there: tuple[int, ...]
) -> None:
    contents = [*sound]
    for i in there:
        contents[i] = sound[there[0]]
    *others, stays = (f"{i:03d}.jpg" for i in there)
    report = vouch(listing(contents))
    assert [f.place for f in report.findings] == others and report.lost == len(others)
    assert all(f"same image as {stays}" in f.problem for f in report.findings)


def test_the_same_image_in_another_encoding(sound: list[bytes]) -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(sound[0])).save(stream, "PNG")
    contents = [*sound]
    contents[24] = stream.getvalue()
    assert [f.place for f in vouch(listing(contents)).findings] == ["000.jpg"]
    assert not vouch(listing(contents), pixels=False).findings


def test_what_the_reader_left_out_counts(sound: list[bytes]) -> None:
    left = (
        Finding("list.txt:7", "label", "Male is 3, not one of -1, 1"),
        Finding("notes.txt", "name", "is no image file", counts=False),
    )
    report = vouch(listing(sound, left), published=WHOLE)
    assert report.findings == left
    assert report.lost == 1
    assert not report.ok


def test_a_group_of_nobody(sound: list[bytes]) -> None:
    faces = listing(sound)
    faces.groups["age"] = faces.groups["age"].cat.add_categories("middle")
    report = vouch(faces)
    assert not report.ok
    assert report.table[~report.table.ok].of.tolist() == ["age=middle"]


def test_a_negative_limit(sound: list[bytes]) -> None:
    with pytest.raises(ValueError, match="max_bad: -1"):
        vouch(listing(sound), max_bad=-1)


def test_published_counts_are_consistent() -> None:
    counts = {name: entry.published for name, entry in COLLECTIONS.items() if entry.published}
    celeba = counts["celeba"]
    assert celeba.joint == CELEBA_JOINT
    assert sum(celeba.joint.values()) == celeba.images == 202_599
    for published in counts.values():
        assert published.source
        if published.splits:
            assert sum(published.splits.values()) == published.images
    assert celeba.cells(("age", "race"), "Smiling")["old|1"] == 10191 + 13326
    assert counts["utkface"].cells(("gender",), "gender") == {}
