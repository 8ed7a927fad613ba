"""Cost of a study: images of a run by hand, sums and rates."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from fairq_utils.errors import BadInput
from fairq_utils.quantizers.methods import CONTROL, METHODS, Method, Size
from fairq_utils.report import cost as cost_chapter
from fairq_utils.report.fp32_models import PUBLISHED_SIZES
from fairq_utils.study import cost, planning, recorded, workload
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.progress import Progress
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study
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
# One second for every image that is trained on, ten for every one that is fine-tuned on, and so on:
# whatever is counted in the wrong place changes the sum.
TENS = Rates(train=1, fine_tune=0.1, predict=1e-2, quantized=1e-3)
ONE = Rates(1, 1, 1, 1)
LAYERS = 26  # of SqueezeNet 1.1


@pytest.fixture
def params() -> Params:
    return Params.model_validate(SMALL)


def of(params: Params, method: str, **wanted: Any) -> Run:
    found = [
        run
        for run in planning.plan(Study(params))
        if run.method == method and all(getattr(run, k) == v for k, v in wanted.items())
    ]
    assert found, method
    return found[0]


def test_an_fp32_run_trains_every_epoch_and_predicts_once(params: Params) -> None:
    found = workload.work(of(params, "fp32"))
    assert found == workload.Work("train", trained=3000, predicted=200)
    normed = SMALL["training"] | {
        "models": {"mobilenet_v2": SMALL["training"]["models"]["squeezenet1_1"]}
    }
    run = of(Params.model_validate(SMALL | {"training": normed}), "fp32")
    assert workload.work(run).predicted == 200 + min(1000, SETTLING)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("dynamic", workload.Work("quantize", quantized=200)),
        ("ptq", workload.Work("quantize", quantized=200, calibrated=40)),
        (
            "block",
            workload.Work(
                "learn", tuned=7 * 16, quantized=200, calibrated=40, predicted=LAYERS * 40 // 3
            ),
        ),
        (
            "adaround",
            workload.Work(
                "learn", tuned=7 * 16, quantized=200, calibrated=40, predicted=LAYERS * 40
            ),
        ),
        ("mixed", workload.Work("choose", quantized=200, calibrated=40, predicted=6 * 40)),
        ("qat", workload.Work("fine_tune", tuned=600, quantized=200, calibrated=40)),
        (CONTROL, workload.Work("fine_tune", fine_tuned=600, predicted=200)),
        ("ranges_worst", workload.Work("choose", quantized=200, calibrated=40, predicted=40)),
        (
            "layers_worst",
            workload.Work("choose", quantized=200, calibrated=40, predicted=LAYERS * 40),
        ),
        ("layers_random", workload.Work("quantize", quantized=200, calibrated=40)),
        ("channels_worst", workload.Work("choose", quantized=200, calibrated=40, predicted=3 * 50)),
        ("channels_random", workload.Work("quantize", quantized=200, calibrated=40)),
        ("mixed_worst", workload.Work("choose", quantized=200, calibrated=40, predicted=6 * 40)),
        (
            "control_worst",
            workload.Work("choose", quantized=200, calibrated=40, predicted=7 * 50 + LAYERS * 50),
        ),
        (
            "qat_parity",
            workload.Work("fine_tune", tuned=600, quantized=200, calibrated=40, predicted=300),
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
        "learn", trained=1, fine_tuned=2, tuned=3, predicted=4, quantized=5, calibrated=6
    )
    slower = 3 * workload.GRIDS
    assert found.seconds(TENS) == pytest.approx(1 + 10 * (2 + slower) + 100 * (4 + 6) + 5_000)
    assert found.seconds(TENS, calibrates=False) == pytest.approx(found.seconds(TENS) - 600)


def test_a_calibration_is_counted_once_for_those_that_share_it(params: Params) -> None:
    runs = planning.plan(Study(params))
    hours = cost.hours(cost.jobs(params), {"squeezenet1_1": ONE})
    assert len(hours) == len(runs)
    alike = {(run.training["seed"], run.sampler) for run in runs if run.sampler is not None}
    alone = sum(workload.work(run).seconds(ONE, calibrates=False) for run in runs)
    assert cost.HOUR * hours.hours.sum() - alone == pytest.approx(40 * len(alike))


def test_cost_is_additive_in_seeds_and_linear_in_images(params: Params) -> None:
    def whole(rates: Rates, **given: Any) -> float:
        own = Params.model_validate(SMALL | given)
        return float(cost.hours(cost.jobs(own), {"squeezenet1_1": rates}).hours.sum())

    four, one = (
        whole(TENS, training=SMALL["training"] | {"seeds": s}) for s in ([0, 1, 2, 3], [5])
    )
    assert four == pytest.approx(4 * one)
    # What a method looks at while it chooses does not grow with the study.
    grid = [{"method": ["ptq", "dynamic", "qat"], "bits": "W8A8"}]
    other = {"grid": grid, "quantization": {"tuning": {"epochs": 2}, "calibration_images": 40}}
    double = {k: v if k == "size" else 2 * v for k, v in SMALL["data"].items()}
    calibrated = 2 * 40 / cost.HOUR  # two seeds
    single = whole(ONE, **other) - calibrated
    assert whole(ONE, data=double, **other) - calibrated == pytest.approx(2 * single)


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
    runs = planning.plan(Study(cost.counted(given)))
    assert {workload.work(run).trained for run in runs} == {0, 1500}
    data = data | {"images": {"train": 500_000}}
    with pytest.raises(BadInput, match=r"data\.images\.train: 500000 .* has about 162770"):
        cost.counts(Params.model_validate(SMALL | {"data": data}))


def test_what_cannot_be_counted_is_refused(params: Params) -> None:
    data = {"name": "utkface", "root": "nowhere", "size": 32}
    entry = {"method": "ptq", "bits": "W8A8", "sampler": "one_group"}
    given = Params.model_validate(SMALL | {"data": data, "grid": [entry]})
    with pytest.raises(BadInput, match="one_group has a run for each group"):
        cost.hours(cost.jobs(given))
    with pytest.raises(BadInput, match="no rates of squeezenet1_1"):
        cost.hours(cost.jobs(params), {"resnet50": ONE})


def test_published_rates_and_what_follows_from_them() -> None:
    rates = cost.gpu(single=2)
    assert set(rates) == set(PUBLISHED_SIZES)
    assert rates["resnet50"].train == 1218.01
    assert rates["resnet50"].fine_tune == pytest.approx(1218.01 / 2)
    assert rates["resnet50"].predict == pytest.approx(3676.35 / 2)
    assert rates["resnet50"].quantized == pytest.approx(3676.35 / 4)
    assert rates["squeezenet1_1"].train == pytest.approx(2313.1 * 0.301 / 0.349)
    assert set(cost.published().groupby("architecture").size()) == {2}
    assert cost.published().source.str.startswith("github.com/").all()


def test_progress_weighs_runs_by_the_same_count(params: Params) -> None:
    runs = planning.plan(Study(params))
    bars = Progress(runs, io.StringIO(), len(runs))
    fp32, block = of(params, "fp32"), of(params, "block")
    pixels = (32 / 64) ** 2  # of the size that rates are of
    assert bars.cost(fp32) == pytest.approx(pixels * (3000 * 1.2e-3 + 200 * 0.7e-3))
    assert bars.cost(block) > bars.cost(of(params, "ptq"))


def test_tables_of_a_study(params: Params) -> None:
    # An hour of training for each seed, and 400 predictions in as many seconds.
    rates = {"squeezenet1_1": Rates(3000 / cost.HOUR, 1, 1, 1)}
    cells = re.findall(
        "<td>(.*?)</td>", cost_chapter.hours_table(cost.hours(cost.jobs(params), rates)).data
    )
    one, whole = cells[: len(cells) // 2], cells[len(cells) // 2 :]
    assert one[:2] == ["SqueezeNet 1.1", "2.1"]
    assert whole == ["sum", *one[1:]]
    study = cost_chapter.Planned(params, cost.jobs(params))
    page = cost_chapter.studies_table({"celeba": study}).data
    assert re.findall("<td>(.*?)</td>", page) == [
        "CelebA", "1,000", "200", str(len(study.jobs)), f"{study.hours.hours.sum():.0f}"
    ]  # fmt: skip
    assert "ResNet-50" in cost_chapter.rates_table(cost.published()).data
