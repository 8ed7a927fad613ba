"""Layers and operations of a model, found by running it: their order, calls, places and readers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
BYPASSED = "is called through a list or another reference outside the model's tree; stays in float"
# Questions about a tensor, not about its values.
UNREAD = {"__get__", "size", "dim", "numel", "stride", "is_contiguous", "_assert", "__len__"}
ADDITION, PRODUCT, ATTENTION = "addition", "product", "attention"
GATE, SILU = "gate", "SiLU"
# Function -> kind, and position and keyword of each operand.
_BOTH = ((0, "input"), (1, "other"))
_BATCHES = ((0, "input"), (1, "mat2"))
FUNCTIONS: dict[Any, tuple[str, tuple[tuple[int, str], ...]]] = {
    torch.add: (ADDITION, _BOTH),
    torch.Tensor.add: (ADDITION, _BOTH),  # and x + y
    torch.Tensor.add_: (ADDITION, _BOTH),  # and x += y
    torch.mul: (GATE, _BOTH),
    torch.Tensor.mul: (GATE, _BOTH),  # and x * y
    torch.Tensor.mul_: (GATE, _BOTH),  # and x *= y
    F.silu: (SILU, ((0, "input"),)),
    torch.matmul: (PRODUCT, _BOTH),
    torch.Tensor.matmul: (PRODUCT, _BOTH),  # and x @ y
    torch.bmm: (PRODUCT, _BATCHES),
    torch.Tensor.bmm: (PRODUCT, _BATCHES),
    torch.baddbmm: (PRODUCT, ((1, "batch1"), (2, "batch2"))),
    torch.Tensor.baddbmm: (PRODUCT, ((1, "batch1"), (2, "batch2"))),
    torch.einsum: (PRODUCT, ((1, ""), (2, ""))),  # of two operands
    F.scaled_dot_product_attention: (ATTENTION, ((0, "query"), (1, "key"), (2, "value"))),
}
_MODULE_CALL = nn.Module._call_impl.__code__


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
    without calling them, and ``nn.TransformerEncoder`` may cut padded positions off first. Outputs
    at padded positions are then zeros; without these paths they are what the layers compute.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def first_input(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The input of a layer that was called by position or by keyword."""
    return inputs[0] if inputs else next(iter(named.values()))


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


@contextmanager
def removed_after(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks off again, whatever happens meanwhile."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Reads(TorchFunctionMode):
    """While entered, counts the functions that are given each watched tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[int] = Counter()
        self._watched: dict[int, Tensor] = {}  # kept alive: another one would get its identity

    def watch(self, x: Tensor) -> None:
        """Count from now on who is given this tensor."""
        self._watched.setdefault(id(x), x)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count, then compute."""
        if getattr(func, "__name__", "") not in UNREAD:
            given = {id(x) for x in tensors_in((args, kwargs))}
            self._counts.update(given & self._watched.keys())
        return func(*args, **(kwargs or {}))

    def of(self, x: Tensor) -> int:
        """Number of functions that were given this tensor since it has been watched."""
        return self._counts[id(x)]


class Site(NamedTuple):
    """Place of an operation in a model.

    Attributes
    ----------
    module : name of the innermost module being called, "" for the model itself
    kind : ``addition``, ``product``, ``attention`` (fused: both of its products), ``gate`` (two
        feature maps multiplied value by value) or ``SiLU``
    number : of the operation among those of its kind within one call of the module, from 0
    """

    module: str
    kind: str
    number: int


class Call(NamedTuple):
    """A call of one of :data:`FUNCTIONS` on floating-point tensors."""

    kind: str
    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    places: tuple[int | str, ...]  # of the operands among inputs and named

    def operands(self) -> list[Tensor]:
        """The tensors that are operated on."""
        return [self.named[p] if isinstance(p, str) else self.inputs[p] for p in self.places]

    def on(self, operands: Sequence[Tensor]) -> Any:
        """The same call on other operands; in place, it still changes the first tensor."""
        inputs, named = list(self.inputs), dict(self.named)
        for place, value in zip(self.places, operands, strict=True):
            if isinstance(place, str):
                named[place] = value
            else:
                inputs[place] = value
        if self.function in (torch.Tensor.add_, torch.Tensor.mul_):
            inputs[0] = self.inputs[0].copy_(inputs[0])
        return self.function(*inputs, **named)


def recognise(
    function: Callable[..., Any], inputs: tuple[Any, ...], named: dict[str, Any]
) -> Call | None:
    """The call as one of :data:`FUNCTIONS`; None where it is none."""
    found = FUNCTIONS.get(function)
    if found is None:
        return None
    kind, slots = found
    if function is torch.einsum:
        if len(inputs) == 2 and isinstance(inputs[1], (list, tuple)):
            inputs = (inputs[0], *inputs[1])
        if len(inputs) != 3:
            return None
    places: list[int | str] = []
    for position, name in slots:
        place = position if position < len(inputs) else name
        value = inputs[position] if position < len(inputs) else named.get(name)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        places.append(place)
    return Call(kind, function, inputs, named, tuple(places))


class Calls:
    """The module that is being called, and the operations that its call has met so far.

    Parameters
    ----------
    names : module -> name
        Operations inside other modules have no site.
    outermost : the frame in which the model is called
    """

    def __init__(self, names: Mapping[nn.Module, str], outermost: FrameType) -> None:
        self._names, self._outermost = names, outermost
        self._met: dict[FrameType, Counter[str]] = {}

    def innermost(self) -> nn.Module | None:
        """The innermost module being called; None for the model itself."""
        return self._module(self._innermost_call())

    def name(self, module: nn.Module | None) -> str | None:
        """The name of a module; None where it has none."""
        return "" if module is None else self._names.get(module)

    def site(self, kind: str) -> Site | None:
        """The site of the next operation of a kind; None where its module has no name."""
        call = self._innermost_call()
        met = self._met.setdefault(call, Counter())
        met[kind] += 1
        name = self.name(self._module(call))
        return None if name is None else Site(name, kind, met[kind] - 1)

    def forget(self) -> None:
        """Let go of all frames, which hold on to the tensors in them."""
        self._met.clear()
        del self._outermost

    def _innermost_call(self) -> FrameType:
        """The frame of the innermost call; calls that have come to their end are forgotten."""
        found: list[FrameType] = []
        frame = sys._getframe(1)
        while frame is not self._outermost:
            if frame.f_code is _MODULE_CALL:
                found.append(frame)
            if frame.f_back is None:
                break
            frame = frame.f_back
        found.append(self._outermost)
        self._met = {call: met for call, met in self._met.items() if call in found}
        return found[0]

    def _module(self, call: FrameType) -> nn.Module | None:
        return None if call is self._outermost else call.f_locals["self"]


@contextmanager
def entered(mode: Any) -> Iterator[None]:
    """Run with a mode that has ``calls``, and leave nothing of it behind."""
    try:
        with mode:
            yield
    finally:
        mode.calls.forget()


def _opened(function: Any) -> Callable[..., Any]:
    """A Python function of torch that does not ask for overrides of itself, only inside."""
    body = FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda _: False},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    body.__kwdefaults__ = function.__kwdefaults__
    return body


# What nn.MultiheadAttention calls; its products stand inside.
multi_head_attention = _opened(F.multi_head_attention_forward)
