"""Checks that refuse a model or images before they lead to a wrong output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn.parameter import is_lazy

from fairq_utils.errors import BadInput, Fault
from fairq_utils.quantizers.spec import QuantSpec

ELSEWHERE = (".quantized", ".qat", ".fake_quantize", ".observer")  # in names of torch.ao's modules
OTHERS = ("torchao", "bitsandbytes", "quanto", "optimum.quanto")


def check_finite(x: Tensor, what: str) -> None:
    """Refuse values that no range can hold."""
    x = x.detach()
    # NaN is both the smallest and the largest of any values.
    if x.numel() and not torch.isfinite(torch.stack([x.amin(), x.amax()])).all():
        raise ValueError(f"{what}: a value is NaN or infinite; check the images and the model")


def check_module(model: nn.Module, what: str) -> None:
    """Refuse what is no module, and modules whose layers cannot be replaced."""
    if not isinstance(model, nn.Module):
        exported = isinstance(model, torch.export.ExportedProgram)
        way = "; give the module that it was exported from" if exported else ""
        raise TypeError(f"{what}: model is {type(model).__name__}, not a torch module{way}")
    for name, module in model.named_modules():
        place = f"layer {name}" if name else "this model"
        if isinstance(module, torch.jit.ScriptModule) and not name:
            raise BadInput(
                f"{what}: {place} is scripted ({type(module).__name__}), and its layers cannot be "
                "replaced; give the module that it was made from"
            )
        if any(base.__module__.startswith("torch.export") for base in type(module).__mro__):
            raise BadInput(
                f"{what}: {place} comes from torch.export, and has no layers left that could be "
                "replaced; give the module that it was exported from"
            )
        if _quantized_elsewhere(module):
            kind = f"{type(module).__module__.partition('.nn.')[0]} {type(module).__name__}"
            raise BadInput(
                f"{what}: {place} is quantized already, or prepared for it ({kind}); give the "
                "float model"
            )


def _quantized_elsewhere(module: nn.Module) -> bool:
    """True for layers, observers and weights of torch.ao, torchao and the like."""
    home = type(module).__module__
    if isinstance(module, FloatFunctional):  # of a model that may be prepared, and is not
        return False
    values = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return (
        (home.startswith("torch.ao.") and any(part in home for part in ELSEWHERE))
        or home.startswith(OTHERS)
        or any(type(x).__module__.startswith(OTHERS) or x.is_quantized for x in values)
    )


def check_model(model: nn.Module, what: str) -> None:
    """Refuse as :func:`check_module`, and floating-point weights that are not finite float32."""
    check_module(model, what)
    buffers = {name for name, _ in model.named_buffers()}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise BadInput(
                f"{what}: {name} has no values before the model is run; run it on a batch first"
            )
        if value.is_meta:
            raise BadInput(
                f"{what}: {name} is on the device meta, without values; load its weights"
            )
        value = value.detach()
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(
                f"{what}: {name} is {value.dtype}; quantize the float32 model, model.float()"
            )
        # A mask may hold infinities; a weight may not.
        bad = torch.isnan(value) if name in buffers else ~torch.isfinite(value)
        if value.is_floating_point() and bool(bad.any()):
            raise ValueError(
                f"{what}: a value of {name} is NaN or infinite; the checkpoint is damaged or its "
                "training diverged"
            )


def check_spec(spec: object, what: str) -> None:
    """Refuse what is no spec."""
    if not isinstance(spec, QuantSpec):
        raise TypeError(
            f"{what}: spec is {spec!r}, no QuantSpec; give one, such as QuantSpec.parse('W8A8')"
        )


def check_batch(batch: object, what: str) -> None:
    """Refuse a batch that is no tensor of finite values."""
    if not isinstance(batch, Tensor):
        raise TypeError(
            f"{what} is {type(batch).__name__}, not a tensor of images; of a loader of images and "
            "labels give (images for images, *_ in loader)"
        )
    if not batch.numel():
        raise ValueError(f"{what} is empty; leave it out")
    check_finite(batch, what)


@contextmanager
def running(batch: Tensor, what: str) -> Iterator[None]:
    """Say which batch it is that a model cannot run, where PyTorch says why."""
    try:
        yield
    except Fault:
        raise
    except RuntimeError as error:
        raise BadInput(
            f"{what}, {batch.dtype} of shape {tuple(batch.shape)}: the model cannot run it "
            f"({str(error).strip().partition(chr(10))[0]}); give batches as the model takes them"
        ) from error


def refuse_not_finite(
    model: nn.Module, inputs: tuple[object, ...], named: dict[str, object]
) -> None:
    """Forward pre-hook with keywords: a clipped grid would turn NaN into an ordinary value."""
    if torch.compiler.is_compiling():  # no value is known while a graph is recorded
        return
    for x in (*inputs, *named.values()):
        if isinstance(x, Tensor) and x.is_floating_point():
            check_finite(x, "the input of the quantized model")
