"""Refusals of folders of photographs with one flaw each, and flaws that are accepted."""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path

import pandas as pd

from fairq_utils.bench.flaws import FLAWS, Flaw
from fairq_utils.bench.outcome import Outcome
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.data.loading import load
from fairq_utils.errors import BadInput

ACCEPTED = "accepted"
SIZE = 32  # pixels per side that images are decoded to
WIDTH = 100  # characters of a printed line


@benchmark("refusals", title="what is said about folders of photographs with one flaw each")
def bench_refusals(subject: Subject) -> Outcome:
    """Load a small folder with every flaw of :data:`~fairq_utils.bench.flaws.FLAWS`; seconds.

    Returns
    -------
    Outcome
        How many folders there were, were ``refused`` and were ``accepted``; every flaw with what
        was said; and ``refusals``, a row per flaw: ``collection``, ``fault``, ``said`` (the folder
        is called ``data/COLLECTION`` there).
    """
    table = pd.DataFrame(
        {"collection": flaw.collection, "fault": flaw.name, "said": said(flaw)} for flaw in FLAWS
    )
    accepted = int(table.said.str.startswith(ACCEPTED).sum())
    figures = {"folders": len(table), "refused": len(table) - accepted, "accepted": accepted}
    return Outcome(figures, _words(table), {"refusals": table})


def said(flaw: Flaw) -> str:
    """Sentence that refuses a folder with this flaw; or ``accepted``, with what was left out."""
    with tempfile.TemporaryDirectory(prefix="fairq-bench-refusals-") as scratch:
        root = flaw.folder(Path(scratch) / flaw.collection)
        cache = Path(scratch) / "cache"
        try:
            data = load(
                flaw.collection, root=root, size=SIZE, cache=cache, threads=1, **flaw.options
            )
        except BadInput as refusal:
            return str(refusal).replace(str(root), f"data/{flaw.collection}")
    left_out = "; ".join(f"{one['place']}: {one['problem']}" for one in data.meta["findings"])
    return f"{ACCEPTED}, and left out: {left_out}" if left_out else ACCEPTED


def _words(table: pd.DataFrame) -> str:
    lines = []
    for row in table.itertuples():
        lines.append(f"{row.collection}, {row.fault}")
        lines += textwrap.wrap(
            str(row.said), WIDTH, initial_indent="  ", subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return "\n".join(lines)
