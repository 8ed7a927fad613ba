"""Chapter on photographs: the collections, refusals, and a study's own people."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.metrics.base_rates import base_rates
from fairq_utils.report import population
from fairq_utils.report.chapter import Chapter, glue
from fairq_utils.report.tables import shown
from fairq_utils.study.params.data import Data, Photographs
from fairq_utils.study.people import listing


def whose_faces(chapter: Chapter) -> str:
    """Whose faces a chapter about rendered people shows, in a sentence."""
    data = chapter.params.data
    if isinstance(data, Data):
        return "The people of this chapter are those of all other chapters."
    return (
        f"The other chapters are about the photographs of {COLLECTIONS[data.name].title}; the "
        "people of this chapter are rendered, and stand beside them."
    )


def collections() -> HTML:
    """Published collections that are read: how many images, and under which terms."""
    rows = [
        {
            "collection": entry.title,
            "pictures": f"{entry.published.images:,}",
            "licence": entry.source().licence,
            "source": entry.source().home,
        }
        for entry in COLLECTIONS.values()
        if entry.published is not None
    ]
    return shown(pd.DataFrame(rows), wrapped=True)


def refusals(rows: pd.DataFrame) -> HTML:
    """What is said about folders with one fault each.

    Parameters
    ----------
    rows : of ``fairq bench refusals``: ``collection``, ``fault``, ``said``
    """
    return shown(
        pd.DataFrame(
            {
                "collection": [COLLECTIONS[name].title for name in rows.collection],
                "what is wrong": rows.fault,
                "what is said": rows.said,
            }
        ),
        wrapped=True,
    )


def glue_throughput(found: dict[str, Any]) -> None:
    """Glue what ``fairq bench data`` measured."""
    glue("decoded", found["decoded_per_second"])
    glue("cached", found["read_per_second"])
    glue("ratio", found["ratio"])
    glue("size", found["size"])
    for name, entry in zip(("small", "large"), found["memory"].items(), strict=True):
        glue(f"images_{name}", int(entry[0].split()[0]))
        glue(f"memory_{name}", entry[1])


def sheet(chapter: Chapter) -> Figure:
    """The first test pictures of a study, with who is in them."""
    return population.face_sheet(chapter.faces().subset("test"), rows=2)


def described(chapter: Chapter) -> HTML:
    """Groups of a study's pictures, split by split: images and base rates."""
    data = chapter.faces()
    attributes = list(chapter.params.analysis.attributes)
    cells = base_rates(data.target, data.groups[attributes], data.split).cells
    cells = cells[(cells.split != "all") & (cells.images > 0)]
    return shown(
        pd.DataFrame(
            {
                "split": cells.split,
                "attribute": cells.attribute,
                "group": cells.group.str.replace("|", " "),
                "images": cells.images,
                "base rate (%)": [f"{100 * rate:.1f}" for rate in cells.base_rate],
            }
        )
    )


def whose(chapter: Chapter) -> str:
    """Whose pictures these are, and what was left out, in a sentence."""
    data = chapter.params.data
    if not isinstance(data, Photographs):
        return "These people are rendered: this study's params file names no photographs."
    findings = chapter.faces().meta["findings"]
    lost = sum(finding["counts"] for finding in findings)
    return (
        f"These are photographs of {COLLECTIONS[data.name].title}; the question is "
        f"{listing(chapter.params).meta['target']}. {lost} pictures or labels were left out, "
        f"{len(findings) - lost} more things were told of."
    )
