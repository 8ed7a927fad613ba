"""The instrument, tried on what is known: a planted harm, and small checks with one right answer.

The planted study is made of counts, not of models, so that every effect in it is known to the last
image; it is recorded and measured by the functions that record and measure every other run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from numpy.typing import NDArray
from torch import nn

from fairq_utils.data.faces import FaceData
from fairq_utils.quantizers.grids import (
    input_grid,
    on_static_grid,
    to_integers,
    weight_codes,
    weight_grid,
)
from fairq_utils.report import effects
from fairq_utils.report.chapter import Chapter, glue
from fairq_utils.report.rows import PARITY, quantized_rows
from fairq_utils.report.tables import LABELS, RATIOS, html_table, intervals
from fairq_utils.stats.verdicts import judge
from fairq_utils.study import planning, runs
from fairq_utils.study.params.study import Params
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.statistics import STATISTICS
from fairq_utils.study.study import Study
from fairq_utils.training import loop, objectives

# Images by label (0, 1), and how many of them FP32 has right.
GROUPS = {
    ("female", "old"): ((240, 160), (220, 140)),
    ("female", "young"): ((200, 200), (185, 180)),
    ("male", "old"): ((280, 120), (260, 105)),
    ("male", "young"): ((240, 160), (225, 145)),
}
HARMED, LOST = ("female", "old"), 40  # of its right smiles, at few bits
SWAPPED = 4  # right predictions that become wrong, and the reverse, in every other cell
NAMES = ("gender", "age")
FEW, MANY = "W4A4", "W8A8"
OPPORTUNITY = "equal_opportunity_difference"
PLANTED = {
    "name": "planted",
    "training": {"models": {"squeezenet1_1": {}}},
    "grid": [{"method": "ptq", "bits": [MANY, FEW], "range": "mse"}],
}
SMALL = 3  # bits of the grids below
VALUES = (-0.7, -0.25, 0.0, 0.1, 0.3, 0.5, 1.0)
NEVER = 1e-12  # a learning rate at which no weight moves
ALIKE = 1e-4


@lru_cache(maxsize=1)
def planted() -> tuple[list[RunRecord], Params]:
    """Runs of a study of which everything is known, and its params.

    At many bits as many predictions become right as become wrong, in every group and label. At few
    bits so too, but for old women who smile: of them ``LOST`` right predictions are lost, none won.
    """
    study = Study(Params.model_validate(PLANTED))
    rows = [
        (*group, label, *predictions)
        for group, (images, right) in GROUPS.items()
        for label in (0, 1)
        for predictions in _answers(group, label, images[label], right[label])
    ]
    frame = pd.DataFrame(rows, columns=[*NAMES, "label", "fp32", MANY, FEW])
    data = FaceData(
        images=torch.zeros(len(frame), 3, 1, 1, dtype=torch.uint8),
        target=frame.label.to_numpy(np.int8),
        groups=frame[list(NAMES)].astype("category"),
        split=np.full(len(frame), "test"),
    )
    margins = {name: runs.kept(_margins(frame[name])) for name in ("fp32", MANY, FEW)}
    began = time.perf_counter()
    found = [
        runs.record(run, data, margins["fp32"], {"test": margins[name]}, 1, began, {}, {})
        for run in planning.plan(study)
        for name in [run.bits or "fp32"]
    ]
    return found, study.params


def _answers(
    group: tuple[str, str], label: int, images: int, right: int
) -> list[tuple[int, int, int]]:
    """Predictions of images of one label: FP32's, those at many bits, those at few."""
    other = 1 - label
    fp32 = [label] * right + [other] * (images - right)

    def flipped(lost: int, won: int) -> list[int]:
        kept = right - lost
        return [label] * kept + [other] * lost + [label] * won + [other] * (images - right - won)

    harmed = group == HARMED and label == 1
    few = flipped(LOST, 0) if harmed else flipped(SWAPPED, SWAPPED)
    return list(zip(fp32, flipped(SWAPPED, SWAPPED), few, strict=True))


def _margins(predictions: pd.Series) -> NDArray[np.float32]:
    """Margins of these signs, no two alike."""
    size = 1 + np.arange(len(predictions), dtype=np.float32) / len(predictions)
    signed: NDArray[np.float32] = np.where(predictions == 1, size, -size)
    return signed


@lru_cache(maxsize=1)
def planted_effects() -> pd.DataFrame:
    """All changes of the planted study, judged as one family per statistic."""
    found, params = planted()
    scope = " x ".join(params.analysis.attributes)
    frame = effects.by_configuration(found, params)
    parts = [
        judge(quantized_rows(frame, name, scope), replicates=params.analysis.replicates)
        for name in STATISTICS
    ]
    return pd.concat(parts, ignore_index=True)


def planted_table() -> HTML:
    """What is measured of the planted study: every statistic, at many and at few bits."""
    rows = planted_effects()
    table = pd.DataFrame(
        {
            "bits": rows.bits,
            "statistic": rows.statistic.map(LABELS),
            "FP32": _scaled(rows, "reference", 1),
            "change (points)": intervals(rows, "change"),
            "floor": _scaled(rows, "floor", 2),
            "p": [f"{value:.4f}" for value in rows.p_value],
            "verdict": np.where(rows.shown, "shown", "not shown"),
        }
    )
    return html_table(table)


def _scaled(rows: pd.DataFrame, column: str, digits: int) -> list[str]:
    """Values in points; of ratios as they are."""
    return [
        f"{value:.2f}" if name in RATIOS else f"{100 * value:.{digits}f}"
        for name, value in zip(rows.statistic, rows[column], strict=True)
    ]


@lru_cache(maxsize=1)
def planted_groups() -> pd.DataFrame:
    """Rows of :func:`fairq_utils.report.effects.by_group` of the planted study, at few bits."""
    found, params = planted()
    frame = effects.by_group(found, params)
    return frame[frame.bits == FEW]


def planted_groups_table() -> HTML:
    """Right predictions lost and won by group, at few bits."""
    rows = planted_groups()
    table = rows[["group", "images", "lost", "won"]].assign(
        **{"change (points)": intervals(rows, "change")}
    )
    return html_table(table)


def glue_planted() -> None:
    """Glue what was planted, and what was measured of it."""
    images = sum(GROUPS[HARMED][0])
    groups = planted_groups()
    row = groups[groups.group == " ".join(HARMED)].iloc[0]
    glue("planted_lost", LOST)
    glue("planted_images", images)
    glue("planted_change", -100 * LOST / images + 0.0)
    glue("planted_found", 100 * row.change)
    glue("planted_low", 100 * row.low)
    glue("planted_high", 100 * row.high)
    rows = planted_effects()
    glue("planted_none", int((rows[rows.bits == MANY].shown).sum()))
    glue("planted_statistics", rows.statistic.nunique())
    few = rows[rows.bits == FEW].set_index("statistic")
    for name, statistic in (("parity", PARITY), ("opportunity", OPPORTUNITY)):
        glue(f"planted_{name}", 100 * few.change[statistic])
        glue(f"planted_{name}_verdict", "shown" if few.shown[statistic] else "not shown")


def checks(chapter: Chapter) -> pd.DataFrame:
    """Small checks of what chapters rest on: what is known, and what is found.

    Returns
    -------
    DataFrame
        ``check``, ``known``, ``found``; text.
    """
    return pd.DataFrame(
        [*_grids(), *_records(chapter), _settled(chapter), _budgets(chapter)],
        columns=["check", "known", "found"],
    )


def glue_checks(found: pd.DataFrame) -> None:
    """Glue how many checks find what is known."""
    glue("checks", len(found))
    glue("checks_right", int((found.known == found.found).sum()))


def _grids() -> list[tuple[str, str, str]]:
    """Codes of a few values on small grids, against those that were computed by hand."""
    x, low, high = torch.tensor(VALUES), torch.tensor(-0.6), torch.tensor(2.0)
    rows = []
    for kind, scheme, known in (
        ("weights", "symmetric", "scale 0.3333, zero-point 0: -2 -1 0 0 1 2 3"),
        ("weights", "affine", "scale 0.2429, zero-point -1: -4 -2 -1 -1 0 1 3"),
        ("inputs", "symmetric", "scale 0.6667, zero-point 4: 3 4 4 4 4 5 6"),
        ("inputs", "affine", "scale 0.3714, zero-point 2: 0 1 2 2 3 3 5"),
    ):
        if kind == "weights":
            scale, zero = weight_grid(x.min(), x.max(), SMALL, scheme)
            ends = weight_codes(SMALL, scheme)
        else:
            scale, zero = input_grid(low, high, SMALL, scheme)
            ends = (0, 2**SMALL - 1)
        codes = _text(to_integers(x, scale, zero, *ends))
        found = f"scale {float(scale):.4f}, zero-point {int(zero)}: {codes}"
        rows.append((f"{SMALL}-bit {scheme} grid of {kind}", known, found))
    halves = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    one, none = torch.tensor(1.0), torch.tensor(0.0)
    ways = {
        "of weights": to_integers(halves, one, none, -4, 3),
        "of inputs": on_static_grid(halves, one, 2 * one, 5),
    }
    known = "-2 0 0 2 2"
    return rows + [
        (f"halves {what} go to the even one", known, _text(q)) for what, q in ways.items()
    ]


def _text(integers: torch.Tensor) -> str:
    return " ".join(str(int(value)) for value in integers)


def _records(chapter: Chapter) -> list[tuple[str, str, str]]:
    """Whether the ledger's margins, counts and groups belong to the study's images."""
    target, groups = chapter.study.people("test")
    people = groups.assign(label=pd.Categorical(target, [0, 1]))
    by_hand = people.groupby([*groups, "label"], observed=False).size()
    records = chapter.runs

    def of_images(record: RunRecord) -> bool:
        return record.counts.sum(axis=(2, 3)).ravel().tolist() == by_hand.tolist()

    def of_margins(record: RunRecord) -> bool:
        table = record.counts.sum(axis=2)  # group, label, this run's prediction
        cells = table.reshape(-1, 2)
        predicted = np.zeros_like(cells)
        np.add.at(predicted, (record.cells, (record.scores > 0).astype(int)), 1)
        return bool((predicted == cells).all())

    return [
        ("images of each group and label in the counts", _all(records), _share(records, of_images)),
        ("signs of kept margins are the predictions", _all(records), _share(records, of_margins)),
    ]


def _settled(chapter: Chapter) -> tuple[str, str, str]:
    """Whether batch norms know, after a training that moves nothing, what the images are."""
    torch.manual_seed(0)
    train = chapter.faces().subset("train")
    count = min(len(train), loop.SETTLING) // 64 * 64
    train = train.take(np.arange(count))
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    recipe = loop.Recipe(epochs=1, learning_rate=NEVER, batch_size=64)
    loop.fit(model, train, recipe, objectives.Classification(train, 0.0), seed=0)
    mean = loop.normalize(train.images[:]).mean(dim=(0, 2, 3))
    assert norm.running_mean is not None
    same = bool(((norm.running_mean - mean).abs() < ALIKE).all())
    return "batch norms hold the means of the images", "yes", "yes" if same else "no"


def _budgets(chapter: Chapter) -> tuple[str, str, str]:
    """Whether mixed precision takes no more bytes than uniform bits do."""
    plain = {
        (record.run.architecture, record.run.bits): record.size_bytes
        for record in chapter.runs
        if record.run.method == "ptq"
    }
    mixed = [r for r in chapter.runs if r.run.method.startswith("mixed") and r.run.settings]
    mixed = [r for r in mixed if (r.run.architecture, r.run.bits) in plain]

    def within(record: RunRecord) -> bool:
        return record.size_bytes <= plain[record.run.architecture, record.run.bits]

    return "mixed precision takes no more bytes", _all(mixed), _share(mixed, within)


def _all(records: Sequence[RunRecord]) -> str:
    return f"{len(records)} of {len(records)} runs"


def _share(records: Sequence[RunRecord], holds: Callable[[RunRecord], bool]) -> str:
    return f"{sum(map(holds, records))} of {len(records)} runs"
