"""Image files below a root: which there are, and their bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fairq_utils.data.label_files import Labels
from fairq_utils.data.listing import Finding
from fairq_utils.faults import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png")
SHOWN = 6  # names of what stands in a folder where something else was looked for


@dataclass(frozen=True)
class FileBytes:
    """Encoded pictures, each in a file of its own.

    Attributes
    ----------
    root : folder that the names are relative to
    files : N names
    """

    root: Path
    files: tuple[str, ...]

    def __call__(self, i: int) -> bytes:
        """The content of file ``i``."""
        return (self.root / self.files[i]).read_bytes()

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


def images_in(root: Path, folder: Path) -> tuple[dict[str, bool], list[Finding]]:
    """Image files directly in a folder, and what else is there.

    A link is followed only where it stays below the root: a collection that was unpacked from an
    archive must not name files elsewhere.

    Returns
    -------
    names, findings
        Whether each image may be read. Findings of files that are no images do not count: no
        picture is lost by them.
    """
    inside = root.resolve()
    if not folder.resolve().is_relative_to(inside):
        raise BadInput(
            f"{folder}: this link leads out of {root}, to {folder.resolve()}; name a root that "
            "holds the pictures, or copy them there"
        )
    names: dict[str, bool] = {}
    findings = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() or entry.name.startswith("."):
                continue
            place = str(Path(entry.path).relative_to(root))
            if not entry.name.lower().endswith(SUFFIXES):
                findings.append(Finding(place, "name", "is no image file", counts=False))
            elif entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(inside):
                findings.append(Finding(place, "unsafe", "is a link that leads out of the root"))
                names[entry.name] = False
            elif entry.is_symlink() and not Path(entry.path).exists():
                findings.append(Finding(place, "missing", "is a link to what is not there"))
                names[entry.name] = False
            else:
                names[entry.name] = True
    return names, sorted(findings, key=lambda f: f.place)


def standing_in(folder: Path) -> str:
    """What a folder holds, for a message about what it should hold."""
    names = sorted(os.listdir(folder))
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"there is {', '.join(names[:SHOWN])}{more}"


def checked_root(root: str | os.PathLike[str], name: str, what: str) -> Path:
    """The root of a collection as a path; a missing one, or a file, is refused.

    Parameters
    ----------
    name, what : of the collection, as commands and as people say it
    """
    path = Path(root).expanduser()
    if not path.exists():
        raise BadInput(
            f"{path}: there is no such folder; name the one that holds {what}, or fetch it with "
            f"fairq data get {name} --root {path}"
        )
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


def with_pictures(
    labels: Labels, root: Path, folder: Path, prefix: str = ""
) -> tuple[list[str], list[Finding]]:
    """Names in a label file whose pictures are there, and what is wrong with the others.

    Parameters
    ----------
    folder : that holds the pictures
    prefix : which the names have in the label file, such as ``train/``

    Returns
    -------
    names, findings
        Sorted names, as the label file has them; a picture without a label is a finding too.
    """
    there, findings = images_in(root, folder)
    shown = folder.relative_to(root)
    if not there:
        raise BadInput(
            f"{folder}: there are no pictures here, and {labels.path.name} names "
            f"{len(labels.rows)}; unpack them into this folder"
        )
    kept = []
    for name, (line, _) in labels.rows.items():
        picture = name.removeprefix(prefix)
        if not name.startswith(prefix) or "/" in picture:
            problem = f"{name!r} is no picture of {shown}"
            findings.append(Finding(labels.place(line), "name", problem))
        elif picture not in there:
            problem = f"{shown / picture} is not there"
            findings.append(Finding(labels.place(line), "missing", problem))
        elif there[picture]:
            kept.append(name)
    known = labels.named
    findings += [
        Finding(str(shown / picture), "unlabelled", f"has no row in {labels.path.name}")
        for picture in sorted(there)
        if there[picture] and prefix + picture not in known
    ]
    return sorted(kept), findings
