"""Photographs decoded once: a cache that heals, and keeps what is wrong with an image alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fairq_utils.bench import photograph_folders as folders
from fairq_utils.data import load, parquet_images
from fairq_utils.data import pixel_cache as pixels
from fairq_utils.data.decoding import decode
from fairq_utils.data.photographs import celeba, utkface
from fairq_utils.data.photographs.reading import listing
from fairq_utils.data.pixel_cache import decoded
from fairq_utils.errors import BadInput, Fault


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


def test_images_are_decoded_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_decodings(monkeypatch)
    told: list[tuple[str, int, int]] = []
    first = load(
        "utkface", root=root, size=32, cache=tmp_path / "c", progress=lambda *a: told.append(a)
    )
    assert len(seen) == len(first) == 60 and told[-1] == ("utkface", 60, 60)
    # Another question about the same images needs no other pixels.
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
    """The same number of bytes, but the header tells of other images."""
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
        (said_to_be_otherwise, 60, "images.npy is not the array of these images"),
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
    images, rows, _, left_out = decoded(found, 32, tmp_path, threads=1)
    assert len(seen) == 60 - 32 and not left_out and rows.tolist() == list(range(60))
    assert done == found.as_stored()[:35].tolist() != list(range(35))
    for i in range(60):
        np.testing.assert_array_equal(images[i].numpy(), decode(read(i), 32))


KILLED = """
import sys, time
from pathlib import Path
from fairq_utils.data import pixel_cache as pixels
from fairq_utils.data.photographs.reading import listing
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
    images = decoded(listing("utkface", root), 32, tmp_path, threads=1).images
    assert len(seen) == 60 - 8 * before
    np.testing.assert_array_equal(images[0].numpy(), decode(listing("utkface", root).read(0), 32))


def test_images_that_cannot_be_decoded_are_named(root: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in root.iterdir())
    (root / names[0]).write_bytes(b"")
    (root / names[9]).write_bytes(folders.jpeg(0)[:700])
    with pytest.raises(BadInput) as refusal:
        load("utkface", root=root, size=32, cache=tmp_path / "c", max_bad=1)
    assert str(refusal.value).startswith(
        f"{root}: 2 images or labels of UTKFace cannot be used and max_bad allows 1: "
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
def test_what_is_not_the_image_s_fault_is_not_kept(
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
        monkeypatch.setattr(Image.Image, "convert", lambda image, mode: fail())
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
    assert not healthy.findings and len(healthy.images) == 60
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


def test_a_damaged_shard_costs_its_images_and_an_ill_disk_none(
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


def test_a_link_to_nothing_is_a_missing_image(root: Path, tmp_path: Path) -> None:
    first = sorted(root.iterdir())[0]
    first.unlink()
    first.symlink_to(root / "nobody.jpg")
    data = load("utkface", root=root, size=32, cache=tmp_path / "c", max_bad=1)
    (finding,) = data.meta["findings"]
    assert finding == {
        "place": first.name,
        "kind": "missing",
        "problem": "is a link to what is not there",
        "counts": True,
    }
    assert len(data) == 59


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
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
            "counts": True,
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


def test_a_manifest_says_what_the_images_are(root: Path, tmp_path: Path) -> None:
    load("utkface", root=root, size=32, cache=tmp_path / "c")
    manifest = json.loads((only_folder(tmp_path / "c") / "manifest.json").read_text())
    assert manifest["listing"] == utkface.listing(root).digest
    assert manifest["recipe"]["size"] == 32 and manifest["recipe"]["pictures"] == 60
    with pytest.raises(BadInput, match=r"data.size: 8 pixels is not between 16 and 512"):
        load("utkface", root=root, size=8, cache=tmp_path / "c")
