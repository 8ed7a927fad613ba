"""YAML of a params file as it is meant: YAML 1.2's scalars, every key once, no bombs.

PyYAML reads YAML 1.1, where ``040`` is 32, ``10:00`` is 600, ``1e-3`` is a text and the second of
two equal keys wins without a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from fairq_utils.errors import BadInput

# The core schema of YAML 1.2, section 10.3.2, with underscores between digits as in Python.
SCALARS = {
    "null": (r"~|null|Null|NULL|", ("~", "n", "N", "")),
    "bool": (r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    "int": (r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        tuple("-+0123456789."),
    ),
    "merge": (r"<<", ("<",)),
}
MOST = 100_000  # values, each counted as often as it is referred to
DIGITS = 300  # of a number


class _Loader(yaml.SafeLoader):
    """A safe loader of YAML 1.2's scalars that refuses what stands there twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _refused(key, "a key is a word, not a list or mapping; quote it")
            line = key.start_mark.line + 1
            if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                raise _refused(
                    key,
                    f"{key.value!r} stands on line {lines[key.value]} too; keep one of them",
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_number(self, node: ScalarNode) -> int | float:
        text = str(node.value).replace("_", "")
        if len(text) > DIGITS:
            raise _refused(node, f"a number has {len(text)} digits; shorten it")
        if node.tag.endswith("float"):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)


for _kind, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def read(text: str) -> Any:
    """Value of a YAML text.

    Raises
    ------
    BadInput
        It is no YAML, a key stands there twice, or it is deeper or longer than any study; names the
        line.

    Examples
    --------
    >>> read("{size: 040, train: 16_000, rate: 1e-3, walltime: 12:00:00, pretrained: no}")
    {'size': 40, 'train': 16000, 'rate': 0.001, 'walltime': '12:00:00', 'pretrained': 'no'}
    >>> read("{train: 2000, train: 200}")
    Traceback (most recent call last):
        ...
    fairq_utils.errors.BadInput: line 1: 'train' stands on line 1 too; keep one of them
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}, ()) > MOST:
            raise BadInput(
                f"aliases (*name) stand for more than {MOST:,} values; write what is meant"
            )
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "it is no YAML")
        raise BadInput(f"{where}{problem}; correct the YAML there") from None
    except RecursionError:
        raise BadInput("lists or mappings are nested too deeply; no study needs that") from None
    finally:
        if loader is not None:
            loader.dispose()


def line_of(text: str, location: Sequence[int | str]) -> int | None:
    r"""Line of what stands at a place in a YAML text, or of what it stands in; None if nowhere.

    Examples
    --------
    >>> line_of("a:\n  b: [1,\n   2]", ("a", "b", 1))
    3
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    finally:
        loader.dispose()
    line = None
    for part in location:
        if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        elif isinstance(node, MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                break
            key, node = found[0]
            line = key.start_mark.line + 1
    return line


def _size(node: Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Number of values in a node, those of aliases counted wherever they stand."""
    if id(node) in above:
        raise _refused(node, "it contains itself by an alias (*name); write what is meant")
    if id(node) not in known:
        inner: list[Node] = []
        if isinstance(node, SequenceNode):
            inner = node.value
        elif isinstance(node, MappingNode):
            inner = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(part, known, (*above, id(node))) for part in inner)
    return known[id(node)]


def _refused(node: Node, sentence: str) -> BadInput:
    return BadInput(f"line {node.start_mark.line + 1}: {sentence}")
