"""Where layers stand in a model: their order of execution, and putting others in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
BYPASSED = "is called through a list or another reference outside the model's tree; stays in float"


def first_input(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The input of a layer that was called by position or by keyword."""
    return inputs[0] if inputs else next(iter(named.values()))


@contextmanager
def removed_after(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks off again, whatever happens meanwhile."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def order_of_execution(model: nn.Module, layers: Iterable[str], example: Tensor) -> list[str]:
    """Names of those layers that the model calls on the example, in order of their first call."""
    order: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: order.append(name)
        )
        for name in layers
    ]
    with removed_after(hooks), torch.no_grad():
        model(example.clone())
    return list(dict.fromkeys(order))


def replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in another's place, wherever the other is shared; returns the model.

    What is returned is another object only where the model itself is replaced (``name`` is empty).
    """
    old = model.get_submodule(name)
    for kind in HOOKS:  # what others have hung on the layer stays on it
        getattr(module, kind).update(getattr(old, kind))
    if not name:
        return module
    for parent in list(model.modules()):
        for child, value in list(parent._modules.items()):
            if value is old:
                setattr(parent, child, module)
    return model


def bypassed(model: nn.Module, layers: Iterable[str], example: Tensor) -> list[str]:
    """Names of those layers that the model does not call where they stand."""
    names = list(layers)
    called = order_of_execution(model, names, example)
    return [name for name in names if name not in called]


def leave_fast_paths(model: nn.Module) -> None:
    """Let transformer encoders call their layers, in place, as they do in training.

    In evaluation ``nn.TransformerEncoderLayer`` may read the weights of its layers and compute
    without calling them, and ``nn.TransformerEncoder`` may cut padded positions off first. Answers
    at padded positions are then zeros; without these paths they are what the layers compute.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
