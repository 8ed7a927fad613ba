"""How much of what naive quantization loses the better methods bring back."""

from __future__ import annotations

import pandas as pd

KEYS = ["architecture", "bits"]
CLEAR_LOSS = 0.03  # a loss of accuracy below this is too small to speak of shares of it


def recovery(frame: pd.DataFrame) -> pd.DataFrame:
    """Every method beside the naive one at the same bits, on the same model.

    Parameters
    ----------
    frame : rows of one statistic, ``accuracy``, of :func:`fairq_utils.effects.by_configuration`,
        with calibration at random

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
