"""Small folders in the layouts that real collections have, with JPEGs of rendered faces."""

from __future__ import annotations

import io
import json
import tempfile
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

from fairq_utils.data.faces import FaceData
from fairq_utils.data.loading import load
from fairq_utils.data.photographs.celeba import ATTRIBUTES
from fairq_utils.data.photographs.fairface import BANDS, RACES, STARTS
from fairq_utils.data.population import CELEBA_JOINT, SPLITS, Population

PARTITIONS = {"train": 0, "valid": 1, "test": 2}
UTK_RACES = ("caucasian", "african", "asian", "caucasian", "asian")  # who stands in for 0 to 4
FAIRFACE_GENDERS = ["Male", "Female"]  # as the copy on Hugging Face numbers them
FAIRFACE_RACES = [
    "East Asian",
    "Indian",
    "Black",
    "White",
    "Middle Eastern",
    "Latino_Hispanic",
    "Southeast Asian",
]


@lru_cache(maxsize=1)
def people() -> FaceData:
    """Ninety-six rendered faces, as many in every cell of gender, age and smile."""
    with tempfile.TemporaryDirectory() as cache:
        return load(
            "population",
            sizes={"train": 96},
            size=64,
            population=Population(joint=dict.fromkeys(CELEBA_JOINT, 1.0)),
            cache=cache,
        )


def jpeg(
    number: int,
    size: tuple[int, int] = (64, 64),
    *,
    gender: str | None = None,
    young: bool | None = None,
    smiling: bool | None = None,
    race: str | None = None,
    quality: int = 90,
) -> bytes:
    """Draw a face of such a person; another number gives another image, in its light or colours."""
    faces = people()
    fits = np.ones(len(faces), bool)
    if gender is not None:
        fits &= (faces.groups.gender == gender).to_numpy()
    if young is not None:
        fits &= (faces.groups.age == ("young" if young else "old")).to_numpy()
    if smiling is not None:
        fits &= faces.target == int(smiling)
    if race is not None and (fits & (faces.groups.race == race).to_numpy()).any():
        fits &= (faces.groups.race == race).to_numpy()
    rows = np.flatnonzero(fits)
    row = int(rows[number % len(rows)])
    image = Image.fromarray(faces.images[row].permute(1, 2, 0).numpy())
    # Where one of the two is nearly the same, the other is not.
    image = ImageEnhance.Brightness(image).enhance(0.75 + 0.5 * (number * 0.381966 % 1))
    image = ImageEnhance.Color(image).enhance(0.6 + 0.8 * (number * 0.754878 % 1))
    width, height = size
    side = max(size)
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    left, top = (side - width) // 2, (side - height) // 2
    stream = io.BytesIO()
    image.crop((left, top, left + width, top + height)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def celeba(
    root: Path, n: int = 2, layout: str = "text", size: tuple[int, int] = (178, 218)
) -> Path:
    """Write CelebA with ``n`` images per gender, age, smile and official split.

    Layouts: ``text``, ``official`` (its folders Anno, Eval, Img), ``torchvision``, ``csv``
    (Kaggle), ``parquet`` (booleans), ``parquet_numbers`` (-1 and 1, ``validation`` for valid).
    """
    rng = np.random.default_rng(0)
    people_of = []
    cells = list(product(PARTITIONS, range(n), ("female", "male"), (False, True), (False, True)))
    for number, (split, _, gender, young, smiling) in enumerate(cells, 1):
        values = dict(zip(ATTRIBUTES, rng.choice([-1, 1], len(ATTRIBUTES)).tolist(), strict=True))
        values |= {"Male": 1 if gender == "male" else -1}
        values |= {"Young": 1 if young else -1, "Smiling": 1 if smiling else -1}
        image = jpeg(number, size, gender=gender, young=young, smiling=smiling)
        people_of.append((f"{number:06d}.jpg", split, values, image))
    if layout.startswith("parquet"):
        return _celeba_parquet(root, people_of, numbers=layout.endswith("numbers"))
    base = root / "celeba" if layout == "torchvision" else root
    official = layout == "official"
    images = base / {
        "official": "Img/img_align_celeba",
        "csv": "img_align_celeba/img_align_celeba",
    }.get(layout, "img_align_celeba")
    images.mkdir(parents=True)
    for name, _, _, image in people_of:
        (images / name).write_bytes(image)
    anno, evaluation = (base / "Anno", base / "Eval") if official else (base, base)
    anno.mkdir(exist_ok=True)
    evaluation.mkdir(exist_ok=True)
    if layout == "csv":
        lines = [",".join(["image_id", *ATTRIBUTES])]
        lines += [",".join([name, *map(str, v.values())]) for name, _, v, _ in people_of]
        (anno / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
        lines = ["image_id,partition"] + [f"{name},{PARTITIONS[s]}" for name, s, _, _ in people_of]
        (evaluation / "list_eval_partition.csv").write_text("\n".join(lines) + "\n")
        return root
    lines = [str(len(people_of)), " ".join(ATTRIBUTES) + " "]
    lines += [f"{name} " + " ".join(f"{x:2d}" for x in v.values()) for name, _, v, _ in people_of]
    (anno / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{name} {PARTITIONS[split]}" for name, split, _, _ in people_of]
    (evaluation / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return root


def _celeba_parquet(root: Path, people_of: list, numbers: bool) -> Path:
    folder = root / ("data" if numbers else "img_align+identity+attr")
    folder.mkdir(parents=True)
    for split in PARTITIONS:
        rows = [person for person in people_of if person[1] == split]
        name = "validation" if numbers and split == "valid" else split
        count = 3 if split == "train" else 1
        for shard, part in enumerate(np.array_split(np.arange(len(rows)), count)):
            columns = {
                "image": [{"bytes": rows[i][3], "path": rows[i][0]} for i in part],
                **({} if numbers else {"celeb_id": [int(i) for i in part]}),
                **{a: [rows[i][2][a] if numbers else rows[i][2][a] == 1 for i in part]
                   for a in ATTRIBUTES},
            }  # fmt: skip
            path = folder / f"{name}-{shard:05d}-of-{count:05d}.parquet"
            pq.write_table(pa.table(columns), path, row_group_size=5)
    return root


def utkface(root: Path, n: int = 2, layout: str = "flat") -> Path:
    """Write UTKFace with ``n`` images per gender, half of the ages and race.

    Layouts: ``flat``, ``parts`` (three folders), ``chips`` (aligned crops in a folder UTKFace).
    """
    ending = ".jpg.chip.jpg" if layout == "chips" else ".jpg"
    for number, (i, gender, young, race) in enumerate(
        product(range(n), (0, 1), (True, False), range(5))
    ):
        folder = {
            "flat": root,
            "parts": root / f"part{number % 3 + 1}",
            "chips": root / "UTKFace",
        }[layout]
        folder.mkdir(parents=True, exist_ok=True)
        age = 18 + (7 * i) % 22 if young else 40 + (11 * i) % 50
        name = f"{age}_{gender}_{race}_{20170109142408075 + number}{ending}"
        (folder / name).write_bytes(
            jpeg(number, gender="female" if gender else "male", young=young, race=UTK_RACES[race])
        )
    return root


def fairface(root: Path, n: int = 1, layout: str = "folders", bands: int = 9) -> Path:
    """Write FairFace with ``n`` images per gender, age band and race, in train and in val.

    Layouts: ``folders`` (``train`` and ``val`` in the root), ``margin025``, ``margins`` (both),
    ``parquet`` (one folder a margin, two shards of train).
    """
    found: dict[str, list] = {"train": [], "val": []}
    for split in found:
        before = len(found["train"])  # nobody is in both splits
        cells = product(range(n), ("Female", "Male"), list(BANDS)[:bands], RACES)
        for number, (_, gender, band, race) in enumerate(cells, 1):
            image = jpeg(
                before + number,
                gender=gender.lower(),
                young=STARTS[list(BANDS).index(band)] < 40,
                race={"White": "caucasian", "Black": "african", "East Asian": "asian"}.get(race),
            )
            found[split].append((f"{split}/{number}.jpg", band, gender, race, image))
    if layout == "parquet":
        return _fairface_parquet(root, found)
    names = {
        "folders": [""],
        "margin025": ["fairface-img-margin025-trainval"],
        "margins": ["fairface-img-margin025-trainval", "fairface-img-margin125-trainval"],
    }[layout]
    for split, rows in found.items():
        for folder in names:
            (root / folder / split).mkdir(parents=True)
            for name, *_, image in rows:
                (root / folder / name).write_bytes(image)
        lines = ["file,age,gender,race,service_test"]
        lines += [f"{name},{band},{gender},{race},True" for name, band, gender, race, _ in rows]
        (root / f"fairface_label_{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def folder(root: Path, n: int = 2, layout: str = "carved") -> Path:
    """A folder of one's own with ``n`` images per gender, age, smile and quarter of the images.

    Layouts: ``carved``, without a column ``split``; ``split``, where the quarters are the splits.
    """
    columns = 5 if layout == "split" else 4
    lines = [["file", "smiling", "gender", "age", "split"][:columns]]
    cells = product(SPLITS, range(n), ("woman", "man"), ("young", "old"), (0, 1))
    for number, (split, _, gender, age, smiling) in enumerate(cells):
        name, sex = f"{gender}/{number}.jpg", {"woman": "female", "man": "male"}[gender]
        (root / gender).mkdir(parents=True, exist_ok=True)
        image = jpeg(number, gender=sex, young=age == "young", smiling=bool(smiling))
        (root / name).write_bytes(image)
        lines.append([name, str(smiling), gender, age, split][:columns])
    (root / "labels.csv").write_text("\n".join(map(",".join, lines)) + "\n")
    return root


def _fairface_parquet(root: Path, found: dict[str, list], margin: str = "0.25") -> Path:
    (root / margin).mkdir(parents=True)
    known = {"age": list(BANDS), "gender": FAIRFACE_GENDERS, "race": FAIRFACE_RACES}
    features = {name: {"names": names, "_type": "ClassLabel"} for name, names in known.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, rows in found.items():
        name, count = ("train", 2) if split == "train" else ("validation", 1)
        for shard, part in enumerate(np.array_split(np.arange(len(rows)), count)):
            columns = {
                "image": [{"bytes": rows[i][4], "path": None} for i in part],
                "age": [known["age"].index(rows[i][1]) for i in part],
                "gender": [known["gender"].index(rows[i][2]) for i in part],
                "race": [known["race"].index(rows[i][3]) for i in part],
                "service_test": [True for _ in part],
            }
            table = pa.table(columns).replace_schema_metadata(metadata)
            path = root / margin / f"{name}-{shard:05d}-of-{count:05d}.parquet"
            pq.write_table(table, path, row_group_size=50)
    return root
