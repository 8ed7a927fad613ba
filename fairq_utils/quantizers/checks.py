"""Checks that refuse a model or images before they lead to a wrong output."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def check_finite(x: Tensor, what: str) -> None:
    """Refuse values that no range can hold."""
    x = x.detach()
    # NaN is both the smallest and the largest of any values.
    if x.numel() and not torch.isfinite(torch.stack([x.amin(), x.amax()])).all():
        raise ValueError(f"{what}: a value is NaN or infinite; check the images and the model")


def check_model(model: nn.Module, what: str) -> None:
    """Refuse what is no module, and floating-point weights that are not finite float32."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what}: model is {type(model).__name__}, not a torch module")
    buffers = {name for name, _ in model.named_buffers()}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
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


def refuse_not_finite(
    model: nn.Module, inputs: tuple[object, ...], named: dict[str, object]
) -> None:
    """Forward pre-hook with keywords: a clipped grid would turn NaN into an ordinary value."""
    if torch.compiler.is_compiling():  # no value is known while a graph is recorded
        return
    for x in (*inputs, *named.values()):
        if isinstance(x, Tensor) and x.is_floating_point():
            check_finite(x, "the input of the quantized model")
