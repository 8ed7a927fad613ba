"""What the chapter on mitigation computes and glues, beyond what chapters share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from fairq_utils import dial_effects, effects, models, stats, study
from fairq_utils.chapters import POINT, Chapter, glue, of
from fairq_utils.dials import LABELS as DIALS
from fairq_utils.dials import worlds
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.mitigation.certificate import EVIDENCE, Question
from fairq_utils.mitigation.clipping import clipped
from fairq_utils.mitigation.methods import RANGES
from fairq_utils.mitigation.ranges import observe_groups
from fairq_utils.mitigation.sample import Sample, sample
from fairq_utils.mitigation.simulation import needed
from fairq_utils.mitigation_display import STATISTICS, called, names
from fairq_utils.models import DISPLAY_NAMES
from fairq_utils.planning import FAIR_BY
from fairq_utils.quantizers import QuantSpec
from fairq_utils.runs import trained
from fairq_utils.tables import width

PARITY = "demographic_parity_difference"
FAR = 0.5  # a mitigation removes a cause if it takes away more than this share of the harm


def against_plain(chapter: Chapter) -> pd.DataFrame:
    """:func:`fairq_utils.effects.against_plain` of this study."""
    return chapter.measured("plain", effects.against_plain)


def calibration_sample(chapter: Chapter) -> Sample:
    """The calibration pool with its groups."""
    pool = chapter.faces().subset("calibration")
    attributes = list(chapter.params.analysis.attributes)
    return sample(models.normalize(pool.images), pool.target, pool.groups[attributes])


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
        "images": chapter.params.data.calibration,
        "attributes": chapter.params.analysis.attributes,
        "code": code_version((*FAIR_BY, "fairq_utils.mitigation.clipping")),
    }

    def compute() -> pd.DataFrame:
        model = trained(chapter.params, architecture, key)
        seen = observe_groups(model, calibration_sample(chapter), [RANGES, "percentile"])
        spec = QuantSpec.parse(bits, weight_range=RANGES, activation_range=RANGES)
        return clipped(seen, spec)

    return chapter.kept(f"clipping-{fingerprint(recipe)}", compute)


def glue_clipping(frame: pd.DataFrame, bits: str) -> None:
    """Glue how far groups differ in what is clipped, and in the error that is left."""
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


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with their p-values corrected over all of them, and whether a change is shown."""
    rows = rows.reset_index(drop=True)
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


def glue_methods(frame: pd.DataFrame, scope: str, prefix: str, margin: float) -> None:
    """Glue what was shown of all methods, and what balance does at the most bits.

    Parameters
    ----------
    frame : of :func:`fairq_utils.effects.against_plain`
    prefix : of the glued names
    margin : within which a change counts as none
    """
    for name in STATISTICS:
        if frame.empty:
            for count in ("compared", "better", "worse"):
                glue(f"{prefix}_{name.removesuffix('_difference')}_{count}", 0)
            continue
        rows = judged(of(frame, name, scope))
        better = -1 if name.endswith("difference") else 1
        short = name.removesuffix("_difference")
        glue(f"{prefix}_{short}_compared", len(rows))
        glue(f"{prefix}_{short}_better", int((rows.shown & (better * rows.change > 0)).sum()))
        glue(f"{prefix}_{short}_worse", int((rows.shown & (better * rows.change < 0)).sum()))
        glue(f"{prefix}_{short}_which", _which(rows[rows.shown & (better * rows.change > 0)]))
        glue(f"{prefix}_{short}_hurt", _which(rows[rows.shown & (better * rows.change < 0)]))
    if frame.empty:
        return
    rows = of(frame, PARITY, scope)
    glue(f"{prefix}_seeds", int(rows.seeds.max()))
    glue(f"{prefix}_none", int(((rows.low > -margin) & (rows.high < margin)).sum()))
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
        glue(f"{prefix}_plain_{bits}", ", ".join(f"{value:+.1f}" for value in values))


def _which(rows: pd.DataFrame) -> str:
    """Methods in words."""
    if rows.empty:
        return "none"
    family, label = names(rows)
    cases = [
        f"{f}: {name} ({DISPLAY_NAMES[row.architecture]}, {row.bits}, {row.change / POINT:+.1f})"
        for f, name, row in zip(family, label, rows.itertuples(), strict=True)
    ]
    return "; ".join(cases)


def _balance(rows: pd.DataFrame) -> str:
    """What balanced calibration gives, in words."""
    helps = ((rows.high < 0) & (rows.change.abs() > rows.floor)).sum()
    hurts = ((rows.low > 0) & (rows.change.abs() > rows.floor)).sum()
    if helps and not hurts:
        return f"narrows the gap on {helps} of {len(rows)} networks"
    if hurts and not helps:
        return f"widens the gap on {hurts} of {len(rows)} networks"
    if helps and hurts:
        return f"narrows the gap on {helps} and widens it on {hurts} of {len(rows)} networks"
    return "gives nothing that could be told from chance"


def dial_verdicts(frame: pd.DataFrame, statistic: str = "behind") -> pd.DataFrame:
    """Which dial makes quantization unequal, and which mitigation takes that away again.

    The harm of a dial is what plain quantization adds to the group's disadvantage, at its last
    level. It is shown if its interval excludes zero and it is beyond its floor; p-values are
    corrected over all dials, bits and architectures.

    Returns
    -------
    DataFrame
        ``dial``, ``level``, ``architecture``, ``bits``, ``reference`` (the group's disadvantage
        under FP32), ``change``, ``low``, ``high``, ``floor``, ``shown``, ``even`` (the change where
        no dial is turned), and ``removed``: mitigations that take away more than half of a shown
        harm, beyond their own floor.
    """
    if frame.empty:
        return frame
    rows = frame[frame.statistic == statistic]
    key = ["architecture", "bits"]
    even = rows[(rows.dial == "") & (rows.line == dial_effects.PLAIN)].set_index(key).change
    last = rows[rows.dial != ""].groupby(["dial", *key, "line"], sort=False).tail(1)
    plain = judged(last[last.line == dial_effects.PLAIN])
    removed = []
    for row in plain.itertuples():
        others = last[
            (last.dial == row.dial)
            & (last.architecture == row.architecture)
            & (last.bits == row.bits)
            & (last.line != dial_effects.PLAIN)
        ]
        helps = others[
            (np.sign(others.mended) == -np.sign(row.change))
            & (others.mended.abs() > others.mended_floor)
            & (others.mended.abs() > FAR * abs(row.change))
        ]
        removed.append(", ".join(helps.line) if row.shown else "")
    return plain.assign(
        even=[even.get((r.architecture, r.bits), np.nan) for r in plain.itertuples()],
        removed=removed,
    )


def glue_dials(verdicts: pd.DataFrame, prefix: str) -> None:
    """Glue which dials were shown to make a disparity, and what removed it."""
    if verdicts.empty:
        for name in ("dials", "dials_shown"):
            glue(f"{prefix}_{name}", 0)
        for name in ("dials_which", "dials_removed"):
            glue(f"{prefix}_{name}", "none")
        return
    glue(f"{prefix}_dials", len(verdicts))
    glue(f"{prefix}_dials_shown", int(verdicts.shown.sum()))
    shown = verdicts[verdicts.shown]
    cases = [
        f"{DIALS[row.dial]} at {row.level:g} ({DISPLAY_NAMES[row.architecture]}, {row.bits}, "
        f"{row.change / POINT:+.1f} points)"
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


def glue_certificates(found: dict[str, Any]) -> pd.DataFrame:
    """Glue what the simulation of certificates found; returns its cells."""
    cells = pd.DataFrame(found["cells"])
    for column in ("harm", "wrong", "certified"):
        cells[column] = pd.to_numeric(cells[column])
    glue("certificate_draws", found["draws"])
    glue("certificate_delta", 100 * found["delta"])
    glue("certificate_limit", found["limit"] / POINT)
    glue("certificate_wrong_most", 100 * found["wrong_most"])
    glue("certificate_candidates", int(cells.candidates.max()))
    flips = float(cells.flips.min())
    asked = Question(found["metric"], found["limit"], found["delta"])
    by_bets, by_z = (
        needed(flips, replace(asked, evidence=name))  # type: ignore[arg-type]
        for name in EVIDENCE
    )
    if by_bets is None or by_z is None:
        raise ValueError(f"certificate: no number of images certifies {flips:.0%} flips")
    glue("certificate_flips", 100 * flips)
    glue("certificate_needed", by_bets)
    glue("certificate_price", by_bets / by_z)
    return cells


def fewest_bits(chapter: Chapter) -> str:
    """The fewest bits at which methods are compared."""
    return min(chapter.params.mitigation.bits, key=width)
