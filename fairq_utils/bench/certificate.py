"""Certificates in simulation: how often they are wrong, and how often they come.

A world is what is true of everybody: groups with their base rates, a float model that is right for
a share of each, and a candidate that flips predictions and lets one group win more positive ones
than it loses. The true change of the gap is known, so that every certificate can be judged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils.bench.outcome import Outcome, say
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.data.population import CELEBA_JOINT
from fairq_utils.mitigation.certificate import (
    CHANCE,
    EVIDENCE,
    MOST,
    Question,
    least,
    observed,
    passes,
    plan,
)
from fairq_utils.mitigation.sequential_test import Candidate, in_sequence

DRAWS = 500
IMAGES = (500, 2000, 8000)  # of each group
FLIPS = (0.01, 0.04)  # about what eight bits, and four, do
RARE = 0.0005  # nearly all flips are then those that change the gap, all of them one way
ACCURACY = 0.92  # of the float model, in every group
LEARNT = 1000  # images that order and stakes are learnt from
CHANGES = (0.0, 0.5, 1.0, 2.0)  # true change of the gap by single candidates, times the limit
SEQUENCE = (2.0, 0.0, 1.0, 0.5)  # the same of four candidates, one after the other
COLUMNS = ["candidates", "evidence", "flips", "images", "change", "wrong", "certified"]
AT_LIMIT = 1e-6  # by which a change at the limit exceeds it


@benchmark("certificate", title="how often certificates are wrong, and how often they come")
def bench_certificate(subject: Subject) -> Outcome:
    """Simulate certificates of known truths; a quarter of an hour on one core.

    Returns
    -------
    Outcome
        ``cells`` (rows of :func:`rates`), ``draws`` of each, ``limit``, ``delta``, ``metric``,
        ``learnt`` (images that order and stakes were learnt from), ``sequence`` (true changes of
        the gap by candidates tested one after the other, times the limit), ``unfriendly`` (rows of
        :func:`unfriendly`), ``wrong_most`` (largest share of false certificates), ``needed`` (by
        evidence, the held-out images at which a candidate that leaves the gap as it is is certified
        in the share ``chance`` of draws, where ``needed_flips`` of the predictions flip),
        ``seconds``.
    """
    began = time.perf_counter()
    question = Question()
    table = rates(images=IMAGES, flips=FLIPS, draws=DRAWS, question=question, report=say)
    worlds = unfriendly(DRAWS, question)
    return Outcome(
        {
            "cells": table.astype(object).where(table.notna(), None).to_dict("records"),
            "draws": DRAWS,
            "limit": question.limit,
            "delta": question.delta,
            "metric": question.metric,
            "learnt": LEARNT,
            "sequence": list(SEQUENCE),
            "wrong_most": float(max(table.wrong.max(), worlds.wrong.max())),
            "unfriendly": worlds.to_dict("records"),
            "chance": CHANCE,
            "needed_flips": min(FLIPS),
            "needed": {
                name: needed(min(FLIPS), replace(question, evidence=name))  # type: ignore[arg-type]
                for name in EVIDENCE
            },
            "seconds": time.perf_counter() - began,
        }
    )


@dataclass(frozen=True)
class World:
    """Truth about a float model and a candidate.

    Attributes
    ----------
    flips : share of every group's predictions that flip, half of them either way
    change : of the gap: how much the share of positive predictions rises, beyond that, in the group
        that has most
    balanced : whether groups are sampled evenly, or as often as in CelebA
    alike : whether all groups have the same base rate, so that there is no gap before
    one_way : whether all flips make predictions positive
    """

    flips: float
    change: float
    balanced: bool = True
    alike: bool = False
    one_way: bool = False

    def float_cells(self) -> NDArray[np.float64]:
        """Probability of group x label x float prediction, (4, 2, 2)."""
        joint = np.array(list(CELEBA_JOINT.values()), float).reshape(4, 2)
        if self.alike:
            joint = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0) / joint.sum()
        if self.balanced:
            joint = joint / joint.sum(axis=1, keepdims=True)
        joint = joint / joint.sum()
        right = np.array([[ACCURACY, 1 - ACCURACY], [1 - ACCURACY, ACCURACY]])
        out: NDArray[np.float64] = joint[:, :, None] * right
        return out

    def flipping(self) -> NDArray[np.float64]:
        """Probability that a prediction flips, given group and float prediction, (4, 2)."""
        predicted = self.float_cells().sum(axis=1)
        share = predicted.sum(axis=1, keepdims=True)
        moved = np.full((4, 2), self.flips / 2)
        if self.one_way:
            moved = np.array([[self.flips, 0.0]] * 4)
        moved[int(np.argmax(predicted[:, 1] / share[:, 0])), 0] += self.change
        out: NDArray[np.float64] = moved * share / predicted
        if (out > 1).any():
            raise ValueError(f"World: {self} flips more predictions than there are")
        return out

    def table(self) -> NDArray[np.float64]:
        """Probability of group x label x float prediction x prediction, (4, 2, 2, 2)."""
        cells = self.float_cells()
        return _split(cells, cells * self.flipping()[:, None])


def drawn(
    worlds: Sequence[World], images: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Draw counts of several candidates on the same images, one table (4, 2, 2, 2) each."""
    cells = worlds[0].float_cells()
    counts = rng.multinomial(images, cells.ravel()).reshape(cells.shape)
    tables = []
    for world in worlds:
        moved = rng.binomial(counts, np.broadcast_to(world.flipping()[:, None], counts.shape))
        tables.append(_split(counts, moved))
    return tables


def single(world: World, images: int, question: Question, draws: int, seed: int = 0) -> float:
    """Share of ``draws`` in which one candidate is certified."""
    rng = np.random.default_rng(seed)
    certified = 0
    for _ in range(draws):
        [learnt] = drawn([world], LEARNT, rng)
        [held_out] = drawn([world], images, rng)
        certified += passes(held_out, plan(learnt, images, question), question)
    return certified / draws


def sequence(
    worlds: Sequence[World], images: int, question: Question, draws: int, seed: int = 0
) -> tuple[float, float]:
    """Shares of draws in which a candidate is certified wrongly, and in which a safe one is.

    Returns
    -------
    wrong, certified : float
        Shares of ``draws`` with at least one certificate of a change above the limit, and with at
        least one of a change at most that.
    """
    rng = np.random.default_rng(seed)
    true = [observed(world.table(), question) for world in worlds]
    wrong = right = 0
    for _ in range(draws):
        learnt, held_out = drawn(worlds, LEARNT, rng), drawn(worlds, images, rng)
        found = in_sequence(
            {str(i): Candidate(*pair) for i, pair in enumerate(zip(learnt, held_out, strict=True))},
            question,
            describe=False,
        )
        above = [
            true[int(trial.name)] > question.limit
            for trial in found
            if trial.outcome == "certified"
        ]
        wrong += any(above)
        right += not all(above)
    return wrong / draws, right / draws


# Worlds that tempt a certificate to be wrong, their change being just above the limit; and how many
# images of each group there are.
UNFRIENDLY: dict[str, tuple[dict[str, Any], int]] = {
    "even groups": ({"flips": 0.01}, 2000),
    "groups as in CelebA": ({"flips": 0.01, "balanced": False}, 2000),
    "hardly any flips but those": ({"flips": RARE}, 500),
    "flips one way": ({"flips": 0.01, "one_way": True}, 2000),
    "no gap before": ({"flips": 0.01, "alike": True}, 2000),
    "few images": ({"flips": 0.04}, 200),
}


def unfriendly(draws: int, question: Question | None = None) -> pd.DataFrame:
    """How often one candidate just beyond the limit is certified, in worlds that tempt to it.

    Returns
    -------
    DataFrame
        ``world`` of :data:`UNFRIENDLY`, ``evidence``, ``wrong``.

    Examples
    --------
    >>> bool((unfriendly(1).wrong <= 1).all())
    True
    """
    asked = Question() if question is None else question
    rows = [
        (
            name,
            evidence,
            single(
                World(change=asked.limit + AT_LIMIT, **given),
                4 * images,
                replace(asked, evidence=evidence),  # type: ignore[arg-type]
                draws,
            ),
        )
        for name, (given, images) in UNFRIENDLY.items()
        for evidence in EVIDENCE
    ]
    return pd.DataFrame(rows, columns=["world", "evidence", "wrong"])


def needed(flips: float, question: Question, *, draws: int = 200) -> int | None:
    """Held-out images, of four even groups, that mostly certify a candidate that changes no gap.

    Parameters
    ----------
    flips : share of predictions that flip, half of them either way
    draws : of which :data:`~fairq_utils.mitigation.certificate.CHANCE` are certified

    Examples
    --------
    >>> few, many = (
    ...     needed(flips, Question(evidence="normal"), draws=20) for flips in (0.01, 0.04)
    ... )
    >>> few < many
    True
    """
    world = World(flips, 0.0)
    times = least(
        lambda times: single(world, math.ceil(times * LEARNT), question, draws) >= CHANCE, 1.0, MOST
    )
    return None if times is None else math.ceil(times * LEARNT)


def rates(
    *,
    images: Iterable[int],
    flips: Iterable[float],
    draws: int,
    question: Question | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Rates of certificates in every world, by evidence.

    Parameters
    ----------
    images : of each of four groups, held out
    flips : shares of predictions that flip
    draws : per cell
    report : told which cells are being simulated

    Returns
    -------
    DataFrame
        ``candidates`` (1, or several in sequence), ``evidence``, ``flips``, ``images`` (held out,
        all groups), ``change`` (the true change of the gap; NaN of a sequence), ``wrong`` (share of
        draws with a false certificate; NaN where no candidate is unsafe) and ``certified`` (share
        of draws with a true one; NaN where none is safe).
    """
    asked = Question() if question is None else question
    rows: list[tuple[Any, ...]] = []
    for evidence in EVIDENCE:
        by = replace(asked, evidence=evidence)  # type: ignore[arg-type]
        for share in flips:
            for each in images:
                report(f"certificate: {evidence}, {share:.1%} flips, {each} images per group")
                cell = (evidence, share, 4 * each)
                for times in CHANGES:
                    world = _world(share, times, asked)
                    found = single(world, 4 * each, by, draws)
                    unsafe = world.change > asked.limit
                    rows.append(
                        (1, *cell, world.change, *((found, np.nan) if unsafe else (np.nan, found)))
                    )
                worlds = [_world(share, times, asked) for times in SEQUENCE]
                rates = sequence(worlds, 4 * each, by, draws)
                rows.append((len(worlds), *cell, np.nan, *rates))
    return pd.DataFrame(rows, columns=COLUMNS)


def _world(flips: float, times: float, question: Question) -> World:
    """World with a change of the gap of so many times the limit."""
    return World(flips, times * question.limit + AT_LIMIT * (times == 1))


def _split(cells: NDArray[Any], moved: NDArray[Any]) -> NDArray[Any]:
    """Cells by float prediction and prediction, from those by the first and how many of each flip.

    ``(..., 2)`` twice to ``(..., 2, 2)``.
    """
    out = np.zeros((*cells.shape, 2), cells.dtype)
    for predicted in (0, 1):
        out[..., predicted, predicted] = (cells - moved)[..., predicted]
        out[..., predicted, 1 - predicted] = moved[..., predicted]
    return out
