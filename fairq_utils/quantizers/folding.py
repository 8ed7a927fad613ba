"""Batch-norm folding: at inference, a convolution and the batch norm behind it are one convolution.

``w' = w * g / sqrt(v + eps)``, ``b' = (b - m) * g / sqrt(v + eps) + beta`` (Jacob et al. 2018,
equation 14). Which batch norm stands behind which convolution is read off a forward pass, so
that any module can be folded, traceable or not; a fold is kept only if the output stays the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fairq_utils.quantizers.layers import quantizable
from fairq_utils.quantizers.tracing import Reads, first_input, removed_after, tensors_in

TOLERANCE = 1e-3  # relative to the largest output


def fold_batch_norms(model: nn.Module, example: Tensor) -> tuple[list[str], dict[str, str]]:
    """Fold, in place, every batch norm that directly follows a convolution.

    Parameters
    ----------
    model : in evaluation mode
    example : Tensor
        A batch for the forward passes.

    Returns
    -------
    folded : names of the convolutions
    left : layers whose batch norm was left, each with the reason
    """
    pairs, left = _pairs(model, example)
    if not pairs:
        return [], left
    with torch.no_grad():
        before = model(example.clone())
        for pair in pairs:
            pair.fold()
        if same_outputs(model(example.clone()), before):
            return [pair.conv_name for pair in pairs], left
        # One of them is not what it seemed: undo all, then fold one at a time.
        for pair in pairs:
            pair.undo()
        folded = []
        for pair in pairs:
            pair.fold()
            if same_outputs(model(example.clone()), before):
                folded.append(pair.conv_name)
            else:
                pair.undo()
                left[pair.conv_name] = "folding its batch norm would change the output"
    return folded, left


def same_outputs(a: Any, b: Any) -> bool:
    """Check that two outputs (tensors, or containers of them) are the same up to rounding.

    A net below the structural test, which looks at who reads a tensor.
    """
    pairs = zip(tensors_in(a), tensors_in(b), strict=True)
    return all(_same(x, y) for x, y in pairs if x.is_floating_point())


@dataclass
class _Pair:
    """A convolution and the batch norm behind it, and what undoes their fold."""

    model: nn.Module
    conv_name: str
    norm_name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def fold(self) -> None:
        self.parameters = (self.conv.weight, self.conv.bias)
        weight, bias = fuse_conv_bn_weights(
            self.conv.weight,
            self.conv.bias,
            self.norm.running_mean,  # type: ignore[arg-type]
            self.norm.running_var,  # type: ignore[arg-type]
            self.norm.eps,
            self.norm.weight,
            self.norm.bias,
        )
        self.conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.conv.bias = nn.Parameter(bias.detach(), requires_grad=False)
        # timm's batch norms carry their activation with them; it stays.
        rest = [getattr(self.norm, part, None) for part in ("drop", "act")]
        kept = [part for part in rest if isinstance(part, nn.Module)]
        self._place(nn.Sequential(*kept) if kept else nn.Identity())

    def undo(self) -> None:
        self.conv.weight, self.conv.bias = self.parameters
        self._place(self.norm)

    def _place(self, module: nn.Module) -> None:
        parent, _, child = self.norm_name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)


def _pairs(model: nn.Module, example: Tensor) -> tuple[list[_Pair], dict[str, str]]:
    produced: dict[int, nn.Conv2d] = {}  # by the identity of its output; ``reads`` keeps it alive
    calls: Counter[nn.Module] = Counter()
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]] = []
    reads = Reads()
    left: dict[str, str] = {}
    names = {module: name for name, module in model.named_modules()}

    def after_conv(module: nn.Module, _: Any, output: Tensor) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d) and quantizable(module):
            produced[id(output)] = module
            reads.watch(output)

    def before_norm(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls[module] += 1
        x = first_input(inputs, named)
        conv = produced.get(id(x))
        if conv is None:
            left[names[module]] = "batch norm does not follow a convolution; it stays in float"
        elif named and "input" not in named:  # what takes its place has that keyword only
            left[names[module]] = f"batch norm is called with {', '.join(named)}=; give its input"
        elif isinstance(module, nn.BatchNorm2d):
            found.append((conv, module, x))

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(before_norm, with_kwargs=True))
    with removed_after(hooks), torch.no_grad(), reads:
        model(example.clone())
    pairs = []
    for conv, norm, between in found:
        if reads.of(between) > 1:
            left[names[norm]] = "something else reads the convolution before it; it stays in float"
        elif calls[conv] == 1 and calls[norm] == 1:
            pairs.append(_Pair(model, names[conv], names[norm], conv, norm))
        else:
            left[names[norm]] = "called more than once in a forward pass; it stays in float"
    return pairs, left


def _same(a: Tensor, b: Tensor) -> bool:
    finite = torch.isfinite(b)
    if not torch.equal(finite, torch.isfinite(a)):
        return False
    a, b = a[finite], b[finite]
    if not b.numel():
        return True
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max().clamp(min=1e-6))
