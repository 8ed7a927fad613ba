"""What a study costs: images of a run by hand, sums, rates, and the benchmark."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairq_utils.bench import cost_model as bench_cost
from fairq_utils.bench.registry import Subject
from fairq_utils.errors import BadInput
from fairq_utils.quantizers.methods import CONTROL, METHODS, Method, Size
from fairq_utils.report import cost as cost_chapter
from fairq_utils.report.baselines import PUBLISHED_SIZES
from fairq_utils.study import cost, planning, recorded, workload
from fairq_utils.study.ledger import Run, RunRecord
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.progress import Progress
from fairq_utils.study.workload import Rates
from fairq_utils.training.loop import SETTLING

AWARE = [name for name, method in METHODS.items() if method.group_aware]
PARAMS = recorded.FOLDER.parents[1] / "params"
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"size": 32, "train": 1000, "calibration": 400, "validation": 50, "test": 200},
    "training": {
        "seeds": [0, 1],
        "models": {"squeezenet1_1": {"epochs": 3, "learning_rate": 0.001, "batch_size": 32}},
    },
    "grid": [
        {"method": "ptq", "bits": "W8A8", "sampler": ["random", "label_balanced"]},
        {"method": "dynamic", "bits": "W8A8"},
        {"method": ["block", "qat"], "bits": "W4A4"},
        {"method": ["adaround", "mixed"], "bits": "W4A8"},
        {"method": AWARE, "bits": "W4A4", "max_reverted": 5},
    ],
    "quantization": {
        "iterations": 7,
        "tuning": {"epochs": 2, "images": 300},
        "calibration_images": 40,
    },
}
# One second for every image that is trained on, ten for every one trained on further, and so on:
# whatever is counted in the wrong place changes the sum.
TENS = Rates(
    train=1, train_on=0.1, tune=1e-2, evaluate=1e-3, quantized=1e-4, dynamic=1e-3, calibrate=1e-5,
    look=1e-6, learn=1e-7, overhead=0.0,
)  # fmt: skip
ONE = Rates(1, 1, 1, 1, 1, 1, 1, 1, 1, 0.0)
LAYERS = 26  # of SqueezeNet 1.1


@pytest.fixture
def params() -> Params:
    return Params.model_validate(SMALL)


def of(params: Params, method: str, **wanted: Any) -> Run:
    found = [
        run
        for run in planning.plan(params)
        if run.method == method and all(getattr(run, k) == v for k, v in wanted.items())
    ]
    assert found, method
    return found[0]


def test_an_fp32_run_trains_every_epoch_and_answers_once(params: Params) -> None:
    found = workload.work(of(params, "fp32"))
    assert found == workload.Work("train", trained=3000, evaluated=200, quantizes=False)
    normed = SMALL["training"] | {
        "models": {"mobilenet_v2": SMALL["training"]["models"]["squeezenet1_1"]}
    }
    run = of(Params.model_validate(SMALL | {"training": normed}), "fp32")
    assert workload.work(run).evaluated == 200 + min(1000, SETTLING)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("dynamic", workload.Work("quantize", dynamic=200)),
        ("ptq", workload.Work("quantize", quantized=200, calibrated=40)),
        (
            "block",
            workload.Work(
                "learn", learnt=7 * 16, quantized=200, calibrated=40, looked=LAYERS * 40 // 3
            ),
        ),
        (
            "adaround",
            workload.Work("learn", learnt=7 * 16, quantized=200, calibrated=40, looked=LAYERS * 40),
        ),
        ("mixed", workload.Work("choose", quantized=200, calibrated=40, looked=6 * 40)),
        ("qat", workload.Work("train_on", tuned=600, quantized=200, calibrated=40)),
        (CONTROL, workload.Work("train_on", trained_on=600, evaluated=200, quantizes=False)),
        ("ranges_worst", workload.Work("choose", quantized=200, calibrated=40, looked=40)),
        ("layers_worst", workload.Work("choose", quantized=200, calibrated=40, looked=LAYERS * 40)),
        ("layers_random", workload.Work("quantize", quantized=200, calibrated=40)),
        ("channels_worst", workload.Work("choose", quantized=200, calibrated=40, looked=3 * 50)),
        ("channels_random", workload.Work("quantize", quantized=200, calibrated=40)),
        ("mixed_worst", workload.Work("choose", quantized=200, calibrated=40, looked=6 * 40)),
        (
            "control_worst",
            workload.Work("choose", quantized=200, calibrated=40, looked=7 * 50 + LAYERS * 50),
        ),
        (
            "qat_parity",
            workload.Work("train_on", tuned=600, quantized=200, calibrated=40, looked=300),
        ),
    ],
)
def test_what_a_method_works_through(params: Params, method: str, wanted: workload.Work) -> None:
    assert workload.work(of(params, method)) == wanted


def test_samplers_that_look_at_the_pool_pay_for_it(params: Params) -> None:
    looked = {"core_set": 440, "worst_group": 440, "matched": 40}
    entry = {"method": "ptq", "bits": "W4A4", "range": "mse", "sampler": list(looked)}
    given = Params.model_validate(SMALL | {"grid": [entry]})
    for sampler, images in looked.items():
        assert workload.work(of(given, "ptq", sampler=sampler)).calibrated == images


def test_every_method_that_chooses_is_counted() -> None:
    def looked(method: Method, **settings: int) -> int:
        return method.images(Size(5, 40, 50, {**method.settings, **settings}))

    counted = {name for name, method in METHODS.items() if looked(method)}
    choose = {name for name in AWARE if not METHODS[name].trains and not name.endswith("random")}
    assert counted == choose | {"adaround", "block", "mixed", "equalized"}
    worst = METHODS["control_worst"]  # which may put every layer back where no limit is named
    assert looked(worst) == looked(worst, max_reverted=5) > looked(worst, max_reverted=4)


@pytest.mark.parametrize(("name", "layers", "normed"), [
    ("squeezenet1_1", 26, False), ("vit_small", 50, False), ("resnet50", 54, True),
])  # fmt: skip
def test_structure_is_that_of_the_model(name: str, layers: int, normed: bool) -> None:
    assert workload.structure(name) == workload.Structure(layers, normed)


def test_seconds_by_hand() -> None:
    found = workload.Work(
        "learn", trained=1, trained_on=2, tuned=3, learnt=4, evaluated=5, quantized=6, calibrated=7,
        looked=8, dynamic=9,
    )  # fmt: skip
    assert found.training_seconds(TENS) == pytest.approx(1 + 20 + 300 + 5_000 + 60_000 + 9_000)
    assert found.quantizer_seconds(TENS) == pytest.approx(4e7 + 8e6 + 7e5)
    assert found.quantizer_seconds(TENS, calibrates=False) == pytest.approx(4e7 + 8e6)
    late = dataclasses.replace(TENS, overhead=0.5)
    assert found.seconds(late) - found.seconds(TENS) == pytest.approx(0.5)
    free = dataclasses.replace(found, quantizes=False)
    assert free.seconds(late) == free.seconds(TENS)


def test_a_calibration_is_counted_once_for_those_that_share_it(params: Params) -> None:
    jobs = cost.jobs(params)
    assert {job.run for job in jobs} == set(planning.plan(params))
    groups: dict[int, list[cost.Job]] = {}
    for job in jobs:
        if job.group >= 0:
            groups.setdefault(job.group, []).append(job)
    assert all(sum(job.calibrates for job in members) == 1 for members in groups.values())
    alike = {
        (job.run.training["seed"], job.run.sampler) for job in jobs if job.run.sampler is not None
    }
    table = cost.table(jobs, {"squeezenet1_1": ONE})
    counted = table.quantizer_seconds.sum() - sum(job.work.looked + job.work.learnt for job in jobs)
    assert counted == pytest.approx(40 * len(alike))


def test_cost_is_additive_in_seeds_and_linear_in_images(params: Params) -> None:
    rates = {"squeezenet1_1": TENS}

    def whole(**training: Any) -> float:
        given = Params.model_validate(SMALL | {"training": SMALL["training"] | training})
        return float(cost.table(cost.jobs(given), rates).seconds.sum())

    assert whole(seeds=[0, 1, 2, 3]) == pytest.approx(4 * whole(seeds=[5]))
    images = {k: 2 * v if k != "size" else v for k, v in SMALL["data"].items()}
    only = {"squeezenet1_1": dataclasses.replace(TENS, calibrate=np.inf, look=np.inf, learn=np.inf)}
    tuning = SMALL["quantization"] | {"tuning": {"epochs": 2}}
    one, two = (
        cost.table(
            cost.jobs(Params.model_validate(SMALL | {"data": data, "quantization": tuning})), only
        ).seconds.sum()
        for data in (SMALL["data"], images)
    )
    assert two == pytest.approx(2 * one)


def test_one_more_of_each(params: Params) -> None:
    jobs, rates = cost.jobs(params), {"squeezenet1_1": TENS}
    frame = cost.seconds(jobs, rates)
    more = cost.one_more(params, jobs, rates)
    whole = frame.seconds.sum() / cost.HOUR
    assert more["seed"] == pytest.approx(whole / 2)
    assert more["architecture"] == pytest.approx(whole)
    aware = frame[frame.method.isin(AWARE)].seconds.sum() / cost.HOUR
    assert more["method"] == pytest.approx(aware / len(AWARE))
    without = frame[~frame.method.isin(["fp32", CONTROL, "dynamic"])].seconds.sum() / cost.HOUR
    assert more["draw"] == pytest.approx(without)


def test_workers_share_the_work_and_no_task(params: Params) -> None:
    jobs, rates = cost.jobs(params), {"squeezenet1_1": TENS}
    whole = cost.table(jobs, rates).seconds.sum() / cost.HOUR
    assert cost.spread(jobs, rates, 1) == pytest.approx(whole)
    two, many = cost.spread(jobs, rates, 2), cost.spread(jobs, rates, 1000)
    assert whole / 2 <= two < whole
    longest: dict[int, float] = {}
    for job in jobs:
        longest[job.group] = longest.get(job.group, 0.0) + sum(job.seconds(rates))
    trained = longest.pop(-1) / 2  # two seeds, alike
    assert many == pytest.approx((trained + max(longest.values())) / cost.HOUR)


def test_long_tasks_go_first() -> None:
    rate, seconds = {"squeezenet1_1": ONE}, [1, 1, 1, 3]
    run = of(Params.model_validate(SMALL), "ptq")
    jobs = [
        cost.Job(run, workload.Work("quantize", quantized=s, quantizes=False), True, i)
        for i, s in enumerate(seconds)
    ]
    assert cost.spread(jobs, rate, 2) == pytest.approx(3 / cost.HOUR)


def test_collections_are_counted_as_published() -> None:
    found = {
        name: cost.counts(load_params(PARAMS / f"{name}.yaml")) for name in cost_chapter.STUDIES
    }
    assert found["celeba"] == {
        "train": 162_770,
        "calibration": 9_934,
        "validation": 9_933,
        "test": 19_962,
    }
    assert sum(found["utkface"].values()) == 23_708
    assert found["utkface"]["test"] == 4742  # a fifth
    assert found["fairface"]["test"] == 10_954
    assert sum(found["fairface"].values()) == 97_698


def test_a_study_of_fewer_photographs_and_other_shares() -> None:
    data = {"name": "celeba", "root": "nowhere", "size": 32, "images": {"train": 500}}
    given = Params.model_validate(SMALL | {"data": data | {"held_out": {"validation": 0.25}}})
    found = cost.counts(given)
    assert (found["train"], found["validation"]) == (500, 19_867 - round(0.75 * 19_867))
    assert {workload.work(run.run).trained for run in cost.jobs(given)} == {0, 1500}
    data = data | {"images": {"train": 500_000}}
    with pytest.raises(BadInput, match=r"data\.images\.train: 500000 .* has about 162770"):
        cost.counts(Params.model_validate(SMALL | {"data": data}))


def test_what_cannot_be_counted_is_refused(params: Params) -> None:
    data = {"name": "utkface", "root": "nowhere", "size": 32}
    entry = {"method": "ptq", "bits": "W8A8", "sampler": "one_group"}
    given = Params.model_validate(SMALL | {"data": data, "grid": [entry]})
    with pytest.raises(BadInput, match="one_group has a run for each group"):
        cost.jobs(given)
    with pytest.raises(BadInput, match="no rates of squeezenet1_1"):
        cost.table(cost.jobs(params), {"resnet50": ONE})


def test_published_rates_and_what_follows_from_them() -> None:
    rates = cost.gpu(single=2)
    assert set(rates) == set(PUBLISHED_SIZES)
    assert rates["resnet50"].train == 1218.01
    assert rates["resnet50"].evaluate == pytest.approx(3676.35 / 2)
    assert rates["resnet50"].tune == pytest.approx(1218.01 / 4)
    assert rates["resnet50"].look == rates["resnet50"].calibrate == rates["resnet50"].evaluate
    assert rates["resnet50"].learn == rates["resnet50"].tune
    assert rates["squeezenet1_1"].train == pytest.approx(2313.1 * 0.301 / 0.349)
    assert set(cost.published().groupby("architecture").size()) == {2}
    assert cost.published().source.str.startswith("github.com/").all()


def record(run: Run, seconds: float, **measures: float) -> RunRecord:
    return RunRecord(run, (), (), np.zeros(0, int), np.zeros(0), np.zeros(0), 0, seconds, measures)


def test_rates_are_found_again(params: Params) -> None:
    """Records as a machine of known rates would leave them; each rate is found."""
    true = Rates(100, 80, 50, 400, 300, 150, 200, 400, 20, overhead=2.0)
    records = []
    for run in planning.plan(params):
        images = workload.work(run)
        trained = images.trained / 100 + images.trained_on / 80 + images.tuned / 50
        answers = images.evaluated / 400 + images.quantized / 300 + images.dynamic / 150
        if run.method == "fp32":
            records.append(record(run, trained + answers, train_seconds=trained))
            continue
        own = trained + images.quantizer_seconds(true, calibrates=False)
        calibrating = images.calibrated / 200
        measures = {"calibrate_seconds": calibrating, "quantize_seconds": own + calibrating}
        records.append(record(run, own + answers, train_seconds=trained, **measures))
    found = cost.fitted(records)["squeezenet1_1"]
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(true))
    half = cost.fitted(records, share=0.5)["squeezenet1_1"]
    assert half.train == pytest.approx(200)
    assert half.overhead == pytest.approx(1.0)
    plain = [r for r in records if r.run.method in ("fp32", "ptq")]
    assert cost.fitted(plain)["squeezenet1_1"].tune == pytest.approx(50)  # half of training


def test_progress_weighs_runs_by_the_same_count(params: Params) -> None:
    runs = planning.plan(params)
    bars = Progress(runs, io.StringIO(), len(runs))
    fp32, block = of(params, "fp32"), of(params, "block")
    pixels = (32 / 64) ** 2  # of the size that rates are of
    assert bars.cost(fp32) == pytest.approx(pixels * (3000 * 1.2e-3 + 200 * 0.7e-3))
    assert bars.cost(block) > bars.cost(of(params, "ptq"))


def test_the_benchmark_at_a_toy_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    studied: list[Params] = []

    def measured(params: Params) -> bench_cost.Measured:
        """A machine that takes what the model says, and a second per study."""
        studied.append(params)
        true = Rates(100, 80, 50, 400, 300, 150, 200, 400, 20, overhead=0.1)
        records = []
        for job in cost.jobs(params):
            w = job.work
            trained = w.trained / 100 + w.trained_on / 80 + w.tuned / 50
            calibrating = w.calibrated / 200
            own = trained + w.quantizer_seconds(true, calibrates=False)
            measures = {"train_seconds": trained}
            if job.run.method != "fp32":
                measures["calibrate_seconds"] = calibrating
                measures["quantize_seconds"] = own + calibrating
            answers = w.evaluated / 400 + w.quantized / 300 + w.dynamic / 150
            records.append(record(job.run, own + answers, **measures))
        rates = dict.fromkeys(params.training.models, true)
        seconds = cost.table(cost.jobs(params), rates).seconds.sum()
        return bench_cost.Measured(float(seconds), 1.0, records)

    monkeypatch.setattr(bench_cost, "_measured", measured)
    found = bench_cost.bench_cost(Subject()).figures
    assert [row["ratio"] for row in found["sizes"]] == [1.0, 1.0, 1.0]
    assert found["exponent"] == found["predicted_exponent"]
    assert 0.8 < found["exponent"] < 1
    assert found["exponents"]["learn"] < 0.5 < found["exponents"]["train_on"]
    assert found["additivity"] == {"seeds": 1.0, "architectures": 1.0, "methods": 1.0}
    assert found["rates"]["mobilenet_v2"]["overhead"] == pytest.approx(0.1)
    assert {params.data.train for params in studied} == {768, 1536, 3072}


def test_the_recorded_benchmark_and_its_pages() -> None:
    found = recorded.read_benchmark("cost")
    assert [row["factor"] for row in found["sizes"]] == [1, 2, 4]
    assert "rates are fitted here" in cost_chapter.sizes_table(found).data
    figure = cost_chapter.growth_figure(found)
    assert [axis.get_title() for axis in figure.axes] == ["SqueezeNet 1.1", "MobileNetV2"]


def test_tables_of_a_study(params: Params) -> None:
    jobs = cost.jobs(params)
    rates = {"squeezenet1_1": dataclasses.replace(ONE, train=3000 / cost.HOUR)}
    page = cost_chapter.hours_table(cost.table(jobs, rates))
    cells = re.findall("<td>(.*?)</td>", page.data)
    one, whole = cells[: len(cells) // 2], cells[len(cells) // 2 :]
    assert one[:2] == [
        "SqueezeNet 1.1",
        "2.1",
    ]  # an hour a seed, and 400 answers in as many seconds
    assert whole == ["sum", *one[1:]]
    page = cost_chapter.methods_table(cost.table(jobs, rates, ["method"]))
    assert "static label balanced" in page.data and "block reconstruction" in page.data
    overview = cost_chapter.overview(
        {"celeba": cost_chapter.Planned(params.model_copy(update={"name": "x"}), jobs)}
    )
    assert overview.train.tolist() == [1000]
    sums = cost.seconds(jobs, cost.gpu())
    assert overview.quantizer.tolist() == [pytest.approx(sums.quantizer_seconds.sum() / cost.HOUR)]
    assert "CelebA" in cost_chapter.overview_table(overview).data
    assert "ResNet-50" in cost_chapter.rates_table(cost.published()).data
