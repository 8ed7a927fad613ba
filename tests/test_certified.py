"""The quantizer that certifies: what it returns, what it refuses, and what it says."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairq_utils import FairnessAwareQuantizer, NotCertified
from fairq_utils.errors import BadInput
from fairq_utils.metrics import FAIRNESS, count
from fairq_utils.metrics.model_metrics import paired_predictions
from fairq_utils.mitigation import candidates
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.methods import Result, Task


class Net(nn.Module):
    """A small classifier of pictures; its first channel tells the label."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 2)
        self.body = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(torch.relu(self.stem(x))))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


def batches(count_: int, seed: int, *, size: int = 250, **changes: Any) -> list[Any]:
    """Batches of (images, labels, groups): two genders, two ages."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count_ // size):
        labels = torch.randint(2, (size,), generator=generator)
        codes = torch.randint(2, (size, 2), generator=generator)
        images = torch.randn(size, 3, 5, 5, generator=generator)
        images[:, 0] += 1.6 * (labels - 0.5)[:, None, None]
        images[:, 1] += codes[:, :1, None]
        groups = {
            "gender": ["f" if c else "m" for c in codes[:, 0].tolist()],
            "age": ["old" if c else "young" for c in codes[:, 1].tolist()],
        }
        out.append((images, labels, {**groups, **changes}))
    return out


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for images, labels, _ in batches(6000, 1):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def quantizer(**options: Any) -> FairnessAwareQuantizer:
    return FairnessAwareQuantizer(
        **{
            "bit_width": 8,
            "max_dp_gap": 0.02,
            "sensitive_attributes": ["gender"],
            "making_images": 1000,
            **options,
        }
    )


def test_a_safe_model_is_certified(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = quantizer()
    out = asked.quantize(model=model, calibration_data=batches(12_000, 2), fairness_constraint=True)
    found = asked.certificate
    assert found is not None
    assert found.candidate == "static"  # the cheapest of those that passed
    assert asked.final_dp_gap == found.bound < asked.max_dp_gap
    assert sum(found.images.values()) == 11_000
    assert any(isinstance(layer, Quantized) for layer in out.modules())
    assert asked.report is not None
    assert asked.report.layers["body"] == "W8A8"
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    said = str(found)
    for word in (
        "static, W8A8: the demographic parity gap between any two groups of gender is at most",
        "0.0200 wider than that of the float model",
        "at most 0.05 (evidence by betting",
        "11000 held-out images (f: ",
    ):
        assert word in said
    assert len(found.trials) == len(candidates.CANDIDATES) - 1  # nothing to train on


def test_harm_is_that_of_the_images_it_was_tested_on(model: nn.Module) -> None:
    data = batches(6000, 3)
    asked = quantizer(bit_width=4, max_dp_gap=0.4, options={"first_last_bits": None})
    out = asked.quantize(model, data)
    found = asked.certificate
    assert found is not None
    rest = paired_predictions({"a": model, "b": out}, data[4:], ["gender"])
    gap = FAIRNESS["demographic_parity_difference"]
    table = count(
        rest.truth,
        rest.predictions["b"],
        sensitive_features=rest.groups[["gender"]],
        reference=rest.predictions["a"],
    ).table
    after, before = float(gap(table.sum(2))), float(gap(table.sum(3)))
    assert found.observed == pytest.approx(after - before)
    assert (asked.gap_before, asked.gap_after) == pytest.approx((before, after))
    assert (found.gap_before, found.gap_after) == (asked.gap_before, asked.gap_after)
    assert f"{before:.4f} of the float model, {after:.4f} of this one" in str(found)


def test_too_few_images_are_said_to_be_too_few(model: nn.Module) -> None:
    asked = quantizer(bit_width=4, max_dp_gap=0.005)
    with pytest.raises(
        NotCertified, match=r"about [\d,]+ (to [\d,]+ )?images held out like these"
    ) as caught:
        asked.quantize(model, batches(1500, 4))
    refusal = caught.value
    low, high = refusal.images_needed
    assert 500 < low <= high
    assert refusal.best(batches(250, 5)[0][0]).shape == (250, 2)
    assert refusal.report.layers["body"] == "W4A4"
    sent = pickle.loads(pickle.dumps(refusal))
    assert (str(sent), sent.images_needed) == (str(refusal), refusal.images_needed)
    assert refusal.trial.bound > 0.005
    assert asked.certificate is None
    assert np.isnan([asked.final_dp_gap, asked.gap_before, asked.gap_after]).all()


def test_a_harmful_model_is_not_returned(model: nn.Module, monkeypatch: Any) -> None:
    """A candidate that takes answers from one group alone is never certified."""

    class Harmful(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(x).clone()
            logits[:, 1] -= 50.0 * (x[:, 1].mean(dim=(1, 2)) > 0.5)  # mostly women
            return logits

    static = candidates.CANDIDATES["static"]

    def harmful(task: Task) -> Result:
        module, report = static(task)
        return Harmful(module), report

    monkeypatch.setitem(candidates.CANDIDATES, "static", harmful)
    asked = quantizer(candidates=["static"])
    with pytest.raises(NotCertified, match="more images would hardly help") as caught:
        asked.quantize(model, batches(6000, 6))
    assert caught.value.images_needed == (math.inf, math.inf)
    with_others = quantizer(candidates=["static", "balanced calibration"])
    with_others.quantize(model, batches(12_000, 6))
    assert with_others.certificate is not None
    assert with_others.certificate.candidate == "balanced calibration"
    # Without the constraint it is returned, and its bound says what it does.
    free = quantizer()
    free.quantize(model, batches(6000, 6), fairness_constraint=False)
    assert free.certificate is None
    assert free.final_dp_gap > free.max_dp_gap


def test_every_candidate_can_be_made(model: nn.Module) -> None:
    asked = quantizer(bit_width=4, max_dp_gap=0.5, options={"first_last_bits": None})
    asked.quantize(model, batches(4000, 7), train_data=batches(1000, 8))
    assert asked.certificate is not None
    assert {trial.name for trial in asked.certificate.trials} == set(candidates.CANDIDATES)
    assert asked.not_made == {}


def test_a_candidate_that_cannot_be_made_is_named(model: nn.Module) -> None:
    asked = quantizer(max_dp_gap=0.4)
    small = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    asked.quantize(small, batches(3000, 9))
    assert "preserved channels" in asked.not_made
    assert asked.certificate is not None


def test_images_are_streamed_once(model: nn.Module) -> None:
    taken = []

    def once() -> Iterator[Any]:
        for number, batch in enumerate(batches(4000, 10)):
            taken.append(number)
            yield batch

    asked = quantizer(max_dp_gap=0.3)
    asked.quantize(model, once())
    assert taken == list(range(16))
    other = quantizer(max_dp_gap=0.3)
    other.quantize(model, batches(1000, 10), certification_data=batches(3000, 11))
    assert other.certificate is not None
    assert sum(other.certificate.images.values()) == 3000


@pytest.mark.parametrize(
    ("options", "data", "said"),
    [
        ({"sensitive_attributes": ["race"]}, {}, "race"),
        ({"bit_width": "W8"}, {}, "static inputs"),
        ({"candidates": ["hope"]}, {}, "'hope' is not one of static"),
        ({"candidates": ["fine-tuned"]}, {}, "learns from train_data"),
        ({"sensitive_attributes": []}, {}, "at least one attribute"),
        ({"max_dp_gap": 2}, {}, "max_dp_gap: 2"),
        ({"max_dp_gap": "0.01"}, {}, "max_dp_gap: '0.01' is not a number"),
        ({"sensitive_attributes": None}, {}, "at least one attribute"),
        ({"candidates": "statics"}, {}, "candidates: 'statics' is not one of"),
        ({"sensitive_attributes": ["age", "age"]}, {}, "'age' is named twice"),
        ({"making_images": 0}, {}, "making_images: 0 is not a whole number of 1 or more"),
        ({"making_images": 2.5}, {}, "making_images: 2.5"),
        ({"bit_width": None}, {}, "bit_width: None is not one of 2, 3, 4, 6, 8"),
        ({"options": {"foo": 1}}, {}, "'foo' is no attribute of QuantSpec"),
        ({}, {"gender": ["f"] * 250}, "there is nothing to compare"),
        ({}, {"gender": ["f"] * 248 + ["m"] * 2}, "the group 'm' of gender has 8 images where 20"),
        ({"making_images": 5000}, {}, "none are left to test"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(model, options, data, said) -> None:
    with pytest.raises(BadInput, match=said):
        quantizer(**options).quantize(model, batches(2000, 12, **data))


def test_groups_that_calibration_never_saw(model: nn.Module) -> None:
    first, later = batches(1000, 13), batches(1000, 14)
    for _, _, groups in later:
        groups["gender"][:30] = ["x"] * 30
    with pytest.raises(BadInput, match="the group 'x' is among the images"):
        quantizer(making_images=1000).quantize(model, first + later)
    for _, _, groups in later:
        groups["gender"] = ["f"] * 250
    with pytest.raises(BadInput, match="'m' has 0 images to test on"):
        quantizer(making_images=1000).quantize(model, first + later)


def test_labels_other_than_two_are_refused(model: nn.Module) -> None:
    data = batches(2000, 15)
    data[0][1][0] = 2
    with pytest.raises(BadInput, match="label 2 is neither 0 nor 1"):
        quantizer().quantize(model, data)


def test_settings_are_those_at_the_time_of_the_call(model: nn.Module) -> None:
    asked = quantizer(max_dp_gap=0.4)
    asked.max_dp_gap, asked.bit_width = 0.3, 4
    asked.quantize(model, batches(4000, 16))
    assert asked.certificate is not None
    assert (asked.certificate.question.limit, asked.certificate.bits) == (0.3, "W4A4")
    assert asked.report is not None
    assert asked.report.layers["body"] == "W4A4"
    asked.making_images = -1
    with pytest.raises(BadInput, match="making_images"):
        asked.quantize(model, batches(4000, 16))


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (lambda: batches(2000, 17) * 2, {}, "calibration_data: image 1000 .* image 0 of"),
        (
            lambda: batches(2000, 17)[:4] + batches(1000, 18) + batches(1000, 18),
            {},
            "calibration_data: image 1000 .* same as image 0 to test on",
        ),
        (
            lambda: batches(1000, 17),
            {"certification_data": batches(1000, 17)},
            "certification_data: image 0 .* image 0 of calibration_data",
        ),
        (
            lambda: batches(4000, 17),
            {"train_data": batches(4000, 17)},
            "image 0 .* image 1000 of train_data",
        ),
    ],
    ids=["made of", "twice", "other data", "trained on"],
)
def test_images_that_had_a_part_in_it_are_refused(model, data, options, said) -> None:
    with pytest.raises(BadInput, match=said):
        quantizer().quantize(model, data(), **options)


def test_refusals_name_the_way_out(model: nn.Module) -> None:
    with pytest.raises(BadInput, match=r"each of the first 1000 images, .* shuffle the images"):
        quantizer().quantize(model, batches(1000, 19, gender=["f"] * 250) + batches(1000, 20))
    data = batches(4000, 21)
    for images, labels, groups in data:  # base rates differ, so that even a perfect model's gap is
        rows = torch.tensor([g == "f" for g in groups["gender"]])  # wide
        labels[rows], images[rows, 0] = 1, 2.0
    with pytest.raises(NotCertified, match=r"float model's own gap is 0\.[3-9]"):
        quantizer(constrained="gap").quantize(model, data)
    with pytest.raises(ValueError, match="certification_data to test on gave no batch"):
        quantizer().quantize(model, batches(1000, 22), certification_data=[])
    broken = batches(2000, 23)
    broken[6][0][3] = float("nan")
    with pytest.raises(ValueError, match=r"calibration_data to test on: batch 2: .* image 3"):
        quantizer().quantize(model, broken)
