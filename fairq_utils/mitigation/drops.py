"""How much worse a quantized model's answers are than the float model's: criteria of a control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fairq_utils.mitigation.reducers import Floats
from fairq_utils.mitigation.sample import Sample


@dataclass(frozen=True)
class Drop:
    """How much worse a quantized model is, and which groups' answers show it.

    Attributes
    ----------
    value : float
        A fraction; below 0 where the quantized model is better.
    codes : of the groups
    """

    value: float
    codes: tuple[int, ...]


def overall(before: Tensor, after: Tensor, sample: Sample) -> Drop:
    """Drop of the accuracy of everyone, from answers in float (N,) to those after (N,)."""
    return Drop(float(_lost(before, after, sample).mean()), tuple(sample.present))


def worst_group(before: Tensor, after: Tensor, sample: Sample) -> Drop:
    """Largest drop of accuracy over groups, ``max_g (acc_g(float) - acc_g(quantized))``."""
    lost = _means(_lost(before, after, sample), sample)
    worst = int(lost.argmax())
    return Drop(float(lost[worst]), (sample.present[worst],))


def gap(before: Tensor, after: Tensor, sample: Sample) -> Drop:
    """Increase of the demographic parity gap, ``max_g r_g - min_g r_g`` of selection rates r."""
    rates, reference = (_means(answers.double(), sample) for answers in (after, before))
    ends = dict.fromkeys((int(rates.argmax()), int(rates.argmin())))
    return Drop(float(np.ptp(rates) - np.ptp(reference)), tuple(sample.present[g] for g in ends))


CRITERIA: dict[str, Callable[[Tensor, Tensor, Sample], Drop]] = {
    "overall": overall,
    "worst_group": worst_group,
    "gap": gap,
}


def _lost(before: Tensor, after: Tensor, sample: Sample) -> Tensor:
    """1 for an answer that was right, -1 for one that has become so, float64 (N,)."""
    return (before == sample.labels).double() - (after == sample.labels).double()


def _means(values: Tensor, sample: Sample) -> Floats:
    """Mean over each group that has an image, (G,)."""
    codes = np.unique(sample.groups.codes, return_inverse=True)[1]
    means: Floats = np.bincount(codes, values.numpy()) / np.bincount(codes)
    return means
