"""Flips that do not know the group: what quantization would change if only margins decided.

Quantization flips predictions near the decision boundary, and groups stand there in different
numbers. Where base rates differ, even flips that are blind to the group change a demographic parity
gap. What a group-blind quantizer would do is therefore the null model of "unequal": among images of
one label, one FP32 prediction and about one FP32 margin, every one is as likely to flip.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairq_utils.stats.resampling import one_each

PARTS = 5  # of the images of one label and prediction, by margin: quintiles


def group_blind_tables(
    group: ArrayLike,
    label: ArrayLike,
    margin: ArrayLike,
    compared: ArrayLike,
    *,
    groups: int,
    parts: int = PARTS,
    replicates: int = 200,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Tables that one run might have had, its flips dealt out without a look at the group.

    In each stratum of label, FP32 prediction and quantile of the FP32 margin's size, as many images
    flip as did; which of them is drawn at random (a multivariate hypergeometric draw of how many in
    each group). It is the permutation of groups within strata.

    Parameters
    ----------
    group : int (N,)
        0 ... G - 1.
    label : 0 or 1, (N,)
    margin : float (N,)
        Of the FP32 model; above 0 it predicts 1.
    compared : 0 or 1, (N,)
        Predictions of the quantized model.
    groups : G
    parts : quantiles of the margin within a label and prediction

    Returns
    -------
    int64 (replicates, G, 2, 2, 2)
        Group x label x FP32 prediction x compared prediction.

    Raises
    ------
    ValueError
        Names the argument whose shape or values do not fit.

    Examples
    --------
    >>> drawn = group_blind_tables([0, 0, 1, 1], [1, 1, 1, 1], [0.1, 0.2, 0.1, 0.2], [0, 1, 1, 1],
    ...                            groups=2, parts=1, replicates=1000)
    >>> drawn[:, :, 1, 1, 0].mean(axis=0).round(1)  # one flip, half of them of either group
    array([0.5, 0.5])
    """
    place = np.asarray(group)
    truth, after = one_each("label", label, place), one_each("compared", compared, place)
    score = one_each("margin", margin, place).astype(float)
    if place.ndim != 1 or not len(place) or place.min() < 0 or place.max() >= groups:
        raise ValueError(f"group: must be a non-empty row of integers from 0 to {groups - 1}")
    if not np.isfinite(score).all():
        raise ValueError(f"margin: image {int(np.argmax(~np.isfinite(score)))} has none")
    if parts < 1:
        raise ValueError(f"parts: {parts} is not at least 1")
    rng = np.random.default_rng(seed)
    out = np.zeros((replicates, groups, 2, 2, 2), np.int64)
    before = (score > 0).astype(np.int64)
    for y in (0, 1):
        for p in (0, 1):
            rows = np.flatnonzero((truth == y) & (before == p))
            order = rows[np.argsort(np.abs(score[rows]), kind="stable")]
            for stratum in np.array_split(order, parts):
                sizes = np.bincount(place[stratum], minlength=groups)
                flips = int((after[stratum] != p).sum())
                moved = rng.multivariate_hypergeometric(sizes, flips, size=replicates)
                out[:, :, y, p, 1 - p] += moved
                out[:, :, y, p, p] += sizes - moved
    return out
