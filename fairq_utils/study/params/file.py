"""A params file read: where a value is wrong, a sentence with the file, the key and the way out."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.errors import BadInput
from fairq_utils.registry import load_plugins
from fairq_utils.study.params.data import Data, Photographs
from fairq_utils.study.params.earlier import replaced
from fairq_utils.study.params.study import ModelRecipe, Params, ParamsError
from fairq_utils.study.params.text import line_of, read
from fairq_utils.study.work_folder import work_folder

KINDS = {"population": Data, "photographs": Photographs}  # of the data section
LONGEST = 100  # characters of a value in a sentence
# Settings that are a path or a URL, by section.
PLACES = {
    "execution": ("ledger", "cache", "results"),
    "tracking": ("tensorboard", "mlflow"),
    "data": ("root",),
    "cluster": ("address",),
}
WRITTEN = ("execution", "tracking")


def load_params(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Params:
    """Read and check a params file.

    Relative paths in ``execution`` and ``tracking``, of ``data.root`` and of a scheduler file are
    taken from the repository's root where the file is in its ``params/`` folder, else from the
    file's own folder; but see :func:`fairq_utils.study.work_folder.work_folder`.

    Parameters
    ----------
    path : path of a YAML file
    overrides : mapping, optional
        Values by dotted key, such as ``{"data.test": 500}``, that take the place of
        the file's. A mapping given as a value replaces the file's mapping whole.

    Raises
    ------
    ParamsError
        One sentence that names the file, the key's path, the value, and the way out.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        near = sorted(p.stem for p in Path("params").glob("*.yaml"))
        hint = f"; the profiles in params/ are {', '.join(near)}" if near else ""
        raise ParamsError(f"{path}: cannot be read: {reason}{hint}") from None
    try:
        content = read(text)
    except BadInput as error:
        raise ParamsError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: holds no mapping of keys; begin with `name:` and `training:`")
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ParamsError(
            f"overrides: {overrides!r} is no mapping of keys to values, such as {{data.test: 500}}"
        )
    for key, value in (overrides or {}).items():
        _put(content, str(key), value)
    earlier = replaced(content)
    if earlier is not None:
        raise ParamsError(f"{path}: {earlier}")
    try:
        content |= _plugins(content, path.resolve().parent)
        load_plugins(content["plugins"])
    except BadInput as error:
        raise ParamsError(f"{path}: {error}") from None
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        location = _named(error.errors()[0]["loc"])
        given = ".".join(map(str, location)).startswith(tuple(map(str, overrides or ())))
        line = None if overrides and given else line_of(text, location)
        where = f" (line {line})" if line else ""
        raise ParamsError(f"{path}: {_sentence(error)}{where}") from None
    root = path.resolve().parent
    root = root.parent if root.name == "params" else root
    try:
        return _placed(params, root)
    except BadInput as error:
        raise ParamsError(f"{path}: {error}") from None


def _placed(params: Params, root: Path) -> Params:
    """The same params with every path whole, those that are relative taken from ``root``."""
    update: dict[str, Any] = {}
    work = work_folder() or root
    for section, names in PLACES.items():
        base = work if section in WRITTEN else root
        given = getattr(params, section)
        places = {
            name: _place(f"{section}.{name}", getattr(given, name), base)
            for name in names
            if getattr(given, name, None)
        }
        update[section] = given.model_copy(update=places)
    return params.model_copy(update=update)


def _place(key: str, value: str, root: Path) -> str:
    """A path as the shell would expand it, whole; a URL as it is."""
    if "://" in value:
        return value
    if not value.strip() or "\0" in value:
        raise BadInput(f"{key}: {value!r} is no path; write one, or leave the key out")
    expanded = os.path.expanduser(os.path.expandvars(value))
    missing = re.search(r"\$\{?\w+\}?", expanded)
    if missing and not (root / expanded).exists():
        raise BadInput(
            f"{key}: {value}: {missing[0]} is not set in the environment; set it, or write the path"
        )
    if expanded.startswith("~"):
        raise BadInput(f"{key}: {value}: there is no such user; write the path")
    return str((root / expanded).resolve())


def _plugins(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Modules that are imported before the file is checked, whose names it may use.

    One that lies beside the file is named by its path, so that a worker elsewhere finds it too.
    """
    found = content.get("plugins", [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise BadInput("plugins: name modules in a list, such as [my_module]")
    beside = {name: folder / f"{name}.py" for name in found}
    return {"plugins": [str(p) if p.is_file() else name for name, p in beside.items()]}


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = content.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ParamsError(f"override {key}: {parent!r} holds no keys; name the key itself")
        content = inner
    content[last] = value


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Overrides from ``KEY=VALUE`` texts; the value is read as YAML.

    Examples
    --------
    >>> parse_overrides(["training.seeds=[0, 1]", "data.test=500"])
    {'training.seeds': [0, 1], 'data.test': 500}
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ParamsError(f"override {text!r}: write it as KEY=VALUE, such as data.test=500")
        try:
            found[key.strip()] = read(value)
        except BadInput as error:
            raise ParamsError(f"override {text!r}: the value is not YAML ({error})") from None
    return found


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    location = _named(first["loc"])
    place = ""
    for part in location:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    kind, value = first["type"], first["input"]
    shown = repr(value)
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST - 3]}..."
    if kind == "extra_forbidden":
        known = _keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
        return f"{place}: unknown key; {hint}"
    if kind == "missing":
        return f"{place}: this key is required; add it"
    if kind == "value_error":
        text = str(first["ctx"]["error"])
        return f"{place}: {text}" if place else text
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(first["ctx"]["expected"]))
        if place == "data.name":  # which of the two kinds a section is, goes by its name
            allowed += COLLECTIONS
        near = difflib.get_close_matches(str(value), allowed, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(allowed)}"
        return f"{place}: {shown} will not do; {hint}"
    if kind in ("tuple_type", "list_type"):
        return f"{place}: {shown} will not do: it is a list; write [{str(value)[:LONGEST]}]"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{place}: {shown} will not do: it holds keys with values, such as {{key: value}}"
    if kind == "too_short":
        return f"{place}: has {len(value)}; name at least {first['ctx']['min_length']}"
    return f"{place}: {shown} will not do: {first['msg'][0].lower()}{first['msg'][1:]}"


def _named(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A location without the tag that says which kind of ``data`` it is."""
    tagged = location[:1] == ("data",) and location[1:2] != () and location[1] in KINDS
    return (*location[:1], *location[2:]) if tagged else location


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys that a params file may have at a place."""
    model: Any = Params
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            model = field.annotation
        elif part in KINDS:
            model = KINDS[str(part)]
        elif model is not None and any(a is ModelRecipe for a in get_args(model)):
            model = ModelRecipe
    return list(getattr(model, "model_fields", {}))
