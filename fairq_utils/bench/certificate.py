"""How often certificates are wrong, and how often they come."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

from fairq_utils.mitigation.certificate import CHANCE, EVIDENCE, Question
from fairq_utils.mitigation.simulation import LEARNT, SEQUENCE, needed, rates

DRAWS = 500
IMAGES = (500, 2000, 8000)  # of each group
FLIPS = (0.01, 0.04)  # about what eight bits, and four, do


def bench_certificate() -> dict[str, Any]:
    """Simulate certificates of known truths; a quarter of an hour on one core.

    Returns
    -------
    dict
        ``cells`` (rows of :func:`~fairq_utils.mitigation.simulation.rates`), ``draws`` of each,
        ``limit``, ``delta``, ``metric``, ``learnt`` (images that order and stakes were learnt
        from), ``sequence`` (true harms of the candidates tested one after the other, times the
        limit), ``wrong_most`` (largest share of false certificates), ``needed`` (by evidence, the
        held-out images at which a harmless candidate is certified in the share ``chance`` of draws,
        where ``needed_flips`` of the answers flip), ``seconds``.
    """
    began = time.perf_counter()

    def report(text: str) -> None:
        print(f"certificate: {text}", file=sys.stderr, flush=True)

    question = Question()
    table = rates(images=IMAGES, flips=FLIPS, draws=DRAWS, question=question, report=report)
    return {
        "cells": table.astype(object).where(table.notna(), None).to_dict("records"),
        "draws": DRAWS,
        "limit": question.limit,
        "delta": question.delta,
        "metric": question.metric,
        "learnt": LEARNT,
        "sequence": list(SEQUENCE),
        "wrong_most": float(table.wrong.max()),
        "chance": CHANCE,
        "needed_flips": min(FLIPS),
        "needed": {
            name: needed(min(FLIPS), replace(question, evidence=name))  # type: ignore[arg-type]
            for name in EVIDENCE
        },
        "seconds": time.perf_counter() - began,
    }
