"""Benchmarks: each measures one thing and returns a table that is printed and kept as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairq_utils.bench.coverage import bench_coverage
from fairq_utils.bench.render import bench_render
from fairq_utils.bench.stats import bench_stats

BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "render": bench_render,
    "stats": bench_stats,
    "coverage": bench_coverage,
}


def run(name: str, folder: str | os.PathLike[str] = "build/bench") -> tuple[dict[str, Any], Path]:
    """Run a benchmark and keep its figures in ``folder/NAME.json``.

    Raises
    ------
    ValueError
        There is no benchmark of that name.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"bench: {name!r} is not one of {', '.join(BENCHMARKS)}")
    figures = BENCHMARKS[name]()
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
    return figures, path
