"""The grid of a params file: which runs its entries are, and what stands for keys of before."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairq_utils.calibration import SAMPLERS
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.study import planning
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params, ParamsError
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study

PROFILES = Path(__file__).resolve().parents[1] / "params"
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"size": 32, "train": 100, "calibration": 40, "validation": 10, "test": 60},
    "training": {"models": {"squeezenet1_1": {"epochs": 1, "learning_rate": 0.001}}},
    "quantization": {"calibration_images": 20},
}


def planned(*entries: dict[str, Any], **sections: Any) -> list[Run]:
    """Runs of a grid beside the FP32 models."""
    given = copy.deepcopy(SMALL)
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    runs = planning.plan(Study(Params.model_validate({**given, "grid": list(entries)})))
    assert len(set(runs)) == len(runs)
    return [run for run in runs if run.method != "fp32"]


def test_an_entry_is_every_combination_of_its_lists() -> None:
    samplers = ["random", "label_balanced"]
    entry = {"bits": ["W8A8", "W4A4"], "range": ["minmax", "mse"], "sampler": samplers}
    runs = planned({"method": ["ptq", "naive"], **entry})
    assert [(run.method, run.bits, run.ranges, run.sampler) for run in runs] == [
        (method, bits, ranges, sampler)
        for method in ("ptq", "naive")
        for bits in ("W8A8", "W4A4")
        for ranges in ("minmax", "mse")
        for sampler in samplers
    ]


def test_a_single_value_is_a_list_of_one_and_the_rest_is_the_methods_own() -> None:
    one = {"method": "ptq", "bits": "W8A8", "range": "minmax", "sampler": "random"}
    (run,) = planned(one)
    listed = {key: [value] for key, value in one.items()}
    assert planned(listed) == planned({"method": "ptq", "bits": "W8A8"}) == [run]
    assert (run.calibration_images, run.calibration_seed, run.settings) == (20, 0, {})
    (learnt,) = planned({"method": "adaround", "bits": "W4A8"})
    assert (learnt.ranges, learnt.settings) == ("mse", {"iterations": 300})
    (dynamic,) = planned({"method": "dynamic", "bits": "W8A8"})
    assert (dynamic.ranges, dynamic.sampler, dynamic.calibration_images) == (None, None, None)
    assert dynamic.calibration_seed is None


@pytest.mark.parametrize("name", [name for name in METHODS if name != CONTROL])
def test_every_method_can_be_named_alone(name: str) -> None:
    """It is compared with others; what these are is said by its entry in the registry."""
    method = METHODS[name]
    compared = {name} | ({"ptq"} if method.group_aware else set())
    compared |= {"qat", CONTROL} if method.trains else set()
    runs = planned({"method": name, "bits": "W8A8"})
    assert Counter(run.method for run in runs) == Counter(compared)
    own = method.spec("W8A8").activation_range if method.calibrates else None
    for run in runs:
        assert run.bits == (None if run.method == CONTROL else "W8A8")
        assert run.ranges == (None if run.method == CONTROL else own)


def test_the_fine_tuning_control_is_one_run_without_bits() -> None:
    alone = planned({"method": CONTROL})
    assert [(run.method, run.bits, run.sampler) for run in alone] == [(CONTROL, None, None)]
    assert alone == planned({"method": CONTROL, "bits": ["W8A8", "W4A4"]})
    beside = planned({"method": "qat", "bits": ["W8A8", "W4A4"]})
    assert [run.method for run in beside] == ["qat", CONTROL, "qat"]
    assert set(alone) < set(beside)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("random", "one_group")])
def test_every_sampler_is_compared_with_a_random_draw(name: str) -> None:
    runs = planned({"method": "block", "bits": "W4A4", "sampler": name})
    assert [(run.method, run.sampler) for run in runs] == [("block", name), ("block", "random")]
    assert runs[0].settings == runs[1].settings | {"attributes": ["gender", "age"]}


def test_one_group_is_a_run_of_each_group() -> None:
    runs = planned({"method": "ptq", "bits": "W8A8", "sampler": "one_group"})
    groups = [f"one_group={g} {a}" for g in ("female", "male") for a in ("old", "young")]
    assert sorted(str(run.sampler) for run in runs) == sorted([*groups, "random"])


def test_settings_of_an_entry_take_the_place_of_those_of_the_study() -> None:
    shared = {"iterations": 7, "tuning": {"epochs": 2}, "calibration_images": 10}
    entry = {"method": ["block", "qat"], "bits": "W4A4"}
    block, qat, control = planned(entry, quantization=shared)
    tuned = {"epochs": 2, "rate": 0.1, "images": None}
    assert (block.settings, qat.settings) == ({"iterations": 7}, tuned)
    assert control.settings == tuned
    own = {"iterations": [3, 5], "rate": 0.5, "calibration_images": [8, 16]}
    runs = planned({**entry, **own}, quantization=shared)
    found = [(run.calibration_images, run.settings) for run in runs if run.method == "block"]
    assert found == [(n, {"iterations": i}) for n in (8, 16) for i in (3, 5)]
    tuned |= {"rate": 0.5}
    for method, images in (("qat", [8, 16]), (CONTROL, [None])):
        mine = [run for run in runs if run.method == method]
        assert [run.calibration_images for run in mine] == images
        assert all(run.settings == tuned for run in mine)


def test_an_entry_may_be_of_some_models_seeds_and_draws() -> None:
    recipe = SMALL["training"]["models"]["squeezenet1_1"]
    training = {"seeds": [0, 1], "models": {"squeezenet1_1": recipe, "mobilenet_v2": recipe}}
    entry = {"method": "ptq", "bits": "W8A8", "calibration_seeds": [3, 4]}
    runs = planned(entry, training=training)
    assert len(runs) == 2 * 2 * 2
    some = planned({**entry, "models": "mobilenet_v2", "seeds": 1}, training=training)
    places = [(r.architecture, r.training["seed"], r.calibration_seed) for r in some]
    assert places == [("mobilenet_v2", 1, 3), ("mobilenet_v2", 1, 4)]
    assert set(some) < set(runs)


def test_what_two_entries_share_is_planned_once() -> None:
    one = {"method": "ptq", "bits": ["W8A8", "W4A4"]}
    both = planned(one, {"method": ["ptq", "naive"], "bits": "W4A4"})
    assert [(run.method, run.bits) for run in both] == [
        ("ptq", "W8A8"),
        ("ptq", "W4A4"),
        ("naive", "W4A4"),
    ]


# Sections that the profiles had before there was a grid, with the defaults of that time left out.
EARLIER: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        "quantization": {
            "bits": ["W8A8", "W4A4"],
            "ranges": ["minmax", "mse"],
            "further": {
                "naive": ["W4A8", "W4A4"],
                "equalized": ["W4A8"],
                "adaround": ["W4A8"],
                "block": ["W4A4"],
                "mixed": ["W4A8"],
                "float_classifier": ["W4A8"],
                "operations": ["W8A8"],
                "qat": ["W4A4"],
            },
        },
        "mitigation": {
            "methods": [
                "group_balanced",
                "core_set",
                "ranges_worst",
                "layers_random",
                "channels_worst",
                "mixed_worst",
                "control_worst",
                "qat_group_dro",
                "qat_balancing_act",
            ],
            "models": ["squeezenet1_1"],
        },
        "dials": {"bits": ["W4A4"]},
    },
    "default": {
        "quantization": {
            "bits": ["W8A8", "W4A4"],
            "methods": ["ptq", "dynamic"],
            "ranges": ["minmax", "mse"],
            "further": {
                "naive": ["W4A8", "W4A4"],
                "equalized": ["W4A8"],
                "block": ["W4A4"],
                "float_classifier": ["W4A8"],
                "operations": ["W8A8"],
            },
            "further_models": ["mobilenet_v2", "squeezenet1_1"],
        },
        "mitigation": {
            "samplers": ["group_balanced"],
            "methods": [
                "label_balanced",
                "group_balanced",
                "intersection_balanced",
                "worst_group",
                "matched",
                "core_set",
                "ranges_mean",
                "ranges_worst",
                "layers_random",
                "layers_overall",
                "layers_worst",
                "channels_random",
                "channels_overall",
                "channels_worst",
                "mixed_overall",
                "mixed_worst",
                "mixed_cvar",
                "control_overall",
                "control_worst",
                "qat_parity",
                "qat_odds",
                "qat_group_dro",
                "qat_balancing_act",
            ],
            "bits": ["W8A8", "W4A4"],
            "models": ["squeezenet1_1"],
        },
        "dials": {"bits": ["W8A8", "W4A4"], "methods": ["group_balanced", "ranges_worst"]},
    },
    "methods": {
        "quantization": {
            "bits": ["W8A8", "W4A8", "W4A4", "W3A3", "W2A2"],
            "methods": ["ptq"],
            "ranges": ["minmax", "mse"],
            "further": {
                "naive": ["W8A8", "W4A8", "W4A4", "W3A3", "W2A2"],
                "equalized": ["W8A8", "W4A8", "W4A4", "W3A3", "W2A2"],
                "adaround": ["W4A8", "W3A3"],
                "block": ["W4A4", "W3A3", "W2A2"],
                "mixed": ["W4A8"],
                "qat": ["W4A4", "W2A2"],
            },
        },
        "mitigation": {"samplers": ["group_balanced"]},
    },
    "dials": {
        "quantization": {"bits": ["W8A8"], "methods": ["ptq"], "ranges": ["mse"]},
        "dials": {
            "bits": ["W8A8", "W4A4"],
            "methods": ["group_balanced", "ranges_worst", "layers_worst"],
        },
    },
}


def suggested(path: Path, content: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Key that is refused, and the grid that is to be written in its place."""
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    place, _, rest = str(caught.value).removeprefix(f"{path}: ").partition(": ")
    _, found, written = rest.partition(" in its place write ")
    assert found and "\n" not in written
    where, _, grid = written.partition(": ")
    assert where == ("dials.grid" if place.startswith("dials.") else "grid")
    return place, yaml.safe_load(grid)


@pytest.mark.parametrize("name", EARLIER)
def test_a_file_of_before_is_refused_with_the_grid_that_plans_the_same(
    name: str, tmp_path: Path
) -> None:
    profile, earlier = PROFILES / f"{name}.yaml", EARLIER[name]
    content = yaml.safe_load(profile.read_text())
    path = tmp_path / "study.yaml"
    del content["grid"]
    dials = content.get("dials", {})
    dials.pop("grid", None)
    before = {key: {**content.get(key, {}), **section} for key, section in earlier.items()}
    place, grid = suggested(path, content | before)
    assert place == "quantization.bits"
    content |= {"grid": grid}
    if dials:
        place, dials["grid"] = suggested(path, content | {"dials": before["dials"]})
        assert place == "dials.bits"
    path.write_text(yaml.safe_dump(content | {"dials": dials}))
    found, wanted = (planning.with_dials(Study(load_params(file))) for file in (path, profile))

    def told(runs: dict[Run, Study]) -> Counter[tuple[object, ...]]:
        return Counter(
            (run.architecture, run.method, run.bits, run.ranges, run.sampler, str(run.settings))
            for run in runs
        )

    assert told(found) == told(wanted)
    assert set(found) == set(wanted)


@pytest.mark.parametrize(
    ("sections", "place", "entry"),
    [
        ({"quantization": {"further": {"qat": ["W4A4"]}}}, "quantization.further", "qat"),
        ({"quantization": {"ranges": ["mse"]}}, "quantization.ranges", "ptq"),
        ({"mitigation": {"samplers": ["group_balanced"]}}, "mitigation.samplers", "ptq"),
        ({"mitigation": {"kept": 0.1, "methods": ["layers_worst"]}}, "mitigation.kept", "layers_"),
        ({"dials": {"methods": ["ranges_worst"]}}, "dials.methods", "ranges_worst"),
    ],
)
def test_each_key_of_before_is_named(
    sections: dict[str, Any], place: str, entry: str, tmp_path: Path
) -> None:
    found, grid = suggested(tmp_path / "study.yaml", {**SMALL, **sections})
    assert found == place
    assert any(str(one["method"]).startswith(entry) for one in grid)
    assert planned(*grid)


def test_settings_of_before_are_carried_over(tmp_path: Path) -> None:
    settings = {"kept": 0.1, "max_drop": 0.02, "max_reverted": 3}
    methods = ["layers_worst", "control_worst", "ranges_mean"]
    content = {
        **SMALL,
        "quantization": {"bits": ["W4A4"]},
        "mitigation": {"methods": methods, "bits": ["W4A4"], **settings},
    }
    _, grid = suggested(tmp_path / "study.yaml", content)
    found = {run.method: run.settings for run in planned(*grid)}
    about = {"attributes": ["gender", "age"]}
    assert found["layers_worst"] == {"budget": 0.1} | about
    assert found["control_worst"] == {"max_drop": 0.02, "max_reverted": 3} | about
    assert found["ranges_mean"] == about
