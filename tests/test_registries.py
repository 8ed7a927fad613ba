"""Registries: what is added by one statement, here or in a module of one's own, runs alike."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import REGISTRIES, as_shipped
from torch import nn
from typer.testing import CliRunner

from fairq_utils.apply import apply_quantization
from fairq_utils.calibration import SAMPLERS, Indices, Pool, draw, sampler
from fairq_utils.cli import app
from fairq_utils.errors import BadInput
from fairq_utils.fingerprint import closure
from fairq_utils.metrics.criteria import FAIRNESS, Criterion, criterion
from fairq_utils.metrics.gaps import difference
from fairq_utils.quantizers.methods import METHODS, MSE, Method, Result, Task, method
from fairq_utils.quantizers.post_training import quantize_observed
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.report import effects, mitigation, tables
from fairq_utils.study import execution, feasibility, planning, run_models, statistics
from fairq_utils.study.params.data import CELLS
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.grid import Entry
from fairq_utils.study.params.study import Params, ParamsError
from fairq_utils.study.study import Study
from fairq_utils.training.zoo import architecture

IMAGES = 16  # of calibration
VIEWS = ("losses", "features")  # of a float model, which samplers may need
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
    "quantization": {"calibration_images": IMAGES},
}
RECIPE = {"epochs": 1, "learning_rate": 0.0003, "batch_size": 16}


def asked(architecture: str, metric: str) -> dict[str, Any]:
    """Sections that name a toy architecture and a toy metric."""
    return {
        "training": {"models": {architecture: RECIPE}},
        "analysis": {"replicates": 100, "metrics": [metric]},
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


def _net(*, classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """Three convolutions, of which the middle one is not the first or the last layer."""
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    return nn.Sequential(*layers, *head)


def toy_architecture(name: str = "three_layers") -> None:
    architecture(name, label="Three Layers", build=_net, multiple=1)


def toy_metric(name: str = "error_difference") -> None:
    criterion(
        name, "error_rate", difference, title="Difference of errors", formula="max e_g - min e_g"
    )


# The same four in a module of somebody else's.
PLUGIN = """
from dataclasses import replace

import numpy as np
from torch import nn

from fairq_utils.calibration import sampler
from fairq_utils.metrics.criteria import FAIRNESS, Criterion, criterion
from fairq_utils.metrics.gaps import difference
from fairq_utils.training.zoo import architecture
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


def _net(*, classes, image_size, pretrained):
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


architecture("my_net", label="Three Layers", build=_net, multiple=1)
criterion(
    "my_gap", "error_rate", difference, title="Difference of errors", formula="max e_g - min e_g"
)
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
            toy_architecture()
            toy_metric()
            more = asked("three_layers", "error_difference")
        else:
            names = ("my_layer", "my_positives")
            (folder / "my_module.py").write_text(PLUGIN)
            more = {"plugins": ["my_module"], **asked("my_net", "my_gap")}
        path.write_text(yaml.safe_dump({**STUDY, **more, "grid": grid(*names)}))
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
        assert bits == {"W8A8": 2, apart: 1}  # the ends have 8 bits
    small, large = sorted({(r.run.settings["layer_bits"], r.size_bytes) for r in toys})
    assert (small[0], large[0]) == (2, 6) and small[1] < large[1]


def test_a_toy_sampler_draws_what_it_says(studied: tuple[Study, str, str]) -> None:
    study, _, sampler = studied
    run = next(run for run in planning.plan(study) if run.sampler == sampler)
    model = run_models.trained(study, run)
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
    codes = {
        name: planning.code_of(name, None, "squeezenet1_1", {}) for name in ("fp32", "ptq", method)
    }
    assert len(set(codes.values())) == 3
    for run in planning.plan(study):  # of an architecture that stands there too
        entries, _ = planning.modules_of(run.method, run.sampler, run.architecture, run.data)
        assert home in entries


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
    assert set(tables.named(frame).architecture) == {"Three Layers"}


def test_a_toy_metric_is_measured_of_every_run(studied: tuple[Study, str, str]) -> None:
    study, method, _ = studied
    [metric] = study.params.analysis.metrics
    frame = effects.by_configuration(statistics.records(study), study.params)
    mine = frame[(frame.statistic == metric) & (frame.scope == "gender") & (frame.method == method)]
    assert len(mine) == 4
    for row in mine.itertuples():
        [run] = [
            run
            for run in planning.plan(study)
            if (run.method, run.sampler) == (method, row.sampler)
            and run.settings["layer_bits"] == int(str(row.setting).split()[-1])
        ]
        record = study.ledger.read(run.key)
        table = statistics.counts(record, ["gender"]).table.sum(axis=2)  # group x label x quantized
        errors = (table[:, 0, 1] + table[:, 1, 0]) / table.sum(axis=(1, 2))
        assert row.compared == pytest.approx(errors.max() - errors.min())


def test_the_command_line_takes_a_plugin(tmp_path: Path, untouched: None) -> None:
    (tmp_path / "my_module.py").write_text(PLUGIN)
    path = tmp_path / "toys.yaml"
    content = {
        **STUDY,
        **asked("my_net", "my_gap"),
        "plugins": ["my_module"],
        "grid": grid("my_layer", "my_positives"),
    }
    path.write_text(yaml.safe_dump(content))
    answer = CliRunner().invoke(app, ["plan", "--params", str(path)])
    assert answer.exit_code == 0, answer.output
    assert "my_layer" in answer.output
    path.write_text(yaml.safe_dump({**content, "grid": grid("my_lair", "my_positives")}))
    answer = CliRunner().invoke(app, ["plan", "--params", str(path)])
    assert answer.exit_code == 2
    assert "grid[0].method[0]: 'my_lair' is unknown; did you mean 'my_layer'?" in answer.stderr


def label_of(entry: Any) -> str:
    return str(entry.title if isinstance(entry, Criterion) else entry.label)


def test_names_are_listed_with_those_of_a_plugin(tmp_path: Path, untouched: None) -> None:
    (tmp_path / "my_module.py").write_text(PLUGIN)
    asked = ["--plugin", str(tmp_path / "my_module.py")]
    for kind, registry, mine in (
        ("methods", METHODS, "my_layer"),
        ("samplers", SAMPLERS, "my_positives"),
        ("metrics", FAIRNESS, "my_gap"),
    ):
        answer = CliRunner().invoke(app, ["list", kind, *asked])
        assert answer.exit_code == 0, answer.output
        head, *rows = answer.output.splitlines()
        assert head.split() == ["name", "label", "source", "needs"]
        assert sorted(row.split()[0] for row in rows) == sorted(registry)
        assert mine in registry
        assert any(row.startswith(mine) and label_of(registry[mine]) in row for row in rows)


@pytest.mark.parametrize(
    ("plugins", "source", "said"),
    [
        (["my_module"], "def broken(:\n", "plugins: my_module: "),
        (["my_module"], "1 / 0\n", "plugins: my_module: "),
        (["my_mdule"], "", "plugins: there is no module 'my_mdule' on Python's path, nor my_mdul"),
        (["my_module"], "import my_numpy\n", "plugins: my_module: needs my_numpy, which is not"),
        ("my_module", "", "plugins: name modules in a list, such as [my_module]"),
        (
            ["my_module"],
            PLUGIN.replace('"my_layer"', '"adaround"'),
            "plugins: my_module: there is a method 'adaround' already, in "
            "fairq_utils.quantizers.post_training; take another name",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why(
    plugins: object, source: str, said: str, tmp_path: Path, untouched: None
) -> None:
    (tmp_path / "my_module.py").write_text(source)
    path = tmp_path / "toys.yaml"
    more = {"training": {"models": {"squeezenet1_1": RECIPE}}}
    content = {**STUDY, **more, "grid": [{"method": "ptq", "bits": "W8A8"}]}
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
        labels = [label_of(entry) for entry in registry.values()]
        assert all(labels)
    assert len({(m.family, m.label) for m in METHODS.values()}) == len(METHODS)
    assert len({entry.label for entry in SAMPLERS.values()}) == len(SAMPLERS)


def test_what_no_study_could_serve_is_refused_where_it_is_registered(untouched: None) -> None:
    with pytest.raises(BadInput, match=r"sampler x: needs='images' is not one of group, losses"):
        sampler("x", label="x", needs="images")
    with pytest.raises(BadInput, match="method x: options: 'weight_rnge' is unknown; did you mean"):
        method("x", label="x", family="x", fit=_one_layer, options={"weight_rnge": "mse"})
    with pytest.raises(
        BadInput, match="method x: needs: 'image' is unknown; did you mean 'images'"
    ):
        method("x", label="x", family="x", fit=_one_layer, needs="image")


WRONG_ROWS: dict[str, tuple[Callable[[Pool], Any], str]] = {
    "a mask": (lambda pool: pool.target == 1, r"ndarray of bool, \(64,\)"),
    "too few": (lambda pool: np.arange(3), "3 rows"),
    "one twice": (lambda pool: np.zeros(pool.count, int), "a row twice"),
    "beyond the pool": (lambda pool: np.arange(pool.count) + 60, "row 75"),
    "negative": (lambda pool: np.arange(pool.count) - 1, "row -1"),
    "floats": (lambda pool: np.arange(pool.count) / 2, r"ndarray of float64, \(16,\)"),
    "nothing": (lambda pool: None, r"NoneType of object, \(\)"),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_rows_of_a_sampler_are_checked(name: str, untouched: None) -> None:
    drawn, wrong = WRONG_ROWS[name]
    sampler("odd", label="odd")(drawn)
    groups = pd.DataFrame({"gender": ["f", "m"] * 32})
    with pytest.raises(BadInput, match=f"sampler 'odd' returned {wrong} where 16 distinct rows of"):
        draw("odd", groups, np.zeros(64, np.int8), IMAGES, seed=0, attributes=["gender"])
    listed = list(range(IMAGES))
    sampler("odd", label="odd")(lambda pool: listed)  # type: ignore[arg-type, return-value]
    found = draw("odd", groups, np.zeros(64, np.int8), IMAGES, seed=0, attributes=["gender"])
    assert found.tolist() == listed


def test_a_sampler_that_raises_is_named(untouched: None, tmp_path: Path) -> None:
    sampler("odd", label="odd")(lambda pool: np.flatnonzero(pool.groups["sex"] == "f"))
    said = (
        r"sampler 'odd' of \S*test_registries raised KeyError: 'sex'; the pool has the attributes"
    )
    path = tmp_path / "toys.yaml"
    more = {"training": {"models": {"squeezenet1_1": RECIPE}}}
    entry = {"method": "ptq", "bits": "W8A8", "sampler": "odd"}
    path.write_text(yaml.safe_dump({**STUDY, **more, "grid": [entry]}))
    with pytest.raises(ParamsError, match=rf"grid\[0\]\.sampler: odd: calibration: {said}"):
        feasibility.check(Study(load_params(path)))


def test_a_methods_own_ranges_hold_in_a_study(untouched: None) -> None:
    own = {"weight_granularity": "tensor", "weight_range": "percentile", "percentile": 99.0}
    method("own_ranges", label="own", family="static", fit=_one_layer, options=own)

    def specs(**more: Any) -> list[QuantSpec]:
        entry = {"method": "own_ranges", "bits": "W4A8", **more}
        params = Params.model_validate(
            {**STUDY, "training": {"models": {"squeezenet1_1": RECIPE}}, "grid": [entry]}
        )
        runs = planning.plan(Study(params))
        return [run_models._spec(run) for run in runs if run.method == "own_ranges"]

    [plain] = specs()
    assert (plain.weight_range, plain.activation_range, plain.percentile) == (
        "percentile", "minmax", 99.0
    )  # fmt: skip
    assert plain == METHODS["own_ranges"].spec("W4A8")
    [asked] = specs(range="mse")
    assert (asked.weight_range, asked.activation_range) == ("mse", "mse")
    [asked] = specs(range="percentile")
    assert (asked.weight_range, asked.percentile) == ("percentile", 99.0)


def test_settings_are_of_the_kind_of_their_defaults(untouched: None) -> None:
    toy_method()
    given: list[dict[str, Any]] = [{"layer_bits": "lots"}, {"layer_bits": [2, True]}]
    for more in given:
        with pytest.raises(ValueError, match=r"layer_bits: .* give a number, such as 8"):
            Entry.model_validate({"method": "one_layer", "bits": "W4A8", **more})
    Entry.model_validate({"method": "one_layer", "bits": "W4A8", "layer_bits": [2, 6]})


def test_a_toy_is_called_with_its_own_settings(untouched: None) -> None:
    toy_method()
    model, data = _net(classes=2, image_size=8, pretrained=False), loader_of(64)
    found: Any = apply_quantization(model, "one_layer", "W4A8", data, layer_bits=2)
    assert found.report.layers["2"] == "W2A8"
    with pytest.raises(BadInput, match="option 'layer_bit' is unknown; did you mean 'layer_bits'"):
        apply_quantization(model, "one_layer", "W4A8", data, layer_bit=2)
    with pytest.raises(
        BadInput, match="ptq has no layer_bits; leave it out, or use one of one_lay"
    ):
        apply_quantization(model, "ptq", "W4A8", data, layer_bits=2)


@pytest.mark.parametrize("name", [n for n in SAMPLERS if SAMPLERS[n].needs in ("", *VIEWS)])
def test_samplers_have_a_users_labels_groups_and_model(name: str, untouched: None) -> None:
    seen: list[Pool] = []
    drawn = SAMPLERS[name].draw

    def noted(pool: Pool) -> Indices:
        seen.append(pool)
        return drawn(pool)

    model, data = _net(classes=2, image_size=8, pretrained=False).eval(), loader_of(64)
    with SAMPLERS.as_shipped(**{name: replace(SAMPLERS[name], draw=noted)}):
        apply_quantization(model, "ptq", 8, data, sampler=name, calibration_images=16)
    [pool] = seen
    images, labels, groups = data[0]
    if name != "random":
        assert pool.groups.to_dict("list") == groups
    assert pool.target.tolist() == labels.tolist()
    if SAMPLERS[name].needs == "losses":
        wanted = nn.functional.cross_entropy(model(images), labels, reduction="none")
        np.testing.assert_allclose(pool.losses, wanted.detach().numpy(), rtol=1e-5)


def loader_of(count: int) -> list[Any]:
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    groups = {"gender": ["f", "m"] * (count // 2), "age": ["old", "old", "young", "young"] * 16}
    return [(images, torch.tensor([0, 1, 1, 0] * (count // 4)), groups)]
