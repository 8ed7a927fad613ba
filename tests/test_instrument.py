"""The planted study and the small checks: what was planted is found, and by hand it is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fairq_utils.report import instrument
from fairq_utils.report.chapter import Chapter
from fairq_utils.study import runs
from fairq_utils.study.params.study import Params
from fairq_utils.study.study import Study

BITS = [instrument.MANY, instrument.FEW]


def change(bits: str, statistic: str) -> float:
    rows = instrument.planted_effects()
    row = rows[(rows.bits == bits) & (rows.statistic == statistic)]
    return float(row.change.item())


def test_the_planted_counts_are_those_that_are_named() -> None:
    found, params = instrument.planted()
    assert [record.run.bits for record in found] == [None, *BITS]
    assert found[0].attributes == params.analysis.attributes
    assert found[0].groups == ("female|old", "female|young", "male|old", "male|young")
    for record in found:
        for name, table in zip(record.groups, record.counts, strict=True):
            group = tuple(name.split("|"))
            for label in (0, 1):
                images = instrument.GROUPS[group][0][label]
                right = instrument.GROUPS[group][1][label]
                swapped = instrument.SWAPPED
                lost, won = {
                    None: (0, 0),
                    instrument.MANY: (swapped, swapped),
                    instrument.FEW: (instrument.LOST, 0)
                    if (group, label) == (instrument.HARMED, 1)
                    else (swapped, swapped),
                }[record.run.bits]
                assert table[label].sum() == images
                assert table[label, label, label] == right - lost
                assert table[label, label, 1 - label] == lost
                assert table[label, 1 - label, label] == won


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        ("accuracy", -40 / 1600),
        ("worst_group_accuracy", 320 / 400 - 360 / 400),
        # Selected: 160, 195, 125, 160 of 400 before; 40 fewer old women after.
        ("demographic_parity_difference", (195 - 120) / 400 - (195 - 125) / 400),
        # Found smiles: 140, 145 of 160, 180 of 200, 105 of 120; 100 of 160 after.
        ("equal_opportunity_difference", (145 / 160 - 100 / 160) - (145 / 160 - 105 / 120)),
        # False smiles: 20, 15 of 240, 15 of 200, 20 of 280; as before.
        ("predictive_equality_difference", 0.0),
        ("equalized_odds_difference", (145 / 160 - 100 / 160) - (145 / 160 - 105 / 120)),
        ("disparate_impact", 120 / 195 - 125 / 195),
    ],
)
def test_what_is_measured_is_what_was_planted(statistic: str, expected: float) -> None:
    assert change(instrument.FEW, statistic) == pytest.approx(expected, abs=1e-12)
    assert change(instrument.MANY, statistic) == pytest.approx(0, abs=1e-12)


def test_the_harm_is_shown_and_nothing_else() -> None:
    rows = instrument.planted_effects().set_index(["bits", "statistic"])
    shown = rows.index[rows.shown].tolist()
    assert shown == [
        (instrument.FEW, name)
        for name in (
            "accuracy",
            "worst_group_accuracy",
            "equalized_odds_difference",
            "equal_opportunity_difference",
        )
    ]
    groups = instrument.planted_groups().set_index("group")
    assert groups.lost.tolist() == [44, 8, 8, 8]
    assert groups.won.tolist() == [4, 8, 8, 8]
    assert groups.change.tolist() == pytest.approx([-0.1, 0, 0, 0], abs=1e-12)
    assert (groups.p_value < 0.001).tolist() == [True, False, False, False]
    assert groups.low["female old"] < -0.1 < groups.high["female old"] < 0


def test_every_part_that_can_be_computed_by_hand_is_right(tmp_path: Path) -> None:
    study = Study(
        Params.model_validate(
            {
                "name": "checked",
                "data": {"size": 32, "train": 128, "calibration": 64, "validation": 10, "test": 64},
                "training": {
                    "models": {
                        "squeezenet1_1": {"epochs": 1, "learning_rate": 1e-4, "batch_size": 32}
                    }
                },
                "grid": [
                    {"method": "ptq", "bits": "W4A4"},
                    {"method": "mixed_worst", "bits": "W4A4"},
                ],
                "quantization": {"calibration_images": 32, "iterations": 1},
                "execution": {"ledger": str(tmp_path / "ledger"), "cache": str(tmp_path / "cache")},
            }
        )
    )
    found = instrument.checks(Chapter(study))
    assert len(found) == 10
    assert found.known.tolist() == found.found.tolist()
    assert found.known.tolist()[-4:] == ["4 of 4 runs", "4 of 4 runs", "yes", "1 of 1 runs"]


def test_a_kept_margin_has_the_sign_of_the_margin() -> None:
    margins = np.array([1e-3, -1e-3, 1e9, -1e9, 0.0], np.float32)
    assert np.sign(runs.kept(margins)).tolist() == [1, -1, 1, -1, 0]
    assert runs.kept(margins).dtype == np.float16
