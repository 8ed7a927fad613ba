"""Registries: what is added by one statement, here or in a module of one's own, runs as any other.

A metric and an architecture are not among them yet.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import REGISTRIES, as_shipped
from typer.testing import CliRunner

from fairq_utils.calibration import SAMPLERS, Indices, Pool, sampler
from fairq_utils.cli import app
from fairq_utils.errors import BadInput
from fairq_utils.fingerprint import closure
from fairq_utils.quantizers.methods import METHODS, MSE, Method, Result, Task, method
from fairq_utils.quantizers.post_training import quantize_observed
from fairq_utils.report import effects, mitigation, tables
from fairq_utils.study import execution, planning, run_models, statistics
from fairq_utils.study.params.data import CELLS
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import ParamsError
from fairq_utils.study.study import Study

IMAGES = 16  # of calibration
STUDY: dict[str, Any] = {
    "name": "toys",
    "data": {
        "size": 32,
        "train": 64,
        "calibration": 64,
        "validation": 10,
        "test": 64,
        "joint": dict.fromkeys(CELLS, 1.0),
    },
    "training": {
        "models": {"squeezenet1_1": {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16}}
    },
    "quantization": {"calibration_images": IMAGES},
    "analysis": {"replicates": 100},
}


def _one_layer(task: Task) -> Result:
    """Quantize with another number of bits in one of the layers."""
    observed, bits = task.observed(), task.settings["layer_bits"]
    own = replace(task.spec, weight_bits=bits)
    return quantize_observed(observed, task.spec, {observed.order[1]: own})


def toy_method(name: str = "one_layer") -> Method:
    return method(
        name,
        label="one layer apart",
        family="toys",
        fit=_one_layer,
        options=MSE,
        needs="images groups",
        settings={"layer_bits": 8},
    )


def toy_sampler(name: str = "positives") -> None:
    @sampler(name, label="positives only")
    def _positives(pool: Pool) -> Indices:
        return pool.rng.permutation(np.flatnonzero(pool.target == 1))[: pool.count]


# The same two in a module of somebody else's.
PLUGIN = """
from dataclasses import replace

import numpy as np

from fairq_utils.calibration import sampler
from fairq_utils.quantizers.methods import MSE, method
from fairq_utils.quantizers.post_training import quantize_observed

WHICH = 1


def _one_layer(task):
    observed = task.observed()
    own = replace(task.spec, weight_bits=task.settings["layer_bits"])
    return quantize_observed(observed, task.spec, {observed.order[WHICH]: own})


method(
    "my_layer",
    label="one layer apart",
    family="toys",
    fit=_one_layer,
    options=MSE,
    needs="images groups",
    settings={"layer_bits": 8},
)


@sampler("my_positives", label="positives only")
def _positives(pool):
    return pool.rng.permutation(np.flatnonzero(pool.target == 1))[: pool.count]
"""


@pytest.fixture
def untouched() -> Iterator[None]:
    with as_shipped():
        yield


def grid(method: str, sampler: str) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "bits": "W4A8",
            "layer_bits": [2, 6],
            "sampler": ["random", sampler],
        }
    ]


@pytest.fixture(scope="module", params=["here", "plugin"])
def studied(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Study, str, str]]:
    """A study of a toy method with a toy sampler, which has run; and the names of the two."""
    folder = tmp_path_factory.mktemp("toys")
    path = folder / "toys.yaml"
    with as_shipped():
        if request.param == "here":
            names = ("one_layer", "positives")
            toy_method()
            toy_sampler()
            plugins = {}
        else:
            names = ("my_layer", "my_positives")
            (folder / "my_module.py").write_text(PLUGIN)
            plugins = {"plugins": ["my_module"]}
        path.write_text(yaml.safe_dump({**STUDY, **plugins, "grid": grid(*names)}))
        study = Study(load_params(path))
        execution.execute(study, stream=io.StringIO())
        yield study, *names


def test_a_toy_study_runs_end_to_end(studied: tuple[Study, str, str]) -> None:
    study, method, sampler = studied
    planned = planning.plan(study)
    # What they are compared with comes by itself: a random draw, and plain quantization.
    assert sorted((run.method, str(run.sampler)) for run in planned) == sorted(
        [("fp32", "None"), ("ptq", "random")] + 2 * [(method, "random"), (method, sampler)]
    )
    assert set(study.ledger.keys()) == {run.key for run in planned}
    toys = [
        record for run in planned if (record := study.ledger.read(run.key)).run.method == method
    ]
    for record in toys:
        assert record.counts.sum() == STUDY["data"]["test"]
        assert record.run.settings["attributes"] == ["gender", "age"]
        bits = Counter(record.report["layers"].values())
        apart = f"W{record.run.settings['layer_bits']}A8"
        assert bits == {"W8A8": 2, "W4A8": bits.total() - 3, apart: 1}  # the ends have 8 bits
    small, large = sorted({(r.run.settings["layer_bits"], r.size_bytes) for r in toys})
    assert (small[0], large[0]) == (2, 6) and small[1] < large[1]


def test_a_toy_sampler_draws_what_it_says(studied: tuple[Study, str, str]) -> None:
    study, _, sampler = studied
    run = next(run for run in planning.plan(study) if run.sampler == sampler)
    model = run_models.trained(study, run.architecture, planning.baseline_of(run).key)
    pool = study.faces.subset("calibration")
    rows = run_models.calibration_rows(study, run, pool, model)
    assert len(set(rows)) == IMAGES
    assert set(pool.target[rows]) == {1}


def test_a_run_is_named_by_the_code_of_its_toys(studied: tuple[Study, str, str]) -> None:
    study, method, sampler = studied
    home = METHODS.home(method)
    assert home == SAMPLERS.home(sampler)
    assert home in (__name__, "my_module")
    made = closure([home])
    assert {home, "fairq_utils.quantizers.post_training"} <= made
    if home == "my_module":
        assert "fairq_utils.quantizers.methods" in made
        assert "fairq_utils.cli" not in made
    codes = {run.method: run.code for run in planning.plan(study)}
    assert len(set(codes.values())) == 3  # FP32, plain quantization, and the toy


def test_toys_are_compared_with_plain_quantization(
    studied: tuple[Study, str, str],
) -> None:
    study, method, sampler = studied
    beside = effects.against_plain(statistics.records(study), study.params)
    mine = beside[beside.method == method]
    assert set(mine.sampler) == {"random", sampler}
    assert mine.setting.nunique() == 2
    page = mitigation.changes_table(beside, "gender x age").data
    assert "toys" in page and "one layer apart" in page


def test_toys_are_called_by_their_labels(studied: tuple[Study, str, str]) -> None:
    study, method, _ = studied
    frame = effects.by_configuration(statistics.records(study), study.params)
    for _, row in frame[frame.method == method].iterrows():
        assert tables.method_label(row) == "toys: one layer apart"


def test_the_command_line_takes_a_plugin(tmp_path: Path, untouched: None) -> None:
    (tmp_path / "my_module.py").write_text(PLUGIN)
    path = tmp_path / "toys.yaml"
    content = {**STUDY, "plugins": ["my_module"], "grid": grid("my_layer", "my_positives")}
    path.write_text(yaml.safe_dump(content))
    answer = CliRunner().invoke(app, ["plan", "--params", str(path)])
    assert answer.exit_code == 0, answer.output
    assert "my_layer" in answer.output
    path.write_text(yaml.safe_dump({**content, "grid": grid("my_lair", "my_positives")}))
    answer = CliRunner().invoke(app, ["plan", "--params", str(path)])
    assert answer.exit_code == 2
    assert "grid[0].method[0]: 'my_lair' is unknown; did you mean 'my_layer'?" in answer.stderr


def test_names_are_listed_with_those_of_a_plugin(tmp_path: Path, untouched: None) -> None:
    (tmp_path / "my_module.py").write_text(PLUGIN)
    asked = ["--plugin", str(tmp_path / "my_module.py")]
    for kind, registry, mine in (
        ("methods", METHODS, "my_layer"),
        ("samplers", SAMPLERS, "my_positives"),
    ):
        answer = CliRunner().invoke(app, ["list", kind, *asked])
        assert answer.exit_code == 0, answer.output
        head, *rows = answer.output.splitlines()
        assert head.split() == ["name", "label", "source", "needs"]
        assert sorted(row.split()[0] for row in rows) == sorted(registry)
        assert mine in registry
        assert any(row.startswith(mine) and registry[mine].label in row for row in rows)


@pytest.mark.parametrize(
    ("plugins", "source", "said"),
    [
        (["my_mdule"], "", "plugins: there is no module 'my_mdule' on Python's path, nor my_mdul"),
        (["my_module"], "import my_numpy\n", "plugins: my_module: needs my_numpy, which is not"),
        ("my_module", "", "plugins: name modules in a list, such as [my_module]"),
        (
            ["my_module"],
            PLUGIN.replace('"my_layer"', '"adaround"'),
            "my_module: there is a method 'adaround' already, in "
            "fairq_utils.quantizers.post_training; take another name",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why(
    plugins: object, source: str, said: str, tmp_path: Path, untouched: None
) -> None:
    (tmp_path / "my_module.py").write_text(source)
    path = tmp_path / "toys.yaml"
    content = {**STUDY, "grid": [{"method": "ptq", "bits": "W8A8"}]}
    path.write_text(yaml.safe_dump({**content, "plugins": plugins}))
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_a_name_that_is_taken_is_refused(untouched: None) -> None:
    taken = f"{__name__}: there is a method 'ptq' already, in fairq_utils.quantizers.post_training"
    with pytest.raises(BadInput, match=taken):
        toy_method("ptq")
    with pytest.raises(BadInput, match=r"there is a sampler 'random' already, in fairq_utils\.cal"):
        toy_sampler("random")
    assert METHODS["ptq"].label == "static"
    again = toy_method("twice")
    assert METHODS["twice"] is again
    assert METHODS["twice"] is not toy_method("twice")  # by the same module, which is read again
    elsewhere: dict[str, Any] = {"__name__": "my_module"}
    with pytest.raises(BadInput, match=f"method 'twice' already, in {__name__}; take another name"):
        exec(PLUGIN.replace('"my_layer"', '"twice"'), elsewhere)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adarond", r"^grid: 'adarond' is unknown; did you mean 'adaround'\?$"),
        ("QAT", r"^grid: 'QAT' is unknown; did you mean 'qat'\?$"),
        ("zzz", r"^grid: 'zzz' is unknown; it is one of .*ptq.*ranges_worst"),
        (7, r"^grid: 7 is unknown; it is one of "),
    ],
)
def test_a_name_that_is_unknown_is_answered_with_the_nearest(name: object, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        METHODS.find(name, "grid")
    assert name not in METHODS


def test_names_are_listed_without_importing_what_they_name() -> None:
    program = (
        "import sys\n"
        "from fairq_utils.calibration import SAMPLERS\n"
        "from fairq_utils.quantizers.methods import METHODS\n"
        "print(*METHODS)\n"
        "print(*SAMPLERS)\n"
        "print(METHODS.home('ranges_worst'), 'adaround' in METHODS, len(METHODS))\n"
        "assert 'torch' not in sys.modules\n"
        "assert METHODS['ranges_worst'].name == 'ranges_worst'\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    methods, samplers, about = done.stdout.splitlines()
    own = [name for name in METHODS if METHODS.home(name).startswith("fairq_utils.")]
    assert methods.split() == own
    assert samplers.split() == [
        n for n in SAMPLERS if SAMPLERS.home(n) == "fairq_utils.calibration"
    ]
    assert about == f"fairq_utils.mitigation.group_ranges True {len(own)}"


def test_each_entry_is_what_its_name_says() -> None:
    for registry in REGISTRIES:
        assert [entry.name for entry in registry.values()] == list(registry)
        labels = [entry.label for entry in registry.values()]
        assert all(labels)
    assert len({(m.family, m.label) for m in METHODS.values()}) == len(METHODS)
    assert len({entry.label for entry in SAMPLERS.values()}) == len(SAMPLERS)
