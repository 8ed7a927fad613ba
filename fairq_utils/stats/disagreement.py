"""Disagreement of models: the images on which predictions change, and their groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.proportion import confint_proportions_2indep

from fairq_utils.errors import BadInput
from fairq_utils.given import array


def churn(first: ArrayLike, second: ArrayLike) -> float:
    """Share of images for which two models predict different classes (Milani Fard et al. 2016).

    Examples
    --------
    >>> churn([0, 1, 1, 0], [0, 1, 0, 0])
    0.25
    """
    a, b = array(first, "first"), array(second, "second")
    if a.shape != b.shape or not a.size:
        raise ValueError(f"first has shape {a.shape}, second {b.shape}; they must agree and hold")
    for name, predicted in (("first", a), ("second", b)):
        missing = np.argwhere(pd.isna(predicted))
        if len(missing):
            raise BadInput(
                f"{name}: row {missing[0, 0]} has no prediction; leave the image out of both"
            )
    return float((a != b).mean())


def modal(predictions: ArrayLike) -> NDArray[np.int64]:
    """Class that most models of a population predict, per image; -1 where classes tie.

    Parameters
    ----------
    predictions : int (M, N)
        Classes 0, 1, ... predicted by M models for N images.

    Examples
    --------
    >>> modal([[0, 1, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
    array([ 0,  1, -1])
    """
    predicted = array(predictions, "predictions")
    if predicted.ndim != 2 or not predicted.size:
        raise ValueError(f"predictions has shape {predicted.shape}; it must be (models, images)")
    if predicted.dtype.kind not in "iub" or predicted.min() < 0:
        raise ValueError("predictions: classes must be integers from 0 up")
    votes = np.stack([(predicted == c).sum(axis=0) for c in range(int(predicted.max()) + 1)])
    winner = votes.argmax(axis=0)
    tied = (votes == votes.max(axis=0)).sum(axis=0) > 1
    return np.where(tied, -1, winner).astype(np.int64)


@dataclass(frozen=True)
class Exemplars:
    """Images on which compression changes the predictions of the models.

    Attributes
    ----------
    chosen : bool (N,)
        The modal prediction of the quantized models is not that of the FP32 models.
    undecided : bool (N,)
        One of the two populations ties; such an image is never an exemplar.
    """

    chosen: NDArray[np.bool_]
    undecided: NDArray[np.bool_]


def exemplars(full: ArrayLike, quantized: ArrayLike) -> Exemplars:
    """Compression-identified exemplars (Hooker et al. 2019, section 2.3).

    One pair of models disagrees on many images by the chance of training. Where the majority over
    seeds disagrees with the majority over seeds, compression is the likelier cause. Take odd
    numbers of models, and the same seeds on both sides.

    Parameters
    ----------
    full, quantized : int (M, N) and (M', N)
        Classes predicted by the FP32 and the quantized models, images in the same order.

    Examples
    --------
    >>> full = [[1, 1, 0], [1, 1, 0], [1, 0, 0]]
    >>> quantized = [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    >>> exemplars(full, quantized).chosen
    array([False,  True, False])
    """
    before, after = modal(full), modal(quantized)
    if before.shape != after.shape:
        raise ValueError(
            f"full is about {len(before)} images and quantized about {len(after)}; "
            "both must be about the same"
        )
    undecided = (before == -1) | (after == -1)
    return Exemplars((before != after) & ~undecided, undecided)


def over_representation(
    chosen: ArrayLike, groups: ArrayLike, *, confidence: float = 0.95
) -> pd.DataFrame:
    r"""Over-representation of each group among the chosen images.

    .. math:: R_g = \frac{a_g / \sum_h a_h}{n_g / \sum_h n_h}

    with :math:`a_g` of the group's :math:`n_g` images chosen: 2 says twice as many as its share of
    the images. The interval takes Miettinen and Nurminen's (1985) score interval of the relative
    risk :math:`r` of the group against all others (statsmodels), and :math:`R = r / (\pi r + 1 -
    \pi)` at the group's share :math:`\pi` of the images; it stays proper where a group has no
    chosen image. It is about images: that other models might choose others is not in it.

    Parameters
    ----------
    chosen : bool (N,)
    groups : (N,)
        The group of every image.

    Returns
    -------
    DataFrame
        ``group``, ``images``, ``chosen``, ``share_of_images``, ``share_of_chosen``, ``ratio``,
        ``low``, ``high``; groups in sorted order.

    Raises
    ------
    ValueError
        No image is chosen, an image has no group, or there are fewer than two groups.

    Examples
    --------
    >>> chosen = [True, True, True, False, True, False, False, False, False, False]
    >>> found = over_representation(chosen, ["old"] * 4 + ["young"] * 6)
    >>> found.ratio.round(2).tolist()
    [1.88, 0.42]
    """
    marked, group_of = array(chosen, "chosen"), array(groups, "groups")
    if marked.dtype != bool or marked.ndim != 1:
        raise ValueError("chosen: must be one row of booleans")
    if marked.shape != group_of.shape:
        raise ValueError(f"groups has shape {group_of.shape}, chosen {marked.shape}")
    if not marked.any():
        raise ValueError("chosen: no image is chosen, so no group is over-represented")
    cells = pd.Series(group_of).astype("category")
    missing = np.flatnonzero(cells.isna())
    if len(missing):
        raise BadInput(
            f"groups: row {missing[0]} has no group; leave the image out, or give a value of its "
            "own to what is unknown"
        )
    names = cells.cat.categories
    if len(names) < 2:
        raise ValueError("groups: over-representation needs at least two groups")
    total, everyone = int(marked.sum()), len(marked)
    rows = []
    for code, name in enumerate(names):
        inside = (cells.cat.codes == code).to_numpy()
        a, n = int((marked & inside).sum()), int(inside.sum())
        with np.errstate(divide="ignore"):  # an infinite risk, where only this group is chosen
            low, high = confint_proportions_2indep(
                a, n, total - a, everyone - n, compare="ratio", method="score", alpha=1 - confidence
            )
        share = n / everyone
        rows.append(
            {
                "group": name,
                "images": n,
                "chosen": a,
                "share_of_images": share,
                "share_of_chosen": a / total,
                "ratio": a / total / share,
                # At the ends the score interval is found by a search that stops just short.
                "low": _share_ratio(low, share) if a else 0.0,
                "high": _share_ratio(high, share) if a < total else 1 / share,
            }
        )
    return pd.DataFrame(rows)


def _share_ratio(risk: float, share: float) -> float:
    """``R`` of :func:`over_representation` from a relative risk."""
    return float(risk / (share * risk + 1 - share))
