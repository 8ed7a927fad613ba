"""Terms of a collection: where its files are, under which licence, and its published counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# What Google Drive answers to with the file itself, without its page about virus scans.
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"

# What a licence for research alone asks of a model; see ``passing_on`` of a collection.
RESEARCH_ONLY = "take a model trained on them to be for that alone, and ship it in no product"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a collection.

    Attributes
    ----------
    name : under the root
    url : ``https``, ``http`` or ``file``
    md5 : hexadecimal; empty where none is published
    gives : folders that an archive unpacks to; none for a file that stays as it is
    into : where under the root these are; the root itself if empty
    """

    name: str
    url: str
    md5: str = ""
    gives: tuple[str, ...] = ()
    into: str = ""


@dataclass(frozen=True)
class Source:
    """A collection's terms and files.

    Attributes
    ----------
    title, home : its name and its own page
    licence : in one sentence
    citation : the paper to cite
    files : in the order in which they are fetched
    """

    title: str
    home: str
    licence: str
    citation: str
    files: tuple[RemoteFile, ...]

    def terms(self) -> str:
        """Licence, source, citation and files, one below the other."""
        names = ", ".join(file.name for file in self.files)
        return (
            f"{self.title}\n  licence   {self.licence}\n  source    {self.home}\n"
            f"  cite      {self.citation}\n  files     {names}"
        )

    def by_hand(self, root: str) -> str:
        """Steps for those who fetch the files themselves: which to put where."""
        steps = []
        for file in self.files:
            if file.gives:
                below = f"{root}/{file.into}" if file.into else root
                folders = " and ".join(f"{below}/{folder}" for folder in file.gives)
                steps.append(f"unpack {file.name} so that there is {folders}")
            else:
                steps.append(f"put {file.name} into {root}")
        return f"from {self.home}: " + "; ".join(steps)


@dataclass(frozen=True)
class Published:
    """Counts of a collection as it was published.

    Attributes
    ----------
    images : of the whole collection
    source : where the counts stand
    splits : mapping of our splits to images
        An official split by those that a reader makes of it.
    joint : mapping of ``VALUE|...|LABEL`` to images
        Values in the order of ``attributes``, and last the label of ``target``.
    attributes : our name -> the collection's, of what ``joint`` crosses
    target : the collection's name of the label that ``joint`` crosses them with
    size : (width, height) of every image in pixels, where all have one
    """

    images: int
    source: str
    splits: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    joint: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    size: tuple[int, int] | None = None

    def cells(self, attributes: tuple[str, ...], target: str) -> dict[str, int]:
        """Counts over those of ``attributes`` that the source crosses, values joined by ``|``.

        With the label last if ``target`` is the source's own, summed over it otherwise.

        Examples
        --------
        >>> from fairq_utils.data.photographs.celeba import PUBLISHED
        >>> PUBLISHED.cells(("gender",), "Young")
        {'female': 118165, 'male': 84434}
        """
        known = list(self.attributes)
        at = [known.index(name) for name in attributes if name in known]
        if target == self.target:
            at.append(len(known))
        found: dict[str, int] = {}
        for cell, images in self.joint.items():
            values = cell.split("|")
            name = "|".join(values[i] for i in at)
            found[name] = found.get(name, 0) + images
        return found if at else {}
