r"""Several candidates tested for harm in a fixed sequence, with one chance of being wrong for all.

Several candidates are tested in a fixed sequence (Angelopoulos et al. 2021, "Learn then Test",
section 2), the one that looked safest first. A plain sequence ends at the first that fails, and an
order that a thousand images suggest is often wrong. So each candidate has a part of :math:`\delta`
of its own, half of it for the first and half of what is left for each next one, and one that is
certified passes its level on: the fallback procedure (Wiens 2003, "A fixed sequence Bonferroni
procedure for testing multiple endpoints"), which keeps the family-wise error rate at
:math:`\delta`. The order may be learnt from anything but these images (Laufer-Goldshtein et al.
2023, "Efficiently controlling multiple risks with Pareto testing").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fairq_utils.mitigation.certificate import (
    Question,
    Table,
    bound,
    harm,
    images_needed,
    p_value,
    passes,
    plan,
)


@dataclass(frozen=True)
class Trial:
    """What became of one candidate.

    Attributes
    ----------
    name : str
    size_bytes : int
    harm, bound : float
        Observed on the held-out images; and its upper bound at confidence 1 - ``level``, for this
        candidate alone. What holds of all that are certified together is the limit.
    p_value, level : float
        It is certified if the first is at most the second, which is the part of delta that its
        place in the sequence gives it.
    outcome : ``certified`` or ``not certified``
    images_needed : int or None
        See :func:`images_needed`; None also where it is certified.
    seconds : float
        What making it took.
    """

    name: str
    size_bytes: int
    harm: float
    bound: float
    p_value: float
    level: float
    outcome: str
    images_needed: int | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A quantized model's answers, for :func:`in_sequence`.

    Attributes
    ----------
    learnt, held_out : (G, 2, 2, 2)
        Counts on the images that order and stakes are learnt from, and on those for the test.
    size_bytes : int
    seconds : float
    """

    learnt: Table
    held_out: Table
    size_bytes: int = 0
    seconds: float = 0.0


def in_sequence(
    candidates: Mapping[str, Candidate], question: Question, *, describe: bool = True
) -> list[Trial]:
    """Test candidates, the one that looked safest first; each at its part of delta.

    Parameters
    ----------
    candidates : mapping of name to :class:`Candidate`, cheapest first
        Of equally safe ones the cheaper is tested first.
    describe : bool
        Whether bounds and numbers of images are found, which takes a second or two.

    Returns
    -------
    list of Trial, in the order of the test
        With a probability of at least 1 - delta none of those certified does more harm than
        ``question.limit``.
    """
    expected: dict[str, float] = {}
    for name, candidate in candidates.items():
        images = int(candidate.held_out.sum())
        scaled = candidate.learnt * (images / candidate.learnt.sum())
        how = plan(candidate.learnt, images, question)
        expected[name] = p_value(scaled, how, question)
    order = sorted(candidates, key=lambda name: (expected[name], list(candidates).index(name)))
    trials, passed_on = [], 0.0
    for name, part in zip(order, parts(len(order)), strict=True):
        candidate = candidates[name]
        own = part * question.delta
        table = candidate.held_out
        # Planned at the level it has in any case: a p-value must not depend on what came before.
        how = plan(candidate.learnt, int(table.sum()), replace(question, delta=own))
        asked = replace(question, delta=own + passed_on)
        passed = passes(table, how, asked)
        passed_on = asked.delta if passed else 0.0
        trials.append(
            Trial(
                name,
                candidate.size_bytes,
                harm(table, asked),
                bound(table, how, asked) if describe else math.nan,
                p_value(table, how, asked) if describe else math.nan,
                asked.delta,
                "certified" if passed else "not certified",
                images_needed(table, how, asked) if describe and not passed else None,
                candidate.seconds,
            )
        )
    return trials


def parts(count: int) -> list[float]:
    """Shares of delta: a half, a quarter ..., the last as much as the one before; they sum to 1.

    Examples
    --------
    >>> parts(1), parts(4)
    ([1.0], [0.5, 0.25, 0.125, 0.125])
    """
    return [2.0 ** -min(place, count - 1) for place in range(1, count + 1)]
