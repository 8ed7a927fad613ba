"""Benchmarks: each measures one thing and returns figures that are printed and kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from fairq_utils.bench.bootstrap import bench_stats
from fairq_utils.bench.certificate import bench_certificate
from fairq_utils.bench.cost_model import bench_cost
from fairq_utils.bench.coverage import bench_coverage
from fairq_utils.bench.decoding import bench_data
from fairq_utils.bench.deployment import bench_deployment
from fairq_utils.bench.latency import bench_latency
from fairq_utils.bench.refusals import bench_refusals
from fairq_utils.bench.render import bench_render
from fairq_utils.bench.scaling import bench_cluster
from fairq_utils.bench.throughput import bench_study
from fairq_utils.bench.toolkits import bench_toolkits
from fairq_utils.errors import BadInput
from fairq_utils.study.params.study import Params

BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "render": bench_render,
    "stats": bench_stats,
    "coverage": bench_coverage,
    "certificate": bench_certificate,
    "cost": bench_cost,
}
# These take a folder of image files, and make one if none is given.
OF_A_FOLDER: dict[str, Callable[[Path | None], dict[str, Any]]] = {"data": bench_data}
# These say themselves how their figures are to be read; what else they found is kept as tables.
Outcome = tuple[dict[str, Any], str, dict[str, pd.DataFrame]]
WITH_TABLES: dict[str, Callable[[], Outcome]] = {"refusals": bench_refusals}
# So do these, which take the models of a study.
OF_A_STUDY: dict[str, Callable[[Params], Outcome]] = {
    "toolkits": lambda params: (*bench_toolkits(params), {}),
    "latency": bench_latency,
    "deployment": bench_deployment,
    "study": bench_study,
    "cluster": bench_cluster,
}


def run(
    name: str,
    folder: str | os.PathLike[str] = "build/bench",
    params: Params | None = None,
    root: Path | None = None,
) -> tuple[dict[str, Any], Path]:
    """Run a benchmark; keep its figures in ``folder/NAME.json``, in words in ``folder/NAME.txt``.

    Tables of a benchmark are kept beside them, as ``folder/TABLE.csv``.

    Parameters
    ----------
    params : Params, optional
        The study whose models are measured, where the benchmark is one of :data:`OF_A_STUDY`.
    root : Path, optional
        The folder whose images are measured, where it is one of :data:`OF_A_FOLDER`.

    Raises
    ------
    ValueError
        There is no benchmark of that name, it needs a study and none is given, or a folder is given
        that it does not take.
    """
    if root is not None and name not in OF_A_FOLDER:
        raise BadInput(
            f"bench: {name} takes no folder, only {', '.join(OF_A_FOLDER)} does; leave --root out"
        )
    if name in OF_A_STUDY:
        if params is None:
            raise ValueError(f"bench: {name} measures the models of a study; give its params")
        figures, text, tables = OF_A_STUDY[name](params)
    elif name in WITH_TABLES:
        figures, text, tables = WITH_TABLES[name]()
    elif name in BENCHMARKS or name in OF_A_FOLDER:
        figures = BENCHMARKS[name]() if name in BENCHMARKS else OF_A_FOLDER[name](root)
        text, tables = listing(figures), {}
    else:
        known = ", ".join([*BENCHMARKS, *OF_A_FOLDER, *WITH_TABLES, *OF_A_STUDY])
        raise ValueError(f"bench: {name!r} is not one of {known}")
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
    path.with_suffix(".txt").write_text(text + "\n")
    for table, rows in tables.items():
        rows.to_csv(path.with_name(f"{table}.csv"), index=False)
    return figures, path


def listing(figures: dict[str, Any]) -> str:
    """Figures one below the other."""
    lines = []
    for key, value in figures.items():
        if isinstance(value, list):
            value = f"{len(value)} rows, see the file"
        if isinstance(value, dict):
            lines.append(key)
            lines += [f"  {inner:<26} {figure}" for inner, figure in value.items()]
        else:
            lines.append(f"{key:<28} {value}")
    return "\n".join(lines)
