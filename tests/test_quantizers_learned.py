"""Learnt grids: gradients against the papers' formulas, equalization, corrections, rounding."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.quantizers import (
    QuantSpec,
    finish_qat,
    folded_float,
    observe,
    prepare_qat,
    quantize_observed,
    quantize_static,
    use_integers,
)
from fairq_utils.quantizers.corrections import ChannelClip, equalize
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.learned import (
    LearnedLayer,
    LearnedStep,
    SoftRounding,
    StepInput,
    StepWeight,
)
from fairq_utils.quantizers.reconstruction import activations_behind, units
from fairq_utils.quantizers.weights import quantize_weight
from fairq_utils.training import architectures


def lsq(x: float, s: float, negative: int, positive: int) -> tuple[float, float, float]:
    """Value and gradients of Esser et al. 2020, equations 1, 2, 3 and 5, one number at a time."""
    v = x / s
    if v <= -negative:
        return -negative * s, 0.0, -negative
    if v >= positive:
        return positive * s, 0.0, positive
    return round(v) * s, 1.0, round(v) - v


@pytest.mark.parametrize(("lowest", "highest", "zero"), [(0, 15, 0), (0, 15, 6), (-7, 7, 0)])
def test_gradients_are_the_papers(lowest: int, highest: int, zero: int) -> None:
    # Ties, clipping points and values beyond them are among these.
    s = 0.25
    x = torch.cat([torch.linspace(-6, 6, 193), torch.tensor([-7 * s, 7 * s, 7.3 * s, 9.2 * s])])
    x = x.double().float().requires_grad_()
    scale = torch.tensor(s, requires_grad=True)
    weight = torch.arange(1.0, len(x) + 1)
    out = LearnedStep.apply(x, scale, torch.tensor(float(zero)), lowest, highest, 1.0)
    (out * weight).sum().backward()
    expected = [lsq(float(v), s, zero - lowest, highest - zero) for v in x.detach()]
    values, to_x, to_s = (torch.tensor(column) for column in zip(*expected, strict=True))
    torch.testing.assert_close(out.detach(), values)
    torch.testing.assert_close(x.grad, to_x * weight)
    torch.testing.assert_close(scale.grad, (to_s * weight).sum(), rtol=1e-4, atol=1e-2)


def test_gradients_of_channels_do_not_mix() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 2, 2, requires_grad=True)
    scale = torch.tensor([0.1, 0.2, 0.4], requires_grad=True)
    upstream = torch.randn(3, 4, 2, 2)
    out = LearnedStep.apply(weight, scale.view(3, 1, 1, 1), torch.zeros(()), -7, 7, 0.5)
    (out * upstream).sum().backward()
    for channel in range(3):
        s = float(scale[channel])
        parts = [lsq(float(v), s, 7, 7) for v in weight[channel].detach().reshape(-1)]
        to_s = sum(
            p[2] * float(u) for p, u in zip(parts, upstream[channel].reshape(-1), strict=True)
        )
        assert float(scale.grad[channel]) == pytest.approx(0.5 * to_s, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_order_changes_no_gradient(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4)
    plain = StepInput(torch.tensor(0.2), torch.tensor(5.0), 4)
    ordered = copy.deepcopy(plain)
    other = x.clone().contiguous(memory_format=layout)
    upstream = torch.randn(2, 3, 5, 4)
    (plain(x) * upstream).sum().backward()
    (ordered(other) * upstream.contiguous(memory_format=layout)).sum().backward()
    torch.testing.assert_close(plain.multiple.grad, ordered.multiple.grad)


def test_the_gradient_scale_is_the_papers() -> None:
    """``g = 1 / sqrt(N Q_P)``, N values of a weight's row or of one sample of an input."""
    x = torch.randn(6, 5)
    step = StepInput(torch.tensor(0.1), torch.tensor(0.0), 4)
    step(x).sum().backward()
    raw = sum(lsq(float(v), 0.1, 0, 15)[2] for v in x.reshape(-1))
    # The step is 0.1 times the multiple that is learnt.
    assert float(step.multiple.grad) == pytest.approx(0.1 * raw / math.sqrt(5 * 15), rel=1e-4)
    weight = torch.randn(4, 9)
    rows = StepWeight(weight, QuantSpec.parse("W4"))
    rows(weight).sum().backward()
    s = float(rows.start[2])
    raw = sum(lsq(float(v), s, 7, 7)[2] for v in weight[2])
    assert float(rows.multiple.grad[2]) == pytest.approx(s * raw / math.sqrt(9 * 7), rel=1e-3)


# ---- rounding


def test_soft_rounding_starts_at_the_weight_and_decides_by_sign() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 6)
    spec = QuantSpec.parse("W4")
    rounding = SoftRounding(weight, spec)
    torch.testing.assert_close(rounding(weight), weight, rtol=1e-4, atol=1e-5)
    nearest = quantize_weight(weight, spec)
    assert torch.equal(rounding.integers(weight).integers, nearest.integers)
    with torch.no_grad():
        rounding.choice.fill_(-50.0)
    assert float(rounding.undecided(2.0)) == pytest.approx(0.0, abs=1e-6)
    down = torch.clamp(torch.floor(weight / rounding.step), -7, 7)
    assert torch.equal(rounding.integers(weight).integers, down.to(torch.int8))
    with torch.no_grad():
        rounding.choice.zero_()  # h(V) = 1/2 everywhere
    assert float(rounding.undecided(20.0)) == pytest.approx(weight.numel())


def correlated(count: int = 256, width: int = 16) -> Tensor:
    """Inputs whose directions differ in strength, so that nearest rounding is not the best."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(width, 4, generator=generator) @ torch.randn(4, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mixing


@pytest.mark.parametrize("rounding", ["adaround", "block"])
def test_learnt_rounding_beats_nearest_on_pictures_that_it_has_not_seen(rounding: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)))
    x, fresh = correlated(512)[:256], correlated(512)[256:]
    spec = QuantSpec.parse("W3A8", first_last_bits=None, rounding=rounding, iterations=600)
    nearest, _ = quantize_static(model, QuantSpec.parse("W3A8", first_last_bits=None), [x])
    learnt, report = quantize_static(model, spec, [x[:128], x[128:]])
    with torch.no_grad():
        wanted = model(fresh)
        errors = [float((m(fresh) - wanted).square().mean()) for m in (nearest, learnt)]
    assert errors[1] < 0.6 * errors[0]
    before_after = report.corrections["reconstruction"]
    assert all(after <= before for before, after in before_after.values())
    assert all(
        (m.weight_integers.abs() <= 3).all() for m in learnt.modules() if isinstance(m, Quantized)
    )


def test_rounding_moves_no_weight_further_than_one_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    spec = QuantSpec.parse("W4A8", first_last_bits=None, rounding="adaround", iterations=100)
    learnt, _ = quantize_static(model, spec, [correlated()])
    off = (learnt[0].weight() - model[0].weight) / learnt[0].weight_scale[:, None]
    assert float(off.abs().max()) < 1.0 + 1e-4
    assert float(off.abs().max()) > 0.5  # and some went the other way than nearest


def test_units_are_residual_blocks_and_cover_every_layer() -> None:
    x = architectures.normalize(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    for name, expected in {
        "resnet50": "layer1.0",
        "mobilenet_v2": "blocks.1.0",
        "efficientnet_b0": "blocks.1.0",
        "vit_small": "blocks.0",
        "squeezenet1_1": "features.3",
    }.items():
        model = architectures.build(name, image_size=64).eval()
        layers = [
            n for n, m in model.named_modules() if type(m) is nn.Linear or isinstance(m, nn.Conv2d)
        ]
        cut = units(model, layers, x, 5)
        assert expected in [unit.name for unit in cut]
        covered = [n for unit in cut for n in unit.layers]
        assert sorted(covered) == sorted(layers)
        assert len(set(covered)) == len(covered)


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.body(self.act(self.body(x)))))


@pytest.mark.parametrize("rounding", ["adaround", "block"])
def test_layers_called_twice_are_rounded_to_nearest(rounding: str) -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(32, 6)
    assert activations_behind(model, ["body", "head"], x) == {"body": model.act}
    spec = QuantSpec.parse("W4A8", rounding=rounding, iterations=20, first_last_bits=None)
    learnt, report = quantize_static(model, spec, [x])
    assert set(report.corrections["reconstruction"]) == {"head"}
    nearest = quantize_weight(model.body.weight, spec)
    assert torch.equal(learnt.body.weight_integers, nearest.integers)


# ---- equalization and bias correction


class Chain(nn.Module):
    """Three convolutions in a row (the middle one depthwise), then a branch."""

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.d = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)
        self.act1, self.act2 = act(), act()

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(self.act2(self.b(self.act1(self.a(x)))))
        return y + self.d(y)  # y is read twice: c and d are no pair


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_equalization_keeps_the_answers_and_brings_channels_together(act: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Chain(act).eval()
    with torch.no_grad():
        model.a.weight *= torch.logspace(-1.5, 1.5, 8).view(8, 1, 1, 1)
        model.a.bias *= torch.logspace(-1.5, 1.5, 8)
    x = torch.randn(4, 3, 9, 9)
    work = copy.deepcopy(model)
    with torch.no_grad():
        assert equalize(work, x) == {"a": "b", "b": "c"}
        torch.testing.assert_close(work(x), model(x), rtol=1e-4, atol=1e-4)

    def spread(m: Chain) -> float:
        r = m.a.weight.abs().amax(dim=(1, 2, 3))
        return float(r.max() / r.min())

    assert spread(work) < 0.1 * spread(model)
    # What a channel ends with is what the next one begins with.
    out = work.b.weight.abs().amax(dim=(1, 2, 3))
    into = work.c.weight.abs().amax(dim=(0, 2, 3))
    torch.testing.assert_close(out, into, rtol=1e-2, atol=1e-4)
    assert isinstance(work.act1, ChannelClip) == (act is nn.ReLU6)


def test_equalization_rescues_a_shared_grid() -> None:
    torch.manual_seed(0)
    model = Chain(nn.ReLU).eval()
    with torch.no_grad():
        scale = torch.logspace(-1.5, 1.5, 8).view(8, 1, 1, 1)
        model.a.weight *= scale
        model.a.bias *= scale.view(-1)
        model.b.weight /= scale
    x = torch.randn(16, 3, 9, 9)
    options = {"weight_granularity": "tensor", "first_last_bits": None}
    errors = []
    for equalization in (False, True):
        spec = QuantSpec.parse("W4A8", equalization=equalization, **options)
        quantized, report = quantize_static(model, spec, [x])
        with torch.no_grad():
            errors.append(float((quantized(x) - model(x)).square().mean()))
    assert report.corrections["equalization"] == {"a": "b", "b": "c"}
    assert errors[1] < 0.3 * errors[0]


def test_bias_correction_makes_every_mean_that_of_the_float_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False))
    x = torch.rand(16, 3, 9, 9)
    spec = QuantSpec.parse("W3A8", first_last_bits=None, bias_correction=True)
    quantized, report = quantize_static(model, spec, [x[:8], x[8:]])
    plain, _ = quantize_static(model, QuantSpec.parse("W3A8", first_last_bits=None), [x])
    means = [m(x).mean(dim=(0, 2, 3)) for m in (model, quantized, plain)]
    torch.testing.assert_close(means[1], means[0], rtol=1e-3, atol=1e-4)
    assert float((means[2] - means[0]).abs().max()) > 1e-2
    assert set(report.corrections["bias_correction"]) == {"0", "2"}


# ---- training


def test_qat_starts_at_the_calibrated_model_and_ends_in_its_integers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(8 * 49, 2))
    model.train()(torch.rand(32, 3, 9, 9))
    model.eval()
    before = copy.deepcopy(model.state_dict())
    x, y = torch.rand(64, 3, 9, 9), torch.arange(64) % 2
    observed = observe(model, [x], ["mse"])
    spec = QuantSpec.parse("W4A4", weight_range="mse", activation_range="mse", first_last_bits=None)
    tuned = prepare_qat(observed, spec)
    calibrated, _ = quantize_observed(observed, spec)
    with torch.no_grad():
        torch.testing.assert_close(tuned(x), calibrated(x), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in tuned.modules())
    optimizer = torch.optim.Adam(tuned.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(tuned(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    layers = [m for m in tuned.modules() if isinstance(m, LearnedLayer)]
    assert all(float((layer.weights.multiple - 1).abs().max()) > 0 for layer in layers)
    quantized, report = finish_qat(tuned, observed, spec)
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), tuned(x), rtol=1e-4, atol=1e-4)
    assert set(report.layers) == {"0", "4"}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    plain = folded_float(observed)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-4)
    assert all(p.requires_grad for p in plain.parameters())
    with pytest.raises(ValueError, match="are what training replaces"):
        prepare_qat(observed, QuantSpec(bias_correction=True))


def test_a_channel_of_zeros_can_learn_and_steps_are_not_decayed() -> None:
    weight = torch.randn(3, 8)
    weight[1] = 0.0
    for granularity in ("channel", "tensor", "group"):
        spec = QuantSpec.parse("W4", weight_granularity=granularity, group_size=4)
        step = StepWeight(weight, spec)
        assert step.multiple.ndim == 1
        assert float(step.scale().min()) > 1e-3
        moved = weight.clone()
        moved[1] = 0.5
        assert float(step(moved)[1].abs().max()) > 0.1
        assert torch.equal(step.integers(weight).integers[1], torch.zeros(8, dtype=torch.int8))
    empty = StepWeight(torch.zeros(2, 3), QuantSpec.parse("W4"))
    assert float(empty.scale().min()) > 1e-3


def test_what_was_asked_to_stay_in_float_is_said_after_training_too() -> None:
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(16, 6)
    observed, spec = observe(model, [x]), QuantSpec()
    tuned = prepare_qat(observed, spec, {"2": None})
    quantized, report = finish_qat(tuned, observed, spec, {"2": None})
    assert report.left_float["2"] == "was asked to stay in float"
    assert not any(module.training for module in quantized.modules())


# ---- what strangers' models do


class Listed(nn.Module):
    """Calls its layers through a list, which no replacement reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.steps = [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.c(x)


def test_layers_called_through_a_list_are_not_called_quantized() -> None:
    model, x = Listed(), torch.randn(9, 4)
    for rounding in ("nearest", "block"):
        spec = QuantSpec.parse("W8A8", rounding=rounding, iterations=2)
        quantized, report = quantize_static(model, spec, [x])
        assert set(report.layers) == {"c"}
        assert "through a list" in report.left_float["a"]
        assert not isinstance(quantized.a, Quantized)
    observed = observe(model, [x])
    _, report = finish_qat(prepare_qat(observed, QuantSpec()), observed, QuantSpec())
    assert set(report.layers) == {"c"}
    assert "through a list" in report.left_float["b"]


def test_hooks_of_a_layer_stay_on_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(9, 4)
    model[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    quantized, _ = quantize_static(model, QuantSpec(), [x])
    with torch.no_grad():
        assert float((quantized(x) - model(x)).abs().max()) < 0.05 * float(model(x).abs().max())


class PreActivation(nn.Module):
    """The batch norm's convolution is read a second time, behind it and a large offset."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.bn, self.d = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.f = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        return self.f((y + self.d(self.bn(y).relu())).mean((2, 3)))


@pytest.mark.parametrize("offset", [0.0, 500.0])
def test_a_convolution_that_is_read_twice_is_not_folded(offset: float) -> None:
    torch.manual_seed(0)
    model, x = PreActivation(), 2 * torch.randn(16, 3, 12, 12)
    model.bn.running_mean.normal_()
    model.bn.running_var.fill_(9.0)
    model.f.bias.data.fill_(offset)
    observed = observe(model.eval(), [x])
    assert not observed.folded
    assert "something else reads the convolution" in observed.left["bn"]
    with torch.no_grad():
        torch.testing.assert_close(observed.model(x), model(x))


def test_a_layer_read_between_modules_is_not_equalized() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b, self.f = (
                nn.Conv2d(3, 8, 1),
                nn.ReLU(),
                nn.Conv2d(8, 8, 1),
                nn.Linear(8, 1),
            )
            self.f.bias.data.fill_(2000.0)

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.a(x))
            return self.f((self.b(y) + y).mean((2, 3)))

    assert equalize(Sum().eval(), torch.randn(4, 3, 5, 5)) == {}


class Shares(nn.Module):
    """One layer in two blocks."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.own = shared, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.shared(x).relu())


@pytest.mark.parametrize("rounding", ["nearest", "adaround", "block"])
def test_a_layer_shared_by_two_blocks_is_quantized_in_both(rounding: str) -> None:
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(Shares(shared), Shares(shared), nn.Linear(6, 2)).eval()
    spec = QuantSpec.parse("W3A8", rounding=rounding, iterations=4, first_last_bits=None)
    quantized, report = quantize_static(model, spec, [torch.randn(20, 6)])
    assert quantized[0].shared is quantized[1].shared
    assert isinstance(quantized[0].shared, Quantized)
    assert not report.left_float


def test_a_model_that_changes_its_input_in_place_changes_no_calibration() -> None:
    class Normalizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.bn, self.f = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(4.0).sub_(2.0)
            return self.f(self.bn(self.c(x)).relu().mean((2, 3)))

    x = torch.rand(8, 3, 12, 12)
    before = x.clone()
    spec = QuantSpec(bias_correction=True, rounding="block", iterations=2)
    quantized, _ = quantize_static(Normalizes().eval(), spec, [x])
    assert torch.equal(x, before)
    assert float(quantized.c.input_scale) * 255 == pytest.approx(4.0, rel=0.05)


def test_what_makes_no_sense_is_refused_or_said() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(9, 4)
    quantized, _ = quantize_static(model, QuantSpec(), [x])
    with pytest.raises(ValueError, match="layer 0 is quantized already; give the float model"):
        quantize_static(quantized, QuantSpec(), [x])
    observed = observe(model, [x])
    tuned = prepare_qat(observed, QuantSpec.parse("W4A4"))
    with pytest.raises(ValueError, match="layer 0 was prepared as W8A8, and spec or layers say"):
        finish_qat(tuned, observed, QuantSpec.parse("W4A4", first_last_bits=None))
    tuned[0].layer.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"finish_qat: a value of 0\.layer\.weight is NaN"):
        finish_qat(tuned, observed, QuantSpec.parse("W4A4"))
    with pytest.raises(ValueError, match="calibration batch 1 is empty; leave it out"):
        quantize_static(model, QuantSpec(), [x, x[:0]])
    masked = nn.Sequential(nn.Linear(4, 2))
    masked.register_buffer("mask", torch.full((2,), -torch.inf))
    assert quantize_static(masked, QuantSpec(), [x])[1].layers  # a mask is no damage
    one = QuantSpec.parse("W3A8", rounding="block", iterations=2, first_last_bits=None)
    _, report = quantize_static(model, one, [x], {"0": QuantSpec.parse("W8A8")})
    assert report.layers == {"0": "W8A8", "2": "W3A8"}


def test_packed_weights_do_not_stop_a_copy() -> None:
    x = torch.randn(9, 4)
    quantized, _ = quantize_static(nn.Sequential(nn.Linear(4, 2)), QuantSpec(), [x])
    use_integers(quantized)
    output = quantized(x)
    assert torch.equal(copy.deepcopy(quantized)(x), output)
