"""Files written whole: on a full disk, beside rivals, by the umask, and nothing left over."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fairq_utils.data.whole_files import NotRead, NotWritten, readable, written_whole


def test_what_was_there_stays_where_the_disk_is_full(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    target.write_text("before")
    with (
        pytest.raises(NotWritten, match=r"a\.csv: could not be written \(No space left on device"),
        written_whole(target) as place,
    ):
        place.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_other_errors_are_their_own_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), written_whole(tmp_path / "a.csv") as place:
        place.write_text("half")
        raise KeyError("a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["parent", "folder"])
def test_a_place_that_cannot_be_is_named(what: str, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.csv"
    if what == "parent":
        (tmp_path / "a").write_text("in the way")
    else:
        target.mkdir(parents=True)
    with (
        pytest.raises(NotWritten, match=r"b\.csv: could not be written .*; name another --table"),
        written_whole(target, way_out="name another --table") as place,
    ):
        place.write_text("x")
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def test_a_device_is_written_to_and_stays_one() -> None:
    with written_whole(os.devnull) as place:
        place.write_text("x")
    assert not Path(os.devnull).is_file()
    with (
        pytest.raises(NotWritten, match="/dev/full: could not be written"),
        written_whole("/dev/full") as place,
    ):
        place.write_text("x")


def test_a_file_that_nobody_may_write_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "a.csv", tmp_path / "link.csv"
    target.write_text("before")
    target.chmod(0o444)
    link.symlink_to(target)
    for path in (target, link):
        sentence = rf"{path.name}: could not be written \(it is read-only\); name another --out"
        with (
            pytest.raises(NotWritten, match=sentence),
            written_whole(path, way_out="name another --out") as place,
        ):
            place.write_text("after")
    with written_whole(target, first_stays=True) as place:
        place.write_text("after")
    assert target.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    target.chmod(0o644)
    with written_whole(target) as place:
        place.write_text("after")
    assert target.read_text() == "after"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to("kept/a.csv")
    with written_whole(link) as place:
        place.write_text("x")
    assert link.is_symlink()
    assert (tmp_path / "kept" / "a.csv").read_text() == "x"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_whoever_writes(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with written_whole(tmp_path / "a.csv") as place:
            place.write_text("x")
            place.chmod(0o600)  # as a writer does that has a temporary file of its own
    finally:
        os.umask(before)
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_first_stays(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with written_whole(tmp_path / "a.csv", first_stays=True) as place:
            place.write_text(content)
    assert (tmp_path / "a.csv").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_read_is_told_from_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), readable(tmp_path / "a"):
        (tmp_path / "a").read_bytes()
    with pytest.raises(NotRead, match=r"cannot be read \(Is a directory\)"), readable(tmp_path):
        tmp_path.read_bytes()
