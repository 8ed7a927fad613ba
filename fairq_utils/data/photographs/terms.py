"""Published collections: where they are to be had, on what terms, and how many images of whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fairq_utils.data.population import CELEBA_JOINT
from fairq_utils.errors import BadInput

# What Google Drive answers to with the file itself, without its page about virus scans.
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
MARGINS = {
    "0.25": ("1Z1RqRo0_JiavaZw2yzZG6WETdZQ8qX86", "fairface-img-margin025-trainval.zip"),
    "1.25": ("1g7qNOZz9wC7OfOhcPqH1EZ5bk1UFGmlL", "fairface-img-margin125-trainval.zip"),
}


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
        """Which files to put where, for those who fetch them themselves."""
        steps = []
        for file in self.files:
            if file.gives:
                below = f"{root}/{file.into}" if file.into else root
                folders = " and ".join(f"{below}/{folder}" for folder in file.gives)
                steps.append(f"unpack {file.name} so that there is {folders}")
            else:
                steps.append(f"put {file.name} into {root}")
        return f"from {self.home}: " + "; ".join(steps)


def _celeba(margin: str) -> Source:
    # The identifiers and checksums are torchvision's, which follows the collection's own page.
    from torchvision.datasets import CelebA

    wanted = ("list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba.zip")
    known = {name: (identifier, md5) for identifier, md5, name in CelebA.file_list}
    files = []
    for name in wanted:
        identifier, md5 = known[name]
        gives = ("img_align_celeba",) if name.endswith(".zip") else ()
        files.append(RemoteFile(name, DRIVE.format(identifier), md5, gives))
    return Source(
        title="CelebA (Large-scale CelebFaces Attributes), aligned and cropped",
        home="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        licence="for non-commercial research and education only; the pictures belong to others, "
        "and may not be passed on or published",
        citation="Liu, Luo, Wang and Tang (2015), Deep Learning Face Attributes in the Wild, ICCV",
        files=tuple(files),
    )


def _utkface(margin: str) -> Source:
    archive = RemoteFile(
        "UTKFace.tar.gz", DRIVE.format("0BxYys69jI14kYVM3aVhKS1VhRUk"), gives=("UTKFace",)
    )
    return Source(
        title="UTKFace, aligned and cropped",
        home="https://susanqq.github.io/UTKFace/",
        licence="for non-commercial research only; the pictures belong to their original owners",
        citation="Zhang, Song and Qi (2017), Age Progression/Regression by Conditional "
        "Adversarial Autoencoder, CVPR",
        files=(archive,),
    )


def _fairface(margin: str) -> Source:
    identifier, name = MARGINS[margin]
    labels = {
        "fairface_label_train.csv": "1i1L3Yqwaio7YSOCj7ftgk8ZZchPG7dmH",
        "fairface_label_val.csv": "1wOdja-ezstMEp81tX1a-EYkFebev4h7D",
    }
    return Source(
        title=f"FairFace, margin {margin}",
        home="https://github.com/joojs/fairface",
        licence="CC BY 4.0",
        citation="Karkkainen and Joo (2021), FairFace: Face Attribute Dataset for Balanced Race, "
        "Gender, and Age for Bias Measurement and Mitigation, WACV",
        files=(
            *(RemoteFile(label, DRIVE.format(drive)) for label, drive in labels.items()),
            RemoteFile(
                name,
                DRIVE.format(identifier),
                gives=("train", "val"),
                into=name.removesuffix(".zip"),
            ),
        ),
    )


SOURCES: dict[str, Callable[[str], Source]] = {
    "celeba": _celeba,
    "utkface": _utkface,
    "fairface": _fairface,
}


def source(name: str, margin: str = "0.25") -> Source:
    """A collection's terms and files.

    Parameters
    ----------
    name : one of :data:`SOURCES`
    margin : one of :data:`MARGINS`
        How much is seen around FairFace's faces; the others have one margin.

    Raises
    ------
    BadInput
        There is no such collection or margin.

    Examples
    --------
    >>> source("fairface").licence
    'CC BY 4.0'
    """
    if name not in SOURCES:
        raise BadInput(f"collection: {name!r} is not one of {', '.join(SOURCES)}")
    if margin not in MARGINS:
        raise BadInput(f"margin: {margin!r} is not one of {', '.join(MARGINS)}")
    return SOURCES[name](margin)


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
    size : (width, height) of every picture in pixels, where all have one
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
        >>> PUBLISHED["celeba"].cells(("gender",), "Young")
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


PUBLISHED: dict[str, Published] = {
    "celeba": Published(
        images=202_599,
        source="Liu et al. 2015, Deep Learning Face Attributes in the Wild: list_attr_celeba.txt "
        "and list_eval_partition.txt",
        splits={
            ("train",): 162_770,
            ("calibration", "validation"): 19_867,
            ("test",): 19_962,
        },
        joint={cell: int(images) for cell, images in CELEBA_JOINT.items()},
        attributes={"gender": "Male", "age": "Young"},
        target="Smiling",
        size=(178, 218),
    ),
    "utkface": Published(
        images=23_708,
        source="the files of UTKFace.tar.gz, aligned and cropped; Zhang, Song and Qi 2017 say "
        "over 20,000",
    ),
    # The paper counts 108,501 pictures; the labels of these were published.
    "fairface": Published(
        images=97_698,
        source="Karkkainen and Joo 2021, FairFace: fairface_label_train.csv and "
        "fairface_label_val.csv",
        splits={("train", "calibration", "validation"): 86_744, ("test",): 10_954},
    ),
}
