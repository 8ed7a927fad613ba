"""Accuracy control: what goes back to float, by whose answers, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.errors import BadInput
from fairq_utils.mitigation import accuracy_control
from fairq_utils.mitigation.accuracy_control import CRITERIA, Drop, control_accuracy
from fairq_utils.mitigation.group_sensitivity import group_sensitivities
from fairq_utils.mitigation.sample import Sample, as_sample
from fairq_utils.quantizers import Observed, QuantSpec, observe, quantize_observed

SPEC = QuantSpec(weight_bits=2, weight_granularity="tensor", first_last_bits=8)


def routes() -> nn.Module:
    """Most images speak through the first channel, rare ones through the second.

    At two bits per tensor, 0.6 beside 1 becomes 1 and 0.4 beside 1 becomes 0: layer ``1`` distorts
    the first channel, ``2`` silences the second, ``3`` changes nothing.
    """
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(5)])
    scales = [(1, 1), (0.6, 1), (1, 0.4), (1, 1)]
    weights = [*(np.diag(pair) for pair in scales), [[-1, -1], [1, 1]]]
    for layer, weight in zip(model, weights, strict=True):
        layer.weight.data = torch.tensor(np.array(weight), dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def people() -> Sample:
    """20 rare images among 400."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) // 20 % 2
    signs = np.where(labels == 1, 1.0, -1.0) * rng.uniform(0.5, 1, 400)
    rare = np.arange(400) % 20 == 0
    x = np.stack([np.where(rare, 0, signs), np.where(rare, signs, 0)], axis=1)
    return as_sample(torch.from_numpy(x).float(), labels, {"g": np.where(rare, "rare", "usual")})


@pytest.fixture(scope="module")
def seen(people: Sample) -> Observed:
    return observe(routes(), [people.images])


def answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


# ---- criteria


def test_criteria_by_hand() -> None:
    groups = {"g": ["a"] * 4 + ["b"] * 2 + ["c"] * 2}
    people = as_sample(torch.zeros(8, 1), [1, 1, 0, 0, 1, 0, 1, 1], groups)
    before = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0])  # right: 3 of 4, 1 of 2, 1 of 2
    after = torch.tensor([1, 0, 0, 0, 0, 1, 1, 1])  # right: 3 of 4, 0 of 2, 2 of 2
    assert accuracy_control.overall(before, after, people) == Drop(0.0, (0, 1, 2))
    assert accuracy_control.worst_group(before, after, people) == Drop(0.5, (1,))
    # selection rates: 3/4, 1, 1/2 before; 1/4, 1/2, 1 after
    assert accuracy_control.gap(before, after, people) == Drop(0.25, (2, 0))


def test_a_category_without_an_image_is_no_group() -> None:
    groups = {"g": ["a", "c", "a", "c"], "h": ["x", "y", "x", "y"]}
    people = as_sample(torch.zeros(4, 1), [1, 1, 0, 0], groups, least=0)
    assert people.present == [0, 3]
    wrong = torch.tensor([1, 0, 0, 1])
    assert accuracy_control.worst_group(people.labels, wrong, people) == Drop(1.0, (3,))


# ---- the loop


def test_the_worst_group_needs_one_layer_and_everyone_none(seen: Observed, people: Sample) -> None:
    module, report = control_accuracy(seen, SPEC, people, max_drop=0.03, criterion="overall")
    note = report.corrections["accuracy_control"]
    assert note["steps"] == [] and note["reached"] and note["evaluations"] == 1
    assert note["before"] == note["after"] == pytest.approx(10 / 400)
    wrong = answers(module, people.images) != people.labels
    assert wrong.sum() == 10 and wrong[::20].sum() == 10  # half of the rare images, no other

    module, report = control_accuracy(seen, SPEC, people, max_drop=0.03)
    note = report.corrections["accuracy_control"]
    assert note["steps"] == [{"layer": "2", "before": 0.5, "after": 0.0, "kept": True}]
    assert note == {
        "criterion": "worst_group",
        "tolerance": 0.03,
        "reached": True,
        "before": 0.5,
        "after": 0.0,
        "reverted": ["2"],
        "steps": note["steps"],
        "evaluations": 2,
        "ranked": 1,
    }
    assert torch.equal(answers(module, people.images), people.labels)
    assert report.left_float["2"] == "was asked to stay in float"
    assert report.layers == {"0": "W8A8", "1": "W2A8", "3": "W2A8", "4": "W8A8"}


def test_who_is_looked_at_decides_which_layer_goes_first(seen: Observed, people: Sample) -> None:
    """By everyone's logits layer 1 is the worst, though it changes no answer."""
    _, report = control_accuracy(seen, SPEC, people, max_drop=0.01, criterion="overall")
    note = report.corrections["accuracy_control"]
    assert [step["layer"] for step in note["steps"]] == ["1", "2"]
    assert note["reached"] and [step["kept"] for step in note["steps"]] == [True, True]
    # of the few images that moved most, all are rare: their logits are gone altogether
    few = control_accuracy(seen, SPEC, people, max_drop=0.01, criterion="overall", ranking=5)
    assert few[1].corrections["accuracy_control"]["reverted"] == ["2"]


def test_a_gap_is_closed(people: Sample) -> None:
    """A bias says yes where nothing else speaks: all rare images are selected, half of the rest."""
    model = routes()
    model[4] = nn.Linear(2, 2)
    model[4].weight.data = torch.tensor([[-1.0, -1], [1, 1]])
    model[4].bias.data = torch.tensor([0.0, 0.01])
    seen = observe(model, [people.images])
    module, report = control_accuracy(seen, SPEC, people, criterion="gap", max_drop=0.1)
    note = report.corrections["accuracy_control"]
    assert note["before"] == pytest.approx(0.5) and note["after"] == pytest.approx(0.0)
    assert note["reached"] and note["reverted"][-1] == "2"
    assert torch.equal(answers(module, people.images), people.labels)


def test_one_logit_and_three_classes(people: Sample) -> None:
    one = nn.Sequential(*list(routes())[:4], nn.Linear(2, 1, bias=False), nn.Flatten(0))
    one[4].weight.data = torch.ones(1, 2)
    _, report = control_accuracy(observe(one, [people.images]), SPEC, people)
    assert report.corrections["accuracy_control"]["reverted"] == ["2"]
    three = routes()
    three[4] = nn.Linear(2, 3)
    three[4].weight.data = torch.tensor([[-1.0, -1], [1, 1], [0, 0]])
    three[4].bias.data = torch.tensor([0.0, 0, -1])
    seen = observe(three, [people.images])
    _, report = control_accuracy(seen, SPEC, people)
    assert report.corrections["accuracy_control"]["reverted"] == ["2"]
    with pytest.raises(BadInput, match="'gap' is of two classes, and the model has 3"):
        control_accuracy(seen, SPEC, people, criterion="gap")


def test_the_limit_is_kept_and_no_error(seen: Observed, people: Sample) -> None:
    for limit in (0, 1):
        _, report = control_accuracy(
            seen, SPEC, people, criterion="overall", max_drop=0.0, max_reverted=limit
        )
        note = report.corrections["accuracy_control"]
        assert not note["reached"] and len(note["steps"]) == limit
        # layer 1 alone gained nothing, so it was not worth its bytes
        assert note["reverted"] == [] and note["after"] == note["before"] == 0.025
        assert not any(step["kept"] for step in note["steps"])
        assert len(report.layers) == 5


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The drops that validation finds, one after the other."""

    def script(*values: float) -> None:
        found = iter(values)
        monkeypatch.setitem(
            CRITERIA, "overall", lambda before, after, people: Drop(next(found), (0, 1))
        )

    return script


def test_what_makes_it_worse_is_taken_back_and_ranked_again(
    scripted: Any, seen: Observed, people: Sample
) -> None:
    scripted(0.5, 0.4, 0.45, 0.6, 0.3, 0.0)
    _, report = control_accuracy(seen, SPEC, people, criterion="overall")
    note = report.corrections["accuracy_control"]
    outcome = [(step["before"], step["after"], step["kept"]) for step in note["steps"]]
    assert outcome == [
        (0.5, 0.4, True),  # first of a ranking
        (0.4, 0.45, False),  # worse: taken back
        (0.4, 0.6, True),  # first of the next ranking, though worse
        (0.6, 0.3, True),
        (0.3, 0.0, True),
    ]
    layers = [step["layer"] for step in note["steps"]]
    assert note["ranked"] == 2 and note["evaluations"] == 6 and note["reached"]
    assert note["reverted"] == [layers[0], *layers[2:]] and len(set(note["reverted"])) == 4
    assert set(report.layers) == {"0", "1", "2", "3", "4"} - set(note["reverted"])


def test_out_of_reach_the_least_drop_on_the_way_is_kept(
    scripted: Any, seen: Observed, people: Sample
) -> None:
    scripted(0.5, 0.4, 0.2, 0.2, 0.3, 0.3, 0.2)
    _, report = control_accuracy(seen, SPEC, people, criterion="overall")
    note = report.corrections["accuracy_control"]
    layers = [step["layer"] for step in note["steps"]]
    assert not note["reached"] and note["after"] == 0.2 and note["before"] == 0.5
    assert note["reverted"] == layers[:2]  # the fewest layers with that drop
    assert [step["kept"] for step in note["steps"]] == [True, True, *[False] * (len(layers) - 2)]
    assert set(report.layers) == {"0", "1", "2", "3", "4"} - set(layers[:2])


def test_a_drop_of_just_the_tolerance_is_within_it(
    scripted: Any, seen: Observed, people: Sample
) -> None:
    scripted(0.3 - 0.2)  # in floating point a little less than 0.1, and 0.1 + 0.2 more than 0.3
    assert control_accuracy(seen, SPEC, people, criterion="overall", max_drop=0.1)
    scripted(0.1 + 0.2)
    _, report = control_accuracy(seen, SPEC, people, criterion="overall", max_drop=0.3)
    assert report.corrections["accuracy_control"]["steps"] == []


# ---- a trained network


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Sample]:
    """A convolutional network, trained for a second; rare images are told by their stripes."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 480)
    rare = rng.random(480) < 0.2
    x = 0.3 * torch.randn(480, 3, 8, 8)
    signs = torch.from_numpy(np.where(labels == 1, 1.0, -1.0)).float()
    usual = torch.from_numpy(~rare)
    x[usual, 0] += signs[usual].view(-1, 1, 1)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)
    for label, pattern in enumerate((stripes, stripes.T)):
        x[torch.from_numpy(rare & (labels == label)), 2] += 0.2 * pattern
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 2),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    truth = torch.from_numpy(labels)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:240]), truth[:240]).backward()
        optimizer.step()
    people = as_sample(x[240:], labels[240:], {"g": np.where(rare, "rare", "usual")[240:]})
    return model.eval(), people


ROUGH = QuantSpec(
    weight_bits=2, activation_bits=4, weight_granularity="tensor", first_last_bits=None
)


@pytest.mark.parametrize("corrected", [False, True])
def test_every_step_is_measured_on_the_model_that_it_names(
    monkeypatch: pytest.MonkeyPatch, trained: tuple[nn.Module, Sample], corrected: bool
) -> None:
    model, people = trained
    seen = observe(model, [people.images], keep=True)
    spec = dataclasses.replace(ROUGH, bias_correction=corrected)
    script, measured, looked_at = iter([0.5, 0.4, 0.45, 0.4, 0.3, 0.2]), [], []
    plain, whole = accuracy_control._ranked, accuracy_control.logits_of

    def ranked(*given: Any) -> list[str]:
        looked_at.append(given[2])
        return plain(*given)

    def logits_of(model: nn.Module, sample: Sample, what: str) -> Tensor:
        found = whole(model, sample, what)
        measured.extend([found] if sample is people else [])
        return found

    monkeypatch.setitem(CRITERIA, "overall", lambda *_: Drop(next(script), (0, 1)))
    monkeypatch.setattr(accuracy_control, "_ranked", ranked)
    monkeypatch.setattr(accuracy_control, "logits_of", logits_of)
    _, report = control_accuracy(seen, spec, people, criterion="overall", max_drop=0.2)
    steps = report.corrections["accuracy_control"]["steps"]
    assert [step["kept"] for step in steps] == [True, False, True, True, True]
    states, reverted = [seen.model, quantize_observed(seen, spec)[0]], []
    for step in steps:
        layers = dict.fromkeys([*reverted, step["layer"]])
        states.append(quantize_observed(seen, spec, layers)[0])
        reverted += [step["layer"]] if step["kept"] else []
    wanted = [whole(state, people, "") for state in states]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, measured, strict=True))
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in pairwise(wanted[1:]))
    assert not torch.allclose(wanted[2], wanted[4], atol=1e-2)
    # ranked with everything quantized, and again after the second step was taken back
    assert all(
        torch.equal(measured[at], found) for at, found in zip((1, 2), looked_at, strict=True)
    )


@pytest.mark.parametrize("criterion", ["overall", "worst_group", "gap"])
@pytest.mark.parametrize("corrected", [False, True])
def test_what_is_returned_is_what_was_measured(
    trained: tuple[nn.Module, Sample], criterion: Any, corrected: bool
) -> None:
    model, people = trained
    seen = observe(model, people.images.split(60), keep=True)
    spec = dataclasses.replace(ROUGH, bias_correction=corrected)
    before = {k: v.clone() for k, v in seen.model.state_dict().items()}
    images = people.images.clone()
    module, report = control_accuracy(seen, spec, people, criterion=criterion, max_drop=0.0)
    note = report.corrections["accuracy_control"]
    reference, found = answers(seen.model, people.images), answers(module, people.images)
    assert CRITERIA[criterion](reference, found, people).value == pytest.approx(note["after"])
    plain, _ = quantize_observed(seen, spec)
    full = CRITERIA[criterion](reference, answers(plain, people.images), people).value
    assert full == pytest.approx(note["before"])
    wanted, same = quantize_observed(seen, spec, dict.fromkeys(note["reverted"]))
    with torch.no_grad():
        assert torch.equal(wanted(people.images), module(people.images))
    assert report.layers == same.layers and report.size_bytes == same.size_bytes
    assert note["reached"] == (note["after"] <= 0) and note["after"] <= note["before"]
    at = note["before"]
    for step in note["steps"]:  # each begins where the last one that was kept ended
        assert step["before"] == at
        at = step["after"] if step["kept"] or step["after"] <= at else at
    after = seen.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert torch.equal(people.images, images)


def test_a_trained_rare_group_is_kept(trained: tuple[nn.Module, Sample]) -> None:
    """Everyone's accuracy is back before the rare group's is."""
    model, people = trained
    seen = observe(model, [people.images])
    spec = QuantSpec(weight_bits=2, weight_granularity="tensor", first_last_bits=None)
    lost, layers = {}, {}
    for criterion in ("overall", "worst_group"):
        module, report = control_accuracy(
            seen,
            spec,
            people,
            max_drop=0.05,
            criterion=criterion,  # type: ignore[arg-type]
        )
        note = report.corrections["accuracy_control"]
        assert note["before"] > 0.3 and note["reached"]
        right = answers(module, people.images) == people.labels
        before = answers(model, people.images) == people.labels
        drop = before.double() - right.double()
        lost[criterion] = max(float(drop[people.codes == code].mean()) for code in people.present)
        layers[criterion] = note["reverted"]
    assert lost["worst_group"] <= 0.05 < lost["overall"]
    assert 0 < len(layers["overall"]) < len(layers["worst_group"]) < len(seen.order)


def test_a_model_that_is_one_layer(people: Sample) -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[-1.0, -0.4], [1.0, 0.4]])
    spec = dataclasses.replace(SPEC, first_last_bits=None)
    module, report = control_accuracy(observe(model, [people.images]), spec, people)
    assert report.corrections["accuracy_control"]["reverted"] == [""]
    assert type(module) is nn.Linear and not report.layers


# ---- what cannot be done


def test_what_cannot_be_controlled_is_refused(seen: Observed, people: Sample) -> None:
    def ask(**changes: Any) -> None:
        asked = {"seen": seen, "spec": SPEC, "sample": people, **changes}
        control_accuracy(asked.pop("seen"), asked.pop("spec"), asked.pop("sample"), **asked)

    for rounding in ("adaround", "block"):
        with pytest.raises(BadInput, match=rf"spec\.rounding is '{rounding}', learnt with all"):
            ask(spec=dataclasses.replace(SPEC, rounding=rounding))
    with pytest.raises(BadInput, match="'worst' is not one of overall, worst_group, gap"):
        ask(criterion="worst")
    with pytest.raises(BadInput, match=r"max_drop: 1\.5 is no fraction"):
        ask(max_drop=1.5)
    with pytest.raises(BadInput, match="max_drop: nan is no fraction"):
        ask(max_drop=float("nan"))
    with pytest.raises(BadInput, match="ranking: 0 is no whole number from 1 on"):
        ask(ranking=0)
    with pytest.raises(BadInput, match="max_reverted: -1 is no whole number from 0 on"):
        ask(max_reverted=-1)
    with pytest.raises(BadInput, match="the group 'rare' of g has 20 images where 21 are needed"):
        ask(least=21)
    ask(least=21, criterion="overall", max_drop=1.0)  # everyone is one group
    with pytest.raises(BadInput, match="a gap is between groups, and all images are of 'rare'"):
        ask(criterion="gap", sample=as_sample(torch.zeros(30, 2), [0] * 30, {"g": ["rare"] * 30}))
    with pytest.raises(BadInput, match="sample: has no images"):
        ask(sample=people.take([]))
    with pytest.raises(BadInput, match="label 2 of image 3 is none of the model's 2 classes"):
        ask(sample=dataclasses.replace(people, labels=torch.tensor([0, 1, 0, 2] * 100)))
    with pytest.raises(ValueError, match="ranges by 'mse' were not observed"):
        ask(spec=dataclasses.replace(SPEC, activation_range="mse"))
    broken = dataclasses.replace(people, images=people.images.clone())
    broken.images[5] = torch.inf
    with pytest.raises(BadInput, match="output for image 5 of the sample is not finite"):
        ask(sample=broken)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; none was found")
def test_a_model_on_a_gpu_is_controlled_there(people: Sample) -> None:
    seen = observe(routes().cuda(), [people.images.cuda()])
    module, report = control_accuracy(seen, SPEC, people, max_drop=0.03)
    assert report.corrections["accuracy_control"]["reverted"] == ["2"]
    assert torch.equal(answers(module, people.images.cuda()).cpu(), people.labels)
    there = observe(routes(), [people.images])
    for measure in ("output", "loss", "layer"):
        one, two = (
            group_sensitivities(where, [SPEC], people, measure=measure)  # type: ignore[arg-type]
            for where in (seen, there)
        )
        assert np.allclose(one.sensitivity, two.sensitivity, rtol=1e-3, atol=1e-6)
