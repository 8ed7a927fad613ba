"""Verdicts: supported, contradicted or undecided, from the interval and the claim.

A claim is a region in which a quantity is said to lie. A verdict is the place of the interval:
inside the region, outside it, or across its edge. Nothing else is needed for "at least", "no more
than", "unchanged", "different", and "the published figure was right". Of many changes at once,
:func:`judge` says which are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

import pandas as pd

from fairq_utils.errors import BadInput
from fairq_utils.stats.significance import adjusted

LEVEL = 0.05  # of a family: the chance that any change of it is shown where there is none
JUDGED = ("change", "low", "high", "floor", "p_value")
Outcome = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Claim:
    """The region ``low`` to ``high``, or all that lies beyond it.

    Attributes
    ----------
    low, high : float
        Edges of the region; infinite where it has none.
    beyond : bool
        The claim is that the quantity lies outside of ``low`` ... ``high``.
    """

    low: float
    high: float
    beyond: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Claim: {self.low} to {self.high} is not a region")
        if self.low == -inf and self.high == inf:
            raise ValueError("Claim: a region without an edge says nothing")
        if self.low == self.high and not self.beyond:
            raise ValueError(
                f"Claim: no interval fits into the single value {self.low}; "
                "say how near counts as near, such as near(value, margin)"
            )

    @property
    def edges(self) -> tuple[float, float]:
        """``low`` and ``high``."""
        return self.low, self.high


def above(value: float) -> Claim:
    """More than ``value``, such as ``above(0)``: it increases."""
    return Claim(value, inf)


def below(value: float) -> Claim:
    """Less than ``value``."""
    return Claim(-inf, value)


def near(value: float, margin: float) -> Claim:
    """Within ``margin`` of ``value``: equivalence if ``value`` is 0, else a figure reproduced."""
    return Claim(value - margin, value + margin)


def between(low: float, high: float) -> Claim:
    """Between two values of a published range, such as "3 to 5 points better"."""
    return Claim(low, high)


def differs(margin: float = 0.0) -> Claim:
    """Not within ``margin`` of 0, on either side.

    With a margin of 0 it can be supported but never contradicted: no interval shows a change to be
    exactly nothing.
    """
    return Claim(0.0 - margin, margin, beyond=True)


@dataclass(frozen=True)
class Verdict:
    """An outcome and the sentence that says why."""

    outcome: Outcome
    why: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.why}"


def verdict(
    claim: Claim,
    estimate: float,
    low: float,
    high: float,
    *,
    confidence: float = 0.95,
    p_value: float | None = None,
    level: float = LEVEL,
    floor: float | None = None,
    what: str = "the change",
    scale: float = 100,
    unit: str = "points",
    digits: int = 1,
) -> Verdict:
    """Judge a claim by an estimate and its interval.

    Supported if the whole interval lies in the claim's region, contradicted if none of it does,
    undecided otherwise. For ``near(0, margin)`` with a 1 - 2a interval, the first is the TOST
    procedure at level a (Schuirmann 1987); with a 95 % interval the level is 2.5 %.

    Parameters
    ----------
    claim : Claim
        From :func:`above`, :func:`below`, :func:`near`, :func:`between` or :func:`differs`.
    estimate, low, high : float
        The quantity and its interval, fractions. NaN gives ``undecided``.
    confidence : float
        Of the interval.
    p_value : float, optional
        Two-sided p-value of the quantity against 0, corrected over the family that the claim
        belongs to. A verdict that rests on the quantity not being 0 then also needs ``p_value`` no
        larger than ``level``: an interval of one claim alone knows nothing of the others.
    floor : float, optional
        What chance alone makes of the quantity, from :mod:`fairq_utils.stats.floors`. A verdict
        that rests on the quantity not being 0 then also needs ``abs(estimate)`` above it.
    what, scale, unit, digits
        How the sentence names and prints the quantity.

    Returns
    -------
    Verdict

    Raises
    ------
    ValueError
        The interval is upside down, or a p-value, level or floor is out of range.

    Examples
    --------
    >>> print(verdict(near(0, 0.01), 0.002, -0.004, 0.007, what="the gap's change"))
    supported: the gap's change is 0.2 points (95 % interval -0.4 to 0.7), all within -1.0 to 1.0.
    >>> print(verdict(above(0), 0.012, -0.004, 0.03, what="it"))
    undecided: it is 1.2 points (95 % interval -0.4 to 3.0), partly above 0.0 and partly not.
    >>> verdict(above(0), 0.012, 0.001, 0.03, p_value=0.08).outcome
    'undecided'
    """
    if low > high:
        raise ValueError(f"low, high: {low} to {high} is not an interval")
    if p_value is not None and not 0 <= p_value <= 1:
        raise ValueError(f"p_value: {p_value} is not between 0 and 1")
    if not 0 < confidence < 1 or not 0 < level < 1:
        raise ValueError(f"confidence, level: {confidence}, {level} must lie between 0 and 1")
    if floor is not None and not floor >= 0:
        raise ValueError(f"floor: {floor} is not a number from 0 up")
    if not all(map(isfinite, (estimate, low, high))):
        return Verdict("undecided", f"{what} is not defined on these images.")

    def show(value: float) -> str:
        return f"{value * scale:z.{digits}f}"

    region = _region(claim, show)
    stated = (
        f"{what} is {show(estimate)} {unit} ({100 * confidence:g} % interval "
        f"{show(low)} to {show(high)})"
    )
    zone = _zone(claim, low, high)
    if zone is None:
        return Verdict("undecided", f"{stated}, partly {region} and partly not.")
    outcome: Outcome = "supported" if (zone == claim.edges) != claim.beyond else "contradicted"
    placed = f"{stated}, {'all' if outcome == 'supported' else 'none of it'} {region}"
    # Where the zone reaches over 0, a quantity of 0 would be judged the same: no test against 0.
    if not zone[0] < 0 < zone[1]:
        if p_value is not None and p_value > level:
            return Verdict(
                "undecided",
                f"{placed}, but p = {p_value:.3f} corrected for its family is above {level:g}.",
            )
        if floor is not None and abs(estimate) <= floor:
            return Verdict("undecided", f"{placed}, but chance alone makes up to {show(floor)}.")
    return Verdict(outcome, f"{placed}.")


def together(verdicts: Mapping[str, Verdict]) -> Verdict:
    """One verdict on a hypothesis of several parts: all must hold.

    Contradicted if any part is, supported if all are, undecided otherwise.

    Examples
    --------
    >>> parts = {"at W8A8": Verdict("supported", "..."), "at W4A4": Verdict("undecided", "...")}
    >>> print(together(parts))
    undecided: supported: at W8A8; undecided: at W4A4.
    """
    if not verdicts:
        raise ValueError("verdicts is empty")
    order: tuple[Outcome, ...] = ("contradicted", "undecided", "supported")
    outcomes = {name: v.outcome for name, v in verdicts.items()}
    overall = next(o for o in order if o in outcomes.values())
    said = [
        f"{o}: {', '.join(n for n, found in outcomes.items() if found == o)}"
        for o in reversed(order)
        if o in outcomes.values()
    ]
    return Verdict(overall, "; ".join(said) + ".")


def judge(
    frame: pd.DataFrame,
    *,
    margin: float | None = None,
    replicates: int | None = None,
    level: float = LEVEL,
) -> pd.DataFrame:
    """Judge a family of changes: which are shown, and which are shown to be none.

    A change is *shown* where its interval excludes 0, it lies beyond its noise floor, and its
    p-value, corrected for all rows of the family, is no larger than ``level``. The correction is
    Holm's (1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6(2)), valid however the rows depend on each other.

    Parameters
    ----------
    frame : DataFrame, a row per change
        ``change``, ``low``, ``high`` (its interval), ``floor`` (what chance alone makes of it) and
        ``p_value``, two-sided against 0. The family is all rows: leave none out that one looks at.
        What is not defined (NaN) is not shown, and counts in the correction. ``bound``, where it
        is there, is how far from 0 the change can be: of a largest-minus-smallest gap the furthest
        end of the intervals of all pairs of groups (:meth:`fairq_utils.metrics.Criterion.parts`),
        since its own interval hides changes where groups are nearly equal.
    margin : float, optional
        How near 0 counts as none, fraction.
    replicates : int, optional
        Of the resampling test that the p-values come from. None of them is then below
        ``1 / (replicates + 1)`` (Phipson and Smyth 2010, "Permutation p-values should never be
        zero").
    level : float

    Returns
    -------
    DataFrame
        The rows with ``p_adjusted`` and ``shown``; with a ``margin`` also ``equivalent``: the whole
        interval, or ``bound``, lies within it (TOST, see :func:`verdict`; each row by itself).

    Raises
    ------
    BadInput
        A column that is not there, or so many rows at so few replicates that Holm's correction
        could show none.

    Examples
    --------
    >>> rows = pd.DataFrame({"change": [0.02, 0.02], "low": 0.01, "high": 0.03, "floor": 0.005})
    >>> judge(rows.assign(p_value=[0.001, 0.2])).shown.tolist()
    [True, False]
    """
    if replicates is not None and len(frame) / (replicates + 1) >= level:
        raise BadInput(
            f"replicates: {len(frame)} comparisons are corrected for their number, and with "
            f"{replicates} replicates none could be shown; ask for at least "
            f"{2 * len(frame) / level:.0f} (analysis.replicates of a params file)"
        )
    missing = [name for name in JUDGED if name not in getattr(frame, "columns", ())]
    if missing:
        raise BadInput(f"frame: has no column {missing[0]}; it needs {', '.join(JUDGED)}")
    p_values = frame.p_value.fillna(1.0).tolist()
    named = {str(place): p for place, p in enumerate(p_values)}
    holm = adjusted(named).holm.tolist() if named else []
    floors = frame.floor.fillna(inf)
    rows = list(zip(frame.change, frame.low, frame.high, floors, holm, strict=True))
    shown = [
        verdict(differs(), *interval, p_value=p, level=level, floor=floor).outcome == "supported"
        for *interval, floor, p in rows
    ]
    found = frame.assign(p_adjusted=holm, shown=pd.Series(shown, frame.index, dtype=bool))
    if margin is None:
        return found
    none = [verdict(near(0, margin), *interval).outcome == "supported" for *interval, _, _ in rows]
    if "bound" in frame:
        none = [within and bound < margin for within, bound in zip(none, frame.bound, strict=True)]
    return found.assign(equivalent=pd.Series(none, frame.index, dtype=bool))


def _zone(claim: Claim, low: float, high: float) -> tuple[float, float] | None:
    """Part of the line that holds the whole interval: below, between or above the claim's edges.

    An edge belongs to what the claim excludes.
    """
    if claim.beyond:
        within = claim.low <= low and high <= claim.high
        under, over = high < claim.low, low > claim.high
    else:
        within = claim.low < low and high < claim.high
        under, over = high <= claim.low, low >= claim.high
    if within:
        return claim.edges
    if under:
        return -inf, claim.low
    return (claim.high, inf) if over else None


def _region(claim: Claim, show: Callable[[float], str]) -> str:
    if claim.beyond:
        if claim.low == claim.high:
            return f"different from {show(claim.low)}"
        return f"beyond {show(claim.low)} to {show(claim.high)}"
    if claim.high == inf:
        return f"above {show(claim.low)}"
    if claim.low == -inf:
        return f"below {show(claim.high)}"
    return f"within {show(claim.low)} to {show(claim.high)}"
