"""Our quantizer beside other toolkits: what the recorded benchmark says."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd


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
