"""A training that is killed ends in the weights that it would have had."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fairq_utils.data import FaceData
from fairq_utils.data.whole_files import NotRead
from fairq_utils.mitigation.constraints import CONSTRAINTS
from fairq_utils.mitigation.fine_tuning import OnFaces
from fairq_utils.mitigation.group_facts import facts_of_faces
from fairq_utils.quantizers import QuantSpec, observe, prepare_qat
from fairq_utils.study import planning, runs
from fairq_utils.study.params.file import load_params
from fairq_utils.study.progress import Progress
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study
from fairq_utils.training import architectures, loop, objectives
from fairq_utils.training.resume import Checkpoints

RECIPE = loop.Recipe(epochs=3, learning_rate=2e-3, batch_size=16)
STEPS = 5  # of an epoch; a few pictures are left over


def faces(count: int = 85, splits: dict[str, int] | None = None) -> FaceData:
    """Pictures with a bright half, and people of all groups."""
    rng = np.random.default_rng(0)
    images = rng.integers(60, 160, (count, 3, 32, 32)).astype(np.uint8)
    target = rng.integers(0, 2, count).astype(np.int8)
    images[target == 1, :, 8:24] += 60
    names = {
        "gender": ("female", "male"),
        "age": ("old", "young"),
        "race": ("african", "asian", "caucasian"),
    }
    groups = pd.DataFrame(
        {k: pd.Categorical(rng.choice(v, count), categories=v) for k, v in names.items()}
    )
    factors = pd.DataFrame({"height": target + rng.random(count), "yaw": rng.random(count)})
    sizes = splits or {"train": count}
    split = np.repeat(list(sizes), list(sizes.values()))
    return FaceData(torch.from_numpy(images), target, groups, split, factors)


class Mortal(nn.Module):
    """An objective during whose so-manieth call the process is killed."""

    def __init__(self, objective: nn.Module, dies_at: int) -> None:
        super().__init__()
        self.objective, self.left = objective, dies_at

    def forward(self, model: nn.Module, *batch: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        loss: Tensor = self.objective(model, *batch)
        return loss


def small() -> nn.Module:
    """Batch norm, dropout, and a layer with bias: all kinds of state."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(6, 2),
    )


def trained(
    kind: str, checkpoints: Checkpoints | None, dies_at: int = 0
) -> tuple[loop.History, dict[str, Tensor]]:
    """A training of one kind, from its beginning or from its checkpoint."""
    data = faces()
    torch.manual_seed(0)
    model = small()
    objective: nn.Module = objectives.Classification(data)
    if kind == "coefficients":
        objective = objectives.WithFactors(data, model, 1.0)
    if kind in ("group_dro", "balancing_act"):
        about = facts_of_faces(model.eval(), data, ("gender", "age"))
        options = {"memory": 4} if kind == "balancing_act" else {"step": 0.5}
        objective = OnFaces(data, CONSTRAINTS[kind](about, **options))
    if kind == "quantized":
        seen = observe(model.eval(), [architectures.normalize(data.images[:32])])
        model = prepare_qat(seen, QuantSpec.parse("W4A4"))
    torch.manual_seed(1)
    history = loop.fit(
        model, data, RECIPE, Mortal(objective, dies_at), seed=5, checkpoints=checkpoints
    )
    state = {**model.state_dict(), **{f"o.{k}": v for k, v in objective.state_dict().items()}}
    return history, {**state, "random": torch.get_rng_state()}


def _killed(kind: str, checkpoints: Checkpoints, dies_at: int) -> None:
    torch.set_num_threads(1)
    trained(kind, checkpoints, dies_at)


@pytest.fixture(scope="module")
def server() -> Any:
    """Starts processes that have imported what a training needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fairq_utils.study.runs"])
    return context


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


KINDS = ("coefficients", "group_dro", "balancing_act", "quantized")
# In the first step, within a pass, at the first and the last step of one, in the very last step.
MOMENTS = (1, 2, 8, STEPS + 1, 2 * STEPS, 3 * STEPS)


@pytest.mark.parametrize(
    ("kind", "dies_at"),
    [("coefficients", m) for m in MOMENTS] + [(k, 8) for k in KINDS[1:]],
)
def test_a_killed_training_ends_as_if_it_had_not_been(
    kind: str, dies_at: int, server: Any, tmp_path: Path
) -> None:
    kept = Checkpoints(tmp_path / "run.unfinished", 0.0, "run")
    worker = server.Process(target=_killed, args=(kind, kept, dies_at))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    with safe_open(kept.path, "pt") as stream:
        at = json.loads(stream.metadata()["training"])
    assert at["epoch"] * STEPS + at["step"] == dies_at - 1
    whole, expected = trained(kind, None)
    again, found = trained(kind, kept)
    assert again.loss == whole.loss
    assert len(again.loss) == 3
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    # A temporary file is all that a kill may leave besides.
    assert {p.name for p in tmp_path.iterdir() if p.suffix != ".tmp"} == {"run.unfinished"}


def test_what_was_trained_is_not_trained_again(tmp_path: Path) -> None:
    kept, data = Checkpoints(tmp_path / "run.unfinished", 0.0, "run"), faces()
    trained("plain", kept)
    calls = []

    class Counting(objectives.Classification):
        def forward(self, model: nn.Module, *batch: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(model, *batch)

    loop.fit(small(), data, RECIPE, Mortal(Counting(data), 0), seed=5, checkpoints=kept)
    assert len(calls) == 1  # the last one, which no checkpoint follows


@pytest.mark.parametrize("last", [2 * STEPS, 2 * STEPS + 3])  # the end of a pass, and within one
def test_a_training_that_goes_on_says_so_first(last: int, tmp_path: Path) -> None:
    kept, data = Checkpoints(tmp_path / "run.unfinished", 0.0, "run"), faces()
    told: list[tuple[int, int, float]] = []

    class Stopped(objectives.Classification):
        left = last + 1

        def forward(self, model: nn.Module, *batch: Tensor) -> Tensor:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().forward(model, *batch)

    def fitted(objective: nn.Module) -> None:
        told.clear()
        loop.fit(
            small(),
            data,
            RECIPE,
            objective,
            seed=5,
            checkpoints=kept,
            progress=lambda *said: told.append(said),
        )

    with pytest.raises(KeyboardInterrupt):
        fitted(Stopped(data))
    assert told == []  # a hundred steps are not done
    fitted(objectives.Classification(data))
    assert [step for step, _, _ in told] == [last, 3 * STEPS]
    assert all(steps == 3 * STEPS and 0.1 < loss < 2 for _, steps, loss in told)


def test_the_terminal_is_told_that_a_training_goes_on(tmp_path: Path) -> None:
    run, stream = planned(study(tmp_path / "study", 0), "fp32"), io.StringIO()
    tick = Progress([run], stream, 1).training(run)
    tick(450, 1000, 0.5)
    tick(500, 1000, 0.5)
    assert re.findall(r"goes on at step 450 of 1000, loss 0.500", stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    tick = Progress([run], stream, 1).training(run)
    tick(5 * loop.REPORTED, 1000, 0.5)  # of a worker, whose first ones did not come through
    assert stream.getvalue().count("\n") == 1


def test_pictures_that_were_trained_on_are_not_read_again() -> None:
    data = faces()
    passes = loop.Passes(data, 16, seed=5)
    whole = [list(passes()) for _ in range(2)]

    class Watched:
        def __init__(self, images: Tensor) -> None:
            self.images, self.read = images, 0

        def __getitem__(self, rows: Tensor) -> Tensor:
            self.read += len(rows)
            return self.images[rows]

    again = loop.Passes(data, 16, seed=5)
    watched = Watched(data.images)
    object.__setattr__(data, "images", watched)
    again.first = 3
    rest = [list(again()), list(again())]
    assert watched.read == (2 + STEPS) * 16
    assert [len(part) for part in rest] == [2, STEPS]
    for mine, theirs in zip(rest[0] + rest[1], whole[0][3:] + whole[1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _another_step(path: Path) -> None:
    content = path.read_bytes()
    at = content.index(b'epoch\\": ') + len(b'epoch\\": ')
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.parametrize("damage", [_flip, _another_step, _cut, _empty])
def test_a_damaged_checkpoint_is_set_aside(damage: Any, tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "run.unfinished", 0.0, "run")
    whole, expected = trained("plain", kept)
    damage(kept.path)
    with pytest.warns(UserWarning, match=r"is damaged .* set aside as run\.unfinished\.aside"):
        again, found = trained("plain", replace(kept, minutes=60.0))
    assert again.loss == whole.loss
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert [p.name for p in tmp_path.iterdir()] == ["run.unfinished.aside"]


def test_a_checkpoint_that_cannot_be_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Checkpoints(tmp_path / "run.unfinished", 0.0, "run")
    trained("plain", kept)
    content = kept.path.read_bytes()

    def ill(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", ill)
        with pytest.raises(NotRead, match=r"run\.unfinished: cannot be read .*Permission denied"):
            trained("plain", kept)
    assert [p.name for p in tmp_path.iterdir()] == ["run.unfinished"]
    assert kept.path.read_bytes() == content


def test_the_checkpoint_of_another_run_is_set_aside(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "run.unfinished", 0.0, "run")
    trained("plain", kept)
    with pytest.warns(UserWarning, match=r"of another training \(run run, not other\)"):
        history, _ = trained("plain", replace(kept, run="other", minutes=60.0))
    assert len(history.loss) == 3


def test_a_full_disk_stops_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    kept = Checkpoints(tmp_path / "run.unfinished", 0.0, "run")
    with pytest.warns(UserWarning, match=r"could not be written .*No space left.* goes on"):
        history, _ = trained("plain", kept)
    assert len(history.loss) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_short_training_writes_nothing(tmp_path: Path) -> None:
    trained("plain", Checkpoints(tmp_path / "run.unfinished", 10.0, "run"))
    assert list(tmp_path.iterdir()) == []


SIZES = {"train": 70, "calibration": 40, "validation": 10, "test": 64}


def study(folder: Path, minutes: float) -> Study:
    """A study of one model, with training on."""
    content = {
        "name": "resumed",
        "data": {"size": 32, **SIZES},
        "training": {
            "checkpoint_minutes": minutes,
            "models": {"squeezenet1_1": {"epochs": 2, "learning_rate": 0.001, "batch_size": 16}},
        },
        "grid": [{"method": "qat", "bits": "W4A4"}],
        "quantization": {"calibration_images": 16},
        "execution": {"device": "cpu"},
    }
    folder.mkdir()
    path = folder / "resumed.yaml"
    path.write_text(yaml.safe_dump(content))
    return Study(load_params(path))


def planned(study: Study, method: str) -> Run:
    return next(run for run in planning.plan(study) if run.method == method)


def compute(study: Study, method: str) -> None:
    """One run, as a study computes it."""
    base = planned(study, "fp32")
    if method == "fp32":
        runs.train_baseline(study, base)
    else:
        runs.evaluate_quantized(study, [planned(study, method)], base.key)


def test_a_study_goes_on_within_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = faces(sum(SIZES.values()), SIZES)
    monkeypatch.setattr(Study, "faces", data)
    whole, stopped = study(tmp_path / "whole", 0), study(tmp_path / "stopped", 1e-9)
    loss = objectives.Classification.of_logits
    for method, steps in (("fp32", 8), ("qat", 4)):
        compute(whole, method)
        calls = 0

        def interrupted(*args: Any, last: int = steps - 1) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt
            return loss(*args)

        run = planned(stopped, method)
        kept = stopped.unfinished(run)
        assert kept is not None
        monkeypatch.setattr(objectives.Classification, "of_logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compute(stopped, method)
        assert kept.path.exists()
        assert not stopped.ledger.contains(run.key)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            compute(stopped, method)
        assert calls == steps + 1  # one step was begun twice, no other
        assert not kept.path.exists()
        monkeypatch.setattr(objectives.Classification, "of_logits", loss)
        one, other = (s.ledger.read(run.key) for s in (whole, stopped))
        np.testing.assert_array_equal(one.scores, other.scores)
        for name in ("loss_1", "loss_2") if method == "fp32" else ("loss_1",):
            assert one.measures[name] == other.measures[name]
    key = planned(whole, "fp32").weights
    mine, theirs = (load_file(s.ledger.checkpoint_path(key)) for s in (whole, stopped))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    assert not list((tmp_path / "whole").rglob("*.unfinished"))


def test_what_a_stopped_training_left_goes_once_its_run_is_there(tmp_path: Path) -> None:
    params = study(tmp_path / "study", 0).params  # which keeps nothing by itself
    where = {"ledger": f"memory://{tmp_path.name}", "cache": str(tmp_path / "cache")}
    execution = params.execution.model_copy(update=where)
    found = Study(params.model_copy(update={"execution": execution}))
    base, tuned = planned(found, "fp32"), planned(found, "qat")
    places = {run: found._unfinished(run) for run in (base, tuned)}
    places[base].parent.mkdir(parents=True)
    for path in places.values():
        path.touch()
    found.remove_abandoned([])
    assert all(path.exists() for path in places.values())
    found.remove_abandoned([base, tuned])
    assert [places[run].exists() for run in (base, tuned)] == [True, False]  # no weights yet
    store = found.ledger
    store.fs.pipe_file(store.kept_checkpoint(base.weights), b"weights")
    found.remove_abandoned([base, tuned])
    assert not places[base].exists()
