"""Quantizers: integers by hand, exactness, folding, reports, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs_kernels
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.quantizers import (
    QuantSpec,
    observe,
    quantize_dynamic,
    quantize_observed,
    quantize_static,
    use_integers,
)
from fairq_utils.quantizers import onednn as kernels
from fairq_utils.quantizers.folding import fold_batch_norms
from fairq_utils.quantizers.grids import input_grid
from fairq_utils.quantizers.layers import QuantConv2d, QuantLinear
from fairq_utils.quantizers.observers import HistogramObserver, MinMaxObserver
from fairq_utils.quantizers.weights import quantize_weight
from fairq_utils.training import architectures
from fairq_utils.training.zoo import ARCHITECTURES


def images(count: int = 8, side: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, side, mode="bilinear")
    return architectures.normalize((smooth * 255).to(torch.uint8))


@lru_cache
def _lively(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = architectures.build(name, image_size=64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.momentum = 0.5
    model.train()
    with torch.no_grad():
        for seed in range(4):
            model(images(16, seed=seed))
    nn.init.normal_(architectures.classifier(model).weight, std=0.2)
    return model.eval()


def lively(name: str) -> nn.Module:
    """An architecture whose batch norms have statistics, so that folding has something to do."""
    return copy.deepcopy(_lively(name))


def sqnr(reference: Tensor, other: Tensor) -> float:
    """Signal to quantization noise, in decibels."""
    return float(10 * torch.log10(reference.var() / (reference - other).var()))


# ---- integers by hand


def test_weights_by_hand() -> None:
    weight = torch.tensor([[1.27, -0.635, 0.0, 0.005], [0.0, 0.0, 0.0, 0.0]])
    found = quantize_weight(weight, QuantSpec())
    integers, scale = found.integers, found.scale
    # The first row's scale is 0.01; 63.5 and 0.5 are ties and go to the even integer.
    assert scale[0] == pytest.approx(0.01)
    assert integers.tolist() == [[127, -64, 0, 0], [0, 0, 0, 0]]
    assert integers.dtype == torch.int8


def test_four_bits_use_fifteen_codes_and_tensors_share_a_scale() -> None:
    weight = torch.tensor([[7.0, -7.0], [0.4, 3.6]])
    found = quantize_weight(weight, QuantSpec.parse("W4", weight_granularity="tensor"))
    assert found.scale.tolist() == [1.0, 1.0]
    assert found.integers.tolist() == [[7, -7], [0, 4]]


def test_percentile_weights_saturate() -> None:
    weight = torch.cat([torch.linspace(-1, 1, 1001), torch.tensor([50.0])]).view(1, -1)
    found = quantize_weight(weight, QuantSpec(weight_range="percentile", percentile=99.8))
    assert found.scale[0] * 127 == pytest.approx(1.0, abs=0.01)
    assert found.integers[0, -1] == 127


@pytest.mark.parametrize(
    ("low", "high", "bits", "scale", "zero"),
    [
        (0.0, 25.5, 8, 0.1, 0),
        (-1.0, 14.0, 4, 1.0, 1),
        (3.0, 15.0, 4, 1.0, 0),  # zero is on the grid even where no value is near it
        (-15.0, -3.0, 4, 1.0, 15),
    ],
)
def test_input_grid_by_hand(low: float, high: float, bits: int, scale: float, zero: int) -> None:
    s, z = input_grid(torch.tensor(low), torch.tensor(high), bits)
    assert float(s) == pytest.approx(scale)
    assert int(z) == zero


def test_input_saturates_and_zero_is_exact() -> None:
    layer = QuantLinear(nn.Linear(4, 2), QuantSpec.parse("W8A4"))
    layer.set_input_range(-1.0, 14.0)
    x = torch.tensor([[-9.0, 0.0, 6.4, 99.0]])
    assert layer.quantized_input(x).tolist() == [[-1.0, 0.0, 6.0, 14.0]]


@pytest.mark.parametrize("kind", ["conv", "depthwise", "linear"])
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W4A4", "W2A2"])
def test_simulation_equals_integer_arithmetic(kind: str, bits: str) -> None:
    """The layer's output is scales times an integer sum, computed here in int64."""
    torch.manual_seed(1)
    layer: nn.Module
    if kind == "linear":
        layer, x = nn.Linear(24, 10), torch.randn(5, 24)
    else:
        layer = nn.Conv2d(6, 6, 3, padding=1, groups=6 if kind == "depthwise" else 1)
        x = torch.randn(2, 6, 9, 9)
    quantized = (QuantLinear if kind == "linear" else QuantConv2d)(layer, QuantSpec.parse(bits))
    quantized.set_input_range(float(x.min()), float(x.max()))
    s, z = quantized.input_scale, quantized.input_zero_point
    top = 2**quantized.spec.activation_bits - 1
    q = (torch.clamp(torch.round(x / s) + z, 0, top) - z).double()
    w = quantized.weight_integers.double()
    shape = (1, -1) if kind == "linear" else (1, -1, 1, 1)
    if kind == "linear":
        total = q @ w.T
    else:
        total = nn.functional.conv2d(q, w, padding=1, groups=quantized.groups)
    assert torch.equal(total, total.round())
    scale = (quantized.weight_scale.double() * s.double()).view(shape)
    expected = total * scale + quantized.bias.double().view(shape)
    torch.testing.assert_close(quantized(x).double(), expected, rtol=1e-5, atol=1e-5)


# ---- observers


def test_minmax_sees_all_batches() -> None:
    observer = MinMaxObserver()
    for batch in (torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.5])):
        observer.update(batch)
    assert (observer.low, observer.high) == (-3.0, 2.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_percentile_equals_the_quantile_of_all_values(scale: float) -> None:
    rng = np.random.default_rng(0)
    batches = [
        torch.from_numpy(scale * rng.standard_t(3, 20_000) * (1 + i)).float() for i in range(6)
    ]
    observer = HistogramObserver()
    for batch in batches:
        observer.update(batch)
    every = torch.cat(batches).numpy()
    low, high = observer.central(99.0)
    bins = float(every.max() - every.min()) / 2048
    assert low == pytest.approx(np.quantile(every, 0.005), abs=2 * bins)
    assert high == pytest.approx(np.quantile(every, 0.995), abs=2 * bins)
    assert float(observer.counts.sum()) == len(every)


def test_percentile_of_a_constant_is_that_constant() -> None:
    observer = HistogramObserver()
    observer.update(torch.full((10,), 2.5))
    low, high = observer.central(99.9)
    assert low == pytest.approx(2.5, rel=1e-3)
    assert high == pytest.approx(2.5, rel=1e-3)


# ---- whole models


def inputs_and_outputs(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of every convolution and linear layer."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, inputs, output: found.update({name: (inputs[0].clone(), output.clone())})

    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_of_every_architecture(name: str) -> None:
    """Each quantized layer, given the input of its float layer, has nearly the same output."""
    model = lively(name)
    before = copy.deepcopy(model.state_dict())
    x = images(16, seed=9)
    folded = lively(name)
    fold_batch_norms(folded, x)
    layers = inputs_and_outputs(folded, x)
    with torch.no_grad():
        eight, report = quantize_static(model, QuantSpec.parse("W8A8"), [x[:8], x[8:]])
        four, _ = quantize_static(model, QuantSpec.parse("W4A4", first_last_bits=None), [x])
        dynamic, _ = quantize_dynamic(model, QuantSpec.parse("W8A8", activation="dynamic"), x)
        for layer, (given, output) in layers.items():
            assert sqnr(output, eight.get_submodule(layer)(given)) > 20, layer
            assert sqnr(output, dynamic.get_submodule(layer)(given)) > 20, layer
            # Four bits less are sixteen times the step: 24 decibels, less what saturates.
            lost = sqnr(output, eight.get_submodule(layer)(given)) - sqnr(
                output, four.get_submodule(layer)(given)
            )
            assert 10 < lost < 38, layer
    assert set(report.layers) == set(layers)
    assert report.calibration_images == 16
    assert 3.3 < report.float_bytes / report.size_bytes < 4.01
    # The model that came in is the model that was.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(isinstance(m, (QuantConv2d, QuantLinear)) for m in model.modules())


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "efficientnet_b0"])
def test_every_batch_norm_folds_and_the_output_stays(name: str) -> None:
    model = lively(name)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    x = images(8)
    with torch.no_grad():
        reference = model(x)
        folded, left = fold_batch_norms(model, x)
        torch.testing.assert_close(model(x), reference, rtol=1e-3, atol=1e-3)
    assert not left
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(folded) == norms > 0


class Shared(nn.Module):
    """Batch norms that must not be folded: one used twice, one after an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.other, self.sum = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.conv(x))
        return self.sum(self.twice(y) + self.other(x)).mean(dim=(2, 3))


def test_what_cannot_be_folded_or_quantized_is_named() -> None:
    torch.manual_seed(0)
    model = Shared().eval()
    for norm in (model.twice, model.sum):
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(2.0)
    x = images(4, 16)
    quantized, report = quantize_static(model, QuantSpec.parse("W8A8"), [x])
    assert set(report.layers) == {"conv", "other"}
    assert "more than once" in report.left_float["twice"]
    assert "does not follow a convolution" in report.left_float["sum"]
    assert "never called" in report.left_float["unused"]
    with torch.no_grad():
        assert sqnr(model(x), quantized(x)) > 20


def test_report_says_what_stays_in_float() -> None:
    _, report = quantize_static(lively("vit_small"), QuantSpec.parse("W8A8"), [images()])
    assert "attention products" in report.left_float
    assert "blocks.0.norm1" in report.left_float
    _, report = quantize_static(lively("efficientnet_b0"), QuantSpec.parse("W8A8"), [images()])
    assert any("SiLU" in reason for reason in report.left_float.values())


def test_first_and_last_layers_keep_eight_bits_unless_told() -> None:
    model, x = lively("squeezenet1_1"), images()
    _, report = quantize_static(model, QuantSpec.parse("W4A4"), [x])
    bits = list(report.layers.values())
    assert (bits[0], bits[-1], set(bits[1:-1])) == ("W8A8", "W8A8", {"W4A4"})
    _, report = quantize_static(model, QuantSpec.parse("W4A4", first_last_bits=None), [x])
    assert set(report.layers.values()) == {"W4A4"}


def test_size_counts_packed_integers_and_scales() -> None:
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    _, report = quantize_static(
        model, QuantSpec.parse("W4A8", first_last_bits=None), [torch.randn(4, 10)]
    )
    # Half a byte a weight; 4-byte biases and channel scales; 8 bytes for each input's grid.
    assert report.size_bytes == (80 + 16) // 2 + 4 * (8 + 2) + 4 * (8 + 2) + 2 * 8
    assert report.float_bytes == 4 * (80 + 8 + 16 + 2)


def test_dynamic_answers_do_not_depend_on_the_batch() -> None:
    model, x = lively("mobilenet_v2"), images(6)
    quantized, _ = quantize_dynamic(model, QuantSpec.parse("W8A8", activation="dynamic"), x)
    layer = quantized.conv_stem
    rival = torch.cat([x[:3], 50 * x[3:]])
    assert torch.equal(layer.quantized_input(x)[:3], layer.quantized_input(rival)[:3])
    with torch.no_grad():
        together = quantized(x)
        # Batches of another size are summed in another order: a few inputs round the other way.
        alone = torch.cat([quantized(x[i : i + 1]) for i in range(6)])
        assert sqnr(together, alone) > 30
        assert sqnr(together[:3], quantized(rival)[:3]) > 30


def test_calibration_is_one_pass_over_a_stream() -> None:
    model, x = lively("squeezenet1_1"), images(12)
    whole, _ = quantize_static(model, QuantSpec.parse("W8A8"), [x])
    streamed, report = quantize_static(
        model, QuantSpec.parse("W8A8"), (x[i : i + 4] for i in (0, 4, 8))
    )
    assert report.calibration_images == 12
    with torch.no_grad():
        torch.testing.assert_close(whole(x), streamed(x), rtol=1e-4, atol=1e-4)


def test_state_survives_saving_and_moving() -> None:
    model, x = lively("squeezenet1_1"), images()
    spec = QuantSpec.parse("W8A8")
    first, _ = quantize_static(model, spec, [x])
    second, _ = quantize_static(model, spec, [3 * x])
    with torch.no_grad():
        second(x)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; none was found")
def test_cuda_agrees_with_cpu() -> None:
    model, x = lively("mobilenet_v2"), images()
    here, _ = quantize_static(model, QuantSpec.parse("W8A8"), [x])
    there, _ = quantize_static(model.cuda(), QuantSpec.parse("W8A8"), [x.cuda()])
    with torch.no_grad():
        assert sqnr(here(x), there(x.cuda()).cpu()) > 20


# ---- bad input


def test_bad_calibration_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3)
    spec = QuantSpec.parse("W8A8")
    with pytest.raises(ValueError, match="calibration set is empty"):
        quantize_static(model, spec, [])
    with pytest.raises(ValueError, match="calibration batch 1: a value is NaN"):
        quantize_static(model, spec, [x, x * float("nan")])
    with pytest.raises(ValueError, match="use quantize_dynamic"):
        quantize_static(model, QuantSpec.parse("W8A8", activation="dynamic"), [x])
    with pytest.raises(ValueError, match="use quantize_static"):
        quantize_dynamic(model, spec)
    model[0].weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize_static(model, spec, [x])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weight_bits": 5}, "weight_bits: 5 is not one of 2, 3, 4, 6, 8"),
        ({"activation_bits": 16}, "activation_bits: 16"),
        ({"weight_granularity": "row"}, "weight_granularity: 'row'"),
        ({"activation_range": "median"}, "activation_range: 'median'"),
        ({"weight_range": "moving_average"}, "weight_range: 'moving_average'"),
        ({"percentile": 20}, "percentile: 20"),
        ({"activation": "dynamic", "activation_bits": 4}, "dynamic quantization is defined at 8"),
    ],
)
def test_bad_specs_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        QuantSpec(**options)  # type: ignore[arg-type]
    for text in ("INT8", 8, None):
        with pytest.raises(ValueError, match=f"bits: {text!r} is not of the form"):
            QuantSpec.parse(text)  # type: ignore[arg-type]


@needs_kernels
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W2A4"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, bias=False),
        nn.Linear(6, 5),
    ],
    ids=["conv", "depthwise", "linear"],
)
def test_integer_kernels_give_the_sum_of_products_of_the_integers(
    layer: nn.Module, bits: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, 9, 9) if isinstance(layer, nn.Conv2d) else torch.randn(5, 7, 6)
    spec = QuantSpec.parse(bits, first_last_bits=None)
    model, _ = quantize_static(nn.Sequential(layer), spec, [x])
    [q] = model
    s, z, top = q.input_grid()
    integers = (torch.clamp(torch.round(x / s) + z, 0, top) - z).double()
    weight = q.weight_integers.double()
    scale = s * q.weight_scale.double()
    bias = 0.0 if q.bias is None else q.bias.double()
    if isinstance(layer, nn.Conv2d):
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        sums = nn.functional.conv2d(integers, weight, None, *geometry)
        scale = scale.view(-1, 1, 1)
        bias = bias if q.bias is None else bias.view(-1, 1, 1)
    else:
        sums = integers @ weight.T
    expected = sums * scale + bias
    simulated = model(x)
    assert use_integers(model) == 1
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), simulated, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_bytes_are_those_of_the_simulation_in_any_memory_order() -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(70, 64, 11, 9).contiguous(memory_format=torch.channels_last)
    q = kernels.quantize(x, 0.03, 117, 255)
    assert q.dtype == torch.uint8
    assert q.is_contiguous(memory_format=torch.channels_last)
    simulated = torch.fake_quantize_per_tensor_affine(x, 0.03, 117, 0, 255)
    torch.testing.assert_close((q.float() - 117) * 0.03, simulated, rtol=0, atol=1e-6)


@needs_kernels
def test_integer_layers_follow_a_changed_batch_and_loaded_weights() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    first, _ = quantize_static(nn.Sequential(nn.Conv2d(3, 4, 3)), QuantSpec(), [x])
    second, _ = quantize_static(nn.Sequential(nn.Conv2d(3, 4, 3)), QuantSpec(), [x])
    use_integers(first)
    torch.testing.assert_close(first(x)[:3], first(x[:3]))
    expected = second(x)
    first.load_state_dict(second.state_dict())
    torch.testing.assert_close(first(x), expected, rtol=1e-4, atol=1e-4)


def test_dynamic_layers_and_other_processors_stay_a_simulation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(4, 6)
    dynamic, _ = quantize_dynamic(nn.Sequential(nn.Linear(6, 2)), QuantSpec(activation="dynamic"))
    assert use_integers(dynamic) == 0
    monkeypatch.setattr(kernels, "available", lambda: False)
    static, _ = quantize_static(nn.Sequential(nn.Linear(6, 2)), QuantSpec(), [x])
    before = static(x)
    assert use_integers(static) == 0
    assert torch.equal(static(x), before)


def test_one_observation_serves_several_specs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    batches = [torch.randn(4, 3, 9, 9) for _ in range(3)]
    observed = observe(model.eval(), batches, ("minmax", "percentile"))
    for bits, rule in (("W8A8", "minmax"), ("W4A4", "percentile")):
        spec = QuantSpec.parse(bits, activation_range=rule, percentile=99.0)
        shared, report = quantize_observed(observed, spec)
        alone, expected = quantize_static(model, spec, batches)
        assert torch.equal(shared(batches[0]), alone(batches[0]))
        assert report == expected
    assert observe(model, batches, "percentile").statistics["0"].has("percentile")
    only = observe(model, batches)
    with pytest.raises(ValueError, match="ranges by 'percentile' were not observed"):
        quantize_observed(only, QuantSpec(activation_range="percentile"))


def test_nan_images_are_refused_by_a_static_model_not_computed() -> None:
    model, _ = quantize_static(nn.Sequential(nn.Linear(4, 2)), QuantSpec(), [torch.rand(8, 4)])
    for _ in range(2):
        with pytest.raises(ValueError, match="the input of the quantized model: a value is NaN"):
            model(torch.full((1, 4), float("nan")))
        use_integers(model)


def test_models_and_batches_of_another_kind_are_refused_before_anything_is_done() -> None:
    x = torch.rand(8, 4)
    net = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"0\.weight is torch\.float64; quantize the float32"):
        quantize_static(copy.deepcopy(net).double(), QuantSpec(), [x.double()])
    with pytest.raises(TypeError, match="calibration batch 0 is tuple, not a tensor of images"):
        quantize_static(net, QuantSpec(), [(x, torch.zeros(8))])
    with pytest.raises(TypeError, match="batches is one tensor"):
        quantize_static(net, QuantSpec(), x)
    with pytest.raises(TypeError, match="quantize_static: batches is NoneType; give a list"):
        quantize_static(net, QuantSpec(), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"quantize_static: spec is 'W8A8', no QuantSpec; give"):
        quantize_static(net, "W8A8", [x])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="quantize_dynamic: example is ndarray, not a tensor"):
        quantize_dynamic(net, QuantSpec(activation="dynamic"), x.numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model is builtin_function_or_method, not a torch"):
        quantize_dynamic(len, QuantSpec(activation="dynamic"))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.uint8])
def test_a_batch_that_the_model_cannot_run_is_named(kind: torch.dtype) -> None:
    x, net = torch.rand(8, 4), nn.Sequential(nn.Linear(4, 2))
    for at, batches in enumerate(([x.to(kind)], [x, x.to(kind)])):
        sentence = rf"calibration batch {at}, {kind} of shape \(8, 4\): the model cannot run it"
        with pytest.raises(BadInput, match=sentence):
            quantize_static(net, QuantSpec(), batches)
    with pytest.raises(BadInput, match=f"quantize_dynamic: example, {kind} of shape"):
        quantize_dynamic(net, QuantSpec(activation="dynamic"), x.to(kind))
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    assert quantize_static(tokens, QuantSpec(), [torch.arange(9)])[1].layers == {"1": "W8A8"}


def test_weights_without_values_are_refused() -> None:
    x = torch.rand(8, 4)
    with pytest.raises(BadInput, match="weight is on the device meta, without values"):
        quantize_static(nn.Linear(4, 2, device="meta"), QuantSpec(), [x])
    with pytest.raises(BadInput, match=r"0\.weight has no values before the model is run"):
        quantize_static(nn.Sequential(nn.LazyLinear(2)), QuantSpec(), [x])


def test_a_quantized_model_can_be_saved_whole(tmp_path: Path) -> None:
    x = torch.rand(8, 4)
    model, _ = quantize_static(nn.Sequential(nn.Linear(4, 2)), QuantSpec(), [x])
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(x), model(x))
