"""How many pictures the published collections hold, and of whom, as their sources say.

What no source says is left out: a count that is not here is not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairq_utils.data.population import CELEBA_JOINT


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
