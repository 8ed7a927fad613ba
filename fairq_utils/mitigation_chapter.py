"""What the chapter on mitigation computes and glues, beyond what chapters share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from fairq_utils import dial_effects, effects, models, stats, study
from fairq_utils.chapters import POINT, Chapter, glue, of
from fairq_utils.dials import LABELS as DIALS
from fairq_utils.dials import worlds
from fairq_utils.faults import BadInput
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.mitigation.clipping import clipped
from fairq_utils.mitigation.methods import RANGES
from fairq_utils.mitigation.ranges import observe_groups
from fairq_utils.mitigation.sample import Sample, sample
from fairq_utils.mitigation_display import STATISTICS, called
from fairq_utils.models import DISPLAY_NAMES
from fairq_utils.people import described
from fairq_utils.planning import FAIR_BY
from fairq_utils.quantizers import QuantSpec
from fairq_utils.quantizers.methods import CONTROL
from fairq_utils.recorded import Recorded
from fairq_utils.run_models import trained
from fairq_utils.tables import width

PARITY = "demographic_parity_difference"
CONTROLS = (CONTROL, "qat", "layers_random", "channels_random")
LEVEL = 0.95  # of the intervals that are judged
FAR = 0.5  # a mitigation removes a cause if it takes away more than this share of the harm


def against_plain(chapter: Chapter) -> pd.DataFrame:
    """:func:`fairq_utils.effects.against_plain` of this study."""
    return chapter.measured("plain", effects.against_plain)


def calibration_sample(chapter: Chapter) -> Sample:
    """The calibration pool with its groups."""
    pool = chapter.faces().subset("calibration")
    attributes = list(chapter.params.analysis.attributes)
    return sample(models.Normalized(pool.images), pool.target, pool.groups[attributes])


def specimen(chapter: Chapter) -> tuple[str, str]:
    """Architecture and key of the FP32 model whose ranges are shown: the smallest of the study."""
    records = [record for record in chapter.runs if record.run.method == "fp32"]
    smallest = min(records, key=lambda record: record.size_bytes)
    return smallest.run.architecture, smallest.run.key


def clipping(chapter: Chapter, bits: str) -> pd.DataFrame:
    """:func:`fairq_utils.mitigation.clipping.clipped` of one model on the calibration pool."""
    architecture, key = specimen(chapter)
    recipe = {
        "model": key,
        "bits": bits,
        "people": described(chapter.params, ("calibration",)),
        "attributes": chapter.params.analysis.attributes,
        "code": code_version((*FAIR_BY, "fairq_utils.mitigation.clipping")),
    }

    def compute() -> pd.DataFrame:
        model = trained(chapter.params, architecture, key)
        seen = observe_groups(model, calibration_sample(chapter), [RANGES, "percentile"])
        spec = QuantSpec.parse(bits, weight_range=RANGES, activation_range=RANGES)
        return clipped(seen, spec)

    return chapter.kept(f"clipping-{fingerprint(recipe)}", compute)


def glue_clipping(chapter: Chapter, frame: pd.DataFrame, bits: str) -> None:
    """Glue how far groups differ in what is clipped, and in the error that is left."""
    glue("clipped_model", DISPLAY_NAMES[specimen(chapter)[0]])
    by_layer = frame.groupby("layer")
    apart = 100 * by_layer.clipped.agg(np.ptp)
    ratio = by_layer.error.max() / by_layer.error.min()
    glue("clipped_bits", bits)
    glue("clipped_apart", apart.max())
    glue("clipped_median", apart.median())
    glue("error_ratio", ratio.max())
    glue("error_median", ratio.median())


def dial_harms(chapter: Chapter) -> pd.DataFrame:
    """:func:`fairq_utils.dial_effects.harms` of this study; its runs are computed if missing."""
    study.execute(chapter.params)
    found = worlds(chapter.params)
    recipe = {
        "keys": [
            record.run.key
            for world in found
            for record in effects.records(chapter.store, world.params)
        ],
        "analysis": chapter.params.analysis.model_dump(mode="json"),
        "seed": chapter.params.data.seed,
        "code": code_version((*effects.MEASURED_BY, *dial_effects.MEASURED_BY)),
    }
    return chapter.kept(
        f"dials-{fingerprint(recipe)}",
        lambda: dial_effects.harms(found, chapter.store, chapter.params),
    )


def judged(rows: pd.DataFrame, replicates: int) -> pd.DataFrame:
    """Rows with their p-values corrected over all of them, and whether a change is shown.

    Raises
    ------
    BadInput
        So many rows at so few replicates that nothing could be shown.
    """
    rows = rows.reset_index(drop=True)
    if len(rows) / (replicates + 1) >= 1 - LEVEL:
        raise BadInput(
            f"analysis.replicates: {len(rows)} comparisons are corrected for their number, and "
            f"with {replicates} replicates none could be shown; ask for at least "
            f"{2 * len(rows) / (1 - LEVEL):.0f}"
        )
    p = {str(i): value for i, value in enumerate(rows.p_value.fillna(1.0))}
    adjusted = stats.adjusted(p).holm.to_numpy()
    shown = [
        stats.verdict(
            stats.differs(), row.change, row.low, row.high, p_value=value, floor=row.floor
        ).outcome
        == "supported"
        for row, value in zip(rows.itertuples(), adjusted, strict=True)
    ]
    return rows.assign(p_adjusted=adjusted, shown=shown)


def glue_methods(frame: pd.DataFrame, scope: str, prefix: str, replicates: int) -> None:
    """Glue what was shown of all methods, and what balance does at the most bits.

    Parameters
    ----------
    frame : of :func:`fairq_utils.effects.against_plain`
    prefix : of the glued names
    replicates : of the exchange test that the frame's p-values come from
    """
    for name in STATISTICS:
        if frame.empty:
            for count in ("compared", "better", "worse"):
                glue(f"{prefix}_{name.removesuffix('_difference')}_{count}", 0)
            continue
        rows = judged(of(frame, name, scope), replicates)
        better = -1 if name.endswith("difference") else 1
        short = name.removesuffix("_difference")
        glue(f"{prefix}_{short}_compared", len(rows))
        helps = rows.shown & (better * rows.change > 0)
        glue(f"{prefix}_{short}_better", int(helps.sum()))
        glue(f"{prefix}_{short}_worse", int((rows.shown & (better * rows.change < 0)).sum()))
        glue(f"{prefix}_{short}_controls", int((helps & rows.method.isin(CONTROLS)).sum()))
    if frame.empty:
        return
    rows = judged(of(frame, PARITY, scope), replicates)
    glue(f"{prefix}_seeds", int(rows.seeds.min()))
    glue(f"{prefix}_models", rows.architecture.nunique())
    balanced = rows[rows.sampler == "group_balanced"]
    for bits in sorted(set(balanced.bits)):
        part = balanced[balanced.bits == bits]
        glue(f"{prefix}_balanced_{bits}", part.change.mean() / POINT)
        glue(f"{prefix}_balanced_{bits}_floor", part.floor.max() / POINT)
        inside = (part.change.abs() <= part.floor).sum()
        glue(f"{prefix}_balanced_{bits}_inside", int(inside))
        glue(f"{prefix}_balanced_{bits}_models", len(part))
        glue(f"{prefix}_balanced_{bits}_says", _balance(part))
    harm = rows.drop_duplicates(["architecture", "bits"])
    for bits in sorted(set(harm.bits)):
        values = harm[harm.bits == bits].harm_plain / POINT
        cases = zip(harm[harm.bits == bits].architecture, values, strict=True)
        text = ", ".join(f"{value:+.1f} ({DISPLAY_NAMES[name]})" for name, value in cases)
        glue(f"{prefix}_plain_{bits}", text)


def shown_changes(frame: pd.DataFrame, scope: str, replicates: int) -> pd.DataFrame:
    """Rows of all statistics in which a change is shown; ``control``: that of no method proper."""
    parts = [judged(of(frame, name, scope), replicates) for name in STATISTICS]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[rows.shown].reset_index(drop=True)
    return rows.assign(control=rows.method.isin(CONTROLS))


def _balance(rows: pd.DataFrame) -> str:
    """What balanced calibration gives, in words."""
    helps = (rows.shown & (rows.change < 0)).sum()
    hurts = (rows.shown & (rows.change > 0)).sum()
    if helps and not hurts:
        return f"narrows the gap on {helps} of {len(rows)} networks"
    if hurts and not helps:
        return f"widens the gap on {hurts} of {len(rows)} networks"
    if helps and hurts:
        return f"narrows the gap on {helps} and widens it on {hurts} of {len(rows)} networks"
    return "gives nothing that could be told from chance"


def dial_verdicts(frame: pd.DataFrame, statistic: str = "behind") -> pd.DataFrame:
    """Which dial makes quantization unequal, and which mitigation takes that away again.

    The harm of a dial is what plain quantization adds to the group's disadvantage at its last
    level, beyond what it adds in the even world. The two worlds are different people, so their
    variances add: the half-width of the difference is the root of the summed squares, likewise its
    floor. It is shown if zero is outside the interval, it is beyond the floor, and so says a normal
    p-value corrected over all dials, bits and architectures (Holm); either sign counts.

    Returns
    -------
    DataFrame
        ``dial``, ``level``, ``architecture``, ``bits``, ``reference`` (the group's disadvantage
        under FP32), ``change``, ``low``, ``high``, ``floor``, ``even`` (the change where no dial is
        turned), ``added`` (change less even), ``added_half`` (half-width), ``shown``, and
        ``removed``: mitigations that take away more than :data:`FAR` of what a shown dial adds,
        either way, and whose own effect is beyond its floor.
    """
    if frame.empty:
        return frame
    rows = frame[frame.statistic == statistic]
    key = ["architecture", "bits"]
    even = rows[(rows.dial == "") & (rows.line == dial_effects.PLAIN)].set_index(key)
    last = rows[rows.dial != ""].groupby(["dial", *key, "line"], sort=False).tail(1)
    plain = _beyond(last[last.line == dial_effects.PLAIN].reset_index(drop=True), even)
    removed = []
    for row in plain.itertuples():
        others = last[
            (last.dial == row.dial)
            & (last.architecture == row.architecture)
            & (last.bits == row.bits)
            & (last.line != dial_effects.PLAIN)
        ]
        helps = others[
            (others.mended.abs() > others.mended_floor)
            & ((row.added + others.mended).abs() < (1 - FAR) * abs(row.added))
        ]
        removed.append(", ".join(helps.line) if row.shown else "")
    return plain.assign(removed=removed)


def _beyond(plain: pd.DataFrame, even: pd.DataFrame) -> pd.DataFrame:
    """Changes less those of the even world, and whether the difference is shown."""
    there = even.loc[list(zip(plain.architecture, plain.bits, strict=True))].reset_index(drop=True)
    added = plain.change - there.change
    half = np.hypot(plain.high - plain.low, there.high - there.low) / 2
    floor = np.hypot(plain.floor, there.floor)
    # Where no answer flips in either world there is no width, and no difference.
    z = np.where(half > 0, added / half.where(half > 0, 1) * norm.ppf(0.5 + LEVEL / 2), 0.0)
    p = {str(i): float(value) for i, value in enumerate(2 * norm.sf(np.abs(z)))}
    adjusted = stats.adjusted(p).holm.to_numpy()
    shown = (added.abs() > half) & (added.abs() > floor) & (adjusted < 1 - LEVEL)
    return plain.assign(even=there.change, added=added, added_half=half, shown=shown)


def glue_dials(verdicts: pd.DataFrame, prefix: str) -> None:
    """Glue which dials were shown to make a disparity, what removed it, how far intervals go."""
    if verdicts.empty:
        for name in ("dials", "dials_shown", "dials_reach_most", "dials_reach_fewest"):
            glue(f"{prefix}_{name}", 0)
        for name in ("dials_which", "dials_removed"):
            glue(f"{prefix}_{name}", "none")
        return
    glue(f"{prefix}_dials", len(verdicts))
    glue(f"{prefix}_dials_shown", int(verdicts.shown.sum()))
    shown = verdicts[verdicts.shown]
    reach = (verdicts.added.abs() + verdicts.added_half).groupby(verdicts.bits).max() / POINT
    for name, bits in (("most", max), ("fewest", min)):
        glue(f"{prefix}_dials_reach_{name}", reach[bits(reach.index, key=width)])
    cases = [
        f"{DIALS[row.dial]} at {row.level:g} ({DISPLAY_NAMES[row.architecture]}, {row.bits}, "
        f"{row.added / POINT:+.1f} points)"
        for row in shown.itertuples()
    ]
    glue(f"{prefix}_dials_which", "; ".join(cases) or "none")
    mended = [
        f"{DIALS[row.dial]} ({DISPLAY_NAMES[row.architecture]}, {row.bits}): "
        + ", ".join(called(line) for line in row.removed.split(", "))
        for row in shown.itertuples()
        if row.removed
    ]
    glue(f"{prefix}_dials_removed", "; ".join(mended) or "none")


def glue_dial_study(found: Recorded) -> None:
    """Glue whose dials were turned in a recorded study, and how large its worlds are."""
    about = found.about["params"]["dials"]
    glue("dialled", about["group"])
    glue("dial_seeds", len(about["seeds"]))
    glue("dial_train", about["train"])
    glue("dial_test", about["test"])
    glue("far", FAR)


def glue_certificates(found: dict[str, Any]) -> pd.DataFrame:
    """Glue what the simulation of certificates found; returns its cells."""
    cells = pd.DataFrame(found["cells"])
    for column in ("harm", "wrong", "certified"):
        cells[column] = pd.to_numeric(cells[column])
    glue("certificate_draws", found["draws"])
    glue("certificate_delta", 100 * found["delta"])
    glue("certificate_limit", found["limit"] / POINT)
    glue("certificate_wrong_most", 100 * found["wrong_most"])
    glue("certificate_most", f"{int(cells.images.max()):,}")
    glue("certificate_candidates", int(cells.candidates.max()))
    glue("certificate_flips", 100 * found["needed_flips"])
    glue("certificate_chance", 100 * found["chance"])
    glue("certificate_needed", found["needed"]["betting"])
    glue("certificate_price", found["needed"]["betting"] / found["needed"]["normal"])
    return cells


def fewest_bits(chapter: Chapter) -> str:
    """The fewest bits at which methods are compared."""
    return min(chapter.params.mitigation.bits, key=width)
