"""Models and modes as callers have them: copied or refused in one sentence, never changed."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from fairq_utils import (
    BadInput,
    FairnessAwareQuantizer,
    apply_quantization,
    compare_quantization_methods,
)
from fairq_utils.mitigation import as_sample, observe_groups, pool_features, pool_losses
from fairq_utils.quantizers import (
    QuantSpec,
    finish_qat,
    observe,
    prepare_qat,
    quantize_dynamic,
    quantize_static,
)
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.modes import usual_modes

N = 80
METHODS = ("ptq", "bias_aware_calibration", "qat", "block", "channels_worst", "dynamic")


class Net(nn.Module):
    """Three layers and a batch norm; what ``stored`` names is left behind by a forward pass."""

    def __init__(self, **stored: Any) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.mid, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
        for name, value in stored.items():
            setattr(self, name, value)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.features = torch.relu(self.norm(self.stem(x)))
        self.maps = {"mid": [torch.relu(self.mid(self.features))]}
        out: Tensor = self.head(self.maps["mid"][0].mean((2, 3)))
        return out


def net(**stored: Any) -> Net:
    torch.manual_seed(0)
    made = Net(**stored).eval()
    made.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    return made


def rows() -> tuple[Tensor, Tensor, dict[str, list[str]]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(N, 3, 4, 4, generator=generator, dtype=torch.float32)
    return images, (images[:, 0].mean((1, 2)) > 0).long(), {"gender": ["f", "m"] * (N // 2)}


def steps(method: str) -> dict[str, int]:
    """Few, where roundings are learnt."""
    return {"iterations": 2} if method == "block" else {}


def applied(model: nn.Module, method: str = "ptq", **options: Any) -> nn.Module:
    own = {"budget": 0.9} if method.startswith("channels") else {}
    return apply_quantization(
        model, method, 8, [rows()], first_last_bits=None, **own, **steps(method), **options
    )


def exported_here(model: nn.Module) -> object:
    from fairq_utils.deploy.engines.exported import export

    return export(model, rows()[0][:2], any_batch=True, signed_products=False).module()


def trained(model: nn.Module) -> nn.Module:
    spec = QuantSpec(first_last_bits=None)
    observed = observe(model, [rows()[0]])
    return finish_qat(prepare_qat(observed, spec), observed, spec)[0]


def certified(model: nn.Module) -> nn.Module:
    asked = FairnessAwareQuantizer(making_images=N // 2, outputs="logits")
    return asked.quantize(model, [rows()], fairness_constraint=False)


def compared(model: nn.Module) -> object:
    return compare_quantization_methods(
        model, ["PTQ_INT8", "BLOCK_INT8"], [rows()], ["gender"], [rows()],
        replicates=20, iterations=2,
    ).table  # fmt: skip


CALLS: dict[str, Callable[[nn.Module], object]] = {
    **{method: lambda model, method=method: applied(model, method) for method in METHODS},
    "quantize_static": lambda model: quantize_static(model, QuantSpec(), [rows()[0]]),
    "quantize_dynamic": lambda model: quantize_dynamic(model, QuantSpec(activation="dynamic")),
    "observe_groups": lambda model: observe_groups(model, as_sample(*rows())),
    "prepare_qat": trained,
    "pool_features": lambda model: pool_features(model, rows()[0]),
    "pool_losses": lambda model: pool_losses(model, *rows()[:2]),
    "FairnessAwareQuantizer": certified,
    "compare": compared,
    "export": exported_here,
}


def pruned(model: Net, name: str) -> None:
    prune.l1_unstructured(model.mid, name, amount=0.5)


COMPUTED: dict[str, Callable[[Net], Any]] = {
    "weight_norm": lambda model: weight_norm(model.mid),
    "spectral_norm": lambda model: spectral_norm(model.mid).eval(),
    "pruned weight": lambda model: pruned(model, "weight"),
    "pruned bias": lambda model: pruned(model, "bias"),
    "parametrized weight_norm": lambda model: parametrizations.weight_norm(model.mid),
    "parametrized spectral_norm": lambda model: parametrizations.spectral_norm(model.mid).eval(),
    "orthogonal": lambda model: parametrizations.orthogonal(model.mid),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("way", COMPUTED)
@pytest.mark.parametrize("call", ["ptq", "qat", "block", "quantize_dynamic", "compare", "export"])
def test_computed_weights_stay_in_float(way: str, call: str) -> None:
    model = net()
    COMPUTED[way](model)
    model(rows()[0])  # with gradients: what it leaves behind is no leaf
    found = CALLS[call](model)
    if call in ("ptq", "qat", "block"):
        assert "parametrized; remove" in found.report.left_float["mid"]  # type: ignore[attr-defined]
        close = applied(net())(rows()[0]) if call == "ptq" and "pruned" not in way else None
        assert close is None or found(rows()[0]).shape == close.shape  # type: ignore[operator]


@pytest.mark.parametrize("call", CALLS)
def test_what_a_forward_pass_left_is_copied_and_kept(call: str) -> None:
    model = net(lock=threading.Lock(), np=np, random=torch.Generator())
    model(rows()[0])
    features, maps, calls = model.features, model.maps["mid"][0], model.calls
    before = copy.deepcopy(model.state_dict())
    CALLS[call](model)
    assert model.features is features and model.maps["mid"][0] is maps and model.calls == calls
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert features.grad_fn is not None and not model.training


@pytest.mark.parametrize("call", CALLS)
def test_what_cannot_be_copied_is_named(call: str) -> None:
    model = net()
    model.stem.sink = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(BadInput, match=r"the attribute stem\.sink, generator, cannot be copied"):
        CALLS[call](model)


@pytest.mark.parametrize(
    "value", [threading.Condition(), [threading.Event()], iter(io.BytesIO()), {"a": object.__new__}]
)
def test_others_are_named_or_copied(value: Any) -> None:
    model = net(other=value)
    try:
        pickled = copy.deepcopy(value)
    except TypeError:
        with pytest.raises(BadInput, match="example: the attribute other, "):
            copied(model, "example")
    else:
        del pickled
        assert isinstance(copied(model, "example").other, type(value))


def test_an_open_file(tmp_path: Any) -> None:
    sentence = "the attribute log, TextIOWrapper, cannot be copied"
    with (tmp_path / "log.txt").open("w") as log, pytest.raises(BadInput, match=sentence):
        applied(net(log=log))


# ---- modes


@contextmanager
def default_dtype(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def switched_off() -> Iterator[None]:
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": switched_off,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
    "device": lambda: torch.device("meta"),
    "set_default_device": default_device,
}


def state() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"), torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def usual() -> dict[str, Tensor]:
    return {method: applied(net(), method)(rows()[0]).detach() for method in METHODS}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_a_callers_mode_changes_nothing(mode: str, method: str, usual: dict[str, Tensor]) -> None:
    model, batch = net(), rows()
    own = {"budget": 0.9} if method.startswith("channels") else {}
    with MODES[mode]():
        before = state()
        found: Any = apply_quantization(
            model, method, 8, [batch], first_last_bits=None, **own, **steps(method)
        )
        assert state() == before
    assert torch.equal(found(batch[0]).detach(), usual[method])
    if method != "dynamic":
        assert found.report.folded == ("stem",)
    values = (*found.parameters(), *found.buffers())
    assert not any(x.is_inference() for x in values)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast", "float64"])
@pytest.mark.parametrize(
    "call", ["quantize_static", "prepare_qat", "compare", "FairnessAwareQuantizer", "export"]
)
def test_other_calls_in_a_callers_mode(mode: str, call: str) -> None:
    model = net()
    wanted = CALLS[call](model)
    with MODES[mode]():
        found = CALLS[call](model)
    if isinstance(found, nn.Module):
        images = rows()[0]
        assert torch.equal(found(images), wanted(images))  # type: ignore[operator]
    elif call == "compare":
        assert found.equals(wanted)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_and_images_made_in_inference_mode(method: str, usual: dict[str, Tensor]) -> None:
    own = {"budget": 0.9} if method.startswith("channels") else {}
    with torch.inference_mode():
        model, (images, labels, groups) = net(), rows()
        model(images)
    half = slice(0, N // 2)
    data = [(images[half], labels[half], {"gender": groups["gender"][half]})] * 2
    for given, train in (([(images, labels, groups)], None), (data, data)):
        found = apply_quantization(
            model, method, 8, given, train_data=train, first_last_bits=None, **own, **steps(method)
        )
        if train is None:
            assert torch.equal(found(rows()[0]).detach(), usual[method])


def test_modes_of_threads_and_of_contexts_within_each_other() -> None:
    with default_dtype(torch.float64):
        with ExitStack() as stack:
            stack.enter_context(usual_modes())
            stack.enter_context(usual_modes())
            assert torch.get_default_dtype() == torch.float32
            done = threading.Thread(target=lambda: stack.enter_context(usual_modes()).__class__)
            done.start()
            done.join()
        assert torch.get_default_dtype() == torch.float64


# ---- wrapped, compiled, exported and quantized modules


class Inside(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


@pytest.mark.parametrize("call", ["ptq", "qat", "quantize_static", "compare", "export"])
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
@pytest.mark.parametrize("around", [lambda x: x, Inside])
def test_compiled_and_parallel_models(call: str, wrap: Any, around: Any) -> None:
    found: Any = CALLS[call](around(wrap(net())))
    if call in ("ptq", "qat"):
        expected = applied(net(), call)
        assert [name.removeprefix("inner.") for name in found.report.layers] == list(
            expected.report.layers  # type: ignore[arg-type, union-attr]
        )
        assert torch.equal(found(rows()[0]), expected(rows()[0]))


def exported() -> nn.Module:
    module: nn.Module = torch.export.export(net(), (rows()[0],)).module()
    return module


def quantized_by_torch() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


def prepared_by_torch() -> nn.Module:
    model = nn.Sequential(net()).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    return torch.ao.quantization.prepare_qat(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", [name for name in CALLS if name != "observe_groups"])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (exported, "comes from torch.export, and has no layers left"),
        (lambda: Inside(exported()), "layer inner comes from torch.export"),
        (lambda: torch.jit.trace(net(), rows()[0]), "is scripted .*; give the module"),
        (quantized_by_torch, "head is quantized already, .*; give the float model"),
        (prepared_by_torch, "is quantized already, or prepared for it"),
        (lambda: torch.export.export(net(), (rows()[0],)), "is ExportedProgram, .* exported from"),
    ],
)
def test_models_without_layers_are_refused(call: str, make: Any, sentence: str) -> None:
    with pytest.raises((BadInput, TypeError), match=sentence):
        CALLS[call](make())


def test_float_models_with_places_for_quantization() -> None:
    class Ready(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stub, self.net, self.add = (
                torch.ao.quantization.QuantStub(),
                net(),
                FloatFunctional(),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(self.stub(x))
            return self.add.add(y, y)

    assert applied(Ready()).report.layers  # type: ignore[union-attr]


class Exponential(nn.Module):
    """What ONNX has no operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(self.layer(x)).mean((2, 3))


class Reading(Exponential):
    """What a graph cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3)) * float(x.sum().item() > 0) if x.sum() > 0 else x


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "inductor"])
@pytest.mark.parametrize("make", [Exponential, Reading])
def test_an_exporters_error_is_a_sentence(engine: str, make: Any, tmp_path: Any) -> None:
    from fairq_utils.deploy.engines import NotRunning, write

    if engine == "inductor" and make is Exponential:
        pytest.skip("it can compile this one")
    with pytest.raises(NotRunning, match="cannot") as caught:
        write(make().eval(), engine, tmp_path / "model", rows()[0])
    assert "\n" not in str(caught.value)


# ---- saving


class Whole(Net):
    """Also an addition, a gate and a product of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = (x + self.mid(x)) * torch.sigmoid(x)
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).unsqueeze(1).chunk(3, -1)
        out: Tensor = self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean((1, 2)))
        return out


SAVED: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: applied(Whole().eval()),
    "operations": lambda: applied(Whole().eval(), "gates"),
    "residuals": lambda: applied(Whole().eval(), residuals=True),
    "group": lambda: applied(Whole().eval(), weight_granularity="group", group_size=2),
    "affine": lambda: applied(Whole().eval(), weight_scheme="affine"),
    "dynamic": lambda: applied(Whole().eval(), "dynamic"),
    "weight_only": lambda: applied(Whole().eval(), "weight_only"),
    "qat": lambda: applied(Whole().eval(), "qat", residuals=True),
    "block": lambda: applied(Whole().eval(), "block", gates=True),
    "kept": lambda: apply_quantization(
        Whole().eval(), "channels_worst", 4, [rows()], budget=0.9, residuals=True
    ),
    "kept in float": lambda: applied(Whole().eval(), "channels_worst"),
    "tied": lambda: tied(),
}


def tied() -> nn.Module:
    """One layer in two places, and two layers that share a bias."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48))
    model.append(model[1])
    model[3].bias = model[1].bias
    model.append(nn.Linear(48, 2))
    return applied(model.eval())


@pytest.mark.parametrize("kind", SAVED)
def test_a_saved_model_comes_back(kind: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = SAVED[kind]()
    wanted = model(rows()[0])
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copied(model, "saved")):
        assert torch.equal(again(rows()[0]), wanted)
    place = tmp_path / "model.pt"
    torch.save(model, place)
    again = torch.load(place, weights_only=False)
    assert torch.equal(again(rows()[0]), wanted)
    empty = copy.deepcopy(model)
    for value in empty.state_dict().values():
        value.zero_()
    torch.save(model.state_dict(), place)
    empty.load_state_dict(torch.load(place))
    assert torch.equal(empty(rows()[0]), wanted)
    safetensors = pytest.importorskip("safetensors.torch")
    for value in empty.state_dict().values():
        value.zero_()
    safetensors.save_model(model, tmp_path / "model.safetensors")
    safetensors.load_model(empty, tmp_path / "model.safetensors")
    assert torch.equal(empty(rows()[0]), wanted)
    assert torch.equal(model(rows()[0]), wanted)


# ---- what one output is


def test_outputs_of_a_certified_model() -> None:
    """Logits between 0 and 1 are told from probabilities by what is said of them."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    nn.init.zeros_(body[1].weight)
    nn.init.constant_(body[1].bias, 0.5)
    with torch.no_grad():
        body[1].weight[0, 0] = 0.01
    asked = FairnessAwareQuantizer(making_images=N // 2, max_dp_gap=0.9)
    with pytest.raises(BadInput, match=r"say outputs='probabilities'.* or outputs='logits'"):
        asked.quantize(body, [rows()])
    asked.outputs = "probabilities"
    with pytest.raises(BadInput, match="give the model without the sigmoid at its end"):
        asked.quantize(body, [rows()])
    asked.outputs = "logits"
    quantized = asked.quantize(body, [rows()], fairness_constraint=False)
    found, wanted = quantized(rows()[0]), body(rows()[0])
    assert ((found > 0) == (wanted > 0)).all() and (wanted > 0).all()
    assert asked.report is not None and asked.final_dp_gap >= 0
    asked.outputs = "odds"
    with pytest.raises(BadInput, match="outputs: 'odds' is neither of logits, probabilities"):
        asked.quantize(body, [rows()])


@pytest.mark.parametrize("replaced", ["forward", "_conv_forward"])
@pytest.mark.parametrize("call", ["quantize_static", "quantize_dynamic", "ptq"])
def test_a_layer_whose_forward_was_replaced_stays_in_float(call: str, replaced: str) -> None:
    model = net()
    own = getattr(model.stem, replaced)
    setattr(model.stem, replaced, lambda *given: 2 * own(*given))
    found = CALLS[call](model)
    assert isinstance(found, tuple | nn.Module)
    quantized, report = found if isinstance(found, tuple) else (found, found.report)
    assert "stem" not in report.layers and "replaced" in report.left_float["stem"]
    images = rows()[0]
    torch.testing.assert_close(quantized(images), model(images), rtol=0.1, atol=0.1)
