"""Notebooks: from the scripts of the chapters to executed ones, the same bytes every time."""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from fairq_utils.calibration import SAMPLERS
from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.whole_files import says_place, written_whole
from fairq_utils.deploy.engines.registry import ENGINES
from fairq_utils.errors import BadInput, Fault
from fairq_utils.fingerprint import PACKAGE, code_version, fingerprint, imports
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.registry import Registry
from fairq_utils.study.work_folder import work_folder
from fairq_utils.training.zoo import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
SMOKE = ROOT / "params" / "smoke.yaml"
INJECTED = "# Parameters"  # first line of the cell that papermill writes
# Written into every notebook instead of what the executing kernel says about itself.
METADATA: dict[str, Any] = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

REGISTRIES: tuple[Registry[Any], ...] = (
    ARCHITECTURES, COLLECTIONS, ENGINES, FAIRNESS, METHODS, SAMPLERS
)  # fmt: skip

Progress = Callable[[str], None]


class UnknownParameterError(BadInput):
    """A parameter that a chapter does not have."""


class ExecutionError(Fault):
    """A chapter could not be executed: which one, in which cell, and why."""


def chapters(folder: Path = NOTEBOOKS) -> list[Path]:
    """The chapters' scripts in reading order: ``01_population.py``, ``02_measuring.py``, ..."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def read_chapter(script: Path) -> NotebookNode:
    """The notebook, without outputs, that a percent script describes; cell ids follow content."""
    notebook = jupytext.read(script, fmt="py:percent")
    return normalise(notebook)


def execute_notebooks(
    params_file: Path | str,
    out_dir: Path,
    progress: Progress = print,
    *,
    parameters: Mapping[str, Any] | None = None,
    scripts: Sequence[Path] | None = None,
    state: Callable[[], Any] | None = None,
) -> list[Path]:
    """Execute every chapter at a params file and write the notebooks with their outputs.

    The kernel works in the script's folder, as nbval and an editor do, and is this interpreter's.
    A chapter whose script, parameters, code and ``state`` are those of its last execution into
    ``out_dir`` is not executed again.

    Parameters
    ----------
    params_file : path
        Given to each chapter as ``params_file``, relative to the chapter's folder.
    out_dir : path
        Where ``<chapter>.ipynb`` is written. Seconds per chapter are noted beside it, for the next
        execution's estimate of the time left.
    progress : callable
        Called with one line before and after each chapter.
    parameters : mapping, optional
        Further papermill parameters, by name.
    scripts : sequence of paths, optional
        The chapters; all of ``notebooks/`` if not given.
    state : callable, optional
        What the chapters read beside their code and parameters, as JSON. Every chapter is executed
        if not given.

    Raises
    ------
    UnknownParameterError
        Before anything is executed or written.
    ExecutionError
        Names the chapter and cell that failed.
    """
    scripts = chapters() if scripts is None else list(scripts)
    given: dict[str, Any] = dict(parameters or {})
    for script in scripts:
        known = parameters_of(read_chapter(script))
        refuse_unknown(_shown(script), ["params_file", *given], known)
    with says_place(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    clock = _Clock(out_dir.parent / f"{out_dir.name}_seconds.json", [s.stem for s in scripts])
    record = out_dir.parent / f"{out_dir.name}_keys.json"
    before = _read_json(record)
    package = digest_of(ROOT / PACKAGE)
    codes: dict[str, str] = before.get("codes", {}) if before.get("package") == package else {}
    recipes: dict[str, list[Any]] = {}
    there = state() if state else None
    written = []
    for number, script in enumerate(scripts, start=1):
        label = f"chapter {number}/{len(scripts)} {script.stem}"
        given["params_file"] = os.path.relpath(params_file, script.parent)
        target = out_dir / f"{script.stem}.ipynb"
        written.append(target)
        if state:
            source = script.read_text(encoding="utf-8")
            recipes[script.stem] = [source, dict(given), _code(source, codes), _installed()]
            key = fingerprint([recipes[script.stem], there])
            if target.exists() and before.get("keys", {}).get(script.stem) == key:
                clock.finished(script.stem)
                progress(f"{label}: unchanged")
                continue
        progress(f"{label}: executing, {clock.left()}")
        with written_whole(target) as place:
            nbformat.write(_execute(script, read_chapter(script), given), place)
        progress(f"{label}: done in {clock.finished(script.stem):.0f} s")
        clock.save()
        there = state() if state else None  # a chapter may have added to the ledger
    if state:
        keys = {name: fingerprint([of, there]) for name, of in recipes.items()}
        _write_json(record, {"package": package, "codes": codes, "keys": keys})
    return written


def write_pairs(progress: Progress = print, scripts: Sequence[Path] | None = None) -> list[Path]:
    """Write the committed ``.ipynb`` beside each script, executed with the script's own defaults.

    Where :func:`~fairq_utils.study.work_folder.work_folder` is named, they are written into
    ``notebooks`` there.

    What a chapter writes to stderr is shown here and not kept: it is about the machine.
    """
    scripts = chapters() if scripts is None else list(scripts)
    written = []
    work = work_folder()
    for script in scripts:
        if work is None and not os.access(script.parent, os.W_OK):
            raise Fault(f"{script.parent}: cannot be written; name a place with --work DIR")
    for number, script in enumerate(scripts, start=1):
        began = time.perf_counter()
        progress(f"chapter {number}/{len(scripts)} {script.stem}: executing")
        notebook = _execute(script, read_chapter(script), {})
        for index, cell in enumerate(notebook.cells):
            for output in [o for o in cell.get("outputs", []) if o.get("name") == "stderr"]:
                cell.outputs.remove(output)
                first = output.text.strip().partition("\n")[0]
                progress(f"  {script.stem} cell {index} wrote to stderr: {first}")
        folder = script.parent if work is None else work / NOTEBOOKS.name
        target = folder / f"{script.stem}.ipynb"
        with written_whole(target) as place:
            nbformat.write(notebook, place)
        written.append(target)
        progress(f"  wrote {_shown(target)} in {time.perf_counter() - began:.0f} s")
    return written


def digest_of(*places: Path) -> str:
    """SHA-256 of the names and contents of files, and of all in folders but compiled ones."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted([place, *place.rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(place.parent)} {path.stat().st_size}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def differences(script: Path) -> list[str]:
    """Places where a script and the notebook beside it are out of step; empty if in step."""
    pair = script.with_suffix(".ipynb")
    if not pair.exists():
        return [f"{_shown(pair)} is missing: run make notebooks"]
    ours, theirs = read_chapter(script), nbformat.read(pair, as_version=4)
    found = []
    if len(ours.cells) != len(theirs.cells):
        found.append(f"{len(ours.cells)} cells in the script, {len(theirs.cells)} in the notebook")
    for index, (cell, twin) in enumerate(zip(ours.cells, theirs.cells, strict=False)):
        for part in ("cell_type", "source", "metadata", "id"):
            if cell[part] != twin[part]:
                found.append(f"cell {index}: {part} differs")
                break
    return [f"{_shown(script)}: {line}; run make notebooks" for line in found]


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Take out, in place, what differs between two executions that computed the same."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(METADATA)
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        for key in ("papermill", "execution", "jupyter", "lines_to_next_cell"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        elif "injected-parameters" in cell.metadata.tags:
            cell.metadata.tags = ["injected-parameters", "remove-cell"]
        text = f"{cell.cell_type}\n{cell.source}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type == "code":
            cell.outputs = _normalise_outputs(cell.outputs, cell.id)
    return notebook


def parameters_of(notebook: NotebookNode) -> dict[str, str]:
    """Names assigned in the cell tagged ``parameters``, each with its default's source."""
    found: dict[str, str] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            found.update(_assigned(cell.source))
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
    """Refuse from within a chapter, by the sources of the cells that were executed so far.

    What papermill injected may only assign what the cells before it assign.
    """
    for number, source in enumerate(executed):
        if source.lstrip().startswith(INJECTED):
            known = [name for cell in executed[:number] for name in _assigned(cell)]
            refuse_unknown("this chapter", _assigned(source), known)


def _assigned(source: str) -> dict[str, str]:
    """Names that a cell assigns, each with the source of its value."""
    found: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            names = [name.id for name in node.targets if isinstance(name, ast.Name)]
            found.update({name: ast.unparse(node.value) for name in names})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = ast.unparse(node.value) if node.value else ""
    return found


def _normalise_outputs(outputs: list[NotebookNode], cell_id: str) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in outputs:
        previous = kept[-1] if kept else None
        if output.output_type == "stream":
            output.text = _steady(output.text, cell_id)
            # Where one stream is cut into messages is a matter of timing.
            if (
                previous is not None
                and previous.output_type == "stream"
                and previous.name == output.name
            ):
                previous.text += output.text
                continue
        for mime, data in output.get("data", {}).items():
            if mime.startswith("text/") and isinstance(data, str):
                output.data[mime] = _steady(data, cell_id)
        kept.append(output)
    return kept


def _steady(text: str, cell_id: str) -> str:
    text = text.replace(f"{ROOT}{os.sep}", "").replace(sys.prefix, "<environment>")
    text = re.sub(r" at 0x[0-9a-f]{6,}", "", text)
    # pandas' Styler draws a new id for every table.
    for number, style in enumerate(dict.fromkeys(re.findall(r"\bT_[0-9a-f]{5}\b", text))):
        text = text.replace(style, f"T_{cell_id}_{number}")
    return text


def _code(source: str, known: dict[str, str]) -> str:
    """Version of the code of a chapter; ``known`` are those of the package as it is, by imports."""
    imported = imports(source)
    name = fingerprint(imported)
    if name not in known:
        registered = {registry.home(name) for registry in REGISTRIES for name in registry}
        known[name] = fingerprint([code_version(*imported), code_version(*registered)])
    return known[name]


@cache
def _installed() -> list[str]:
    return sorted(f"{of.name} {of.version}" for of in distributions())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with written_whole(path) as place:
        place.write_text(json.dumps(value) + "\n", encoding="utf-8")


class _ThisInterpreter(AsyncKernelManager):
    """Kernels of the interpreter that executes, whatever else is installed as ``python3``."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """How ipykernel starts here."""
        return KernelSpec(**get_kernel_dict())


def _execute(script: Path, notebook: NotebookNode, given: Mapping[str, Any]) -> NotebookNode:
    # Two kernels never share this: papermill reads it when it starts one.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        done = papermill.execute_notebook(
            notebook,
            None,
            parameters=dict(given),
            cwd=script.parent,
            kernel_name="python3",
            kernel_manager_class=_ThisInterpreter,
            progress_bar=False,
            start_timeout=120,
            # A kernel that is asked to stop otherwise reports that as an error.
            extra_arguments=["--IPKernelApp.log_level=50"],
            # Other users of this machine shall not read what the kernel says.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except PapermillExecutionError as error:
        raise ExecutionError(
            f"{_shown(script)}: cell {error.cell_index}: {error.ename}: {error.evalue}\n"
            + _plain("\n".join(error.traceback))
        ) from None
    return normalise(done)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _shown(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


class _Clock:
    """Seconds that the chapters took, last time and now, and so an estimate of what is left."""

    def __init__(self, record: Path, names: Sequence[str]) -> None:
        self.record = record
        self.began = self.last = time.perf_counter()
        self.todo = list(names)
        self.taken: dict[str, float] = {}
        self.before: dict[str, float] = _read_json(record)

    def left(self) -> str:
        """Elapsed time and the estimate of what is left: a guess until something is known."""
        elapsed = f"{time.perf_counter() - self.began:.0f} s so far"
        known = [self.before[name] for name in self.todo if name in self.before]
        pace = [*self.taken.values(), *known]
        if not pace:
            return elapsed
        unknown = len(self.todo) - len(known)
        return f"{elapsed}, about {sum(known) + unknown * sum(pace) / len(pace):.0f} s left"

    def finished(self, name: str) -> float:
        """Note a chapter as done and return its seconds."""
        now = time.perf_counter()
        self.taken[name], self.last = now - self.last, now
        self.todo.remove(name)
        return self.taken[name]

    def save(self) -> None:
        """Keep the seconds for the next execution."""
        taken = {name: round(seconds, 1) for name, seconds in self.taken.items()}
        _write_json(self.record, self.before | taken)
