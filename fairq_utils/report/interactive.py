"""Plotly figures in the book: drawn by the page's own copy of Plotly, the same bytes every time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

HEIGHT = 420  # pixels, where a figure's layout names none
CONFIG = {
    "displaylogo": False,
    "responsive": True,
    # One click on this button would send the figure's data to Plotly's server.
    "modeBarButtonsToRemove": ["sendChartToCloud"],
}


@dataclass(frozen=True)
class Interactive:
    """A Plotly figure under a fixed name; the last value of a notebook cell.

    Parameters
    ----------
    figure : plotly figure
    name : str
        Unique on its page: lower-case letters, digits and hyphens. It is the figure's id, so that
        executing a chapter twice writes the same notebook, and its anchor.
    alt : str
        What the figure shows, for screen readers.
    """

    figure: go.Figure
    name: str
    alt: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.name):
            raise ValueError(
                f"interactive: name: {self.name!r} is not made of lower-case letters, digits and "
                "hyphens, beginning with a letter"
            )

    def html(self) -> str:
        """The figure as an HTML fragment that expects Plotly to be on the page."""
        fragment: str = self.figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            div_id=self.name,
            default_width="100%",
            default_height=f"{self.figure.layout.height or HEIGHT}px",
            config=CONFIG,
        )
        # Not role="img", which would hide the figure's buttons.
        return f'<div role="figure" aria-label="{escape(self.alt)}">{fragment}</div>'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": f"<figure {self.name}>"}


def interactive(figure: go.Figure, name: str, alt: str) -> Interactive:
    """Show a Plotly figure in the book; `name` is its page-unique id, `alt` what it shows.

    Examples
    --------
    >>> picture = interactive(go.Figure(), "pareto-front", "Accuracy over gap")
    >>> picture._repr_mimebundle_()["text/plain"]
    '<figure pareto-front>'
    """
    return Interactive(figure, name, alt)
