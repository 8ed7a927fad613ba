"""Certificates: valid at every size, by simulation from known truths; and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fairq_utils.bench.certificate import (
    RARE,
    UNFRIENDLY,
    World,
    drawn,
    sequence,
    single,
    unfriendly,
)
from fairq_utils.errors import BadInput
from fairq_utils.metrics import FAIRNESS
from fairq_utils.mitigation import certificate
from fairq_utils.mitigation.betting import p_value_of_difference, stake
from fairq_utils.mitigation.certificate import (
    CHANCE,
    Question,
    bound,
    images_needed,
    observed,
    passes,
    plan,
)
from fairq_utils.mitigation.sequential_test import Candidate, in_sequence

QUESTION = Question(limit=0.02)
DRAWS = 500


@pytest.mark.parametrize(
    ("first", "second", "flips"),
    [(60, 60, 0.05), (40, 800, 0.02), (800, 40, 0.02), (400, 400, 0.0), (100, 100, 0.5)],
)
def test_bets_are_lost_where_the_difference_is_at_the_limit(first, second, flips) -> None:
    """A p-value is at most 0.2 at most one time in five, at any size and rate of flips."""
    rng = np.random.default_rng(first)
    limit = 0.02
    x = np.array([flips / 2, 1 - flips - limit, flips / 2 + limit])
    y = np.array([flips / 2, 1 - flips, flips / 2])
    size = stake((flips + 0.01) * (1 / first + 1 / second), 0.2)
    found = [
        p_value_of_difference(
            rng.multinomial(first, x), rng.multinomial(second, y), limit, size=size
        )
        for _ in range(DRAWS)
    ]
    assert np.mean(np.array(found) <= 0.2) <= 0.2


def test_the_expected_gain_of_every_stake_is_nothing() -> None:
    """Exactly, over all outcomes of five images each: P(p <= u) <= u for every u that occurs."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        y = rng.dirichlet([1, 1, 1])
        limit = float(rng.uniform(-0.5, 0.5))
        mean = y[2] - y[0] + limit
        if not -1 < mean < 1:
            continue
        zero = float(rng.uniform(0, 1 - abs(mean)))
        x = np.array([(1 - zero - mean) / 2, zero, (1 - zero + mean) / 2])
        size = float(rng.uniform(2, 10))
        pairs = [(a, b) for a in outcomes(5) for b in outcomes(5)]
        p = np.array([p_value_of_difference(a, b, limit, size=size) for a, b in pairs])
        weight = np.array([probability(a, x) * probability(b, y) for a, b in pairs])
        for u in np.unique(p):
            assert weight[p <= u].sum() <= u + 1e-9
        assert p.min() < 0.3  # some outcomes are evidence


def outcomes(images: int) -> list[np.ndarray]:
    return [
        np.array([i, j, images - i - j]) for i in range(images + 1) for j in range(images + 1 - i)
    ]


def probability(counts: np.ndarray, cells: np.ndarray) -> float:
    from scipy.stats import multinomial

    return float(multinomial.pmf(counts, counts.sum(), cells))


def test_evidence_grows_with_images_and_with_the_limit() -> None:
    p = [
        p_value_of_difference([n, 98 * n, n], [n, 98 * n, n], 0.02, size=stake(0.0004 / n, 0.05))
        for n in (1, 5, 20, 80)
    ]
    assert p == sorted(p, reverse=True)
    assert p[0] > 0.5
    assert p[-1] < 1e-4
    by_limit = [
        p_value_of_difference([10, 980, 10], [10, 980, 10], limit, size=400)
        for limit in (-0.1, 0.0, 0.01, 0.02, 0.05)
    ]
    assert by_limit == sorted(by_limit, reverse=True)
    assert by_limit[:2] == [1.0, 1.0]


@pytest.mark.parametrize("evidence", ["betting", "normal"])
@pytest.mark.parametrize("balanced", [True, False])
def test_false_certificates_are_rarer_than_delta(evidence, balanced) -> None:
    question = replace(QUESTION, evidence=evidence)
    world = World(0.02, question.limit + 1e-6, balanced)
    assert observed(world.table(), question) > question.limit
    assert single(world, 2000, question, DRAWS) <= question.delta


def test_unfriendly_worlds_are_rarely_certified() -> None:
    """Also where a z-test alone would be wrong: nearly all flips are the harm, all one way."""
    found = unfriendly(5)
    assert set(found.world) == set(UNFRIENDLY) and (found.wrong <= QUESTION.delta).all()
    rare = World(RARE, QUESTION.limit + 1e-6)
    [held] = drawn([rare], 2000, np.random.default_rng(0))
    x, y = held.sum(axis=1)[:2]
    assert certificate._normal(certificate._flips(x), certificate._flips(y), 0.5, 1.0) == 1.0


@pytest.mark.parametrize("evidence", ["betting", "normal"])
def test_a_sequence_with_unsafe_candidates_is_rarely_wrong(evidence) -> None:
    question = replace(QUESTION, evidence=evidence)
    times = (2.0, 0.0, 1.0)
    worlds = [World(0.02, t * question.limit + 1e-6 * (t == 1)) for t in times]
    wrong, _ = sequence(worlds, 3000, question, DRAWS // 2)
    assert wrong <= question.delta


@pytest.mark.parametrize("evidence", ["betting", "normal"])
def test_a_gap_that_opens_where_there_was_none_is_rarely_missed(evidence) -> None:
    """The harm is in a pair that the float model's widest hides, and learnt images showed none."""
    rng = np.random.default_rng(6)
    question = replace(QUESTION, evidence=evidence, limit=0.05)
    # Selection rates of three groups; flips go one way only.
    before, harmless = np.array([0.2, 0.4, 0.8]), np.array([0.2, 0.5, 0.8])
    harmful = np.array([0.2, 0.8501, 0.8])

    def table(each: int, after: np.ndarray) -> np.ndarray:
        out = np.zeros((3, 2, 2, 2), int)
        for g in range(3):
            positive = rng.binomial(each, before[g])
            won = rng.binomial(each - positive, (after[g] - before[g]) / (1 - before[g]))
            out[g, 0] = [[each - positive - won, won], [0, positive]]
        return out

    apart = wrong = 0
    for _ in range(DRAWS):
        held = table(700, harmful)
        how = plan(table(400, harmless), int(held.sum()), question)
        apart += any(not c.paired for c in how.contrasts if (c.first, c.second) == (1, 0))
        wrong += passes(held, how, question)
    assert apart > 0.9 * DRAWS
    assert wrong <= question.delta * DRAWS


def test_a_safe_candidate_is_certified_where_there_are_images_enough() -> None:
    world = World(0.01, 0.0)
    few, many = (single(world, images, QUESTION, 50) for images in (800, 12000))
    assert few < 0.2
    assert many > 0.9


def test_order_is_learnt_and_levels_are_passed_on() -> None:
    rng = np.random.default_rng(1)
    worlds = {
        "bad": World(0.02, 0.05),
        "good": World(0.004, 0.0),
        "worse": World(0.02, 0.06),
        "fair": World(0.008, 0.0),
    }
    learnt = drawn(list(worlds.values()), 4000, rng)
    held = drawn(list(worlds.values()), 16_000, rng)
    found = in_sequence(
        {name: Candidate(a, b) for name, a, b in zip(worlds, learnt, held, strict=True)}, QUESTION
    )
    assert [t.name for t in found] == ["good", "fair", "bad", "worse"]
    assert [t.outcome for t in found] == ["certified", "certified", *["not certified"] * 2]
    delta = QUESTION.delta
    assert [t.level for t in found] == pytest.approx(
        [delta / 2, delta * 3 / 4, delta * 7 / 8, delta / 8]
    )
    for trial in found:
        passed = trial.outcome == "certified"
        assert (trial.bound <= QUESTION.limit) == (trial.p_value <= trial.level) == passed
        # Certified, or as harmful as it looks whatever their number.
        assert trial.images_needed == (None if passed else (math.inf, math.inf))


def test_one_failure_does_not_end_the_sequence() -> None:
    """The order was learnt from images that made the harmful candidate look safe."""
    rng = np.random.default_rng(5)
    [safe], [harmful] = (
        drawn([World(0.01, 0.0)], 16_000, rng),
        drawn([World(0.01, 0.05)], 16_000, rng),
    )
    [looks_safe], [looks_bad] = (
        drawn([World(0.001, 0.0)], 1000, rng),
        drawn([World(0.1, 0.0)], 1000, rng),
    )
    found = in_sequence(
        {"harmful": Candidate(looks_safe, harmful), "safe": Candidate(looks_bad, safe)}, QUESTION
    )
    assert [(t.name, t.outcome) for t in found] == [
        ("harmful", "not certified"),
        ("safe", "certified"),
    ]


def test_number_of_images_that_would_have_been_enough() -> None:
    truth = World(0.01, 0.0).table()
    how = plan(truth * 1000, 1200, QUESTION)
    assert not passes(truth * 1200, how, QUESTION)
    low, high = images_needed(truth * 4000, plan(truth * 1000, 4000, QUESTION), QUESTION)
    assert 1200 < low < high < math.inf
    rng = np.random.default_rng(5)  # other draws than those that it was found by
    passed = []
    for images in (round(low / 4), round(high)):
        planned = plan(truth * 1000, images, QUESTION)
        tables = [drawn([World(0.01, 0.0)], images, rng)[0] for _ in range(100)]
        passed.append(np.mean([passes(table, planned, QUESTION) for table in tables]))
    assert passed[0] < 0.5 < CHANCE - 0.1 < passed[1]
    harmful = images_needed(World(0.01, 0.1).table() * 1200, how, QUESTION)
    assert harmful == (math.inf, math.inf)


def test_few_flips_give_a_wide_range_and_no_impossibility() -> None:
    """Of one harmless candidate: twenty flips in two thousand images bound little from above."""
    table = World(0.01, 0.0).table()
    many, few = table * 20_000, plan(table * 2000, 2000, QUESTION)
    truly = images_needed(many, plan(many, 20_000, QUESTION), QUESTION, draws=20)
    tables = drawn([World(0.01, 0.0)] * 5, 2000, np.random.default_rng(3))
    ranges = [images_needed(found, few, QUESTION, draws=20) for found in tables]
    assert all(low < truly[1] and truly[0] < high for low, high in ranges)
    assert any(math.isfinite(low) and not math.isfinite(high) for low, high in ranges)


@pytest.mark.parametrize(
    "metric",
    [
        "demographic_parity_difference",
        "equalized_odds_difference",
        "equal_opportunity_difference",
        "accuracy_difference",
    ],
)
def test_harm_is_the_change_of_the_metric(metric) -> None:
    [table] = drawn([World(0.05, 0.03)], 5000, np.random.default_rng(3))
    question = replace(QUESTION, metric=metric)
    gap = FAIRNESS[metric]
    change = gap(table.sum(axis=2)) - gap(table.sum(axis=3))
    assert observed(table, question) == pytest.approx(float(change))
    itself = replace(question, constrained="gap", limit=0.5)
    assert observed(table, itself) == pytest.approx(float(gap(table.sum(axis=2))))
    how = plan(table, 5000, itself)
    assert float(gap(table.sum(axis=2))) < bound(table, how, itself) < 1


def test_bound_covers_the_true_harm() -> None:
    rng = np.random.default_rng(4)
    world = World(0.03, 0.01)
    true = observed(world.table(), QUESTION)
    below = 0
    for _ in range(60):
        [learnt], [held] = drawn([world], 1000, rng), drawn([world], 2000, rng)
        below += bound(held, plan(learnt, 2000, QUESTION), QUESTION) < true
    assert below <= 60 * QUESTION.delta


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "accuracy"}, "metric: 'accuracy' is not one of"),
        ({"metric": "predictive_parity_difference"}, "is not one of"),
        ({"limit": 0.0}, "limit: 0.0"),
        ({"delta": 0.7}, "delta: 0.7"),
        ({"constrained": "both"}, "constrained: 'both'"),
        ({"evidence": "luck"}, "evidence: 'luck'"),
    ],
)
def test_questions_without_an_answer_are_refused(options, said) -> None:
    with pytest.raises(BadInput, match=said):
        Question(**options)
