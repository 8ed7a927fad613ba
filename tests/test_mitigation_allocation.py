"""Sensitivities by group against one group at a time; allocations against brute force."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.group_mixed import (
    allocate_for_groups,
    quantize_mixed_for_groups,
    summed,
)
from fairq_utils.mitigation.group_sensitivity import (
    REDUCERS,
    by_group,
    group_sensitivities,
    reduced,
    tail_mean,
)
from fairq_utils.mitigation.sample import Sample, as_sample
from fairq_utils.quantizers import (
    Observed,
    QuantSpec,
    allocate,
    observe,
    quantize_mixed,
    quantize_observed,
    sensitivities,
)
from fairq_utils.quantizers.mixed_precision import total

FREE = QuantSpec(first_last_bits=None)
CANDIDATES = [dataclasses.replace(FREE, weight_bits=bits) for bits in (2, 4, 8)]
OBJECTIVES = ("overall", "mean", "worst_group", "cvar")


class Counting(nn.Module):
    """Halves its input in place; how many images it had, all copies count together."""

    images = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.images += len(x)
        return x.mul_(0.5)


def network(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        Counting(),
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, outputs),
    ).eval()


@pytest.fixture(scope="module")
def people() -> Sample:
    """More images than one pass takes; groups of different sizes, brightness and labels."""
    rng = np.random.default_rng(0)
    ages = rng.choice(["old", "young"], 150, p=[0.2, 0.8])
    genders = rng.choice(["f", "m"], 150)
    images = torch.randn(150, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images += torch.from_numpy((ages == "old") * 1.5).float().view(-1, 1, 1, 1)
    return as_sample(images, rng.integers(0, 2, 150), {"age": ages, "gender": genders})


@pytest.fixture(scope="module")
def seen(people: Sample) -> Observed:
    return observe(network(), people.images.split(50))


# ---- sensitivities


@pytest.mark.parametrize("measure", ["output", "layer", "loss"])
def test_a_group_by_itself_says_the_same(seen: Observed, people: Sample, measure: Any) -> None:
    table = group_sensitivities(seen, CANDIDATES, people, measure=measure)
    assert list(table.group.unique()) == ["old f", "old m", "young f", "young m"]
    assert list(table.columns) == ["layer", "bits", "group", "images", "sensitivity", "bytes"]
    for code in people.present:
        own = people.members(code)
        alone = dataclasses.replace(seen, batches=[own.images])
        if measure == "loss":
            wanted = sensitivities(seen, CANDIDATES, labelled=[(own.images, own.labels)])
        else:
            wanted = sensitivities(alone, CANDIDATES, measure=measure)
        found = table[table.group == people.name(code)].reset_index(drop=True)
        assert list(found.images.unique()) == [len(own)]
        same = ["layer", "bits", "bytes"]
        pd.testing.assert_frame_equal(found[same], wanted[same])
        tolerance = 1e-6 if measure == "loss" else 0
        assert np.allclose(found.sensitivity, wanted.sensitivity, rtol=1e-4, atol=tolerance)


def test_everyone_is_the_pooled_table(seen: Observed, people: Sample) -> None:
    table = group_sensitivities(seen, CANDIDATES, people, measure="loss")
    wanted = sensitivities(seen, CANDIDATES, labelled=[(people.images, people.labels)])
    assert np.allclose(reduced(table, "overall").sensitivity, wanted.sensitivity, atol=1e-6)
    assert not np.allclose(reduced(table, "mean").sensitivity, wanted.sensitivity, atol=1e-6)


@pytest.mark.parametrize(("measure", "passes"), [("output", 1 + 3 * 3), ("loss", 1 + 3 * 3)])
def test_one_pass_serves_all_groups(
    seen: Observed, people: Sample, measure: Any, passes: int
) -> None:
    Counting.images = 0
    group_sensitivities(seen, CANDIDATES, people, measure=measure)
    assert 0 <= Counting.images - passes * len(people) <= 1  # a first look at one answer


def test_one_pass_shows_all_layers(seen: Observed, people: Sample) -> None:
    Counting.images = 0
    group_sensitivities(seen, CANDIDATES, people, measure="layer")
    assert Counting.images == len(people) + 1


def test_one_logit_per_image(people: Sample) -> None:
    seen = observe(nn.Sequential(network(1), nn.Flatten(0)), [people.images])
    table = group_sensitivities(seen, CANDIDATES[:1], people, measure="loss")
    own = people.members(people.present[0])
    wanted = sensitivities(seen, CANDIDATES[:1], labelled=[(own.images, own.labels)])
    found = table[table.group == "old f"]
    assert np.allclose(found.sensitivity, wanted.sensitivity, atol=1e-6)


def test_what_was_passed_in_stays(seen: Observed, people: Sample) -> None:
    before = {k: v.clone() for k, v in seen.model.state_dict().items()}
    images = people.images.clone()
    for measure in ("output", "layer", "loss"):
        group_sensitivities(seen, CANDIDATES[:1], people, measure=measure)  # type: ignore[arg-type]
    after = seen.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
    assert torch.equal(people.images, images)
    assert not any(m._forward_hooks for m in seen.model.modules())


class Positions(nn.Module):
    """Rows of its layer are positions first, as in a transformer that is not batch-first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 64)
        return self.last(self.inner(x.permute(2, 0, 1)).mean(0))


def test_what_cannot_be_told_apart_is_refused(seen: Observed, people: Sample) -> None:
    labels = people.labels.clone()
    labels[7] = 2
    wrong = dataclasses.replace(people, labels=labels)
    with pytest.raises(BadInput, match="label 2 of image 7 is none of the model's 2 classes"):
        group_sensitivities(seen, CANDIDATES, wrong, measure="loss")
    with pytest.raises(ValueError, match="'curvature' is not one of output, loss, layer"):
        group_sensitivities(seen, CANDIDATES, people, measure="curvature")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two candidates are called W2A8"):
        group_sensitivities(seen, CANDIDATES[:1] * 2, people)
    with pytest.raises(BadInput, match="sample: has no images"):
        group_sensitivities(seen, CANDIDATES, people.take([]))
    flat = as_sample(torch.randn(64, 3, 64), [0, 1] * 32, {"g": ["a", "b"] * 32})
    positions = observe(Positions(), [flat.images])
    with pytest.raises(BadInput, match="not a row per image"):
        group_sensitivities(positions, CANDIDATES, flat, measure="layer")
    assert len(group_sensitivities(positions, CANDIDATES, flat)) == 2 * 3 * 2
    silent = dataclasses.replace(people, images=torch.full_like(people.images, torch.nan))
    with pytest.raises(ValueError, match="W2A8 in layer '1' has no finite effect on 'old f'"):
        group_sensitivities(seen, CANDIDATES, silent)


# ---- reducers


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.75, 0.9])
def test_tail_is_the_minimum_over_eta(alpha: float) -> None:
    values = np.random.default_rng(0).normal(size=(5, 6))
    for row, found in zip(values, tail_mean(values, alpha), strict=True):
        above = lambda eta, row=row: eta + np.maximum(row - eta, 0).sum() / ((1 - alpha) * 6)  # noqa: E731
        wanted = minimize_scalar(above, bounds=(-9, 9), method="bounded", options={"xatol": 1e-9})
        assert found == pytest.approx(wanted.fun, abs=1e-6)
    assert np.allclose(tail_mean(values, 0), values.mean(1))
    assert np.allclose(tail_mean(values, 1 - 1 / 6), values.max(1))


def test_reducers_by_hand() -> None:
    table = pd.DataFrame(
        {
            "layer": ["a"] * 3,
            "bits": "W4A8",
            "group": ["x", "y", "z"],
            "images": [70, 20, 10],
            "sensitivity": [1.0, 2.0, 6.0],
            "bytes": 8,
        }
    )
    wanted = {"overall": 1.7, "mean": 3.0, "worst_group": 6.0, "cvar": (6 + 0.5 * 2) / 1.5}
    for name, value in wanted.items():
        found = reduced(table, name)  # type: ignore[arg-type]
        assert found.sensitivity.item() == pytest.approx(value)
        assert list(found.columns) == ["layer", "bits", "sensitivity", "bytes"]
    weighted = reduced(table, "overall", weights={"z": 2, "x": 2, "y": 0})
    assert weighted.sensitivity.item() == pytest.approx(3.5)
    assert set(wanted) == set(REDUCERS)


# ---- allocations


def instance(seed: int, layers: int = 5, choices: int = 3) -> pd.DataFrame:
    """Sensitivities over three or more decades; odd seeds have some below 0."""
    rng = np.random.default_rng(seed)
    groups = 2 + seed % 4
    bytes_ = np.sort(rng.integers(10, 1000, (layers, choices)), axis=1)
    scale = 10.0 ** rng.integers(-2, 2 + seed % 3, (layers, choices, 1))
    values = rng.exponential(size=(layers, choices, groups)) * scale
    values *= np.where(rng.random(values.shape) < 0.2 * (seed % 2), -1, 1)
    at = list(itertools.product(range(layers), range(choices), range(groups)))
    return pd.DataFrame(
        {
            "layer": [f"layer {i}" for i, _, _ in at],
            "bits": [f"W{(2, 4, 8)[b]}A8" for _, b, _ in at],
            "group": [f"group {g}" for *_, g in at],
            "images": [10 * (g + 1) ** 2 for *_, g in at],
            "sensitivity": values.ravel(),
            "bytes": [int(bytes_[i, b]) for i, b, _ in at],
        }
    )


@pytest.mark.parametrize("seed", range(4))
def test_programmes_equal_brute_force(seed: int) -> None:
    table = instance(seed)
    found = by_group(table, "mean")
    names = list(table.layer.unique())
    every = [
        dict(zip(names, bits, strict=True))
        for bits in itertools.product(table.bits.unique(), repeat=len(names))
    ]
    sums = np.array([summed(found, chosen) for chosen in every])
    sizes = np.array([total(found.rows.assign(sensitivity=0.0), chosen)[1] for chosen in every])
    low, high = sizes.min(), sizes.max()
    for share in (0, 0.35, 0.7):
        budget = int(low + share * (high - low))
        for objective, alpha in [
            *((name, 0.5) for name in OBJECTIVES),
            ("cvar", 0.0),
            ("cvar", 0.7),
        ]:
            reduce = by_group(table, objective, alpha).reduce
            best = reduce(sums[sizes <= budget]).min()
            chosen = allocate_for_groups(table, budget, objective, alpha=alpha)  # type: ignore[arg-type]
            assert reduce(summed(found, chosen)) == pytest.approx(best, rel=1e-6)
            assert total(found.rows.assign(sensitivity=0.0), chosen)[1] <= budget


def test_large_entries_do_not_blur_the_small() -> None:
    """The solver's tolerance is absolute: a row of a billion would hide differences of one."""
    table = instance(0)
    table.loc[table.bits == "W2A8", "sensitivity"] = 1e9
    budget = int(table.groupby("layer").bytes.max().sum())
    rest = table[table.bits != "W2A8"]
    for objective in ("worst_group", "cvar"):
        found = by_group(table, objective)
        chosen = allocate_for_groups(table, budget, objective)  # type: ignore[arg-type]
        wanted = allocate_for_groups(rest, budget, objective)  # type: ignore[arg-type]
        assert found.reduce(summed(found, chosen)) == pytest.approx(
            float(found.reduce(summed(found, wanted))), rel=1e-9
        )


def test_everyone_is_the_plain_allocation() -> None:
    for seed in range(4):
        table = instance(seed)
        budget = int(1.3 * table.groupby("layer").bytes.min().sum())
        pooled = reduced(table, "overall")
        assert allocate_for_groups(table, budget, "overall") == allocate(pooled, budget)
        one = table[table.group == "group 0"]
        plain = allocate(one, budget)
        for objective in OBJECTIVES:  # of one group they are all the same
            assert allocate_for_groups(one, budget, objective) == plain  # type: ignore[arg-type]


def test_unusable_tables_and_settings_are_refused() -> None:
    table = instance(0)
    smallest = int(table.groupby("layer").bytes.min().sum())
    for objective in OBJECTIVES:
        with pytest.raises(ValueError, match=f"fewer than the {smallest} that these layers"):
            allocate_for_groups(table, smallest - 1, objective)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="'best' is not one of overall, mean, worst_group, cvar"):
        allocate_for_groups(table, 9999, "best")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"alpha: 1.0 is not in \[0, 1\)"):
        allocate_for_groups(table, 9999, "cvar", alpha=1.0)
    with pytest.raises(BadInput, match="only 'overall' weighs groups"):
        allocate_for_groups(table, 9999, "mean", weights={"group 0": 1, "group 1": 1})
    with pytest.raises(BadInput, match="weights: are those of group 0, but the groups are"):
        allocate_for_groups(table, 9999, "overall", weights={"group 0": 1})
    with pytest.raises(BadInput, match="must be 0 or more, and not all of them 0"):
        allocate_for_groups(table, 9999, "overall", weights={"group 0": 0, "group 1": 0})
    with pytest.raises(BadInput, match="has no images"):
        allocate_for_groups(table.drop(columns="images"), 9999, "mean")
    with pytest.raises(BadInput, match="has 29 rows, not one for each of 15 candidates and 2"):
        allocate_for_groups(table.iloc[1:], 9999, "mean")
    with pytest.raises(BadInput, match="has 30 rows, not one for each"):
        allocate_for_groups(pd.concat([table.iloc[1:], table.iloc[1:2]]), 9999, "mean")


# ---- models


def two_routes() -> nn.Module:
    """Most images speak through the first channel, rare ones through the second.

    At two bits per tensor, 0.6 beside 1 becomes 1 and 0.4 beside 1 becomes 0: ``1`` distorts the
    first channel, ``2`` silences the second.
    """
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(4)])
    weights = [[[1, 0], [0, 1]], [[0.6, 0], [0, 1]], [[1, 0], [0, 0.4]], [[-1, -1], [1, 1]]]
    for layer, weight in zip(model, weights, strict=True):
        layer.weight.data = torch.tensor(weight, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def routes() -> Sample:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    signs = np.where(labels == 1, 1.0, -1.0) * rng.uniform(0.5, 1, 200)
    rare = np.arange(200) % 20 == 0
    x = np.stack([np.where(rare, 0, signs), np.where(rare, signs, 0)], axis=1)
    return as_sample(torch.from_numpy(x).float(), labels, {"g": np.where(rare, "rare", "usual")})


TENSOR = QuantSpec(weight_granularity="tensor", first_last_bits=8)
WIDTHS = [dataclasses.replace(TENSOR, weight_bits=bits) for bits in (2, 8)]


def test_the_rare_group_gets_the_bits_that_it_needs(routes: Sample) -> None:
    seen = observe(two_routes(), [routes.images])
    even = quantize_observed(seen, WIDTHS[0])[1].size_bytes
    budget = even + 3  # one of the two layers may have eight bits: 4 bytes instead of 1
    found = {
        objective: quantize_mixed_for_groups(
            seen, budget, TENSOR, routes, objective=objective, candidates=WIDTHS
        )
        for objective in ("overall", "worst_group", "cvar", "mean")
    }
    layers = {name: report.layers for name, (_, report) in found.items()}
    assert (layers["overall"]["1"], layers["overall"]["2"]) == ("W8A8", "W2A8")
    assert (layers["worst_group"]["1"], layers["worst_group"]["2"]) == ("W2A8", "W8A8")
    assert layers["cvar"] == layers["worst_group"]  # the worse half of two groups is the worst
    right = {}
    for name, (module, report) in found.items():
        assert report.size_bytes <= budget
        with torch.no_grad():
            right[name] = module(routes.images).argmax(1) == routes.labels
    rare = routes.codes == 0
    assert right["worst_group"][rare].all() and not right["overall"][rare].all()
    note = found["worst_group"][1].corrections["mixed_precision"]
    assert note["objective"] == "worst_group" and note["budget"] == budget
    assert note["sensitivity"] == max(note["groups"].values())
    assert note["groups"]["usual"] == pytest.approx((1 / 0.6 - 1) ** 2, rel=0.05)
    other = found["overall"][1].corrections["mixed_precision"]
    assert other["groups"]["rare"] == pytest.approx(1.0, rel=0.05)
    assert "alpha" not in other and found["cvar"][1].corrections["mixed_precision"]["alpha"] == 0.5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_budgets_are_kept_and_tables_reused(seen: Observed, people: Sample, objective: Any) -> None:
    table = group_sensitivities(seen, CANDIDATES, people)
    for budget in (0.2, 0.3):
        _, report = quantize_mixed_for_groups(
            seen, budget, FREE, people, objective=objective, candidates=CANDIDATES, table=table
        )
        note = report.corrections["mixed_precision"]
        assert report.size_bytes <= budget * seen.float_bytes
        assert note["measure"] == "output noise over signal"
        found = by_group(table, objective)
        assert note["sensitivity"] == pytest.approx(
            float(found.reduce(np.array(list(note["groups"].values()))))
        )
        worst = by_group(table, "worst_group")
        fair = allocate_for_groups(table, 10**6, "worst_group")
        assert max(note["groups"].values()) >= summed(worst, fair).max() * (1 - 1e-9)


def test_everyone_is_the_plain_mixed_precision(seen: Observed, people: Sample) -> None:
    labelled = [(people.images, people.labels)]
    _, wanted = quantize_mixed(seen, 0.22, FREE, candidates=CANDIDATES, labelled=labelled)
    _, found = quantize_mixed_for_groups(
        seen, 0.22, FREE, people, objective="overall", candidates=CANDIDATES, measure="loss"
    )
    assert found.layers == wanted.layers and found.size_bytes == wanted.size_bytes
    notes = [r.corrections["mixed_precision"] for r in (found, wanted)]
    assert notes[0]["sensitivity"] == pytest.approx(notes[1]["sensitivity"], abs=1e-6)


def test_another_table_or_budget_is_refused(seen: Observed, people: Sample) -> None:
    table = group_sensitivities(seen, CANDIDATES, people)

    def ask(**changes: Any) -> None:
        asked = {"objective": "mean", "candidates": CANDIDATES, "table": table, **changes}
        quantize_mixed_for_groups(seen, asked.pop("budget", 0.3), FREE, people, **asked)

    with pytest.raises(BadInput, match="W4A8 of layer '1' is in the table or among the candidates"):
        ask(candidates=CANDIDATES[::2])
    with pytest.raises(BadInput, match="is of the groups old f, and the sample's are old f, old m"):
        ask(table=table[table.group == "old f"])
    with pytest.raises(ValueError, match="quantize_mixed_for_groups: budget: 0 is neither"):
        ask(budget=0)
    with pytest.raises(ValueError, match="quantize_mixed_for_groups: budget: 9 bytes are fewer"):
        ask(budget=9)
    with pytest.raises(BadInput, match="quantize_mixed_for_groups: 'fair' is not one of"):
        ask(objective="fair", table=None)
