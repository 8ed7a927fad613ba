"""Files of a collection: images below a root, their labels, and what a layout holds."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.label_tables import SUFFIXES, Labels
from fairq_utils.data.listing import Finding
from fairq_utils.data.parquet_images import ParquetBytes
from fairq_utils.errors import BadInput, printable

SHOWN = 6  # names of what stands in a folder where something else was looked for


@dataclass(frozen=True)
class FileBytes:
    """Encoded images, each in a file of its own.

    Attributes
    ----------
    root : folder that the names are relative to
    files : N names
    """

    root: Path
    files: tuple[str, ...]

    def __call__(self, i: int) -> bytes:
        """The content of file ``i``.

        Raises
        ------
        OSError
            It cannot be read, or is none, such as a pipe, which would keep its reader waiting.
        """
        path = self.root / self.files[i]
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return path.read_bytes()

    def state(self) -> str:
        """Digest of all files' names, sizes and modification times."""
        digest = hashlib.sha256()
        for name in self.files:
            try:
                seen = os.stat(self.root / name)
                digest.update(f"{name} {seen.st_size} {seen.st_mtime_ns}\n".encode())
            except OSError as error:
                digest.update(f"{name} {error.errno}\n".encode())
        return digest.hexdigest()


def images_in(
    root: Path, folder: Path, *, deep: bool = False
) -> tuple[dict[str, bool], list[Finding]]:
    """Image files directly in a folder, and what else is there.

    A link is followed only where it stays below the root: a collection that was unpacked from an
    archive must not name files elsewhere.

    Parameters
    ----------
    deep : in the folders below it too, but for links to folders

    Returns
    -------
    names, findings
        Path of each image in the folder, and whether it may be read. Findings of files that are no
        images do not count: no image is lost by them.
    """
    if not folder.is_dir():
        raise BadInput(
            f"{folder}: this is no folder, but an archive, another file or a link that leads "
            "nowhere; unpack the images into a folder of that name"
        )
    inside = root.resolve()
    if not folder.resolve().is_relative_to(inside):
        raise BadInput(
            f"{folder}: this link leads out of {root}, to {folder.resolve()}; name a root that "
            "holds the images, or copy them there"
        )
    names: dict[str, bool] = {}
    findings = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            inner = path.is_dir() if entry.is_symlink() else entry.is_dir()
            if entry.name.startswith("."):
                continue
            place = printable(str(path.relative_to(root)))
            image = entry.name.lower().endswith(SUFFIXES)
            if not is_text(entry.name):
                problem = "has a name that is no text (UTF-8); give it another"
                findings.append(Finding(place, "name", problem, counts=image or inner))
            elif inner and not deep:
                continue
            elif inner and entry.is_symlink():
                problem = "is a link to a folder, which is not followed"
                findings.append(Finding(place, "name", problem, counts=False))
            elif inner:
                below, found = images_in(root, path, deep=True)
                names |= {f"{entry.name}/{name}": read for name, read in below.items()}
                findings += found
            elif not image:
                findings.append(Finding(place, "name", "is no image file", counts=False))
            elif entry.is_symlink() and not path.exists():
                findings.append(Finding(place, "missing", "is a link to what is not there"))
                names[entry.name] = False
            elif entry.is_symlink() and not path.resolve().is_relative_to(inside):
                findings.append(Finding(place, "unsafe", "is a link that leads out of the root"))
                names[entry.name] = False
            else:
                names[entry.name] = True
    return names, sorted(findings, key=lambda f: f.place)


def is_text(name: str) -> bool:
    """Whether a file's name can be written into tables, as it cannot if it is no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def with_images(
    labels: Labels, root: Path, folder: Path, prefix: str = "", *, deep: bool = False
) -> tuple[dict[str, str], list[Finding]]:
    """Images of the names in a label file, and what is wrong with the others.

    An image that no row names has the labels of a row that names it with another ending, as the
    PNG files of a collection do whose table names JPEGs.

    Parameters
    ----------
    folder : that holds the images
    prefix : which the names have in the label file, such as ``train/``
    deep : names may be of images in folders below it

    Returns
    -------
    images, findings
        Name, as the label file has it -> image under ``root``, sorted. An image without a label is
        a finding too, which counts unless a row whose name leads nowhere may be its own.
    """
    there, findings = images_in(root, folder, deep=deep)
    shown = folder.relative_to(root)
    if not there:
        raise BadInput(
            f"{folder}: there are no images here, and {labels.path.name} names "
            f"{len(labels.rows)}; unpack them into this folder"
        )
    named = _named(labels, there, prefix)
    astray = sum(found.kind == "unsafe" for found in labels.findings)
    kept = {}
    for name, (line, _) in sorted(labels.rows.items()):
        image = named[name]
        if not name.startswith(prefix) or ("/" in image and not deep):
            problem = f"{name!r} is no image of {shown}"
            findings.append(Finding(labels.place(line), "name", problem))
            astray += 1
        elif image not in there:
            problem = f"{shown / image} is not there"
            findings.append(Finding(labels.place(line), "missing", problem))
        elif there[image]:
            kept[name] = str(shown / image)
    without = [image for image in sorted(set(there) - set(named.values())) if there[image]]
    if labels.promised not in (None, labels.count):
        problem = f"says {labels.promised} rows and {labels.count} follow"
        findings.append(Finding(labels.place(1), "label", problem, counts=not without))
    for i, image in enumerate(without):
        problem = f"has no row in {labels.path.name}"
        place = str(shown / image)
        findings.append(Finding(place, "unlabelled", problem, counts=i >= astray))
    return kept, findings


@dataclass(frozen=True)
class Held:
    """Content of one layout of a collection, before anything is asked of it.

    Attributes
    ----------
    layout : its name
    read : gives the encoded bytes of image ``i``
    files, keys : N names, and what decides an image's split
    labels : attribute -> (N,) booleans or codes
    official : array of str (N,)
        The split that the collection itself puts each image in.
    findings : what cannot be used, and why
    """

    layout: str
    read: FileBytes | ParquetBytes
    files: list[str]
    keys: list[str]
    labels: dict[str, NDArray[Any]]
    official: NDArray[np.str_]
    findings: list[Finding]


def checked_root(root: str | os.PathLike[str], what: str, command: str = "") -> Path:
    """The root of a collection as a path; a missing one, or a file, is refused.

    Parameters
    ----------
    what : the collection's title
    command : that fetches it into a folder, up to the folder; empty where nothing does
    """
    path = Path(root).expanduser()
    if not path.exists():
        fetched = f", or fetch it with {command} {path}" if command else ""
        raise BadInput(f"{path}: there is no such folder; name the one that holds {what}{fetched}")
    if not path.is_dir():
        raise BadInput(f"{path}: this is a file; unpack it and name the folder that holds {what}")
    return path


def first_that_is(candidates: Iterable[Path]) -> Path | None:
    """The first of these paths that exists."""
    return next((path for path in candidates if path.exists()), None)


def nowhere(root: Path, what: str, looked_for: str) -> BadInput:
    """The error of a root that holds none of a collection's layouts."""
    return BadInput(
        f"{root}: no {what} here; looked for {looked_for}, and {standing_in(root)}; name the "
        "folder that holds them"
    )


def standing_in(folder: Path) -> str:
    """Names of what a folder holds, for a message about what it should hold."""
    names = sorted(os.listdir(folder))
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"there is {', '.join(names[:SHOWN])}{more}"


def _named(labels: Labels, there: Collection[str], prefix: str) -> dict[str, str]:
    """Image of each name in a label file; of one that is not there, one of another ending."""
    images = {name: name.removeprefix(prefix) for name in labels.named}
    alike: dict[str, list[str]] = defaultdict(list)
    for image in sorted(set(there) - set(images.values())):
        alike[_stem(image)].append(image)
    for name, image in sorted(images.items()):
        if image not in there and len(alike[_stem(image)]) == 1:
            images[name] = alike[_stem(image)].pop()
    return images


def _stem(name: str) -> str:
    """An image's path without its ending, if it has one."""
    ending = PurePosixPath(name).suffix
    return name[: -len(ending)] if ending.lower() in SUFFIXES else name
