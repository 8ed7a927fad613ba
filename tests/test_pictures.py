"""Images that stay on disk: they read like a tensor, train alike, and take no memory."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fairq_utils.bench import photograph_folders as folders
from fairq_utils.data import FaceData, load
from fairq_utils.data.faces import StoredImages
from fairq_utils.data.photographs.reading import load_photographs
from fairq_utils.report import population
from fairq_utils.training import architectures, loop, objectives


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folders.utkface(tmp_path / "utkface", n=3)


def test_images_index_as_a_tensor_does(root: Path, tmp_path: Path) -> None:
    data = load("utkface", root=root, size=16, cache=tmp_path / "c")
    lazy = data.images
    assert isinstance(lazy, StoredImages)
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
    assert isinstance(lazy.images, StoredImages)
    return lazy, replace(lazy, images=lazy.images[:])


def test_face_data_is_the_same_on_disk_and_in_memory(root: Path, tmp_path: Path) -> None:
    lazy, eager = both(root, tmp_path / "c")
    for split in ("train", "test"):
        one, two = lazy.subset(split), eager.subset(split)
        assert isinstance(one.images, StoredImages) and torch.equal(one.images[:], two.images[:])
        assert one.describe().equals(two.describe())
    rows = np.array([5, 2, 59])
    assert torch.equal(lazy.take(rows).images[:], eager.take(rows).images[:])
    sheets = [population.faces_figure(data, rows=1, columns=2) for data in (lazy, eager)]
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
        recipe = loop.Recipe(epochs=2, learning_rate=0.01, batch_size=16)
        loop.fit(model, data, recipe, objectives.Classification(data), seed=3)
        margins.append(loop.predict(model, data.images, batch_size=7))
        assert architectures.normalize(data.images[:4]).shape == (4, 3, 16, 16)
    np.testing.assert_array_equal(*margins)


def anonymous() -> int:
    """Bytes of memory that this process alone has, not counting pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "utkface"
    folder.mkdir()
    for i in range(2000):
        gender, race = i % 2, i % 5
        (folder / f"{20 + i % 60}_{gender}_{race}_{20170109142408075 + i}.jpg").write_bytes(
            folders.jpeg(i, (48, 48))
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
