"""Cost of a bootstrap replicate, here and in fairlearn."""

from __future__ import annotations

import statistics
import timeit
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils import metrics
from fairq_utils.bench.outcome import Outcome
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.stats.paired import paired_bootstrap

IMAGES = 20_000
GROUPS = 4
REPLICATES = 10_000
GROWTH = (10**4, 10**5, 10**6)  # images
REPEATS = 5
FAIRLEARN_REPLICATES = 4

# Our name of the rate -> the function that fairlearn's frame is given.
RATES = (
    "accuracy error_rate selection_rate true_positive_rate false_negative_rate "
    "false_positive_rate true_negative_rate positive_predictive_value negative_predictive_value "
    "f1_score"
).split()


@benchmark("stats", title="bootstrap replicates per second, beside fairlearn's")
def bench_stats(subject: Subject) -> Outcome:
    """Bootstrap ten gaps of two models, here and by fairlearn's ``MetricFrame(n_boot=...)``.

    fairlearn evaluates one model at a time, so a paired replicate is one replicate of each of two
    frames. Its cost per replicate is the difference between a frame with and one without
    replicates, divided by their number. Counting images is left out on our side, and the observed
    frame on theirs.

    Returns
    -------
    Outcome
        ``speedup_vs_fairlearn`` (per paired replicate), ``ms_per_replicate`` (here),
        ``fairlearn_ms_per_replicate``, ``ms_by_images`` (milliseconds of all replicates here, by
        number of images), ``ms_total``, ``worst_difference`` (between the two libraries' observed
        gaps), ``metrics``, ``replicates``, ``images``, ``groups``.
    """
    from fairlearn.metrics import MetricFrame

    gaps = {name: partial(metrics.difference, name=name) for name in RATES}
    tables = {}
    for images in (IMAGES, *GROWTH):
        data = rows(images)
        tables[images] = metrics.count(
            data["label"],
            data["second"],
            sensitive_features=data["group"],
            reference=data["first"],
        ).table

    def ours(images: int, replicates: int = REPLICATES) -> Any:
        return paired_bootstrap([tables[images]], gaps, replicates=replicates)

    data = rows(IMAGES)
    functions = _fairlearn_functions()

    def theirs(replicates: int | None) -> Any:
        options: dict[str, Any] = {}
        if replicates:
            options = {"n_boot": replicates, "ci_quantiles": [0.025, 0.975], "random_state": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two replicates' quantiles
            return [
                MetricFrame(
                    metrics=functions,
                    y_true=data["label"],
                    y_pred=data[model],
                    sensitive_features=data["group"],
                    **options,
                )
                for model in ("first", "second")
            ]

    found = ours(IMAGES, replicates=10).set_index("statistic")
    before, after = (frame.difference() for frame in theirs(None))
    worst = max(
        float(np.abs(found.reference - before[found.index]).max()),
        float(np.abs(found.compared - after[found.index]).max()),
    )
    spent = _seconds(lambda: ours(IMAGES), REPEATS)
    here = spent / REPLICATES
    once = _seconds(lambda: theirs(None), 1)
    there = (_seconds(lambda: theirs(FAIRLEARN_REPLICATES), 1) - once) / FAIRLEARN_REPLICATES
    return Outcome(
        {
            "speedup_vs_fairlearn": round(there / here),
            "ms_per_replicate": round(1e3 * here, 5),
            "fairlearn_ms_per_replicate": round(1e3 * there, 1),
            "ms_by_images": {
                str(images): round(1e3 * _seconds(partial(ours, images), REPEATS), 1)
                for images in GROWTH
            },
            "ms_total": round(1e3 * spent, 1),
            "worst_difference": worst,
            "metrics": len(RATES),
            "replicates": REPLICATES,
            "images": IMAGES,
            "groups": GROUPS,
        }
    )


def rows(images: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draw labels, groups, and predictions of two models that differ on one image in twenty."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, GROUPS, images)
    label = (rng.random(images) < 0.4 + 0.05 * group).astype(int)
    first = np.where(rng.random(images) < 0.92 - 0.02 * group, label, 1 - label)
    second = np.where(rng.random(images) < 0.95, first, 1 - first)
    return {"group": group, "label": label, "first": first, "second": second}


def _fairlearn_functions() -> dict[str, Callable[..., float]]:
    from fairlearn import metrics as theirs
    from sklearn import metrics as sk

    functions = (
        sk.accuracy_score,
        sk.zero_one_loss,
        theirs.selection_rate,
        theirs.true_positive_rate,
        theirs.false_negative_rate,
        theirs.false_positive_rate,
        theirs.true_negative_rate,
        sk.precision_score,
        partial(sk.precision_score, pos_label=0),
        sk.f1_score,
    )
    return dict(zip(RATES, functions, strict=True))


def _seconds(action: Callable[[], Any], repeats: int) -> float:
    """Median time of an action."""
    return statistics.median(timeit.repeat(action, repeat=repeats, number=1))
