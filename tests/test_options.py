"""Every option of a spec in every method: it takes effect, or one sentence says why it cannot."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils import BadInput, FairnessAwareQuantizer, apply_quantization
from fairq_utils.apply import parsed
from fairq_utils.compare import compare_quantization_methods
from fairq_utils.mitigation import as_sample, observe_groups
from fairq_utils.mitigation.candidates import CANDIDATES, candidate_task
from fairq_utils.quantizers import METHODS, QuantSpec, quantize_observed, quantize_static
from fairq_utils.quantizers.calibrate import what_to_observe
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.methods import CONTROL
from fairq_utils.quantizers.spec import CHOICES

FIELDS = [entry.name for entry in dataclasses.fields(QuantSpec)]
OPERATIONS = {"residuals": "addition", "attention_products": "queries x keys", "gates": "gate"}
TRAINED = "rounding and bias_correction are what training replaces; leave them out"
N = 40


class Net(nn.Module):
    """An addition, a gate, SiLU and attention between four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        y = self.mid(x)
        x = (x + y) * torch.sigmoid(y)
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).unsqueeze(1).chunk(3, -1)
        out: Tensor = self.head(F.scaled_dot_product_attention(q, k, v).mean((1, 2)))
        return out


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def rows() -> tuple[Tensor, Tensor, dict[str, list[str]]]:
    images = torch.randn(N, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return images, (images[:, 0].mean((1, 2)) > 0).long(), {"gender": ["f", "m"] * (N // 2)}


def quantized(model: nn.Module, method: str, **options: Any) -> nn.Module:
    quick = {"weight_range": "minmax", "activation_range": "minmax"}
    own: dict[str, Any] = quick if method != CONTROL else {}
    rounding = options.get("rounding", METHODS[method].options.get("rounding", "nearest"))
    if rounding != "nearest" and method != CONTROL:
        own = {**own, "iterations": 2}
    if METHODS[method].settings.get("budget", 0) != 0:
        own["budget"] = 0.9
    bits = "W4A8" if method == "dynamic" else 4
    return apply_quantization(model, method, bits, [rows()], **{**own, **options})


def refused(method: str, option: str, value: Any) -> str | None:
    """What the sentence says where a method has no such option."""
    family, dynamic = METHODS[method].family, METHODS[method].spec("W8A8").activation == "dynamic"
    if method == CONTROL:
        return None if option == "equalization" else f"{option}: {CONTROL} is a control"
    calibrated = {*OPERATIONS, "equalization", "bias_correction", "rounding"}
    if option == "activation":
        if dynamic != (value == "dynamic"):
            return "use method='dynamic'" if value == "dynamic" else f"activation='{value}' is none"
        if value == "float" and method in ("operations", "gates"):
            return "weights only .* set them to False"
    elif dynamic and option in calibrated:
        return f"{option}: needs a calibration set"
    elif method == "weight_only" and option in OPERATIONS:
        return f"weights only .* so that {option} cannot"
    elif option == "rounding":
        if method.startswith("channels_"):
            return f"rounding='{value}' learns .* use rounding='nearest'"
        if METHODS[method].trains:
            return TRAINED
        if family == "accuracy control":
            return f"rounding is '{value}', learnt .* leave rounding out"
    elif option == "bias_correction" and METHODS[method].trains:
        return TRAINED
    elif option == "weight_granularity" and method.startswith("channels_"):
        return "use weight_granularity='channel'"
    elif option == "activation_range" and method.startswith("ranges_"):
        return "the rule 'entropy' cannot weigh groups; give of .* as activation_range"
    return None


TRIED: list[tuple[str, Any]] = [
    *((option, True) for option in (*OPERATIONS, "equalization", "bias_correction")),
    *(("rounding", choice) for choice in CHOICES["rounding"][1:]),
    *(("activation", choice) for choice in CHOICES["activation"]),
    ("weight_granularity", "tensor"),
    ("activation_range", "entropy"),
]


@pytest.mark.parametrize(
    ("option", "value", "method"),
    [
        (*tried, name)
        for tried in TRIED
        for name in METHODS
        if tried[1] != "entropy" or name in ("ptq", "ranges_mean", "ranges_worst")  # it is slow
    ],
)
def test_an_option_takes_effect_or_is_refused(
    option: str, value: Any, method: str, model: nn.Module
) -> None:
    sentence = refused(method, option, value)
    if sentence is not None:
        with pytest.raises(BadInput, match=sentence) as caught:
            quantized(model, method, **{option: value})
        assert "give observe" not in str(caught.value) and "\n" not in str(caught.value)
        return
    found: Any = quantized(model, method, **{option: value})
    if method == CONTROL:
        return
    layers = [m for m in found.modules() if isinstance(m, Quantized)]
    assert {getattr(m.spec, option) for m in layers} == {value}
    if option in OPERATIONS:
        assert any(OPERATIONS[option] in name for name in found.report.operations)
    if option in ("equalization", "bias_correction"):
        assert option in found.report.corrections
    if option == "rounding":
        assert "reconstruction" in found.report.corrections


REST: list[dict[str, Any]] = [
    {"weight_scheme": "affine", "activation_scheme": "symmetric", "first_last_bits": None},
    {"weight_range": "percentile", "activation_range": "percentile", "percentile": 99.0},
    {"weight_granularity": "group", "group_size": 2, "weight_range": "mse"},
]


@pytest.mark.parametrize("method", [name for name in METHODS if name != CONTROL])
@pytest.mark.parametrize("options", REST, ids=lambda options: "+".join(options))
def test_other_options_reach_the_layers(
    options: dict[str, Any], method: str, model: nn.Module
) -> None:
    if "group_size" in options and method.startswith("channels_"):
        with pytest.raises(BadInput, match="weight_granularity"):
            quantized(model, method, **options)
        return
    found = quantized(model, method, **options)
    layers = [m for m in found.modules() if isinstance(m, Quantized)]
    for option, value in options.items():
        assert {getattr(m.spec, option) for m in layers} == {value}


def test_every_option_is_tried() -> None:
    tried = {option for option, _ in TRIED} | {option for options in REST for option in options}
    assert tried == set(FIELDS) - {"weight_bits", "activation_bits", "iterations"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"percentile": 99.0}, "percentile: is of weight_range or activation_range='percentile'"),
        ({"group_size": 4}, "group_size: is of weight_granularity='group'"),
        ({"iterations": 50}, "iterations: is of rounding='adaround' or 'block'"),
        ({"residuals": "yes"}, "residuals: 'yes' is neither True nor False"),
        ({"percentile": "99"}, r"percentile: '99' is not in \(50, 100\]"),
    ],
)
def test_an_option_without_what_it_belongs_to(
    options: dict[str, Any], sentence: str, model: nn.Module
) -> None:
    with pytest.raises(BadInput, match=sentence):
        quantized(model, "ptq", **options)
    with pytest.raises(BadInput, match=sentence):
        FairnessAwareQuantizer(options=options)


def test_the_control_beside_a_method_with_options(model: nn.Module) -> None:
    found = compare_quantization_methods(
        model, ["QAT_INT8", "QAT_FP32"], [rows()], ["gender"], [rows()], [rows()],
        replicates=20, weight_range="minmax", residuals=True,
    )  # fmt: skip
    assert list(found.table.method) == ["FP32", "QAT_INT8", "QAT_FP32"]


@pytest.mark.parametrize("option", [*OPERATIONS, "equalization", "bias_correction"])
def test_direct_calls(option: str, model: nn.Module) -> None:
    spec = dataclasses.replace(QuantSpec.parse("W4A8"), **{option: True})
    _, report = quantize_static(model, spec, [rows()[0]])
    sample = as_sample(*rows())
    observed = observe_groups(model, sample, ["minmax"], **what_to_observe(spec))
    _, again = quantize_observed(observed, spec)
    assert report.operations.keys() == again.operations.keys()
    assert report.corrections.keys() == again.corrections.keys()


@pytest.mark.parametrize("candidate", list(CANDIDATES))
@pytest.mark.parametrize("option", [*OPERATIONS, "equalization", "bias_correction", "rounding"])
def test_candidates_of_the_certified_model(candidate: str, option: str, model: nn.Module) -> None:
    chosen = {"rounding": "adaround", "iterations": 2} if option == "rounding" else {option: True}
    asked = FairnessAwareQuantizer(bit_width=4, options=chosen)
    sample = as_sample(*rows())
    task = candidate_task(model, asked.spec, sample, sample, 0.1, 0)
    learnt = candidate == "preserved channels" and option == "rounding"
    if learnt or (candidate == "fine-tuned" and option in ("bias_correction", "rounding")):
        with pytest.raises(BadInput, match=option):
            CANDIDATES[candidate](task)
        return
    _, report = CANDIDATES[candidate](task)
    assert report is not None
    if option in OPERATIONS:
        assert any(OPERATIONS[option] in name for name in report.operations)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("PTQ_INT8", ("ptq", 8)),
        ("ptq_w4a8", ("ptq", "W4A8")),
        ("Channels_Worst", ("channels_worst", None)),
        ("bias_aware_INT4", ("bias_aware_calibration", 4)),
        ("mixed_precision", ("mixed", None)),
        ("QAT_FP32", (CONTROL, None)),
        ("GPTQ_INT8", None),
        ("", None),
    ],
)
def test_names_of_methods(name: str, found: Any) -> None:
    assert parsed(name) == found


def test_one_rule_for_names_of_methods(model: nn.Module) -> None:
    found: Any = apply_quantization(model, "PTQ_INT4", calibration_data=[rows()])
    again: Any = apply_quantization(model, "ptq", 4, [rows()])
    assert found.report.layers == again.report.layers
    assert apply_quantization(model, "PTQ_INT4", 4, [rows()]).report == found.report
    some: Any = compare_quantization_methods(model, "PTQ_INT4", [rows()], "gender", [rows()])
    assert list(some.models) == ["PTQ_INT4"]
    with pytest.raises(BadInput, match="'PTQ_INT4' and bit_width=8 say different bits; leave"):
        apply_quantization(model, "PTQ_INT4", 8, [rows()])


def test_an_option_reaches_the_compared_methods_that_have_it(model: nn.Module) -> None:
    def compared(*methods: str, **options: Any) -> Any:
        return compare_quantization_methods(
            model, methods, [rows()], ["gender"], [rows()], [rows()], replicates=20, **options
        )

    found = compared("PTQ_INT4", "ADAROUND_INT4", "mixed_INT4", iterations=2, budget=0.9)
    specs = {
        name: {m.spec.iterations for m in quantized.modules() if isinstance(m, Quantized)}
        for name, quantized in found.models.items()
    }
    assert specs["ADAROUND_INT4"] == {2} and specs["PTQ_INT4"] == {QuantSpec().iterations}
    with pytest.raises(BadInput, match="iterations: is of rounding='adaround' or 'block'"):
        compared("PTQ_INT4", iterations=2)
    with pytest.raises(BadInput, match="ptq has no budget"):
        compared("PTQ_INT4", budget=0.5)
