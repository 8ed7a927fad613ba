"""Ranges by groups' errors, who is clipped, and what a float model makes of a pool."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.data.faces import StoredImages
from fairq_utils.mitigation.accuracy_control import control_accuracy
from fairq_utils.mitigation.group_facts import facts
from fairq_utils.mitigation.group_ranges import clipped, input_ranges, observe_groups
from fairq_utils.mitigation.group_statistics import RULES, GroupedStatistics, Turn
from fairq_utils.mitigation.pool import pool_features, pool_losses
from fairq_utils.mitigation.preservation import preserve
from fairq_utils.mitigation.sample import Sample, as_sample
from fairq_utils.quantizers import (
    QuantSpec,
    finish_qat,
    observe,
    prepare_qat,
    quantize_mixed,
    quantize_observed,
)
from fairq_utils.quantizers.grids import input_grid, on_grid
from fairq_utils.quantizers.observers import BINS, HistogramObserver, central
from fairq_utils.quantizers.ranges import (
    InputStatistics,
    clipping_error,
    input_grids,
    search_ends,
    search_pairs,
    summed_error,
)
from fairq_utils.training import architectures

MSE = QuantSpec.parse("W8A4", activation_range="mse", first_last_bits=None)
PERCENTILE = QuantSpec.parse("W8A4", activation_range="percentile", percentile=98.0)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tailed(seed: int, images: int, values: int = 400, power: float = 1.0) -> Tensor:
    """Images whose values have a tail that is the heavier, the higher the power."""
    x = drawn(seed, images, values)
    return x.sign() * x.abs() ** power


def grouped(parts: dict[str, Tensor], weighting: Any = "mean", rules: Any = RULES) -> Any:
    turn = Turn({name: len(x) for name, x in parts.items()})
    statistics = GroupedStatistics(rules, weighting, turn)
    for name, x in parts.items():
        turn.group = name
        for batch in x.split(5):
            statistics.update(batch)
    return statistics


def plain(parts: Sequence[Tensor]) -> InputStatistics:
    statistics = InputStatistics()
    for x in parts:
        statistics.update(x)
    return statistics


def error(x: Tensor, low: float, high: float, bits: int, scheme: str = "affine") -> float:
    """Mean of |x - x^|^2 / |x|^2 over images (N, K), from every value."""
    grid = input_grid(torch.tensor(low), torch.tensor(high), bits, scheme)
    off = (on_grid(x, *grid, 0, 2**bits - 1) - x).double().square().sum(dim=1)
    return float((off / x.double().square().sum(dim=1)).mean())


# ---- one tensor


def test_the_error_of_a_group_is_the_mean_over_its_images() -> None:
    parts = {"many": tailed(0, 12), "few": 4 * tailed(1, 3, power=1.5)}
    statistics = grouped(parts)
    assert statistics.images == {"many": 12, "few": 3}
    for low, high, bits, scheme in ((-3.0, 2.5, 4, "affine"), (-3.0, 2.5, 3, "symmetric")):
        found = statistics.errors(low, high, bits, scheme)
        for name, x in parts.items():
            assert found[name] == pytest.approx(error(x, low, high, bits, scheme), rel=5e-3)
        shares = statistics.outside(low, high)
        for name, x in parts.items():
            out = ((x < low) | (x > high)).double().mean()
            assert shares[name] == pytest.approx(float(out), abs=1e-3)
        assert shares["few"] > 0.1


@pytest.mark.parametrize("weighting", ["mean", "worst"])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_of_identical_groups_the_ranges_are_the_plain_ones(
    weighting: str, scheme: str, bits: int
) -> None:
    x = tailed(0, 10, power=1.3)
    statistics = grouped({"a": x, "b": x, "c": x}, weighting)
    expected = plain([*x.split(5)] * 3)
    for rule in ("minmax", "percentile"):
        assert statistics.range(rule, bits, scheme) == expected.range(rule, bits, scheme)
    found = statistics.range("mse", bits, scheme)
    if weighting == "mean":
        assert found == expected.range("mse", bits, scheme)
    else:  # it tries every pair of ends, the plain search some
        errors = [
            error(x, *ends, bits, scheme) for ends in (found, expected.range("mse", bits, scheme))
        ]
        assert errors[0] == pytest.approx(errors[1], rel=0.05)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_group_of_two_percent_has_the_say_of_a_balanced_set(bits: int) -> None:
    """Its inputs have a heavier tail, so it wants a wider range than the plain rule gives."""
    parts = {"many": tailed(0, 98), "few": tailed(1, 2, power=2.0)}
    statistics = grouped(parts)
    unbalanced, balanced = plain([*parts.values()]), plain([parts["many"], *[parts["few"]] * 49])
    assert statistics.range("mse", bits) == balanced.range("mse", bits)
    assert statistics.range("mse", bits)[1] > 1.1 * unbalanced.range("mse", bits)[1]

    found = statistics.range("percentile", bits, percentile=98.0)
    width = (statistics.range("minmax", bits)[1] - statistics.range("minmax", bits)[0]) / BINS
    expected = balanced.range("percentile", bits, percentile=98.0)
    assert found == pytest.approx(expected, abs=3 * width)
    mixture = (
        torch.cat([parts["many"], parts["few"].repeat(49, 1)]).flatten().double().sort().values
    )
    quantiles = mixture[round(0.01 * len(mixture))], mixture[round(0.99 * len(mixture))]
    assert found == pytest.approx([float(q) for q in quantiles], abs=3 * width)
    assert found[1] > 1.1 * unbalanced.range("percentile", bits, percentile=98.0)[1]


def mixed_groups(seed: int) -> dict[str, Tensor]:
    """Three groups of inputs that differ in tail, spread and mean; every other time of a ReLU."""
    parts = {}
    for number, name in enumerate("abc"):
        spread, power, shift = torch.rand(
            3, generator=torch.Generator().manual_seed(100 * seed + number)
        ).tolist()
        x = tailed(10 * seed + number, 2 + 3 * number, 200, 1 + 2 * power) * (1 + 5 * spread)
        parts[name] = (x + 2 * shift).relu() if seed % 2 else x + 2 * shift
    return parts


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_other_range_is_better_for_the_worst_group(bits: int, scheme: str) -> None:
    better = 0
    for seed in range(6):
        parts = mixed_groups(seed)
        worst, mean = grouped(parts, "worst"), grouped(parts, "mean")
        others = [
            mean.range("mse", bits, scheme),
            plain([*parts.values()]).range("mse", bits, scheme),
        ]

        def largest(ends: tuple[float, float], seen: GroupedStatistics = worst) -> float:
            return max(seen.errors(*ends, bits, scheme).values())

        found = worst.range("mse", bits, scheme)
        assert all(largest(found) <= largest(ends) * (1 + 1e-9) for ends in others)
        better += largest(found) < 0.98 * min(map(largest, others))
        # Every fraction of either end, beside each other.
        low, high = worst.range("minmax", bits)
        pairs = torch.cartesian_prod(low * fractions(), high * fractions())
        values, weights = worst._weights()
        every = summed_error(values, weights, input_grids(bits, scheme))(*pairs.T).amax(dim=0)
        assert largest(found) == pytest.approx(float(every.min()), rel=1e-9)
    assert better > 1


def fractions() -> Tensor:
    return 1e-3 ** (torch.arange(60, dtype=torch.float64) / 59)


def test_turning_one_end_at_a_time_would_miss_the_least_of_the_largest_errors() -> None:
    missed = 0
    for seed in range(12):
        worst = grouped(mixed_groups(seed), "worst")
        values, weights = worst._weights()
        each = summed_error(values, weights, input_grids(4, "affine"))
        ends = search_ends(lambda a, b, of=each: of(a, b).amax(dim=0), *worst.range("minmax", 4))
        errors = [max(worst.errors(*e, 4).values()) for e in (ends, worst.range("mse", 4))]
        missed += errors[0] > 1.001 * errors[1]
    assert missed


def test_an_error_of_nothing_may_be_rounded_below_nothing() -> None:
    found = search_pairs(lambda a, b: 0 * a - 1e-17, lambda a, b: 0 * a, -1.0, 2.0)
    assert found == (-1.0, 2.0)


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_lies_beyond_a_grid_is_a_part_of_its_error(bits: int, scheme: str) -> None:
    values = drawn(3, 500).double().sort().values
    weights = torch.rand(2, 500, generator=torch.Generator().manual_seed(4)).double()
    left, right = torch.tensor([[-9.0, -1.0, -0.1, 0.0], [9.0, 0.3, 1.0, 0.5]]).double()
    grids = input_grids(bits, scheme)
    scale, zero, _, top = grids(left, right)
    first, last = (-zero * scale)[:, None], ((top - zero) * scale)[:, None]
    off = (first - values).clamp(min=0) + (values - last).clamp(min=0)
    expected = (weights[:, None] * off.square()).sum(dim=-1)
    found = clipping_error(values, weights, grids)(left, right)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)
    assert (found <= summed_error(values, weights, grids)(left, right) + 1e-9).all()
    assert (found[:, 1:] > 0).all()


def test_percentiles_of_the_worst_are_the_union_of_the_groups() -> None:
    parts = {"left": tailed(0, 40) - 5, "right": 3 * tailed(1, 4) + 5}
    found = grouped(parts, "worst").range("percentile", 8, percentile=90.0)
    own = [plain([x]).range("percentile", 8, percentile=90.0) for x in parts.values()]
    assert found == pytest.approx((own[0][0], own[1][1]), abs=0.02)
    mean = grouped(parts, "mean")
    low, high = mean.range("percentile", 8, percentile=90.0)
    assert found[0] < low < high < found[1]
    assert mean.range("percentile", 8, percentile=100.0) == mean.range("minmax", 8)


def test_bounds_of_a_mixture_by_hand() -> None:
    """Of 0 to 1 and, a quarter as many values, 1 to 3: all of the same weight or of one's own."""
    first, second = HistogramObserver(), HistogramObserver()
    first.update(torch.linspace(0, 1, 40_000))
    second.update(torch.linspace(1, 3, 10_000))
    assert first.central(80.0) == pytest.approx((0.1, 0.9), abs=1e-3)
    assert central([first, second], [1.0, 1.0], 80.0) == pytest.approx((0.125, 2.0), abs=2e-3)
    assert central([second, first], [4.0, 1.0], 80.0) == pytest.approx((0.2, 2.6), abs=2e-3)


@pytest.mark.parametrize("weighting", ["mean", "worst"])
@pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.ones(3, 4), -torch.ones(3, 4).cumsum(1)])
def test_constant_and_one_sided_inputs_have_ranges(weighting: str, x: Tensor) -> None:
    statistics = grouped({"a": x, "b": 0 * x}, weighting)
    for bits in (2, 8):
        low, high = statistics.range("mse", bits)
        assert -4 <= low <= high <= 1
        if x.any():
            assert error(x, low, high, bits) < 0.03


def test_only_rules_that_weigh_groups_are_answered_whatever_was_named() -> None:
    statistics = grouped({"a": torch.ones(2, 3)}, rules=("mse", "entropy"))
    assert statistics.has("mse") and not statistics.has("entropy")


def test_a_range_is_found_again_after_more_was_seen() -> None:
    turn = Turn({"a": 2}, "a")
    statistics = GroupedStatistics(["mse"], "mean", turn)
    statistics.update(torch.linspace(0, 1, 100)[None])
    before = statistics.range("mse", 4)
    statistics.update(torch.linspace(0, 5, 100)[None])
    assert statistics.range("mse", 4)[1] > 2 * before[1]


# ---- a model


class Block(nn.Module):
    """Convolutions with a residual addition, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(x + self.second(x))
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture
def people() -> Sample:
    """Forty young people and four old ones, whose pictures have a heavier tail."""
    images = torch.cat([drawn(0, 40, 3, 6, 6), tailed(1, 4, 108, 2.5).view(4, 3, 6, 6)])
    order = torch.randperm(44, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(44) % 2
    ages = np.array(["young"] * 40 + ["old"] * 4)
    return as_sample(images[order], labels, {"age": ages[order.numpy()]})


@pytest.mark.parametrize("weighting", ["mean", "worst"])
def test_the_order_of_images_does_not_matter(
    weighting: Any, model: nn.Module, people: Sample
) -> None:
    rules = ("percentile", "mse")
    seen = observe_groups(model, people, rules, weighting=weighting, residuals=True)
    other = people.take(np.random.default_rng(0).permutation(len(people)))
    again = observe_groups(model, other, rules, weighting=weighting, residuals=True)
    for spec in (MSE, PERCENTILE):
        assert input_ranges(seen, spec) == input_ranges(again, spec)
    first, second = (
        [s.range("mse", 4) for pair in found.operations.statistics.values() for s in pair]
        for found in (seen, again)
    )
    assert len(first) == 2 and first == second
    assert clipped(seen, MSE).equals(clipped(again, MSE))


def test_extremes_need_no_groups(model: nn.Module, people: Sample) -> None:
    expected = observe(model, [people.images], ["minmax"])
    for weighting in ("mean", "worst"):
        seen = observe_groups(model, people, ["minmax"], weighting=weighting)
        assert seen.images == 44 and seen.order == expected.order and not seen.batches
        found, wanted = input_ranges(seen, QuantSpec()), input_ranges(expected, QuantSpec())
        assert all(found[name] == pytest.approx(wanted[name], rel=1e-5) for name in wanted)


def test_a_model_is_calibrated_as_by_a_balanced_set(model: nn.Module, people: Sample) -> None:
    old = people.members(people.groups.names.index("old")).images
    young = people.members(people.groups.names.index("young")).images
    balanced = observe(model, [young, *[old] * 10], ["mse"])
    mean = observe_groups(model, people)
    assert input_ranges(mean, MSE)["first"] == input_ranges(balanced, MSE)["first"]
    for name, ends in input_ranges(balanced, MSE).items():
        assert input_ranges(mean, MSE)[name] == pytest.approx(ends, rel=1e-4)
    unbalanced = input_ranges(observe(model, [people.images], ["mse"]), MSE)
    assert unbalanced["first"] != input_ranges(mean, MSE)["first"]


@pytest.mark.parametrize("weighting", ["mean", "worst"])
def test_what_is_observed_by_groups_is_quantized_like_anything_observed(
    weighting: Any, model: nn.Module, people: Sample
) -> None:
    seen = observe_groups(
        model, people, ("percentile", "mse"), weighting=weighting, residuals=True, keep=True
    )
    spec = QuantSpec.parse(
        "W8A4", activation_range="mse", residuals=True, bias_correction=True, first_last_bits=None
    )
    quantized, report = quantize_observed(seen, spec)
    assert report.layers == dict.fromkeys(seen.order, "W8A4")
    assert report.operations == {"addition": "A4"} and report.calibration_images == 44
    for name, (low, high) in input_ranges(seen, spec).items():
        layer = quantized.get_submodule(name)
        assert float(layer.input_scale) == pytest.approx((high - min(low, 0)) / 15, rel=1e-6)
    [pair] = seen.operations.statistics.values()
    assert all(s.images == {"old": 4, "young": 40} for s in pair)
    scales = [(high - min(low, 0)) / 15 for low, high in (s.range("mse", 4) for s in pair)]
    assert quantized.operation_scales.tolist() == pytest.approx(scales)
    learnt = QuantSpec.parse(
        "W4A8", activation_range="percentile", rounding="adaround", iterations=3
    )
    assert torch.isfinite(quantize_observed(seen, learnt)[0](people.images)).all()
    trained = prepare_qat(seen, spec=QuantSpec.parse("W4A4", activation_range="mse"))
    trained(people.images).sum().backward()
    assert finish_qat(trained, seen, QuantSpec.parse("W4A4", activation_range="mse"))
    labelled = [(people.images, people.labels)]
    for options in ({}, {"labelled": labelled}):
        small, report = quantize_mixed(seen, 0.2, QuantSpec(activation_range="mse"), **options)
        assert report.size_bytes <= 0.2 * seen.float_bytes
        assert torch.isfinite(small(people.images)).all()


def test_neither_the_model_nor_the_sample_is_changed(model: nn.Module, people: Sample) -> None:
    model.train()
    state, images = copy.deepcopy(model.state_dict()), people.images.clone()
    observe_groups(model, people, residuals=True, equalization=True)
    pool_features(model, people.images)
    pool_losses(model, people.images, people.labels)
    assert model.training and torch.equal(people.images, images)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


class Routed(nn.Module):
    """Batches of a positive mean take a way of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.detour, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.detour(x) if x.mean() > 0 else x)


def test_a_layer_that_a_group_never_reaches_has_nothing_of_it() -> None:
    torch.manual_seed(0)
    images = torch.cat([1 + torch.rand(6, 4), -1 - torch.rand(6, 4)])
    faces = as_sample(images, [0, 1] * 6, {"age": ["young"] * 6 + ["old"] * 6})
    for weighting in ("mean", "worst"):
        seen = observe_groups(Routed(), faces, RULES, weighting=weighting)
        table = clipped(seen, MSE)
        assert table.groupby("layer")["group"].apply(list).to_dict() == {
            "detour": ["young"],
            "head": ["old", "young"],
        }
        assert torch.isfinite(quantize_observed(seen, PERCENTILE)[0](images)).all()


@pytest.mark.parametrize("rule", ["entropy", "moving_average", "widest"])
def test_rules_that_cannot_weigh_groups_are_refused(
    rule: str, model: nn.Module, people: Sample
) -> None:
    with pytest.raises(ValueError, match=f"the rule '{rule}' cannot weigh groups; give of minmax"):
        observe_groups(model, people, ["mse", rule])
    seen = observe_groups(model, people)
    assert not seen.statistics["first"].has(rule)
    with pytest.raises(ValueError, match=f"ranges by '{rule}' were not observed by groups"):
        seen.statistics["first"].range(rule, 8)
    if rule != "widest":
        with pytest.raises(ValueError, match=f"ranges by '{rule}' were not observed"):
            quantize_observed(seen, QuantSpec(activation_range=rule))


def test_what_was_not_asked_for_is_refused(model: nn.Module, people: Sample) -> None:
    seen = observe_groups(model, people)
    assert seen.statistics["first"].has("mse") and seen.statistics["first"].has("minmax")
    with pytest.raises(ValueError, match="ranges by 'percentile' were not observed"):
        quantize_observed(seen, PERCENTILE)
    with pytest.raises(ValueError, match="weighting 'median' is not one of mean, worst"):
        observe_groups(model, people, weighting="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the calibration set is empty"):
        observe_groups(model, people.take([]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; none was found")
def test_cuda_agrees_with_cpu(model: nn.Module, people: Sample) -> None:
    here = observe_groups(model, people, weighting="worst", residuals=True)
    moved = Sample(people.images.cuda(), people.labels.cuda(), people.groups)
    there = observe_groups(copy.deepcopy(model).cuda(), moved, weighting="worst", residuals=True)
    for name, ends in input_ranges(here, MSE).items():
        assert input_ranges(there, MSE)[name] == pytest.approx(ends, rel=0.02)
    assert quantize_observed(there, MSE)[0](moved.images).is_cuda
    features = pool_features(model.cuda(), people.images)
    np.testing.assert_allclose(
        features, pool_features(model.cpu(), people.images), rtol=1e-2, atol=1e-3
    )


# ---- who is clipped


def test_who_is_clipped_by_hand() -> None:
    images = torch.tensor([[1.0, -1.0], [2.0, 0.0], [6.0, 8.0], [-4.0, 2.5]])
    faces = as_sample(images, [0, 1, 0, 1], {"age": ["young", "young", "old", "old"]})
    seen = observe_groups(nn.Linear(2, 2), faces)
    spec = QuantSpec.parse("W8A2", activation_range="mse", first_last_bits=None)
    table = clipped(seen, spec, {"": (0.0, 3.0)}).set_index("group")
    assert table["layer"].tolist() == ["", ""]
    assert table["images"].to_dict() == {"old": 2, "young": 2}
    assert table["low"].to_dict() == {"old": -4.0, "young": -1.0}
    assert table["high"].to_dict() == {"old": 8.0, "young": 2.0}
    assert table["range_low"].tolist() == [0.0, 0.0] and table["range_high"].tolist() == [3.0, 3.0]
    # Of 6, 8, -4, 2.5 the grid 0, 1, 2, 3 reaches the last only; of 1, -1, 2, 0 all but -1.
    assert table["clipped"].to_dict() == {"old": 0.75, "young": 0.25}
    old, young = ((9 + 25) / 100 + 16.25 / 22.25) / 2, (1 / 2 + 0) / 2
    assert table["error"].to_dict() == pytest.approx({"old": old, "young": young}, rel=0.01)
    assert seen.statistics[""].outside(-4.01, 8.01) == {"old": 0.0, "young": 0.0}  # nor its bin
    # A symmetric grid of two bits that holds -3 to 3 has the points -6, -3, 0 and 3.
    symmetric = QuantSpec.parse("W8A2", activation_scheme="symmetric", first_last_bits=None)
    for ends in ((-1.0, 3.0), (-3.0, 1.0)):
        table = clipped(seen, symmetric, {"": ends}).set_index("group")
        assert table["clipped"].to_dict() == {"old": 0.5, "young": 0.0}
    assert (
        clipped(observe_groups(nn.Linear(2, 2), faces, ["percentile"]), symmetric, {"": ends})[
            "error"
        ].tolist()
        == table["error"].tolist()
    )


def test_a_group_that_plain_ranges_clip_is_clipped_less_by_its_own_say(
    model: nn.Module, people: Sample
) -> None:
    mean = observe_groups(model, people)
    worst = observe_groups(model, people, weighting="worst")
    ranges = input_ranges(observe(model, [people.images], ["mse"]), MSE)
    by = {
        "plain": clipped(mean, MSE, ranges),
        "mean": clipped(mean, MSE),
        "worst": clipped(worst, MSE),
    }
    for table in by.values():
        assert list(zip(table["layer"], table["group"], strict=True)) == [
            (layer, group) for layer in ("first", "second", "head") for group in ("old", "young")
        ]
    first = {name: table.set_index(["layer", "group"]).loc["first"] for name, table in by.items()}
    out = {name: float(table.loc["old", "clipped"]) for name, table in first.items()}
    lost = {name: float(table.loc["old", "error"]) for name, table in first.items()}
    for weighting in ("mean", "worst"):
        assert out["plain"] > 3 * out[weighting] > 0
        assert lost["plain"] > 3 * lost[weighting]
    old = people.members(people.groups.names.index("old")).images.flatten(1)
    assert lost["plain"] == pytest.approx(error(old, *ranges["first"], 4), rel=0.01)
    low, high = ranges["first"]
    assert out["plain"] == pytest.approx(
        float(((old < low) | (old > high)).float().mean()), abs=0.01
    )
    largest = {name: table.groupby("layer")["error"].max() for name, table in by.items()}
    assert (largest["worst"] <= largest["plain"] * (1 + 1e-6)).all()
    assert (largest["worst"] <= largest["mean"] * (1 + 1e-6)).all()
    middle = {name: table.groupby("layer")["error"].mean() for name, table in by.items()}
    assert (middle["mean"] <= middle["plain"] * (1 + 1e-3)).all()


def test_edges_are_judged_on_their_own_bits(model: nn.Module, people: Sample) -> None:
    seen = observe_groups(model, people)
    spec = QuantSpec.parse("W8A4", activation_range="mse")  # the first and the last have eight
    table = clipped(seen, spec).groupby("layer")["error"].max()
    inner = clipped(seen, MSE).groupby("layer")["error"].max()
    assert table["second"] == inner["second"]
    assert table["first"] < inner["first"] / 20 and table["head"] < inner["head"] / 20


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        ({"third": (0.0, 1.0)}, "there is no layer 'third'; those .* first, second, head"),
        ({"first": (1.0, 0.0)}, "that of 'first' is 1.0 to 0.0"),
        ({"first": (0.0, float("inf"))}, "that of 'first' is 0.0 to inf"),
    ],
)
def test_impossible_ranges_are_refused(ranges, sentence, model: nn.Module, people: Sample) -> None:
    with pytest.raises(ValueError, match=sentence):
        clipped(observe_groups(model, people), MSE, ranges)


def test_what_was_not_seen_by_groups_is_refused(model: nn.Module, people: Sample) -> None:
    seen = observe(model, [people.images], ["mse"])
    with pytest.raises(ValueError, match="the input of 'first' was not observed group by group"):
        clipped(seen, MSE)
    with pytest.raises(ValueError, match=r"spec\.activation is 'float', so there are no fixed"):
        clipped(observe_groups(model, people), QuantSpec.parse("W8"))


# ---- a pool


@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v2", 32), ("squeezenet1_1", 64), ("vit_small", 32)]
)
def test_features_are_what_enters_the_classifier(name: str, size: int) -> None:
    torch.manual_seed(0)
    net, images = architectures.build(name, image_size=size).eval(), drawn(0, 70, 3, size, size)
    entered: list[Tensor] = []
    hook = architectures.classifier(net).register_forward_pre_hook(
        lambda _, x: entered.append(x[0])
    )
    with torch.no_grad():
        net(images)
    hook.remove()
    x = entered[0].mean(dim=(2, 3)) if entered[0].ndim == 4 else entered[0]
    found = pool_features(net, images)
    assert found.dtype == np.float32 and found.shape == tuple(x.shape)
    np.testing.assert_allclose(found, x.numpy(), rtol=1e-3, atol=1e-4)


def noted_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of pictures that are normalised together, from now on."""
    sizes: list[int] = []
    normalize = architectures.normalize

    def noted(batch: Tensor, device: str) -> Tensor:
        sizes.append(len(batch))
        return normalize(batch, device)

    monkeypatch.setattr(architectures, "normalize", noted)
    return sizes


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "vit_small"])
def test_pictures_are_normalised_a_batch_at_a_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = architectures.build(name, image_size=32).eval()
    rng = np.random.default_rng(0)
    stored, labels = rng.integers(0, 256, (80, 3, 32, 32)).astype(np.uint8), np.arange(65) % 2
    np.save(tmp_path / "images.npy", stored)
    rows = rng.permutation(80)[:65]  # the last batch is of one picture
    on_disk, images = StoredImages(tmp_path / "images.npy", rows), torch.from_numpy(stored[rows])
    whole = architectures.normalize(images)
    features, losses = pool_features(net, whole), pool_losses(net, whole, labels)
    sizes = noted_sizes(monkeypatch)
    for given in map(architectures.Normalized, (images, on_disk)):
        np.testing.assert_array_equal(pool_features(net, given), features)
        np.testing.assert_array_equal(pool_losses(net, given, labels), losses)
    assert sizes == [64, 1] * 4


def test_a_sample_of_pictures_on_disk_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever looks at it: a split of a large collection does not fit into memory as floats."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)
    ).eval()
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (300, 3, 16, 16)).astype(np.uint8))
    pictures = StoredImages(tmp_path / "images.npy")
    labels, groups = rng.integers(0, 2, 300), {"gender": rng.choice(["f", "m"], 300)}
    whole = as_sample(architectures.normalize(pictures[:]), labels, groups)
    sizes = noted_sizes(monkeypatch)
    parts = as_sample(architectures.Normalized(pictures), labels, groups)
    assert len(parts) == 300 and parts.images.shape == whole.images.shape
    spec = QuantSpec.parse("W4A8")
    found = []
    for people in (whole, parts):
        seen = observe_groups(net, people, ["mse"], keep=True)
        controlled, _ = control_accuracy(seen, spec, people, max_drop=0.0)
        kept, _ = preserve(seen, spec, people)
        with torch.no_grad():
            found.append([module(whole.images) for module in (controlled, kept)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert facts(net, parts) == facts(net, whole)
    assert sizes and max(sizes) <= 64


class Tokens(nn.Module):
    """The classifier is defined first, and answers about every token."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.inner = nn.Linear(3, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.inner(x.mul_(2))).mean(dim=1)


def test_features_of_a_users_own_model_are_those_of_the_layer_called_last() -> None:
    net, images = Tokens(), drawn(0, 5, 7, 3)
    before = images.clone()
    expected = net.inner(2 * images).mean(dim=1).detach().numpy()
    np.testing.assert_allclose(pool_features(net, images), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(images, before)
    two = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="the last layer takes 35 rows for 5 images"):
        pool_features(two, images)
    with pytest.raises(ValueError, match="Flatten calls no linear or convolution layer"):
        pool_features(nn.Flatten(), images)
    with pytest.raises(ValueError, match="a feature of image 3 is not finite"):
        pool_features(nn.Linear(2, 2), torch.tensor([[0.0, 1.0]] * 3 + [[0.0, float("nan")]]))
    assert torch.is_grad_enabled()


def test_losses_are_those_of_each_image() -> None:
    logits, labels = drawn(0, 150, 3), torch.arange(150) % 3
    expected = -logits.log_softmax(dim=1)[torch.arange(150), labels].numpy()
    found = pool_losses(nn.Identity(), logits, labels.numpy())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    margin, binary = logits[:, :1], (labels > 0).long()
    expected = F.softplus(torch.where(binary == 1, -margin[:, 0], margin[:, 0])).numpy()
    for one in (margin, margin[:, 0]):
        np.testing.assert_allclose(pool_losses(nn.Identity(), one, binary), expected, rtol=1e-5)
    for what, given, sentence in (
        (logits, labels[:9], "9 labels for 150 images"),
        (logits, labels + 1, "the label of image 2 is 3, but the model tells 3 classes apart"),
        (margin, labels, "the label of image 2 is 2, but the model tells 2 classes apart"),
        (logits[:0], labels[:0], "there are no images"),
        (logits * torch.inf, labels, "the loss of image 0 is not finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pool_losses(nn.Identity(), what, given)
    assert torch.is_grad_enabled()
