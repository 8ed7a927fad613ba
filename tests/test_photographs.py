"""Real photographs: every layout gives the same people, and nothing is left out silently."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from fairq_utils.bench import photograph_folders as folders
from fairq_utils.data import listing as data_listing
from fairq_utils.data import load, population, splits
from fairq_utils.data.photographs import celeba, fairface, utkface
from fairq_utils.data.photographs.reading import listing
from fairq_utils.errors import BadInput
from fairq_utils.study.params import data

LAYOUTS = {
    "celeba": ("text", "official", "torchvision", "csv", "parquet", "parquet_numbers"),
    "utkface": ("flat", "parts", "chips"),
    "fairface": ("folders", "margin025", "margins", "parquet"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Every folder once; whoever changes one copies it first."""
    made: dict[tuple[str, str], Path] = {}

    def folder(name: str, layout: str) -> Path:
        if (name, layout) not in made:
            root = tmp_path_factory.mktemp(f"{name}-{layout}")
            made[name, layout] = getattr(folders, name)(root, layout=layout)
        return made[name, layout]

    return folder


def people(found: data_listing.Listing) -> pd.DataFrame:
    table = found.groups.astype(str).assign(y=found.target, split=found.split)
    return table.set_index(pd.Index(found.keys, name="key")).sort_index()


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_layouts_have_the_same_people(name: str, kept: Callable[[str, str], Path]) -> None:
    first, *others = LAYOUTS[name]
    expected = listing(name, kept(name, first))
    assert not expected.findings and set(expected.split) >= {"train", "test", "calibration"}
    for layout in others:
        options = {"margin": 1.25} if layout == "margins" else {}
        found = listing(name, kept(name, layout), **options)
        assert not found.findings
        if layout == "parquet" and name == "fairface":  # its images come without names
            columns = [*expected.groups.columns, "y"]
            want, got = people(expected)[columns], people(found)[columns]
            assert got.value_counts().to_dict() == want.value_counts().to_dict()
            assert (found.split == "test").sum() == (expected.split == "test").sum()
        else:
            pd.testing.assert_frame_equal(people(found), people(expected))
            images = dict(zip(expected.keys, map(expected.read, range(len(expected))), strict=True))
            for i in range(len(found)):
                assert found.read(i) == images[found.keys[i]]
        assert found.read(0)[:2] == b"\xff\xd8"
        assert found.state is not None and found.state() == found.state()


def test_celeba_labels_are_those_of_the_files(kept: Callable[[str, str], Path]) -> None:
    root = kept("celeba", "text")
    lines = (root / "list_attr_celeba.txt").read_text().splitlines()
    columns, rows = lines[1].split(), [line.split() for line in lines[2:]]
    found = listing(
        "celeba",
        root,
        target="Wearing_Hat",
        groups={"gender": "Male", "hair": "Black_Hair", "beard": "No_Beard"},
    )
    table = people(found)
    for row in rows:
        value = dict(zip(columns, row[1:], strict=True))
        person = table.loc[row[0]]
        assert person.y == (value["Wearing_Hat"] == "1")
        assert person.gender == ("male" if value["Male"] == "1" else "female")
        assert person.hair == ("black hair" if value["Black_Hair"] == "1" else "no black hair")
        assert person.beard == ("no beard" if value["No_Beard"] == "1" else "beard")
    official = dict(line.split() for line in (root / "list_eval_partition.txt").open())
    for key, split in table.split.items():
        wanted = {"0": {"train"}, "1": {"calibration", "validation"}, "2": {"test"}}
        assert split in wanted[official[key]]
    assert list(found.groups.hair.cat.categories) == ["no black hair", "black hair"]
    assert found.meta["classes"] == ("no hat", "hat") and "non-commercial" in found.meta["licence"]


def categories(found: data_listing.Listing) -> dict[str, tuple[str, ...]]:
    return {name: tuple(found.groups[name].cat.categories) for name in found.groups}


def test_celeba_groups_have_the_order_of_rendered_people(
    kept: Callable[[str, str], Path],
) -> None:
    assert categories(listing("celeba", kept("celeba", "text"))) == {
        "gender": ("female", "male"),
        "age": ("old", "young"),
    }
    assert all(len(set(celeba.categories({"x": a})["x"])) == 2 for a in celeba.ATTRIBUTES)


def test_utkface_reads_names(kept: Callable[[str, str], Path]) -> None:
    found = listing("utkface", kept("utkface", "parts"), target="age>=60")
    for name, y, gender, age, race in zip(
        found.files,
        found.target,
        *(found.groups[c] for c in ("gender", "age", "race")),
        strict=True,
    ):
        years, sex, code, _ = Path(name).name.split("_")
        assert y == (int(years) >= 60)
        assert (gender, age) == (
            "male" if sex == "0" else "female",
            "young" if int(years) < 40 else "old",
        )
        assert race == utkface.RACES[int(code)]
    gender = listing("utkface", kept("utkface", "flat"))
    assert ((gender.groups.gender == "male") == (gender.target == 1)).all()
    assert gender.target.sum() == len(gender) / 2


def test_fairface_has_seven_races_and_nine_bands_in_order(kept: Callable[[str, str], Path]) -> None:
    root = kept("fairface", "folders")
    labels = pd.concat(
        pd.read_csv(root / f"fairface_label_{split}.csv") for split in ("train", "val")
    ).set_index("file")
    found = listing(
        "fairface", root, target="young", groups={"r": "race", "a": "age", "o": "age<60"}
    )
    for i, key in enumerate(found.keys):
        row, group = labels.loc[key], found.groups.iloc[i]
        assert group.r == fairface.RACES[row.race] and group.a == fairface.BANDS[row.age]
        start = int(row.age.split("-")[0].split(" ")[-1])
        assert found.target[i] == (start < 40)
        assert group.o == ("age<60" if start < 60 else "age>=60")
    usual = categories(listing("fairface", root))
    assert usual["race"][:3] == ("white", "black", "latino hispanic")
    assert usual["age"] == tuple(fairface.BANDS.values())
    assert len(usual["age"]) == 9


def test_a_split_depends_on_the_name_alone(tmp_path: Path) -> None:
    small = folders.utkface(tmp_path / "small", n=2)
    before = people(listing("utkface", small))
    large = folders.utkface(tmp_path / "large", n=4)
    after = people(listing("utkface", large))
    shared = before.index.intersection(after.index)
    assert len(shared) == len(before) < len(after)
    assert (after.loc[shared, "split"] == before.loc[shared, "split"]).all()


def test_shares_are_met_and_a_larger_share_keeps_the_smaller() -> None:
    keys = [f"{i:06d}.jpg" for i in range(20_000)]
    found = splits.carve(keys, {"calibration": 0.05, "validation": 0.1, "test": 0.2}, "train")
    for split, share in {
        "calibration": 0.05,
        "validation": 0.1,
        "test": 0.2,
        "train": 0.65,
    }.items():
        assert abs((found == split).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(keys))
    shuffled = np.random.default_rng(0).permutation(len(keys))
    again = splits.carve([keys[i] for i in shuffled], {"calibration": 0.05}, "train")
    assert ((again == "calibration") == (found[shuffled] == "calibration")).all()


@pytest.mark.parametrize("held_out", [{"calibration": 0.25}, {"validation": 0.75}])
def test_celebas_valid_split_is_shared_by_hash(
    held_out: dict[str, float], kept: Callable[[str, str], Path]
) -> None:
    found = listing("celeba", kept("celeba", "text"), held_out=held_out)
    place = splits.positions(found.keys.tolist())
    valid = np.isin(found.split, ["calibration", "validation"])
    np.testing.assert_array_equal(found.split[valid] == "calibration", place[valid] < 0.25)
    assert valid.sum() == 16
    assert found.meta["held_out"] == {"calibration": 0.25, "validation": 0.75}


def test_the_first_images_are_the_same_people(kept: Callable[[str, str], Path]) -> None:
    root = kept("celeba", "text")
    everybody = people(listing("celeba", root))
    few = listing("celeba", root, images={"train": 4, "test": 3})
    more = listing("celeba", root, images={"train": 7})
    counts = pd.Series(few.split).value_counts()
    assert counts["train"] == 4 and counts["test"] == 3
    assert counts["calibration"] == (everybody.split == "calibration").sum()
    train = set(few.keys[few.split == "train"])
    assert train < set(more.keys[more.split == "train"])
    pd.testing.assert_frame_equal(people(few), everybody.loc[sorted(few.keys)])
    by_name = dict(zip(few.files, range(len(few)), strict=True))
    for name, i in by_name.items():
        assert few.read(i) == (root / name).read_bytes()
    assert few.digest != more.digest


def test_the_first_images_are_a_sample(tmp_path: Path) -> None:
    """Names of UTKFace begin with an age, so that by their names the first are the youngest."""
    ages = np.random.default_rng(0).integers(1, 100, 1200)
    for i, age in enumerate(ages):
        (tmp_path / f"{age}_{i % 2}_{i % 5}_{20170109142408075 + i}.jpg").touch()
    found = listing("utkface", tmp_path)
    train = found.take(np.flatnonzero(found.split == "train"))
    first = np.array([int(name.split("_")[0]) for name in train.files[:64]])
    assert len(set(first)) > 30 and abs(first.mean() - ages.mean()) < 4 * ages.std() / 8
    few = listing("utkface", tmp_path, images={"train": 64, "test": 5})
    assert few.files[few.split == "train"].tolist() == train.files[:64].tolist()
    place = splits.positions(few.keys.tolist())
    assert (np.diff(place) > 0).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_layouts_have_the_same_order(name: str, kept: Callable[[str, str], Path]) -> None:
    places = []
    for layout in LAYOUTS[name]:
        options = {"margin": 1.25} if layout == "margins" else {}
        found = listing(name, kept(name, layout), **options)
        places.append(found.keys.tolist())
        assert (np.diff(splits.positions(places[-1])) > 0).all()
    if name == "fairface":  # whose images in Parquet come without names
        places.pop()
    assert all(keys == places[0] for keys in places)


def test_line_ends_and_a_byte_order_mark_are_harmless(tmp_path: Path) -> None:
    for name, layout in (("celeba", "text"), ("celeba", "csv"), ("fairface", "folders")):
        root = getattr(folders, name)(tmp_path / f"{name}-{layout}", n=1, layout=layout)
        before = listing(name, root)
        for path in [*root.glob("*.txt"), *root.glob("*.csv")]:
            text = path.read_text()
            path.write_bytes("\ufeff".encode() + text.replace("\n", "\r\n").rstrip().encode())
        after = listing(name, root)
        assert after.digest == before.digest and not after.findings


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({}, "groups: none is named; name one, or leave groups out for all"),
        ([], "groups: none is named; name one, or leave groups out for all"),
        (["gender", "hair"], "groups: 'hair' is not one of gender, age, race"),
        ("hair", "groups: 'hair' is not one of gender, age, race"),
        ({"a|b": "gender"}, "groups: 'a|b' is no name; use letters, digits and _"),
        ({"age": "old"}, "groups.age: 'old' is not one of {known}"),
    ],
)
@pytest.mark.parametrize("name", ["utkface", "fairface"])
def test_groups_that_cannot_be_are_refused(
    name: str, groups: object, sentence: str, kept: Callable[[str, str], Path]
) -> None:
    fields = ["race", "gender", "age", "young", "age>=N", "age<N"]
    with pytest.raises(BadInput) as refusal:
        listing(name, kept(name, LAYOUTS[name][0]), groups=groups)
    assert str(refusal.value) == sentence.format(known=", ".join(fields))


@pytest.mark.parametrize("groups", ["gender", ["gender"], {"gender": "Male"}])
def test_celeba_takes_groups_by_their_names(groups: Any, kept: Callable[[str, str], Path]) -> None:
    found = listing("celeba", kept("celeba", "text"), groups=groups).groups
    assert list(found) == ["gender"] and set(found.gender) == {"female", "male"}


def test_names_are_listed_without_a_reader() -> None:
    """The command line and params files name collections before pandas or PyTorch is there."""
    asked = (
        "import sys\n"
        "from fairq_utils.data.photographs.registry import COLLECTIONS\n"
        "print(*COLLECTIONS, 'numpy' in sys.modules, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, check=True)
    assert found.stdout.decode().split() == [
        "celeba",
        "fairface",
        "folder",
        "utkface",
        "False",
        "False",
    ]


def test_splits_of_params_are_those_of_the_data() -> None:
    assert get_args(data.Split) == population.SPLITS


@pytest.mark.parametrize("ask", [listing, lambda name, root: load(name, root=root)])
def test_an_unknown_collection_is_refused(ask: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data.name: 'utk' is unknown; did you mean 'utkface'\?"):
        ask("utk", tmp_path)


def test_a_link_within_the_root_is_followed(tmp_path: Path) -> None:
    root = folders.utkface(tmp_path, n=1, layout="parts")
    first = next((root / "part1").iterdir())
    (root / "kept").mkdir()
    target = root / "kept" / "original.data"
    first.rename(target)
    os.symlink(target, first)
    assert len(listing("utkface", root)) == 20


def test_integers_stand_for_what_the_file_says(tmp_path: Path) -> None:
    """Two copies of FairFace number men and women the other way round."""
    root = folders.fairface(tmp_path, layout="parquet", bands=2)
    before = listing("fairface", root)
    for path in (root / "0.25").iterdir():
        table = pq.read_table(path)
        flipped = [1 - v for v in table.column("gender").to_pylist()]
        metadata = table.schema.metadata[b"huggingface"].replace(
            b'["Male", "Female"]', b'["Female", "Male"]'
        )
        table = table.set_column(table.column_names.index("gender"), "gender", [flipped])
        pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), path)
    after = listing("fairface", root)
    pd.testing.assert_frame_equal(people(after), people(before))
