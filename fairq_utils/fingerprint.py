"""Names by content: a hash of values, and a hash of the code that a result depends on."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any


def fingerprint(value: Any, length: int = 20) -> str:
    """First hex digits of the SHA-256 of a value's canonical JSON (keys sorted)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def code_version(modules: Sequence[str]) -> str:
    """Hash of what these modules compute: their syntax trees without docstrings and positions.

    A comment, a docstring or a line break changes nothing; a changed constant or branch does.
    """
    return _version(tuple(modules))


@lru_cache(maxsize=16)
def _version(modules: tuple[str, ...]) -> str:
    return fingerprint([_tree(name) for name in sorted(modules)], 12)


@lru_cache(maxsize=64)
def _tree(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"code_version: there is no module {module!r}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
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
