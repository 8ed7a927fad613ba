"""Params files: what is refused, in which words, and that nothing is written then."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fairq_utils.cli import app
from fairq_utils.data import load
from fairq_utils.errors import BadInput
from fairq_utils.study import environment, feasibility
from fairq_utils.study import study as study_module
from fairq_utils.study.params.file import load_params, parse_overrides
from fairq_utils.study.params.study import Params, ParamsError

SMOKE = Path(__file__).resolve().parents[1] / "params" / "smoke.yaml"
PROFILES = sorted((Path(__file__).resolve().parents[1] / "params").glob("*.yaml"))
SMALL = {
    "name": "small",
    "data": {"size": 32, "train": 100, "calibration": 40, "validation": 10, "test": 60},
    "training": {"models": {"squeezenet1_1": {"epochs": 1, "learning_rate": 0.001}}},
    "grid": [
        {"method": "ptq", "bits": "W8A8", "sampler": ["random", "group_balanced"]},
        {"method": "dynamic", "bits": "W8A8"},
    ],
    "quantization": {"calibration_images": 20},
}


def written(folder: Path, content: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(**sections: dict[str, object]) -> dict[str, object]:
    return {
        **SMALL,
        **{k: {**SMALL.get(k, {}), **v} for k, v in sections.items()},  # type: ignore[dict-item]
    }


def planned(**entry: object) -> dict[str, object]:
    """The study with one more entry in its grid, of plain quantization where it says no other."""
    return {**SMALL, "grid": [*SMALL["grid"], {"method": "ptq", "bits": "W8A8", **entry}]}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_shipped_profiles_are_sound_and_named_as_their_file(profile: Path) -> None:
    params = load_params(profile)
    assert params.name == profile.stem
    root = profile.parents[1]
    assert Path(params.execution.ledger).is_relative_to(root)


def test_default_covers_all_five_architectures() -> None:
    params = load_params(next(p for p in PROFILES if p.stem == "default"))
    assert set(params.training.models) == {
        "resnet50",
        "mobilenet_v2",
        "efficientnet_b0",
        "vit_small",
        "squeezenet1_1",
    }


BAD = {
    "unknown key": (
        changed(quantization={"calibration_image": 2}),
        "quantization.calibration_image: unknown key; did you mean 'calibration_images'?",
    ),
    "unknown key of an entry": (
        planned(bit="W4A4"),
        "grid[2]: bit: 'bit' is unknown; did you mean 'bits'?",
    ),
    "a setting of another method": (
        planned(budget=0.1),
        "grid[2]: budget: 'budget' is unknown; it is one of method, bits, range, sampler",
    ),
    "unknown key, nothing near": (
        changed(analysis={"zzz": 1}),
        "analysis.zzz: unknown key; the keys are replicates, confidence",
    ),
    "unknown key of a model": (
        changed(training={"models": {"resnet50": {"epoch": 1, "learning_rate": 0.1}}}),
        "training.models.resnet50.epoch",
    ),
    "wrong type": (changed(data={"train": "many"}), "data.train: 'many' will not do"),
    "missing": ({"name": "x", "grid": SMALL["grid"]}, "training: this key is req"),
    "no grid": ({k: SMALL[k] for k in SMALL if k != "grid"}, "grid: this key is required; add it"),
    "no method": ({**SMALL, "grid": [{"bits": "W8A8"}]}, "grid[0].method: this key is required"),
    "bits": (planned(bits="W5A8"), "grid[2].bits[0]: 'W5A8' is not W<bits>A<bits>"),
    "no bits": (planned(bits=[]), "grid[2]: bits: ptq needs them; add such as bits: [W8A8, W4A4]"),
    "twice": (planned(bits=["W8A8", "W8A8"]), "grid[2].bits: 'W8A8' stands there twice"),
    "architecture": (
        changed(training={"models": {"vgg": {"epochs": 1, "learning_rate": 0.1}}}),
        "training.models: architecture 'vgg' is unknown; did you mean 'vgg",
    ),
    "dynamic without eight bits": (
        planned(method="dynamic", bits=["W8A8", "W4A4"]),
        "grid[2]: bits: dynamic quantizes activations to 8 bits, and W4A4 has others",
    ),
    "ranges of what has none": (
        planned(method=["ptq", "dynamic"], range="mse"),
        "grid[2]: range: dynamic looks at no calibration images; take it out, or give the method "
        "an entry of its own",
    ),
    "calibration images of what has none": (
        planned(method="dynamic", calibration_images=8),
        "grid[2]: calibration_images: dynamic looks at no calibration images",
    ),
    "a range": (
        planned(range="min-max"),
        "grid[2].range[0]: 'min-max' is unknown; did you mean 'minmax'?",
    ),
    "a sampler": (
        planned(sampler=["random", "fair"]),
        "grid[2].sampler[1]: 'fair' is unknown; it is one of random, label_balanced",
    ),
    "a model that there is not": (
        planned(models="vgg"),
        "grid[2].models: 'vgg' is not trained in this study; training.models has squeezenet1_1",
    ),
    "a model that is not trained": (
        planned(method="ranges_worst", models=["squeezenet1_1", "vit_small"]),
        "grid[2].models: 'vit_small' is not trained in this study",
    ),
    "a seed that is not trained": (
        planned(seeds=[0, 3]),
        "grid[2].seeds: 3 is not trained in this study; training.seeds has 0",
    ),
    "a method": (
        planned(method="qat_paritY"),
        "grid[2].method[0]: 'qat_paritY' is unknown; did you mean 'qat_parity'?",
    ),
    "a method of a dial": (
        changed(dials={"grid": [{"method": "hope", "bits": "W8A8"}]}),
        "dials.grid[0].method[0]: 'hope' is unknown; it is one of",
    ),
    "no list": (
        changed(analysis={"attributes": "gender"}),
        "analysis.attributes: 'gender' will not do: it is a list; write [gender]",
    ),
    "no list of entries": (
        {**SMALL, "grid": SMALL["grid"][0]},
        "grid: {'bits': 'W8A8', 'method': 'ptq', 'sampler': ['random', 'group_balanced']} will not "
        "do: it is a list",
    ),
    "a collection misspelt": (
        changed(data={"name": "celebra"}),
        "data.name: 'celebra' will not do; did you mean 'celeba'?",
    ),
    "one of two": (
        changed(analysis={"attributes": ["gender"]}),
        "analysis.attributes: has 1; name at least 2",
    ),
    "no section": (
        {**changed(), "quantization": 3},
        "quantization: 3 will not do: it holds keys with values",
    ),
    "an empty grid": ({**SMALL, "grid": []}, "grid: has 0; name at least 1"),
    "an empty list": (planned(method=[]), "grid[2].method: has 0; name at least 1"),
    "a dial's calibration images": (
        changed(dials={"models": ["resnet50"], "calibration_images": 300, "calibration": 200}),
        "dials.calibration_images: 300 images are asked for, but dials.calibration holds 200",
    ),
    "more calibration images than exist": (
        changed(quantization={"calibration_images": 41}),
        "quantization.calibration_images: 41 images are asked for, but data.calibration holds 40",
    ),
    "more calibration images of an entry than exist": (
        planned(calibration_images=[20, 50]),
        "grid[2].calibration_images: 50 images are asked for, but data.calibration holds 40",
    ),
    "a group with none": (
        changed(
            data={
                "joint": {
                    f"{g}|{a}|{y}": float(g == "male" or a == "young")
                    for g in ("female", "male")
                    for a in ("old", "young")
                    for y in "01"
                }
            }
        ),
        "the group female|old has no weight",
    ),
    "no root": (SMALL | {"data": {"name": "celeba", "root": ""}}, "data.root: '' will not do"),
    "a key misspelt": (
        SMALL | {"data": {"name": "celeba", "root": "faces", "max_bed": 3}},
        "data.max_bed: 'max_bed' is unknown; did you mean 'max_bad'?",
    ),
    "an option of another collection": (
        SMALL | {"data": {"name": "celeba", "root": "faces", "margin": "0.25"}},
        "data.margin: 'margin' is unknown; it is one of name, root",
    ),
    "an option's value": (
        SMALL | {"data": {"name": "fairface", "root": "faces", "margin": 0.5}},
        "data.margin: '0.5' is not one of 0.25, 1.25",
    ),
    "a group twice": (
        SMALL | {"data": {"name": "celeba", "root": "faces", "groups": ["gender", "gender"]}},
        "data: groups: 'gender' is named twice; name each attribute once",
    ),
    "patches": (
        changed(
            data={"size": 40},
            training={"models": {"vit_small": {"epochs": 1, "learning_rate": 0.1}}},
        ),
        "data.size: vit_small takes no images of 40 pixels; take a multiple of 16",
    ),
    "batch": (
        changed(
            training={
                "models": {"resnet50": {"epochs": 1, "learning_rate": 0.1, "batch_size": 101}}
            }
        ),
        "training.models.resnet50.batch_size: 101 is more than the 100 images",
    ),
    "negative": (changed(training={"auxiliary": -1}), "training.auxiliary: -1 will not do"),
    "not a number": (changed(data={"difficulty": float("nan")}), "data.difficulty: nan will"),
    "yaml": ("name: [", "line"),
    "no mapping": ("- 1\n- 2\n", "holds no mapping of keys"),
    "empty": ("", "holds no mapping of keys"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD.values(), ids=BAD)
def test_bad_params_are_one_sentence_exit_2_and_nothing_written(
    content: object, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, content)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    for command in (["run"], ["plan"], ["check"]):
        answer = CliRunner().invoke(app, [*command, "--params", str(path)])
        assert answer.exit_code == 2
        assert sentence in answer.stderr
        assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"absent.yaml: cannot be read: No such file"):
        load_params(tmp_path / "absent.yaml")
    with pytest.raises(ParamsError, match="cannot be read: Is a directory"):
        load_params(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParamsError, match="not UTF-8"):
        load_params(binary)


def test_paths_are_taken_from_the_files_place(tmp_path: Path) -> None:
    params = load_params(written(tmp_path, SMALL))
    assert params.execution.ledger == str(tmp_path / "build" / "ledger")
    folder = tmp_path / "params"
    folder.mkdir()
    content = {**SMALL, "execution": {"ledger": "memory://somewhere"}}
    params = load_params(written(folder, content))
    assert params.execution.ledger == "memory://somewhere"
    assert params.execution.cache == str(tmp_path / "build" / "cache")


def test_params_are_hashable_values() -> None:
    a, b = Params.model_validate(SMALL), Params.model_validate(SMALL)
    assert a == b
    assert hash(a) == hash(b)


def test_overrides_take_the_place_of_the_files_values(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    given = ["grid=[{method: ptq, bits: W4A8}]", "data.test=70"]
    params = load_params(path, parse_overrides(given))
    assert [entry.bits for entry in params.grid] == [("W4A8",)]
    assert params.data.test == 70
    assert params.data.train == 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data.test", "override 'data.test': write it as KEY=VALUE"),
        ("data.tset=5", "data.tset: unknown key; did you mean 'test'?"),
        ("name.first=x", "override name.first: 'name' holds no keys"),
        ("data.test=[", "the value is not YAML"),
        ("data.test=many", "data.test: 'many' will not do"),
    ],
)
def test_bad_overrides_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ParamsError, match=re.escape(said)):
        load_params(written(tmp_path, SMALL), parse_overrides([text]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            changed(data={"race": {"african": 0, "asian": 0.5, "caucasian": 0.5}})
            | {"analysis": {"attributes": ["gender", "race"]}},
            "data.test: none of 60 test images shows the group 'female african'",
        ),
        (
            changed(quantization={"calibration_images": 40}),
            "grid[0].sampler: group_balanced: calibration: the group",
        ),
    ],
)
def test_people_that_cannot_serve_the_study_are_refused_before_anything_is_written(
    tmp_path: Path, content: object, said: str
) -> None:
    path = written(tmp_path, content)
    answer = CliRunner().invoke(app, ["run", "--params", str(path)])
    assert answer.exit_code == 2
    assert said in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


TEXT = yaml.safe_dump(SMALL, sort_keys=False)
BOMB = "a: &a [1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 30)}]\n"
    for before, name in ("ab", "bc", "cd", "de")
)
TEXTS = {
    "a key twice": (
        TEXT.replace("  train: 100\n", "  train: 100\n  test: 61\n"),
        "line 8: 'test' stands on line 5 too; keep one of them",
    ),
    "a key twice in one line": ("data: {train: 2000, train: 200}", "line 1: 'train' stands on"),
    "a section twice": (f"{TEXT}data: {{size: 48}}\n", "'data' stands on line 2 too"),
    "a time in place of a number": (
        TEXT.replace("train: 100", "train: 10:00"),
        "data.train: '10:00' will not do",
    ),
    "a truth in place of a number": (
        TEXT.replace("training:\n", "training:\n  seeds: [true]\n"),
        "training.seeds: true is no number or name",
    ),
    "aliases that stand for millions": (BOMB, r"aliases \(\*name\) stand for more than 100,000"),
    "an alias of what it stands in": ("name: &a [*a]", "line 1: it contains itself"),
    "deep lists": ("name: " + "[" * 3000, "nested too deeply"),
    "a long text": (
        TEXT.replace("size: 32", f"size: {'x' * 5000}"),
        r"^[^\n]{0,400}data.size: 'xxx[^\n]{0,200}$",
    ),
    "no ledger": (f"{TEXT}execution: {{ledger: ''}}\n", "execution.ledger: '' will not do"),
    "a variable that is not set": (
        f"{TEXT}execution: {{ledger: $NOWHERE/x}}\n",
        r"execution.ledger: \$NOWHERE/x: \$NOWHERE is not set in the environment",
    ),
    "nobody's home": (
        f"{TEXT}execution: {{cache: ~nobody-here/x}}\n",
        "execution.cache: ~nobody-here/x: there is no such user",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_yaml_would_read_in_silence_is_refused(name: str, tmp_path: Path) -> None:
    text, sentence = TEXTS[name]
    with pytest.raises(ParamsError) as found:
        load_params(written(tmp_path, text))
    assert re.search(sentence, str(found.value)), str(found.value)


def test_numbers_are_those_that_are_written(tmp_path: Path) -> None:
    text = TEXT.replace("size: 32", "size: 040").replace("train: 100", "train: 0200")
    text = text.replace("learning_rate: 0.001", "learning_rate: 1e-3")
    text += "cluster: {kind: slurm, workers: 2, memory: 4GB, walltime: 12:00:00}\n"
    found = load_params(written(tmp_path, text))
    assert (found.data.size, found.data.train) == (40, 200)
    assert found.training.models["squeezenet1_1"].learning_rate == 0.001
    assert found.cluster.walltime == "12:00:00"
    assert parse_overrides(["data.train=0200"]) == {"data.train": 200}
    with pytest.raises(ParamsError, match=r"training\.seeds: true is no number"):
        load_params(written(tmp_path, TEXT), {"training.seeds": [True]})


@pytest.mark.parametrize("key", [
    "execution.ledger", "execution.cache", "execution.results", "tracking.tensorboard",
    "tracking.mlflow", "data.root",
])  # fmt: skip
def test_paths_are_expanded_alike(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    section, name = key.split(".")
    more: dict[str, object] = {"data": {"name": "utkface", "size": 32}} if name == "root" else {}
    path = written(tmp_path, SMALL | more)

    def placed(value: str) -> str:
        given = load_params(path, {key: value})
        return str(getattr(getattr(given, section), name))

    assert placed("~/x") == str(tmp_path / "home" / "x")
    assert placed("$SCRATCH/x") == placed("${SCRATCH}/x") == str(tmp_path / "scratch" / "x")
    assert placed("x::y") == str(tmp_path / "x::y")
    (tmp_path / "$odd").mkdir()
    assert placed("$odd") == str(tmp_path / "$odd")


@pytest.mark.parametrize("split", ["train", "calibration", "validation", "test"])
def test_a_plan_costs_no_more_for_what_it_plans(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more people are drawn than tell whether it can be done; the rest is said."""
    drawn: list[int] = []
    draw = study_module.demographics

    def counted(people: object, name: str, indices: Any) -> object:
        drawn.append(len(indices))
        return draw(people, name, indices[:200])  # type: ignore[arg-type]

    monkeypatch.setattr(study_module, "demographics", counted)
    monkeypatch.setattr(feasibility, "MOST", 200)
    path = written(tmp_path, changed(data={"calibration": 400}))
    answer = CliRunner().invoke(
        app, ["plan", "--params", str(path), "--set", f"data.{split}=1000000000"]
    )
    assert answer.exit_code == 0, answer.output
    assert f"data.{split}: 1,000,000,000 images of 32 pixels take 2,861 GiB" in answer.stdout
    assert max(drawn) <= 200


def test_an_absurd_size_is_refused_before_it_is_rendered(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data\.train: 1,000,000,000 images .*ask for fewer"):
        load("population", sizes={"train": 10**9}, cache=tmp_path / "cache")


def test_a_long_plan_is_cut_and_says_so(tmp_path: Path) -> None:
    seeds = {"seeds": list(range(400))}
    path = written(tmp_path, changed(training=seeds, data={"calibration": 400}))
    answer = CliRunner().invoke(app, ["plan", "--params", str(path), "--runs"])
    assert answer.exit_code == 0, answer.output
    *listed, more, total = answer.stdout.splitlines()
    assert len(listed) == 1000
    assert more == "and 600 more; --most 1600 lists all"
    assert total.startswith("0 of 1600 runs are in ")


def _a_file(place: Path) -> None:
    place.write_text("in the way")


def _under_a_file(place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_text("in the way")


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("key", ["ledger", "cache", "results"])
@pytest.mark.parametrize("blocked", [_a_file, _under_a_file])
def test_a_place_that_cannot_be_a_folder_is_refused_alike(
    command: str, key: str, blocked: Any, tmp_path: Path
) -> None:
    place = tmp_path / "in" / "place"
    place.parent.mkdir()
    blocked(place)
    before = sorted(tmp_path.rglob("*"))
    path = written(tmp_path, {**SMALL, "execution": {key: str(place)}})
    answer = CliRunner().invoke(app, [command, "--params", str(path)])
    assert answer.exit_code == 1
    assert re.match(
        rf"execution\.{key}: {place} cannot be made \(.*\); name another", answer.stderr
    )
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])


def test_everything_is_written_below_the_work_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRQ_WORK", str(tmp_path / "work"))
    execution = load_params(SMOKE).execution
    for name in ("ledger", "cache", "results"):
        assert Path(getattr(execution, name)).is_relative_to(tmp_path / "work")
    found = load_params(
        SMOKE,
        {"execution.cache": "/elsewhere", "tracking.tensorboard": "shown"},
    )
    assert found.execution.cache == "/elsewhere"
    assert found.tracking.tensorboard == str(tmp_path / "work" / "shown")


@pytest.mark.parametrize("place", ["build", "execution.ledger", "execution.results"])
def test_check_says_where_nothing_can_be_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = None
    shut = tmp_path
    if place != "build":
        shut = tmp_path / "shut"
        shut.mkdir()
        settings = load_params(SMOKE, {place: str(shut / "inner")})
    told = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shut and told(path, mode))
    item = next(item for item in environment.inspect(settings) if item.name == "places")
    assert not item.ok
    assert item.detail == f"{place}: {shut} cannot be written; name another place with --work DIR"
    monkeypatch.undo()
    assert next(i for i in environment.inspect(settings) if i.name == "places").ok


TRIAL = """name: trial
data:
  train: 600
training:
  seeds: [0]
  models:
    squeezenet1_1: {epochs: 1, learning_rate: 0.0003, batch_size: 32}
grid:
  - {method: ptq, bits: W8A8}
  - {method: ptq,
     bits: W4A4}
execution:
  ledger: build/ledger
"""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("train: 600", "train: 10:00", 3),
        ("train: 600", "train: .inf", 3),
        ("train: 600", "train: [600]", 3),
        ("train: 600", "trian: 600", 3),
        ("seeds: [0]", "seeds: [true]", 5),
        ("seeds: [0]", "seeds: [0,\n    ~]", 6),
        ("bits: W4A4", "bits: W5A4", 11),
        ("batch_size: 32", "batch_size: no", 7),
        ("ledger: build/ledger", "ledger: ''", 13),
        ("ledger: build/ledger", "ledger: [" + "x, " * 5000 + "]", 13),
        ("data:", "data: 5\nx:", 2),
    ],
)
def test_a_value_that_cannot_be_is_said_with_its_line(
    old: str, new: str, line: int, tmp_path: Path
) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(TRIAL.replace(old, new))
    with pytest.raises(ParamsError, match=rf" \(line {line}\)$") as refusal:
        load_params(path)
    assert len(str(refusal.value)) < len(str(path)) + 300 and "\n" not in str(refusal.value)


def test_a_value_that_is_set_elsewhere_has_no_line(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(TRIAL)
    assert load_params(path).data.train == 600
    with pytest.raises(ParamsError, match=r"data\.train: 'x' will not do: .*[^)]$"):
        load_params(path, {"data.train": "x"})


@pytest.mark.parametrize("place", [" ", "a\0b", "\t"])
def test_a_place_is_a_path(place: str) -> None:
    with pytest.raises(ParamsError, match=r"execution\.ledger: .* is no path; write one, or leave"):
        load_params(SMOKE, {"execution.ledger": place})


@pytest.mark.parametrize(
    ("groups", "attributes"),
    [
        ("{sex: gender, age: age}", ("sex", "age")),
        ("[gender, hair]", ("gender", "hair")),
        ("{a: x, b: y, c: z}", ("a", "b", "c")),
    ],
)
def test_attributes_are_those_of_the_photographs_unless_named(
    groups: str, attributes: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "trial.yaml"
    data = f"data: {{name: folder, root: faces, size: 64, groups: {groups}}}"
    path.write_text(TRIAL.replace("data:\n  train: 600", data))
    assert load_params(path).analysis.attributes == attributes
    two = list(attributes[::-1][:2])
    named = load_params(path, {"analysis.attributes": two})
    assert named.analysis.attributes == tuple(two)
    assert load_params(path, {"analysis.replicates": 100}).analysis.attributes == attributes


def test_one_attribute_of_photographs_is_too_few(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    data = "data: {name: folder, root: faces, size: 64, groups: [hair]}"
    path.write_text(TRIAL.replace("data:\n  train: 600", data))
    with pytest.raises(ParamsError, match=r"data\.groups: names hair alone, and .*; name another"):
        load_params(path)
