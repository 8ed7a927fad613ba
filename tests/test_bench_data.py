"""The benchmark of photographs: rates of decoding and reading, memory."""

from __future__ import annotations

import gc
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fairq_utils import bench, timers
from fairq_utils.bench import decoding
from fairq_utils.cli import app
from fairq_utils.data.pixel_cache import Decoded
from fairq_utils.errors import BadInput


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(decoding, "IMAGES", (64, 256))
    rng = np.random.default_rng(0)
    folder = tmp_path / "faces" / "below"
    folder.mkdir(parents=True)
    for i in range(5):
        rough = Image.fromarray(rng.integers(0, 256, (28, 24, 3), np.uint8))
        rough.resize((decoding.WIDTH, decoding.HEIGHT)).save(folder / f"{i}.jpg")
    (folder / "notes.txt").write_text("no picture")
    return tmp_path / "faces"


def test_a_folder_is_measured_and_kept(photographs: Path, tmp_path: Path) -> None:
    found, path = bench.run("data", tmp_path / "bench", root=photographs)
    assert json.loads(path.read_text()) == found
    # The study trains on pictures that were decoded once: what that is for.
    assert found["ratio"] >= 20
    assert found["ratio"] == pytest.approx(
        found["read_per_second"] / found["decoded_per_second"], rel=0.01
    )
    assert (found["files"], found["size"], found["made_of"]) == (5, 64, str(photographs))
    sizes = [path.stat().st_size for path in photographs.rglob("*.jpg")]
    assert found["bytes_per_file"] == round(np.mean(sizes))
    assert list(found["memory"]) == list(found["pixels_mb"])
    assert list(found["pixels_mb"].values()) == [0.8, 3.1]
    assert "ratio" in path.with_suffix(".txt").read_text()


def test_rendered_faces_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FACES", 2)
    files = sorted(decoding._rendered(tmp_path / "rendered").iterdir())
    assert len(files) == 2
    contents = [Image.open(io.BytesIO(file.read_bytes())) for file in files]
    assert {(image.size, image.format) for image in contents} == {((178, 218), "JPEG")}
    assert np.asarray(contents[0]).std() > 20
    assert files[0].read_bytes() != files[1].read_bytes()


def test_memory_that_is_kept_is_seen(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure of memory sees pixels that are held; those on disk are not."""

    def held(listing: Any, size: int, cache: Path) -> Any:
        images = torch.ones(16_000, 3, 64, 64, dtype=torch.uint8)
        return Decoded(images, np.arange(4000), np.array([""]), ())

    gc.collect()  # what other tests left behind must not be freed meanwhile
    before = timers.anonymous_memory()
    if before is None:
        pytest.skip("the system does not tell")
    monkeypatch.setattr(decoding, "decoded", held)
    listing = decoding._listing(photographs, ["below/0.jpg"], 4000)
    used = decoding._memory(listing, photographs)
    assert used is not None
    assert used > 0.5 * 16_000 * 3 * 64 * 64


def test_folders_that_cannot_be_measured(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = CliRunner().invoke(app, ["bench", "data", "--root", str(tmp_path / "empty")])
    assert answer.exit_code == 2
    assert "there is no image file" in answer.stderr
    (photographs / "below" / "2.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match=r"below/2.jpg: is empty .*; mend or remove it"):
        bench.run("data", tmp_path / "bench", root=photographs)
    with pytest.raises(BadInput, match="bench: render takes no folder; leave --root out"):
        bench.run("render", tmp_path / "bench", root=photographs)
