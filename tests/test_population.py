"""The rendered population: same people everywhere, the asked-for make-up, a sound cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fairq_utils.data import load
from fairq_utils.data.population import CELEBA_JOINT, SPLITS, Population, demographics, draw, keys
from fairq_utils.data.render import render
from fairq_utils.data.whole_files import NotRead, NotWritten

LABELS = ["l-eye-scale-incr", "r-eye-scale-incr", "nose-hump-incr"]


def people(population: Population, split: str, indices: np.ndarray):
    return draw(population, split, indices, LABELS)


def test_a_person_does_not_depend_on_the_others() -> None:
    population = Population()
    many = people(population, "train", np.arange(50))
    few = people(population, "train", np.array([41, 7]))
    for i, j in ((0, 41), (1, 7)):
        assert few.target[i] == many.target[j]
        assert few.smile[i] == many.smile[j]
        np.testing.assert_array_equal(few.actions[i], many.actions[j])
        for name in few.look:
            np.testing.assert_array_equal(few.look[name][i], many.look[name][j])


def test_splits_share_no_key() -> None:
    indices = np.arange(1000)
    seen = {tuple(k) for split in SPLITS for k in keys(3, split, indices)}
    assert len(seen) == len(SPLITS) * len(indices)


def test_joint_distribution_is_celebas() -> None:
    drawn = people(Population(), "train", np.arange(8000))
    total = sum(CELEBA_JOINT.values())
    table = drawn.groups.assign(y=drawn.target)
    for cell, weight in CELEBA_JOINT.items():
        gender, age, y = cell.split("|")
        share = ((table.gender == gender) & (table.age == age) & (table.y == int(y))).mean()
        expected = weight / total
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(table))


def test_base_rates_and_ancestry_are_dials() -> None:
    joint = dict.fromkeys(CELEBA_JOINT, 0.0) | {"male|old|1": 1.0}
    race = {"african": 0.0, "asian": 1.0, "caucasian": 0.0}
    drawn = people(Population(joint=joint, race=race), "test", np.arange(200))
    assert (drawn.target == 1).all()
    assert set(drawn.groups.gender) == {"male"}
    assert set(drawn.groups.age) == {"old"}
    assert set(drawn.groups.race) == {"asian"}


def test_difficulty_moves_the_overlap() -> None:
    wrong = []
    for difficulty in (0.0, 1.0, 2.0):
        population = Population(difficulty=difficulty)
        drawn = people(population, "train", np.arange(4000))
        wrong.append(float(((drawn.smile > 0.5) != (drawn.target == 1)).mean()))
        assert wrong[-1] == pytest.approx(1 - population.bayes_accuracy, abs=0.02)
    assert wrong[0] == 0 < wrong[1] < wrong[2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"difficulty": 5.0}, "difficulty"),
        ({"joint": {"female|old|1": 1.0}}, "joint"),
        ({"joint": dict.fromkeys(CELEBA_JOINT, 0.0)}, "joint"),
        ({"race": {"african": 1.0}}, "race"),
        ({"race": {"african": -1.0, "asian": 1.0, "caucasian": 1.0}}, "race"),
    ],
)
def test_impossible_populations_are_refused(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Population(**options)


def test_pixels_do_not_depend_on_the_batch() -> None:
    population = Population(seed=11)
    together, _ = render(population, "train", np.arange(130), 32, device="cpu")
    alone, _ = render(population, "train", np.array([3, 127]), 32, device="cpu", threads=1)
    for i, j in ((0, 3), (1, 127)):
        assert np.abs(alone[i].astype(int) - together[j].astype(int)).max() <= 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_pixels_agree_between_cpu_and_cuda() -> None:
    indices = np.arange(64)
    cpu, _ = render(Population(), "train", indices, 64, device="cpu")
    cuda, _ = render(Population(), "train", indices, 64, device="cuda:0")
    assert np.abs(cpu.astype(int) - cuda.astype(int)).max() <= 2


def test_pictures_show_a_head_on_a_background() -> None:
    images, drawn = render(Population(seed=5), "train", np.arange(32), 48, device="cpu")
    assert images.shape == (32, 3, 48, 48)
    centre = images[:, :, 20:30, 20:30].reshape(32, -1).mean(axis=1)
    assert images.reshape(32, -1).std(axis=1).min() > 8, "a picture is blank"
    # Skin reflectance must show: light skin is brighter than dark skin.
    race = np.concatenate([p.groups.race for p in drawn])
    assert centre[race == "caucasian"].mean() > centre[race == "african"].mean() + 20


def test_the_smile_moves_the_mouth() -> None:
    """Two renderings of one person that differ in Smiling alone differ around the mouth."""
    joint0 = {k: (1.0 if k.endswith("0") else 0.0) for k in CELEBA_JOINT}
    joint1 = {k: (1.0 if k.endswith("1") else 0.0) for k in CELEBA_JOINT}
    pictures = []
    for joint in (joint0, joint1):
        joint = {k: v if k.startswith("female|young") else 0.0 for k, v in joint.items()}
        pictures.append(
            render(Population(joint=joint), "train", np.arange(16), 64, device="cpu")[0]
        )
    change = np.abs(pictures[0].astype(float) - pictures[1].astype(float)).mean(axis=(0, 1))
    mouth, forehead = change[40:50, 24:40].mean(), change[12:22, 24:40].mean()
    assert mouth > 2 * forehead


def test_cache_is_reused_and_a_damaged_one_rebuilt(tmp_path) -> None:
    options = {"sizes": {"train": 6, "test": 4}, "size": 32, "cache": tmp_path}
    first = load("population", **options)
    assert list(first.split) == ["train"] * 6 + ["test"] * 4
    calls: list[str] = []
    again = load("population", **options, progress=lambda s, *_: calls.append(s))
    assert not calls, "a cached split was rendered again"
    assert torch.equal(first.images, again.images)
    file = next(tmp_path.glob("population/train-*/images.npy"))
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 255
    file.write_bytes(bytes(blob))
    with pytest.warns(UserWarning, match="checksum"):
        healed = load("population", **options, progress=lambda s, *_: calls.append(s))
    assert set(calls) == {"train"}
    assert torch.equal(first.images, healed.images)
    assert not list(tmp_path.glob("population/.*")), "scratch folders were left behind"


def test_face_data_refuses_rows_that_do_not_match(tmp_path) -> None:
    data = load("population", sizes={"train": 4}, size=32, cache=tmp_path)
    with pytest.raises(ValueError, match="groups has 3 rows"):
        type(data)(data.images, data.target, data.groups.iloc[:3], data.split)
    with pytest.raises(ValueError, match="'test' has no images"):
        data.subset("test")
    with pytest.raises(ValueError, match="'imagenet' is unknown"):
        load("imagenet")


def test_pictures_are_ordinary_rgb(tmp_path) -> None:
    data = load("population", sizes={"train": 2}, size=32, cache=tmp_path)
    picture = Image.fromarray(data.images[0].permute(1, 2, 0).numpy())
    assert picture.size == (32, 32)


def test_demographics_alone_are_those_of_the_people() -> None:
    population = Population(seed=3)
    indices = np.array([5, 0, 77])
    target, groups = demographics(population, "calibration", indices)
    whole = people(population, "calibration", indices)
    np.testing.assert_array_equal(target, whole.target)
    pd.testing.assert_frame_equal(groups, whole.groups)


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    """The folder of a rendered split in a cache."""
    load("population", sizes={"test": 3}, size=32, cache=tmp_path)
    [folder] = (tmp_path / "population").iterdir()
    return folder


def test_a_full_disk_keeps_no_half_of_the_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: Path, images: np.ndarray) -> None:
        Path(place).write_bytes(b"half")
        raise OSError(f"{images.size} requested and 438144 written")  # as NumPy has it

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(NotWritten, match=r"test-\w+: could not be written \(9216 requested"):
        load("population", sizes={"test": 3}, size=32, cache=tmp_path)
    assert list((tmp_path / "population").iterdir()) == []


@pytest.mark.parametrize("name", ["manifest.json", "images.npy", "people.parquet"])
def test_faces_that_cannot_be_read_are_not_damaged(
    name: str, rendered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def ill(path: Path, *args: object, **options: object) -> object:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", ill)
        with pytest.raises(NotRead, match=rf"{name}: cannot be read \(Permission denied\)"):
            load("population", sizes={"test": 3}, size=32, cache=rendered.parents[1])
    assert len(list(rendered.iterdir())) == 3


def test_the_umask_says_who_may_read_the_faces(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        load("population", sizes={"test": 3}, size=32, cache=tmp_path)
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640)


@pytest.mark.parametrize("even", [("gender", "age"), ("age",), ("gender", "race"), ("race",)])
def test_an_even_population_has_as_many_of_each_cell_and_is_else_the_same(even) -> None:
    who = Population(even=even)
    drawn = people(who, "test", np.arange(6000))
    groups, whole = drawn.groups, sum(CELEBA_JOINT.values())
    counts = groups[list(even)].value_counts()
    assert len(counts) == len(who.turns) and set(counts) == {6000 // len(who.turns)}
    assert sum(who.shares.values()) == pytest.approx(1)
    target, again = demographics(who, "test", np.arange(6000))
    assert np.array_equal(target, drawn.target) and again.equals(groups)
    # Weighed by the shares, everybody is there as often as by joint and race.
    cell = list(zip(*(groups[name] for name in even), strict=True))
    weight = np.array([who.shares[tuple(c)] * len(who.turns) for c in cell])
    assert weight.mean() == pytest.approx(1)
    for name, mass in CELEBA_JOINT.items():
        gender, age, y = name.split("|")
        there = (groups.gender == gender) & (groups.age == age) & (drawn.target == int(y))
        error = np.std(there * weight) / np.sqrt(6000)
        assert abs(np.mean(there * weight) - mass / whole) < 4 * error
    few = people(who, "test", np.array([17, 5]))
    assert list(few.groups.race) == list(groups.race[[17, 5]])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"even": ("gender", "hair")}, "even: gender, hair must be some of gender, age, race"),
        ({"even": ("age", "age")}, "each once"),
        (
            {"even": ("race",), "race": {"african": 1.0, "asian": 0.0, "caucasian": 1.0}},
            "even: nobody is asian",
        ),
    ],
)
def test_an_even_population_that_cannot_be(options, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Population(**options)
