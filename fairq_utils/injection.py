"""The parameters that papermill puts into a chapter, and a refusal of those it does not have.

papermill only prints a notice when a parameter is unknown and goes on without it. Here that is an
error: before anything is executed where this package executes the chapters, and in a chapter's
first cell where somebody calls papermill directly.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Sequence

from nbformat import NotebookNode

from fairq_utils.faults import BadInput

INJECTED = "# Parameters"  # first line of the cell that papermill writes


class UnknownParameterError(BadInput):
    """A parameter that a chapter does not have."""


def assigned(source: str) -> dict[str, str]:
    """Names that a cell assigns, each with the source of its value."""
    found: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            names = [name.id for name in node.targets if isinstance(name, ast.Name)]
            found.update({name: ast.unparse(node.value) for name in names})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = ast.unparse(node.value) if node.value else ""
    return found


def parameters_of(notebook: NotebookNode) -> dict[str, str]:
    """Names assigned in the cell tagged ``parameters``, each with its default's source."""
    found: dict[str, str] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            found.update(assigned(cell.source))
    return found


def refuse_unknown(chapter: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first given name that is not known.

    Raises
    ------
    UnknownParameterError
        Names the chapter, the parameter and what it may be instead.
    """
    has = sorted(known)
    for name in given:
        if name not in has:
            near = difflib.get_close_matches(name, has, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UnknownParameterError(
                f"{chapter}: parameters: {name!r} is not one of its parameters "
                f"({', '.join(has) or 'none'}){hint}"
            )


def refuse_unknown_in(executed: Sequence[str]) -> None:
    """The same from within a chapter, by the sources of the cells that were executed so far.

    What papermill injected may only assign what the cells before it assign.
    """
    for number, source in enumerate(executed):
        if source.lstrip().startswith(INJECTED):
            known = [name for cell in executed[:number] for name in assigned(cell)]
            refuse_unknown("this chapter", assigned(source), known)
