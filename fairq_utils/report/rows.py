"""Rows of the frames of :mod:`fairq_utils.report.effects` that chapters look at."""

from __future__ import annotations

import pandas as pd

from fairq_utils.quantizers.methods import CONTROL, METHODS

PARITY = "demographic_parity_difference"  # the primary statistic
ODDS = "equalized_odds_difference"


def rows_of(frame: pd.DataFrame, statistic: str, scope: str) -> pd.DataFrame:
    """Rows of one statistic over one partition into groups."""
    return frame[(frame.statistic == statistic) & (frame["scope"] == scope)]


def quantized_rows(frame: pd.DataFrame, statistic: str, scope: str) -> pd.DataFrame:
    """Rows of one statistic over one partition, without the FP32 models."""
    rows = rows_of(frame, statistic, scope)
    return rows[rows.method != "fp32"]


def static_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of quantized configurations before mitigation: calibrated at random, or not at all."""
    aware = [name for name, method in METHODS.items() if method.group_aware]
    others = ["fp32", CONTROL, *aware]
    return frame[~frame.method.isin(others) & frame.sampler.isin(["", "random"])]


def rows_at_bits(frame: pd.DataFrame, *, fewest: bool) -> pd.DataFrame:
    """Rows of plain static quantization with the fewest or most bits, calibrated at random."""
    rows = frame[(frame.method == "ptq") & (frame.sampler == "random")]
    if rows.empty:
        rows = frame[frame.method != "fp32"]
    bits = (min if fewest else max)(set(rows.bits), key=width)
    return rows[rows.bits == bits]


def width(bits: str) -> tuple[int, ...]:
    """Key that sorts ``W4A8`` and its like by activations, then weights."""
    return tuple(int(part) for part in reversed(bits[1:].split("A")))
