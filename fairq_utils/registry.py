"""Registries: what can be named in a params file or a call, each entry beside what it names.

An entry is one top-level statement of the module that implements it, such as ``@sampler("core_set",
...)`` before a function or ``method("adaround", ...)`` below one. A registry reads these names from
the source of its places, so that listing them imports nothing, and imports a module when one of its
entries is asked for. A module of somebody else's adds entries by the same statements when it is
imported (:func:`load_plugins`).

So with the names that a room passes on (:func:`passed_on`): they are read from the source of its
``__init__``, and imported when they are asked for, as PyTorch alone takes seconds.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from fairq_utils.errors import BadInput, needs

Entry = TypeVar("Entry")
MANY = 50  # names that a sentence still lists


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries of one kind by name.

    Parameters
    ----------
    kind : str
        What an entry is, and the name of the function whose calls make one: ``"sampler"``.
    places : names of modules and packages
        Where entries of this project stand; they are listed in this order.

    Examples
    --------
    >>> from fairq_utils.calibration import SAMPLERS
    >>> SAMPLERS["random"].label
    'random'
    >>> SAMPLERS.find("core-set", "sampler")
    Traceback (most recent call last):
        ...
    fairq_utils.errors.BadInput: sampler: 'core-set' is unknown; did you mean 'core_set'?
    """

    def __init__(self, kind: str, *places: str) -> None:
        self.kind = kind
        self.places = places
        self._entries: dict[str, Entry] = {}
        self._added: dict[str, str] = {}  # name -> module, of entries from elsewhere

    @cached_property
    def _homes(self) -> dict[str, str]:
        """Modules of this project's entries, by name, read from their source."""
        found: dict[str, str] = {}
        for place in self.places:
            for module, path in _modules(place):
                for name in _declared(path, self.kind):
                    if name in found:
                        raise ValueError(
                            f"{path}: the {self.kind} {name!r} stands in {found[name]} too"
                        )
                    found[name] = module
        return found

    def add(self, name: str, entry: Entry) -> Entry:
        """Add an entry; the statement that makes one calls this.

        Raises
        ------
        BadInput
            Another module has an entry of that name.
        """
        module = str(sys._getframe(2).f_globals["__name__"])
        home = self._homes.get(name, self._added.get(name, module))
        if home != module:
            raise BadInput(
                f"{module}: there is a {self.kind} {name!r} already, in {home}; take another name"
            )
        if name not in self._homes:
            self._added[name] = module
        self._entries[name] = entry
        return entry

    def home(self, name: str) -> str:
        """Name of the module that implements an entry."""
        return self._homes[name] if name in self._homes else self._added[name]

    def find(self, name: object, place: str) -> Entry:
        """The entry of a name that somebody wrote.

        Parameters
        ----------
        place : where it was written, for the sentence that refuses it

        Raises
        ------
        BadInput
            There is none; names the nearest.
        """
        if not isinstance(name, str) or name not in self:
            raise BadInput(f"{place}: {unknown(name, self)}")
        return self[name]

    @contextmanager
    def as_shipped(self, **replaced: Entry) -> Iterator[None]:
        """Hide what others added within, and undo what is added there; for tests.

        Parameters
        ----------
        **replaced : entries that stand within for those of this project of the same names

        Examples
        --------
        >>> from fairq_utils.calibration import SAMPLERS
        >>> with SAMPLERS.as_shipped(random=SAMPLERS["core_set"]):
        ...     SAMPLERS["random"].name
        'core_set'
        >>> SAMPLERS["random"].name
        'random'
        """
        for name in replaced:
            self[name]  # its module adds it before, not within
        entries, added = self._entries, self._added
        own = {name: entry for name, entry in entries.items() if name in self._homes}
        self._entries, self._added = {**own, **replaced}, {}
        try:
            yield
        finally:
            # Modules that were imported within are not imported again.
            new = {name: entry for name, entry in self._entries.items() if name in self._homes}
            self._entries, self._added = {**new, **entries}, added

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            if name not in self._homes:
                raise KeyError(name)
            importlib.import_module(self._homes[name])
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._homes or name in self._added

    def __iter__(self) -> Iterator[str]:
        yield from self._homes
        yield from self._added

    def __len__(self) -> int:
        return len(self._homes) + len(self._added)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self)})"


def unknown(name: object, known: Iterable[str]) -> str:
    """A sentence about a name that is not known: the nearest that is, or all of them.

    Examples
    --------
    >>> unknown("smote", ["random", "core_set"])
    "'smote' is unknown; it is one of random, core_set"
    """
    names = list(known)
    near = difflib.get_close_matches(str(name), names, 1)
    near = near or [other for other in names if other.startswith(str(name).lower())][:1]
    listed = names if len(names) <= MANY else [*names[:5], f"... ({len(names)} names)"]
    hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(listed)}"
    return f"{name!r} is unknown; {hint}"


def name_of(module: str) -> str:
    """Name by which a plugin is imported, of a name or of a path that ends in ``.py``.

    >>> name_of("folder/my_module.py"), name_of("my_package.part")
    ('my_module', 'my_package.part')
    """
    path = Path(module)
    return path.stem if path.suffix == ".py" else module


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules that add entries of their own.

    Parameters
    ----------
    modules : names, as an import statement has them, or paths that end in ``.py``

    Raises
    ------
    BadInput
        One cannot be found, is no Python, or raises while it is imported; names the line.
    """
    for module in modules:
        path, name = Path(module), name_of(module)
        if name != module and str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise BadInput(f"plugins: {name}: needs {error.name}, which is not there") from None
            raise BadInput(
                f"plugins: there is no module {name!r} on Python's path, nor {name}.py beside the "
                "params file; put it there, or name the file, such as folder/my_module.py"
            ) from None
        except BadInput as error:
            raise BadInput(f"plugins: {error}") from error
        except Exception as error:
            raise BadInput(f"plugins: {name}: {_where(error)}; mend it there") from error


def _where(error: Exception) -> str:
    """An error of somebody else's module, with its file and line."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{at.filename}, line {at.lineno}: {type(error).__name__}: {error}"


def passed_on(
    room: str, extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a room (PEP 562).

    Its ``__init__`` has the names twice: in ``__all__``, and under ``if TYPE_CHECKING`` as imports
    from the modules where they stand. A name must not be that of a module in the room, which would
    take its place once imported.

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
        return _imported(Path(str(package.__file__)))

    def get(name: str) -> Any:
        if name.startswith("__") or name not in homes():
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        with needs(f"{room}.{name}", extra):
            value = getattr(importlib.import_module(homes()[name]), name)
        setattr(package, name, value)  # it is asked for once
        return value

    def names() -> list[str]:
        listed = vars(package)["__all__"]  # those that its __init__ imports itself too
        return sorted({*listed, *(name for name in vars(package) if name.startswith("__"))})

    return get, names


def _modules(place: str) -> Iterator[tuple[str, Path]]:
    """Modules at a place and below it, with their files, sorted."""
    spec = importlib.util.find_spec(place)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"registry: there is no module {place!r}")
    path = Path(spec.origin)
    if not spec.submodule_search_locations:
        yield place, path
        return
    for file in sorted(path.parent.rglob("*.py")):
        inner = file.relative_to(path.parent).with_suffix("").parts
        parts = inner[:-1] if inner[-1] == "__init__" else inner
        yield ".".join([place, *parts]), file


def _declared(path: Path, kind: str) -> Iterator[str]:
    """Names of a module's entries: first arguments of top-level calls of ``kind``."""
    text = path.read_text(encoding="utf-8")
    if f"{kind}(" not in text:
        return
    for node in ast.parse(text).body:
        calls: list[ast.AST] = list(getattr(node, "decorator_list", []))
        if isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign) and node.value is not None:
            calls.append(node.value)
        for call in calls:
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id == kind
                and call.args
                and isinstance(call.args[0], ast.Constant)
            ):
                yield str(call.args[0].value)


def _imported(path: Path) -> dict[str, str]:
    """Module of each name that is imported under ``if TYPE_CHECKING``."""
    return {
        alias.name: str(node.module)
        for block in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
