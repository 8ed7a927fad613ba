"""Photographs decoded once: pixels of a file, a cache that heals, memory that stays flat."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import nn

from fairq_utils import figures, models, objectives, predict, training
from fairq_utils.bench import photograph_folders as folders
from fairq_utils.data import FaceData, celeba, load, parquet_images, pixels, splits, utkface
from fairq_utils.data.decoding import MOST_PIXELS, Unreadable, decode
from fairq_utils.data.photographs import listing, load_photographs
from fairq_utils.data.pixels import Pictures, decoded
from fairq_utils.faults import BadInput, Fault


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def face(size: tuple[int, int] = (90, 120)) -> Image.Image:
    return Image.open(io.BytesIO(folders.jpeg(3, size)))


@pytest.mark.parametrize("size", [(64, 64), (178, 218), (218, 178), (40, 300)])
def test_pixels_are_those_that_a_shipped_model_sees(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(folders.jpeg(1, size))
    found = decode(path.read_bytes(), 48)
    assert found.shape == (3, 48, 48) and found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, predict.picture(path, 48))


def test_resizing_averages_over_what_it_leaves_out() -> None:
    stripes = np.zeros((240, 240, 3), np.uint8)
    stripes[:, ::2] = 255
    found = decode(encoded(Image.fromarray(stripes)), 24)
    assert abs(found.astype(float) - 127.5).max() < 12


def test_drafts_change_little() -> None:
    picture = folders.jpeg(5, (700, 900))
    quick, whole = decode(picture, 64), decode(picture, 64, draft=False)
    difference = np.abs(quick.astype(float) - whole)
    assert 0 < difference.mean() < 1.5


def test_a_camera_s_orientation_is_applied() -> None:
    upright = face((96, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    found = decode(encoded(turned, "JPEG", quality=95, exif=exif), 96)
    expected = np.asarray(upright.convert("RGB")).transpose(2, 0, 1).astype(float)
    assert np.abs(found - expected).mean() < 4
    assert np.abs(decode(encoded(turned, "JPEG", quality=95), 96) - expected).mean() > 10


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("L", "P", "RGBA", "LA", "1")] + [("JPEG", "L"), ("JPEG", "CMYK")],
)
def test_every_mode_becomes_rgb(kind: str, mode: str) -> None:
    image = face((64, 64)).convert("L" if mode in ("L", "LA", "1") else "RGB")
    found = decode(encoded(image.convert(mode), kind), 64)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(float)
    tolerance = {"P": 20, "1": 140}.get(mode, 6)
    assert found.shape == (3, 64, 64) and np.abs(found - expected).mean() < tolerance
    if mode in ("L", "LA", "1"):
        np.testing.assert_array_equal(found[0], found[2])


def bomb() -> bytes:
    return encoded(Image.new("1", (MOST_PIXELS // 1000, 1001)))


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b"", "unreadable", r"is empty \(0 bytes\)"),
        (b"<html>not found</html>", "unreadable", "is no image in a known format"),
        (folders.jpeg, "unreadable", r"cannot be decoded \(image file is truncated\)"),
        (bomb, "unsafe", "has 64000 x 1001 pixels, more than 64,000,000"),
        (
            lambda: encoded(Image.new("1", (20_000, 20_000))),
            "unsafe",
            "has more than 64,000,000 pixels",
        ),
        pytest.param(
            lambda: encoded(Image.new("1", (10_000, 10_000))),
            "unsafe",
            "has 10000 x 10000 pixels, more than 64,000,000",
            marks=pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
        ),
        pytest.param(
            lambda: encoded(Image.new("1", (10_000, 10_000))),
            "unsafe",
            "has more than 64,000,000 pixels",
            marks=pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning"),
        ),
        (
            lambda: encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16))),
            "unreadable",
            r"has more than 8 bits a channel \(mode I;16\)",
        ),
    ],
)
def test_what_is_no_picture_is_refused(
    content: bytes | Callable[..., bytes], kind: str, sentence: str
) -> None:
    if content is folders.jpeg:
        content = folders.jpeg(0)[:900]
    elif callable(content):
        content = content()
    with pytest.raises(Unreadable, match=f"^{sentence}$") as refusal:
        decode(content, 32)
    assert refusal.value.kind == kind


@pytest.mark.parametrize("left", ["1 byte", "7 bytes", "0 bytes"])
def test_why_a_picture_cannot_be_decoded_is_said_without_pillow_s_numbers(
    left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(image: Image.Image) -> Image.Image:
        raise OSError(f"image file is truncated ({left} not processed)")

    monkeypatch.setattr(ImageOps, "exif_transpose", fails)
    with pytest.raises(Unreadable, match=r"^cannot be decoded \(image file is truncated\)$"):
        decode(folders.jpeg(0), 32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folders.utkface(tmp_path / "utkface", n=3)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "CHUNK", 8)
    monkeypatch.setattr(pixels, "SYNCED", 1)


def count_decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []

    def counted(content: bytes, size: int) -> np.ndarray:
        seen.append(len(content))
        return decode(content, size)

    monkeypatch.setattr(pixels, "decode", counted)
    return seen


def test_pictures_are_decoded_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_decodings(monkeypatch)
    told: list[tuple[str, int, int]] = []
    first = load(
        "utkface", root=root, size=32, cache=tmp_path / "c", progress=lambda *a: told.append(a)
    )
    assert len(seen) == len(first) == 60 and told[-1] == ("utkface", 60, 60)
    # Another question about the same pictures needs no other pixels.
    again = load("utkface", root=root, size=32, cache=tmp_path / "c", target="age>=60")
    assert len(seen) == 60 and torch.equal(again.images[:], first.images[:])
    for i in (0, 17, 59):
        expected = decode((root / listing("utkface", root).files[i]).read_bytes(), 32)
        np.testing.assert_array_equal(first.images[i].numpy(), expected)
    load("utkface", root=root, size=16, cache=tmp_path / "c")
    assert len(seen) == 120
    changed = sorted(root.iterdir())[4]
    changed.write_bytes(folders.jpeg(77))
    load("utkface", root=root, size=32, cache=tmp_path / "c")
    assert len(seen) == 180
    assert first.meta["licence"] == "non-commercial research only"
    assert len(first.meta["digest"]) == 64 and first.meta["findings"] == []


def only_folder(cache: Path) -> Path:
    (folder,) = [p for p in (cache / "photographs").iterdir() if not p.name.startswith(".")]
    return folder


def flipped(folder: Path) -> None:
    with (folder / "images.npy").open("r+b") as file:
        file.seek(128 + 20 * 3 * 32 * 32)  # in the third chunk of eight
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def shortened(folder: Path) -> None:
    with (folder / "images.npy").open("r+b") as file:
        file.truncate(5000)


def grown(folder: Path) -> None:
    with (folder / "images.npy").open("ab") as file:
        file.write(b"end")


def said_to_be_otherwise(folder: Path) -> None:
    """The same number of bytes, but the header tells of other pictures."""
    path = folder / "images.npy"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(60, 3, 32, 32)", b"(3, 60, 32, 32)", 1))
    os.utime(path, (1, 1))


def another_digest(folder: Path) -> None:
    path = folder / "journal.jsonl"
    lines = path.read_text().splitlines()
    entry = json.loads(lines[2])
    entry["digests"][3] = entry["digests"][4]
    lines[2] = json.dumps(entry)
    path.write_text("\n".join(lines) + "\n")


def journal_cut(folder: Path) -> None:
    path = folder / "journal.jsonl"
    path.write_text(path.read_text()[:-30])


@pytest.mark.parametrize(
    ("damage", "again", "said"),
    [
        (flipped, 8, "images.npy does not match its checksums"),
        (shortened, 60, "images.npy has 5000 bytes, not 184448"),
        (grown, 60, "images.npy has 184451 bytes, not 184448"),
        (said_to_be_otherwise, 60, "images.npy is not the array of these pictures"),
        (lambda folder: (folder / "images.npy").unlink(), 60, "it cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{"), 0, "it cannot be read"),
        (journal_cut, 4, "journal.jsonl does not match its checksum"),
        (another_digest, 8, "journal.jsonl does not match its checksum"),
    ],
    ids=[
        "a flipped bit",
        "a short file",
        "a longer file",
        "another array",
        "no file",
        "no manifest",
        "a cut journal",
        "another digest",
    ],
)
def test_a_damaged_cache_is_mended_where_it_is_damaged(
    damage: Callable[[Path], None],
    again: int,
    said: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_chunks: None,
) -> None:
    cache = tmp_path / "c"
    whole = load("utkface", root=root, size=32, cache=cache)
    want = whole.images[:]
    damage(only_folder(cache))
    seen = count_decodings(monkeypatch)
    with pytest.warns(UserWarning, match=said):
        healed = load("utkface", root=root, size=32, cache=cache)
    assert len(seen) == again and torch.equal(healed.images[:], want)
    assert healed.meta["contents"] == whole.meta["contents"]
    load("utkface", root=root, size=32, cache=cache)
    assert len(seen) == again


def test_a_copied_cache_is_checked_and_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("utkface", root=root, size=32, cache=tmp_path / "c")
    os.utime(only_folder(tmp_path / "c") / "images.npy", (1, 1))
    seen = count_decodings(monkeypatch)
    load("utkface", root=root, size=32, cache=tmp_path / "c")
    assert not seen


def test_an_interrupted_decoding_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    found = listing("utkface", root)
    read = found.read
    done: list[int] = []

    def interrupted(i: int) -> bytes:
        if len(done) == 35:
            raise KeyboardInterrupt
        done.append(i)
        return read(i)

    with pytest.raises(KeyboardInterrupt):
        decoded(replace(found, read=interrupted), 32, tmp_path, threads=1)
    assert not [p for p in (tmp_path / "photographs").iterdir() if not p.name.startswith(".")]
    seen = count_decodings(monkeypatch)
    pictures, rows, _, left_out = decoded(found, 32, tmp_path, threads=1)
    assert len(seen) == 60 - 32 and not left_out and rows.tolist() == list(range(60))
    assert done == found.as_stored()[:35].tolist() != list(range(35))
    for i in range(60):
        np.testing.assert_array_equal(pictures[i].numpy(), decode(read(i), 32))


KILLED = """
import sys, time
from pathlib import Path
from fairq_utils.data import pixels
from fairq_utils.data.photographs import listing
pixels.CHUNK, pixels.SYNCED = 8, 1
plain = pixels.decode
pixels.decode = lambda content, size: (time.sleep(0.05), plain(content, size))[1]
pixels.decoded(listing("utkface", sys.argv[1]), 32, Path(sys.argv[2]), threads=1)
"""


def test_a_killed_decoding_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(root), str(tmp_path)])
    journal = None
    try:
        for _ in range(1200):
            journal = next(iter((tmp_path / "photographs").glob(".*.part/journal.jsonl")), None)
            if journal is not None and len(journal.read_text().splitlines()) >= 2:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert journal is not None
    before = len(journal.read_text().splitlines())
    assert 2 <= before < 8
    seen = count_decodings(monkeypatch)
    pictures = decoded(listing("utkface", root), 32, tmp_path, threads=1).pictures
    assert len(seen) == 60 - 8 * before
    np.testing.assert_array_equal(pictures[0].numpy(), decode(listing("utkface", root).read(0), 32))


def test_pictures_that_cannot_be_decoded_are_named(root: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in root.iterdir())
    (root / names[0]).write_bytes(b"")
    (root / names[9]).write_bytes(folders.jpeg(0)[:700])
    with pytest.raises(BadInput) as refusal:
        load("utkface", root=root, size=32, cache=tmp_path / "c", max_bad=1)
    assert str(refusal.value).startswith(
        f"{root}: 2 pictures or labels of UTKFace cannot be used and max_bad allows 1: "
        f"{names[0]}: is empty (0 bytes); {names[9]}: cannot be decoded (image file is truncated)"
    )
    data = load("utkface", root=root, size=32, cache=tmp_path / "c", max_bad=2)
    assert len(data) == 58 and data.images.shape == (58, 3, 32, 32)
    assert [f["place"] for f in data.meta["findings"]] == [names[0], names[9]]
    everything = listing("utkface", root)
    left = [i for i in range(60) if everything.files[i] not in (names[0], names[9])]
    np.testing.assert_array_equal(data.target, everything.target[left])
    for row, i in enumerate(left):
        np.testing.assert_array_equal(data.images[row].numpy(), decode(everything.read(i), 32))


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(5, "Input/output error"), "Input/output error"), (MemoryError(), "memory is short")],
)
@pytest.mark.parametrize("where", ["reading", "decoding"])
def test_what_is_not_the_picture_s_fault_is_not_kept(
    where: str,
    error: Exception,
    said: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_chunks: None,
) -> None:
    found = utkface.listing(root)
    read = found.read
    if where == "decoding":
        monkeypatch.setattr(ImageOps, "exif_transpose", lambda image: fail())
        error, said = MemoryError(), "memory is short"

    def fail() -> bytes:
        raise error

    ill = replace(found, read=lambda i: fail() if i == 20 and where == "reading" else read(i))
    with pytest.raises(Fault) as fault:
        decoded(ill, 32, tmp_path / "c", threads=1)
    name = found.files[20 if where == "reading" else 0]
    assert str(fault.value) == (
        f"{name}: cannot be read now ({said}); see to it and run the same command, which goes on"
    )
    monkeypatch.undo()
    monkeypatch.setattr(pixels, "CHUNK", 8)
    seen = count_decodings(monkeypatch)
    healthy = decoded(found, 32, tmp_path / "c", threads=1)
    assert not healthy.findings and len(healthy.pictures) == 60
    assert len(seen) == (44 if where == "reading" else 60)


def spoilt_group(root: Path) -> Path:
    """A shard whose second row group does not begin as one."""
    path = root / "img_align+identity+attr/test-00000-of-00001.parquet"
    group = pq.ParquetFile(path).metadata.row_group(1)
    columns = [group.column(c) for c in range(group.num_columns)]
    (image,) = [c for c in columns if c.path_in_schema == "image.bytes"]
    with path.open("r+b") as file:
        file.seek(image.dictionary_page_offset or image.data_page_offset)
        file.write(b"\xff" * 16)
    return path


def test_a_damaged_shard_costs_its_pictures_and_an_ill_disk_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folders.celeba(tmp_path / "celeba", n=1, layout="parquet")
    path = spoilt_group(root)
    data = load("celeba", root=root, size=32, cache=tmp_path / "c", max_bad=3)
    assert [f["place"].split("#")[1] for f in data.meta["findings"]] == ["5", "6", "7"]
    for finding in data.meta["findings"]:
        assert finding["kind"] == "unreadable"
        assert finding["problem"].startswith(f"cannot be read ({path.name}: ")

    def ill(*arguments: object, **options: object) -> pa.Table:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", ill)
    with pytest.raises(Fault, match=r"cannot be read now \(Input/output error\)"):
        load("celeba", root=root, size=16, cache=tmp_path / "c", max_bad=24)


def test_a_link_to_nothing_is_a_missing_picture(root: Path, tmp_path: Path) -> None:
    first = sorted(root.iterdir())[0]
    first.unlink()
    first.symlink_to(root / "nobody.jpg")
    data = load("utkface", root=root, size=32, cache=tmp_path / "c", max_bad=1)
    (finding,) = data.meta["findings"]
    assert finding == {
        "place": first.name, "kind": "missing", "problem": "is a link to what is not there"
    }  # fmt: skip
    assert len(data) == 59


HELD_OUT = {"calibration": 0.2, "validation": 0.1, "test": 0.3}


def copied(root: Path, one: str, other: str, split: NDArray[np.str_]) -> tuple[str, str]:
    """Put the first picture of one split under the name of the last one of another."""
    names = utkface.listing(root, held_out=HELD_OUT).files
    source, place = names[split == one][0], names[split == other][-1]
    (root / place).write_bytes((root / source).read_bytes())
    return str(source), str(place)


def test_nobody_is_tested_on_who_was_trained_on(root: Path, tmp_path: Path) -> None:
    split = utkface.listing(root, held_out=HELD_OUT).split
    options = {"root": root, "size": 32, "cache": tmp_path / "c", "held_out": HELD_OUT}
    trained, tested = copied(root, "train", "test", split)
    within = copied(root, "calibration", "calibration", split)
    with pytest.raises(BadInput) as refusal:
        load("utkface", **options)
    assert str(refusal.value).startswith(
        f"{root}: 1 picture or label of UTKFace cannot be used and max_bad allows 0: {trained}: is "
        f"the same picture as {tested}, which is in test and this one in train"
    )
    data = load("utkface", max_bad=1, **options)
    assert sorted((f["place"], f["kind"]) for f in data.meta["findings"]) == sorted(
        [(trained, "duplicate"), (within[1], "duplicate")]
    )
    assert len(data) == 59 and (data.split == "test").sum() == (split == "test").sum()
    assert (data.split == "train").sum() == (split == "train").sum() - 1
    shown = {picture.numpy().tobytes() for picture in data.subset("test").images}
    assert not any(p.numpy().tobytes() in shown for p in data.subset("train").images)
    assert len({picture.numpy().tobytes() for picture in data.images}) == 58
    found = listing("utkface", root, held_out=HELD_OUT)
    left = [i for i, name in enumerate(found.files) if name != trained]
    for row, i in enumerate(left):
        np.testing.assert_array_equal(data.images[row].numpy(), decode(found.read(i), 32))


def test_contents_are_told_apart_split_by_split(root: Path, tmp_path: Path) -> None:
    def contents(folder: Path, **options: Any) -> dict[str, str]:
        options = {"size": 32, "held_out": HELD_OUT, **options}
        return load("utkface", root=folder, cache=tmp_path / "c", **options).meta["contents"]

    first = contents(root)
    assert set(first) == set(splits.SPLITS) and len(set(first.values())) == 4
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
    monkeypatch.setattr(Pictures, "__getitem__", None)
    again = load("utkface", root=root, size=32, cache=tmp_path / "c").meta["contents"]
    assert again == first and not seen


def test_a_row_without_a_picture_is_named(tmp_path: Path) -> None:
    root = folders.celeba(tmp_path / "celeba", n=1, layout="parquet")
    path = root / "img_align+identity+attr/test-00000-of-00001.parquet"
    table = pq.read_table(path)
    rows = table.column("image").to_pylist()
    rows[2] = {"bytes": None, "path": rows[2]["path"]}
    kind = table.schema.field("image").type
    table = table.set_column(0, "image", pa.array(rows, kind))
    pq.write_table(table, path, row_group_size=3)
    data = load("celeba", root=root, size=32, cache=tmp_path / "c", max_bad=1)
    assert data.meta["findings"] == [
        {
            "place": "img_align+identity+attr/test-00000-of-00001.parquet#2",
            "kind": "unreadable",
            "problem": "is empty (0 bytes)",
        }
    ]
    assert len(data) == 23


def test_row_groups_are_read_once_and_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folders.celeba(tmp_path / "celeba", n=2, layout="parquet")
    read: list[int] = []
    plain = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        read.append(group)
        return plain(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    groups = sum(pq.ParquetFile(path).metadata.num_row_groups for path in root.rglob("*.parquet"))
    found = listing("celeba", root)
    places = found.files[found.as_stored()].tolist()
    assert places == celeba.listing(root).files.tolist() != found.files.tolist()
    decoded(found, 16, tmp_path / "c", threads=2)
    assert len(read) == groups
    found = listing("celeba", root)
    order = found.as_stored().reshape(4, 12).T.ravel()  # as four threads would
    for i in order:
        found.read(int(i))
    assert len(read) == 2 * groups
    monkeypatch.setattr(parquet_images, "KEPT_BYTES", 1)
    found = listing("celeba", root)
    for i in found.as_stored():
        found.read(int(i))
    assert len(read) == 3 * groups


def test_pictures_index_as_a_tensor_does(root: Path, tmp_path: Path) -> None:
    data = load("utkface", root=root, size=16, cache=tmp_path / "c")
    lazy = data.images
    assert isinstance(lazy, Pictures)
    lazy = lazy.take(np.random.default_rng(0).permutation(60)[:50])
    eager = torch.stack(list(lazy))
    assert (lazy.shape, lazy.dtype, lazy.ndim, len(lazy)) == (eager.shape, eager.dtype, 4, 50)
    mask = torch.arange(50) % 3 == 0
    for index in (
        0,
        -1,
        slice(None),
        slice(10, 20),
        slice(None, None, 7),
        slice(50, 60),
        torch.tensor([3, 1, 1, 49]),
        torch.tensor([], dtype=torch.int64),
        mask,
        mask.numpy(),
        np.array([4, -2]),
        [5, 6, 7],
    ):
        assert torch.equal(lazy[index], eager[index]), index
    pairs = zip(lazy.split(16), eager.split(16), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    rows = np.array([7, 3, 40])
    assert torch.equal(lazy.take(rows)[:], eager[torch.from_numpy(rows)])
    assert torch.equal(lazy.take(mask.numpy())[:], eager[mask])
    with pytest.raises(IndexError):
        lazy[50]
    with pytest.raises(IndexError):
        lazy[torch.ones(49, dtype=torch.bool)]
    copy = lazy[0:3]
    copy.zero_()
    assert torch.equal(lazy[0:3], eager[0:3])
    sent = pickle.dumps(lazy)
    assert len(sent) < 2000 and torch.equal(pickle.loads(sent)[:], eager)


def both(root: Path, cache: Path) -> tuple[FaceData, FaceData]:
    lazy = load_photographs("utkface", root=root, size=16, cache=cache)
    assert isinstance(lazy.images, Pictures)
    return lazy, replace(lazy, images=lazy.images[:])


def test_face_data_is_the_same_on_disk_and_in_memory(root: Path, tmp_path: Path) -> None:
    lazy, eager = both(root, tmp_path / "c")
    for split in ("train", "test"):
        one, two = lazy.subset(split), eager.subset(split)
        assert isinstance(one.images, Pictures) and torch.equal(one.images[:], two.images[:])
        assert one.describe().equals(two.describe())
    rows = np.array([5, 2, 59])
    assert torch.equal(lazy.take(rows).images[:], eager.take(rows).images[:])
    sheets = [figures.face_sheet(data, rows=1, columns=2) for data in (lazy, eager)]
    titles = [[axis.get_title() for axis in sheet.axes] for sheet in sheets]
    first = lazy.groups.iloc[0]
    answer = ("female", "male")[lazy.target[0]]
    assert titles[0] == titles[1]
    assert titles[0][0] == f"{first.gender}, {first.age}\n{first.race}\n{answer}"


def test_training_is_the_same_on_disk_and_in_memory(root: Path, tmp_path: Path) -> None:
    margins = []
    for data in both(root, tmp_path / "c"):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 2),
        )  # fmt: skip
        recipe = training.Recipe(epochs=2, learning_rate=0.01, batch_size=16)
        training.fit(model, data, recipe, objectives.Classification(data), seed=3)
        margins.append(training.predict(model, data.images, batch_size=7))
        assert models.normalize(data.images[:4]).shape == (4, 3, 16, 16)
    np.testing.assert_array_equal(*margins)


def anonymous() -> int:
    """Bytes of memory that this process alone has, not counting pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "utkface"
    folder.mkdir()
    for i in range(2000):
        gender, race = i % 2, i % 5
        (folder / f"{20 + i % 60}_{gender}_{race}_{20170109142408075 + i}.jpg").write_bytes(
            folders.jpeg(i, (48 + i // 250, 48 + i // 250))  # nobody twice
        )
    size = 128  # 98 MB of pixels

    def most(images: dict[str, int] | None) -> int:
        """The most memory at any time of decoding and of an epoch's reads."""
        seen = []
        data = load(
            "utkface",
            root=folder,
            size=size,
            cache=tmp_path / "c",
            threads=2,
            images=images,
            progress=lambda *done: seen.append(anonymous()),
        )
        train = data.subset("train")
        for rows in torch.randperm(len(train)).split(64):
            assert train.images[rows].shape == (len(rows), 3, size, size)
            seen.append(anonymous())
        return max(seen)

    before = most({"train": 700})  # with what threads and libraries keep for themselves
    assert most(None) - before < 20e6


def test_a_cache_that_cannot_be_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file")
    with pytest.raises(BadInput, match=r"c/photographs: cannot be made \(.*\); name another cache"):
        load("utkface", root=root, size=32, cache=tmp_path / "c")


def test_a_full_disk_is_said(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        BadInput, match=r"\.part: cannot be written \(No space left on device\); 0.0"
    ):
        load("utkface", root=root, size=32, cache=tmp_path / "c")


def test_a_manifest_says_what_the_pictures_are(root: Path, tmp_path: Path) -> None:
    load("utkface", root=root, size=32, cache=tmp_path / "c")
    manifest = json.loads((only_folder(tmp_path / "c") / "manifest.json").read_text())
    assert manifest["listing"] == utkface.listing(root).digest
    assert manifest["recipe"]["size"] == 32 and manifest["recipe"]["pictures"] == 60
    with pytest.raises(BadInput, match=r"data.size: 8 pixels is not between 16 and 512"):
        load("utkface", root=root, size=8, cache=tmp_path / "c")
