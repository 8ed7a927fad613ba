"""Chapter on quantization: extremes, what better methods recover, other toolkits beside ours."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from fairq_utils.report import tables
from fairq_utils.report.chapter import POINT, at_bits, glue, of
from fairq_utils.training.zoo import display_name

KEYS = ["architecture", "bits"]
CLEAR_LOSS = 0.03  # a loss of accuracy below this is too small to speak of shares of it


def recovery(frame: pd.DataFrame) -> pd.DataFrame:
    """Every method beside the naive one at the same bits, on the same model.

    Parameters
    ----------
    frame : rows of one statistic, ``accuracy``, of
        :func:`fairq_utils.report.effects.by_configuration`, with calibration at random

    Returns
    -------
    DataFrame
        The rows of all methods but the naive one, where there is one at the same bits: with
        ``naive`` (its change from FP32), and ``recovered``: the share of that loss that the method
        brings back, NaN where the naive one loses less than :data:`CLEAR_LOSS`.
    """
    naive = frame[frame.method == "naive"].set_index(KEYS).change
    rows = frame[~frame.method.isin(["naive", "fp32", "control"])]
    base = pd.Series(
        [naive.get(key, float("nan")) for key in rows[KEYS].itertuples(index=False, name=None)],
        index=rows.index,
        dtype=float,
    )
    share = 1 - rows.change / base
    found = rows.assign(naive=base, recovered=share.where(base <= -CLEAR_LOSS))
    return found[found.naive.notna()]


def best_of(found: pd.DataFrame) -> pd.DataFrame:
    """The best method of every architecture and bits, of those that :func:`recovery` found."""
    return found.loc[found.groupby(KEYS, sort=False).change.idxmax()]


def beside(
    figures: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> pd.DataFrame:
    """Our best recipe minus the best of the other toolkits.

    Parameters
    ----------
    figures : architecture -> bits -> who -> accuracy, of ``fairq bench toolkits``

    Returns
    -------
    DataFrame
        ``architecture``, ``bits``, ``ours``, ``best`` (accuracy of the best toolkit), ``who``,
        ``ahead`` (ours minus best; fractions). Cells in which no toolkit has a figure are left out.
    """
    rows = []
    for architecture, by_bits in figures.items():
        for bits, row in by_bits.items():
            others = {
                who: value
                for who, value in row.items()
                if value is not None and who not in ("fp32", "ours", "ours_minmax")
            }
            ours = row["ours"]
            if not others or ours is None:
                continue
            who = max(others, key=others.__getitem__)
            rows.append((architecture, bits, ours, others[who], who, ours - others[who]))
    columns = ["architecture", "bits", "ours", "best", "who", "ahead"]
    return pd.DataFrame(rows, columns=columns)


def glue_extremes(frame: pd.DataFrame, scope: str) -> None:
    """Glue what the most and the fewest bits do to accuracy, and who bears it worst."""
    rows = of(frame, "accuracy", scope)
    for name, fewest in (("most", False), ("fewest", True)):
        part = at_bits(rows, fewest=fewest)
        worst = part.loc[part.change.idxmin()]
        glue(f"{name}_bits", str(worst.bits))
        glue(f"{name}_worst", worst.change / POINT)
        glue(f"{name}_worst_model", display_name(worst.architecture))
        glue(f"{name}_worst_ranges", str(worst.ranges))
        glue(f"{name}_configurations", len(part))
        glue(f"{name}_hurt", int((part.high < -POINT).sum()))
        glue(f"{name}_flips", float(part.flips.median()))


def glue_recovery(found: pd.DataFrame) -> None:
    """Glue how much of a clear naive loss the best other method brings back."""
    best = best_of(found).dropna(subset=["recovered"])
    glue("recovered_cases", len(best))
    if best.empty:
        raise ValueError("recorded study: no naive configuration loses clearly; nothing to recover")
    least = best.loc[best.recovered.idxmin()]
    glue("recovered_median", 100 * best.recovered.median())
    glue("recovered_least", 100 * least.recovered)
    glue("recovered_least_case", f"{display_name(least.architecture)} at {least.bits}")


def glue_toolkits(found: pd.DataFrame) -> None:
    """Glue how far ours is ahead of, or behind, the best of the other toolkits."""
    full = found[found.bits == "W8A8"]
    low = found[found.bits != "W8A8"]
    glue("toolkits_full", len(full))
    glue("toolkits_full_least", full.ahead.min() / POINT)
    glue("toolkits_low", len(low))
    glue("toolkits_low_best", int((low.ahead >= 0).sum()))
    behind = low[low.ahead < 0].sort_values("ahead")
    names = [
        f"{display_name(r.architecture)} at {r.bits} ({tables.TOOLKITS[r.who]}, "
        f"{-r.ahead / POINT:.1f} points better)"
        for r in behind.itertuples()
    ]
    glue("toolkits_behind", "; ".join(names) or "none")
