"""From a params file to a built book that loads nothing from outside.

The book's sources are copied into a folder of their own, where the chapters executed at this params
file take the place of the committed ones; Jupyter Book only renders. The last good book stays until
the new one is complete.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat

from fairq_utils.data.whole_files import says_place
from fairq_utils.errors import Fault
from fairq_utils.fingerprint import code_version
from fairq_utils.registry import name_of
from fairq_utils.report.notebooks import ROOT, Progress, digest_of, execute_notebooks
from fairq_utils.study.params.data import Photographs
from fairq_utils.study.params.file import load_params
from fairq_utils.study.recorded import FOLDER
from fairq_utils.study.study import Study
from fairq_utils.study.work_folder import work_folder

BOOKS = Path("build") / "book"  # below the work folder, or the repository
# Attributes through which a page makes the browser load something, by tag. An <a> is not among
# them: a reader may follow a link.
LOADS = {
    "audio": ("src",),
    "embed": ("src",),
    "feimage": ("href", "xlink:href"),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
# <link> relations that name a page and load nothing.
NAMING = {"alternate", "author", "canonical", "help", "license", "next", "prev", "search"}
OUTSIDE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
IN_SCRIPT = re.compile(r"""["'](https?://[^"'\s]+\.m?(?:js|css))["']""", re.IGNORECASE)


class BookError(Fault):
    """The book could not be built: what Jupyter Book said, or what the book would load."""


def build_book(
    params_file: Path | str,
    *,
    books: Path | None = None,
    progress: Progress = print,
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """Execute the chapters at a params file and build the book.

    What is as it was at the last time is neither executed nor rendered again: a chapter's script,
    code, parameters and results, and for the pages what they and the package say.

    Parameters
    ----------
    params_file : path
    books : path, optional
        Folder of books; ``build/book`` of the work folder, or else of the repository.
    progress : called with one line at a time
    parameters : of the chapters

    Returns
    -------
    Path
        The book's first page, ``<books>/<profile>/html/index.html``; the profile is the params
        file's name without suffix.

    Raises
    ------
    ParamsError, UnknownParameterError
        Before anything is written.
    ExecutionError
        A chapter failed.
    BookError
        The folder cannot be written; a warning of Jupyter Book's, or a reference to something
        outside the book.
    """
    params_file = Path(params_file)
    given = dict(parameters or {})
    study = Study(load_params(params_file, given.get("overrides")))
    books = (work_folder() or ROOT) / BOOKS if books is None else books
    home = books / params_file.stem
    source, finished, record = home / "source", home / "html", home / "pages_key"
    with says_place(source, "name a place with --work DIR"):
        source.mkdir(parents=True, exist_ok=True)
    execute_notebooks(
        params_file,
        source / "notebooks",
        progress,
        parameters=parameters,
        state=lambda: _results(study),
    )
    with says_place(home):
        _stage(source)
    said = [source / name for name in ("_config.yml", "_toc.yml", "book", "notebooks")]
    key = digest_of(*said, ROOT / "fairq_utils")
    if (finished / "index.html").exists() and record.exists() and record.read_text() == key:
        progress("rendering the book: unchanged")
        return finished / "index.html"
    began = time.perf_counter()
    progress("rendering the book")
    html = _render(source, home / "work", home / "build.log")
    outside = outside_references(html)
    if outside:
        raise BookError("the book would load from outside: " + "; ".join(outside[:10]))
    record.unlink(missing_ok=True)
    shutil.rmtree(finished, ignore_errors=True)
    html.rename(finished)
    shutil.rmtree(home / "work")
    record.write_text(key)
    progress(f"rendering the book: done in {time.perf_counter() - began:.0f} s")
    return finished / "index.html"


def _results(study: Study) -> list[Any]:
    """What chapters read: params, the code of plugins, the ledger, recorded tables, photographs."""
    photographs = study.listing.state if isinstance(study.params.data, Photographs) else None
    return [
        study.params.model_dump(mode="json"),
        code_version(*(name_of(plugin) for plugin in study.params.plugins)),
        study.ledger.state(),
        digest_of(FOLDER),
        photographs() if photographs else None,
    ]


def _stage(source: Path) -> None:
    """Put pages, settings and table of contents beside the executed chapters; fold their code."""
    shutil.rmtree(source / "book", ignore_errors=True)
    shutil.copytree(ROOT / "book", source / "book", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, source / name)
    for path in (source / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            tags = cell.metadata.setdefault("tags", [])
            shown = any(tag.startswith(("hide-", "remove-", "show-")) for tag in tags)
            if cell.cell_type == "code" and not shown:
                tags.append("hide-input")
        nbformat.write(notebook, path)


def _render(source: Path, work: Path, log: Path) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", "."]
    command += ["--path-output", str(work), "--all", "-W", "--keep-going"]
    with log.open("w", encoding="utf-8") as stream:
        # In the source's folder, since the path of the local Sphinx extension is relative.
        code = subprocess.run(
            command, cwd=source, stdout=stream, stderr=subprocess.STDOUT, check=False
        ).returncode
    said = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8"))
    html = work / "_build" / "html"
    if code != 0 or not (html / "index.html").exists():
        lines = [line for line in said.splitlines() if re.search(r"WARNING|ERROR|rror:", line)]
        shown = "\n".join(lines or said.splitlines()[-15:])
        raise BookError(f"Jupyter Book is not content (all it said is in {log}):\n{shown}")
    return html


def outside_references(html: Path) -> list[str]:
    """References of a built book to the network, as ``page: reference``; empty is good."""
    found = []
    for page in sorted(html.rglob("*.html")):
        reader = _Loads()
        reader.feed(page.read_text(encoding="utf-8"))
        found += [f"{page.relative_to(html)}: {reference}" for reference in reader.found]
    for sheet in sorted(html.rglob("*.css")):
        text = sheet.read_text(encoding="utf-8")
        found += [f"{sheet.relative_to(html)}: {url}" for url in IN_STYLE.findall(text)]
    return found


class _Loads(HTMLParser):
    """Collects what a page loads from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at the attributes that load, and remember being in a script or style."""
        self.inside = tag if tag in ("script", "style") else ""
        values = {name: value or "" for name, value in attrs}
        if tag == "link" and set(values.get("rel", "").lower().split()) <= NAMING:
            return
        self.found += [
            f"<{tag} {name}={url}>"
            for name in LOADS.get(tag, ())
            for url in _urls(name, values.get(name, ""))
            if OUTSIDE.match(url)
        ]
        self.found += [f"<{tag} style={url}>" for url in IN_STYLE.findall(values.get("style", ""))]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at it as an opening tag, without an inside."""
        self.handle_starttag(tag, attrs)
        self.inside = ""

    def handle_endtag(self, tag: str) -> None:
        """Leave the script or style."""
        self.inside = ""

    def handle_data(self, data: str) -> None:
        """Look for addresses of scripts and sheets inside scripts and styles."""
        pattern = {"script": IN_SCRIPT, "style": IN_STYLE}.get(self.inside)
        if pattern:
            self.found += [f"<{self.inside}> {url}" for url in pattern.findall(data)]


def _urls(attribute: str, value: str) -> Iterator[str]:
    if attribute == "srcset":
        yield from (part.strip().split(" ")[0] for part in value.split(","))
    else:
        yield value
