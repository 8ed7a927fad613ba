"""The published study's call: a model and a loader in, a mapping out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fairq_utils import (
    FairnessAwareQuantizer,
    apply_quantization,
    compute_fairness_metrics,
    metrics,
)
from fairq_utils.errors import BadInput
from fairq_utils.metrics.model_metrics import paired_predictions
from fairq_utils.quantizers.post_training import quantize_static
from fairq_utils.quantizers.spec import QuantSpec


class Faces(Dataset[Any]):
    """As a CelebA dataset yields them: image, label, attributes by name."""

    def __init__(self, n: int = 40) -> None:
        rng = np.random.default_rng(0)
        self.images = torch.from_numpy(rng.normal(size=(n, 3, 8, 8)).astype(np.float32))
        self.labels = rng.integers(0, 2, n)
        self.gender, self.age = rng.integers(0, 2, n), rng.choice(["young", "old"], n)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> Any:
        groups = {"age": str(self.age[at]), "gender": int(self.gender[at])}
        return self.images[at], int(self.labels[at]), groups


def model(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, outputs)
    )


def test_report_of_a_loader() -> None:
    faces, network = Faces(), model().train()
    network[1].eval()  # frozen by hand
    found = metrics.compute_fairness_metrics(network, DataLoader(faces, batch_size=7))
    assert network[0].training and not network[1].training
    network.eval()
    guess = network(faces.images).argmax(dim=1).numpy()
    alone: dict[str, Any] = {"sensitive_features": faces.gender}
    assert found["accuracy"] == pytest.approx((guess == faces.labels).mean())
    expected = {
        "demographic_parity": metrics.demographic_parity_difference,
        "equalized_odds": metrics.equalized_odds_difference,
        "predictive_equality": metrics.predictive_equality_difference,
        "disparate_impact": metrics.disparate_impact,
    }
    for name, function in expected.items():
        assert found[name] == pytest.approx(function(faces.labels, guess, **alone))
    assert list(found["per_group"]) == ["0", "1"]
    assert found["per_group"]["1"]["images"] == (faces.gender == 1).sum()
    crossed = found["intersectional"]
    assert crossed["attributes"] == ["gender", "age"]
    assert list(crossed["per_group"]) == ["0|old", "0|young", "1|old", "1|young"]
    both = pd.DataFrame({"gender": faces.gender, "age": faces.age})
    assert crossed["demographic_parity"] == pytest.approx(
        metrics.demographic_parity_difference(faces.labels, guess, sensitive_features=both)
    )
    weights = 3 * 4 * 9 + 4 + 4 * 4 + 144 * 2 + 2
    assert found["model_size_mb"] == pytest.approx((4 * weights + 8) / 2**20)
    assert found["left_out"] == [] and found["images"] == 40
    assert found["sensitive_attr"] == "gender"


def test_a_quantized_model_is_smaller() -> None:
    faces, network = Faces(), model().eval()
    quantized, report = quantize_static(network, QuantSpec.parse("W8A8"), [faces.images])
    loader = DataLoader(faces, batch_size=20)
    before, after = (metrics.compute_fairness_metrics(m, loader) for m in (network, quantized))
    assert after["model_size_mb"] == report.size_bytes / 2**20 < before["model_size_mb"]


def test_forms_of_groups_and_outputs() -> None:
    faces = Faces()
    labels = torch.from_numpy(faces.labels)
    gender = torch.from_numpy(faces.gender)
    network = model(outputs=1)
    forms = [gender, faces.gender, {"gender": gender}, pd.DataFrame({"gender": faces.gender})]
    reports = [
        metrics.compute_fairness_metrics(network, [(faces.images, labels, form)]) for form in forms
    ]
    assert all(report == reports[0] for report in reports)
    assert reports[0]["intersectional"]["attributes"] == ["gender"]
    flat = nn.Sequential(network, nn.Flatten(0))
    again = metrics.compute_fairness_metrics(flat, [(faces.images, labels, gender)])
    assert again == reports[0]


IMAGES, LABELS = torch.zeros(2, 2), torch.tensor([0, 1])
MASKED = np.ma.masked_array([0, 1], mask=[False, True])


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ((IMAGES, LABELS), r"batch 0 is not \(images, labels, groups\) but has no groups"),
        (IMAGES, "batch 0 is not .* but has no labels"),
        (None, "loader: batch 0 is NoneType; it must be"),
        ((IMAGES.numpy(), LABELS, {"gender": [0, 1]}), "batch 0 has images of NumPy; give tensors"),
        ((IMAGES, LABELS, torch.zeros(2, 40)), r"it is Tensor of shape \(2, 40\)"),
        ((IMAGES, LABELS, {"age": [0, 1]}), "sensitive_attr: 'gender' is not among age"),
        ((IMAGES, LABELS, {"gender": [0]}), r"groups\['gender'\] has shape \(1,\) in a batch of 2"),
        ((IMAGES, LABELS, {"gender": [0, 0]}), "every image has gender = 0"),
        ((IMAGES, LABELS + 1, {"gender": [0, 1]}), "y_true: row 1 is 2, neither 0 nor 1"),
        ((IMAGES * torch.nan, LABELS, {"gender": [0, 1]}), "returned NaN for image 0"),
        ((torch.zeros(2, 5), LABELS, {"gender": [0, 1]}), r"returned shape \(2, 5\)"),
        (
            (torch.tensor([[0.0, torch.inf], [torch.inf] * 2]), LABELS, {"gender": [0, 1]}),
            "returned two logits of inf for image 1",
        ),
        ((IMAGES, MASKED, {"gender": [0, 1]}), r"labels that are no numbers \(row 1 is nan\)"),
        ((IMAGES, LABELS, {"gender": MASKED}), "row 1 of a batch has no value for 'gender'"),
        ((IMAGES, LABELS, {"gender": [{0}, {1}]}), "'gender': row 0 is a set"),
    ],
)
def test_other_forms_are_refused(batch: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        metrics.compute_fairness_metrics(nn.Identity(), [batch])


def test_one_infinite_logit_decides_and_halves_are_read() -> None:
    logits = torch.tensor([[0.0, torch.inf], [-torch.inf, torch.inf]])
    labels, gender = torch.tensor([1, 0]).bfloat16(), torch.tensor([0, 1]).bfloat16()
    found = metrics.compute_fairness_metrics(nn.Identity(), [(logits, labels, gender)])
    assert found["accuracy"] == 0.5


def test_no_batch_and_no_module() -> None:
    with pytest.raises(ValueError, match="loader is NoneType, which gives no batches"):
        metrics.compute_fairness_metrics(nn.Identity(), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loader gave no batch"):
        metrics.compute_fairness_metrics(nn.Identity(), [])
    with pytest.raises(TypeError, match="model is function, not a torch module"):
        metrics.compute_fairness_metrics(lambda x: x, [])  # type: ignore[arg-type]


def test_names_of_groups_come_as_a_loader_collates_them() -> None:
    images, labels = torch.tensor([[1.0], [-1.0], [2.0], [3.0]]), torch.tensor([1, 0, 1, 0])
    found = [
        metrics.compute_fairness_metrics(nn.Identity(), [(images, labels, groups)])
        for groups in (("f", "f", "m", "m"), ["f", "f", "m", "m"], {"gender": ["f", "f", "m", "m"]})
    ]
    assert str(found[0]) == str(found[1]) == str(found[2])


def test_labels_are_counted_batch_by_batch() -> None:
    loader = [
        (torch.zeros(3, 1), torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2, 1), torch.zeros(3), torch.ones(2)),
    ]
    with pytest.raises(ValueError, match="batch 0 has 2 labels for 3 images"):
        metrics.compute_fairness_metrics(nn.Identity(), loader)


def test_several_attributes_are_asked_for_one_by_one() -> None:
    with pytest.raises(TypeError, match=r"sensitive_attr: .* is no name; name one attribute at a"):
        metrics.compute_fairness_metrics(torch.nn.Flatten(), [], ["gender", "age"])  # type: ignore[arg-type]


def scored(count: int = 400) -> tuple[nn.Module, list[Any]]:
    """A model of one logit, and a loader of images whose first value tells the label."""
    images = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.5, 0.0]]))
        model.bias.zero_()
    groups = {"gender": ["f" if x > 0 else "m" for x in images[:, 1]]}
    return model, [(images, (images[:, 0] > 0).long(), groups)]


def test_an_output_that_may_be_a_probability_is_not_taken_for_a_logit() -> None:
    model, loader = scored()
    ends = nn.Sequential(model, nn.Sigmoid())
    with pytest.raises(
        BadInput, match=r"one output lies between 0 and 1 for all 400 images, .*outputs"
    ):
        compute_fairness_metrics(ends, loader)
    wanted = compute_fairness_metrics(model, loader)
    found = compute_fairness_metrics(ends, loader, outputs="probabilities")
    for name in ("accuracy", "demographic_parity", "equalized_odds", "disparate_impact"):
        assert found[name] == wanted[name]
    assert found["accuracy"] > 0.8
    with pytest.raises(BadInput, match=r"outputs: those of image .* no probability from 0 to 1"):
        compute_fairness_metrics(model, loader, outputs="probabilities")
    with pytest.raises(BadInput, match="outputs: 'odds' is neither of logits, probabilities"):
        compute_fairness_metrics(model, loader, outputs="odds")
    two = nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1))
    compute_fairness_metrics(two, loader)  # the larger one of two counts, whatever they are


def test_what_learns_from_logits_is_not_given_probabilities() -> None:
    model, loader = scored()
    ends = nn.Sequential(model, nn.Sigmoid())
    with pytest.raises(BadInput, match="one output lies between 0 and 1 for all"):
        FairnessAwareQuantizer(max_dp_gap=0.2).quantize(ends, loader, certification_data=loader)
    for method in ("qat", "channels_worst", "control_overall"):
        with pytest.raises(BadInput, match="one output lies between 0 and 1 for all"):
            apply_quantization(ends, method, 8, loader)
        with pytest.raises(BadInput, match=f"{method} looks at the loss of logits; give the model"):
            apply_quantization(ends, method, 8, loader, outputs="probabilities")
    assert apply_quantization(ends, "ptq", 8, loader)(loader[0][0]).shape == (400, 1)


def test_a_dead_quantized_model_is_read_as_its_float_model() -> None:
    model, loader = scored()
    dead = nn.Sequential(model, nn.Threshold(1e9, 0.0))
    found = paired_predictions({"FP32": model, "dead": dead}, loader, ["gender"])
    assert set(found.predictions["dead"]) == {0}
