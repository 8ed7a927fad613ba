"""Files that are there whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike[str], *, first_stays: bool = False) -> Iterator[Path]:
    """Path to write to instead; renamed to ``path`` at the end, removed if anything is raised.

    Two processes, also of two hosts on one disk, write under names of their own.

    Parameters
    ----------
    first_stays : bool
        Whether a file that is there by then stays, and what was written is dropped.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a" / "table.csv"
    >>> with written_whole(target) as place:
    ...     _ = place.write_text("x")
    >>> target.read_text(), [p.name for p in target.parent.iterdir()]
    ('x', ['table.csv'])
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        if not first_stays:
            temporary.replace(path)
            return
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
