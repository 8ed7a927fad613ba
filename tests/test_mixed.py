"""Mixed precision: sensitivities by hand, allocations against brute force, budgets kept."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fairq_utils.quantizers import (
    QuantSpec,
    allocate,
    float_classifier,
    mixed_precision,
    observe,
    quantize_mixed,
    quantize_observed,
    sensitivities,
)
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.layers import QuantLinear
from fairq_utils.quantizers.mixed_precision import total
from fairq_utils.quantizers.sensitivity import classification_loss, sqnr

FREE = QuantSpec(first_last_bits=None)
CANDIDATES = [dataclasses.replace(FREE, weight_bits=bits) for bits in (2, 4, 8)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.ReLU(),
        nn.Linear(6, 2),
    ).eval()


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def observed() -> Observed:
    return observe(network(), images().split(12), keep=True)


# ---- sensitivities


def test_sqnr_by_hand() -> None:
    signal = torch.tensor([[3.0, 4.0]])
    assert sqnr(signal, torch.tensor([[3.0, 4.5]])) == pytest.approx(20.0)
    assert sqnr(signal, signal) == math.inf
    assert sqnr(torch.zeros(2), torch.ones(2)) == -math.inf


@pytest.mark.parametrize("measure", ["output", "layer"])
def test_noise_of_one_layer_by_hand(measure: Any) -> None:
    """Two linear layers; what is measured is recomputed without the package's loops."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    x = torch.randn(10, 4)
    observed = observe(model, [x[:6], x[6:]], keep=True)
    table = sensitivities(observed, CANDIDATES, measure=measure).set_index(["layer", "bits"])
    layer = QuantLinear(model[0], CANDIDATES[1])
    layer.set_input_range(float(x.min()), float(x.max()))
    with torch.no_grad():
        first, noisy = model[0](x), layer(x)
        pair = (first, noisy) if measure == "layer" else (model[1](first), model[1](noisy))
    row = table.loc[("0", "W4A8")]
    assert row.sqnr == pytest.approx(sqnr(*pair), rel=1e-5)
    assert row.sensitivity == pytest.approx(10 ** (-row.sqnr / 10))
    # 20 weights of 4 bits, 5 scales, the input's grid, 5 biases
    assert row.bytes == 10 + 20 + 8 + 20
    assert list(table.index) == [(n, b) for n in "01" for b in ("W2A8", "W4A8", "W8A8")]
    assert table.sensitivity.groupby("layer").is_monotonic_decreasing.all()


def test_increase_of_the_loss_is_that_of_one_quantized_layer(observed: Observed) -> None:
    labelled = [(images()[:16], torch.arange(16) % 2), (images()[16:], torch.arange(8) % 2)]
    table = sensitivities(observed, CANDIDATES, labelled=labelled)
    x, y = images(), torch.cat([labels for _, labels in labelled])
    with torch.no_grad():
        before = classification_loss(observed.model(x), y)
        for name in observed.order:
            alone = {n: None for n in observed.order if n != name}
            model, _ = quantize_observed(observed, CANDIDATES[0], alone)
            found = table[(table.layer == name) & (table.bits == "W2A8")].sensitivity.item()
            wanted = float(classification_loss(model(x), y) - before)
            assert found == pytest.approx(wanted, abs=1e-6)
    assert table.sqnr.isna().all()


def test_what_was_observed_stays(observed: Observed) -> None:
    before = {k: v.clone() for k, v in observed.model.state_dict().items()}
    sensitivities(observed, CANDIDATES)
    sensitivities(observed, CANDIDATES, measure="layer")
    quantize_mixed(observed, 0.2, FREE)
    after = observed.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
    assert not any(m._forward_hooks for m in observed.model.modules())


def test_first_and_last_layers_keep_their_bits(observed: Observed) -> None:
    specs = [QuantSpec.parse(bits) for bits in ("W2A8", "W4A8")]
    table = sensitivities(observed, specs)
    edges = table[table.layer.isin([observed.order[0], observed.order[-1]])]
    assert list(edges.bits) == ["W8A8", "W8A8"]


class Twice(nn.Module):
    """One layer called twice, by a condition on the values and by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(input=self.inner(x))
        return self.last(x if float(x.detach().sum()) > 0 else -x)


@pytest.mark.parametrize("measure", ["output", "layer"])
def test_layers_called_twice_and_by_keyword(measure: Any) -> None:
    torch.manual_seed(0)
    observed = observe(Twice(), [torch.randn(9, 4)], keep=True)
    table = sensitivities(observed, CANDIDATES, measure=measure)
    assert list(table.layer.unique()) == ["inner", "last"]
    assert np.isfinite(table.sensitivity).all()


def test_a_model_that_is_one_layer() -> None:
    observed = observe(nn.Linear(4, 2), [torch.randn(9, 4)], keep=True)
    module, report = quantize_mixed(observed, 0.99, FREE, candidates=CANDIDATES[:2])
    assert isinstance(module, QuantLinear) and list(report.layers.values()) == ["W4A8"]
    with pytest.raises(ValueError, match="there is no backbone"):
        float_classifier(observed, FREE)


def test_unusable_sensitivities_are_refused(observed: Observed) -> None:
    with pytest.raises(ValueError, match="specs is empty"):
        sensitivities(observed, [])
    with pytest.raises(ValueError, match="'curvature' is not one of output, layer"):
        sensitivities(observed, CANDIDATES, measure="curvature")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two candidates are called W2A8"):
        sensitivities(observed, CANDIDATES[:1] * 2)
    with pytest.raises(ValueError, match="labelled is empty"):
        sensitivities(observed, CANDIDATES, labelled=[])
    with pytest.raises(ValueError, match="ranges by 'mse' were not observed"):
        sensitivities(observed, [dataclasses.replace(FREE, activation_range="mse")])
    with pytest.raises(ValueError, match="give observe keep=True, or give labelled"):
        sensitivities(observe(network(), [images()]), CANDIDATES)
    silent = observe(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), [-torch.ones(3, 4)], keep=True)
    nn.init.constant_(silent.model[0].weight, 1.0)
    nn.init.constant_(silent.model[0].bias, -9.0)
    assert (sensitivities(silent, CANDIDATES).sensitivity == 0).all()  # 0 stays 0


# ---- allocations


def instance(seed: int, layers: int = 5, choices: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    bytes_ = np.sort(rng.integers(10, 1000, (layers, choices)), axis=1)
    cost = rng.exponential(size=(layers, choices)) * 10.0 ** rng.integers(-3, 3, (layers, 1))
    cost = cost if seed % 2 else -np.sort(-cost, axis=1)  # odd seeds: more bytes may be worse
    return pd.DataFrame(
        {
            "layer": np.repeat([f"layer {i}" for i in range(layers)], choices),
            "bits": np.tile([f"W{b}A8" for b in (2, 3, 4, 8)[:choices]], layers),
            "sensitivity": cost.ravel(),
            "bytes": bytes_.ravel(),
        }
    )


@pytest.mark.parametrize("seed", range(6))
def test_integer_programme_equals_brute_force(seed: int) -> None:
    table = instance(seed)
    names = list(table.layer.unique())
    every = [
        dict(zip(names, bits, strict=True))
        for bits in itertools.product(table.bits.unique(), repeat=len(names))
    ]
    totals = np.array([total(table, chosen) for chosen in every])
    low, high = totals[:, 1].min(), totals[:, 1].max()
    for budget in (low, int(low + 0.3 * (high - low)), int(low + 0.7 * (high - low)), high):
        best = totals[totals[:, 1] <= budget, 0].min()
        cost, size = total(table, allocate(table, int(budget)))
        assert cost == pytest.approx(best, rel=1e-9)
        assert size <= budget


def test_a_budget_that_nothing_meets_names_the_smallest(observed: Observed) -> None:
    table = instance(0)
    smallest = int(table.groupby("layer").bytes.min().sum())
    with pytest.raises(ValueError, match=f"fewer than the {smallest} that these layers"):
        allocate(table, smallest - 1)
    with pytest.raises(ValueError, match="raise the budget to at least") as caught:
        quantize_mixed(observed, 100, FREE)
    at_least = int(str(caught.value).split("at least ")[1].split()[0])
    _, report = quantize_mixed(observed, at_least, FREE)
    assert report.size_bytes == at_least
    assert set(report.layers.values()) == {"W2A8"}
    for wrong in (0, -5, 1.5, True, "small"):
        with pytest.raises(ValueError, match="neither a whole number of bytes nor a fraction"):
            quantize_mixed(observed, wrong, FREE)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [0.16, 0.2, 0.25, 0.4, 700])
def test_the_budget_is_kept(observed: Observed, budget: float) -> None:
    module, report = quantize_mixed(observed, budget, FREE)
    allowed = budget if budget > 1 else budget * observed.float_bytes
    assert report.size_bytes <= allowed
    note = report.corrections["mixed_precision"]
    assert note["budget"] == int(allowed) and note["measure"] == "output noise over signal"
    assert module(images()).shape == (24, 2)
    if budget == 0.4:  # there is room for eight bits everywhere
        assert set(report.layers.values()) == {"W8A8"}


def test_more_bytes_are_never_worse(observed: Observed) -> None:
    budgets = (0.16, 0.19, 0.22, 0.26, 0.3)
    notes = [
        quantize_mixed(observed, b, FREE)[1].corrections["mixed_precision"]["sensitivity"]
        for b in budgets
    ]
    assert notes == sorted(notes, reverse=True)


def test_a_fragile_layer_gets_more_bits() -> None:
    """Weights on channels that are always zero set the one scale, and leave the others nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)], nn.Linear(16, 2))
    spec = dataclasses.replace(FREE, weight_granularity="tensor")
    candidates = [dataclasses.replace(spec, weight_bits=bits) for bits in (4, 8)]
    x = torch.randn(64, 16)
    with torch.no_grad():
        model[1].weight[:4], model[1].bias[:4] = 0.0, 0.0
        sound = sensitivities(observe(model, [x], keep=True), candidates)
        model[2].weight[:, :4] *= torch.logspace(0.5, 1.0, 4)
    observed = observe(model, [x], keep=True)
    fragile = sensitivities(observed, candidates)
    row = (sound.layer == "2") & (sound.bits == "W4A8")
    assert fragile[row].sensitivity.item() > 10 * sound[row].sensitivity.item()
    _, report = quantize_mixed(observed, 0.22, spec, candidates=candidates)
    assert report.layers["2"] == "W8A8"
    assert list(report.layers.values()).count("W4A8") >= 2


def test_float_classifier_and_labels(observed: Observed) -> None:
    _, report = float_classifier(observed, QuantSpec.parse("W4A8"))
    assert observed.order[-1] not in report.layers and len(report.layers) == len(observed.order) - 1
    assert report.left_float[observed.order[-1]] == "was asked to stay in float"
    labelled = [(images(), torch.arange(24) % 2)]
    _, mixed = quantize_mixed(observed, 0.2, FREE, labelled=labelled)
    assert mixed.corrections["mixed_precision"]["measure"] == "loss"


def test_learnt_rounding_of_an_allocation(observed: Observed) -> None:
    spec = dataclasses.replace(FREE, rounding="adaround", iterations=5)
    _, report = quantize_mixed(observed, 0.2, spec)
    assert report.size_bytes <= 0.2 * observed.float_bytes
    assert {"mixed_precision", "reconstruction"} <= set(report.corrections)


def test_corrections_count_towards_the_budget() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False), nn.ReLU(), nn.Conv2d(32, 32, 1, bias=False), nn.ReLU()
    ).extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2, bias=False)])
    observed = observe(model.eval(), [torch.randn(8, 3, 12, 12)], keep=True)
    budget = quantize_observed(observed, QuantSpec.parse("W6A8"))[1].size_bytes
    _, report = quantize_mixed(observed, budget, QuantSpec(bias_correction=True))
    assert report.size_bytes <= budget
    smallest = quantize_observed(observed, QuantSpec.parse("W2A8", bias_correction=True))[
        1
    ].size_bytes
    with pytest.raises(ValueError, match=f"raise the budget to at least {smallest} bytes"):
        quantize_mixed(observed, smallest - 1, QuantSpec(bias_correction=True))


def test_the_solver_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    solve = mixed_precision.milp

    def loud(*asked: Any, **options: Any) -> Any:
        os.write(1, b"HighsMipSolverData says something\n")
        return solve(*asked, **options)

    monkeypatch.setattr(mixed_precision, "milp", loud)
    rows = [("a", 4, 10, 1.0), ("a", 8, 20, 0.0)]
    table = pd.DataFrame(rows, columns=["layer", "bits", "bytes", "sensitivity"])
    print("before")
    assert mixed_precision.solve(table, 20, np.array([1.0, 0.0])) == {"a": 8}
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
