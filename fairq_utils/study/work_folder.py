"""Folder below which everything is written, for trees that cannot be written themselves."""

from __future__ import annotations

import os
from pathlib import Path

WORK = "FAIRQ_WORK"  # in the environment, so that chapters and workers have it too


def work_folder() -> Path | None:
    """Folder of ``--work`` or of the environment's ``FAIRQ_WORK``; None where none is named.

    Where it is named, relative paths of ``execution`` and ``tracking`` are taken from there, and
    books, notebooks, benchmarks and recorded tables are written there.
    """
    named = os.environ.get(WORK)
    return Path(named).expanduser().resolve() if named else None
