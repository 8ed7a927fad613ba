"""How often the intervals of the paired bootstrap hold the truth."""

from __future__ import annotations

import sys
import time
from typing import Any

from fairq_utils.stats.coverage import PROMISED, PROMISED_FROM, coverage
from fairq_utils.stats.coverage_of_seeds import coverage_over_seeds

TRIALS = 1000
SEED_TRIALS = 400


def bench_coverage() -> dict[str, Any]:
    """Simulate the coverage of nominal 95 % intervals; minutes on one core.

    Returns
    -------
    dict
        ``worlds`` (lowest and highest coverage by world, quantity and method from 200 images per
        group up, and how many of them lie within 93 to 97 %), ``cells`` (rows of
        :func:`~fairq_utils.stats.coverage.coverage`), ``cells_by_seeds`` (rows of
        :func:`~fairq_utils.stats.coverage_of_seeds.coverage_over_seeds`), ``trials``,
        ``standard_error`` of a coverage near 95 %, ``seconds``.
    """
    began = time.perf_counter()

    def report(text: str) -> None:
        print(f"coverage: {text}", file=sys.stderr, flush=True)

    table = coverage(trials=TRIALS, report=report)
    report("several seeds on the same images")
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
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "trials": TRIALS,
        "standard_error": round((0.95 * 0.05 / TRIALS) ** 0.5, 4),
        "worlds": summary,
        "cells": table.round(4).to_dict("records"),
        "cells_by_seeds": over_seeds.round(4).to_dict("records"),
    }
