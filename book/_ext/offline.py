"""Sphinx extension: the finished book loads nothing from outside.

The book's own style sheet, MathJax (kept in ``book/vendor``) and Plotly (from the installed
package) are copied into folders below ``_static``, as the theme would load a script that lies in
``_static`` itself on every page. Plotly goes only to pages that show one of its figures. Thebe,
which Jupyter Book brings and this book does not use, is unplugged, since it names a CDN on every
page.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import plotly
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

MATHJAX = Path(__file__).parents[1] / "vendor" / "mathjax"
STYLE = Path(__file__).parents[1] / "style"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def drop_thebe(app: Sphinx, config: Config) -> None:
    """Disconnect whatever sphinx_thebe connected."""
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__.startswith("sphinx_thebe"):
                app.disconnect(listener.id)


def gather_scripts(app: Sphinx) -> None:
    """Put the scripts where Sphinx copies static files from."""
    static = Path(app.doctreedir).parent / "offline"
    vendor = static / "vendor"
    shutil.rmtree(static, ignore_errors=True)
    shutil.copytree(MATHJAX, vendor)
    shutil.copy(PLOTLY, vendor)
    shutil.copytree(STYLE, static / "style")
    app.config.html_static_path.append(str(static))


def add_plotly(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load Plotly on a page that has a Plotly figure, and on no other."""
    if "plotly-graph-div" in context.get("body", ""):
        app.add_js_file(f"vendor/{PLOTLY.name}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the three."""
    app.add_css_file("style/book.css")
    app.connect("config-inited", drop_thebe)
    app.connect("builder-inited", gather_scripts)
    app.connect("html-page-context", add_plotly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
