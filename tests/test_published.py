"""The published study's two calls, on loaders of all kinds and a network that nothing can trace."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, TensorDataset

import fairq_utils
from fairq_utils import (
    FairnessAwareQuantizer,
    apply_quantization,
    compare_quantization_methods,
    compute_fairness_metrics,
    metrics,
)
from fairq_utils.compare import Comparison
from fairq_utils.data.batches import by_attribute, gather, read
from fairq_utils.errors import BadInput, Fault
from fairq_utils.mitigation.task import balanced_size
from fairq_utils.quantizers import QuantSpec, observe
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.methods import CONTROL, METHODS


class Mine(nn.Module):
    """A user's own network, whose path depends on values; a loop in Python over its blocks."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(2))
        self.classifier = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        for block in self.blocks:
            if float(x.detach().mean()) > -1e3:
                x = x + block(x)
        return self.classifier(x.mean(dim=(2, 3)))


N = 120


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, labels, and codes of gender and age (N, 2)."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(N) % 2
    codes = torch.stack([torch.arange(N) // 2 % 2, (torch.arange(N) % 6 > 3).long()], dim=1)
    images = torch.randn(N, 3, 6, 6, generator=generator)
    images[:, 0] += 0.4 * (labels - 0.5)[:, None, None]
    return images, labels, codes


def network(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model = Mine(outputs)
    images, labels, _ = rows()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(25):
        logits = model(images)
        loss = nn.functional.cross_entropy(
            logits if outputs > 1 else torch.cat([-logits, logits], 1), labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


def loader(form: str = "mapping", size: int = 40) -> Any:
    """The same rows in one of the forms that loaders have."""
    images, labels, codes = rows()
    words = np.array([["man", "woman"], ["old", "young"]])
    named = {"gender": words[0][codes[:, 0]], "age": words[1][codes[:, 1]]}

    def groups(rows: slice) -> Any:
        return {
            "mapping": {k: v[rows].tolist() for k, v in named.items()},
            "tensors": {"gender": codes[rows, 0], "age": codes[rows, 1]},
            "frame": pd.DataFrame({k: v[rows] for k, v in named.items()}),
            "codes": codes[rows],
            "columns": [codes[rows, 0], codes[rows, 1]],
            "one": codes[rows, 0],
            "words": named["gender"][rows].tolist(),
            "tuple of words": tuple(named["gender"][rows].tolist()),
            "series": pd.Series(named["gender"][rows]),
        }[form]

    parts = [slice(i, i + size) for i in range(0, N, size)]
    if form == "dataset":
        return DataLoader(TensorDataset(images, labels, codes), batch_size=size)
    if form == "bare":
        return [images[part] for part in parts]
    if form == "alone":
        return [(images[part],) for part in parts]
    if form == "labelled":
        return [(images[part], labels[part]) for part in parts]
    return [(images[part], labels[part], groups(part)) for part in parts]


NAMED = ["mapping", "tensors", "frame"]
UNNAMED = ["codes", "columns", "dataset"]
SINGLE = ["one", "words", "tuple of words", "series"]


# ---- what is read from a loader


@pytest.mark.parametrize("form", NAMED + UNNAMED + SINGLE)
def test_forms_of_groups(form: str) -> None:
    pool = gather(loader(form), 1000, "loader", ["gender", "age"])
    assert pool.groups is not None and len(pool.images) == N and pool.labels is not None
    assert list(pool.groups) == (["gender"] if form in SINGLE else ["gender", "age"])
    codes = rows()[2][:, 0].numpy()
    found = pd.Series(pool.groups["gender"]).replace({"man": 0, "woman": 1})
    assert (found.to_numpy() == codes).all()


def test_values_without_names_are_numbered() -> None:
    assert list(by_attribute(torch.zeros(3, 2), [], 3)) == ["group_0", "group_1"]
    assert list(by_attribute(["a", "b"], [], 2)) == ["group"]


def test_the_first_images_are_gathered() -> None:
    pool = gather(loader("mapping", 50), 60)
    assert len(pool.images) == 60 and torch.equal(pool.images, rows()[0][:60])
    assert pool.groups is not None and {len(v) for v in pool.groups.values()} == {60}
    assert gather(loader("bare"), 10).labels is None


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "gave no images"),
        ([{"image": 1}], "batch 0 is dict; it must be"),
        ([(torch.zeros(2, 3), [0, 1], [0, 1], 5)], "batch 0 is tuple of 4"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], r"shapes \(3,\), \(4,\)"),
        ([(torch.zeros(2, 3), [0])], "batch 0 has 1 labels for 2 images"),
        ([(torch.zeros(2, 3), ["yes", "no"])], "labels that are no numbers"),
        ([(torch.zeros(2, 3), [0.5, 1.0])], "labels between whole numbers"),
        ([(torch.zeros(2, 3), [0, 1], 7)], "it is int"),
        ([(torch.zeros(2, 3), [0, 1], torch.zeros(2, 40))], r"shape \(2, 40\)"),
        ([(torch.zeros(2, 3), [0, 1], {"gender": [1]})], r"groups\['gender'\] has shape \(1,\)"),
        (
            [(torch.zeros(1, 3), [0], {"age": [1]}), (torch.zeros(1, 3), [0], {"sex": [1]})],
            "not every batch has the attributes age",
        ),
    ],
)
def test_other_batches_are_refused(batches: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        gather(batches, 100, "loader", ["gender", "age"])


# ---- apply_quantization


def test_the_network_cannot_be_traced(model: nn.Module) -> None:
    with pytest.raises(Exception, match=r"float|Proxy|trace"):
        fx.symbolic_trace(model)


@pytest.mark.parametrize("method", [name for name in METHODS if name != CONTROL])
@pytest.mark.parametrize("bits", [8, "W4A8"])
def test_every_method(method: str, bits: int | str, model: nn.Module) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    learnt = METHODS[method].spec("W8A8").rounding != "nearest"
    quantized = apply_quantization(
        model, method, bits, loader(), learning_rate=1e-3, calibration_images=60,
        **({"iterations": 3} if learnt else {}),
    )  # fmt: skip
    report: Any = quantized.report
    layers = {n: m.spec.label for n, m in quantized.named_modules() if isinstance(m, Quantized)}
    assert report.layers == layers
    expected = {"stem", "blocks.0", "blocks.1"} | (
        {"classifier"} if method != "float_classifier" else set()
    )
    if method.startswith("layers"):  # of eight bits, what is preserved is in float
        assert set(layers) <= expected
    else:
        assert set(layers) == expected
    if method == "float_classifier":
        assert report.left_float["classifier"] == "was asked to stay in float"
    if method not in ("dynamic",):
        assert report.calibration_images == 60
    if bits == "W4A8" and not method.startswith(("mixed", "layers")):
        assert layers["blocks.0"] == ("W4" if method == "weight_only" else "W4A8")
    images, labels, _ = rows()
    with torch.no_grad():
        accuracy = (quantized(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.8
    # What came in is as it was, and so is everyone's random state.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


GROUP_AWARE = ["ranges_mean", "channels_worst", "mixed_worst", "control_worst"]


@pytest.mark.parametrize("method", [*GROUP_AWARE, "qat_balancing_act"])
def test_methods_that_mind_groups_say_what_they_lack(method: str, model: nn.Module) -> None:
    with pytest.raises(BadInput, match=f"'{method}': calibration_data has no groups"):
        apply_quantization(model, method, 8, loader("labelled"))
    with pytest.raises(BadInput, match=f"'{method}': calibration_data: there is no attribute 'x'"):
        apply_quantization(model, method, 8, loader(), sensitive_attrs=["x"])


def test_groups_are_those_that_were_named(model: nn.Module) -> None:
    found: Any = apply_quantization(
        model, "mixed_worst", 4, loader(), sensitive_attrs=["age"], first_last_bits=None
    )
    note = found.report.corrections["mixed_precision"]
    assert set(note["groups"]) == {"old", "young"}
    assert found.report.size_bytes <= note["budget"]
    tuned: Any = apply_quantization(
        model, "qat_balancing_act", 4, loader(), train_data=loader(), epochs=2
    )
    assert len(tuned.report.corrections["fine_tuning"]["multipliers"]) == 4
    kept: Any = apply_quantization(
        model, "channels_worst", 4, loader(), budget=0.5, first_last_bits=None
    )
    assert kept.report.corrections["preservation"]["by"] == "worst_group"


@pytest.mark.parametrize("form", ["bare", "alone", "labelled", *NAMED, *UNNAMED, *SINGLE])
def test_every_loader_calibrates(form: str, model: nn.Module) -> None:
    found = apply_quantization(model, "ptq", 8, loader(form), calibration_images=N)
    seen = observe(model, [rows()[0]])
    layer: Any = found.get_submodule("stem")
    scale = (max(seen.range("stem", QuantSpec())) - min(seen.range("stem", QuantSpec()))) / 255
    assert float(layer.input_scale) == pytest.approx(scale)


def test_a_generator_and_a_model_in_training_mode() -> None:
    model = network().train()
    quantized = apply_quantization(model, "qat", 4, (b for b in loader()), epochs=2)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in quantized.modules())
    again = apply_quantization(
        model, "qat", 4, loader(), train_data=(b for b in loader()), epochs=2
    )
    assert again.report.layers == quantized.report.layers  # type: ignore[union-attr]


def test_the_draw_is_balanced_over_all_attributes(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    from fairq_utils import calibration

    real = calibration.draw

    def watched(sampler: str, groups: pd.DataFrame, *rest: Any, **named: Any) -> Any:
        found = real(sampler, groups, *rest, **named)
        drawn.append(groups.iloc[found].value_counts())
        return found

    monkeypatch.setattr(calibration, "draw", watched)
    report: Any = apply_quantization(model, calibration_data=loader(size=7)).report
    frame = pd.DataFrame(by_attribute(rows()[2], ["gender", "age"], N))
    smallest = int(frame.value_counts().min())
    assert list(drawn[0]) == [smallest] * 4 and report.calibration_images == 4 * smallest
    assert balanced_size(frame) == 4 * smallest
    apply_quantization(model, calibration_data=loader(), calibration_images=40)
    assert list(drawn[1]) == [10] * 4
    apply_quantization(model, calibration_data=loader(), sensitive_attrs=["age"])
    assert len(drawn[2]) == 2 and drawn[2].iloc[0] == drawn[2].iloc[1]


def test_training_learns_and_its_control_is_float(model: nn.Module) -> None:
    images, labels, _ = rows()
    fresh = network()
    nn.init.constant_(fresh.classifier.weight, 0.1)
    found = apply_quantization(fresh, "qat", 4, loader(), epochs=20, learning_rate=2e-2)
    control = apply_quantization(fresh, CONTROL, 8, loader(), epochs=20, learning_rate=2e-2)
    with torch.no_grad():
        for trained in (found, control):
            assert (trained(images).argmax(1) == labels).float().mean() > 0.8
        assert (fresh(images).argmax(1) == labels).float().mean() < 0.6
    assert not any(isinstance(m, Quantized) for m in control.modules())


def test_one_logit_per_image() -> None:
    single = network(1)
    for method in ("qat", "mixed"):
        found = apply_quantization(single, method, 8, loader())
        assert found(rows()[0]).shape == (N, 1)


def test_the_budget_of_mixed_precision(model: nn.Module) -> None:
    uniform: Any = apply_quantization(model, "ptq", "W4A8", loader()).report
    mixed: Any = apply_quantization(model, "mixed", "W4A8", loader()).report
    assert mixed.size_bytes <= uniform.size_bytes
    assert mixed.corrections["mixed_precision"]["budget"] == uniform.size_bytes
    bare: Any = apply_quantization(model, "mixed", 8, loader("bare"), budget=0.4).report
    assert bare.size_bytes <= 0.4 * bare.float_bytes
    assert "layer" in bare.corrections["mixed_precision"]["measure"]


def test_dynamic_needs_no_images(model: nn.Module) -> None:
    report: Any = apply_quantization(model, "dynamic", 4).report
    assert report.layers["blocks.1"] == "W4A8"


class Nothing(nn.Module):
    """A model without a layer that can be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean(dim=(2, 3))[:, :2]


class Wordy(Nothing):
    """A model whose output is no tensor."""

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


class Plain(nn.Sequential):
    """A model that can be traced."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(108, 2))


def test_a_group_of_few_images_is_told(model: nn.Module) -> None:
    images, labels, _ = rows()
    gender = ["man"] * 3 + ["woman"] * (N - 3)
    with pytest.warns(UserWarning, match="group 'man' has 3 images, so that no more than 6"):
        out = apply_quantization(model, calibration_data=[(images, labels, {"gender": gender})])
    assert out.report.calibration_images == 6  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_model_is_refused() -> None:
    scripted = torch.jit.trace(Plain(), torch.zeros(1, 3, 6, 6))
    with pytest.raises(BadInput, match="this model is scripted"):
        apply_quantization(scripted, calibration_data=loader())


women = (*rows()[:2], {"gender": ["woman"] * N})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "pqt"}, "'pqt' is unknown; did you mean"),
        ({"method": "bias_aware_calibratoin"}, r"did you mean 'bias_aware_calibration'\?"),
        ({"method": "ranges_mean", "budget": 0.1}, "ranges_mean has no budget"),
        ({"method": "channels_worst", "budget": "5%"}, "budget: '5%' is no number"),
        *(
            (
                {"method": method, "calibration_data": [women]},
                "calibration_data: every image is of the group 'woman'",
            )
            for method in ("bias_aware_calibration", "ranges_mean", "control_worst")
        ),
        ({"calibration_data": None}, "looks at images; give calibration_data"),
        ({"calibration_data": loader("labelled")}, "there are no groups; let every batch"),
        ({"sensitive_attrs": ["race"]}, "'race' is not among gender, age"),
        ({"bit_width": 5}, "bit_width 5 is not one of 2, 3, 4, 6, 8"),
        ({"bit_width": "INT8"}, "not of the form W8A8"),
        ({"method": "dynamic", "bit_width": "W4A4"}, "dynamic quantization is defined at 8 bits"),
        ({"activation": "dynamic"}, "use method='dynamic'"),
        ({"bit_with": 8}, "option 'bit_with' is unknown; did you mean 'bit_width'"),
        ({"method": "qat", "calibration_data": loader("bare")}, "qat learns from labels"),
        (
            {"method": "qat", "train_data": [(torch.zeros(2, 3, 6, 6), [0, 2])]},
            "train_data: batch 0 has the label 2, but the model tells labels 0 to 1 apart",
        ),
        ({"method": "qat", "train_data": loader("bare")}, "batch 0 has no labels"),
        ({"method": "qat", "epochs": 0}, "epochs: 0 is not at least 1"),
        (
            {"model": Nothing()},
            "nothing in this Nothing could be quantized .norm: batch norm does not",
        ),
        ({"model": Wordy()}, "model returned dict, not a tensor of logits"),
        ({"method": "mixed", "budget": 10}, "raise the budget to at least"),
        ({"calibration_images": 0}, "ask for at least 1"),
        ({"model": network().half()}, "quantize the float32 model, model.float()"),
        (
            {"method": "ptq", "calibration_data": [torch.zeros(2, 4, 6, 6)]},
            r"does not take images of shape \(4, 6, 6\) and torch.float32",
        ),
        (
            {"method": "ptq", "calibration_data": [torch.full((2, 3, 6, 6), torch.nan)]},
            "calibration batch 0: a value is NaN or infinite",
        ),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    arguments: dict[str, Any], sentence: str, model: nn.Module
) -> None:
    with pytest.raises(ValueError, match=sentence):
        apply_quantization(**{"model": model, "calibration_data": loader(), **arguments})


def test_no_module() -> None:
    with pytest.raises(TypeError, match="model is str, not a torch module"):
        apply_quantization("resnet50", calibration_data=loader())  # type: ignore[arg-type]


# ---- compare_quantization_methods


def compared(model: nn.Module, *methods: str, form: str = "mapping", **named: Any) -> Comparison:
    settings = {"calibration_data": loader(), "replicates": 200, **named}
    return compare_quantization_methods(
        model=model,
        methods=list(methods),
        test_loader=settings.pop("test_loader", loader(form)),
        sensitive_attrs=settings.pop("sensitive_attrs", ["gender", "age"]),
        **settings,
    )


@pytest.fixture(scope="module")
def comparison(model: nn.Module) -> Comparison:
    return compared(
        model, "PTQ_INT8", "PTQ_W2A8", "QAT_INT4", "QAT_FP32", "bias_aware", "BLOCK_W4A8",
        "WEIGHT_ONLY_INT4", "mixed", train_loader=loader("labelled"), learning_rate=1e-3,
    )  # fmt: skip


def test_the_table_says_what_metrics_say(comparison: Comparison, model: nn.Module) -> None:
    table = comparison.table.set_index("method")
    assert list(table.index) == [
        "FP32", "PTQ_INT8", "PTQ_W2A8", "QAT_INT4", "QAT_FP32", "bias_aware",
        "BLOCK_W4A8", "WEIGHT_ONLY_INT4", "mixed",
    ]  # fmt: skip
    every = {"FP32": model, **comparison.models}
    for name, network in every.items():
        row = table.loc[name]
        for scope in ("gender", "age"):
            found = metrics.compute_fairness_metrics(network, loader(), scope)
            assert row["accuracy"] == pytest.approx(found["accuracy"])
            for gap in ("demographic_parity", "equalized_odds"):
                assert row[f"{gap}_difference.{scope}"] == pytest.approx(found[gap])
                crossed = found["intersectional"][gap]
                assert row[f"{gap}_difference.gender x age"] == pytest.approx(crossed)
                change = row[f"{gap}_difference.{scope}.change"]
                before = table.loc["FP32", f"{gap}_difference.{scope}"]
                assert change == pytest.approx(row[f"{gap}_difference.{scope}"] - before)
        assert row["size_mib"] == pytest.approx(found["model_size_mb"])
        assert row["images"] == N
        with torch.no_grad():
            moved = network(rows()[0]).argmax(1) != model(rows()[0]).argmax(1)
        assert row["flips"] == int(moved.sum())
    assert table.loc["PTQ_W2A8", "flips"] > 0
    bounded = table["accuracy.low"] <= table["accuracy.high"]
    assert bounded.all() and (table["accuracy.floor"] >= 0).all()
    assert (table.loc["FP32"].filter(like=".change") == 0).all()
    assert table.loc["PTQ_INT8", "ideal_ratio"] == 4
    assert table.loc["FP32", "ratio"] == 1 and table.loc["PTQ_INT8", "ratio"] > 1.5
    # All calibrate on as many images as the smallest group allows.
    calibrated = table.drop(index=["FP32", "QAT_FP32"]).calibration_images
    assert calibrated.nunique() == 1 and calibrated.iloc[0] < N


def test_the_figure_at_two_widths(comparison: Comparison) -> None:
    for width, names in ((11.0, 1), (6.0, 2)):
        figure = comparison.plot_comparison(width)
        figure.draw_without_rendering()
        assert len(figure.axes) == 3
        labelled = 0
        for axis in figure.axes[1:]:
            shown = [t for t in axis.get_yticklabels() if t.get_text()]
            labelled += bool(shown)
            boxes = [t.get_window_extent() for t in shown]
            apart = [not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
            assert all(apart)
            inside = [figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes]
            assert all(inside)
        assert labelled == names


def test_the_file_holds_the_table_in_full(comparison: Comparison, tmp_path: Path) -> None:
    path = comparison.save_to_csv(tmp_path / "a" / "b" / "table.csv")
    pd.testing.assert_frame_equal(pd.read_csv(path), comparison.table, check_exact=True)
    with pytest.raises(Fault, match=r"could not be written \(Is a directory\); name another file"):
        comparison.save_to_csv(tmp_path)
    with pytest.raises(Fault, match="could not be written"):
        comparison.save_to_csv(path / "below" / "a file.csv")


@pytest.mark.parametrize("form", ["frame", "codes", "columns", "dataset"])
def test_forms_of_test_loaders(form: str, model: nn.Module) -> None:
    found = compared(model, "PTQ_INT8", form=form).table
    again = compared(model, "PTQ_INT8").table
    pd.testing.assert_frame_equal(found, again)


def test_one_attribute_and_any_case(model: nn.Module) -> None:
    found = compared(model, "fp32", "ptq_int4", sensitive_attrs="age", form="mapping").table
    assert list(found.method) == ["FP32", "ptq_int4"]
    assert not any("x" in column.split(".")[-1] for column in found.columns if "gender" in column)
    assert "equalized_odds_difference.age.floor" in found


def test_a_shuffling_loader_keeps_answers_paired(model: nn.Module) -> None:
    shuffled = DataLoader(TensorDataset(*rows()), batch_size=25, shuffle=True)
    found = compared(model, "PTQ_INT8", "PTQ_W2A8", test_loader=shuffled).table
    again = compared(model, "PTQ_INT8", "PTQ_W2A8").table
    assert list(found.flips) == list(again.flips)


@pytest.mark.parametrize("images", [40, 50])
def test_calibration_on_test_images_is_said_and_left_out(images: int, model: nn.Module) -> None:
    with pytest.warns(UserWarning, match=f"the first {images} images of test_loader") as caught:
        found = compared(model, "PTQ_INT8", calibration_data=None, calibration_images=images).table
    assert {Path(w.filename).name for w in caught} <= {"test_published.py"}
    assert list(found.images) == [N - images] * 2
    assert found.calibration_images[1] == images
    rest = [
        (rows()[0][images:], rows()[1][images:], rows()[2][images:]),
    ]
    given = [rows()[0][:images]]
    wanted = compared(model, "PTQ_INT8", calibration_data=given, test_loader=rest).table
    pd.testing.assert_frame_equal(found, wanted)


def test_training_on_calibration_images_is_said(model: nn.Module) -> None:
    with pytest.warns(UserWarning, match=f"QAT trains on the {N} calibration images"):
        compared(model, "QAT_INT8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compared(model, "QAT_INT8", train_loader=loader("labelled"))


def test_a_group_without_a_label_is_listed(model: nn.Module) -> None:
    images, labels, codes = rows()
    kept = ~((codes[:, 0] == 1) & (labels == 1))
    part = [(images[kept], labels[kept], codes[kept])]
    with pytest.warns(metrics.LeftOutWarning, match="equalized_odds_difference by gender"):
        compared(model, "PTQ_INT8", test_loader=part)


@pytest.mark.parametrize(
    ("methods", "named", "sentence"),
    [
        (["PTQ_INT5"], {}, "bit_width 5 is not one of"),
        (
            ["GPTQ_INT8"],
            {},
            "'GPTQ_INT8' is not known; a name is one of ADAROUND, bias_aware",
        ),
        (["PTQ_FP16"], {}, "'PTQ_FP16' is not known"),
        (["PTQ_INT8"], {"test_loader": None}, "test_loader is missing"),
        (["PTQ_INT8"], {"sensitive_attrs": ["race"]}, "sensitive_attrs: 'race' is not among"),
        (["PTQ_INT8"], {"sensitive_attrs": []}, "names of one or more attributes"),
        (["PTQ_INT8"], {"calibration_data": None}, "it has only 120, so that none are left"),
        (["bias_aware"], {"calibration_data": loader("bare")}, "there are no groups"),
        (["PTQ_INT8"], {"test_loader": loader("labelled")}, "not .images, labels, groups."),
    ],
)
def test_refused_comparisons(
    methods: list[str], named: dict[str, Any], sentence: str, model: nn.Module
) -> None:
    with pytest.raises(ValueError, match=sentence):
        compared(model, *methods, **named)


def test_an_attribute_with_one_value(model: nn.Module) -> None:
    images, labels, codes = rows()
    part = [(images, labels, torch.stack([codes[:, 0], torch.zeros(N).long()], 1))]
    with pytest.raises(BadInput, match="every image has age = 0"):
        compared(model, "PTQ_INT8", test_loader=part)


def test_the_package_is_light() -> None:
    code = "import sys, fairq_utils; print('torch' in sys.modules, len(fairq_utils.__all__))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "8"]
    with pytest.raises(ImportError, match="cannot import name 'apply_quantisation'"):
        from fairq_utils import apply_quantisation  # type: ignore[attr-defined]  # noqa: F401


def test_batches_are_read_one_by_one() -> None:
    stream = read(iter(loader("labelled")))
    assert next(stream).labels is not None


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_missing_group_is_named_wherever_groups_come_in(missing: Any, model: nn.Module) -> None:
    images, labels, groups = loader("mapping", N)[0]
    groups = {**groups, "age": [*groups["age"][:7], missing, *groups["age"][8:]]}
    batches = [(images, labels, groups)]
    calls: list[Callable[[], Any]] = [
        lambda: apply_quantization(model, "bias_aware_calibration", 8, batches),
        lambda: apply_quantization(model, "mixed_worst", 8, batches),
        lambda: compute_fairness_metrics(model, batches),
        lambda: FairnessAwareQuantizer().quantize(model, batches),
    ]
    for call in calls:
        with pytest.raises(BadInput, match=r"row 7 of a batch has no value for 'age'; leave the"):
            call()


@pytest.mark.parametrize("twice", [pd.DataFrame([["a", "b"]] * N, columns=["x", "x"]),
                                   {1: ["a"] * N, "1": ["b"] * N}])  # fmt: skip
def test_two_attributes_of_one_name_are_refused(twice: Any, model: nn.Module) -> None:
    images, labels, _ = rows()
    with pytest.raises(BadInput, match=r"two attributes of its groups are called '[x1]'"):
        apply_quantization(model, "bias_aware_calibration", 8, [(images, labels, twice)])


def test_the_package_lists_what_it_is_for() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import fairq_utils; print(*dir(fairq_utils))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    public = [name for name in found if not name.startswith("__")]
    assert public == sorted(fairq_utils.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", fairq_utils.__version__)
