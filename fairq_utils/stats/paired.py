"""The paired bootstrap: metrics of two models, and the difference between them.

How far to trust its intervals is measured by :mod:`fairq_utils.bench.coverage`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.stats.intervals import Deletions, acceleration, deletions, interval
from fairq_utils.stats.resampling import WEIGHTED, SharedImages, Source, resample, stack

Statistic = Callable[[NDArray[Any]], NDArray[Any]]
Method = Literal["percentile", "bca"]

# Which of the two predictions is summed away: what is left is the other's table.
SIDES: dict[str, int] = {"reference": -1, "compared": -2}


def paired_bootstrap(
    tables: Source,
    statistics: Mapping[str, Statistic],
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    method: Method = "percentile",
    stratify: bool = False,
) -> pd.DataFrame:
    """Each statistic of the reference and the compared predictions, and their paired change.

    Parameters
    ----------
    tables : S arrays (G, 2, 2, 2)
        Group x label x reference prediction x compared prediction; one per training seed. Or S
        arrays (C, G, 2, 2, 2) with C crossed calibration draws, or
        :class:`~fairq_utils.stats.SharedImages`, which knows that the seeds share their images.
    statistics : mapping of name to function
        From tables (..., G, 2, 2) to values (...).
    replicates, confidence, seed
        Bootstrap replicates; nominal coverage; seed of the resampling.
    method : "percentile" or "bca"
        BCa corrects the bias and the skewness of the replicates (Efron 1987); for rates of few
        images it is the better one, for gaps the worse.
    stratify : bool
        Draw within groups, their sizes kept; see :func:`~fairq_utils.stats.resample`.

    Returns
    -------
    DataFrame
        ``statistic``, ``reference``, ``compared``, ``change`` (means over seeds), ``low``, ``high``
        (interval of the change), ``reference_low`` ... ``compared_high``, and ``undefined``, the
        share of replicates in which the change has no value (an empty denominator); intervals are
        of the others.

    Raises
    ------
    ValueError
        Names the argument that is out of range, the table that is empty, or the statistic that
        does not return one value per table.

    Notes
    -----
    From 200 images per group up, percentile intervals of rates, their changes, and gaps between
    groups that are apart cover as they should (:mod:`fairq_utils.bench.coverage` has the table, and
    what happens below). A largest-minus-smallest gap has a kink where the groups are equal: there
    no bootstrap interval of the gap itself covers its true value of 0, since every replicate is
    above 0, however many images there are; and a change that starts from there is covered 84 times
    in 100. Compare the gap with :func:`~fairq_utils.stats.noise_floor` and its change with
    :func:`~fairq_utils.stats.exchange_floors`, or take the signed difference of two named groups,
    which has no kink.

    Tables of several seeds are resampled as if every seed had its own test images. Where they share
    them, as in a study on one test set, give :class:`~fairq_utils.stats.SharedImages`; for the
    change over seeds and calibration draws :func:`~fairq_utils.stats.crossed_changes`.

    Examples
    --------
    >>> table = np.array([[[[80, 10], [0, 10]], [[10, 0], [20, 70]]]])
    >>> frame = paired_bootstrap([table], {"selected": lambda t: t[..., :, 1].sum((-1, -2)) / 200})
    >>> round(frame.change.item(), 3)  # 100 of 200 selected before, 90 after
    -0.05
    >>> bool(-0.12 < frame.low.item() < -0.05 < frame.high.item() < 0.02)
    True
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} is not between 0 and 1")
    if replicates < 2:
        raise ValueError(f"replicates: {replicates} is not at least 2")
    if method not in ("percentile", "bca"):
        raise ValueError(f"method: {method!r} is not one of percentile, bca")
    found = replicate(
        tables,
        statistics,
        replicates=replicates,
        seed=seed,
        stratify=stratify,
        accelerate=method == "bca",
    )
    rows = []
    for name, drawn in found.items():
        before, after, change = drawn.intervals(confidence, method)
        rows.append(
            {
                "statistic": name,
                "reference": drawn.observed[0],
                "compared": drawn.observed[1],
                "change": drawn.observed[2],
                "low": change[0],
                "high": change[1],
                "reference_low": before[0],
                "reference_high": before[1],
                "compared_low": after[0],
                "compared_high": after[1],
                "undefined": float(np.isnan(drawn.drawn[2]).mean()),
            }
        )
    return pd.DataFrame(rows)


def replicate(
    tables: Source,
    statistics: Mapping[str, Statistic],
    *,
    replicates: int = 2000,
    seed: int = 0,
    stratify: bool = False,
    accelerate: bool = True,
) -> dict[str, Replicates]:
    """Draw once, marginalise once, evaluate every statistic on both models.

    Parameters are those of :func:`paired_bootstrap`; ``accelerate`` adds what BCa needs.

    Examples
    --------
    >>> table = np.array([[[[8, 1], [0, 1]], [[1, 0], [2, 7]]]])
    >>> found = replicate([table], {"selected": lambda t: t[..., 0, :, 1].sum(axis=-1)})
    >>> found["selected"].observed  # 10 images selected before, 9 after
    array([10.,  9., -1.])
    """
    observed = stack(tables)
    if not isinstance(tables, SharedImages) and not np.array_equal(observed, np.rint(observed)):
        raise ValueError(WEIGHTED)
    drawn = resample(tables, replicates, seed, stratify=stratify)
    left_out = deletions(tables, stratify=stratify) if accelerate else None
    drawn_sides = [drawn.sum(axis=axis) for axis in SIDES.values()]
    observed_sides = [observed.sum(axis=axis) for axis in SIDES.values()]
    out = {}
    for name, statistic in statistics.items():
        values = [_value(statistic, side, name).mean(axis=0) for side in drawn_sides]
        levels = [_value(statistic, side, name) for side in observed_sides]
        at = [float(level.mean()) for level in levels]
        out[name] = Replicates(
            np.array([*at, at[1] - at[0]]),
            np.stack([*values, values[1] - values[0]]),
            None if left_out is None else _accelerations(left_out, statistic, levels),
        )
    return out


@dataclass(frozen=True)
class Replicates:
    """Bootstrap replicates of the reference, the compared value and their change.

    Attributes
    ----------
    observed : (3,)
        Means over seeds: reference, compared, change.
    drawn : (3, R)
        NaN where a statistic is not defined.
    accelerations : (3,) or None
        For BCa intervals.
    """

    observed: NDArray[np.float64]
    drawn: NDArray[np.float64]
    accelerations: NDArray[np.float64] | None = None

    def intervals(self, confidence: float, method: Method) -> NDArray[np.float64]:
        """Low and high of reference, compared and change, (3, 2)."""
        if method == "bca" and self.accelerations is None:
            raise ValueError("method: these replicates were drawn without accelerations for 'bca'")
        bends = self.accelerations if method == "bca" else None
        return np.array(
            [
                interval(
                    self.drawn[i],
                    float(self.observed[i]),
                    confidence=confidence,
                    acceleration=None if bends is None else float(bends[i]),
                )
                for i in range(3)
            ]
        )


def _value(statistic: Statistic, tables: NDArray[Any], name: str) -> NDArray[np.float64]:
    values = np.asarray(statistic(tables), float)
    if values.shape != tables.shape[:-3]:
        raise ValueError(
            f"statistics[{name!r}] returned shape {values.shape} for tables {tables.shape}; "
            f"it must return one value per table, {tables.shape[:-3]}"
        )
    return values


def _accelerations(
    left_out: Deletions, statistic: Statistic, levels: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    def reference(t: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(statistic(t.sum(axis=SIDES["reference"])), float)

    def compared(t: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(statistic(t.sum(axis=SIDES["compared"])), float)

    def change(t: NDArray[Any]) -> NDArray[Any]:
        return compared(t) - reference(t)

    functions = (reference, compared, change)
    per_seed = (*levels, levels[1] - levels[0])
    return np.array(
        [acceleration(left_out, f, s) for f, s in zip(functions, per_seed, strict=True)]
    )
