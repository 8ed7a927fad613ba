"""Engines: the simulation's predictions, on integers, from files that can be relied on."""

from __future__ import annotations

import errno
import importlib.util
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import needs_kernels
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.data.whole_files import NotWritten
from fairq_utils.deploy import engines
from fairq_utils.deploy.engines.exported import export
from fairq_utils.deploy.engines.loaded_model import (
    FloatKernelsWarning,
    LoadedModel,
    NotExact,
    NotRunning,
    SaturationWarning,
)
from fairq_utils.deploy.engines.onnx_file import refine_weights, to_onnx, write_onnx
from fairq_utils.deploy.engines.qdq import to_qdq
from fairq_utils.deploy.engines.registry import ENGINES, NotInstalled, files, load, write
from fairq_utils.errors import BadInput
from fairq_utils.quantizers import QuantSpec, quantize_dynamic, quantize_static
from fairq_utils.quantizers.layers import Quantized

# Engines that read a file without a compiler.
FILES = tuple(name for name in ENGINES if not ENGINES[name].compiled)
OPTIONS = {"residuals": True, "attention_products": True, "activation_range": "mse"}
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")


@pytest.fixture(params=FILES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    try:
        engines.installed(name)
    except NotInstalled as error:
        pytest.skip(str(error))
    return name


class Convolutions(nn.Module):
    """Batch norms, ReLU6, a residual addition, a concatenation, max pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.deep_norm = nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.last, self.head = nn.Conv2d(16, 12, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem_norm(self.stem(x)))
        x = x + self.deep_norm(self.deep(x))
        x = self.pool(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], dim=1))
        return self.head(F.relu(self.last(x)).mean(dim=(2, 3)))


class Attending(nn.Module):
    """Patches, one block of attention with its residual addition, a head."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patches, self.heads = nn.Conv2d(3, width, 4, stride=4), heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        n, t, c = tokens.shape
        q, k, v = self.qkv(self.norm(tokens)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        return self.head((tokens + self.out(mixed)).mean(dim=1))


def pictures(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def settled(model: nn.Module) -> nn.Module:
    """With batch norms that have seen something."""
    model.train()
    with torch.no_grad():
        for seed in range(5):
            model(pictures(32, seed + 10))
    return model.eval()


def quantized(kind: type[nn.Module], bits: str) -> nn.Module:
    torch.manual_seed(0)
    spec = QuantSpec.parse(bits, **OPTIONS)
    return quantize_static(settled(kind()), spec, [pictures(64)])[0]


def answers(model: nn.Module, images: Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        out: NDArray[np.float32] = model(images).numpy()
    return out


def tolerance(model: nn.Module, steps: float) -> float:
    """How far an answer moves where every input of the head moves by so many steps of its grid."""
    head = model.get_submodule("head")
    assert isinstance(head, Quantized)
    return steps * float(head.input_scale) * float(head.weight().abs().sum(dim=1).max())


@pytest.mark.parametrize(
    ("engine", "bits"),
    [
        *(("onnxruntime", bits) for bits in ("W8A8", "W4A8")),
        *(pytest.param("openvino", bits, marks=needs_kernels) for bits in ("W8A8", "W4A8", "W4A4")),
    ],
    indirect=["engine"],
)
@pytest.mark.parametrize("kind", [Convolutions, Attending])
def test_engines_answer_as_the_simulation_does(
    kind: type[nn.Module], bits: str, engine: str, tmp_path: Path
) -> None:
    model, images = quantized(kind, bits), pictures(32, 1)
    write(model, engine, tmp_path, pictures(2), QuantSpec.parse(bits).weight_bits)
    found = load(engine, tmp_path, 1)
    # A sum on the edge between two integers may be rounded either way, and the next layers carry
    # it on: on a grid of four bits a step is sixteen times as wide.
    apart = np.abs(found(images.numpy()) - answers(model, images))
    assert np.median(apart) < tolerance(model, 0.25)
    assert apart.max() < tolerance(model, 1.5 if bits == "W4A4" else 0.5)


def test_every_thread_has_its_own_predictions(engine: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(Convolutions())
    write(model, engine, tmp_path, pictures(2))
    found = load(engine, tmp_path, 1)
    batches = [pictures(8 if seed % 2 else 3, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        asked = list(pool.map(lambda i: found(batches[i % 8].numpy()), range(400)))
    for i, logits in enumerate(asked):
        np.testing.assert_allclose(logits, answers(model, batches[i % 8]), atol=1e-4)


def test_an_engine_that_is_not_reentrant_is_asked_by_one_thread_at_a_time() -> None:
    inside: list[int] = []

    def logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
        inside.append(1)
        time.sleep(0.001)
        assert len(inside) == 1
        inside.pop()
        return images.reshape(len(images), -1)

    found = LoadedModel("slow", logits, 1)
    images = pictures(2).numpy()
    with ThreadPoolExecutor(4) as pool:
        assert all(len(out) == 2 for out in pool.map(lambda _: found(images), range(50)))
        batched = pool.map(lambda _: found.in_batches(images, 1), range(50))
        assert all(len(out) == 2 for out in batched)


def test_a_float_model_is_answered_in_float(engine: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = settled(Convolutions()), pictures(8, 1)
    write(model, engine, tmp_path, pictures(2))
    found = load(engine, tmp_path, 1)
    np.testing.assert_allclose(found(images.numpy()), answers(model, images), atol=1e-4)
    assert found.kernels is not None
    assert found.kernels.integer == 0


@pytest.mark.parametrize("kind", [Convolutions, Attending])
def test_standard_operators_are_the_simulation(kind: type[nn.Module]) -> None:
    model, images = quantized(kind, "W4A4"), pictures(8, 1)
    np.testing.assert_allclose(answers(to_qdq(model), images), answers(model, images), atol=1e-4)


class Summed(nn.Module):
    """Windows summed up by a pooling whose divisor is 1, which engines leave out of account."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AvgPool2d(2, divisor_override=1))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean((2, 3)))


class Between(nn.Module):
    """The same, as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.stem(x), 2, divisor_override=1).flatten(1)


@pytest.mark.parametrize(
    ("kind", "bits", "where"),
    [
        (Summed, "W8A8", r"in layer block\.1 \(AvgPool2d\), which alone is off by"),
        (Between, "float", "not in one layer: write that in another way"),
    ],
)
def test_a_file_that_computes_something_else_is_not_written(
    kind: type[nn.Module], bits: str, where: str, engine: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    if bits != "float":
        model = quantize_static(model, QuantSpec.parse(bits), [pictures(64)])[0]
    write(kind().eval(), engine, tmp_path, pictures(2), check=False)
    held = [path.read_bytes() for path in files(engine, tmp_path)]
    told = r"on the example the file's outputs differ from the model's by (\S+), where (\S+) is"
    with pytest.raises(NotExact, match=rf"{told} .*; it arises {where}") as refused:
        write(model, engine, tmp_path, pictures(2))
    found = re.search(told, str(refused.value))
    assert found is not None
    # What is off by a factor of four.
    write(model, engine, tmp_path / "as it comes", pictures(2), check=False)
    running = load(engine, tmp_path / "as it comes", 1)
    apart = np.abs(running(pictures(2).numpy()) - answers(model, pictures(2))).max()
    assert float(found[1]) == pytest.approx(apart, rel=0.01)
    assert apart > 10 * float(found[2])
    assert [path.read_bytes() for path in files(engine, tmp_path)] == held  # nothing is lost
    assert {path.name for path in tmp_path.iterdir()} == {*ENGINES[engine].files, "as it comes"}


def test_outputs_that_are_no_tensor_are_not_written(engine: str, tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"aux": x.sum((1, 2)), "out": x.mean((1, 2))}

    for check in (True, False):
        with pytest.raises(
            BadInput, match=r"returned dict with 'aux', 'out', and a file gives one"
        ):
            write(Two(), engine, tmp_path, pictures(2), check=check)
    assert not list(tmp_path.iterdir())


def test_an_input_that_was_constant_in_calibration_has_a_grid_in_every_engine(
    engine: str, tmp_path: Path
) -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 1)
            for layer, bias in ((self.first, -1.5), (self.second, -1.0)):
                nn.init.ones_(layer.weight)
                nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x))).mean((2, 3))

    # Never two channels at once, so that the sum never reaches 1.5.
    seen = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 16, 16).contiguous()
    model = quantize_static(Dead().eval(), QuantSpec.parse("W8A8"), [seen])[0]
    assert float(model.get_submodule("second").input_scale) < 1e-9  # type: ignore[arg-type]
    write(model, engine, tmp_path, seen)
    found = load(engine, tmp_path, 1)
    np.testing.assert_allclose(found(np.ones((2, 3, 16, 16), np.float32)), -1, atol=1e-4)


def test_on_processors_that_saturate_the_file_is_told_from_the_kernels(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that stops at 32,767 where two products are added, and one that is off anyway."""
    model, images = quantized(Convolutions, "W8A8"), pictures(2)
    really = ENGINES[reference].load

    def saturating(path: Path, threads: int) -> LoadedModel:
        held = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
        large = max(np.abs(w.astype(int)).max() for w in held if w.dtype == np.int8) > 64
        exact = really(path, threads).logits
        return LoadedModel("reference", lambda x: exact(x) + (0.5 if large else 0.0), 1)

    def off(path: Path, threads: int) -> LoadedModel:
        exact = really(path, threads).logits
        return LoadedModel("reference", lambda x: exact(x) + 0.5, 1)

    for available, loads, expected in (
        (False, saturating, pytest.warns(SaturationWarning, match=r"file is right, .* VNNI")),
        (False, off, pytest.raises(NotExact, match=r"by 0\.5\d*, where")),
        (True, saturating, pytest.raises(NotExact, match=r"by 0\.5\d*, where")),
    ):
        monkeypatch.setattr(
            "fairq_utils.quantizers.onednn.available", lambda available=available: available
        )
        monkeypatch.setitem(ENGINES._entries, reference, replace(ENGINES[reference], load=loads))
        with expected:
            write(model, reference, tmp_path, images)


def test_what_stays_float_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _ = quantize_static(Gated().eval(), QuantSpec.parse("W8A8"), [pictures(64)])
    with pytest.warns(FloatKernelsWarning, match=r"kernels for 0 of 6 quantized .* method 'gates'"):
        write(model, "onnxruntime", tmp_path, pictures(2))


class Clipped(nn.Module):
    """A clip that two convolutions read; their concatenation, pooled; dropout; a convolution."""

    def __init__(self, high: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.clip, self.drop = nn.Hardtanh(0.0, high), nn.Dropout(0.5)
        self.last = nn.Conv2d(8, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.clip(self.first(x))
        both = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], dim=1)
        return self.last(self.drop(F.max_pool2d(both, 2))).mean(dim=(2, 3))


def operators(model: nn.Module) -> tuple[nn.Module, list[str]]:
    program = export(model, pictures(2), any_batch=True, signed_products=False)
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    return program.module(), [n.target.__name__.split(".")[0] for n in calls]


@pytest.mark.parametrize("bits", ["W8A8", "W4A4"])
def test_what_is_moved_or_left_out_of_the_graph_changes_no_answer(bits: str) -> None:
    torch.manual_seed(0)
    model, _ = quantize_static(Clipped(0.4).eval(), QuantSpec.parse(bits), [pictures(64)])
    images = 3 * pictures(32, 1)  # many of them beyond the ranges of calibration
    module, names = operators(model)
    with torch.no_grad():
        assert torch.equal(module(images), to_qdq(model)(images))
    at = names.index("cat")
    assert names[at - 1] == "dequantize_per_tensor"  # both branches are rounded before
    assert names[at + 1] == "quantize_per_tensor"
    assert "hardtanh" not in names and "dropout" not in names


def test_a_clip_inside_the_grid_stays() -> None:
    torch.manual_seed(0)
    model, _ = quantize_static(Clipped(0.4).eval(), QuantSpec.parse("W8A8"), [pictures(64)])
    for name in ("left", "right"):
        model.get_submodule(name).set_input_range(0.0, 0.8)  # type: ignore[operator]
    images = 3 * pictures(32, 1)
    module, names = operators(model)
    with torch.no_grad():
        assert torch.equal(module(images), to_qdq(model)(images))
    assert "hardtanh" in names


class Sum(nn.Module):
    """Two channels added up by a convolution, and passed on by another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 1, 1), nn.Conv2d(1, 1, 1)
        for layer in (self.first, self.second):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).flatten(1)


@pytest.mark.parametrize("engine", ["openvino"], indirect=True)
def test_below_eight_bits_nothing_larger_than_the_grid_gets_through(
    engine: str, tmp_path: Path
) -> None:
    # Calibration sees 0 to 15 in each channel and in their sum: four bits, a step of 1.
    seen = torch.tensor([[0.0, 15.0], [15.0, 0.0]]).view(2, 2, 1, 1)
    spec = QuantSpec.parse("W4A4", first_last_bits=None)
    model = quantize_static(Sum().eval(), spec, [seen])[0]
    write(model, engine, tmp_path, seen, 4)
    found = load(engine, tmp_path, 1)
    asked = torch.tensor([[3.0, 4.0], [99.0, 0.0], [15.0, 15.0]]).view(3, 2, 1, 1)
    # 99 is 15 at the first layer's input; 15 + 15 is 15 at the second one's.
    np.testing.assert_allclose(found(asked.numpy()).ravel(), [7, 15, 15], atol=1e-4)
    np.testing.assert_allclose(answers(model, asked).ravel(), [7, 15, 15], atol=1e-4)


def weights_of(proto: onnx.ModelProto) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Values and scales of every weight that is kept as bytes."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            integers, scale, zero = (held[name] for name in node.input)
            shape = (-1, *[1] * (integers.ndim - 1))
            values = (integers - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)
            found.append((values, scale))
    return found


@pytest.mark.parametrize(("bits", "finer"), [("W2A8", 64), ("W3A8", 32), ("W6A8", 4), ("W8A8", 1)])
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_weights_of_few_bits_stand_on_finer_steps(bits: str, finer: int, scheme: str) -> None:
    torch.manual_seed(0)
    spec = QuantSpec.parse(bits, first_last_bits=None, weight_scheme=scheme)
    model, _ = quantize_static(Convolutions().eval(), spec, [pictures(64)])
    plain = weights_of(to_onnx(model, pictures(2)))
    refined = weights_of(to_onnx(model, pictures(2), fine_biases=True))
    assert len(plain) == len(refined) == 6
    used = finer if scheme == "symmetric" else max(finer // 2, 1)  # reaches down to -2**(b-1)
    for (values, scale), (same, step) in zip(plain, refined, strict=True):
        np.testing.assert_array_equal(same, values)
        np.testing.assert_array_equal(step * used, scale)


def test_a_weight_that_two_read_is_refined_once() -> None:
    """Each reader has a scale of its own, and both follow."""
    constants = {
        "w": np.array([-31, 5, 17], np.int8),
        "s1": np.array(0.5, np.float32),
        "s2": np.array(0.25, np.float32),
        "z1": np.array(0, np.int8),
        "z2": np.array(3, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", f"s{i}", f"z{i}"], [f"out{i}"]) for i in (1, 2)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "two", [], [], tensors)
    refine_weights(graph)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert found["w"].tolist() == [-124, 20, 68]
    assert (float(found["s1"]), float(found["s2"])) == (0.125, 0.0625)
    assert (int(found["z1"]), int(found["z2"])) == (0, 12)


def test_onnx_runtime_refuses_what_its_biases_would_change(tmp_path: Path) -> None:
    model = quantized(Convolutions, "W4A4")
    with pytest.raises(NotExact, match=r"layer deep: .* 4-bit inputs .* take OpenVINO"):
        write(model, "onnxruntime", tmp_path, pictures(2), 4)
    assert not list(tmp_path.iterdir())


def test_what_onnx_runtime_changes_is_the_rounding_of_biases(tmp_path: Path) -> None:
    model, images = quantized(Convolutions, "W8A8"), pictures(256, 1)
    write(model, "onnxruntime", tmp_path, images[:2])
    found = load("onnxruntime", tmp_path, 1)(images.numpy())
    exact = answers(model, images)
    for layer in model.modules():
        if isinstance(layer, Quantized) and layer.bias is not None:
            step = layer.input_scale * layer.weight_scale.flatten()
            layer.bias.copy_((layer.bias / step).round() * step)
    apart = [np.quantile(np.abs(found - of), 0.9) for of in (exact, answers(model, images))]
    assert apart[0] > 20 * apart[1]


def test_openvino_computes_every_layer_on_integers(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    write(quantized(Convolutions, "W8A8"), "openvino", tmp_path, pictures(2))
    kernels = load("openvino", tmp_path, 1).kernels
    assert kernels is not None
    assert kernels.floating == 0
    assert kernels.integer == 6


def test_onnx_runtime_computes_on_integers_what_is_rounded_behind(tmp_path: Path) -> None:
    write(quantized(Convolutions, "W8A8"), "onnxruntime", tmp_path, pictures(2))
    kernels = load("onnxruntime", tmp_path, 1).kernels
    assert kernels is not None
    # The last convolution's answer is averaged in float, and the head's is the logits.
    assert kernels.integer >= 4
    assert kernels.integer + kernels.floating == 6


class Gated(nn.Module):
    """SiLU and squeeze-and-excitation between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.deep(F.silu(self.stem(x))))
        x = x * self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(F.silu(self.last(x)).mean((2, 3)))


def test_gates_bring_what_is_behind_convolutions_to_integers(engine: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kernels = {}
    for gates in (False, True):
        spec = QuantSpec.parse("W8A8", gates=gates, **OPTIONS)
        model, _ = quantize_static(Gated().eval(), spec, [pictures(64)])
        write(model, engine, tmp_path / str(gates), pictures(2))
        found, images = load(engine, tmp_path / str(gates), 1), pictures(32, 1)
        apart = np.abs(found(images.numpy()) - answers(model, images))
        assert np.median(apart) < tolerance(model, 0.25)
        assert apart.max() < tolerance(model, 1.0)
        kernels[gates] = found.kernels
    before, after = kernels[False], kernels[True]
    assert before is not None and after is not None
    if engine == "openvino":  # fuses SiLU either way
        assert after.floating == 0
        return
    assert after.integer >= before.integer + 3
    assert {"QLinearSigmoid", "QLinearMul", "QLinearGlobalAveragePool"} <= set(after.names)


def test_four_bits_are_packed_two_to_a_byte(engine: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 256), nn.ReLU(), nn.Linear(256, 2))
    spec = QuantSpec.parse("W4A8", first_last_bits=None)
    four = quantize_static(model.eval(), spec, [pictures()])[0]
    sizes = {}
    for bits in (4, 8):
        paths = write(four, engine, tmp_path / str(bits), pictures(2), bits)
        sizes[bits] = sum(path.stat().st_size for path in paths)
    values = 768 * 256 + 256 * 2
    assert sizes[8] > values
    assert 0.49 * values < sizes[8] - sizes[4] < 0.51 * values
    same = [load(engine, tmp_path / str(bits), 1)(pictures(5, 1).numpy()) for bits in (4, 8)]
    # ONNX Runtime rounds the biases of the packed file more finely.
    np.testing.assert_allclose(same[0], same[1], atol=1e-3 if engine == "onnxruntime" else 1e-5)


def test_batches_of_any_size(engine: str, tmp_path: Path) -> None:
    model, images = quantized(Convolutions, "W8A8"), pictures(9, 1)
    write(model, engine, tmp_path, pictures(2))
    found = load(engine, tmp_path, 1)
    assert found.batch is None
    whole = found(images.numpy())
    for size in (1, 4):
        parts = [found(np.ascontiguousarray(part)) for part in np.split(images.numpy(), [size])]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
        np.testing.assert_allclose(found.in_batches(images.numpy(), size), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (np.zeros((2, 3, 16, 16)), "float64, 3x16x16 each"),
        (np.zeros((2, 3, 16, 17), np.float32), "float32, 3x16x17 each"),
        (np.zeros((2, 16, 16, 3), np.float32), "float32, 16x16x3 each"),
        (np.zeros((2, 0), np.uint8), "uint8, 0 each"),
    ],
)
def test_what_is_no_such_image_is_refused(
    asked: NDArray[np.float32], found: str, engine: str, tmp_path: Path
) -> None:
    write(quantized(Convolutions, "W8A8"), engine, tmp_path, pictures(2), check=False)
    running = load(engine, tmp_path, 1)
    for ask in (running, lambda images: running.in_batches(images, 2)):
        with pytest.raises(ValueError, match=f"{engine}: images are {found}, .* float32, 3x16x16"):
            ask(asked)
    with pytest.raises(ValueError, match="0 images in batches of 2; give at least one of each"):
        running.in_batches(np.zeros((0, 3, 16, 16), np.float32), 2)


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        (pictures(1), r"example has shape \(1, 3, 16, 16\); give 2 or more images"),
        (pictures(2)[0], r"example has shape \(3, 16, 16\); give 2 or more images"),
        (pictures(2).double(), r"example is torch\.float64, not a float32 tensor"),
        (pictures(2).numpy(), "example is ndarray, not a float32 tensor"),
    ],
)
def test_an_example_of_another_kind_is_refused(
    example: Tensor, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        write(Convolutions().eval(), "onnxruntime", tmp_path, example)


def test_a_model_that_cannot_be_followed_is_named(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2] if x.sum() > 0 else x.flatten(1)[:, 2:4]

    with pytest.raises(NotRunning, match=r"Branching: torch\.export cannot follow this model on"):
        write(Branching(), "onnxruntime", tmp_path, pictures(2))


def test_inductor_refuses_weights_with_zero_points(tmp_path: Path) -> None:
    spec = QuantSpec.parse("W8A8", weight_scheme="affine")
    model, _ = quantize_static(settled(Convolutions()), spec, [pictures(16)])
    with pytest.raises(NotExact, match="layer stem: Inductor's integer kernels take weights"):
        write(model, "inductor", tmp_path, pictures(2))


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An engine of this file's: ONNX's own evaluator, in float, on one thread whatever is asked."""

    def write_reference(model: nn.Module, example: Tensor, path: Path, weight_bits: int) -> None:
        write_onnx(to_onnx(model, example, weight_bits), path)

    def load_reference(path: Path, threads: int) -> LoadedModel:
        if threads > 8:
            raise ImportError("libreference.so: cannot open shared object file")
        session = ReferenceEvaluator(str(path))
        return LoadedModel("reference", lambda x: session.run(None, {"images": x})[0], 1)

    monkeypatch.setattr(ENGINES, "_added", {})  # it is gone after the test
    entry = engines.engine(
        "reference",
        label="ONNX's reference",
        package="onnx",
        file="reference.onnx",
        write=write_reference,
        load=load_reference,
    )
    assert entry is ENGINES["reference"]
    yield entry.name


def test_an_engine_from_elsewhere_is_one_statement(reference: str, tmp_path: Path) -> None:
    assert list(ENGINES) == ["inductor", "onnxruntime", "openvino", reference]
    assert engines.installed(reference) == onnx.__version__
    model, images = quantized(Convolutions, "W4A8"), pictures(8, 1)
    assert write(model, reference, tmp_path, pictures(2), 4) == files(reference, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.onnx"]
    apart = np.abs(load(reference, tmp_path, 1)(images.numpy()) - answers(model, images))
    assert apart.max() < tolerance(model, 0.5)
    taken = {key: value for key, value in vars(ENGINES[reference]).items() if key != "name"}
    with pytest.raises(
        BadInput, match=r"engine 'openvino' already, in .*\.engines\.openvino; take"
    ):
        engines.engine("openvino", **taken)


def test_an_engine_that_cannot_be_imported_says_so(reference: str, tmp_path: Path) -> None:
    write(Convolutions().eval(), reference, tmp_path, pictures(2))
    with pytest.raises(NotInstalled, match=r"reference is installed but cannot .* \(libreference"):
        load(reference, tmp_path, 9)


def test_batches_are_filled_up_and_cut() -> None:
    asked: list[int] = []

    def echo(images: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(len(images))
        assert images.flags.c_contiguous
        return images.reshape(len(images), -1)

    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    assert LoadedModel("echo", echo, 1).in_batches(images, 2).ravel().tolist() == [0, 1, 2, 3, 4]
    assert asked == [2, 2, 2]
    asked.clear()
    fixed = LoadedModel("echo", echo, 1, batch=8)
    assert fixed.in_batches(images, 2).ravel().tolist() == [0, 1, 2, 3, 4]
    assert asked == [8]
    asked.clear()  # a first batch that is small and may be is not filled up
    assert LoadedModel("echo", echo, 1).in_batches(images, 64).ravel().tolist() == [0, 1, 2, 3, 4]
    assert asked == [5]


def test_what_has_no_integer_kernel_is_refused(engine: str, tmp_path: Path) -> None:
    model = settled(Convolutions())
    dynamic = quantize_dynamic(model, QuantSpec.parse("W8A8", activation="dynamic"), pictures(2))[0]
    with pytest.raises(NotExact, match=r"layer stem: dynamic ranges.*use activation='static'"):
        write(dynamic, engine, tmp_path, pictures(2))
    grouped = QuantSpec.parse("W8A8", weight_granularity="group", group_size=4)
    model = quantize_static(model, grouped, [pictures()])[0]
    with pytest.raises(NotExact, match=r"layer stem: weights with a scale per group.*'channel'"):
        write(model, engine, tmp_path, pictures(2))
    assert not list(tmp_path.iterdir())


def test_an_engine_that_is_not_there_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    really = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in ("openvino", "torch") else really(name, package)

    monkeypatch.setattr("importlib.util.find_spec", without)
    with pytest.raises(NotInstalled, match=r"OpenVINO is .*pip install 'fairq_utils\[engines\]'"):
        engines.installed("openvino")
    with pytest.raises(NotInstalled, match=r"Inductor is not .*pip install 'torch' brings it"):
        engines.installed("inductor")
    assert engines.installed("onnxruntime") == onnxruntime.__version__
    with pytest.raises(BadInput, match=r"engine: 'onnx' is unknown; did you mean 'onnxruntime'\?"):
        engines.installed("onnx")


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_that_is_damaged_or_missing_is_named(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(ENGINES[name].package) is None:
        pytest.skip(f"{name} is not installed")
    paths = files(name, tmp_path)
    with pytest.raises(NotRunning, match=rf"{paths[0].name}: there is no such file; export the"):
        load(name, tmp_path, 1)
    for path in paths:
        path.write_bytes(b"no model")
    with pytest.raises(NotRunning, match=rf"{paths[0].name}: .* cannot load this .*; export the"):
        load(name, tmp_path, 1)


def test_a_file_cut_short_is_named(engine: str, tmp_path: Path) -> None:
    for path in write(quantized(Convolutions, "W8A8"), engine, tmp_path, pictures(2)):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(NotRunning, match=r"model\..*: .* cannot load this file .*; export"):
            load(engine, tmp_path, 1)
        path.write_bytes(whole)
    assert load(engine, tmp_path, 1)(pictures(2).numpy()).shape == (2, 2)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="Inductor needs a C++ compiler")
def test_inductor_answers_on_integers_in_its_batch_size(tmp_path: Path) -> None:
    model, images = quantized(Convolutions, "W4A4"), pictures(7, 1)
    write(model, "inductor", tmp_path, pictures(4))
    found = load("inductor", tmp_path, 1)
    assert found.batch == 4
    assert found.kernels is not None
    assert (found.kernels.integer, found.kernels.floating) == (6, 0)
    apart = np.abs(found.in_batches(images.numpy(), 2) - answers(model, images))
    assert apart.max() < tolerance(model, 2)


def test_no_place_for_temporary_files_is_said(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, example = Convolutions().eval(), torch.randn(2, 3, 16, 16)
    write(model, engine, tmp_path / "written", example)

    def nowhere(*_: object, **__: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "mkdtemp", nowhere)
    said = "No usable temporary directory.*TMPDIR"
    with pytest.raises(NotWritten, match=said):
        write(model, engine, tmp_path / "again", example)
    assert not list((tmp_path / "again").iterdir())
    if engine == "onnxruntime":  # loads through such a folder too
        with pytest.raises(NotWritten, match=said):
            load(engine, tmp_path / "written", 1)


def test_a_full_disk_leaves_no_half_of_a_model(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, place: Path, *__: object) -> None:
        Path(place).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    if engine == "openvino":
        monkeypatch.setattr(shutil, "copyfile", full)
    else:
        monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(NotWritten, match=r"model\.\w+: could not be written \(No space left"):
        write(Convolutions().eval(), engine, tmp_path, torch.randn(2, 3, 16, 16))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(engine: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotWritten, match=r"file/deep: could not be written \(Not a directory"):
        write(Convolutions().eval(), engine, tmp_path / "file" / "deep", torch.randn(2, 3, 16, 16))
