"""Preservation: rows of more bits, their sizes and engines, scores by group, and what is chosen."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from conftest import needs_kernels
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.compare import ideal_ratio
from fairq_utils.deploy.engines import NotInstalled, installed, load, write
from fairq_utils.deploy.engines.loaded_model import NotExact
from fairq_utils.deploy.engines.onnx_file import to_onnx
from fairq_utils.deploy.engines.qdq import to_qdq
from fairq_utils.errors import BadInput
from fairq_utils.mitigation import preservation as preserving
from fairq_utils.mitigation.channel_scores import channel_scores, unit_scores
from fairq_utils.mitigation.precision import preserve_channels, preserve_layers
from fairq_utils.mitigation.preservation import choose, choose_at_random, preserve
from fairq_utils.mitigation.sample import Sample, as_sample
from fairq_utils.quantizers import (
    Observed,
    QuantSpec,
    observe,
    quantize_observed,
    use_integers,
)
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.sensitivity import classification_loss
from fairq_utils.quantizers.sizes import packed_bytes
from fairq_utils.quantizers.weights import KeptRows, keep_rows, quantize_weight, row_bytes

FOUR = QuantSpec.parse("W4A8", first_last_bits=None)


class Net(nn.Module):
    """Convolutions, one of them depthwise and without a bias, one that is called twice; a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.twice = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deep(F.relu(self.norm(self.stem(x)), inplace=True)), inplace=True)
        x = self.twice(torch.tanh(self.twice(x)))
        return self.head(x.mean((2, 3)))


def pictures(count: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.head.weight *= 8
    return model.eval()


def observed(**options: bool) -> Observed:
    return observe(net(), [pictures(64, 3)], **options)


def people(count: int = 24, rare: int = 4) -> Sample:
    labels = torch.randint(3, (count,), generator=torch.Generator().manual_seed(5)).tolist()
    return as_sample(pictures(count), labels, {"age": ["old"] * rare + ["young"] * (count - rare)})


def layer(model: nn.Module, name: str) -> Quantized:
    found = model.get_submodule(name)
    assert isinstance(found, Quantized)
    return found


def weight(seen: Observed, name: str) -> Tensor:
    found = seen.model.get_submodule(name).weight
    assert isinstance(found, Tensor)
    return found.detach()


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x)
    return out


# ---- rows of more bits


def test_rows_by_hand() -> None:
    linear = nn.Linear(2, 3, bias=False)
    linear.weight.data = torch.tensor([[7.0, 3.4], [127.0, 3.4], [7.0, 2.6]])
    seen = observe(nn.Sequential(linear), [torch.randn(4, 2)])
    plain = quantize_observed(seen, FOUR)[0]
    assert layer(plain, "0").weight_integers.tolist() == [[7, 3], [7, 0], [7, 3]]
    eight = layer(preserve_channels(seen, FOUR, {"0": [1]})[0], "0")
    assert eight.weight_integers.tolist() == [[7, 3], [127, 3], [7, 3]]
    torch.testing.assert_close(eight.weight(), torch.tensor([[7.0, 3], [127, 3], [7, 3]]))
    floats = layer(preserve_channels(seen, FOUR, {"0": [2, 1]}, kept=None)[0], "0")
    torch.testing.assert_close(floats.weight(), torch.tensor([[7.0, 3], [127, 3.4], [7, 2.6]]))


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("rule", ["minmax", "percentile"])
def test_all_rows_at_eight_bits_are_the_layer_at_eight_bits(scheme: str, rule: str) -> None:
    seen = observed()
    spec = replace(FOUR, weight_scheme=scheme, weight_range=rule, percentile=80)
    eight = quantize_observed(seen, replace(spec, weight_bits=8))[0]
    every = {name: range(len(weight(seen, name))) for name in seen.order}
    kept = preserve_channels(seen, spec, every)[0]
    assert torch.equal(answers(kept, pictures()), answers(eight, pictures()))


@pytest.mark.parametrize("bits", [8, None])
def test_what_rows_are_taken_from_stays(bits: int | None) -> None:
    found = quantize_weight(pictures(), FOUR)
    kept = keep_rows(found, pictures(), FOUR, KeptRows((3,), bits))
    assert not torch.equal(kept.integers, found.integers)
    assert torch.equal(found.integers, quantize_weight(pictures(), FOUR).integers)
    assert keep_rows(found, pictures(), FOUR, KeptRows((), bits)) is found


def test_the_other_rows_and_what_was_observed_stay() -> None:
    seen = observed()
    before = copy.deepcopy(seen.model.state_dict())
    plain = layer(quantize_observed(seen, FOUR)[0], "stem")
    for kept in (8, None):
        found = layer(preserve_channels(seen, FOUR, {"stem": [4, 1]}, kept=kept)[0], "stem")
        same = [0, 2, 3, 5]
        assert torch.equal(found.weight()[same], plain.weight()[same])
        own = (found.weight() - weight(seen, "stem"))[[1, 4]].abs().max()
        assert own < (plain.weight() - weight(seen, "stem"))[[1, 4]].abs().max() / 8
    again = layer(quantize_observed(seen, FOUR)[0], "stem")
    assert torch.equal(again.weight_integers, plain.weight_integers)
    assert all(torch.equal(v, before[k]) for k, v in seen.model.state_dict().items())


def test_sizes_by_hand() -> None:
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    seen = observe(model, [torch.randn(4, 10)])
    rest = 3 * 8 // 2 + 4 * 3 + 4 * 3 + 8  # the second layer: weights, scales, biases, input
    plain = quantize_observed(seen, FOUR)[1].size_bytes
    assert plain == rest + 80 // 2 + 4 * 8 + 4 * 8 + 8
    # Two rows of ten weights: four bits more each, and four bytes for the row's number.
    _, report = preserve_channels(seen, FOUR, {"0": [1, 7]})
    assert report.size_bytes == plain + 2 * 10 // 2 + 2 * 4
    assert report.corrections == {"preserved": {"0": 2}, "extra_bytes": 18}
    assert report.layers["0"] == "W4A8"
    # In float: 28 bits more each, and the number in the place of the scale.
    module, report = preserve_channels(seen, FOUR, {"0": [1, 7]}, kept=None)
    assert report.size_bytes == plain + 2 * 10 * 28 // 8
    assert report.corrections["extra_bytes"] == 70
    affine = replace(FOUR, weight_scheme="affine")
    plain = quantize_observed(seen, affine)[1].size_bytes
    _, report = preserve_channels(seen, affine, {"0": [1]}, kept=None)
    assert report.size_bytes == plain + 10 * 28 // 8 + 4 - 8  # a scale and a zero-point less
    # 60 + 24 weights of four bits and 20 floats.
    assert ideal_ratio(module) == pytest.approx(32 * 104 / (84 * 4 + 20 * 32))


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("bits", [8, None])
def test_a_row_costs_no_more_than_is_said(bits: int | None, scheme: str) -> None:
    """Rows of 27, 9 and 6 weights at four and two bits: not all are whole bytes."""
    seen = observed()
    for width in (4, 2):
        spec = replace(FOUR, weight_bits=width, weight_scheme=scheme)
        for name in seen.order:
            price = row_bytes(weight(seen, name), spec, bits)
            plain = packed_bytes(seen.quantized(name, spec))
            for rows in ((1,), (0, 2), (0, 1, 2)):
                grown = packed_bytes(seen.quantized(name, spec, KeptRows(rows, bits))) - plain
                assert len(rows) * (price - 1) <= grown <= len(rows) * price


@pytest.mark.parametrize("kept", [8, None])
def test_rows_survive_copying_saving_and_loading(kept: int | None, tmp_path: Path) -> None:
    seen, x = observed(), pictures()
    first = preserve_channels(seen, FOUR, {"stem": [0, 3], "twice": [2]}, kept=kept)[0]
    expected = answers(first, x)
    assert torch.equal(answers(copy.deepcopy(first), x), expected)
    torch.save(first, tmp_path / "model.pt")
    assert torch.equal(answers(torch.load(tmp_path / "model.pt", weights_only=False), x), expected)
    second = preserve_channels(seen, FOUR, {"stem": [1, 5], "twice": [4]}, kept=kept)[0]
    assert not torch.equal(answers(second, x), expected)
    second.load_state_dict(first.state_dict())
    assert torch.equal(answers(second, x), expected)
    rows = layer(second, "stem").kept_rows
    assert rows is not None and rows.tolist() == [0, 3]
    plain = quantize_observed(seen, FOUR)[0]
    assert not any("kept" in key for key in plain.state_dict())
    with pytest.raises(RuntimeError, match="kept_rows"):
        plain.load_state_dict(first.state_dict())


@needs_kernels
@pytest.mark.parametrize("bits", ["W4A8", "W2A4"])
@pytest.mark.parametrize(
    "kind",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, bias=False),
        nn.Linear(6, 5),
    ],
    ids=["conv", "depthwise", "linear"],
)
def test_integer_kernels_give_the_sum_of_products_of_the_integers(
    kind: nn.Module, bits: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, 9, 9) if isinstance(kind, nn.Conv2d) else torch.randn(5, 7, 6)
    spec = QuantSpec.parse(bits, first_last_bits=None)
    seen = observe(nn.Sequential(kind), [x])
    model, _ = preserve_channels(seen, spec, {"0": [1, 4]})
    q = layer(model, "0")
    assert q.weight_integers[[1, 4]].abs().amax() == 127
    assert q.weight_integers[[0, 2, 3]].abs().amax() == 2 ** (spec.weight_bits - 1) - 1
    s, z, top = q.input_grid()
    integers = (torch.clamp(torch.round(x / s) + z, 0, top) - z).double()
    scale = s * q.weight_scale.double()
    bias = torch.zeros(len(scale)).double() if q.bias is None else q.bias.double()
    if isinstance(kind, nn.Conv2d):
        geometry = (kind.stride, kind.padding, kind.dilation, kind.groups)
        sums = F.conv2d(integers, q.weight_integers.double(), None, *geometry)
        scale, bias = scale.view(-1, 1, 1), bias.view(-1, 1, 1)
    else:
        sums = integers @ q.weight_integers.double().T
    simulated = answers(model, x)
    assert use_integers(model) == 1
    torch.testing.assert_close(
        answers(model, x).double(), sums * scale + bias, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(answers(model, x), simulated, rtol=1e-4, atol=1e-4)


def test_a_layer_with_rows_in_float_stays_a_simulation() -> None:
    seen, x = observed(), pictures()
    model, _ = preserve_channels(seen, FOUR, {"stem": [0]}, kept=None)
    assert not layer(model, "stem").runs_on_integers()
    assert layer(model, "deep").runs_on_integers()
    before = answers(model, x)
    use_integers(model)
    assert not layer(model, "stem").integer
    torch.testing.assert_close(answers(model, x), before, rtol=1e-3, atol=1e-3)


def test_biases_are_corrected_for_the_rows_that_are_kept() -> None:
    """Kept in float, a first layer's row errs only by its input; correction moves it little."""
    seen = observed(keep=True)
    spec = replace(FOUR, bias_correction=True)
    shift = {}
    for kept in (8, None):
        module, _ = preserve_channels(seen, spec, {"stem": range(6)}, kept=kept)
        plain = quantize_observed(seen, spec)[0]
        before = seen.model.get_submodule("stem").bias
        shift[kept] = float((layer(module, "stem").bias - before).abs().max())  # type: ignore[operator]
        usual = float((layer(plain, "stem").bias - before).abs().max())  # type: ignore[operator]
        assert shift[kept] < usual / 4


@pytest.mark.parametrize(
    ("channels", "kept", "options", "sentence"),
    [
        ({"neck": [0]}, 8, {}, "'neck' is no layer that would be quantized, .* these are stem, d"),
        ({"stem": [6]}, 8, {}, "layer 'stem' has no output channel 6; its channels are 0 to 5"),
        ({"stem": [-1]}, 8, {}, "layer 'stem' has no output channel -1"),
        ({"stem": [2, 2]}, 8, {}, "'stem': output channel 2 is named twice; name it once"),
        ({"stem": [0]}, 6, {}, "at 8 bits or in float .None., not at 6"),
        ({"stem": [0]}, 8, {"weight_bits": 8}, "'stem' has weights of 8 bits; 8 are no more"),
        ({"stem": [0]}, 8, {"first_last_bits": 8}, "'stem' has weights of 8 bits; 8 are no more"),
        ({"deep": [0]}, 8, {"weight_granularity": "tensor"}, "'deep' has one scale per tensor; "),
        ({"deep": [0]}, 8, {"weight_granularity": "group"}, "'deep' has one scale per group; "),
        ({"deep": [0]}, 8, {"rounding": "adaround"}, "'deep': rounding='adaround' learns to make"),
        ({"deep": [0]}, 8, {"activation": "dynamic"}, "dynamic; use quantize_dynamic"),
    ],
)
def test_channels_that_cannot_be_kept_are_refused(
    channels: dict[str, list[int]], kept: int | None, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        preserve_channels(
            observed(keep=True),
            replace(FOUR, **options),
            channels,
            kept=kept,  # type: ignore[arg-type]
        )


def test_a_channel_that_rounding_ruins_is_saved() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()
    model[0].weight.data[5, 0, 0, 0] = 4.0  # the other weights of that channel become zeros
    x = pictures()
    seen = observe(model, [x])
    errors = {
        channel: float((answers(model, x) - answers(module, x)).square().mean())
        for channel in range(8)
        for module in [preserve_channels(seen, FOUR, {"0": [channel]})[0]]
    }
    plain = float(
        (answers(model, x) - answers(quantize_observed(seen, FOUR)[0], x)).square().mean()
    )
    assert errors.pop(5) < plain / 3
    assert min(errors.values()) > 0.9 * plain


# ---- layers


def test_layers_have_more_bits_or_none() -> None:
    seen = observed()
    plain = quantize_observed(seen, FOUR)[1]
    _, report = preserve_layers(seen, FOUR, ["deep", "twice"])
    assert [report.layers[n] for n in seen.order] == ["W4A8", "W8A8", "W8A8", "W4A8"]
    assert report.corrections == {
        "preserved": {"deep": 6, "twice": 6},
        "extra_bytes": 54 // 2 + 36 // 2,
    }
    assert report.size_bytes == plain.size_bytes + 45
    module, report = preserve_layers(seen, FOUR, ["deep"], kept=None)
    assert "deep" not in report.layers
    assert torch.equal(module.get_submodule("deep").weight, weight(seen, "deep"))  # type: ignore[arg-type]
    # 28 bits more a weight; six scales and the input's grid less.
    assert report.corrections["extra_bytes"] == 54 * 28 // 8 - 4 * 6 - 8
    assert report.size_bytes == plain.size_bytes + report.corrections["extra_bytes"]
    _, report = preserve_layers(seen, replace(FOUR, activation_bits=4), ["deep"])
    assert report.layers["deep"] == "W8A8" and report.layers["stem"] == "W4A4"
    _, report = preserve_layers(seen, QuantSpec.parse("W4"), ["deep"])
    assert report.layers["deep"] == "W8"


def test_layers_that_cannot_be_kept_are_refused() -> None:
    seen = observed()
    with pytest.raises(BadInput, match="'neck' is no layer that would be quantized; these are st"):
        preserve_layers(seen, FOUR, ["neck"])
    with pytest.raises(BadInput, match=r"'deep' is at W8A8 already, .* in float \(kept=None\)"):
        preserve_layers(seen, QuantSpec(), ["deep"])
    with pytest.raises(BadInput, match="'head' is at W8A8 already"):
        preserve_layers(seen, QuantSpec.parse("W4A8"), ["head"])


# ---- engines


def stored(proto: onnx.ModelProto) -> dict[tuple[int, ...], tuple[int, Tensor, Tensor]]:
    """Shape of every weight -> type it is stored as, its values, its scales."""
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    made = {node.output[0]: node for node in proto.graph.node}
    found = {}
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        name, times = node.input[0], 1
        while name in made and name not in held:  # widened from four bits when it is loaded
            times = 16 if made[name].op_type == "Mul" else times
            name = made[name].input[0]
        if name in held and len(held[name].dims) > 1:
            scale = torch.from_numpy(numpy_helper.to_array(held[node.input[1]]).copy())
            zero = torch.from_numpy(numpy_helper.to_array(held[node.input[2]]).astype(np.int64))
            integers = torch.from_numpy(numpy_helper.to_array(held[name]).astype(np.int64))
            shape = (-1, *[1] * (integers.ndim - 1))
            values = (times * integers - zero.view(shape)).float() * scale.view(shape)
            found[tuple(held[name].dims)] = (held[name].data_type, values, scale)
    return found


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("bits", ["W2A8", "W4A8", "W6A8"])
def test_standard_operators_are_the_simulation(scheme: str, bits: str) -> None:
    seen, x = observed(), pictures()
    spec = QuantSpec.parse(bits, weight_scheme=scheme, first_last_bits=None)
    model, _ = preserve_channels(seen, spec, {"stem": [1, 4], "head": [2]})
    torch.testing.assert_close(answers(to_qdq(model), x), answers(model, x), rtol=0, atol=1e-5)


def test_a_layer_with_rows_of_eight_bits_is_not_packed_into_four() -> None:
    seen = observed()
    model, _ = preserve_channels(seen, FOUR, {"stem": [1, 4]})
    found = stored(to_onnx(model, pictures(2), 4, fine_biases=True))
    for name in seen.order:
        kind, values, scale = found[tuple(weight(seen, name).shape)]
        q = layer(model, name)
        assert torch.equal(values, q.weight())
        own = onnx.TensorProto.INT8 if name == "stem" else onnx.TensorProto.INT4
        assert kind == own
        if name == "stem":  # coarse rows use the whole byte too: biases are rounded to their steps
            times = torch.tensor([16.0, 1, 16, 16, 1, 16])
            assert torch.equal(scale * times, q.weight_scale)


@needs_kernels
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_answer_as_the_simulation_does(engine: str, tmp_path: Path) -> None:
    try:
        installed(engine)
    except NotInstalled as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)),
    )
    seen, x = observe(model, [pictures(64)]), pictures(32, 1)
    rows = {"0": [1, 4], "2": [3], "4": [0], "7": [2]}
    module, _ = preserve_channels(seen, FOUR, rows)
    write(module, engine, tmp_path, pictures(2), 4)
    found = load(engine, tmp_path, 1)
    # Biases on coarse steps would move every answer; a sum between two integers moves few.
    apart = np.abs(found(x.numpy()) - answers(module, x).numpy())
    head = layer(module, "7")
    step = float(head.input_scale) * float(head.weight().abs().sum(dim=1).max())
    assert np.median(apart) < 0.01 * step
    assert apart.max() < 0.1 * step
    assert found.kernels is not None and found.kernels.integer >= 3


def test_engines_refuse_rows_in_float(tmp_path: Path) -> None:
    model, _ = preserve_channels(observed(), FOUR, {"deep": [1, 4]}, kept=None)
    with pytest.raises(NotExact, match=r"layer deep: 2 of its output channels are kept in float,"):
        write(model, "onnxruntime", tmp_path, pictures(2), 4)
    assert not list(tmp_path.iterdir())


# ---- scores


def mean_loss(model: nn.Module, members: Sample) -> Tensor:
    return F.cross_entropy(model(members.images.double()), members.labels)


def moved(seen: Observed, name: str, channel: int, by: float) -> nn.Module:
    """The float model, in double precision, with one channel moved towards its rounding."""
    rounding = layer(quantize_observed(seen, FOUR)[0], name).weight() - weight(seen, name)
    model = copy.deepcopy(seen.model).double()
    model.get_submodule(name).weight.data[channel] += by * rounding[channel].double()  # type: ignore[operator, index, union-attr]
    return model


def test_a_score_is_the_slope_of_the_groups_loss_towards_the_rounding() -> None:
    seen, everybody = observed(), people()
    table = channel_scores(seen, FOUR, everybody)
    assert list(table.columns) == ["layer", "channel", "group", "score", "bytes"]
    assert list(table.layer.drop_duplicates()) == ["stem", "deep", "twice", "head"]
    assert len(table) == (6 + 6 + 6 + 3) * 2
    largest = table.score.abs().max()
    with torch.no_grad():
        for row in table.itertuples():
            members = everybody.members(["old", "young"].index(row.group))
            up, down = (
                mean_loss(moved(seen, row.layer, row.channel, by), members) for by in (1e-3, -1e-3)
            )
            assert row.score == pytest.approx(float(up - down) / 2e-3, abs=2e-4 * largest)


def test_a_score_predicts_what_a_small_rounding_does() -> None:
    """At eight bits, the increase itself: the whole step, not its slope."""
    seen, everybody = observed(), people()
    spec = replace(FOUR, weight_bits=8)
    table = channel_scores(seen, spec, everybody, kept=None)
    plain = quantize_observed(seen, spec)[0]
    found = []
    with torch.no_grad():
        for row in table.itertuples():
            members = everybody.members(["old", "young"].index(row.group))
            model = copy.deepcopy(seen.model).double()
            rounded = layer(plain, row.layer).weight()[row.channel].double()
            model.get_submodule(row.layer).weight.data[row.channel] = rounded  # type: ignore[operator, index, union-attr]
            found.append(
                float(
                    mean_loss(model, members)
                    - mean_loss(copy.deepcopy(seen.model).double(), members)
                )
            )
    np.testing.assert_allclose(table.score, found, atol=0.05 * np.abs(found).max())


def test_fisher_scores_are_half_the_mean_square_of_the_images_own_changes() -> None:
    seen, everybody = observed(), people(80, 70)  # more than one pass
    table = channel_scores(seen, FOUR, everybody, measure="fisher")
    plain = quantize_observed(seen, FOUR)[0]
    model = copy.deepcopy(seen.model).requires_grad_(True)
    weights = [model.get_submodule(name).weight for name in seen.order]
    squares = {code: torch.zeros(21) for code in everybody.present}
    for x, y, code in everybody.batches(1):
        gradients = torch.autograd.grad(classification_loss(model(x), y), weights)  # type: ignore[arg-type]
        changes = [
            (g * (layer(plain, name).weight() - weight(seen, name))).flatten(1).sum(1)
            for name, g in zip(seen.order, gradients, strict=True)
        ]
        squares[int(code)] += torch.cat(changes).square()
    for code in everybody.present:
        scores = table[table.group == everybody.name(code)].score
        own = squares[code] / 2 / len(everybody.members(code))
        np.testing.assert_allclose(scores, own, rtol=1e-3, atol=1e-6)


class Tokens(nn.Module):
    """Patches as tokens; one layer sees them with the images along the second axis."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute((0, 2, 1) if self.first else (2, 0, 1))
        return self.head(torch.tanh(self.mix(tokens)).mean(1 if self.first else 0))


def test_scores_of_layers_on_tokens_do_not_depend_on_their_order() -> None:
    tables = []
    for first in (True, False):
        torch.manual_seed(0)
        seen = observe(Tokens(first).eval(), [pictures()])
        tables.append(channel_scores(seen, FOUR, people()))
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)
    with pytest.raises(BadInput, match=r"'mix' returns 4 rows for 20 images, .*'gradient'"):
        channel_scores(seen, FOUR, people(26, 20), measure="fisher")


def test_nothing_that_was_given_changes() -> None:
    seen = observed()
    for value in seen.model.get_submodule("deep").parameters():
        value.requires_grad_(True)
    flags = {name: value.requires_grad for name, value in seen.model.named_parameters()}
    before = copy.deepcopy(seen.model.state_dict())
    channel_scores(seen, FOUR, people())
    for name, value in seen.model.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None and value.requires_grad == flags[name]
    assert not any(m._forward_hooks for m in seen.model.modules())


def test_layers_that_have_the_bits_already_are_left_out() -> None:
    seen, everybody = observed(), people()
    edges = QuantSpec.parse("W4A8")
    table = channel_scores(seen, edges, everybody)
    assert set(table.layer) == {"deep", "twice"}
    assert set(table[table.layer == "deep"].bytes) == {9 // 2 + 1 + 4}
    table = channel_scores(seen, edges, everybody, kept=None)
    assert list(table.layer.drop_duplicates()) == seen.order
    assert set(table[table.layer == "stem"].bytes) == {27 * 24 // 8}
    eight = channel_scores(seen, QuantSpec(), everybody)
    pd.testing.assert_frame_equal(eight, channel_scores(seen, QuantSpec(), everybody, kept=None))
    with pytest.raises(BadInput, match="nothing at W8A8 has fewer than 8 bits"):
        channel_scores(seen, QuantSpec(), everybody, kept=8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; none was found")
def test_cuda_agrees_with_cpu() -> None:
    everybody, tables = people(), []
    for device in ("cpu", "cuda"):
        seen = observe(net().to(device), [pictures(64, 3).to(device)])
        tables.append(channel_scores(seen, FOUR, everybody))
        module, _ = preserve(seen, FOUR, everybody, budget=0.1)
        assert layer(module, "stem").weight_integers.device.type == device
    np.testing.assert_allclose(tables[0].score, tables[1].score, atol=1e-3)


# ---- the choice


def test_the_best_per_byte_is_chosen_then_what_still_fits() -> None:
    scores = pd.Series({"dear": 10.0, "good": 6.0, "fair": 2.0, "free": 0.1, "harmless": -5.0})
    costs = pd.Series({"harmless": 1, "free": 0, "fair": 2, "good": 4, "dear": 8})
    assert choose(scores, costs, 6) == ["free", "good", "fair"]
    assert choose(scores, costs, 5) == ["free", "good"]
    assert choose(scores, costs, 8) == ["free", "good", "fair"]
    assert choose(scores, costs, 3.9) == ["free", "fair"]
    assert choose(scores, costs, 99) == ["free", "good", "dear", "fair"]
    ties = pd.Series({"b": 2.0, "a": 2.0, "c": 4.0})
    assert choose(ties, pd.Series({"a": 1, "b": 1, "c": 2}), 3) == ["b", "a"]
    with pytest.raises(BadInput, match="'c' has a score but no cost"):
        choose(ties, pd.Series({"a": 1, "b": 1}), 3)
    with pytest.raises(BadInput, match="the score of 'a' is not a number"):
        choose(pd.Series({"a": np.nan}), pd.Series({"a": 1}), 3)


def test_chance_spends_the_budget_and_is_seeded() -> None:
    costs = pd.Series(np.tile([1, 2, 7], 20), index=[f"u{i}" for i in range(60)])
    draws = [choose_at_random(costs, 30, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    for draw in draws:
        assert len(set(draw)) == len(draw)
        assert 29 <= costs[draw].sum() <= 30
    often = pd.Series([u for seed in range(200) for u in choose_at_random(costs, 30, seed)])
    assert set(often) == set(costs.index)  # each has a chance


def test_groups_are_reduced_by_the_worst_or_by_their_sizes() -> None:
    groups = {"sex": ["f", "f", "m", "m"], "age": ["old", "young", "young", "young"]}
    everybody = as_sample(pictures(4), [0] * 4, groups, least=0)  # there is no old man
    table = pd.DataFrame(
        {
            "layer": ["b"] * 3 + ["a"] * 3,
            "group": ["m|young", "f|old", "f|young"] * 2,
            "harm": [-1.0, 8.0, 4.0, 3.0, 1.0, -2.0],
        }
    )
    for named in (table, table.assign(group=table.group.str.replace("|", " "))):
        worst = unit_scores(named, ["layer"], "harm", "worst_group", everybody)
        assert worst.to_dict() == {"b": 8.0, "a": 3.0} and list(worst.index) == ["b", "a"]
        blind = unit_scores(named, ["layer"], "harm", "overall", everybody)
        assert blind.to_dict() == {"b": (8 + 4 - 2) / 4, "a": (1 - 2 + 6) / 4}


def rare_needs_one_channel() -> tuple[nn.Module, Sample]:
    """Channel 0 is all that the rare group's answers stand on, channel 1 what the others' do.

    A weight of 0.07 beside one of 1 is rounded to 0 at four bits. With margins ``m`` and labels
    that agree, the slope of the loss is ``m sigmoid(-m)``: 0.28 for the rare group's 1.28, 0.07
    for the others' 0.15, of whom there are nine times as many.
    """
    first, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    first.weight.data = torch.tensor([[1, 0.07, 0], [1, 0, 0.07]]).view(2, 3, 1, 1)
    head.weight.data = torch.tensor([[-0.5, -0.5], [0.5, 0.5]])
    labels = torch.arange(40) % 2
    sign, rare = 2.0 * labels - 1, torch.arange(40) < 4
    images = torch.zeros(40, 3, 1, 1)
    images[:, 1, 0, 0] = torch.where(rare, sign * 1.28 / 0.07, 0.0)
    images[:, 2, 0, 0] = torch.where(rare, 0.0, sign * 0.15 / 0.07)
    model = nn.Sequential(first, nn.Flatten(), head).eval()
    groups = {"age": np.where(rare.numpy(), "old", "young")}
    return model, as_sample(images, labels, groups)


def test_the_worst_groups_channel_is_kept_and_the_blind_choice_is_another() -> None:
    model, everybody = rare_needs_one_channel()
    seen = observe(model, [everybody.images])
    scores = channel_scores(seen, FOUR, everybody).set_index(["layer", "channel", "group"]).score
    slope = {m: m / (1 + np.exp(m)) for m in (1.28, 0.15)}
    assert scores["0", 0, "old"] == pytest.approx(slope[1.28], abs=1e-4)
    assert scores["0", 1, "young"] == pytest.approx(slope[0.15], abs=1e-4)
    assert scores["0", 0, "young"] == scores["0", 1, "old"] == 0
    size = quantize_observed(seen, FOUR)[1].size_bytes
    budget = 7 / size  # one row: 1.5 bytes more, and its number
    found = {}
    for by in ("worst_group", "overall"):
        module, report = preserve(seen, FOUR, everybody, budget=budget, by=by)
        rows = layer(module, "0").kept_rows
        assert rows is not None
        assert report.corrections["preserved"] == {"0": 1}
        with torch.no_grad():
            found[by] = (
                rows.tolist(),
                {
                    name: float(classification_loss(module(part.images), part.labels))
                    for name, part in (
                        ("old", everybody.members(0)),
                        ("young", everybody.members(1)),
                    )
                },
            )
    assert found["worst_group"][0] == [0] and found["overall"][0] == [1]
    even = float(np.log(2))  # of an answer that stands on nothing
    assert found["overall"][1]["old"] == pytest.approx(even)
    assert found["worst_group"][1]["old"] < even - 0.3
    assert found["worst_group"][1]["young"] == pytest.approx(even)


@pytest.mark.parametrize("by", ["worst_group", "overall", "random"])
@pytest.mark.parametrize("kept", ["more", None])
@pytest.mark.parametrize("budget", [0.1, 0.3, 1.0])
def test_the_budget_is_kept_and_used(by: str, kept: str | None, budget: float) -> None:
    seen, everybody = observed(), people()
    plain = quantize_observed(seen, FOUR)[1].size_bytes
    module, report = preserve(
        seen,
        FOUR,
        everybody,
        budget=budget,
        by=by,
        kept=kept,  # type: ignore[arg-type]
    )
    assert plain < report.size_bytes <= (1 + budget) * plain
    assert report.size_bytes == plain + report.corrections["extra_bytes"]
    note = {
        "unit": "channels",
        "by": by,
        "kept": 8 if kept else None,
        "budget": int(budget * plain),
    }
    assert report.corrections["preservation"] == note
    held = [m.kept_rows for m in module.modules() if isinstance(m, Quantized)]
    channels = sum(len(rows) for rows in held if rows is not None)
    assert channels == sum(report.corrections["preserved"].values())
    if by == "random" and kept and budget == 0.3:  # less than another row is left
        assert report.size_bytes > (1 + budget) * plain - 18


def test_chance_in_preservation_is_seeded() -> None:
    seen, everybody = observed(), people()
    draws = [
        preserve(seen, FOUR, everybody, budget=0.1, by="random", seed=seed)[0].state_dict()
        for seed in (0, 0, 1)
    ]
    rows = [{k: v.tolist() for k, v in draw.items() if k.endswith("kept_rows")} for draw in draws]
    assert rows[0] == rows[1] != rows[2]


def test_layers_are_chosen_by_given_scores() -> None:
    seen, everybody = observed(), people()
    scores = pd.Series({"head": 1.0, "stem": 0.2, "deep": 0.9, "twice": -1.0, "other": 9.0})
    plain = quantize_observed(seen, FOUR)[1].size_bytes
    # The head takes 9 bytes more, deep 27, the stem 81.
    for allowed, layers in (
        (8.9, None),
        (9, ["head"]),
        (36, ["deep", "head"]),
        (62, ["deep", "head"]),
    ):
        budget = (allowed + 0.01) / plain
        if layers is None:
            with pytest.raises(BadInput, match=r"buys no layer; the cheapest takes 9 bytes, a bud"):
                preserve(seen, FOUR, everybody, budget=budget, unit="layers", scores=scores)
            continue
        _, report = preserve(seen, FOUR, everybody, budget=budget, unit="layers", scores=scores)
        assert sorted(report.corrections["preserved"]) == layers
        assert report.size_bytes <= plain + allowed
    with pytest.raises(BadInput, match="scores: there is none for 'stem'; give one per layer"):
        preserve(seen, FOUR, everybody, unit="layers", budget=0.1, scores=scores[["head"]])


def test_inputs_of_more_bits_cost_no_bytes() -> None:
    seen, everybody = observed(), people()
    spec = QuantSpec.parse("W8A4", first_last_bits=None)
    scores = pd.Series({"head": 1.0, "stem": 0.2, "deep": 0.9, "twice": -1.0})
    _, report = preserve(seen, spec, everybody, budget=0.01, unit="layers", scores=scores)
    assert [report.layers[n] for n in seen.order] == ["W8A8", "W8A8", "W8A4", "W8A8"]
    assert report.corrections["extra_bytes"] == 0


def test_layers_are_measured_by_the_ablation_of_each_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean over groups would keep ``deep``, weighted by the groups' sizes too."""
    seen, everybody = observed(), people()
    asked = []

    def group_sensitivities(seen: Observed, specs: list[QuantSpec], sample: Sample) -> pd.DataFrame:
        asked.append(specs)
        harm = {"stem": (0.0, 0.0), "deep": (0.2, 0.8), "twice": (0.9, 0.0), "head": (0.0, 0.0)}
        rows = [
            (name, "W4A8", group, value, 0)
            for name, values in harm.items()
            for group, value in zip(("old", "young"), values, strict=True)
        ]
        return pd.DataFrame(rows, columns=["layer", "bits", "group", "sensitivity", "bytes"])

    monkeypatch.setattr(preserving, "group_sensitivities", group_sensitivities)
    plain = quantize_observed(seen, FOUR)[1].size_bytes
    for by, name in (("worst_group", "twice"), ("overall", "deep")):
        _, report = preserve(seen, FOUR, everybody, budget=27.5 / plain, unit="layers", by=by)
        assert list(report.corrections["preserved"]) == [name]
    assert asked == [[FOUR], [FOUR]]


def test_at_eight_bits_only_float_is_more() -> None:
    seen, everybody = observed(), people()
    for unit in ("channels", "layers"):
        scores = pd.Series(1.0, index=seen.order) if unit == "layers" else None
        _, report = preserve(seen, QuantSpec(), everybody, budget=0.3, unit=unit, scores=scores)
        assert report.corrections["preservation"]["kept"] is None
        with pytest.raises(BadInput, match=r"nothing at W8A8 has fewer than 8 bits; .*kept=None"):
            preserve(seen, QuantSpec(), everybody, unit=unit, kept=8)


def test_what_hurts_nobody_is_not_kept() -> None:
    model, everybody = rare_needs_one_channel()
    seen = observe(model, [everybody.images])
    flipped = replace(everybody, labels=1 - everybody.labels)  # rounding to nothing helps all
    _, report = preserve(seen, FOUR, flipped, budget=1.0)
    assert report.corrections["preserved"] == {} and report.corrections["extra_bytes"] == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": 0.0}, r"budget: 0\.0 is not a fraction in \(0, 1\]"),
        ({"budget": 5}, r"budget: 5 is not a fraction"),
        ({"budget": True}, "budget: True is not a fraction"),
        ({"budget": float("nan")}, "budget: nan is not a fraction"),
        ({"budget": 1e-6}, r"budget: 1e-06 of \d+ bytes buys no channel; the cheapest takes"),
        ({"unit": "neurons"}, "unit 'neurons' is not one of layers, channels"),
        ({"by": "mean"}, "by 'mean' is not one of worst_group, overall, random"),
        ({"measure": "hessian"}, "measure 'hessian' is not one of gradient, fisher"),
        ({"kept": 6}, "channels are kept at 8 bits or in float .None., not at 6"),
    ],
)
def test_bad_choices_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        preserve(observed(), FOUR, people(), **options)  # type: ignore[arg-type]


def test_bad_samples_and_specs_are_refused() -> None:
    seen, everybody = observed(), people()
    groups = replace(everybody.groups, names=(*everybody.groups.names, "third"))
    for ask in (preserve, channel_scores):
        with pytest.raises(BadInput, match="the group 'third' of age has 0 images"):
            ask(seen, FOUR, replace(everybody, groups=groups))
        with pytest.raises(BadInput, match="the sample has no images"):
            ask(seen, FOUR, everybody.take([]))
        with pytest.raises(BadInput, match=r"dynamic, .* use activation='static' or 'float'"):
            ask(seen, replace(FOUR, activation="dynamic"), everybody)
        with pytest.raises(ValueError, match=r"one scale per tensor; .*granularity='channel'"):
            ask(seen, replace(FOUR, weight_granularity="tensor"), everybody)
        broken = replace(everybody, images=everybody.images * float("nan"))
        with pytest.raises(BadInput, match="a score is not finite"):
            ask(seen, FOUR, broken)
    with pytest.raises(BadInput, match="measure 'hessian' is not one of gradient, fisher"):
        channel_scores(seen, FOUR, everybody, measure="hessian")


def test_weights_alone_can_be_preserved() -> None:
    seen, everybody = observed(), people()
    _, report = preserve(seen, QuantSpec.parse("W4"), everybody, budget=0.1)
    assert sum(report.corrections["preserved"].values()) > 0
