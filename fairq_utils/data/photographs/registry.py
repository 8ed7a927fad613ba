"""Registry of collections: each reader's entry, with what a study must know of it before it reads.

A collection is one statement, ``collection("celeba", title=..., listing=..., ...)``, at the end of
the module that reads it; nothing else names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fairq_utils.data.photographs.terms import Published, Source
from fairq_utils.errors import BadInput
from fairq_utils.registry import Registry, unknown

if TYPE_CHECKING:
    from fairq_utils.data.listing import Listing


@dataclass(frozen=True)
class Collection:
    """A collection of photographs.

    Attributes
    ----------
    name, title : by which it is asked for; how tables and sentences call it
    listing : ``listing(root, *, target, groups, held_out, **options)`` lists its images
        The first three may be None, which stands for the collection's usual ones.
    groups : our name -> the collection's, of the attributes that are read unless others are named
    shares : split -> share that is carved by hash, from the shares that somebody asks for
    source : its terms and files, by the same ``options``
    labelled : who says what is in its images, as a sentence's end
    passing_on : what its terms ask of whoever passes on a model that was trained on it, likewise
    ages : whether young is told from an age in years
    options : further arguments of ``listing`` and ``source``, with the values that each may have
    published : counts as it was published; None of a folder of one's own
    """

    name: str
    title: str
    listing: Callable[..., Listing]
    groups: Mapping[str, str]
    shares: Callable[[Mapping[str, float] | None], dict[str, float]]
    source: Callable[..., Source]
    labelled: str
    passing_on: str
    ages: bool = True
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    published: Published | None = None

    def checked(self, options: Mapping[str, object]) -> dict[str, str]:
        """Options of this collection alone, as its reader takes them.

        Raises
        ------
        BadInput
            It has no such option, or the value is none of the option's.
        """
        for name, value in options.items():
            if not self.options:
                raise BadInput(f"{name}: {self.name} has no options of its own; leave it out")
            if name not in self.options:
                raise BadInput(f"{name}: {unknown(name, self.options)}")
            if str(value) not in self.options[name]:
                known = ", ".join(self.options[name])
                raise BadInput(f"{name}: {str(value)!r} is not one of {known}")
        return {name: str(value) for name, value in options.items()}


COLLECTIONS: Registry[Collection] = Registry("collection", "fairq_utils.data.photographs")


def collection(name: str, **entry: Any) -> None:
    """Register a reader as a collection.

    Parameters
    ----------
    name, entry : see :class:`Collection`
    """
    COLLECTIONS.add(name, Collection(name, **entry))
