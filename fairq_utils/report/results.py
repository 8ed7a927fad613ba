"""Results of a study as files: CSV, JSON and LaTeX tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fairq_utils.report.tables import intervals, named
from fairq_utils.study.statistics import CONFIGURATION


def write_results(frame: pd.DataFrame, size: pd.DataFrame, folder: Path) -> list[Path]:
    """Write ``baseline_results.csv``, ``quantization_results.json`` and the LaTeX tables.

    The first two are named as the published study names them.

    Parameters
    ----------
    frame, size : of :func:`fairq_utils.report.effects.by_configuration` and ``sizes``
    folder : created where missing
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = frame.merge(size, on=CONFIGURATION, how="left")
    base = whole[whole.method == "fp32"]
    quantized = whole[whole.method != "fp32"]
    csv = folder / "baseline_results.csv"
    base.drop(columns=["change", "low", "high", "flips", "floor"]).to_csv(csv, index=False)
    path = folder / "quantization_results.json"
    path.write_text(quantized.to_json(orient="records", indent=1, double_precision=6))
    written = [csv, path]
    for name, part in (("baseline", base), ("quantization", quantized)):
        written.append(folder / f"{name}_table.tex")
        written[-1].write_text(_latex(part))
    return written


def _latex(frame: pd.DataFrame) -> str:
    """A LaTeX table (booktabs): one row per configuration, one column per statistic, in points."""
    scope = frame["scope"].iloc[-1]
    rows = frame[frame["scope"] == scope]
    wide = (
        named(rows)
        .assign(cell=intervals(rows))
        .pivot_table(
            index=CONFIGURATION, columns="statistic", values="cell", aggfunc="first", sort=False
        )
    )
    wide = wide.reset_index().rename(columns=str.capitalize)
    text = wide.to_latex(
        index=False, escape=True, column_format="l" * 5 + "r" * (wide.shape[1] - 5)
    )
    return (
        f"% Points, with {scope} gaps; disparate impact is a ratio; brackets are intervals.\n"
        "% Needs \\usepackage{booktabs}.\n" + text
    )
