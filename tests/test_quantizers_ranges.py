"""Range rules and grids by hand: ties, saturation, zero-points, axes, groups, empty channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fairq_utils.quantizers import QuantSpec, observe, quantize_observed, quantize_static, ranges
from fairq_utils.quantizers.grids import (
    fake_quantize,
    input_grid,
    on_grid,
    to_integers,
    weight_codes,
    weight_grid,
)
from fairq_utils.quantizers.layers import QuantConv2d
from fairq_utils.quantizers.observers import MOMENTUM, MinMaxObserver, RelativeHistogramObserver
from fairq_utils.quantizers.ranges import InputStatistics, summed_error, weight_limits
from fairq_utils.quantizers.spec import WIDTHS
from fairq_utils.quantizers.weights import dequantize_weight, quantize_weight, spread, to_rows

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


def test_ties_go_to_the_even_integer_and_ends_saturate() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 7.49, 7.5, 100.0, -100.0])
    assert to_integers(x, ONE, ZERO, -7, 7).tolist() == [0, 2, 2, 0, -2, 7, 7, 7, -7]
    # With a zero-point the tie is decided before it is added, as in torch's own operator.
    assert to_integers(x[:3], ONE, torch.tensor(3.0), 0, 15).tolist() == [3, 5, 5]
    assert fake_quantize(x, 1.0, 3, 0, 15).tolist() == [0, 2, 2, 0, -2, 7, 8, 12, -3]


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_of_every_width(bits: int) -> None:
    half = 2 ** (bits - 1)
    assert weight_codes(bits, "symmetric") == (-(half - 1), half - 1)
    assert weight_codes(bits, "affine") == (-half, half - 1)


def test_affine_weights_by_hand() -> None:
    # -1 ... 14 over sixteen codes -8 ... 7: step 1, and -8 stands for -1, so 0 is -7.
    scale, zero = weight_grid(torch.tensor([-1.0]), torch.tensor([14.0]), 4, "affine")
    assert (scale.item(), zero.item()) == (1.0, -7.0)
    weight = torch.tensor([[-1.0, 0.0, 6.5, 14.0]])
    spec = QuantSpec.parse("W4", weight_scheme="affine")
    found = quantize_weight(weight, spec)
    assert found.integers.tolist() == [[-8, -7, -1, 7]]  # 6.5 is a tie: 6 - 7
    assert dequantize_weight(found, spec).tolist() == [[-1.0, 0.0, 6.0, 14.0]]


def test_symmetric_inputs_by_hand() -> None:
    scale, zero = input_grid(torch.tensor(-2.0), torch.tensor(7.0), 4, "symmetric")
    assert (float(scale), float(zero)) == (1.0, 8.0)
    scale, zero = input_grid(torch.tensor(0.5), torch.tensor(15.0), 4, "symmetric")
    assert (float(scale), float(zero)) == (1.0, 0.0)  # nothing is negative: all codes are used


def test_groups_of_input_channels_have_scales_of_their_own() -> None:
    weight = torch.tensor([[7.0, 3.5, 0.7, -0.35, 70.0]])  # groups of two, the last of one
    spec = QuantSpec.parse("W4", weight_granularity="group", group_size=2)
    rows = [[[7.0, 3.5], [0.7, -0.35]], [[70.0]]]
    assert [part.tolist() for part in to_rows(weight, spec)] == [
        torch.tensor(part).tolist() for part in rows
    ]
    found = quantize_weight(weight, spec)
    torch.testing.assert_close(found.scale, torch.tensor([[1.0, 0.1, 10.0]]))
    assert found.integers.tolist() == [[7, 4, 7, -4, 7]]  # 3.5 and -3.5 are ties
    conv = torch.arange(24.0).reshape(2, 3, 2, 2)
    scales = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([[1.0, 1.0, 2.0], [3.0, 3.0, 4.0]])
    assert torch.equal(spread(scales, conv, spec)[:, :, 0, 0], expected)


def test_channels_are_output_channels_of_convolutions_too() -> None:
    weight = torch.zeros(3, 2, 1, 1)
    weight[0, 0], weight[1, 1], weight[2, 0] = 1.27, -12.7, 0.0
    found = quantize_weight(weight, QuantSpec())
    torch.testing.assert_close(found.scale[:2], torch.tensor([0.01, 0.1]))
    assert found.integers[:, :, 0, 0].tolist() == [[127, 0], [0, -127], [0, 0]]


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_empty_and_constant_channels_survive_every_rule(rule: str, scheme: str, bits: int) -> None:
    weight = torch.stack([torch.zeros(50), torch.full((50,), 0.3), torch.linspace(-1, 1, 50)])
    spec = QuantSpec(weight_bits=bits, weight_range=rule, weight_scheme=scheme, activation="float")
    found = quantize_weight(weight, spec)
    back = dequantize_weight(found, spec)
    assert torch.isfinite(back).all()
    assert (back[0] == 0).all()
    torch.testing.assert_close(back[1], weight[1], rtol=0.06, atol=0)


def tailed(count: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator)
    x[0], x[1] = 40.0, -40.0
    return x


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_least_error_is_the_least_of_all_symmetric_ranges(bits: int) -> None:
    x = tailed()[None]
    low, high = weight_limits(x, "mse", bits, "symmetric", 99.9)

    def error(limit: float) -> float:
        grid = weight_grid(torch.tensor([-limit]), torch.tensor([limit]), bits, "symmetric")
        return float((on_grid(x, *grid, *weight_codes(bits, "symmetric")) - x).square().sum())

    assert float(-low) == float(high) <= 40.0
    best = min(error(limit) for limit in torch.linspace(1.0, 41.0, 161).tolist())
    assert error(float(high)) <= 1.05 * best


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_inputs_by_error_and_entropy_clip_the_tail_and_beat_minmax(bits: int) -> None:
    x = tailed().relu()
    statistics = InputStatistics()
    statistics.update(x[None])  # one sample: its own power weighs all of its values alike

    def error(rule: str) -> float:
        low, high = statistics.range(rule, bits)
        grid = input_grid(torch.tensor(low), torch.tensor(high), bits)
        return float((on_grid(x, *grid, 0, 2**bits - 1) - x).square().mean())

    assert statistics.range("minmax", bits) == (0.0, 40.0)
    assert statistics.range("mse", bits)[1] <= 40.0
    assert error("mse") <= error("minmax")
    if bits < 8:
        assert statistics.range("mse", bits)[1] < 20
        assert statistics.range("entropy", bits)[1] < 20
        assert error("entropy") < error("minmax")


@pytest.mark.parametrize("bits", WIDTHS)
def test_nothing_better_is_left_out_of_the_search(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(30, 200, generator=generator) ** 3
    found = weight_limits(rows, "mse", bits, "symmetric", 99.9)
    monkeypatch.setattr(ranges, "BETWEEN_CHECKS", 1000)
    every = weight_limits(rows, "mse", bits, "symmetric", 99.9)
    assert torch.equal(found[1], every[1]) and torch.equal(found[0], -found[1])
    if bits < 8:
        assert (found[1] < rows.abs().amax(dim=1)).any()


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_error_from_sums_is_that_of_every_value(bits: int, scheme: str) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(3000, generator=generator).double().sort().values
    weights = torch.rand(3000, generator=generator).double()

    def grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, int, int]:
        return *input_grid(low, high, bits, scheme), 0, 2**bits - 1

    low = torch.tensor([-4.0, -1.3, -0.02, 0.0]).double()
    high = torch.tensor([4.0, 0.7, 3.0, 1e-3]).double()
    scale, zero, lowest, highest = grid(low, high)
    back = on_grid(values, scale[:, None], zero[:, None], lowest, highest)
    expected = ((back - values).square() * weights).sum(dim=1)
    torch.testing.assert_close(summed_error(values, weights, grid)(low, high), expected)


def test_every_sample_weighs_alike_in_the_histogram() -> None:
    histogram = RelativeHistogramObserver()
    x = torch.stack([torch.tensor([1.0, -1.0, 0.0, 0.0]), torch.tensor([0.0, 300.0, 0.0, 0.0])])
    histogram.update(x)
    histogram.update(torch.zeros(2, 4))  # no power, no error to count
    values, weights = histogram.filled()
    assert values.tolist() == sorted(values.tolist())
    found = dict(zip(values.tolist(), weights.tolist(), strict=True))
    off, zeros = next((v, w) for v, w in found.items() if abs(v) < 1e-30)
    rest = {v: w for v, w in found.items() if v != off}
    torch.testing.assert_close(
        torch.tensor(list(rest)), torch.tensor([-1.0, 1.0, 300.0]), rtol=2**-7, atol=0
    )
    torch.testing.assert_close(list(rest.values()), [2.0, 2.0, 4 / 300**2])
    assert zeros == pytest.approx(2 * 2.0 + 3 * 4 / 300**2)


def test_order_of_memory_does_not_matter_to_a_histogram() -> None:
    x = torch.randn(3, 5, 4, 2)
    first, second = RelativeHistogramObserver(), RelativeHistogramObserver()
    first.update(x)
    second.update(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(first.weights, second.weights, rtol=1e-5, atol=0)


def test_a_range_is_found_again_after_more_was_seen() -> None:
    statistics = InputStatistics()
    statistics.update(torch.linspace(0, 1, 100)[None])
    before = statistics.range("mse", 4)
    assert statistics.range("mse", 4) == before
    statistics.update(torch.linspace(0, 5, 100)[None])
    assert statistics.range("mse", 4)[1] > 2 * before[1]


def test_models_of_one_calibration_share_no_memory() -> None:
    torch.manual_seed(3)
    x = torch.randn(4, 6)
    observed = observe(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), [x])
    first, _ = quantize_observed(observed, QuantSpec())
    expected = first(x)
    for value in first.buffers():
        value.zero_()
    again, _ = quantize_observed(observed, QuantSpec())
    assert torch.equal(again(x), expected)


def test_more_bits_make_the_least_error_range_wider() -> None:
    statistics = InputStatistics()
    statistics.update(tailed().relu()[None])
    highs = [statistics.range("mse", bits)[1] for bits in WIDTHS]
    assert highs == sorted(highs)
    assert highs[0] < highs[-1]


def test_moving_average_by_hand() -> None:
    observer = MinMaxObserver()
    for batch in ([0.0, 1.0], [-1.0, 3.0], [0.0, 2.0]):
        observer.update(torch.tensor(batch))
    low = (0 + MOMENTUM * (-1 - 0)) * (1 - MOMENTUM)
    high = 1 + MOMENTUM * (3 - 1)
    high += MOMENTUM * (2 - high)
    assert observer.average == (pytest.approx(low), pytest.approx(high))


def test_statistics_do_not_grow_with_the_stream() -> None:
    statistics = InputStatistics()
    sizes = set()
    for seed in range(5):
        statistics.update(torch.randn(10, 1000, generator=torch.Generator().manual_seed(seed)))
        assert statistics.histogram is not None and statistics.relative is not None
        sizes.add((statistics.histogram.counts.numel(), statistics.relative.weights.numel()))
    assert len(sizes) == 1
    assert not [v for v in vars(statistics.minmax).values() if isinstance(v, Tensor)]


def test_a_rule_that_was_not_watched_is_refused() -> None:
    statistics = InputStatistics(["minmax", "percentile"])
    statistics.update(torch.rand(5, 2))
    with pytest.raises(ValueError, match="'mse' needs a histogram, and none was kept"):
        statistics.range("mse", 8)


def test_weights_only() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(9, 6)
    quantized, report = quantize_static(model, QuantSpec.parse("W8"), [x])
    assert set(report.layers.values()) == {"W8"}
    assert torch.equal(quantized[0].quantized_input(x), x)
    # Integers, channel scales and biases; no grid of an input.
    assert report.size_bytes == 24 + 8 + 4 * (4 + 2) + 4 * (4 + 2)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_scheme": "affine"},
        {"weight_granularity": "group", "group_size": 2},
        {"activation_scheme": "symmetric"},
        {"weight_range": "entropy", "activation_range": "entropy"},
        {"activation_range": "moving_average"},
    ],
)
def test_every_grid_computes_what_its_integers_say(options: dict[str, object]) -> None:
    """The layer's output from its own integers, in float64."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 4, 3, padding=1), torch.randn(8, 6, 7, 7)
    spec = QuantSpec.parse("W4A8", first_last_bits=None, **options)
    model, _ = quantize_static(nn.Sequential(layer), spec, [x[:4], x[4:]])
    [q] = model
    assert isinstance(q, QuantConv2d)
    s, z, top = q.input_grid()
    given = (torch.clamp(torch.round(x.double() / s) + z, 0, top) - z) * s
    zero = spread(q.weight_zero_point, q.weight_integers, spec)
    scale = spread(q.weight_scale, q.weight_integers, spec).double()
    weight = (q.weight_integers.double() - zero) * scale
    expected = nn.functional.conv2d(given, weight, q.bias.double(), padding=1)
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-3, atol=1e-3)


def test_a_single_layer_can_be_the_whole_model() -> None:
    x = torch.randn(8, 6)
    for rounding in ("nearest", "adaround"):
        spec = QuantSpec(rounding=rounding, iterations=5)
        model, report = quantize_static(nn.Linear(6, 2), spec, [x])
        assert report.layers == {"": "W8A8"}
        assert model(x).shape == (8, 2)


def test_nan_weights_are_refused_by_the_name_of_the_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"quantize_static: a value of 2\.weight is NaN"):
        quantize_static(model, QuantSpec(), [torch.rand(4, 6)])


def test_an_input_that_grows_infinite_is_refused_by_the_name_of_the_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    model[0].weight.data.fill_(3e38)
    with pytest.raises(ValueError, match="the input of layer 1: a value is NaN or infinite"):
        quantize_static(model, QuantSpec(), [10 * torch.ones(4, 6)])


def test_one_odd_picture_does_not_set_the_range_of_all_others() -> None:
    """An image 300 times as strong as the others, on both sides of zero."""
    x = torch.randn(256, 400, generator=torch.Generator().manual_seed(0))
    x[17] *= 300
    statistics = InputStatistics()
    for part in x.split(64):
        statistics.update(part)
    low, high = statistics.range("mse", 4)
    grid = input_grid(torch.tensor(low), torch.tensor(high), 4)
    noise = (on_grid(x, *grid, 0, 15) - x).square().sum(1) / x.square().sum(1)
    others = torch.cat([noise[:17], noise[18:]])
    # Four bits of normal values reach 0.0115 (Max 1960, table 1); the grid is shared with an end.
    assert float(others.mean()) < 0.02
    assert statistics.range("minmax", 4)[1] > 300


def test_zeros_of_a_relu_do_not_set_the_range_by_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(1, 100_000).exponential_(generator=generator)
    x[:, :70_000] = 0.0
    statistics = InputStatistics()
    statistics.update(x)
    for bits in (4, 8):
        low, high = statistics.range("entropy", bits)
        grid = input_grid(torch.tensor(low), torch.tensor(high), bits)
        noise = (on_grid(x, *grid, 0, 2**bits - 1) - x).square().sum() / x.square().sum()
        assert float(noise) < 0.1


def test_a_short_last_group_has_the_range_of_its_own_weights() -> None:
    weight = torch.randn(4, 33)
    alone = QuantSpec.parse("W8", weight_range="percentile", percentile=95.0)
    grouped = QuantSpec.parse(
        "W8", weight_range="percentile", percentile=95.0, weight_granularity="group"
    )
    found = quantize_weight(weight, grouped).scale[:, 1]
    torch.testing.assert_close(found, quantize_weight(weight[:, 32:], alone).scale)


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_the_smallest_squared_error_is_no_larger_than_that_of_the_whole_range(
    granularity: str, bits: int, scheme: str
) -> None:
    size = {"group_size": 4} if granularity == "group" else {}
    for seed, shape in enumerate([(8, 3), (8, 3, 1, 1), (4, 6, 3, 3), (2, 9), (3, 4, 2, 2)] * 3):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        off = {}
        for rule in ("minmax", "mse"):
            spec = QuantSpec.parse(
                f"W{bits}", weight_granularity=granularity, weight_scheme=scheme,
                weight_range=rule, **size,
            )  # fmt: skip
            found = dequantize_weight(quantize_weight(weight, spec), spec)
            off[rule] = float((found - weight).square().sum())
        assert off["mse"] <= off["minmax"] * (1 + 1e-5)


MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.mark.parametrize("bits", ["W8A8", "W4A4"])
@pytest.mark.parametrize("images", [8, 64])
@pytest.mark.parametrize(
    "normalized",
    [
        lambda x: (x - MEAN[:, None, None]) / STD[:, None, None],
        lambda x: x,
        lambda x: 2 * x - 1,
        lambda x: 255 * x,
    ],
)
def test_entropy_keeps_the_range_of_photographs(
    normalized: Callable[[torch.Tensor], torch.Tensor], images: int, bits: str
) -> None:
    """Values of 256 levels leave most bins of a histogram empty."""
    torch.manual_seed(0)
    bytes_ = (torch.distributions.Beta(2.0, 3.0).sample((images, 3, 16, 16)) * 255).round()
    x = normalized(bytes_ / 255)
    layer = nn.Conv2d(3, 8, 3)
    spec = QuantSpec.parse(bits, activation_range="entropy", first_last_bits=None)
    model, _ = quantize_static(nn.Sequential(layer), spec, [x])
    scale, _, top = model[0].input_grid()
    assert float(scale) * top > 0.6 * float(x.max() - x.clamp(max=0).min())


@pytest.mark.parametrize("rows", [16, 64, 200])
@pytest.mark.parametrize("seed", range(5))
def test_entropy_keeps_the_range_of_a_small_calibration_set(seed: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    statistics = InputStatistics(["entropy"])
    x = torch.randn(rows, 10, generator=generator).relu()
    statistics.update(x)
    low, high = statistics.range("entropy", 8)
    assert low == 0 and high > 0.5 * float(x.max())


@pytest.mark.parametrize("granularity", ["channel", "group"])
@pytest.mark.parametrize("seed", range(3))
def test_entropy_keeps_the_range_of_few_weights(seed: int, granularity: str) -> None:
    weight = torch.randn(8, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    size = {"group_size": 2} if granularity == "group" else {}
    whole, found = (
        quantize_weight(
            weight, QuantSpec.parse("W8", weight_range=rule, weight_granularity=granularity, **size)
        ).scale
        for rule in ("minmax", "entropy")
    )
    assert torch.equal(found, whole)
