"""Fetching a collection: from a server on this machine that stands for the remote one."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fairq_utils.cli import app
from fairq_utils.data import download
from fairq_utils.data.download import fetch, get, unpack
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.photographs.terms import RemoteFile, Source
from fairq_utils.errors import BadInput, Fault

LABELS = b"1\n5_o_Clock_Shadow Male\n000001.jpg 1 -1\n" * 40_000  # more than one chunk
Usage = namedtuple("Usage", "total used free")


def zipped(names: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(names: dict[str, bytes], link: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in names.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return stream.getvalue()


PICTURES = zipped({"img_align_celeba/000001.jpg": b"one", "img_align_celeba/000002.jpg": b"two"})


class Remote(ThreadingHTTPServer):
    """Files by path; a path in ``cut`` is broken off after so many bytes, once for each number."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {"/labels": LABELS, "/pictures": PICTURES}
        self.cut: dict[str, list[int]] = {}
        self.ranges: list[str | None] = []
        self.kind = "application/octet-stream"
        self.resumes = True
        self.begins: int | None = 0  # bytes that a part begins behind what was asked for

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle, as some tests do, is not worth a traceback."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        remote: Any = self.server
        whole = remote.files.get(self.path)
        if whole is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        remote.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        start = start if remote.resumes else 0
        if start and start >= len(whole):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(whole)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start and remote.begins is not None:
            start += remote.begins
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Type", remote.kind)
        self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        cuts = remote.cut.get(self.path) or [len(whole)]
        self.wfile.write(whole[start : start + (cuts.pop(0) if cuts else len(whole))])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def remote() -> Iterator[Remote]:
    server = Remote()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def labels(remote: Remote, **changes: Any) -> RemoteFile:
    md5 = hashlib.md5(LABELS).hexdigest()
    return RemoteFile(**{"name": "labels.txt", "url": remote.url("/labels"), "md5": md5, **changes})


def collection(remote: Remote) -> Source:
    archive = RemoteFile("img.zip", remote.url("/pictures"), gives=("img_align_celeba",))
    return Source(
        "Faces", "https://faces.example", "research only", "A (2015)", (labels(remote), archive)
    )


def test_get_puts_everything_in_its_place(remote: Remote, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found = get(collection(remote), tmp_path / "root", lambda *at: seen.append(at))
    root = tmp_path / "root"
    assert found == [root / "labels.txt", root / "img_align_celeba"]
    assert (root / "labels.txt").read_bytes() == LABELS
    assert (root / "img_align_celeba" / "000002.jpg").read_bytes() == b"two"
    assert sorted(path.name for path in root.iterdir()) == ["img_align_celeba", "labels.txt"]
    assert ("labels.txt", len(LABELS), len(LABELS)) in seen
    assert ("img.zip", len(PICTURES), len(PICTURES)) in seen
    asked = len(remote.ranges)
    assert get(collection(remote), root) == found
    assert len(remote.ranges) == asked  # what is there is not fetched again


def test_an_archive_has_a_folder_of_its_own(remote: Remote, tmp_path: Path) -> None:
    remote.files["/faces"] = zipped({"train/1.jpg": b"1", "val/2.jpg": b"2"})
    archive = RemoteFile("m.zip", remote.url("/faces"), gives=("train", "val"), into="margin")
    source = Source("Faces", "https://faces.example", "free", "A (2015)", (archive,))
    assert get(source, tmp_path) == [tmp_path / "margin/train", tmp_path / "margin/val"]
    assert (tmp_path / "margin/val/2.jpg").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["margin"]
    hand = source.by_hand("faces")
    assert "unpack m.zip so that there is faces/margin/train and faces/margin/val" in hand


def test_an_interrupted_download_goes_on(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "labels.txt.part").write_bytes(LABELS[:1000])
    # However often it breaks off, as long as something comes each time.
    remote.cut["/labels"] = [500, 700_000, 10, 10, 10]
    assert fetch(labels(remote), tmp_path).read_bytes() == LABELS
    assert remote.ranges[:3] == ["bytes=1000-", "bytes=1500-", "bytes=701500-"]
    assert len(remote.ranges) == 6


@pytest.mark.parametrize("begins", [-100, 100])
@pytest.mark.parametrize("md5", [True, False])
def test_a_part_that_begins_elsewhere_is_not_appended(
    remote: Remote, tmp_path: Path, begins: int, md5: bool
) -> None:
    remote.cut["/labels"] = [1_000_000]
    remote.begins = begins
    file = labels(remote) if md5 else labels(remote, md5=None)
    assert fetch(file, tmp_path).read_bytes() == LABELS
    assert remote.ranges == [None, "bytes=1000000-", None]


def test_a_part_that_does_not_say_where_it_begins_needs_a_checksum(
    remote: Remote, tmp_path: Path
) -> None:
    remote.begins = None
    for file, asked in ((labels(remote, md5=None), 3), (labels(remote, name="again"), 2)):
        remote.cut["/labels"] = [1_000_000]
        remote.ranges.clear()
        assert fetch(file, tmp_path).read_bytes() == LABELS
        assert len(remote.ranges) == asked


def test_a_connection_that_always_breaks_off_keeps_the_part(remote: Remote, tmp_path: Path) -> None:
    remote.cut["/labels"] = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(Fault, match=r"broke off\); 1.0 MB are kept, the same command goes on"):
        fetch(labels(remote), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.txt.part"]
    remote.cut.clear()
    assert fetch(labels(remote), tmp_path).read_bytes() == LABELS
    assert remote.ranges[-1] == "bytes=1000000-"


def test_a_server_that_cannot_resume_starts_again(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "labels.txt.part").write_bytes(b"x" * 1000)
    remote.resumes = False
    assert fetch(labels(remote), tmp_path).read_bytes() == LABELS


def test_a_part_that_is_whole_or_too_long(remote: Remote, tmp_path: Path) -> None:
    part = tmp_path / "labels.txt.part"
    part.write_bytes(LABELS)
    assert fetch(labels(remote), tmp_path).read_bytes() == LABELS
    (tmp_path / "labels.txt").unlink()
    part.write_bytes(LABELS + b"more")
    assert fetch(labels(remote), tmp_path).read_bytes() == LABELS


def test_a_wrong_checksum_leaves_nothing(remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"labels.txt: what http.* its MD5 is .* in the place of 00"):
        fetch(labels(remote, md5="00"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_file_of_that_name_is_not_overwritten(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("mine")
    with pytest.raises(Fault, match=r"is not the collection's file.* move it away"):
        get(collection(remote), tmp_path)
    assert (tmp_path / "labels.txt").read_text() == "mine"


def test_a_page_in_the_place_of_the_file(remote: Remote, tmp_path: Path) -> None:
    remote.kind = "text/html; charset=utf-8"
    with pytest.raises(Fault, match="answers with a page in the place of the file"):
        fetch(labels(remote, md5=""), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there(remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="answered 404 Not Found; by hand, ask"):
        fetch(labels(remote, url=remote.url("/none")), tmp_path, otherwise="ask")


def test_no_space(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage(10, 9, 1))
    with pytest.raises(Fault, match=r"labels.txt: needs 2 MB more, but .* has 0 MB free"):
        fetch(labels(remote), tmp_path)
    assert not (tmp_path / "labels.txt").exists()


def test_a_disk_that_fills_up(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(name: str, done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(Fault, match=r"labels.txt.part: the disk is full after \d MB"):
        fetch(labels(remote), tmp_path, full)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.txt.part"]
    assert fetch(labels(remote), tmp_path).read_bytes() == LABELS


def test_a_local_source_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_bytes(LABELS)
    file = RemoteFile("labels.txt", (tmp_path / "given.txt").as_uri())
    assert fetch(file, tmp_path).read_bytes() == LABELS


@pytest.mark.parametrize(
    "content",
    [
        zipped({"train/1.jpg": b"1", "../outside.jpg": b"2"}),
        zipped({"train/1.jpg": b"1", "/tmp/outside.jpg": b"2"}),
        zipped({"train/1.jpg": b"1", "train/..\\outside.jpg": b"2"}),
        tarred({"train/1.jpg": b"1", "train/../../outside.jpg": b"2"}),
    ],
)
def test_an_archive_that_leaves_its_folder(content: bytes, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    archive = tmp_path / "a.zip"
    archive.write_bytes(content)
    with pytest.raises(Fault, match="would be written outside the folder"):
        unpack(archive, root, ("train",))
    assert not list(root.iterdir())
    assert not list(tmp_path.rglob("outside*"))


def test_links_in_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tarred({"UTKFace/1.jpg": b"1"}, link="UTKFace/2.jpg"))
    with pytest.raises(Fault, match=r"'UTKFace/2.jpg' is a link or a device"):
        unpack(archive, tmp_path, ("UTKFace",))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_damaged_archive(keep: float, tmp_path: Path) -> None:
    whole = tarred({f"UTKFace/{i}.jpg": bytes(range(256)) * 40 for i in range(20)})
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(Fault, match=r"a.tar.gz: the archive is damaged"):
        unpack(archive, tmp_path, ("UTKFace",))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_damaged_picture_in_a_zip(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"train/1.jpg": b"picture"}).replace(b"picture", b"pictuRe"))
    with pytest.raises(Fault, match=r"the archive is damaged \(Bad CRC"):
        unpack(archive, tmp_path, ("train",))


def test_folders_are_found_a_level_down(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    names = {"fair/train/1.jpg": b"1", "./val/2.jpg": b"2", "__MACOSX/train/._1.jpg": b"", "x": b""}
    archive.write_bytes(zipped(names))
    assert unpack(archive, tmp_path, ("train", "val")) == [tmp_path / "train", tmp_path / "val"]
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["a.zip", "train/1.jpg", "val/2.jpg"]
    with pytest.raises(Fault, match="there is no folder test in it"):
        unpack(archive, tmp_path, ("test",))


def test_an_archive_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"train/1.jpg": b"1" * 2_000_000}))
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage(10, 0, 1_000_000))
    with pytest.raises(Fault, match=r"unpacked it takes 2 MB, but .* has 1 MB free"):
        unpack(archive, tmp_path, ("train",))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("name", [name for name, c in COLLECTIONS.items() if c.published])
def test_sources_say_their_terms(name: str) -> None:
    source = COLLECTIONS[name].source()
    assert all(file.url.startswith("https://drive.") for file in source.files)
    terms = source.terms()
    for line in (source.title, source.home, source.licence, source.citation):
        assert line in terms
    for file in source.files:
        assert file.name in terms
        assert file.name in source.by_hand("faces")


def test_sources_are_what_others_hold() -> None:
    from torchvision.datasets import CelebA

    ours = {file.name: file for file in COLLECTIONS["celeba"].source().files}
    for identifier, md5, name in CelebA.file_list:
        if name in ours:
            assert identifier in ours[name].url
            assert ours[name].md5 == md5
    assert set(ours) == {"img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt"}
    source = COLLECTIONS["fairface"].source
    wide, narrow = (source(margin=margin).files[-1] for margin in ("1.25", "0.25"))
    assert wide.name != narrow.name
    assert wide.into == "fairface-img-margin125-trainval"
    assert narrow.into == "fairface-img-margin025-trainval"
    assert wide.url != narrow.url


def test_options_of_a_collection_are_checked() -> None:
    fairface = COLLECTIONS["fairface"]
    assert fairface.checked({"margin": 1.25}) == {"margin": "1.25"}
    with pytest.raises(BadInput, match=r"margin: '2' is not one of 0.25, 1.25"):
        fairface.checked({"margin": "2"})
    with pytest.raises(BadInput, match=r"margn: 'margn' is unknown; did you mean 'margin'\?"):
        fairface.checked({"margn": "0.25"})
    with pytest.raises(BadInput, match="margin: celeba has no options of its own"):
        COLLECTIONS["celeba"].checked({"margin": "0.25"})


def test_the_command_asks_for_the_licence_first(remote: Remote, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["data", "get", "celeba", "--root", str(tmp_path / "faces")])
    assert answer.exit_code == 2
    assert "non-commercial research" in answer.output
    assert "mmlab.ie.cuhk.edu.hk" in answer.output
    assert "Liu, Luo, Wang and Tang" in answer.output
    assert "--accept-licence" in answer.stderr
    assert not (tmp_path / "faces").exists()


def test_the_command_gets(remote: Remote, tmp_path: Path) -> None:
    entry = replace(COLLECTIONS["celeba"], source=lambda: collection(remote))
    asked = ["data", "get", "celeba", "--root", str(tmp_path), "--accept-licence"]
    with COLLECTIONS.as_shipped(celeba=entry):
        answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 0, answer.output
    assert str(tmp_path / "img_align_celeba") in answer.output
    assert "fairq data check celeba" in answer.output
    remote.server_close()


def test_the_command_without_network(tmp_path: Path) -> None:
    away = RemoteFile("labels.txt", "http://127.0.0.1:9/labels")  # where nothing listens
    source = Source("Faces", "https://faces.example", "free", "A (2015)", (away,))
    entry = replace(COLLECTIONS["utkface"], source=lambda: source)
    asked = ["data", "get", "utkface", "--root", str(tmp_path), "--accept-licence"]
    with COLLECTIONS.as_shipped(utkface=entry):
        answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 1
    assert "cannot be reached" in answer.stderr
    assert f"from https://faces.example: put labels.txt into {tmp_path}" in answer.stderr
    assert not list(tmp_path.iterdir())
