"""Style of all Matplotlib figures."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt

STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def use_style() -> None:
    """Set the book's look for all figures that follow."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
