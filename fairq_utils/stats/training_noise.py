"""What another training seed alone makes of a statistic."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from fairq_utils.stats.floors import LEVEL
from fairq_utils.stats.paired import Statistic
from fairq_utils.stats.resampling import Counts


def seed_pairs(tables: Mapping[Any, Counts], statistics: Mapping[str, Statistic]) -> pd.DataFrame:
    """Every statistic between every two FP32 seeds of one architecture.

    What quantization changed is to be held against what another training seed would have changed.

    Parameters
    ----------
    tables : mapping of seed to (G, 2, 2)
        Counts of each FP32 model on the same test images, at least two.
    statistics : mapping of name to function

    Returns
    -------
    DataFrame
        ``first``, ``second``, ``statistic``, ``difference`` (second less first): S (S - 1) / 2 rows
        per statistic. The pairs share seeds, so they are not that many independent differences;
        :func:`seed_floors` sums them up without claiming it.

    Examples
    --------
    >>> tables = {1: np.array([[[8, 2], [1, 9]]]), 2: np.array([[[9, 1], [1, 9]]])}
    >>> pairs = seed_pairs(tables, {"selected": lambda t: t[..., 1].sum() / 20})
    >>> round(pairs.difference.item(), 3)
    -0.05
    """
    if len(tables) < 2:
        raise ValueError(f"tables: {len(tables)} seeds make no pair; at least two are needed")
    values = {
        name: {key: float(statistic(np.asarray(table))) for key, table in tables.items()}
        for name, statistic in statistics.items()
    }
    return pd.DataFrame(
        [
            {"first": a, "second": b, "statistic": name, "difference": found[b] - found[a]}
            for name, found in values.items()
            for a, b in combinations(tables, 2)
        ]
    )


def seed_floors(pairs: pd.DataFrame) -> pd.DataFrame:
    """Absolute differences of :func:`seed_pairs` by statistic.

    Returns
    -------
    DataFrame
        ``statistic``, ``pairs``, ``mean``, ``floor`` (95th percentile), ``largest``.

    Examples
    --------
    >>> pairs = pd.DataFrame({"statistic": ["gap"] * 3, "difference": [0.01, -0.03, 0.02]})
    >>> seed_floors(pairs).largest.item()
    0.03
    """
    size = pairs.assign(size=pairs.difference.abs()).groupby("statistic", sort=False)["size"]
    return pd.DataFrame(
        {
            "pairs": size.size(),
            "mean": size.mean(),
            "floor": size.quantile(LEVEL),
            "largest": size.max(),
        }
    ).reset_index()
