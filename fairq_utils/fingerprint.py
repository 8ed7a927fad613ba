"""Names by content: a hash of values, and a hash of the code that a result depends on."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
# They read what is given, say what is wrong, find by name and keep in files: no value is theirs.
BESIDE = frozenset(
    f"{PACKAGE}.{name}"
    for name in ("errors", "given", "registry", "data.whole_files", "training.checkpoints")
)


def fingerprint(value: Any, length: int = 20) -> str:
    """First hex digits of the SHA-256 of a value's canonical JSON (keys sorted)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def code_version(*entries: str, alone: Iterable[str] = ()) -> str:
    """Hash of what modules compute, with all that they import of this package and of their own.

    A comment, a docstring or a line break changes nothing; a changed constant or branch does. The
    modules of :data:`BESIDE` do not count, so that another sentence computes nothing again.

    Parameters
    ----------
    entries : names of modules, such as ``fairq_utils.training.loop``
    alone : names of modules
        Without what they import: those that put together what others compute.

    Raises
    ------
    ModuleNotFoundError
        There is no such module.
    """
    return _version(tuple(sorted(set(entries))), tuple(sorted(set(alone))))


@lru_cache(maxsize=256)
def _version(entries: tuple[str, ...], alone: tuple[str, ...]) -> str:
    decide = {*closure(entries), *alone} - BESIDE
    return fingerprint([[name, _tree(name)] for name in sorted(decide)], 12)


def closure(entries: Iterable[str]) -> set[str]:
    """Modules, and those that they import, directly or not, of this package or of their own.

    What stands under ``if TYPE_CHECKING`` is not imported; a package that only passes names on is
    left out, for modules here import from where a thing stands.

    Examples
    --------
    >>> sorted(closure(["fairq_utils.registry"]))
    ['fairq_utils.errors', 'fairq_utils.registry']
    """
    found: set[str] = set()
    left = list(entries)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _imported(name)
    return found


@lru_cache(maxsize=512)
def _imported(module: str) -> tuple[str, ...]:
    """Modules that a module imports, of this package or of its own."""
    near = {PACKAGE, module.partition(".")[0]}
    return tuple(imports(_source(module), near))


def imports(source: str, near: Collection[str] = (PACKAGE,)) -> list[str]:
    r"""Modules that a source text imports, of the packages ``near``.

    Examples
    --------
    >>> imports("from fairq_utils import fingerprint\nimport os")
    ['fairq_utils.fingerprint']
    """
    found: list[str] = []
    for node in _executed(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            base = str(node.module)
            if base.partition(".")[0] in near:
                inner = [f"{base}.{alias.name}" for alias in node.names]
                found += [name if _is_module(name) else base for name in inner]
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in near]
    return list(dict.fromkeys(found))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            continue
        yield child
        yield from _executed(child)


@lru_cache(maxsize=1024)
def _is_module(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # what it would stand in is no package
        return False
    return spec is not None


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"code_version: there is no module {module!r}")
    return Path(spec.origin).read_text(encoding="utf-8")


@lru_cache(maxsize=512)
def _tree(module: str) -> str:
    tree = ast.parse(_source(module))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            node.body = body[1:] or [ast.Pass()]
    return ast.dump(tree)
