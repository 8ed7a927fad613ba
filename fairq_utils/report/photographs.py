"""Chapter on photographs: the collections, refusals, and a study's own subjects."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import HTML

from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.metrics.prevalence import base_rates
from fairq_utils.report.chapter import Chapter, glue
from fairq_utils.report.tables import html_table, points
from fairq_utils.study.params.data import Data, Photographs


def collections_table() -> HTML:
    """Published collections that are read: how many images, and under which terms."""
    rows = [
        {
            "collection": entry.title,
            "images": f"{entry.published.images:,}",
            "licence": entry.source().licence,
            "source": entry.source().home,
        }
        for entry in COLLECTIONS.values()
        if entry.published is not None
    ]
    return html_table(pd.DataFrame(rows), wrapped=True)


def refusals_table(rows: pd.DataFrame) -> HTML:
    """Sentences that refuse folders with one fault each.

    Parameters
    ----------
    rows : of ``fairq bench refusals``: ``collection``, ``fault``, ``said``
    """
    return html_table(
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
    """Glue the results of ``fairq bench data``."""
    glue("decoded", found["decoded_per_second"])
    glue("cached", found["read_per_second"])
    glue("ratio", found["ratio"])
    glue("size", found["size"])
    for name, entry in zip(("small", "large"), found["memory"].items(), strict=True):
        glue(f"images_{name}", int(entry[0].split()[0]))
        glue(f"memory_{name}", entry[1])


def groups_table(chapter: Chapter) -> HTML:
    """Groups of a study's images, split by split: images and base rates."""
    data = chapter.faces()
    attributes = list(chapter.params.analysis.attributes)
    cells = base_rates(data.target, data.groups[attributes], data.split).cells
    cells = cells[(cells.split != "all") & (cells.images > 0)]
    return html_table(
        pd.DataFrame(
            {
                "split": cells.split,
                "attribute": cells.attribute,
                "group": cells.group.str.replace("|", " "),
                "images": cells.images,
                "base rate (%)": points(cells.base_rate),
            }
        )
    )


def subjects(chapter: Chapter) -> str:
    """Sentence on the subjects of a study, and on what was left out."""
    data = chapter.params.data
    if not isinstance(data, Photographs):
        return "These people are rendered: this study's params file names no photographs."
    findings = chapter.faces().meta["findings"]
    lost = sum(finding["counts"] for finding in findings)
    return (
        f"These are photographs of {COLLECTIONS[data.name].title}; the question is "
        f"{chapter.study.listing.meta['target']}. {lost} images or labels were left out, "
        f"{len(findings) - lost} more things were told of."
    )


def rendered_subjects(chapter: Chapter) -> str:
    """Sentence on whether the subjects of the chapter on the population are the study's."""
    data = chapter.params.data
    if isinstance(data, Data):
        return "The people of this chapter are those of all other chapters."
    return (
        f"The other chapters are about the photographs of {COLLECTIONS[data.name].title}; the "
        "people of this chapter are rendered, and stand beside them."
    )
