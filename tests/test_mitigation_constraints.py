"""Constraints on groups: their formulas on small tensors, and what they do to a population."""

from __future__ import annotations

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.data import FaceData
from fairq_utils.errors import BadInput
from fairq_utils.metrics.rows import groups as crossed
from fairq_utils.mitigation.balancing_act import BalancingAct
from fairq_utils.mitigation.constraints import (
    CONSTRAINTS,
    GroupDRO,
    OddsPenalty,
    ParityPenalty,
    Plain,
)
from fairq_utils.mitigation.fine_tuning import OnFaces, OnLoader, fine_tune
from fairq_utils.mitigation.group_facts import (
    GroupFacts,
    facts,
    facts_of_faces,
    image_losses,
    two_logits,
)
from fairq_utils.mitigation.sample import Sample, as_sample
from fairq_utils.quantizers import QuantSpec, observe
from fairq_utils.quantizers.sensitivity import classification_loss
from fairq_utils.training import loop, objectives

TWO = GroupFacts(("common", "rare"), (1800, 200), (0.9, 0.8))
THREE = GroupFacts(("a", "b", "c"), (50, 100, 400), (0.9, 0.8, 0.7))
OPTIONS = {
    "parity": {"strength": 0.1},
    "odds": {"strength": 0.1},
    "group_dro": {"step": 0.1},
    "balancing_act": {"memory": 4},
}


def hard(answers: list[int]) -> Tensor:
    """Logits so sure that probabilities are 0 or 1."""
    return torch.tensor([[0.0, 200.0 * (2 * a - 1)] for a in answers])


def made(name: str, known: GroupFacts = TWO) -> nn.Module:
    return CONSTRAINTS[name](known, **OPTIONS.get(name, {}))


# Formulas


def test_plain_is_the_cross_entropy_of_the_study() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(16, 2), torch.randint(0, 2, (16,))
    groups = torch.zeros(16, dtype=torch.int64)
    data = FaceData(
        torch.zeros(16, 3, 2, 2, dtype=torch.uint8),
        labels.numpy().astype(np.int8),
        pd.DataFrame({"gender": ["f", "m"] * 8}),
        np.repeat("train", 16),
    )
    for smoothing in (0.0, 0.1):
        study = objectives.Classification(data, smoothing).of_logits(logits, torch.arange(16))
        assert torch.equal(Plain(TWO, label_smoothing=smoothing)(logits, labels, groups), study)
        parts = image_losses(logits, labels, smoothing)
        torch.testing.assert_close(parts.mean(), study)
        one = logits[:, 1] - logits[:, 0]
        for shape in (one, one[:, None]):
            torch.testing.assert_close(image_losses(shape, labels, smoothing), parts)
    torch.testing.assert_close(Plain(TWO)(one, labels, groups), classification_loss(one, labels))
    with pytest.raises(BadInput, match=r"shape \(16, 3\)"):
        Plain(TWO)(torch.zeros(16, 3), labels, groups)


def test_rates_are_counts_where_answers_are_sure() -> None:
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    labels = torch.tensor([1, 1, 0, 0, 1, 1, 1, 0, 0, 0])
    logits = hard([1, 0, 1, 0, 1, 1, 1, 0, 0, 1])
    plain = F.cross_entropy(logits, labels)
    # Positive answers: 2 of 4 and 4 of 6, 6 of 10 in all.
    parity = abs(0.5 / 0.6 - 1) + abs(4 / 6 / 0.6 - 1)
    found = ParityPenalty(TWO, strength=3.0)(logits, labels, groups) - plain
    torch.testing.assert_close(found, torch.tensor(3 * parity), rtol=1e-4, atol=1e-4)
    # Of positives 1 of 2, 3 of 3, 4 of 5; of negatives 1 of 2, 1 of 3, 2 of 5.
    odds = abs(0.5 / 0.8 - 1) + abs(1 / 0.8 - 1) + abs(0.5 / 0.4 - 1) + abs(1 / 3 / 0.4 - 1)
    found = OddsPenalty(TWO, strength=3.0)(logits, labels, groups) - plain
    torch.testing.assert_close(found, torch.tensor(3 * odds), rtol=1e-4, atol=1e-4)


def test_penalties_are_of_probabilities() -> None:
    groups, labels = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    logits = torch.tensor([-1.0, 0.0, 2.0])
    p = [1 / (1 + math.exp(-float(x))) for x in logits]
    mean = sum(p) / 3
    parity = abs((p[0] + p[1]) / 2 / mean - 1) + abs(p[2] / mean - 1)
    plain = classification_loss(logits, labels)
    for shape in (logits, logits[:, None], two_logits(logits)):
        found = ParityPenalty(TWO, strength=1.0)(shape, labels, groups) - plain
        assert float(found) == pytest.approx(parity, abs=1e-6)
    # Only group 0 has a negative, so false positive rates are not compared.
    odds = (abs(p[1] - (p[1] + p[2]) / 2) + abs(p[2] - (p[1] + p[2]) / 2)) / ((p[1] + p[2]) / 2)
    found = OddsPenalty(TWO, strength=1.0)(logits, labels, groups) - plain
    assert float(found) == pytest.approx(odds, abs=1e-6)


def test_a_group_that_is_not_in_the_batch_is_left_out() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(12, 2), torch.tensor([0, 1] * 6)
    groups = torch.tensor([0, 0, 2, 2] * 3)
    for kind in (ParityPenalty, OddsPenalty):
        assert torch.equal(
            kind(THREE)(logits, labels, groups), kind(TWO)(logits, labels, groups // 2)
        )


def test_weights_follow_the_exponentiated_gradient() -> None:
    constraint = GroupDRO(THREE, step=0.5, adjustment=2.0)
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.2])
    labels, groups = torch.tensor([1, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 1, 2])
    losses = image_losses(logits, labels).tolist()
    means = [losses[0], (losses[1] + losses[3]) / 2, (losses[2] + losses[4]) / 2]
    q = [1 / 3] * 3
    for _ in range(2):
        loss = constraint(logits, labels, groups)
        sizes = zip(q, means, THREE.sizes, strict=True)
        q = [w * math.exp(0.5 * (m + 2 / math.sqrt(n))) for w, m, n in sizes]
        q = [w / sum(q) for w in q]
        torch.testing.assert_close(constraint.weights, torch.tensor(q))
        assert float(loss) == pytest.approx(sum(w * m for w, m in zip(q, means, strict=True)))


def test_an_absent_group_keeps_its_weight() -> None:
    constraint = GroupDRO(THREE, step=1.0)
    constraint.weights = torch.tensor([0.2, 0.5, 0.3])
    logits, labels = torch.tensor([-1.0, 2.0]), torch.tensor([1, 1])
    loss = constraint(logits, labels, torch.tensor([0, 2]))
    low, high = image_losses(logits, labels).tolist()[::-1]
    raised = [0.2 * math.exp(high), 0.3 * math.exp(low)]
    q = [0.5 * raised[0] / sum(raised), 0.5, 0.5 * raised[1] / sum(raised)]
    torch.testing.assert_close(constraint.weights, torch.tensor(q))
    assert float(loss) == pytest.approx(q[0] * high + q[2] * low)
    constraint(logits[:1], labels[:1], torch.tensor([0]))  # has nothing to compare with
    torch.testing.assert_close(constraint.weights, torch.tensor(q))


def test_weights_survive_steps_that_overflow() -> None:
    constraint = GroupDRO(TWO, step=1e4)
    for _ in range(3):
        loss = constraint(hard([1, 0]), torch.tensor([1, 1]), torch.tensor([0, 1]))
        assert torch.isfinite(loss)
        assert constraint.weights.tolist() == [0, 1]
    assert torch.isfinite(constraint(hard([0]), torch.tensor([1]), torch.tensor([0])))


def test_state_rests_in_evaluation_mode() -> None:
    logits, labels, groups = hard([0, 1]), torch.tensor([1, 1]), torch.tensor([0, 1])
    for constraint in (GroupDRO(TWO), BalancingAct(TWO, memory=1)):
        before = copy.deepcopy(constraint.state_dict())
        constraint.eval()(logits, labels, groups)
        assert all(torch.equal(constraint.state_dict()[k], v) for k, v in before.items())
        constraint.train()(logits, labels, groups)
        assert not all(torch.equal(constraint.state_dict()[k], v) for k, v in before.items())


def test_multipliers_and_lagrangian_by_hand() -> None:
    constraint = BalancingAct(TWO, tolerance=0.05, dual_rate=0.5, memory=4)
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    labels = torch.ones(6, dtype=torch.int64)
    logits = torch.tensor([1.0, 2.0, 3.0, -1.0, 1.0, -2.0])
    losses = image_losses(logits, labels)
    loss = constraint(logits, labels, groups)
    # The memory of the rare group is half full: nothing to compare with.
    assert constraint.ready.tolist() == [True, False]
    assert constraint.multipliers.tolist() == [0, 0]
    assert constraint.excess().tolist()[0] == 0 and math.isnan(constraint.excess()[1])
    torch.testing.assert_close(loss, losses.mean())
    loss = constraint(logits, labels, groups)
    # Accuracies 3/4 and 1/2, 0.9 and 0.8 before; 90 % of the images are of the common group.
    gaps = [0.9 - 0.75, 0.8 - 0.5]
    overall = 0.9 * gaps[0] + 0.1 * gaps[1]
    excess = [gap - overall for gap in gaps]
    torch.testing.assert_close(constraint.excess(), torch.tensor(excess))
    multipliers = [0.0, 0.5 * (excess[1] - 0.05)]
    torch.testing.assert_close(constraint.multipliers, torch.tensor(multipliers))
    expected = losses.mean() + multipliers[1] * (losses[4:].mean() - losses.mean())
    torch.testing.assert_close(loss, expected)
    # Only the common group is in this batch; the other's multiplier moves, but it adds nothing.
    loss = constraint(logits[:4], labels[:4], groups[:4])
    torch.testing.assert_close(loss, losses[:4].mean())
    assert float(constraint.multipliers[1]) == pytest.approx(2 * multipliers[1])


def test_memory_keeps_the_last_answers() -> None:
    constraint = BalancingAct(TWO, memory=3)
    history: dict[int, list[int]] = {0: [], 1: []}
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        size = int(torch.randint(1, 12, (1,), generator=generator))
        groups = torch.randint(0, 2, (size,), generator=generator)
        right = torch.randint(0, 2, (size,), generator=generator)
        constraint(hard(right.tolist()), torch.ones(size, dtype=torch.int64), groups)
        for code, hit in zip(groups.tolist(), right.tolist(), strict=True):
            history[code].append(hit)
        assert constraint.seen.tolist() == [len(history[0]), len(history[1])]
        for code, hits in history.items():
            assert sorted(constraint.answers[code].tolist())[::-1][: len(hits)] == sorted(
                hits[-3:], reverse=True
            )


def test_multipliers_fall_back_to_zero() -> None:
    constraint = BalancingAct(TWO, dual_rate=1.0, memory=2)
    labels, groups = torch.ones(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    constraint(hard([1, 1, 0, 0]), labels, groups)
    assert constraint.multipliers[1] > 0
    for _ in range(20):
        constraint(hard([0, 0, 1, 1]), labels, groups)
    assert constraint.multipliers[1] == 0 and constraint.multipliers[0] > 0


# Any batch


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("answers", ["soft", "all 0", "all 1"])
def test_no_composition_of_a_batch_raises(name: str, answers: str) -> None:
    torch.manual_seed(0)
    constraint = made(name, THREE)
    codes = [[0, 0, 0], [1, 1, 2], [2, 2, 2], [0, 1, 2], [2], [0, 1]]
    for groups in codes:
        for labels in ([0] * len(groups), [1] * len(groups), [0, 1, 0][: len(groups)]):
            logits = torch.randn(len(groups), 2)
            if answers != "soft":
                logits = hard([int(answers[-1])] * len(groups))
            logits.requires_grad_()
            loss = constraint(logits, torch.tensor(labels), torch.tensor(groups))
            loss.backward()
            assert loss.ndim == 0 and torch.isfinite(loss)
            assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_what_is_not_finite_is_left_to_the_loop(name: str) -> None:
    logits = torch.tensor([[0.0, math.nan], [0.0, 1.0]])
    assert made(name)(logits, torch.tensor([0, 1]), torch.tensor([0, 1])).isnan()


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("shape", [(24, 2), (24, 1), (24,)])
def test_autocast_leaves_the_loss_in_float32(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(shape).bfloat16()
    labels, groups = torch.randint(0, 2, (24,)), torch.randint(0, 2, (24,))
    first, second = made(name), made(name)
    for _ in range(3):
        plain = first(logits.float(), labels, groups)
        with torch.autocast("cpu", torch.bfloat16):
            cast = second(logits, labels, groups)
        assert cast.dtype == torch.float32
        torch.testing.assert_close(cast, plain, rtol=1e-6, atol=1e-6)


# A population: the label shows weakly, and strongly in a feature that misleads about a rare group


def population(seed: int = 0, count: int = 2000) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    rare = torch.rand(count, generator=generator) < 0.1
    sign = 2.0 * labels - 1
    x = torch.randn(count, 8, generator=generator)
    x[:, 0] += 1.2 * sign
    x[:, 1] = 0.5 * x[:, 1] + torch.where(rare, -sign, sign)
    x[:, 2] = 0.5 * x[:, 2] + torch.where(rare, 1.0, -1.0)
    return as_sample(x, labels, {"group": np.where(rare, "rare", "common")})


def biased(seed: int = 1, count: int = 2000) -> Sample:
    """Base rates of 70 and 30 %, and the group shows."""
    generator = torch.Generator().manual_seed(seed)
    second = torch.rand(count, generator=generator) < 0.4
    rate = torch.where(second, 0.3, 0.7)
    labels = (torch.rand(count, generator=generator) < rate).long()
    x = torch.randn(count, 8, generator=generator)
    x[:, 0] += 2.0 * labels - 1
    x[:, 1] += torch.where(second, 1.0, -1.0)
    return as_sample(x, labels, {"group": np.where(second, "second", "first")})


def trained(
    people: Sample, constraint: nn.Module, epochs: int = 10, precision: str = "fp32", seed: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Linear(8, 2)
    codes, generator = people.codes, torch.Generator().manual_seed(seed)

    def epoch():
        for rows in torch.randperm(len(people), generator=generator).split(100):
            yield people.images[rows], people.labels[rows], codes[rows]

    recipe = loop.Recipe(epochs, 0.05, 100, weight_decay=0.0, precision=precision)
    loop.optimise(model, OnLoader(constraint), epoch, len(people) // 100, recipe)
    return model


def by_group(people: Sample, values: Tensor) -> list[float]:
    return [float(values[people.codes == code].double().mean()) for code in people.present]


def accuracies(model: nn.Module, people: Sample) -> list[float]:
    with torch.no_grad():
        return by_group(people, model(people.images).argmax(1) == people.labels)


def gap(model: nn.Module, people: Sample, label: int | None = None) -> float:
    """Between groups, of the mean probability of a positive answer among all or one label."""
    chosen = people if label is None else people.take(np.flatnonzero(people.labels == label))
    with torch.no_grad():
        first, second = by_group(chosen, model(chosen.images).softmax(dim=1)[:, 1])
    return abs(first - second)


def known(people: Sample, accuracies: tuple[float, ...] = (0.9, 0.9)) -> GroupFacts:
    sizes = np.bincount(people.groups.codes)
    return GroupFacts(people.groups.names, tuple(sizes.tolist()), accuracies)


def test_group_dro_raises_the_worst_group() -> None:
    people, others = population(0), population(1)
    plain = accuracies(trained(people, Plain(known(people))), others)
    robust = GroupDRO(known(people), step=0.1)
    better = accuracies(trained(people, robust), others)
    assert plain[1] < plain[0] - 0.2
    assert min(better) > min(plain) + 0.1
    assert robust.weights[1] > 0.4  # of a tenth of the images
    adjusted = GroupDRO(known(people), step=0.1, adjustment=5.0)
    trained(people, adjusted)
    assert adjusted.weights[1] > robust.weights[1]


def test_a_stronger_penalty_leaves_a_smaller_gap() -> None:
    people = biased()
    parity = []
    for kind, labels in ((ParityPenalty, (None,)), (OddsPenalty, (0, 1))):
        gaps = []
        for strength in (0.0, 0.2, 2.0):
            model = trained(people, kind(known(people), strength=strength), epochs=5)
            gaps.append(sum(gap(model, people, label) for label in labels))
            parity.append(gap(model, people))
        assert gaps[0] > gaps[1] + 0.02 > gaps[2] + 0.04
        assert gaps[2] < gaps[0] / 4
    # Equal odds leave the gap in positive answers that base rates make.
    assert parity[4] > 0.2 > 5 * parity[2]


def test_balancing_act_serves_the_group_that_loses() -> None:
    people = population(0)
    reference = known(people, (0.88, 0.88))
    excess = []
    plain = trained(people, Plain(reference))
    bound = BalancingAct(reference, tolerance=0.02, dual_rate=0.5, memory=100)
    model = trained(people, bound, epochs=20)
    for network in (plain, model):
        hits = accuracies(network, people)
        overall = np.average(hits, weights=reference.sizes)
        excess.append((0.88 - hits[1]) - (0.88 - overall))
    assert bound.multipliers[1] > 1 > bound.multipliers[0] >= 0
    assert excess[0] > 0.2
    assert excess[1] < excess[0] / 2
    with torch.no_grad():
        losses = [image_losses(m(people.images), people.labels) for m in (plain, model)]
    means = [by_group(people, loss)[1] - float(loss.mean()) for loss in losses]
    assert means[1] < means[0] / 2
    # What was lost before quantization is not held against it.
    lenient = BalancingAct(known(people, tuple(accuracies(plain, people))), tolerance=0.05)
    trained(people, lenient)
    assert lenient.multipliers[1] < bound.multipliers[1] / 4


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_model_is_trained(name: str, precision: str) -> None:
    people = population(count=400)
    constraint = CONSTRAINTS[name](known(people), **OPTIONS.get(name, {}))
    objective = OnLoader(constraint)
    assert list(objective.parameters()) == []
    model = nn.Linear(8, 2)
    objective(model, people.images, people.labels, people.codes).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not any(buffer.requires_grad for buffer in objective.buffers())
    a, b = (
        trained(people, CONSTRAINTS[name](known(people), **OPTIONS.get(name, {})), 2, precision)
        for _ in range(2)
    )
    assert torch.equal(a.weight, b.weight) and torch.isfinite(a.weight).all()


# Ways in


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout())
    return model.append(nn.Linear(16, 2)).eval()


def test_facts_are_counts(network: nn.Module) -> None:
    people = population(count=150)
    found = facts(network.train(), people)
    assert network.training
    network.eval()
    assert found.names == ("common", "rare") and sum(found.sizes) == 150
    assert found.accuracies == pytest.approx(tuple(accuracies(network, people)))
    with torch.no_grad():
        right = (network(people.images).argmax(1) == people.labels).double().mean()
    assert found.overall == pytest.approx(float(right))
    assert sum(found.shares) == pytest.approx(1)


@pytest.mark.parametrize("bits", ["W2A8", None])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_fine_tuning(network: nn.Module, name: str, bits: str | None) -> None:
    people = population(count=300)
    seen = observe(network, people.images.split(100))
    spec = None if bits is None else QuantSpec.parse(bits)
    before = copy.deepcopy(seen.model.state_dict())
    images = people.images.clone()
    state = torch.get_rng_state()
    settings = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 60, **OPTIONS.get(name, {})}
    one, report = fine_tune(seen, spec, people, name, seed=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    two, _ = fine_tune(seen, spec, people, name, seed=3, **settings)
    other, _ = fine_tune(seen, spec, people, name, seed=4, **settings)
    assert all(torch.equal(seen.model.state_dict()[k], v) for k, v in before.items())
    assert torch.equal(people.images, images)
    with torch.no_grad():
        answers = one(images)
        assert torch.equal(answers, two(images)) and not torch.equal(answers, other(images))
        assert classification_loss(answers, people.labels) < classification_loss(
            network(images), people.labels
        )
    assert not one.training and not any(p.requires_grad for p in one.parameters())
    notes = report.corrections["fine_tuning"]
    assert notes["constraint"] == name
    assert tuple(notes["accuracies"].values()) == facts(network, people).accuracies
    assert ("weights" in notes) == (name == "group_dro")
    assert ("multipliers" in notes) == (name == "balancing_act")
    if bits is None:
        assert report.layers == {} and set(report.left_float) == {"0", "2", "5"}
        assert report.size_bytes == report.float_bytes
    else:
        assert report.layers == {"0": "W8A8", "2": "W2A8", "5": "W8A8"}


def test_arms_see_the_same_batches(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    people = population(count=130)
    seen = observe(network, [people.images])
    batches: list[list[Tensor]] = []
    forward = OnLoader.forward

    def spy(self: OnLoader, model: nn.Module, images: Tensor, *rest: Tensor) -> Tensor:
        batches[-1].append(images)
        return forward(self, model, images, *rest)

    monkeypatch.setattr(OnLoader, "forward", spy)
    for spec, name in ((None, "none"), (QuantSpec.parse("W4A8"), "none"), (None, "group_dro")):
        batches.append([])
        fine_tune(seen, spec, people, name, epochs=2, batch_size=40, seed=1)
    first = batches[0]
    assert [len(x) for x in first] == [40] * 6
    assert all(torch.equal(a, b) for arm in batches for a, b in zip(first, arm, strict=True))
    assert not torch.equal(first[0], first[3])
    rows = {tuple(row.tolist()) for row in torch.cat(first[:3])}
    assert len(rows) == 120


def pictures(count: int = 96) -> FaceData:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, count).astype(np.int8)
    images = rng.integers(0, 60, (count, 3, 8, 8)).astype(np.uint8)
    images[target == 1] += 120
    groups = pd.DataFrame(
        {
            "gender": pd.Categorical(rng.choice(["female", "male"], count)),
            "age": pd.Categorical(rng.choice(["old", "young"], count)),
        }
    )
    return FaceData(torch.from_numpy(images), target, groups, np.repeat("train", count))


def test_faces_are_trained_on_by_their_rows() -> None:
    data = pictures()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).train()
    found = facts_of_faces(model, data)
    assert model.training
    names = ("female|old", "female|young", "male|old", "male|young")
    cells = data.groups.astype(str).agg("|".join, axis=1)
    right = (loop.predict(model, data.images) > 0) == (data.target == 1)
    assert found.names == names
    assert found.sizes == tuple((cells == name).sum() for name in names)
    assert found.accuracies == pytest.approx([right[cells == name].mean() for name in names])

    class Spy(nn.Module):
        names = found.names

        def forward(self, logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
            assert labels.tolist() == data.target[rows].tolist()
            assert [names[code] for code in groups] == cells[rows].tolist()
            return logits.sum()

    rows = np.array([5, 3, 90])
    OnFaces(data, Spy())(model, torch.zeros(3, 3, 8, 8), torch.from_numpy(rows), torch.zeros(3))
    objective = OnFaces(data, GroupDRO(found))
    recipe = loop.Recipe(epochs=3, learning_rate=1e-2, batch_size=32)
    history = loop.fit(model, data, recipe, objective, seed=0)
    assert history.loss[-1] < history.loss[0]
    with pytest.raises(BadInput, match=r"groups female old, .* gender make female, male"):
        OnFaces(data, GroupDRO(found), ["gender"])
    with pytest.raises(BadInput, match=r"'skin'.*gender, age"):
        OnFaces(data, GroupDRO(found), ["skin"])


# Refusals


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ParityPenalty, {"strength": -1.0}, "strength: -1.0"),
        (OddsPenalty, {"strength": math.nan}, "strength: nan"),
        (GroupDRO, {"step": 0.0}, "step: 0.0"),
        (GroupDRO, {"adjustment": -0.1}, "adjustment: -0.1"),
        (BalancingAct, {"tolerance": -0.01}, "tolerance: -0.01"),
        (BalancingAct, {"dual_rate": 0.0}, "dual_rate: 0.0"),
        (BalancingAct, {"memory": 0}, "memory: 0"),
        (BalancingAct, {"memory": 201}, "'rare' has 200 images.*memory=201"),
        *[
            (kind, {"label_smoothing": 1.0}, "label_smoothing: 1.0")
            for kind in CONSTRAINTS.values()
        ],
    ],
)
def test_numbers_out_of_range_are_refused(
    kind: type[nn.Module], options: dict[str, float], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        kind(TWO, **options)


def test_groups_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(BadInput, match="one group, all"):
        GroupFacts(("all",), (10,), (0.5,))
    with pytest.raises(BadInput, match="'male old' has no image"):
        GroupFacts(("female|old", "male|old"), (10, 0), (0.5, 0.5))
    with pytest.raises(BadInput, match="2 names, 1 sizes"):
        GroupFacts(("a", "b"), (10,), (0.5, 0.5))
    for kind in (ParityPenalty, OddsPenalty):
        with pytest.raises(BadInput, match="label 2"):
            kind(TWO)(torch.zeros(3, 2), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))


def test_fine_tuning_refuses_before_it_computes(network: nn.Module) -> None:
    people = population(count=60)
    seen = observe(network, [people.images])
    asked: list[int] = []
    seen.model.register_forward_hook(lambda *_: asked.append(1))
    cases = [
        ({"constraint": "balance"}, "'balance' is not one of none, parity, odds"),
        ({"constraint": "parity", "memory": 3}, "'memory' is no option of 'parity'"),
        ({"constraint": "parity", "strength": -1.0}, "strength: -1.0"),
        ({"constraint": "balancing_act", "memory": 60}, "lower memory"),
        ({"batch_size": 61}, "60 images, and a batch takes 61"),
        ({"epochs": 0}, "epochs: 0"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0"),
    ]
    for settings, message in cases:
        with pytest.raises(BadInput, match=message):
            fine_tune(seen, QuantSpec.parse("W4A8"), people, **settings)
    lonely = as_sample(people.images, people.labels, ["all"] * 60)
    with pytest.raises(BadInput, match="one group, all"):
        fine_tune(seen, None, lonely, "parity", batch_size=30)
    gone = pd.Series(pd.Categorical(["a", "b"] * 30, categories=["a", "b", "c"]))
    with pytest.raises(BadInput, match="'c'"):
        fine_tune(seen, None, Sample(people.images, people.labels, crossed(gone)), batch_size=30)
    third = Sample(people.images, people.labels + 1, people.groups)
    with pytest.raises(BadInput, match="has the label 2"):
        fine_tune(seen, None, third, batch_size=30)
    assert not asked
