"""Base rates of a collection's groups, and the gap that follows from them alone.

A perfect classifier selects each group at its base rate P(y = 1 | s), so its demographic parity
difference is max_s P(y = 1 | s) - min_s P(y = 1 | s): no other classifier can have less and be
right about everyone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.data.population import SPLITS
from fairq_utils.errors import BadInput
from fairq_utils.metrics.counts import count
from fairq_utils.metrics.frame import frame_of, marginal_and_intersectional

WHOLE = "all"
CROSSED = " x "
GAP = "demographic_parity_difference"


@dataclass(frozen=True)
class BaseRates:
    """Groups and base rates of a collection, split by split.

    Attributes
    ----------
    cells : DataFrame
        ``split`` (``all`` is every image), ``attribute`` (crossed: ``gender x age``), ``group``,
        ``images``, ``positives``, ``base_rate`` (a fraction; NaN for a group of nobody).
    gaps : DataFrame
        ``split``, ``attribute``, ``gap`` (a fraction: a perfect classifier's demographic parity
        difference; NaN where fewer than two groups have images), ``groups``, ``smallest``
        (images of the smallest group).
    """

    cells: pd.DataFrame
    gaps: pd.DataFrame


def decides(attribute: pd.Series, target: NDArray[np.int8]) -> bool:
    """True where the target is made of an attribute: in each of its groups it is the same of all.

    Such groups have no error rates to compare.

    >>> decides(pd.Series(["f", "m", "m"]), np.array([0, 1, 1], np.int8))
    True
    """
    rates = pd.Series(target).groupby(attribute.to_numpy()).mean()
    return bool(rates.isin((0, 1)).all())


def base_rates(
    target: NDArray[np.int8], groups: pd.DataFrame, split: NDArray[np.str_]
) -> BaseRates:
    """Groups, base rates and a perfect classifier's gap in every split and in all of them.

    Parameters
    ----------
    target : 0 or 1, (N,)
    groups : DataFrame of N rows
        One categorical column per sensitive attribute.
    split : array of str (N,)

    Raises
    ------
    BadInput
        There is no image.

    Examples
    --------
    >>> people = pd.DataFrame({"gender": pd.Categorical(["f", "f", "m", "m"])})
    >>> found = base_rates(np.array([1, 0, 0, 0], np.int8), people, np.array(["test"] * 4))
    >>> found.gaps.query("split == 'all'").gap.tolist()
    [0.5]
    """
    if not len(target):
        raise BadInput("base_rates: there is no image to describe; give at least one")
    there = set(split.tolist())
    names = [name for name in SPLITS if name in there] + sorted(there - set(SPLITS))
    cells, gaps = [], []
    for name in [WHOLE, *names]:
        rows = np.ones(len(target), bool) if name == WHOLE else split == name
        counts = count(
            target[rows], target[rows], sensitive_features=groups[rows].reset_index(drop=True)
        )
        found = marginal_and_intersectional(counts, metrics=[GAP])
        for attribute in found.index:
            frame = frame_of(counts.by(*attribute.split(CROSSED)), metrics=["base_rate"])
            cells.append(
                pd.DataFrame(
                    {
                        "split": name,
                        "attribute": attribute,
                        "group": ["|".join(np.atleast_1d(group)) for group in frame.counts.index],
                        "images": frame.counts.images.to_numpy(),
                        "positives": (frame.counts.TP + frame.counts.FN).to_numpy(),
                        "base_rate": frame.by_group.base_rate.to_numpy(),
                    }
                )
            )
        part = found.rename(columns={GAP: "gap"}).rename_axis("attribute").reset_index()
        gaps.append(part.assign(split=name)[["split", "attribute", "gap", "groups", "smallest"]])
    return BaseRates(pd.concat(cells, ignore_index=True), pd.concat(gaps, ignore_index=True))
