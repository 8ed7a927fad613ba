"""What is made of the benchmarks of files: gains, sizes, guidelines; and these benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fairq_utils import timers
from fairq_utils.bench import deployment, latency, throughput
from fairq_utils.bench.registry import Subject
from fairq_utils.deploy.engines.registry import ENGINES
from fairq_utils.quantizers import QuantSpec, quantize_static
from fairq_utils.report import deployment as chapter
from fairq_utils.report.fp32_models import PUBLISHED_SIZES
from fairq_utils.study import recorded
from fairq_utils.study.params.file import load_params
from fairq_utils.study.recorded import RecordError
from fairq_utils.study.study import Study
from fairq_utils.training.zoo import display_name

ROOT = recorded.FOLDER.parents[1]


def timed(batch: int, key: str, median: float) -> dict[str, object]:
    return {
        "architecture": "resnet50",
        "batch": batch,
        "key": key,
        "median": median,
        "low": 0.9 * median,
        "high": 1.2 * median,
        "joules": float("nan"),
    }


@pytest.fixture
def times() -> pd.DataFrame:
    return pd.DataFrame(
        [
            timed(1, "eager_fp32", 60.0),
            timed(1, "onnxruntime_fp32", 30.0),
            timed(1, "onnxruntime_int8", 12.0),
            timed(1, "onnxruntime_toolkit_int8", 6.0),  # the toolkit's is not ours
            timed(1, "openvino_fp32", 25.0),
            timed(1, "openvino_int8", 10.0),
            timed(32, "eager_fp32", 40.0),
            timed(32, "openvino_int8", 8.0),
        ]
    )


@pytest.fixture
def files() -> pd.DataFrame:
    row = {
        "architecture": "resnet50",
        "bits": "W8A8",
        "accuracy": 0.92,
        "simulated_accuracy": 0.921,
        "disagreement": 0.001,
        "worst_group": "f, old",
        "worst_disagreement": 0.01,
        "worst_images": 100,
        "packed_bytes": 25 * 2**20,
        "float_bytes": 100 * 2**20,
        "integer_kernels": 53,
        "float_kernels": 1,
    }
    sizes = {"onnxruntime": 40 * 2**20, "openvino": 50 * 2**20}
    return pd.DataFrame([row | {"engine": e, "file_bytes": b} for e, b in sizes.items()])


def test_gains_are_those_of_our_fastest_file(times: pd.DataFrame) -> None:
    found = chapter.speedups(times).set_index("batch")
    assert found.engine.tolist() == ["openvino", "openvino"]
    assert found.over_eager.tolist() == [6.0, 5.0]
    assert found.over_same[1] == 2.5
    assert np.isnan(found.over_same[32])  # FP32 was not measured there
    assert found.images_per_second[1] == 100
    assert found.published[1] == 3.75


def test_toolkits_are_compared_on_the_same_engine(times: pd.DataFrame) -> None:
    found = chapter.against_toolkits(times)
    assert found[["engine", "batch", "ratio"]].to_numpy().tolist() == [["onnxruntime", 1, 0.5]]


def test_sizes_stand_beside_the_ratio_of_the_bits(files: pd.DataFrame) -> None:
    found = chapter.file_sizes(files)
    assert found.ratio.tolist() == [2.5, 2.0]
    assert found.packed_ratio.tolist() == [4.0, 4.0]
    assert found.ideal.tolist() == [4.0, 4.0]


def test_the_guideline_names_the_file_that_is_fastest(
    times: pd.DataFrame, files: pd.DataFrame
) -> None:
    found = chapter.guideline(times, files)
    assert found.mebibytes.tolist() == [50.0, 50.0]
    page = chapter.guideline_table(times, files).data
    assert "INT8 in OpenVINO" in page and "ResNet-50" in page and "6.0" in page


def test_energy_is_given_where_it_was_measured(times: pd.DataFrame) -> None:
    assert "does not let its energy counters be read" in chapter.energy_sentence(times)
    times["joules"] = np.arange(1.0, len(times) + 1)
    assert "resnet50 1.00 J (eager_fp32)" in chapter.energy_sentence(times)


def test_tables_and_figures_of_the_recorded_benchmarks() -> None:
    times, files = recorded.read_rows("latency"), recorded.read_rows("deployment")
    assert set(times.architecture) == set(PUBLISHED_SIZES)
    assert set(files.engine) == set(ENGINES)
    for page in (
        chapter.speedup_table(times),
        chapter.toolkit_table(times),
        chapter.size_table(files),
        chapter.disagreement_table(files),
    ):
        assert "MobileNetV2" in page.data
    figure = chapter.latency_figure(times, batch=1)
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == [
        display_name(name) for name in dict.fromkeys(times.architecture)
    ]


def test_a_benchmark_that_is_not_recorded_says_how() -> None:
    with pytest.raises(RecordError, match="make bench-nothing"):
        recorded.read_rows("nothing")


def test_the_group_with_most_changes() -> None:
    groups = pd.DataFrame({"gender": ["f", "m", "m", "m"], "age": ["old", "old", "old", "young"]})
    changed = np.array([False, True, True, False])
    assert deployment.worst(changed, groups) == ("m, old", 1.0, 2)


def test_latency_has_every_key_and_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "ENGINES", {"onnxruntime": ENGINES["onnxruntime"]})
    monkeypatch.setattr(latency, "SIZE", 64)
    monkeypatch.setattr(latency, "BATCHES", (1, 2))
    monkeypatch.setattr(latency, "SECONDS", 0.05)

    def refuse(*_: object) -> None:
        raise RuntimeError("no such\ntoolkit here")

    monkeypatch.setattr(latency, "write_by_toolkit", refuse)
    recipe = {"squeezenet1_1": {"epochs": 1, "learning_rate": 0.001}}
    params = load_params(ROOT / "params" / "smoke.yaml", {"training.models": recipe})
    found = latency.bench_latency(Subject(Study(params)))
    for batch in ("1", "2"):
        row = found.figures["squeezenet1_1"][batch]
        assert row["onnxruntime_toolkit_int8"] is None
        assert all(row[key] > 0 for key in ("eager_fp32", "onnxruntime_fp32", "onnxruntime_int8"))
    assert found.text.splitlines()[-1] == (
        "- onnxruntime_toolkit_int8, squeezenet1_1 1, squeezenet1_1 2: failed: "
        "RuntimeError: no such toolkit here"
    )
    best = latency.fastest(found.tables["latency"]).set_index("batch")
    assert best.key.tolist() == ["onnxruntime_int8"] * 2
    row = found.figures["squeezenet1_1"]["2"]
    assert best.over_eager[2] == pytest.approx(
        row["eager_fp32"] / row["onnxruntime_int8"], rel=1e-3
    )
    rows = found.tables["latency"].set_index(["key", "batch"])
    assert rows.integer_kernels["onnxruntime_int8", 1] >= 25
    assert rows.float_kernels["onnxruntime_fp32", 1] == 26
    assert rows.file_bytes["onnxruntime_int8", 1] < rows.file_bytes["onnxruntime_fp32", 1] / 3
    assert (rows.low <= rows["median"]).all() and (rows["median"] <= rows.high).all()


class Small(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean(dim=(2, 3)))


@pytest.mark.parametrize("bits", ["W8A8", "W4A4"])
def test_the_plain_loop_quantizes_as_we_do(bits: str) -> None:
    """torchao's symmetric grids have one code more; the noise of both is of one size."""
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(32, 3, 12, 12)
    plain = throughput.fake_quantized(model, QuantSpec.parse(bits), "minmax")
    with torch.no_grad():
        assert torch.equal(plain(x), model(x))  # while it observes
        throughput.switch(plain, observing=False)
        ours, _ = quantize_static(model, QuantSpec.parse(bits), [x])
        noise = (plain(x) - model(x)).pow(2).mean()
        own = (ours(x) - model(x)).pow(2).mean()
        apart = (plain(x) - ours(x)).pow(2).mean()
    assert 0 < own / 5 < noise < 5 * own
    assert apart < 2 * (noise + own)
    assert "of_input" not in dict(model.first.named_modules())


def test_the_studys_speed_is_that_of_all_runs() -> None:
    table = pd.DataFrame(
        {"runs": [10, 30], "seconds_per_run": [1.0, 2.0], "plain_seconds_per_run": [4.0, 10.0]}
    )
    found = throughput._figures(table, threads=2)
    assert found["runs"] == 40
    assert found["speedup_vs_eager"] == round(340 / 70, 2)
    assert found["runs_per_minute"] == round(60 * 40 / 70, 2)


def test_energy_reads_the_counters_of_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "POWER", tmp_path)
    assert timers.energy(lambda: None, seconds=0.01) is None
    package, part = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:0:0"
    for folder in (package, part):
        folder.mkdir()
        (folder / "energy_uj").write_text("0")
    used = [0]

    def call() -> None:
        used[0] += 2_000_000
        (package / "energy_uj").write_text(str(used[0]))
        (part / "energy_uj").write_text("7")

    assert timers.energy(call, seconds=0.01) == pytest.approx(2.0)
    (package / "energy_uj").write_text(str(10**12))
    used[0] = 0
    assert timers.energy(call, seconds=0.01) is None  # the counter has wrapped around
