"""Operations between layers: found in any model, on their grids, named in the report."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack

from fairq_utils.quantizers import (
    QuantReport,
    QuantSpec,
    finish_qat,
    observe,
    prepare_qat,
    quantize_dynamic,
    quantize_observed,
    quantize_static,
    use_integers,
)
from fairq_utils.quantizers.operations import Forward, attend
from fairq_utils.quantizers.survey import survey
from fairq_utils.quantizers.tracing import Site
from fairq_utils.training import architectures

BOTH = {"residuals": True, "attention_products": True}


def images(count: int = 8, side: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, side, mode="bilinear")
    return architectures.normalize((smooth * 255).to(torch.uint8))


def sqnr(reference: Tensor, other: Tensor) -> float:
    """Signal to quantization noise, in decibels."""
    return float(10 * torch.log10(reference.var() / (reference - other).var()).detach())


class Residual(nn.Module):
    """A convolution and its input, added in one of the ways that Python offers."""

    def __init__(self, how: str = "plus") -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(2, 2, 1), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "plus":
            return x + y
        if self.how == "torch":
            return torch.add(x, other=y)
        if self.how == "method":
            return x.add(y)
        if self.how == "sum":
            return sum([x, y])  # type: ignore[return-value]
        z = x.clone()
        z += y
        return z


class Attention(nn.Module):
    """One head set over (N, T, C), with queries, keys and values from one layer."""

    def __init__(self, how: str = "fused", width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.how, self.heads = nn.Linear(width, 3 * width), how, heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.how == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "einsum":
            scores = torch.einsum("nhqc,nhkc->nhqk", q, k) / q.shape[-1] ** 0.5
            y = torch.einsum("nhqk,nhkc->nhqc", scores.softmax(dim=-1), v)
        elif self.how == "bmm":
            q, k, v = (z.flatten(0, 1) for z in (q, k, v))
            scores = torch.bmm(q, k.transpose(1, 2)) / q.shape[-1] ** 0.5
            y = torch.bmm(F.softmax(scores, dim=-1), v).view(n, self.heads, t, -1)
        else:
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            y = F.dropout(scores.softmax(dim=-1), 0.1, self.training) @ v
        return y.transpose(1, 2).reshape(n, t, c)


# ---- by hand


@pytest.mark.parametrize("how", ["plus", "torch", "method", "sum", "in place"])
def test_an_addition_by_hand(how: str) -> None:
    model = Residual(how)
    with torch.no_grad():
        model.conv.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1))
        model.conv.bias.zero_()
    x = torch.tensor([[-1.0, 6.4], [14.0, 0.4]]).view(2, 2, 1, 1)
    spec = QuantSpec.parse("W8A4", residuals=True)
    quantized, report = quantize_static(model, spec, [x], layers={"conv": None})
    assert report.operations == {"addition": "A4"}
    # The input spans -1 to 14: step 1, zero-point 1. The output spans -2 to 28: step 2.
    assert quantized.operation_scales.tolist() == [1.0, 2.0]
    assert quantized.operation_zero_points.tolist() == [1, 1]
    # Operands -1, 6.4, 14, 0.4 and -2, 6.4, 28, 0.4 become -1, 6, 14, 0 and -2, 6, 28, 0.
    assert quantized(x).flatten().tolist() == [-3.0, 12.0, 42.0, 0.0]
    # Beyond the grid it saturates: 14 and, of 2 x 99, 28.
    assert quantized(torch.full((1, 2, 1, 1), 99.0))[0, 0].item() == 42.0


def test_attention_by_hand_from_the_integers_of_its_operands() -> None:
    torch.manual_seed(0)
    model, x = Attention(width=4, heads=1), torch.randn(3, 5, 4)
    spec = QuantSpec.parse("W8A4", attention_products=True)
    quantized, report = quantize_static(model, spec, [x], layers={"qkv": None})
    assert report.operations == {"queries x keys": "A4", "scores x values": "A4"}
    scales, zeros = quantized.operation_scales, quantized.operation_zero_points

    def integers(value: Tensor, row: int) -> Tensor:
        return torch.clamp(torch.round(value / scales[row]) + zeros[row], 0, 15) - zeros[row]

    q, k, v = model.qkv(x).view(3, 5, 3, 4).unbind(2)
    first = integers(q, 0) @ integers(k, 1).transpose(1, 2)
    assert torch.equal(first, first.round())
    scores = (first * scales[0] * scales[1] / 2).softmax(dim=-1)
    second = integers(scores, 2) @ integers(v, 3)
    torch.testing.assert_close(quantized(x), second * scales[2] * scales[3])


@pytest.mark.parametrize("how", ["unfused", "bmm", "einsum"])
def test_fused_and_unfused_attention_have_the_same_grids(how: str) -> None:
    torch.manual_seed(0)
    fused, x = Attention("fused"), torch.randn(4, 6, 8)
    unfused = copy.deepcopy(fused)
    unfused.how = how
    spec = QuantSpec(attention_products=True)
    first, report = quantize_static(fused, spec, [x])
    second, other = quantize_static(unfused, spec, [x])
    assert list(report.operations) == list(other.operations)
    torch.testing.assert_close(first.operation_scales, second.operation_scales)
    assert torch.equal(first.operation_zero_points, second.operation_zero_points)
    assert sqnr(first(x), second(x)) > 35
    assert sqnr(fused(x), first(x)) > 30


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.rand(2, 4, 5, 5) > 0.3},
        {"attn_mask": torch.randn(5, 5)},
        {"attn_mask": torch.zeros(5, 5).fill_diagonal_(-torch.inf)},
        {"attn_mask": (torch.arange(5) > 0).view(5, 1).expand(5, 5)},  # the first looks at nothing
        {"enable_gqa": True},
    ],
    ids=["plain", "scale", "causal", "mask", "bias", "infinite", "blind", "groups"],
)
def test_explicit_attention_is_that_of_torch(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8)
    if "enable_gqa" in options:
        k, v = k[:, :2], v[:, :2]
    expected = F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(
        attend(lambda _, x: x, q, k, v, **options),  # type: ignore[arg-type]
        expected,
    )


# ---- what is found


@pytest.mark.parametrize(
    ("name", "additions", "attentions", "gates"),
    [
        ("resnet50", 16, 0, 0),  # three, four, six and three blocks
        ("mobilenet_v2", 10, 0, 0),  # blocks of stride 1 that keep their channels
        ("efficientnet_b0", 9, 0, 16),  # one squeeze-and-excitation in every block
        ("vit_small", 24, 12, 0),  # two a block; the position embedding is a parameter
        ("squeezenet1_1", 0, 0, 0),
    ],
)
def test_operations_of_every_architecture(
    name: str, additions: int, attentions: int, gates: int
) -> None:
    model, x = architectures.build(name, image_size=64).eval(), images(2)
    found = survey(model, x)
    kinds = [operation.site.kind for operation in found.operations]
    assert (kinds.count("addition"), kinds.count("attention")) == (additions, attentions)
    silus = sum(isinstance(module, nn.SiLU) for module in model.modules())
    assert (kinds.count("gate"), kinds.count("SiLU")) == (gates, silus)
    assert len(kinds) == additions + attentions + gates + silus
    assert not found.direct and not found.read
    _, report = quantize_static(model, QuantSpec(), [x])
    said = {
        k: v for k, v in report.left_float.items() if k.split()[-1] in ("additions", "products")
    }
    expected = {}
    if additions:
        text = f"{additions} additions of two feature maps are computed in float"
        expected["residual additions"] = text
    if attentions:
        text = f"{2 * attentions} products of two feature maps are computed in float"
        expected["attention products"] = text
    assert said == expected
    assert report.left_float.get("gates") == (
        f"{gates} products of two feature maps are computed in float" if gates else None
    )
    assert not report.operations


class Gated(nn.Module):
    """A convolution, SiLU, and squeeze-and-excitation."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 6, 3), nn.SiLU(inplace)
        self.squeeze, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
def test_gates_and_silu_are_computed_from_their_grids(inplace: bool) -> None:
    torch.manual_seed(0)
    x, model = images(8, 16), Gated(inplace).eval()
    quantized, report = quantize_static(model, QuantSpec(gates=True, first_last_bits=None), [x])
    assert set(report.operations) == {"act: SiLU", "gate"}
    assert not {"act", "gates"} & set(report.left_float)

    def rounded(calibrated: Tensor, asked: Tensor) -> Tensor:
        low, high = min(float(calibrated.min()), 0.0), max(float(calibrated.max()), 0.0)
        scale = (high - low) / 255
        zero = round(-low / scale)
        return torch.fake_quantize_per_tensor_affine(asked, scale, zero, 0, 255)

    def silu(of: Tensor, plain: Tensor) -> Tensor:
        left = rounded(plain, of)
        return rounded(F.silu(plain), left * rounded(plain.sigmoid(), left.sigmoid()))

    with torch.no_grad():
        before = model.conv(x)
        features = silu(quantized.get_submodule("conv")(x), before)
        plain = F.silu(before)
        weight = model.squeeze(plain.mean((2, 3), keepdim=True)).sigmoid()
        gate = quantized.get_submodule("squeeze")(features.mean((2, 3), keepdim=True)).sigmoid()
        mixed = rounded(plain, features) * rounded(weight, gate)
        expected = quantized.get_submodule("head")(mixed.mean((2, 3)))
        found = quantized(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.std()) / 20)
    assert sqnr(expected, found) > 35


def test_gates_that_were_not_observed_are_asked_for_by_name() -> None:
    observed = observe(Gated().eval(), [images(4, 16)])
    with pytest.raises(ValueError, match="gates were not observed; give observe gates=True"):
        quantize_observed(observed, QuantSpec(gates=True))


@pytest.mark.parametrize("name", ["resnet50", "vit_small"])
def test_answers_stay_close_with_both_options(name: str) -> None:
    torch.manual_seed(0)
    model, x = architectures.build(name, image_size=64).eval(), images(8)
    nn.init.normal_(architectures.classifier(model).weight, std=0.2)
    if name == "vit_small":  # tokens of the size that training gives them
        nn.init.normal_(model.cls_token)
        nn.init.normal_(model.pos_embed, std=0.5)
    quantized, report = quantize_static(model, QuantSpec(**BOTH), [x])
    assert len(report.operations) == (16 if name == "resnet50" else 48)
    assert not {"residual additions", "attention products"} & set(report.left_float)
    with torch.no_grad():
        output = model(x)
        assert sqnr(output, quantized(x)) > 20
        use_integers(quantized)
        assert sqnr(output, quantized(x)) > 20
    if name == "vit_small":
        assert report.operations["blocks.0.attn: scores x values"] == "A8"
        assert report.operations["blocks.0: addition 2"] == "A8"


class Untraceable(nn.Module):
    """Control flow on values, a block that is called several times, and what is no feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()
        self.place = nn.Parameter(torch.randn(1, 2, 4, 4))
        self.register_buffer("shift", torch.randn(3, 2, 4, 4))
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place.flip(-1) + 1
        x = x + self.shift[: len(x)] * 2  # as many as the batch, and still a constant
        x = x + torch.zeros_like(x).masked_fill(x > 1e6, -torch.inf)
        for _ in range(3 if float(x.mean()) > 0 else 2):
            x = self.block(x)
        if float(x.mean()) > 1e6:
            x = x + x.flip(-1)
        return self.head((x + x.flip(-2)).mean(dim=(2, 3)))


def test_any_model_can_be_treated_and_constants_are_no_feature_maps() -> None:
    torch.manual_seed(0)
    model, x = Untraceable().eval(), torch.randn(3, 2, 4, 4)
    found = survey(model, x).operations
    first, second = found
    assert first.site == Site("block", "addition", 0)
    assert second.site == Site("", "addition", 3)  # after three with constants
    quantized, report = quantize_static(model, QuantSpec(residuals=True), [x, x + 1])
    assert report.operations == {"block: addition": "A8", "addition": "A8"}
    with torch.no_grad():
        assert sqnr(model(x), quantized(x)) > 25
        # The other way through the model: an operation that calibration did not see is in float.
        assert torch.isfinite(quantized(x + 1e7)).all()


class Direct(nn.Module):
    """Weights that no layer holds, and a layer whose weight somebody else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.kernel = nn.Parameter(torch.randn(2, 2, 1))
        self.inner, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)
        self.wave = nn.Conv1d(2, 2, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(self.inner(x), self.weight)
        x = F.linear(self.shared(x), self.shared.weight)
        x = torch.addmm(x[0], x[1], self.weight) @ self.weight
        x = F.conv1d(self.wave(x.view(2, 2, 4)), self.kernel)
        return self.normed(x)


def test_weights_that_are_used_directly_are_named() -> None:
    torch.manual_seed(0)
    outer = nn.Sequential(nn.Flatten(2), Direct())
    x = torch.randn(2, 4, 4)
    quantized, report = quantize_static(outer, QuantSpec(), [x])
    direct = {k: v for k, v in report.left_float.items() if "forward" in k}
    reason = "is called directly; it stays in float"
    expected = ("F.linear", "torch.addmm", "torch.matmul", "F.conv1d")
    assert direct == {f"1.forward: {name}": reason for name in expected}
    assert set(report.layers) == {"1.inner"}
    assert report.left_float["1.shared"] == (
        "its weight is also read by 1.forward; it stays in float"
    )
    assert "Conv1d" in report.left_float["1.wave"]
    assert "parametrized" in report.left_float["1.normed"]
    with torch.no_grad():
        assert sqnr(outer(x), quantized(x)) > 20


# ---- the model that comes back


def attentive() -> tuple[nn.Module, Tensor, nn.Module, QuantReport]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Attention(), Attention("unfused"))
    x = torch.randn(4, 6, 8)
    return model, x, *quantize_static(model, QuantSpec(**BOTH), [x])


def test_a_model_with_operations_is_copied_saved_and_loaded(tmp_path: Path) -> None:
    model, x, quantized, _ = attentive()
    output = quantized(x)
    assert [name for name, _ in quantized.named_modules() if "." not in name] == ["", "0", "1", "2"]
    assert len(quantized) == 3  # type: ignore[arg-type]
    assert inspect.signature(quantized.forward) == inspect.signature(model.forward)
    copied = copy.deepcopy(quantized)
    assert torch.equal(copied(x), output)
    copied.operation_scales.mul_(4)  # type: ignore[union-attr, operator]
    assert not torch.equal(copied(x), output)  # the copy reads its own grids,
    assert torch.equal(quantized(x), output)  # and the model its own
    copied.load_state_dict(quantized.state_dict())
    assert torch.equal(copied(x), output)
    torch.save(quantized, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(x), output)
    assert torch.equal(quantized.to("cpu", torch.float32)(x), output)
    assert quantized.state_dict()["operation_scales"].shape == (8,)


def test_size_counts_the_grids_of_operations() -> None:
    model, x, _, report = attentive()
    _, without = quantize_static(model, QuantSpec(), [x])
    assert report.size_bytes == without.size_bytes + 8 * 8  # a scale and a zero-point each
    assert len(report.to_dict()["operations"]) == 4


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.error = Residual(), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if self.error is not None:
            raise self.error
        return y + x


@pytest.mark.parametrize("error", [RuntimeError("inside"), KeyboardInterrupt()])
def test_nothing_is_left_behind_when_a_pass_breaks_off(error: BaseException) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 4)
    quantized, _ = quantize_static(Raising(), QuantSpec(residuals=True), [x])
    output = quantized(x)
    quantized.error = error  # type: ignore[assignment]
    with pytest.raises(type(error)):
        quantized(x)
    assert not _get_current_function_mode_stack()
    assert torch.equal(x + x, 2 * x)
    quantized.error = None  # type: ignore[assignment]
    assert torch.equal(quantized(x), output)


def test_a_pass_holds_on_to_no_tensor() -> None:
    _, x, quantized, _ = attentive()
    met: list[weakref.ref[Tensor]] = []
    quantized[1].register_forward_hook(  # type: ignore[index, union-attr, operator]
        lambda _, inputs, output: met.extend((weakref.ref(inputs[0]), weakref.ref(output)))
    )
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            quantized(x)
        assert [reference() for reference in met] == [None, None]
    finally:
        gc.enable()


def test_a_model_with_operations_can_be_exported() -> None:
    _, x, quantized, _ = attentive()
    with torch.no_grad():
        output = quantized(x)
        exported = torch.export.export(quantized, (x,)).module()
        assert sqnr(output, exported(x)) > 60
        assert torch.equal(quantized(x), output)


def test_quantized_models_can_stand_inside_others() -> None:
    _, x, quantized, _ = attentive()
    pair = nn.ModuleList([quantized, copy.deepcopy(quantized)])
    expected = quantized(x)
    assert torch.equal(pair[1](pair[0](x)), quantized(expected))


def test_without_the_options_nothing_is_entered() -> None:
    model, x, _, _ = attentive()
    quantized, _ = quantize_static(model, QuantSpec(), [x])
    assert "forward" not in vars(quantized)
    assert not hasattr(quantized, "operation_scales")
    with pytest.raises(ValueError, match="residuals were not observed; give observe residuals"):
        quantize_observed(observe(model, [x]), QuantSpec(residuals=True))
    observed = observe(model, [x], **BOTH)
    with pytest.raises(ValueError, match="ranges by 'mse' were not observed"):
        quantize_observed(observed, QuantSpec(activation_range="mse", **BOTH))
    quantized, _ = quantize_observed(observed, QuantSpec())  # observed, and not asked for
    assert "forward" not in vars(quantized)


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return torch.nan_to_num(y + (x - 2).sqrt())


def test_operands_that_are_not_finite_are_refused_by_name() -> None:
    x = torch.rand(3, 2, 4, 4)
    with pytest.raises(ValueError, match="the right of addition: a value is NaN or infinite"):
        quantize_static(Broken(), QuantSpec(residuals=True), [x])
    quantize_static(Broken(), QuantSpec(), [x])


@pytest.mark.parametrize("rounding", ["adaround", "block"])
def test_operations_join_learnt_roundings(rounding: str) -> None:
    model, x, _, _ = attentive()
    spec = QuantSpec.parse("W4A8", rounding=rounding, iterations=5, bias_correction=True, **BOTH)
    quantized, report = quantize_static(model, spec, [x])
    assert len(report.operations) == 4
    assert isinstance(vars(quantized)["forward"], Forward)
    with torch.no_grad():
        assert sqnr(model(x), quantized(x)) > 10


def test_training_goes_through_operations_and_leaves_their_grids() -> None:
    model, x, _, _ = attentive()
    spec = QuantSpec(**BOTH)
    observed = observe(model, [x], **BOTH)
    prepared = prepare_qat(observed, spec)
    grids = prepared.operation_scales.clone()  # type: ignore[operator]
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = prepared(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in prepared.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(prepared.operation_scales, grids)
    finished, report = finish_qat(prepared, observed, spec)
    assert len(report.operations) == 4
    with torch.no_grad():
        assert sqnr(prepared.eval()(x), finished(x)) > 40
    assert vars(finished)["forward"].model is finished


def test_dynamic_models_say_what_stays_in_float() -> None:
    model, x, _, _ = attentive()
    spec = QuantSpec(activation="dynamic")
    _, report = quantize_dynamic(model, spec, x)
    assert report.left_float["attention products"].startswith("4 products of two feature maps")
    _, report = quantize_dynamic(model, spec)
    assert "give an example" in report.left_float["operations between layers"]


# ---- transformers of torch, and layers called by keyword


class Encoder(nn.Module):
    """nn.TransformerEncoder over a padded sequence: positions of zeros are padding."""

    def __init__(self, padded: bool, heads: int = 2) -> None:
        super().__init__()
        self.padded = padded
        layer = nn.TransformerEncoderLayer(8, heads, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        padding = (x == 0).all(dim=-1)
        y = self.encoder(x, src_key_padding_mask=padding if self.padded else None)
        kept = (~padding).unsqueeze(-1)
        return self.head((y * kept).sum(dim=1) / kept.sum(dim=1))


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("options", [{}, BOTH], ids=["layers", "operations"])
def test_transformer_encoders_of_torch(padded: bool, options: dict[str, bool], grad: bool) -> None:
    torch.manual_seed(0)
    model, x = Encoder(padded).eval(), torch.randn(8, 6, 8)
    if padded:
        x[::2, 4:] = 0
    with torch.no_grad():
        expected = model(x)
    quantized, report = quantize_static(model, QuantSpec(**options), [x])
    with torch.set_grad_enabled(grad):
        assert sqnr(expected, quantized(x).detach()) > 20
    assert {f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)} < set(report.layers)
    attention = "encoder.layers.0.self_attn.forward: F.multi_head_attention_forward"
    assert report.left_float[attention] == "is called directly; its projections stay in float"
    assert len(report.operations) == (8 if options else 0)
    dynamic, report = quantize_dynamic(model, QuantSpec(activation="dynamic"), x)
    with torch.no_grad():
        assert sqnr(expected, dynamic(x)) > 20
    assert attention in report.left_float


@pytest.mark.parametrize("weights", [False, True])
def test_attention_of_torch_alone(weights: bool) -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(6, 6)
            y, _ = self.attention(x, x, x, need_weights=weights, attn_mask=mask)
            return self.head(y)

    torch.manual_seed(0)
    model, x = Alone().eval(), torch.randn(4, 6, 8)
    quantized, report = quantize_static(model, QuantSpec(**BOTH), [x])
    assert list(report.operations) == [
        "attention: queries x keys",
        "attention: scores x values",
    ]
    with torch.no_grad():
        assert sqnr(model(x), quantized(x)) > 25
        assert not torch.equal(quantized(x), quantize_static(model, QuantSpec(), [x])[0](x))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.clip, self.second = nn.ReLU6(), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.clip(input=self.norm(input=self.first(input=images)))
        return self.head(input=self.second(input=x).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "options",
    [{}, {"equalization": True}, {"bias_correction": True}, {"rounding": "block"}],
    ids=str,
)
def test_layers_can_be_called_by_keyword(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model, x = Keywords(), 3 * torch.randn(16, 2, 4, 4)
    model.norm.momentum = 1.0
    model.train()(images=x)
    model.eval()
    spec = QuantSpec(iterations=5, residuals=True, **options)  # type: ignore[arg-type]
    quantized, report = quantize_static(model, spec, [x])
    assert report.folded == ("first",)
    assert set(report.layers) == {"first", "second", "head"}
    with torch.no_grad():
        assert sqnr(model(x), quantized(images=x)) > 20
    with pytest.raises(ValueError, match="the input of the quantized model: a value is NaN"):
        quantized(images=x * torch.nan)
    dynamic, _ = quantize_dynamic(model, QuantSpec(activation="dynamic"), x)
    with torch.no_grad():
        assert sqnr(model(x), dynamic(images=x)) > 20
    prepared = prepare_qat(observe(model, [x]), QuantSpec())
    assert sqnr(model(x), prepared(images=x)) > 20
