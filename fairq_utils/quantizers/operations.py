"""Operations that a model computes between its layers: additions, products and gates.

Integer engines read both operands of an addition, queries, keys, scores and values of attention,
and some of them the factors of SiLU and of squeeze-and-excitation, from integers. Here each of them
gets a static per-tensor grid of its own, found in calibration like a layer's input grid.

Any module can be treated, traceable or not: a mode sees every function that is called on tensors
while the model runs, and knows an operation by its :class:`fairq_utils.quantizers.tracing.Site`.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import CodeType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fairq_utils.quantizers.checks import check_finite
from fairq_utils.quantizers.grids import input_grid, on_static_grid
from fairq_utils.quantizers.ranges import Statistics
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.tracing import (
    ADDITION,
    ATTENTION,
    GATE,
    PRODUCT,
    SILU,
    Calls,
    Site,
    entered,
    multi_head_attention,
    recognise,
)

# The option of QuantSpec that quantizes operations of a kind.
OPTIONS = {
    ADDITION: "residuals",
    PRODUCT: "attention_products",
    ATTENTION: "attention_products",
    GATE: "gates",
    SILU: "gates",
}
Treat = Callable[[Site, int, Tensor], Tensor]  # (site, number of the operand, operand)


@dataclass(frozen=True)
class Operation:
    """An operation on activations, and its operands.

    Attributes
    ----------
    site : Site
    operands : names of the operands, each with a grid
        ``queries, keys, scores, values`` of fused attention; ``queries, keys`` and ``scores,
        values`` of a product before and after a softmax; ``input, sigmoid, result`` of SiLU;
        ``left, right`` otherwise.
    """

    site: Site
    operands: tuple[str, ...]

    def names(self) -> list[str]:
        """Names in a report: ``blocks.0.attn: scores x values``."""
        pairs = [self.operands[i : i + 2] for i in range(0, len(self.operands), 2)]
        if self.site.kind == SILU or pairs == [("left", "right")]:
            plain = [self.site.kind]
        else:
            plain = [" x ".join(pair) for pair in pairs]
        return [f"{self.site.module}: {name}" if self.site.module else name for name in plain]


@dataclass(frozen=True)
class Operations:
    """The operations of a model, and calibration statistics of their operands.

    Attributes
    ----------
    found : in order of execution
    statistics : site -> those of each operand; only of the kinds that were asked for
    observed : options of :class:`QuantSpec` that were asked for
    """

    found: tuple[Operation, ...]
    statistics: dict[Site, tuple[Statistics, ...]] = field(default_factory=dict)
    observed: frozenset[str] = frozenset()

    @classmethod
    def watched(
        cls, found: Sequence[Operation], asked: Collection[str], make: Callable[[], Statistics]
    ) -> Operations:
        """The operations found, with statistics, still empty, of those that are asked for.

        Parameters
        ----------
        found : in order of execution
        asked : options of :class:`QuantSpec` whose operations are watched
        make : makes the statistics of one operand
        """
        statistics = {
            op.site: tuple(make() for _ in op.operands)
            for op in found
            if OPTIONS[op.site.kind] in asked
        }
        return cls(tuple(found), statistics, frozenset(asked))

    def chosen(self, spec: QuantSpec) -> tuple[Operation, ...]:
        """Those that the spec quantizes."""
        return tuple(op for op in self.found if getattr(spec, OPTIONS[op.site.kind]))

    def observe(self, model: nn.Module, batch: Tensor) -> None:
        """Run the model on one batch and update the statistics of its operations.

        Raises
        ------
        ValueError
            An operand is NaN or infinite.
        """
        if not self.statistics:
            model(batch)
            return
        operations = {op.site: op for op in self.found}

        def update(site: Site, number: int, x: Tensor) -> Tensor:
            operation = operations[site]
            name = operation.names()[0 if site.kind == SILU else number // 2]
            check_finite(x, f"quantize_static: the {operation.operands[number]} of {name}")
            self.statistics[site][number].update(x)
            return x

        names = {module: name for name, module in model.named_modules()}
        with entered(AtOperands(names, self.statistics, update)):
            model(batch)


def quantize_operations(model: nn.Module, observed: Operations, spec: QuantSpec) -> None:
    """Put, in place, the operands of a model's operations on the grids of calibration.

    Gradients pass straight through inside the grids, which stay as they are. A model without such
    operations, or a spec that asks for none, stays as it is.

    Parameters
    ----------
    model : nn.Module
        It gets the buffers and the forward pass of :class:`Forward`.
    observed : from calibration
    spec : QuantSpec
        ``residuals``, ``attention_products``, ``gates``; ``activation_bits``, ``activation_range``
        and ``percentile`` of their grids, and ``activation_scheme`` of all but the operands of
        attention's products, which are on symmetric grids.

    Raises
    ------
    ValueError
        The operations of this model are on grids already.
    """
    chosen = observed.chosen(spec)
    if not chosen:
        return
    if hasattr(model, "operation_scales"):
        raise ValueError(
            "quantize_operations: the operations of this model are on grids already; quantize the "
            "float model"
        )
    rule, bits = spec.activation_range, spec.activation_bits
    grids = []
    for operation in chosen:
        # Integer kernels multiply two activations only where neither side needs a zero-point.
        attention = operation.site.kind in (PRODUCT, ATTENTION)
        scheme = "symmetric" if attention else spec.activation_scheme
        for statistics in observed.statistics[operation.site]:
            low, high = torch.tensor(statistics.range(rule, bits, scheme, spec.percentile))
            grids.append(torch.stack(input_grid(low, high, bits, scheme)))
    scales, zeros = (part.clone() for part in torch.stack(grids).T)  # saved each on its own
    held = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    model.register_buffer("operation_scales", scales.to(held))
    model.register_buffer("operation_zero_points", zeros.to(held, torch.int32))
    vars(model)["forward"] = Forward(model, chosen, bits)


def quantized_operations(model: nn.Module) -> dict[str, str]:
    """Name -> ``A<bits>`` of every operation whose operands are on grids.

    A second operation of the same name in the same module has a 2 behind it, and so on.
    """
    forward = vars(model).get("forward")
    if not isinstance(forward, Forward):
        return {}
    times: Counter[str] = Counter()
    found = {}
    for name in (name for operation in forward.operations for name in operation.names()):
        times[name] += 1
        found[name if times[name] == 1 else f"{name} {times[name]}"] = f"A{forward.bits}"
    return found


def float_operations(model: nn.Module, found: Sequence[Operation]) -> dict[str, str]:
    """Kind -> how many of the operations found are computed in float, and that they are."""
    forward = vars(model).get("forward")
    rows = forward.rows if isinstance(forward, Forward) else {}
    rest = [op for op in found if op.site not in rows]
    kinds = Counter(op.site.kind for op in rest)
    products = sum(len(op.operands) // 2 for op in rest if op.site.kind in (PRODUCT, ATTENTION))
    reasons = {}
    for name, number, what in (
        ("residual additions", kinds[ADDITION], "addition"),
        ("attention products", products, "product"),
        ("gates", kinds[GATE], "product"),
    ):
        plural, verb = ("", "is") if number == 1 else ("s", "are")
        if number:
            reasons[name] = f"{number} {what}{plural} of two feature maps {verb} computed in float"
    return reasons


class Forward:
    """The forward pass of a model with the operands of its operations on their grids.

    It stands in the place of the model's own ``forward``, with the same signature; only what is
    computed through it is quantized (``model(x)``, not ``model.forward_features(x)``).

    Attributes
    ----------
    operations : those that are quantized, each operand with a row of the model's buffers
        ``operation_scales`` (float32) and ``operation_zero_points`` (int32).
    bits : int
    """

    def __init__(self, model: nn.Module, operations: Sequence[Operation], bits: int) -> None:
        self.model, self.operations, self.bits = model, tuple(operations), bits
        self.inner = vars(model).get("forward")  # where the model had one of its own
        self.rows: dict[Site, int] = {}
        row = 0
        for operation in operations:
            self.rows[operation.site] = row
            row += len(operation.operands)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._forward())

    @property
    def __code__(self) -> CodeType:  # torch.export asks where the model comes from
        code: CodeType = inspect.unwrap(type(self.model).forward).__code__
        return code

    def _forward(self) -> Callable[..., Any]:
        if self.inner is not None:
            return self.inner
        return partial(type(self.model).forward, self.model)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The model's output."""
        places = dict.fromkeys(site.module for site in self.rows)
        names = {self.model.get_submodule(name): name for name in places}
        with entered(AtOperands(names, self.rows, self._quantize)):
            return self._forward()(*inputs, **named)

    def _quantize(self, site: Site, number: int, x: Tensor) -> Tensor:
        row, top = self.rows[site] + number, 2**self.bits - 1
        scales = cast(Tensor, self.model.operation_scales)
        zeros = cast(Tensor, self.model.operation_zero_points)
        return on_static_grid(x, scales[row], zeros[row], top)


class AtOperands(TorchFunctionMode):
    """Gives the operands of operations to ``treat`` and computes with what comes back."""

    def __init__(
        self, names: Mapping[nn.Module, str], wanted: Mapping[Site, Any], treat: Treat
    ) -> None:
        super().__init__()
        self.calls = Calls(names, sys._getframe(1))
        self._wanted, self._treat = wanted, treat

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return multi_head_attention(*args, **named)
        call = recognise(func, args, named)
        site = None if call is None else self.calls.site(call.kind)
        if call is None or site is None or site not in self._wanted:
            return func(*args, **named)
        treat = partial(self._treat, site)
        if call.kind == ATTENTION:
            return attend(treat, *args, **named)
        if call.kind == SILU:
            return silu(treat, *args, **named)
        return call.on([treat(i, x) for i, x in enumerate(call.operands())])


def attend(
    treat: Callable[[int, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(q k^T scale + mask) v`` with each of the four operands treated.

    Parameters
    ----------
    treat : treat(0, queries), treat(1, keys), treat(2, scores), treat(3, values)
    query, key, value : (..., H, L, E), (..., H, S, E), (..., H, S, V)
    attn_mask, dropout_p, is_causal, scale, enable_gqa
        See :func:`torch.nn.functional.scaled_dot_product_attention`.

    Returns
    -------
    Tensor (..., H, L, V)
        A query that may look at no key gets zeros.
    """
    query, key, value = treat(0, query), treat(1, key), treat(3, value)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    if is_causal:
        shown = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~shown, -torch.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        else:
            scores = scores + attn_mask
    weights = scores.softmax(dim=-1)
    if attn_mask is not None:
        weights = weights.masked_fill((scores == -torch.inf).all(dim=-1, keepdim=True), 0.0)
    return F.dropout(treat(2, weights), dropout_p) @ value


def silu(treat: Callable[[int, Tensor], Tensor], input: Tensor, inplace: bool = False) -> Tensor:
    """``x sigmoid(x)`` with both factors and the result treated.

    Parameters
    ----------
    treat : treat(0, x), treat(1, sigmoid), treat(2, result)
    input : Tensor, any shape
    inplace : whether the result also takes the place of the input
    """
    x = treat(0, input)
    out = treat(2, x * treat(1, x.sigmoid()))
    return input.copy_(out) if inplace else out
