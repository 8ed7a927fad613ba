"""Dials in the chapter on mitigation: what a group's share, light or ambiguity adds."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import t as student

from fairq_utils.data.questions import ATTRIBUTES
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.metrics.rates import rate
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.report.chapter import POINT, Chapter, glue
from fairq_utils.report.effects import paired_changes
from fairq_utils.report.figures import BELOW, finished
from fairq_utils.report.mitigation import family_and_label
from fairq_utils.report.rows import ODDS, PARITY, width
from fairq_utils.report.tables import floors, html_table, intervals, note, points, title
from fairq_utils.stats.paired import Statistic
from fairq_utils.stats.verdicts import LEVEL, judge
from fairq_utils.study import execution
from fairq_utils.study.dials import LABELS as DIALS
from fairq_utils.study.dials import attribute_of, worlds
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import baseline_of
from fairq_utils.study.recorded import Recorded
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.statistics import Pair, records
from fairq_utils.study.study import Study

PLAIN = "plain"
FAR = 0.5  # a mitigation removes a cause if it takes away more than this share of what it adds
UNTURNED = "This study names no models, so no dial was turned."


def dial_effects(chapter: Chapter) -> pd.DataFrame:
    """:func:`by_dial` of this study; its runs are computed if missing."""
    study = chapter.study
    execution.execute(study)
    recipe = {
        "keys": [
            record.run.key
            for world in worlds(chapter.params)
            for record in records(study.of(world.params))
        ],
        "analysis": chapter.params.analysis.model_dump(mode="json"),
        "seed": chapter.params.data.seed,
        "code": code_version("fairq_utils.report.dials"),
    }
    return chapter.kept(f"dials-{fingerprint(recipe)}", lambda: by_dial(study))


def by_dial(study: Study) -> pd.DataFrame:
    """Changes that quantization adds to the disadvantage of the dialled group, in every world.

    Returns
    -------
    DataFrame
        ``dial``, ``level``, ``architecture``, ``bits``, ``line`` (plain, or the mitigation), and of
        each of :func:`dial_statistics` as ``statistic``: ``reference`` (FP32), ``compared``,
        ``change`` with ``low`` and ``high``, ``floor`` and ``p_value``, as in
        :func:`fairq_utils.report.effects.by_configuration`; ``mended``, ``mended_low``,
        ``mended_high``: the mitigated model's statistic less the plainly quantized one's, on the
        same images (NaN of plain), and its ``mended_floor``.
    """
    params = study.params
    measured = dial_statistics(params)
    parts = []
    for world in worlds(params):
        attributes = list(world.params.analysis.attributes)
        lines = _by_line(records(study.of(world.params)))
        for (architecture, bits, line), members in lines.items():
            table = paired_changes(members, attributes, measured, params).assign(
                dial=world.dial,
                level=world.level,
                architecture=architecture,
                bits=bits,
                line=line,
            )
            mended = ["mended", "mended_low", "mended_high", "mended_floor"]
            table[mended] = np.nan
            pairs = _beside(lines.get((architecture, bits, PLAIN), []), members)
            if line != PLAIN and pairs:
                against = paired_changes(pairs, attributes, measured, params)
                table[mended] = against[["change", "low", "high", "floor"]].to_numpy()
            parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def dial_statistics(params: Params) -> dict[str, Statistic]:
    """Statistics of the dials: the gaps, and how far the group's accuracy is behind the others'."""
    attribute = attribute_of(params.dials)
    inside = ATTRIBUTES[attribute].index(params.dials.group)

    def behind(table: NDArray[Any]) -> NDArray[Any]:
        rates = rate(table, "accuracy")
        return rates[..., 1 - inside] - rates[..., inside]

    return {
        "behind": behind,
        PARITY: FAIRNESS[PARITY],
        ODDS: FAIRNESS[ODDS],
    }


def dial_verdicts(frame: pd.DataFrame, statistic: str = "behind") -> pd.DataFrame:
    """Judge which dial makes quantization unequal, and which mitigation takes that away again.

    A dial adds what plain quantization adds to the group's disadvantage at its last level, beyond
    what it adds in the even world. The two worlds are different people and different networks, so
    their variances add, with Welch's (1947) degrees of freedom; so do those of their floors. All
    dials, bits and architectures are one
    family of :func:`fairq_utils.stats.verdicts.judge`; either sign counts.

    Parameters
    ----------
    frame : of :func:`by_dial`
    statistic : of :func:`dial_statistics`

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
    even = rows[(rows.dial == "") & (rows.line == PLAIN)].set_index(key)
    last = rows[rows.dial != ""].groupby(["dial", *key, "line"], sort=False).tail(1)
    plain = _beyond(last[last.line == PLAIN].reset_index(drop=True), even)
    removed = []
    for row in plain.itertuples():
        others = last[
            (last.dial == row.dial)
            & (last.architecture == row.architecture)
            & (last.bits == row.bits)
            & (last.line != PLAIN)
        ]
        helps = others[
            (others.mended.abs() > others.mended_floor)
            & ((row.added + others.mended).abs() < (1 - FAR) * abs(row.added))
        ]
        removed.append(", ".join(helps.line) if row.shown else "")
    return plain.assign(removed=removed)


def dial_figure(frame: pd.DataFrame, statistic: str) -> Figure | HTML:
    """The group's disadvantage under quantization, over the level of each dial.

    Parameters
    ----------
    frame : of :func:`by_dial`
    """
    if frame.empty:
        return note(UNTURNED)
    rows = frame[frame.statistic == statistic]
    turned = [dial for dial in dict.fromkeys(rows.dial) if dial]
    bits = sorted(set(rows.bits), key=width, reverse=True)
    methods = list(dict.fromkeys(rows.line))
    models = list(dict.fromkeys(rows.architecture))
    colours = dict(zip(methods, sns.color_palette("tab10", len(methods)), strict=True))
    figure, axes = plt.subplots(
        len(models) * len(bits),
        len(turned),
        figsize=(0.8 + 1.75 * len(turned), 1.0 + 1.75 * len(models) * len(bits)),
        sharey="row",
        squeeze=False,
    )
    for at, (model, at_bits) in enumerate(product(models, bits)):
        for axis, dial in zip(axes[at], turned, strict=True):
            part = rows[(rows.architecture == model) & (rows.bits == at_bits)]
            part = part[part.dial.isin(["", dial])]
            levels = list(dict.fromkeys(part[part.dial == dial].level))
            axis.axhline(0, color="0.3", linewidth=1)
            for number, method in enumerate(methods):
                line = part[part.line == method]
                # The even world is where every dial begins.
                line = pd.concat([line[line.dial == ""], line[line.dial == dial]])
                x = np.arange(len(line)) + 0.1 * (number - (len(methods) - 1) / 2)
                error = np.stack([line.change - line.low, line.high - line.change]) * 100
                axis.errorbar(
                    x,
                    line.change * 100,
                    yerr=np.maximum(error, 0),
                    fmt="o-",
                    markersize=3,
                    linewidth=1,
                    color=colours[method],
                )
            axis.set_xticks(range(len(levels) + 1), ["even", *(f"{v:g}" for v in levels)])
            axis.tick_params(labelsize=8)
            if at == 0:
                axis.set_title(DIALS[dial], fontsize=9)
        axes[at, 0].set_ylabel(f"{title(model)}\n{at_bits}", fontsize=9)
    handles = [plt.Line2D([], [], color=colours[m], marker="o", markersize=4) for m in methods]
    figure.supylabel("what the group loses more than the others (points)", fontsize=9)
    figure.tight_layout()
    figure.legend(handles, [called(m) for m in methods], ncol=3, **BELOW)
    return finished(figure)


def dial_table(verdicts: pd.DataFrame) -> HTML:
    """Changes that quantization adds to the group's disadvantage at the last level of each dial.

    Parameters
    ----------
    verdicts : of :func:`dial_verdicts`
    """
    if verdicts.empty:
        return note(UNTURNED)
    return html_table(
        pd.DataFrame(
            {
                "dial": [DIALS[dial] for dial in verdicts.dial],
                "level": [f"{level:g}" for level in verdicts.level],
                "architecture": verdicts.architecture.map(title),
                "bits": verdicts.bits,
                "behind in FP32 (points)": points(verdicts.reference, "+.1f"),
                "added by quantization": intervals(verdicts, "change"),
                "noise floor": floors(verdicts.floor),
                "in the even world": points(verdicts.even, "+.1f"),
                "beyond it": [
                    f"{row.added * 100:+.1f} ± {row.added_half * 100:.1f}"
                    for row in verdicts.itertuples()
                ],
                "shown": ["yes" if value else "" for value in verdicts.shown],
                "taken away by": [
                    ", ".join(called(line) for line in row.split(", ") if line)
                    for row in verdicts.removed
                ],
            }
        )
    )


def called(line: str) -> str:
    """A mitigation of the dials in words."""
    if line == PLAIN:
        return "plain quantization"
    return ": ".join(family_and_label(line if line in METHODS else "ptq", line))


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
        f"{DIALS[row.dial]} at {row.level:g} ({title(row.architecture)}, {row.bits}, "
        f"{row.added / POINT:+.1f} points)"
        for row in shown.itertuples()
    ]
    glue(f"{prefix}_dials_which", "; ".join(cases) or "none")
    mended = [
        f"{DIALS[row.dial]} ({title(row.architecture)}, {row.bits}): "
        + ", ".join(called(line) for line in row.removed.split(", "))
        for row in shown.itertuples()
        if row.removed
    ]
    glue(f"{prefix}_dials_removed", "; ".join(mended) or "none")


def glue_dial_study(found: Recorded) -> None:
    """Glue the dialled group of a recorded study, and how large its worlds are."""
    about = found.about["params"]["dials"]
    glue("dialled", about["group"])
    glue("dial_seeds", len(about["seeds"]))
    glue("dial_train", about["train"])
    glue("dial_test", about["test"])
    glue("far", FAR)


def _line(record: RunRecord) -> str:
    run = record.run
    if run.method != "ptq":
        return run.method
    return PLAIN if run.sampler == "random" else str(run.sampler)


def _by_line(runs: list[RunRecord]) -> dict[tuple[str, str, str], list[Pair]]:
    """(architecture, bits, line) -> each run behind its FP32 model."""
    by_key = {record.run.key: record for record in runs}
    found: dict[tuple[str, str, str], list[Pair]] = {}
    for record in runs:
        base = by_key.get(baseline_of(record.run).key)
        if base is not None and record.run.bits is not None and record.run.sampler:
            key = (record.run.architecture, record.run.bits, _line(record))
            found.setdefault(key, []).append((base, record))
    return found


def _beside(plain: list[Pair], members: list[Pair]) -> list[Pair]:
    """Runs beside the plain ones of the same training and calibration draw."""

    def place(record: RunRecord) -> tuple[str, int | None]:
        return json.dumps(record.run.training, sort_keys=True), record.run.calibration_seed

    by_place = {place(record): record for _, record in plain}
    return [(by_place[place(r)], r) for _, r in members if place(r) in by_place]


def _beyond(plain: pd.DataFrame, even: pd.DataFrame) -> pd.DataFrame:
    """Changes less those of the even world, and whether the difference is shown."""
    there = even.loc[list(zip(plain.architecture, plain.bits, strict=True))].reset_index(drop=True)
    added = plain.change - there.change
    parts = [frame.error.to_numpy() ** 2 for frame in (plain, there)]
    variance = sum(parts)
    own = sum(
        part**2 / frame.degrees.to_numpy()
        for part, frame in zip(parts, (plain, there), strict=True)
    )
    # Where no prediction flips in either world there is no width, and no difference.
    degrees = np.divide(variance**2, own, out=np.full(len(plain), np.inf), where=own > 0)
    error = np.sqrt(variance)
    t = np.divide(np.abs(added), error, out=np.zeros(len(plain)), where=error > 0)
    half = error * student.ppf(1 - LEVEL / 2, degrees)
    judged = judge(
        pd.DataFrame(
            {
                "change": added,
                "low": added - half,
                "high": added + half,
                "floor": np.hypot(plain.floor, there.floor),
                "p_value": 2 * student.sf(t, degrees),
            }
        )
    )
    return plain.assign(even=there.change, added=added, added_half=half, shown=judged.shown)
