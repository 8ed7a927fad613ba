"""What images show: nobody in two splits, and a name for what is in each."""

from __future__ import annotations

import os
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pixels import count_decodings

from fairq_utils.bench import photograph_folders as folders
from fairq_utils.data import load, population
from fairq_utils.data import pixel_cache as pixels
from fairq_utils.data.decoding import decode
from fairq_utils.data.faces import StoredImages
from fairq_utils.data.photographs import utkface
from fairq_utils.data.photographs.reading import listing
from fairq_utils.errors import BadInput


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folders.utkface(tmp_path / "utkface", n=3)


HELD_OUT = {"calibration": 0.2, "validation": 0.1, "test": 0.3}


def copied(root: Path, one: str, other: str) -> tuple[str, str]:
    """Put an image of one split under the name of one of another, of somebody labelled alike."""
    found = utkface.listing(root, held_out=HELD_OUT)
    labels = found.groups.astype(str).assign(target=found.target).agg(tuple, axis=1)
    source, place = next(
        (str(found.files[i]), str(found.files[j]))
        for i, j in combinations(range(len(found)), 2)
        if (found.split[i], found.split[j], labels[i]) == (one, other, labels[j])
    )
    (root / place).write_bytes((root / source).read_bytes())
    return source, place


def test_nobody_is_tested_on_who_was_trained_on(root: Path, tmp_path: Path) -> None:
    split = utkface.listing(root, held_out=HELD_OUT).split
    options = {"root": root, "size": 32, "cache": tmp_path / "c", "held_out": HELD_OUT}
    trained, tested = copied(root, "train", "test")
    within = copied(root, "calibration", "calibration")
    with pytest.raises(BadInput) as refusal:
        load("utkface", **options)
    assert str(refusal.value).startswith(
        f"{root}: 1 image or label of UTKFace cannot be used and max_bad allows 0: {trained}: is "
        f"the same image as {tested}, which is in test and this one in train"
    )
    data = load("utkface", max_bad=1, **options)
    assert sorted((f["place"], f["kind"]) for f in data.meta["findings"]) == sorted(
        [(trained, "duplicate"), (within[1], "duplicate")]
    )
    assert len(data) == 59 and (data.split == "test").sum() == (split == "test").sum()
    assert (data.split == "train").sum() == (split == "train").sum() - 1
    shown = {image.numpy().tobytes() for image in data.subset("test").images}
    assert not any(p.numpy().tobytes() in shown for p in data.subset("train").images)
    assert len({image.numpy().tobytes() for image in data.images}) == 58
    found = listing("utkface", root, held_out=HELD_OUT)
    left = [i for i, name in enumerate(found.files) if name != trained]
    for row, i in enumerate(left):
        np.testing.assert_array_equal(data.images[row].numpy(), decode(found.read(i), 32))


def test_contents_are_told_apart_split_by_split(root: Path, tmp_path: Path) -> None:
    def contents(folder: Path, **options: Any) -> dict[str, str]:
        options = {"size": 32, "held_out": HELD_OUT, **options}
        return load("utkface", root=folder, cache=tmp_path / "c", **options).meta["contents"]

    first = contents(root)
    assert set(first) == set(population.SPLITS) and len(set(first.values())) == 4
    other = tmp_path / "elsewhere"
    shutil.copytree(root, other, copy_function=shutil.copyfile)  # with other times
    for path in other.iterdir():
        os.utime(path, (1, 1))
    assert contents(other) == contents(other, max_bad=9) == first

    def changed(then: dict[str, str]) -> set[str]:
        return {split for split in first if then.get(split) != first[split]}

    assert changed(contents(root, size=16)) == set(first)
    assert changed(contents(root, target="age>=60")) == set(first)
    assert changed(contents(root, groups=["gender"])) == set(first)
    fewer = {**HELD_OUT, "test": 0.2}  # more to train on, fewer to test
    assert changed(contents(root, held_out=fewer)) == {"train", "test"}
    found = listing("utkface", root, held_out=HELD_OUT)
    assert changed(contents(root, images={"train": 5})) == {"train"}
    place = other / str(found.files[found.split == "validation"][0])
    place.write_bytes(folders.jpeg(500))
    assert changed(contents(other)) == {"validation"}
    place.write_bytes(b"")  # what cannot be read is not there
    without = contents(other, max_bad=1)
    assert changed(without) == {"validation"}
    place.unlink()
    assert contents(other) == without


def test_contents_are_known_without_a_look_at_the_pixels(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load("utkface", root=root, size=32, cache=tmp_path / "c").meta["contents"]
    seen = count_decodings(monkeypatch)
    monkeypatch.setattr(os, "pread", None)
    monkeypatch.setattr(pixels, "_digest", None)
    monkeypatch.setattr(StoredImages, "__getitem__", None)
    again = load("utkface", root=root, size=32, cache=tmp_path / "c").meta["contents"]
    assert again == first and not seen
