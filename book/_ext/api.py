"""Sphinx extension: the API reference, a page per room, of what the room's ``__all__`` has.

``.. room:: fairq_utils.stats`` gives the room's docstring, a list of its names, and each with its
signature and docstring. Registries and tables of functions are shown with their entries.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode, nested_parse_with_titles

import fairq_utils
from fairq_utils.registry import Registry


class Room(SphinxDirective):
    """Everything that a room exports."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Nodes of the page."""
        room = import_module(self.arguments[0])
        lines = StringList(list(page(room)), room.__name__)
        found = nodes.Element()
        nested_parse_with_titles(self.state, lines, found)
        return found.children


def page(room: ModuleType) -> Iterator[str]:
    """Lines of a room's page, in reStructuredText."""
    yield from (f".. automodule:: {room.__name__}", "", ".. autosummary::", "   :nosignatures:", "")
    # A mapping has no docstring of its own but that of its type, and its entries come below.
    yield from (f"   {n}" for n in room.__all__ if not isinstance(getattr(room, n), Mapping))
    for name in room.__all__:
        value = getattr(room, name)
        # What the package itself exports stands on its page.
        if room is fairq_utils or getattr(fairq_utils, name, None) is not value:
            yield from ("", *entry(f"{room.__name__}.{name}", value))


def entry(path: str, value: Any) -> Iterator[str]:
    """Lines of one name."""
    if inspect.isclass(value):
        yield from (f".. autoclass:: {path}", "   :members:")
    elif inspect.isroutine(value):
        yield f".. autofunction:: {path}"
    elif isinstance(value, Registry):
        yield from (f".. py:data:: {path}", "", f"   Every {value.kind}, by name.", "")
        yield from (f"   {line}" for line in _table(value))
    elif isinstance(value, Mapping):
        yield from (f".. py:data:: {path}", "", f"   By name: {_listed(value)}.")
    else:
        yield f".. autodata:: {path}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"``{name}``" for name in names)


def _table(registry: Registry[Any]) -> Iterator[str]:
    """Entries of a registry as a table: name, label or title, source."""
    yield from (".. list-table::", "   :header-rows: 1", "")
    yield from ("   * - Name", "     - Label", "     - Source")
    for name, one in registry.items():
        label = getattr(one, "label", "") or getattr(one, "title", "")
        source = getattr(one, "source", "")
        source = source if isinstance(source, str) else ""
        yield from (f"   * - ``{name}``", f"     - {label}", f"     - {source}")


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> nodes.reference | None:
    """Link the module where a thing stands to the room's page that has it."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or not target.startswith("fairq_utils."):
        return None
    ending = "." + target.rpartition(".")[2]
    found = [o for name, o in env.domains["py"].objects.items() if name.endswith(ending)]
    if len(found) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], found[0].docname, found[0].node_id, shown)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive, and the links."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.autosummary")
    app.setup_extension("sphinx.ext.napoleon")
    app.add_directive("room", Room)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
