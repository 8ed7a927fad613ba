"""CelebA: 202,599 photographs of celebrities with 40 attributes.

Liu, Luo, Wang and Tang 2015, "Deep Learning Face Attributes in the Wild", ICCV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from fairq_utils.data import questions
from fairq_utils.data import splits as carving
from fairq_utils.data.files import (
    FileBytes,
    Held,
    first_that_is,
    nowhere,
    standing_in,
    with_images,
)
from fairq_utils.data.label_tables import read_labels
from fairq_utils.data.listing import Finding, Listing
from fairq_utils.data.parquet_images import ParquetBytes, gather
from fairq_utils.data.photographs.registry import collection
from fairq_utils.data.photographs.terms import (
    DRIVE,
    RESEARCH_ONLY,
    Published,
    RemoteFile,
    Source,
)
from fairq_utils.data.population import CELEBA_JOINT
from fairq_utils.data.questions import ATTRIBUTES as OURS
from fairq_utils.errors import BadInput

ATTRIBUTES = tuple(
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee "
    "Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard "
    "Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair "
    "Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie "
    "Young".split()
)
TARGET = "Smiling"
GROUPS = {"gender": "Male", "age": "Young"}
# Absent, present. Those that are not listed are things one has: "no bangs", "bangs".
SAYING = {
    "Male": OURS["gender"],
    "Young": OURS["age"],
    "No_Beard": ("beard", "no beard"),
    "Mouth_Slightly_Open": ("mouth closed", "mouth open"),
    **{name: (f"not {name.lower()}", name.lower()) for name in
       ("Attractive", "Bald", "Blurry", "Chubby", "Smiling")},
}  # fmt: skip
HELD_OUT = {"calibration": 0.5, "validation": 0.5}  # of the official valid split
PARTITIONS = {"0": "train", "1": "valid", "2": "test"}
VALUES = frozenset({"-1", "0", "1"})  # some copies have 0 for absent
SHARDS = {"train": "train", "valid": "valid", "validation": "valid", "test": "test"}
PARQUET = ("", "data", "img_align+identity+attr")
PUBLISHED = Published(
    images=202_599,
    source="Liu et al. 2015, Deep Learning Face Attributes in the Wild: list_attr_celeba.txt and "
    "list_eval_partition.txt",
    splits={("train",): 162_770, ("calibration", "validation"): 19_867, ("test",): 19_962},
    joint={cell: int(images) for cell, images in CELEBA_JOINT.items()},
    attributes=GROUPS,
    target=TARGET,
    size=(178, 218),
)
META = {
    "source": "CelebA (Liu et al. 2015), mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    "licence": "non-commercial research only",
    "citation": "liu2015deep",
}


def categories(
    groups: Mapping[str, str] | Sequence[str] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Names of each sensitive attribute's values, absent before present.

    >>> categories({"gender": "Male", "hat": "Wearing_Hat"})
    {'gender': ('female', 'male'), 'hat': ('no hat', 'hat')}
    """
    found = {}
    for name, attribute in questions.chosen(groups, GROUPS).items():
        _known(attribute, f"groups.{name}")
        thing = attribute.removeprefix("Wearing_").replace("_", " ").lower()
        found[name] = SAYING.get(attribute, (f"no {thing}", thing))
    return found


def listing(
    root: Path,
    *,
    target: str | None = None,
    groups: Mapping[str, str] | Sequence[str] | None = None,
    held_out: Mapping[str, float] | None = None,
) -> Listing:
    """List what a folder with CelebA holds.

    Layouts: the distribution's own (``list_attr_celeba.txt``, ``list_eval_partition.txt`` and
    ``img_align_celeba/``, flat or in its folders ``Anno``, ``Eval`` and ``Img``), the CSV files of
    Kaggle, either below a folder ``celeba`` as torchvision has it, and the Parquet files of
    Hugging Face, where attributes are booleans (flwrlabs/celeba) or -1 and 1
    (tpremoli/CelebA-attrs).

    Parameters
    ----------
    target : one of :data:`ATTRIBUTES`, Smiling unless named
    groups : our name -> attribute, ``{"gender": "Male", "age": "Young"}`` unless named
    held_out : shares of the official valid split that become ``calibration`` and ``validation``,
        halves unless named; train and test are the official ones
    """
    target = _known(target or TARGET, "target")
    chosen = questions.chosen(groups, GROUPS)
    named = categories(chosen)
    columns = [target, *(c for c in dict.fromkeys(chosen.values()) if c != target)]
    parts = shares(held_out)
    held = _files(root, columns)
    split = held.official.copy()
    valid = np.flatnonzero(split == "valid")
    split[valid] = carving.carve(
        [held.keys[i] for i in valid], {"calibration": parts["calibration"]}, rest="validation"
    )
    return Listing(
        name="celeba",
        files=np.array(held.files, np.str_),
        target=held.labels[target].astype(np.int8),
        groups=pd.DataFrame(
            {
                name: pd.Categorical.from_codes(
                    held.labels[attribute].astype(np.int8), categories=list(named[name])
                )
                for name, attribute in chosen.items()
            }
        ),
        split=split,
        read=held.read,
        state=held.read.state,
        keys=np.array(held.keys, np.str_),
        findings=tuple(held.findings),
        meta={
            **META,
            "layout": held.layout,
            "target": target,
            "classes": categories({"target": target})["target"],
            "groups": chosen,
            "splits": "official; calibration and validation by SHA-256 of the name, out of valid",
            "held_out": parts,
        },
    )


def shares(held_out: Mapping[str, float] | None = None) -> dict[str, float]:
    """Shares of the official valid split: naming one of its two parts names both.

    >>> shares({"validation": 0.75})
    {'calibration': 0.25, 'validation': 0.75}
    """
    found = dict(held_out or {})
    for split, share in found.items():
        if split not in HELD_OUT:
            raise BadInput(
                f"held_out: {split!r} is not carved by hash here; name {', '.join(HELD_OUT)}"
            )
        carving.check_share(split, share)
    if len(found) == 2 and abs(sum(found.values()) - 1) > 1e-9:
        raise BadInput(
            f"held_out: calibration {found['calibration']:g} and validation "
            f"{found['validation']:g} are shares of CelebA's valid split and must add up to 1; "
            "name one of them"
        )
    rest = 1 - found.get("validation", HELD_OUT["validation"])
    share = float(found.get("calibration", rest))
    return {"calibration": share, "validation": 1 - share}


def source() -> Source:
    """Terms and files; identifiers and checksums are torchvision's, which follows CelebA's page."""
    from torchvision.datasets import CelebA

    known = {name: (identifier, md5) for identifier, md5, name in CelebA.file_list}
    files = []
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba.zip"):
        identifier, md5 = known[name]
        gives = ("img_align_celeba",) if name.endswith(".zip") else ()
        files.append(RemoteFile(name, DRIVE.format(identifier), md5, gives))
    return Source(
        title="CelebA (Large-scale CelebFaces Attributes), aligned and cropped",
        home="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        licence="for non-commercial research and education only; the images belong to others, "
        "and may not be passed on or published",
        citation="Liu, Luo, Wang and Tang (2015), Deep Learning Face Attributes in the Wild, ICCV",
        files=tuple(files),
    )


collection(
    "celeba",
    title="CelebA",
    listing=listing,
    groups=GROUPS,
    shares=shares,
    source=source,
    labelled="a labelling company looked at each image and said which of forty attributes it shows",
    passing_on=RESEARCH_ONLY,
    ages=False,  # its annotators said who is young without naming an age
    published=PUBLISHED,
)


def _known(attribute: str, place: str) -> str:
    if attribute not in ATTRIBUTES:
        raise BadInput(f"{place}: {attribute!r} is not one of {', '.join(ATTRIBUTES)}")
    return attribute


def _files(root: Path, columns: Sequence[str]) -> Held:
    bases = [base for base in (root, root / "celeba", root / "CelebA") if base.is_dir()]
    for base, ending in product(bases, ("txt", "csv")):
        attributes = first_that_is(
            base / sub / f"list_attr_celeba.{ending}" for sub in ("", "Anno")
        )
        if attributes is not None:
            return _labelled(root, base, attributes, columns)
    for folder in (base / sub for base in bases for sub in PARQUET):
        if any(folder.glob("*.parquet")):
            return _parquet(root, folder, columns)
    raise nowhere(root, "CelebA", "list_attr_celeba.txt, list_attr_celeba.csv and train-*.parquet")


def _labelled(root: Path, base: Path, attributes: Path, columns: Sequence[str]) -> Held:
    name = f"list_eval_partition{attributes.suffix}"
    partition = first_that_is(base / sub / name for sub in ("", "Eval"))
    if partition is None:
        raise BadInput(f"{base / name}: the official splits are missing; copy this file there")
    folder = first_that_is(
        base / sub
        for sub in (
            "img_align_celeba/img_align_celeba",
            "Img/img_align_celeba/img_align_celeba",
            "img_align_celeba",
            "Img/img_align_celeba",
        )
    )
    if folder is None:
        raise BadInput(
            f"{base / 'img_align_celeba'}: there is no such folder, and {standing_in(base)}; "
            "unpack img_align_celeba.zip there"
        )
    text = attributes.suffix == ".txt"
    labels = read_labels(attributes, columns, dict.fromkeys(ATTRIBUTES, VALUES), counted=text)
    halves = read_labels(
        partition,
        ["partition"],
        {"partition": frozenset(PARTITIONS)},
        columns=["partition"] if text else None,
    )
    images, findings = with_images(labels, root, folder)
    kept = [name for name in images if name in halves.rows]
    findings += [
        Finding(
            labels.place(labels.rows[name][0]), "label", f"{name} has no row in {halves.path.name}"
        )
        for name in images
        if name not in halves.named
    ]
    rows = np.array([labels.rows[name][1] for name in kept], np.str_).reshape(-1, len(columns))
    files = [images[name] for name in kept]
    return Held(
        layout=f"{attributes.relative_to(root)}, {folder.relative_to(root)}/",
        read=FileBytes(root, tuple(files)),
        files=files,
        keys=kept,
        labels={column: rows[:, i] == "1" for i, column in enumerate(columns)},
        official=np.array([PARTITIONS[halves.rows[name][1][0]] for name in kept], "U11"),
        findings=[*labels.findings, *halves.findings, *findings],
    )


def _parquet(root: Path, folder: Path, columns: Sequence[str]) -> Held:
    table, paths = gather(root, folder, SHARDS, columns)
    findings = []
    good = np.ones(len(table), bool)
    for column in columns:
        usable = table[column].isin([-1, 0, 1]).to_numpy()
        for row in np.flatnonzero(good & ~usable):
            problem = f"{column} is {table[column][row]!r}, not one of -1, 0, 1"
            findings.append(Finding(table.file[row], "label", problem))
        good &= usable
    table = table[good]
    return Held(
        layout=f"{folder.relative_to(root) / '*.parquet'}",
        read=ParquetBytes(paths, tuple(zip(table.shard, table.row, strict=True))),
        files=table.file.tolist(),
        keys=table.key.tolist(),
        labels={c: (table[c].astype(int) == 1).to_numpy() for c in columns},
        official=table.split.to_numpy("U11"),
        findings=findings,
    )
