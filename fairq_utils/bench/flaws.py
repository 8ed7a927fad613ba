"""Flaws of folders of photographs, each done to a small folder that has none."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fairq_utils.bench import photograph_folders as folders
from fairq_utils.data.decoding import MOST_PIXELS
from fairq_utils.data.label_tables import MARK

Spoil = Callable[[Path], object]

IMG = "img_align_celeba"
ATTR = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"
TRAIN = "fairface_label_train.csv"
TABLE = "labels.csv"
UTK = "18_0_0_20170109142408075.jpg"  # the first image of a small UTKFace
SECOND = f"{IMG}/000002.jpg"  # of a small CelebA; its labels are on line 4, its split on line 2
SHARD = "img_align+identity+attr/train-00001-of-00003.parquet"
NUMBERED = "0.25/validation-00000-of-00001.parquet"
ORIENTATION, QUARTER_TURN = 0x0112, 6  # the EXIF tag, and what a camera held upright notes


@dataclass(frozen=True)
class Flaw:
    """Flaw, or oddity, of a folder or of what is asked of it.

    Attributes
    ----------
    collection : celeba, utkface, fairface or folder
    name : a few words; no two flaws of a collection have the same
    spoil : does it to a folder made by :meth:`folder`
    options : of :func:`fairq_utils.data.load`
    layout : of the folder, as in :mod:`~fairq_utils.bench.photograph_folders`; its first unless
        named
    """

    collection: str
    name: str
    spoil: Spoil = field(default=lambda root: None)
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str | None = None

    def folder(self, root: Path) -> Path:
        """Make a small folder at ``root`` that has this flaw and no other."""
        options: dict[str, Any] = {} if self.layout is None else {"layout": self.layout}
        if self.collection == "fairface":
            options["bands"] = 1
        getattr(folders, self.collection)(root, n=1, **options)
        self.spoil(root)
        return root


def edited(name: str, line: int, change: Callable[[str], str | None]) -> Spoil:
    """Change one line (from 1) of a file, or drop it where the change is to None."""

    def spoil(root: Path) -> None:
        lines = (root / name).read_text().split("\n")
        new = change(lines[line - 1])
        lines[line - 1 : line] = [] if new is None else [new]
        (root / name).write_text("\n".join(lines))

    return spoil


def copied(name: str, like: str) -> Spoil:
    """Put a copy of one file under another name."""

    def spoil(root: Path) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / like, root / name)

    return spoil


def removed(name: str) -> Spoil:
    """Take a file away, or a folder with all that is in it."""

    def spoil(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def emptied(name: str) -> Spoil:
    """Take away all that is in a folder."""

    def spoil(root: Path) -> None:
        shutil.rmtree(root / name)
        (root / name).mkdir()

    return spoil


def linked(name: str) -> Spoil:
    """Move a file or folder out of the root, and leave a link to it."""

    def spoil(root: Path) -> None:
        outside = root.parent / f"{root.name}-outside"
        (root / name).rename(outside)
        (root / name).symlink_to(outside)

    return spoil


def column(path: str, name: str, values: Callable[[list[Any]], list[Any]]) -> Spoil:
    """Change a column of a Parquet file."""

    def spoil(root: Path) -> None:
        table = pq.read_table(root / path)
        changed = values(table.column(name).to_pylist())
        new = table.set_column(table.column_names.index(name), name, pa.array(changed))
        pq.write_table(new.replace_schema_metadata(table.schema.metadata), root / path)

    return spoil


def holding(name: str, content: bytes) -> Spoil:
    """Put something else into a file."""
    return lambda root: (root / name).write_bytes(content)


def rewritten(
    name: str, change: Callable[[Image.Image], tuple[Image.Image, dict[str, Any]]]
) -> Spoil:
    """Write a JPEG file again, changed, with options of how to write it."""

    def spoil(root: Path) -> None:
        with Image.open(root / name) as opened:
            image, options = change(opened.copy())
        image.save(root / name, "JPEG", **options)

    return spoil


def turned(image: Image.Image) -> tuple[Image.Image, dict[str, Any]]:
    """Turn an image on its side, and note that it is."""
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER_TURN
    return image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}


def truncated(root: Path) -> None:
    """Write half of a JPEG, as a download that broke off leaves it, the same bytes anywhere."""
    stream = io.BytesIO()
    Image.linear_gradient("L").save(stream, "JPEG")
    content = stream.getvalue()
    (root / SECOND).write_bytes(content[: len(content) // 2])


def bomb(root: Path) -> None:
    """Write few bytes that would be more pixels than an image may have."""
    stream = io.BytesIO()
    Image.new("1", (MOST_PIXELS // 1000, 1001)).save(stream, "PNG")
    (root / SECOND).write_bytes(stream.getvalue())


def without_words(root: Path) -> None:
    """Take away what says which integers stand for what."""
    table = pq.read_table(root / NUMBERED)
    pq.write_table(table.replace_schema_metadata(), root / NUMBERED)


def windows_lines(root: Path) -> None:
    """End the lines of all label files as Windows does."""
    for path in _label_files(root):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def marked(root: Path) -> None:
    """Begin all label files with a byte-order mark."""
    for path in _label_files(root):
        path.write_bytes(MARK.encode() + path.read_bytes())


def _label_files(root: Path) -> list[Path]:
    return [*root.glob("*.txt"), *root.glob("*.csv")]


def _without_labels(root: Path) -> None:
    for path in _label_files(root):
        path.unlink()


def _file_in_its_place(root: Path) -> None:
    shutil.rmtree(root)
    root.write_bytes(b"PK")


FLAWS = (
    # Of an image.
    Flaw("celeba", "a truncated JPEG", truncated),
    Flaw("celeba", "an image of zero bytes", holding(SECOND, b"")),
    Flaw("celeba", "a web page in place of an image", holding(SECOND, b"<html>not found</html>")),
    Flaw("celeba", "an image bomb", bomb),
    Flaw("celeba", "an image of test in train", copied(SECOND, f"{IMG}/000018.jpg")),
    Flaw("celeba", "a CMYK JPEG", rewritten(SECOND, lambda p: (p.convert("CMYK"), {}))),
    Flaw("celeba", "a grey JPEG", rewritten(SECOND, lambda p: (p.convert("L"), {}))),
    Flaw("celeba", "a JPEG turned by EXIF", rewritten(SECOND, turned)),
    Flaw("celeba", "a truncated JPEG, with max_bad: 1", truncated, {"max_bad": 1}),
    # Of a label file.
    Flaw("celeba", "a missing row", edited(ATTR, 5, lambda line: None)),
    Flaw("celeba", "an extra column", edited(ATTR, 4, lambda line: line + " 1")),
    Flaw("celeba", "a wrong count", edited(ATTR, 1, lambda line: "202599")),
    Flaw("celeba", "a value that is none of -1, 0 and 1",
         edited(ATTR, 6, lambda line: " ".join([*line.split()[:-1], "2"]))),
    Flaw("celeba", "an unknown split", edited(PARTITION, 2, lambda line: "000002.jpg 3")),
    Flaw("celeba", "an image listed twice",
         edited(ATTR, 4, lambda line: line.replace("000002", "000001"))),
    Flaw("celeba", "Windows line ends", windows_lines),
    Flaw("celeba", "a byte-order mark", marked),
    Flaw("fairface", "Windows line ends", windows_lines),
    Flaw("fairface", "a byte-order mark", marked),
    Flaw("fairface", "an age band that is none",
         edited(TRAIN, 3, lambda line: line.replace("0-2", "0-3"))),
    Flaw("fairface", "integers that nothing explains", without_words, layout="parquet"),
    # Of a name or a path.
    Flaw("celeba", "a path above the folder", edited(ATTR, 4, lambda line: "../" + line)),
    Flaw("celeba", "an absolute path", edited(ATTR, 4, lambda line: "/etc/" + line)),
    Flaw("celeba", "a link that leaves the root", linked(SECOND)),
    Flaw("utkface", "a name without a race", copied("61_1_20170109142408075.jpg", UTK)),
    Flaw("utkface", "a race that is none", copied("20_1_5_20170116235150272.jpg", UTK)),
    # Of a folder.
    Flaw("celeba", "an image without a label", copied(f"{IMG}/000099.jpg", f"{IMG}/000001.jpg")),
    Flaw("celeba", "a label without an image", removed(SECOND)),
    Flaw("celeba", "no images", emptied(IMG)),
    Flaw("celeba", "a shard missing", removed(SHARD), layout="parquet"),
    Flaw("utkface", "an empty folder", emptied(".")),
    Flaw("celeba", "a root that is not there", removed(".")),
    Flaw("celeba", "an archive as the root", _file_in_its_place),
    Flaw("fairface", "a root without labels", _without_labels),
    # Of what is asked.
    Flaw("utkface", "an unknown target", options={"target": "smile"}),
    Flaw("utkface", "an unknown group", options={"groups": ["gender", "hair"]}),
    Flaw("fairface", "a target that cuts a band", options={"target": "age>=35"}),
    Flaw("fairface", "two margins, and none named", layout="margins"),
    Flaw("folder", "no table", removed(TABLE)),
    Flaw("folder", "a value that is neither 0 nor 1",
         edited(TABLE, 3, lambda line: line.replace(",1,", ",2,"))),
    Flaw("folder", "an empty value", edited(TABLE, 2, lambda line: line.replace("woman,", ","))),
    Flaw("folder", "an unknown split", edited(TABLE, 2, lambda line: line.replace("train", "val")),
         layout="split"),
    Flaw("folder", "a label without an image", removed("man/4.jpg")),
    Flaw("folder", "a target in words", options={"target": "gender"}),
    Flaw("folder", "a target misspelt", options={"target": "smyling"}),
)  # fmt: skip
