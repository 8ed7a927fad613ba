"""How often intervals over training seeds hold the truth, by simulation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from fairq_utils.stats.coverage import signed
from fairq_utils.stats.paired import paired_bootstrap
from fairq_utils.stats.resampling import share_images


def coverage_over_seeds(
    *,
    seeds: Iterable[int] = (3, 5, 10, 20),
    between: float = 0.02,
    trials: int = 300,
    replicates: int = 400,
    images: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Coverage where several training seeds are tested on the same images.

    The quantity is the change, under compression, of the accuracy difference between two groups,
    its expectation over seeds and images. One image in ten is a borderline case that compression
    flips often, under any seed: what one seed loses, others lose on the same image.

    Parameters
    ----------
    seeds : training seeds per sample
    between : float
        Standard deviation over seeds of the share of the second group that is lost in addition.
    images : int
        Per group, two groups.

    Returns
    -------
    DataFrame
        ``seeds``, ``interval``, ``coverage``, ``width``. The intervals: ``tables`` (seeds, then
        images anew in each), ``shared images`` (seeds, and one draw of images for all), ``seeds
        only`` (Student t over per-seed changes, the image set taken as given).

    Examples
    --------
    >>> coverage_over_seeds(seeds=[3], trials=2, replicates=20)["interval"].tolist()
    ['tables', 'shared images', 'seeds only']
    """
    rng = np.random.default_rng(seed)
    group = np.repeat([0, 1], images)
    label = np.ones(2 * images, np.int64)
    statistics = {"difference": signed("true_positive_rate")}
    borderline, often = 0.1, 0.5
    lost = np.array([0.01, 0.06])  # share of each group lost, over all seeds
    truth = float(lost[1] - lost[0])
    rows = []
    for count in seeds:
        ends: dict[str, list[tuple[float, float]]] = {}
        for _ in range(trials):
            frail = rng.random(2 * images) < borderline
            share = np.clip(
                lost[group] + between * group * rng.standard_normal((count, 1)), 0, None
            )
            # Borderline images carry half of the losses, at most ``often`` each.
            heavy = np.minimum(share * 0.5 / borderline, often)
            light = (share - heavy * borderline) / (1 - borderline)
            gone = rng.random((count, 2 * images)) < np.where(frail, heavy, light)
            before = np.ones((count, 2 * images), np.int64)
            shared = share_images(group, label, before, before - gone)
            options: dict[str, Any] = {
                "replicates": replicates,
                "confidence": confidence,
                "seed": int(rng.integers(2**32)),
            }
            for name, source in (("tables", shared.tables), ("shared images", shared)):
                row = paired_bootstrap(source, statistics, **options).iloc[0]
                ends.setdefault(name, []).append((row.low, row.high))
            lost_share = np.stack([gone[:, group == g].mean(axis=1) for g in (0, 1)])
            per_seed = lost_share[1] - lost_share[0]
            half = student.ppf((1 + confidence) / 2, count - 1)
            half *= per_seed.std(ddof=1) / count**0.5
            ends.setdefault("seeds only", []).append(
                (per_seed.mean() - half, per_seed.mean() + half)
            )
        for name, pairs in ends.items():
            low, high = np.array(pairs).T
            held = (low <= truth) & (truth <= high)
            rows.append(
                {
                    "seeds": count,
                    "interval": name,
                    "coverage": float(held.mean()),
                    "width": float((high - low).mean()),
                }
            )
    return pd.DataFrame(rows)
