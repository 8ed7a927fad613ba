"""Coverage: how often the intervals of the paired bootstrap hold the truth, by simulation.

A nominal 95 % interval should hold the true value 95 times in 100. Three things stand against it:
few images, few flips, and a statistic with a kink, as the largest-minus-smallest gap has where
groups are equal. What the simulations show:

- Statistics without a kink, and gaps between groups that are clearly apart, are covered 93 to 97
  times in 100 from 200 images per group up by percentile intervals. One exception errs to the safe
  side: the change of an equalized odds gap (99 at 200), where two gaps compete for the larger.
- Percentile is the default, for BCa is worse for gaps. BCa helps rates of fewer than 100 images.
- Below 200 images a change is undercovered because next to no prediction flips: with a group of 20
  the true positive rate rests on 7 positives, and most samples contain no flip at all, so the
  interval is the single point 0. What counts is the flips: fewer than ten in a group, and its
  interval is too narrow whatever the group's size. Trust McNemar's exact test there.
- Over seeds and calibration draws that are crossed, ``crossed_changes`` covers 94 to 98 times in
  100, 5 seeds x 3 draws among them. Runs taken for seeds cover 83 where draws matter, and Student's
  t over seeds, which takes the images as given, 36. No interval of one draw is about others.
- Where groups are truly equal no interval of their gap can cover 0, at any size. Where a gap opens
  between groups that were equal, the gap before is biased upwards by chance, so the change is
  underestimated and covered 84 to 86 times (BCa 90). The signed difference of two named groups has
  neither fault, and :func:`~fairq_utils.stats.exchange_floors` tests a change exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from fairq_utils import metrics
from fairq_utils.bench.outcome import Outcome, say
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.stats.crossed import crossed_changes
from fairq_utils.stats.paired import Method, Statistic, paired_bootstrap, replicate
from fairq_utils.stats.resampling import SharedImages, share_images

TRIALS = 1000
SEED_TRIALS = 400
# Coverage that nominal 95 % intervals should have, from so many images per group up.
PROMISED_FROM = 200
PROMISED = (0.93, 0.97)

# Seeds and calibration draws, and standard deviations over seeds and over draws of what the second
# group loses in addition.
DESIGNS = ((3, 1), (5, 1), (5, 3), (8, 1), (8, 3), (10, 1), (10, 4))
SPREADS: dict[str, tuple[float, float]] = {
    "images alone": (0.0, 0.0),
    "seeds": (0.02, 0.0),
    "seeds and draws": (0.02, 0.01),
    "draws": (0.0, 0.02),
}
LOST = (0.05, 0.1)  # share of each group lost, over all seeds and draws
FLIPS = 0.005  # share of right predictions lost everywhere, where groups are nearly equal
FRAIL, OFTEN = 0.1, 0.6  # share of borderline images, and of how many of them are lost at most

METHODS: tuple[Method, ...] = ("percentile", "bca")

# Per group: base rate, true and false positive rate of the reference, share of its predictions lost
# and won by compression. "apart": every gap has a largest and a smallest group that are known.
# "equal": all groups alike, all gaps are 0 and stay 0. "tied": a gap opens where there was none.
Group = tuple[float, float, float, float, float]
WORLDS: dict[str, tuple[Group, ...]] = {
    "apart": (
        (0.60, 0.95, 0.05, 0.02, 0.10),
        (0.52, 0.88, 0.11, 0.04, 0.08),
        (0.45, 0.82, 0.16, 0.07, 0.06),
        (0.35, 0.70, 0.24, 0.12, 0.04),
    ),
    "equal": ((0.50, 0.88, 0.10, 0.04, 0.10),) * 4,
    "tied": (
        (0.50, 0.88, 0.10, 0.02, 0.10),
        (0.50, 0.88, 0.10, 0.02, 0.10),
        (0.50, 0.88, 0.10, 0.02, 0.10),
        (0.50, 0.88, 0.10, 0.15, 0.04),
    ),
}


@benchmark("coverage", title="how often the intervals hold the truth")
def bench_coverage(subject: Subject) -> Outcome:
    """Simulate the coverage of nominal 95 % intervals; minutes on one core.

    Returns
    -------
    Outcome
        ``worlds`` (lowest and highest coverage by world, quantity and method from 200 images per
        group up, and how many of them lie within 93 to 97 %), ``cells`` (rows of
        :func:`coverage`), ``cells_by_seeds`` (rows of :func:`coverage_over_seeds`), ``near_ties``
        (rows of :func:`false_equivalence`), ``trials``, ``standard_error`` of a coverage near 95 %,
        ``seconds``.
    """
    began = time.perf_counter()
    table = coverage(trials=TRIALS, report=say)
    say("coverage: several seeds on the same images")
    over_seeds = coverage_over_seeds(trials=SEED_TRIALS)
    large = table[table.images >= PROMISED_FROM]
    summary = {}
    for key, rows in large.groupby(["world", "quantity", "method"], sort=False):
        kept = rows.coverage.between(*PROMISED)
        summary[" ".join(key)] = {
            "lowest": round(float(rows.coverage.min()), 3),
            "highest": round(float(rows.coverage.max()), 3),
            "kept": f"{int(kept.sum())} of {len(rows)}",
        }
    return Outcome(
        {
            "seconds": round(time.perf_counter() - began, 1),
            "trials": TRIALS,
            "standard_error": round((0.95 * 0.05 / TRIALS) ** 0.5, 4),
            "worlds": summary,
            "cells": table.round(4).to_dict("records"),
            "cells_by_seeds": over_seeds.round(4).to_dict("records"),
            "near_ties": false_equivalence(trials=SEED_TRIALS).round(4).to_dict("records"),
        }
    )


def coverage(
    *,
    sizes: Iterable[int] = (20, 50, 100, 200, 1000),
    worlds: Iterable[str] = tuple(WORLDS),
    trials: int = 1000,
    replicates: int = 800,
    confidence: float = 0.95,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Coverage of :func:`~fairq_utils.stats.paired_bootstrap` for one pair of models.

    Parameters
    ----------
    sizes : images per group
        Groups of four; the number of images in each varies around this as in a random sample.
    worlds : names of :data:`WORLDS`
    trials : int
        Samples drawn per world and size; the standard error of a coverage near 95 % is
        ``0.22 / sqrt(trials)``.
    replicates, confidence : as for the bootstrap
    report : function
        Told which world and size is being simulated.

    Returns
    -------
    DataFrame
        ``world``, ``images`` (per group), ``statistic``, ``quantity`` ("level" of the compared
        model or "change"), ``method``, ``truth``, ``coverage``, ``width`` (mean, fractions), and
        ``undefined`` (share of samples without an interval; they count as not covered).

    Examples
    --------
    >>> found = coverage(sizes=[50], worlds=["apart"], trials=2, replicates=50)
    >>> len(found) == len(STATISTICS) * 2 * len(METHODS)
    True
    """
    rng = np.random.default_rng(seed)
    rows = []
    for world in worlds:
        within = joint(world)
        groups = len(within)
        # Levels in the order of Replicates: compared is 1, change is 2.
        sides = [within.sum(axis=3), within.sum(axis=2)]
        truth = {}
        for name, statistic in STATISTICS.items():
            before, after = (float(statistic(side)) for side in sides)
            truth[name] = {"level": after, "change": after - before}
        for images in sizes:
            report(f"coverage: {world}, {images} images per group")
            found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
            for _ in range(trials):
                table = rng.multinomial(groups * images, within.ravel() / groups)
                drawn = replicate(
                    [table.reshape(within.shape)],
                    STATISTICS,
                    replicates=replicates,
                    seed=int(rng.integers(2**32)),
                )
                for name, values in drawn.items():
                    for method in METHODS:
                        _, level, change = values.intervals(confidence, method)
                        for quantity, (low, high) in (("level", level), ("change", change)):
                            found.setdefault((name, quantity, method), []).append((low, high))
            for (name, quantity, how), pairs in found.items():
                low, high = np.array(pairs).T
                true = truth[name][quantity]
                # Rounding may put an end that equals the truth a last bit beyond it.
                held = (low - 1e-12 <= true) & (true <= high + 1e-12)
                rows.append(
                    {
                        "world": world,
                        "images": images,
                        "statistic": name,
                        "quantity": quantity,
                        "method": how,
                        "truth": true,
                        "coverage": float(held.mean()),
                        "width": float(np.nanmean(high - low)),
                        "undefined": float(np.isnan(low).mean()),
                    }
                )
    return pd.DataFrame(rows)


def coverage_over_seeds(
    *,
    designs: Iterable[tuple[int, int]] = DESIGNS,
    worlds: Iterable[str] = tuple(SPREADS),
    trials: int = 300,
    replicates: int = 400,
    images: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Coverage where training seeds and calibration draws are crossed, on the same images.

    The quantity is the change, under compression, of the accuracy difference between two groups,
    its expectation over seeds, draws and images. One image in ten is a borderline case that
    compression flips often, under any seed: what one seed loses, others lose on the same image.

    Parameters
    ----------
    designs : seeds and draws per sample
    worlds : names of :data:`SPREADS`
    images : int
        Per group, two groups.

    Returns
    -------
    DataFrame
        ``world``, ``seeds``, ``draws``, ``interval``, ``coverage``, ``width``, and ``shown``: in a
        world with the same spread and no effect, the share of samples whose interval excludes 0.
        The intervals: ``crossed`` (:func:`~fairq_utils.stats.crossed_changes`), ``bootstrap``
        (seeds, draws and images resampled, the percentile interval), ``runs as seeds`` (the
        same, every run taken for a seed), ``t over seeds`` (the image set and the draws taken as
        given).

    Examples
    --------
    >>> found = coverage_over_seeds(designs=[(3, 2)], worlds=["seeds"], trials=2, replicates=20)
    >>> found["interval"].tolist()
    ['crossed', 'bootstrap', 'runs as seeds', 't over seeds']
    """
    rng = np.random.default_rng(seed)
    rows = []
    for world in worlds:
        for count, draws in designs:
            # Seed and draw effects are symmetric, and the second group's losses far from their end.
            true = LOST[1] - LOST[0]
            ends: dict[tuple[str, float], list[tuple[float, float]]] = {}
            for _ in range(trials):
                for effect in (true, 0.0):
                    shared, changes = _crossed_sample(rng, count, draws, images, world, effect)
                    options = {
                        "replicates": replicates,
                        "confidence": confidence,
                        "seed": int(rng.integers(2**32)),
                    }
                    for name, pair in _intervals(shared, changes, options).items():
                        ends.setdefault((name, effect), []).append(pair)
            for name in dict.fromkeys(name for name, _ in ends):
                low, high = np.array(ends[name, true]).T
                nothing = np.array(ends[name, 0.0])
                rows.append(
                    {
                        "world": world,
                        "seeds": count,
                        "draws": draws,
                        "interval": name,
                        "coverage": float(((low <= true) & (true <= high)).mean()),
                        "width": float((high - low).mean()),
                        "shown": float(((nothing[:, 0] > 0) | (nothing[:, 1] < 0)).mean()),
                    }
                )
    return pd.DataFrame(rows)


def _crossed_sample(
    rng: np.random.Generator, seeds: int, draws: int, images: int, world: str, effect: float
) -> tuple[SharedImages, NDArray[np.float64]]:
    """Losses of two groups under crossed seeds and draws, and the difference in each run (S, C)."""
    of_seed, of_draw = SPREADS[world]
    group = np.repeat([0, 1], images)
    lost = np.array([LOST[1] - effect, LOST[1]])
    moved = of_seed * rng.standard_normal((seeds, 1, 1))
    moved = moved + of_draw * rng.standard_normal((1, draws, 1))
    share = np.clip(lost[group] + group * moved, 0, 1)
    frail = rng.random(2 * images) < FRAIL
    # Borderline images carry half of the losses, at most ``OFTEN`` each.
    heavy = np.minimum(share * 0.5 / FRAIL, OFTEN)
    light = (share - heavy * FRAIL) / (1 - FRAIL)
    gone = rng.random((seeds, draws, 2 * images)) < np.where(frail, heavy, light)
    before = np.ones_like(gone, dtype=np.int64)
    shared = share_images(group, np.ones(2 * images, np.int64), before, before - gone)
    by_group = [gone[..., group == g].mean(axis=-1) for g in (0, 1)]
    return shared, by_group[1] - by_group[0]


def _intervals(
    shared: SharedImages, changes: NDArray[np.float64], options: dict[str, Any]
) -> dict[str, tuple[float, float]]:
    statistics = {"difference": signed("true_positive_rate")}
    apart = replace(shared, cells=shared.cells.reshape(-1, 1, shared.cells.shape[-1]))
    found = {
        "crossed": crossed_changes(shared, statistics, **options),
        "bootstrap": paired_bootstrap(shared, statistics, **options),
        "runs as seeds": paired_bootstrap(apart, statistics, **options),
    }
    means = changes.mean(axis=1)
    half = student.ppf((1 + options["confidence"]) / 2, len(means) - 1)
    half *= means.std(ddof=1) / len(means) ** 0.5
    ends = {name: (float(row.low.iloc[0]), float(row.high.iloc[0])) for name, row in found.items()}
    return ends | {"t over seeds": (means.mean() - half, means.mean() + half)}


def false_equivalence(
    *,
    seeds: int = 5,
    images: Sequence[int] = (4000, 4000, 4000, 1000),
    margin: float = 0.01,
    trials: int = 300,
    replicates: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How often "no change" is said of groups that are nearly equal, where one changes by a margin.

    Accuracies of all groups are the same under FP32; compression takes ``margin`` from the last. A
    change within the margin should be said at most one time in forty.

    Returns
    -------
    DataFrame
        ``rule``: ``gap`` (the interval of the largest-minus-smallest gap lies within the margin) or
        ``all pairs`` (those of the differences of all pairs of groups do), ``said``, and ``change``
        of the gap, mean.

    Examples
    --------
    >>> false_equivalence(trials=2, replicates=20)["rule"].tolist()
    ['gap', 'all pairs']
    """
    rng = np.random.default_rng(seed)
    gap = metrics.FAIRNESS["accuracy_difference"]
    group = np.repeat(np.arange(len(images)), images)
    pairs = {str(i): part for i, part in enumerate(gap.parts(len(images)))}
    said = {"gap": 0, "all pairs": 0}
    changes = []
    for _ in range(trials):
        before = (rng.random((seeds, len(group))) < 0.9).astype(np.int64)
        lost = np.where(group == len(images) - 1, FLIPS + margin / 0.9, FLIPS)
        won = FLIPS * 0.9 / 0.1  # as many as are lost
        flips = rng.random(before.shape) < np.where(before == 1, lost, won)
        shared = share_images(
            group, np.ones_like(group), before, np.where(flips, 1 - before, before)
        )
        table = crossed_changes(
            shared,
            {"gap": gap, **pairs},
            replicates=replicates,
            confidence=confidence,
            seed=int(rng.integers(2**32)),
        ).set_index("statistic")
        within = table[["low", "high"]].abs().max(axis=1) < margin
        changes.append(table.change["gap"])
        said["gap"] += bool(within["gap"])
        said["all pairs"] += bool(within[list(pairs)].all())
    return pd.DataFrame(
        {
            "rule": list(said),
            "said": [count / trials for count in said.values()],
            "change": float(np.mean(changes)),
        }
    )


def joint(world: str) -> NDArray[np.float64]:
    """Probability of each cell within each group, (G, 2, 2, 2), of a world of :data:`WORLDS`.

    Examples
    --------
    >>> joint("equal").sum(axis=(1, 2, 3))
    array([1., 1., 1., 1.])
    """
    out = np.zeros((len(WORLDS[world]), 2, 2, 2))
    for g, (base, hit, alarm, lost, won) in enumerate(WORLDS[world]):
        for label, share, selected in ((0, 1 - base, alarm), (1, base, hit)):
            for before in (0, 1):
                there = share * (selected if before else 1 - selected)
                flip = lost if before == label else won
                out[g, label, before, 1 - before] = there * flip
                out[g, label, before, before] = there * (1 - flip)
    return out


def signed(name: str) -> Statistic:
    """Rate of the first group less that of the last, which has no kink."""

    def first_less_last(table: NDArray[Any]) -> NDArray[Any]:
        rates = metrics.rate(table, name)
        out: NDArray[Any] = rates[..., 0] - rates[..., -1]
        return out

    return first_less_last


def _of_group(name: str, group: int) -> Statistic:
    return lambda table: metrics.rate(table, name)[..., group]


STATISTICS: dict[str, Statistic] = {
    "accuracy": lambda table: metrics.overall(table, "accuracy"),
    "group's accuracy": _of_group("accuracy", -1),
    "group's true positive rate": _of_group("true_positive_rate", -1),
    "signed accuracy difference": signed("accuracy"),
    "accuracy gap": metrics.FAIRNESS["accuracy_difference"],
    "demographic parity gap": metrics.FAIRNESS["demographic_parity_difference"],
    "equal opportunity gap": metrics.FAIRNESS["equal_opportunity_difference"],
    "equalized odds gap": metrics.FAIRNESS["equalized_odds_difference"],
    "worst-group accuracy": metrics.FAIRNESS["worst_group_accuracy"],
}
