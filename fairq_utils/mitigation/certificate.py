r"""A bound on what quantization does to a gap, with the chance of being wrong named in advance.

A candidate is *certified* if the hypothesis that its gap grows too much is rejected on images that
had no part in making or choosing it. The statistic is the increase of a gap over the float model
(or the gap itself) beyond a limit :math:`\epsilon`, in any ordered pair of groups. For a gap in a
rate r,

.. math:: \text{increase} = \max_{g,h} (r^q_g - r^q_h) - \max_{k,l} (r_k - r_l) > \epsilon

says that some pair (g, h) has gone too far, so it is rejected if each pair's own hypothesis is (an
intersection-union test: no correction for their number). A pair has gone too far only if, for
whichever (k, l) we like to name,

.. math:: (r^q_g - r^q_h) - (r_k - r_l) > \epsilon .

*Paired*, with (k, l) = (g, h), both sides are differences of the same images' predictions, and only
flips matter. *Apart*, (k, l) is the float model's widest pair: far better for groups that are
nearly alike. Which of the two, and how high to stake, is decided on other images.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from fairq_utils.errors import BadInput
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.metrics.gaps import difference
from fairq_utils.mitigation.betting import VALUES, p_value_of_difference, stake

Constrained = Literal["increase", "gap"]
Evidence = Literal["betting", "normal"]
Table = NDArray[Any]
WIDEST_SHARE = 0.1  # of delta, for how wide the float model's widest pair is at least
MOST = 1e5  # times the images at hand; more are called out of reach
PRECISION = 1e-4  # of a bound
CHANCE = 0.8  # that the images said to be needed certify
SAMPLES = 20  # bootstrap samples over which the range that is said goes
STEP = 0.02  # of the images said to be needed, relative
ENOUGH = 30  # flips (or answers of the rarer kind) of each group for a z-test
COARSE = 1e-3  # of the bound on the float model's gap, which is on the safe side


@dataclass(frozen=True)
class Question:
    """Question that a certificate answers.

    Attributes
    ----------
    metric : a difference over groups in :data:`fairq_utils.metrics.FAIRNESS`
        Of selection rates, true or false positive rates, or accuracies.
    limit : float
        The largest increase (or gap) that is allowed, a fraction.
    delta : float
        The chance of certifying anything beyond the limit, at most.
    constrained : ``increase`` over the float model, or the ``gap`` itself
    evidence : ``betting`` or ``normal``
        ``betting`` holds at any number of images (:mod:`fairq_utils.mitigation.betting`);
        ``normal`` is the usual z-test of a difference: asymptotic, and content with fewer images;
        below :data:`ENOUGH` flips in a group, which are too few for it, it certifies nothing.
    """

    metric: str = "demographic_parity_difference"
    limit: float = 0.01
    delta: float = 0.05
    constrained: Constrained = "increase"
    evidence: Evidence = "betting"

    def __post_init__(self) -> None:
        known = [
            name
            for name, criterion in FAIRNESS.items()
            if criterion.compare is difference
            and criterion.agg == "worst_case"
            and all(rate in OF_RATE for rate in criterion.rates)
        ]
        if self.metric not in known:
            raise BadInput(f"metric: {self.metric!r} is not one of {', '.join(known)}")
        if not 0 < self.limit < 1:
            raise BadInput(f"limit: {self.limit} is not between 0 and 1; 0.01 is one point")
        if not 0 < self.delta < 0.5:
            raise BadInput(f"delta: {self.delta} is not between 0 and 0.5")
        for name, kind in (("constrained", Constrained), ("evidence", Evidence)):
            if getattr(self, name) not in get_args(kind):
                raise BadInput(
                    f"{name}: {getattr(self, name)!r} is not one of {', '.join(get_args(kind))}"
                )


# Table (G, label, float, quantized) -> (G, float, quantized) of the images that a rate rests on.
OF_RATE: dict[str, Callable[[Table], Table]] = {
    "selection_rate": lambda table: table.sum(axis=1),
    "true_positive_rate": lambda table: table[:, 1],
    "false_positive_rate": lambda table: table[:, 0],
    "accuracy": lambda table: table[:, 1] + table[:, 0, ::-1, ::-1],
}


@dataclass(frozen=True)
class Contrast:
    """One ordered pair of groups, and how its hypothesis is tested.

    Attributes
    ----------
    rate, first, second : the rate, and the codes of two groups
    paired : whether against its own float difference, or apart, against the widest pair's
    size : of the stake, at as many images as are to be tested on
    """

    rate: str
    first: int
    second: int
    paired: bool
    size: float


@dataclass(frozen=True)
class Plan:
    """Plan of a candidate's test; decided without the images it is tested on.

    Attributes
    ----------
    contrasts : every ordered pair of groups, in every rate of the metric
    widest : the float model's widest pair, to which pairs are compared that are tested apart
    spent : what the bound on that pair costs, a part of delta
    """

    contrasts: tuple[Contrast, ...]
    widest: Contrast
    spent: float


def plan(learnt: Table, images: int, question: Question) -> Plan:
    """Decide how to test, from counts of other images.

    Parameters
    ----------
    learnt : (G, 2, 2, 2)
        Group x label x float x candidate's prediction, on images that are not tested on.
    images : int
        How many will be tested on.

    Raises
    ------
    BadInput
        A group without an image that some rate rests on.
    """
    scale = images / max(float(learnt.sum()), 1.0)
    rates = FAIRNESS[question.metric].rates
    sides = {rate: OF_RATE[rate](learnt) for rate in rates}
    refuse_empty(learnt, question, [str(code) for code in range(len(learnt))], "the first images")
    pairs = [
        (rate, g, h)
        for rate, side in sides.items()
        for g in range(len(side))
        for h in range(len(side))
        if g != h
    ]
    widest = max(
        pairs,
        key=lambda pair: (
            _mean(_float(sides[pair[0]][pair[1]])) - _mean(_float(sides[pair[0]][pair[2]]))
        ),
    )
    level, spent = question.delta, question.delta * WIDEST_SHARE

    def tests(times: float) -> tuple[Contrast, dict[bool, list[Contrast]]]:
        """The widest pair, and both tests of every pair, staked for so many times the images."""
        x, y = (_float(sides[widest[0]][group]) for group in widest[1:])
        wide = Contrast(*widest, False, _size(x, y, times, spent))
        both: dict[bool, list[Contrast]] = {True: [], False: []}
        for rate, g, h in pairs:
            x, y = sides[rate][g], sides[rate][h]
            for paired, values in ((True, _flips), (False, _answer)):
                size = _size(values(x), values(y), times, level)
                both[paired].append(Contrast(rate, g, h, paired, size))
        return wide, both

    base, here = tests(scale)
    if question.constrained == "gap":
        return Plan(tuple(here[False]), base, spent)
    # Rates of few images lie apart by chance: apart only what is shown to be so by these alone.
    wide, alone = tests(1.0)
    floor = _floor(learnt, wide, spent, question)
    shown = [
        _p_value(learnt, contrast, floor, spent, question) <= level for contrast in alone[False]
    ]
    scaled = learnt * scale
    floor = _floor(scaled, base, spent, question)
    contrasts = []
    for paired, apart, allowed in zip(here[True], here[False], shown, strict=True):
        choices = [paired, apart] if allowed else [paired]
        expected = [_p_value(scaled, choice, floor, spent, question) for choice in choices]
        contrasts.append(choices[int(np.argmin(expected))])
    return Plan(tuple(contrasts), base, spent)


def refuse_empty(table: Table, question: Question, groups: Sequence[str], what: str) -> None:
    """Refuse, by name, a group without an image that one of the metric's rates rests on."""
    rests_on = {"true_positive_rate": " of label 1", "false_positive_rate": " of label 0"}
    for rate in FAIRNESS[question.metric].rates:
        for group, count in zip(groups, OF_RATE[rate](table).sum(axis=(1, 2)), strict=True):
            if count == 0:
                raise BadInput(
                    f"certificate: {what} show nobody of the group {group!r}"
                    f"{rests_on.get(rate, '')}, on whom the {rate.replace('_', ' ')} rests; add "
                    "images, or leave an attribute out"
                )


def p_value(table: Table, how: Plan, question: Question) -> float:
    """P-value of "this candidate is beyond the limit": that of the pair that looks worst.

    Parameters
    ----------
    table : (G, 2, 2, 2)
        Counts of the images that are tested on.

    Examples
    --------
    Two groups of 3,000 images; 15 predictions flip each way in both.

    >>> one = [[[1600, 15], [15, 0]], [[0, 0], [0, 1370]]]
    >>> table = np.array([one, one])
    >>> question = Question(limit=0.01, delta=0.05)
    >>> bool(p_value(table, plan(table, 6000, question), question) < 0.05)
    True
    """
    floor = 0.0
    if not all(contrast.paired for contrast in how.contrasts):
        floor = _floor(table, how.widest, how.spent, question)
    return max(_p_value(table, contrast, floor, how.spent, question) for contrast in how.contrasts)


def passes(table: Table, how: Plan, question: Question) -> bool:
    """True if :func:`p_value` is at most delta; skips the pairs after the first that fails."""
    apart = any(not contrast.paired for contrast in how.contrasts)
    floor = _floor(table, how.widest, how.spent, question) if apart else 0.0
    return all(
        _p_value(table, c, floor, how.spent, question) <= question.delta for c in how.contrasts
    )


def _p_value(
    table: Table, contrast: Contrast, floor: float, spent: float, question: Question
) -> float:
    """P-value of one pair; ``floor``, at level ``spent``, bounds the float model's gap from below.

    What is spent does not depend on the level that the p-value is compared with.
    """
    side = OF_RATE[contrast.rate](table)
    x, y = side[contrast.first], side[contrast.second]
    evidence = EVIDENCE[question.evidence]
    if contrast.paired:
        return evidence(_flips(x), _flips(y), question.limit, contrast.size)
    if question.constrained == "gap":
        return evidence(_answer(x), _answer(y), question.limit, contrast.size)
    found = evidence(_answer(x), _answer(y), floor + question.limit, contrast.size)
    return min(spent + found, 1.0)


def _floor(table: Table, widest: Contrast, spent: float, question: Question) -> float:
    """A lower bound on the float model's gap, at confidence 1 - ``spent``."""
    if question.constrained == "gap":
        return 0.0
    side = OF_RATE[widest.rate](table)
    x, y = _float(side[widest.first]), _float(side[widest.second])
    evidence = EVIDENCE[question.evidence]
    low, high = 0.0, _mean(x) - _mean(y)
    while high - low > COARSE:
        middle = (low + high) / 2
        # Rejected is that the other way round the difference is -middle or more.
        shown = evidence(y, x, -middle, widest.size) <= spent
        low, high = (middle, high) if shown else (low, middle)
    return low


def bound(table: Table, how: Plan, question: Question) -> float:
    """The smallest limit that these counts would certify this candidate for: an upper bound.

    It holds at confidence 1 - ``question.delta`` for one candidate, named in advance, and is at
    most ``question.limit`` exactly where that one is certified.
    """
    passed = p_value(table, how, question) <= question.delta
    low, high = (0.0, question.limit) if passed else (question.limit, 1.0)
    while high - low > PRECISION:
        middle = (low + high) / 2
        if p_value(table, how, replace(question, limit=middle)) <= question.delta:
            high = middle
        else:
            low = middle
    return high


def observed(table: Table, question: Question) -> float:
    """Observed statistic that the limit is about: the increase of the gap, or the gap."""
    metric = FAIRNESS[question.metric]
    after = float(metric(table.sum(axis=2)))
    return after if question.constrained == "gap" else after - float(metric(table.sum(axis=3)))


def images_needed(
    table: Table, how: Plan, question: Question, *, draws: int = 60
) -> tuple[float, float]:
    """Numbers of images between which a candidate like the one observed would be certified.

    A plan, not a guarantee: so many that the test passes in :data:`CHANCE` of ``draws`` samples of
    that size from proportions that are as they were observed, in :data:`SAMPLES` bootstrap samples
    of the images. Proportions observed on few images may be far from the truth, and then the range
    is wide.

    Parameters
    ----------
    table : (G, 2, 2, 2)
        Counts of the images that were tested on.
    how : the plan by which they were, whose stakes are those of its number of images

    Returns
    -------
    low, high : float
        The least and the largest over bootstrap samples; infinite where none is found up to
        :data:`MOST` times the images at hand.
    """
    images = int(table.sum())
    drawn = np.random.default_rng(0).multinomial(images, (table / images).ravel(), size=SAMPLES)
    samples = drawn.reshape(-1, *table.shape)
    expected = [_doublings(partial(_as_expected, s, how, question)) for s in samples]
    low, high = min(expected), max(expected)
    if not math.isfinite(low):
        return math.inf, math.inf
    # Chance asks for more than what is expected: how much more is found where the range begins.
    first = samples[expected.index(low)]
    start = least(partial(_as_expected, first, how, question), low / 2, MOST) or low
    often = least(partial(_often, first, how, question, draws), start, MOST) or start
    return often * images, often * images * high / low


def _doublings(enough: Callable[[float], bool]) -> float:
    """The least number that is enough, to a factor of two; infinite if none is up to the most."""
    powers = [2.0**k for k in range(-3, math.ceil(math.log2(MOST)) + 1)]
    at = bisect_left(powers, True, key=enough)
    return powers[at] / math.sqrt(2) if at < len(powers) else math.inf


def _planned(how: Plan, times: float) -> Plan:
    """The plan at so many times the images."""
    root = math.sqrt(times)
    return Plan(
        tuple(replace(c, size=c.size * root) for c in how.contrasts),
        replace(how.widest, size=how.widest.size * root),
        how.spent,
    )


def _as_expected(table: Table, how: Plan, question: Question, times: float) -> bool:
    """Whether exactly the observed proportions pass, at so many times the images."""
    return passes(table * times, _planned(how, times), question)


def _often(table: Table, how: Plan, question: Question, draws: int, times: float) -> bool:
    """Whether samples from the observed proportions mostly pass, at so many times the images."""
    images = float(table.sum())
    share = (table / images).ravel()
    rng = np.random.default_rng(0)  # the same draws, so that more images rarely pass less often
    allowed, stretched = draws - math.ceil(CHANCE * draws), _planned(how, times)
    for _ in range(draws):
        sample = rng.multinomial(math.ceil(times * images), share).reshape(table.shape)
        allowed -= not passes(sample, stretched, question)
        if allowed < 0:
            return False
    return True


def least(enough: Callable[[float], bool], low: float, most: float) -> float | None:
    """The least number from ``low`` on that is enough, to :data:`STEP`; None beyond most."""
    high = low
    while not enough(high):
        low, high = high, high * 2
        if high > most:
            return None
    while high / low > 1 + STEP:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _float(side: Table) -> Table:
    """Counts of a rate's 0 and 1 in the float model's predictions, among -1, 0, 1."""
    return np.array([0, side[0].sum(), side[1].sum()], float)


def _answer(side: Table) -> Table:
    return np.array([0, side[:, 0].sum(), side[:, 1].sum()], float)


def _flips(side: Table) -> Table:
    """Counts of predictions that changed by -1, 0 and 1."""
    return np.array([side[1, 0], side[0, 0] + side[1, 1], side[0, 1]], float)


def _mean(counts: Table) -> float:
    return float(counts @ VALUES / counts.sum())


def _variance(counts: Table) -> float:
    """Variance of the average, one more flip assumed than was observed."""
    n = float(counts.sum())
    mean = _mean(counts)
    square = (float(counts @ VALUES**2) + 1) / (n + 1)
    return max(square - mean**2, 1 / (n + 1)) / n


def _size(x: Table, y: Table, scale: float, level: float) -> float:
    return stake((_variance(x) + _variance(y)) / scale, level)


def _normal(x: Table, y: Table, limit: float, size: float) -> float:
    if min(float(side.sum() - side.max()) for side in (x, y)) < ENOUGH:
        return 1.0
    z = (limit - (_mean(x) - _mean(y))) / math.sqrt(_variance(x) + _variance(y))
    return float(norm.sf(z))


EVIDENCE: dict[str, Callable[[Table, Table, float, float], float]] = {
    "betting": lambda x, y, limit, size: p_value_of_difference(x, y, limit, size=size),
    "normal": _normal,
}
