"""Names that a room passes on, imported when they are asked for: PyTorch alone takes seconds.

The ``__init__`` of a room has them twice: in ``__all__``, and under ``if TYPE_CHECKING`` as imports
from the modules where they stand.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fairq_utils.errors import needs


def passed_on(
    room: str, extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a room (PEP 562).

    A name must not be that of a module in the room, which would take its place once imported.

    Parameters
    ----------
    room : the package's ``__name__``
    extra : optional dependencies that its names need; see :func:`fairq_utils.errors.needs`

    Examples
    --------
    >>> from fairq_utils import stats
    >>> stats.verdict.__module__
    'fairq_utils.stats.verdicts'
    >>> stats.verdicts_of
    Traceback (most recent call last):
        ...
    AttributeError: module 'fairq_utils.stats' has no attribute 'verdicts_of'
    """
    package = sys.modules[room]

    @cache
    def homes() -> dict[str, str]:
        return _homes(Path(str(package.__file__)))

    def get(name: str) -> Any:
        if name.startswith("__") or name not in homes():
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        with needs(f"{room}.{name}", extra):
            value = getattr(import_module(homes()[name]), name)
        setattr(package, name, value)  # it is asked for once
        return value

    def names() -> list[str]:
        return sorted({*vars(package), *homes()})

    return get, names


def _homes(path: Path) -> dict[str, str]:
    """Module of each name that is imported under ``if TYPE_CHECKING``."""
    return {
        alias.name: str(node.module)
        for block in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
