"""A look at what a model computes outside its layers: operations, and weights used directly.

One forward pass in which it is followed which tensors depend on the input. A position embedding
that is added, or a weight that is multiplied with, does not: it is no feature map.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fairq_utils.quantizers.layers import quantizable
from fairq_utils.quantizers.operations import Operation
from fairq_utils.quantizers.tracing import (
    ADDITION,
    ATTENTION,
    GATE,
    PRODUCT,
    SILU,
    Call,
    Calls,
    Site,
    entered,
    multi_head_attention,
    recognise,
    tensors_in,
)

# Functions with a weight as their second argument, as the report calls them.
WEIGHTED: dict[Any, str] = {
    getattr(F, name): f"F.{name}"
    for name in (
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    )
}
MATRIX_PRODUCTS: dict[Any, str] = {
    torch.addmm: "torch.addmm",
    torch.mm: "torch.mm",
    torch.Tensor.mm: "torch.mm",
    torch.tensordot: "torch.tensordot",
    F.bilinear: "F.bilinear",
}
LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)  # the report names them themselves
# Functions that look at a tensor's shape only.
VALUELESS = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like "
    "new_zeros new_ones new_full new_empty new_tensor".split()
)


@dataclass(frozen=True)
class Survey:
    """Operations of a model outside its layers, and weights that are used directly.

    Attributes
    ----------
    operations : additions and products of two feature maps, SiLU, and products of attention, in
        order of execution
    direct : ``<module>.forward: <function>`` -> that its weight stays in float
    read : layer -> why it cannot be replaced: somebody else reads its weight
    """

    operations: tuple[Operation, ...]
    direct: dict[str, str]
    read: dict[str, str]


def survey(model: nn.Module, example: Tensor) -> Survey:
    """Look at one forward pass of a model.

    Parameters
    ----------
    model : any module of one tensor argument, in evaluation mode
    example : Tensor (B, ...)
    """
    surveyor = _Surveyor(model, example)
    with torch.no_grad(), entered(surveyor):
        model(example.clone())
    return Survey(surveyor.operations(), surveyor.direct, surveyor.read)


@dataclass(frozen=True)
class _Origin:
    """Origin of a tensor that depends on the input."""

    product: Site | None = None  # it is that product, scaled, masked or reshaped
    scores: bool = False  # it is the output of a softmax


class _Surveyor(TorchFunctionMode):
    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        names = {module: name for name, module in model.named_modules()}
        self.calls = Calls(names, sys._getframe(1))
        self.direct: dict[str, str] = {}
        self.read: dict[str, str] = {}
        self._found: dict[Site, tuple[bool, bool]] = {}  # which operand is a softmax's output
        self._queried: set[Site] = set()  # products that reach a softmax
        self._origins: dict[int, tuple[weakref.ref[Tensor], _Origin]] = {}
        self._owners = {
            id(value): name
            for module, name in names.items()
            if quantizable(module)
            for value in module.parameters(recurse=False)
        }
        self._within_attention = False
        self._mark([example], _Origin())

    def operations(self) -> tuple[Operation, ...]:
        found = []
        for site, (left, right) in self._found.items():
            if site.kind == ATTENTION:
                operands: tuple[str, ...] = ("queries", "keys", "scores", "values")
            elif site.kind == SILU:
                operands = ("input", "sigmoid", "result")
            elif site.kind == PRODUCT and (left or right):
                operands = ("scores", "values") if left else ("values", "scores")
            else:
                operands = ("queries", "keys") if site in self._queried else ("left", "right")
            found.append(Operation(site, operands))
        return tuple(found)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._open_attention(args, named)
        given = tensors_in((args, named))
        self._look_at_readers(given)
        call = recognise(func, args, named)
        site = None if call is None else self.calls.site(call.kind)
        active = [origin for origin in map(self._origin, given) if origin is not None]
        if call is not None and site is not None:
            self._look_at_operation(call, site)
        elif active:
            self._look_at_weight(func, args, named)
        result = func(*args, **named)
        name = getattr(func, "__name__", "")
        if active and name not in VALUELESS:
            changed = tensors_in((result, named.get("out")))
            if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
                changed += tensors_in(args[:1])
            self._mark(changed, self._onward(func, name, site, active))
        return result

    def _open_attention(self, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        module = self.calls.innermost()
        self._say(module, "F.multi_head_attention_forward", "its projections stay in float")
        before, self._within_attention = self._within_attention, True
        try:
            with self:
                return multi_head_attention(*args, **named)
        finally:
            self._within_attention = before

    def _origin(self, x: Tensor) -> _Origin | None:
        reference, origin = self._origins.get(id(x), (None, None))
        return origin if reference is not None and reference() is x else None

    def _mark(self, tensors: list[Tensor], origin: _Origin) -> None:
        for x in tensors:
            if x.dtype != torch.bool and not isinstance(x, nn.Parameter):  # a mask is no map
                self._origins[id(x)] = (weakref.ref(x), origin)

    def _onward(self, func: Any, name: str, site: Site | None, active: list[_Origin]) -> _Origin:
        product = next((o.product for o in active if o.product is not None), None)
        if name == "softmax":
            if product is not None:
                self._queried.add(product)
            return _Origin(scores=True)
        if site is not None and site.kind in (PRODUCT, ATTENTION):
            return _Origin(product=site)
        if func in WEIGHTED:
            return _Origin()
        return _Origin(product, any(origin.scores for origin in active))

    def _look_at_operation(self, call: Call, site: Site) -> None:
        operands = call.operands()
        origins = [self._origin(x) for x in operands]
        both = all(origin is not None for origin in origins)
        if call.kind == SILU:
            if both:
                self._found[site] = (False, False)
        elif call.kind in (ADDITION, GATE):
            left, right = operands
            alike = left.ndim == right.ndim >= 2 and left.shape[0] == right.shape[0]
            if both and alike and not any(bool((x == -torch.inf).any()) for x in operands):
                self._found[site] = (False, False)
        elif call.kind == ATTENTION or both:
            left_scores, right_scores = (o is not None and o.scores for o in origins[:2])
            self._found[site] = (left_scores, right_scores)
        elif any(origin is not None for origin in origins):
            module = self.calls.innermost()
            self._say(module, f"torch.{call.function.__name__}", "it stays in float")

    def _look_at_weight(self, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        name = WEIGHTED.get(func) or MATRIX_PRODUCTS.get(func)
        if name is None or self._within_attention:
            return
        module = self.calls.innermost()
        if isinstance(module, LAYERS):
            weight = args[1] if len(args) > 1 else named.get("weight")
            if module.weight is weight or getattr(module, "parametrizations", None):
                return
        self._say(module, name, "it stays in float")

    def _say(self, module: nn.Module | None, function: str, consequence: str) -> None:
        self.direct[f"{self._place(module)}: {function}"] = f"is called directly; {consequence}"

    def _place(self, module: nn.Module | None) -> str:
        return f"{self.calls.name(module) or ''}.forward".lstrip(".")

    def _look_at_readers(self, given: list[Tensor]) -> None:
        for value in given:
            owner = self._owners.get(id(value))
            if owner is None:
                continue
            module = self.calls.innermost()
            held = () if module is None else module.parameters(recurse=False)
            if not any(value is own for own in held):
                place = self._place(module)
                self.read[owner] = f"its weight is also read by {place}; it stays in float"
