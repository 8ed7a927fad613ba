"""A run's key: all code that decides the run is in it, and each module of that code moves it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from fairq_utils import fingerprint
from fairq_utils.study import planning, runs
from fairq_utils.study.params.study import Params
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study

# What runs pass through and what cannot change a prediction: where things are kept and shown, how
# settings are read (they are in the key themselves), which words are used.
BESIDE = {
    *(name.partition(".")[2] for name in fingerprint.BESIDE),
    *("fingerprint", "data.pixel_cache", "data.files"),
    *("study.ledger", "study.run_file", "study.run_record"),
    *("study.planning", "study.progress", "study.study", "study.tracking"),
    *("study.weights", "study.environment"),
    *("study.params.data", "study.params.grid", "study.params.section", "study.params.study"),
}
KINDS = [
    {"method": "ptq", "bits": "W4A4", "sampler": ["random", "group_balanced", "core_set"]},
    {"method": ["dynamic", "naive", "equalized", "operations"], "bits": "W8A8"},
    {"method": ["adaround", "block", "mixed", "float_classifier", "qat"], "bits": "W4A8"},
    {"method": ["ranges_worst", "channels_worst", "mixed_worst", "control_worst"], "bits": "W4A4"},
    {"method": ["qat_group_dro", "qat_balancing_act"], "bits": "W4A4"},
]
STUDY = {
    "name": "traced",
    "data": {"size": 32, "train": 64, "calibration": 64, "validation": 64, "test": 64},
    "training": {
        "models": {"squeezenet1_1": {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16}}
    },
    "grid": KINDS,
    "quantization": {
        "calibration_images": 16,
        "iterations": 2,
        "tuning": {"epochs": 1, "rate": 0.1, "images": 64},
    },
}


@contextmanager
def called(found: set[str]) -> Iterator[None]:
    """Modules of the package whose functions are called within, without the package's name."""

    def watch(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_globals.get("__name__", "")
        if (
            event == "call"
            and name.startswith("fairq_utils.")
            and frame.f_code.co_name != "<module>"
        ):
            found.add(name.partition(".")[2])

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("traced")
    places = {"ledger": str(folder / "ledger"), "cache": str(folder / "cache")}
    return Study(Params.model_validate({**STUDY, "execution": places}))


def decides(run: Run) -> set[str]:
    """Modules in a run's key, without the package's name."""
    entries, alone = planning.modules_of(run.method, run.sampler, run.architecture, run.data)
    modules = {*fingerprint.closure(entries), *alone} - fingerprint.BESIDE
    return {name.partition(".")[2] for name in modules}


def test_all_code_that_a_run_calls_is_in_its_key(study: Study) -> None:
    missing = {}
    baseline = ""
    for run in planning.plan(study):
        found: set[str] = set()
        with called(found):
            if run.method == "fp32":
                baseline = runs.train_baseline(study, run)
            else:
                runs.evaluate_quantized(study, [run], baseline)
        assert {"study.runs", "training.loop"} <= found
        if left := found - decides(run) - BESIDE:
            missing |= {module: str(run) for module in left}
    assert missing == {}


@pytest.mark.parametrize(
    ("method", "sampler"), [("fp32", None), ("ptq", "core_set"), ("mixed_worst", "random")]
)
def test_every_module_in_a_key_moves_it(
    method: str, sampler: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = fingerprint._tree
    arguments = (method, sampler, "squeezenet1_1", {})
    before = planning.code_of(*arguments)
    entries, alone = planning.modules_of(*arguments)
    modules = {*fingerprint.closure(entries), *alone} - fingerprint.BESIDE
    assert len(modules) > 15
    codes = set()
    for changed in sorted(modules):
        with monkeypatch.context() as patch:
            patch.setattr(
                fingerprint,
                "_tree",
                lambda name, changed=changed: really(name) + "changed" * (name == changed),
            )
            fingerprint._version.cache_clear()
            codes.add(planning.code_of(*arguments))
    fingerprint._version.cache_clear()
    assert before not in codes
    assert len(codes) == len(modules)


def test_the_evaluation_does_not_move_the_name_of_the_weights(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = fingerprint._tree
    before = {run.weights for run in planning.plan(study)}
    assert len(before) == 1
    for changed, moves in (
        *(("study.runs", False), ("quantizers.ranges", False), ("training.inference", False)),
        *(("study.run_training", True), ("training.loop", True), ("data.render", True)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(
                fingerprint,
                "_tree",
                lambda name, changed=changed: (
                    really(name) + "changed" * (name == f"fairq_utils.{changed}")
                ),
            )
            fingerprint._version.cache_clear()
            assert ({run.weights for run in planning.plan(study)} != before) == moves, changed
    fingerprint._version.cache_clear()


def test_another_test_split_trains_nothing_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = study.params.model_dump()
    given["data"] |= {"test": 128, "validation": 96, "test_design": "even"}
    other = Study(Params.model_validate(given))
    run, again = (planning.plan(each, ("baseline",))[0] for each in (study, other))
    assert run.weights == again.weights and run.key != again.key
    runs.train_baseline(study, run)

    def refused(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs.run_training, "train_fp32", refused)
    runs.train_baseline(other, again)
    record = other.ledger.read(again.key)
    assert len(record.scores) == 128 and len(record.validation_scores) == 96
    who = {group.rpartition("|")[0] for group in record.groups}
    codes = record.cells // 2
    held = {g: sum(n == g for n in codes) for g in range(len(record.groups))}
    each = {w: sum(held[i] for i, n in enumerate(record.groups) if n.startswith(w)) for w in who}
    assert set(each.values()) == {32}


def test_words_and_places_do_not_move_a_key() -> None:
    for method in ("fp32", "ptq", "mixed_worst", "qat_group_dro"):
        entries, alone = planning.modules_of(method, "random", "squeezenet1_1", {})
        rooms = {n.split(".")[1] for n in (*fingerprint.closure(entries), *alone)}
        assert not rooms & {"report", "bench", "deploy", "cli"}


def test_a_comment_changes_nothing_and_a_constant_does(tmp_path: Path) -> None:
    texts = {
        "plain": 'A = 1\n\n\ndef f(x):\n    """Say."""\n    return x + A\n',
        "said": 'A = 1  # one\n\n\ndef f(x):\n    """Say otherwise."""\n\n    return x + A\n',
        "other": 'A = 2\n\n\ndef f(x):\n    """Say."""\n    return x + A\n',
    }
    trees = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        for name, text in texts.items():
            (tmp_path / f"keyed_{name}.py").write_text(text)
            trees[name] = fingerprint._tree(f"keyed_{name}")
    assert trees["plain"] == trees["said"] != trees["other"]
