"""Corrections of a model before and after rounding: cross-layer equalization, bias correction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fairq_utils.quantizers.folding import same_outputs
from fairq_utils.quantizers.layers import QuantConv2d, Quantized, quantizable
from fairq_utils.quantizers.tracing import Reads, first_input, removed_after, replace

HOMOGENEOUS = (
    nn.ReLU,
    nn.ReLU6,
    nn.Identity,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
Layer = nn.Conv2d | nn.Linear
SWEEPS = 40
SETTLED = 1e-3  # largest change of a scale in a sweep that is still called settled


class ChannelClip(nn.Module):
    """``min(max(x, 0), bound)`` with a bound per channel: an equalized ReLU6.

    Parameters
    ----------
    bound : Tensor (C,)
    last : whether channels are the last dimension (behind a linear layer) or the second
    """

    bound: Tensor

    def __init__(self, bound: Tensor, *, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.register_buffer("bound", bound)

    def forward(self, input: Tensor) -> Tensor:
        """Clip (N, C, ...) or (..., C) channel by channel."""
        shape = (-1,) if self.last else (-1, *[1] * (input.ndim - 2))
        return torch.minimum(input.relu(), self.bound.view(shape))


def equalize(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Equalize, in place, all layers in a row; first -> second layer of every pair that changed.

    Pairs that would change the model's outputs (their activations are read by something that is
    not a module) are left.
    """
    with torch.no_grad():
        reference = model(example.clone())
        chosen = _pairs(model, example)
        undo = _equalize(model, chosen)
        if same_outputs(model(example.clone()), reference):
            return {pair.first: pair.second for pair in chosen}
        undo()
        kept = []
        for pair in chosen:
            undo = _equalize(model, [pair])
            if same_outputs(model(example.clone()), reference):
                kept.append(pair)
            undo()
        _equalize(model, kept)
        return {pair.first: pair.second for pair in kept}


def correct_biases(
    model: nn.Module, reference: nn.Module, layers: Sequence[str], images: Tensor
) -> dict[str, float]:
    """Correct, in place, the bias of every quantized layer, first to last.

    The empirical form of Nagel et al. 2019, section 4.2: the mean output of a layer, channel by
    channel, is compared with that of its float layer, where the inputs of the quantized layer come
    from quantized, already corrected layers. One pass over all images at once does them all,
    since each correction takes effect before the next layer is reached.

    Parameters
    ----------
    model, reference : the quantized model and its float model, with the same names of layers
    layers : names of the quantized layers
    images : Tensor (N, ...)

    Returns
    -------
    dict
        Layer -> root mean square of its correction over channels. Layers that are called more
        than once are left out: their error has no single mean.
    """
    means: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    corrected: dict[str, float] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            calls[name] += 1
            means[name] = _channel_means(module, output)

        return hook

    def correct(name: str) -> Any:
        def hook(module: Quantized, _: Any, output: Tensor) -> Tensor | None:
            if calls[name] != 1:
                return None
            shift = means[name] - _channel_means(module, output)
            module.bias = shift if module.bias is None else module.bias + shift
            module.forget()
            corrected[name] = float(shift.square().mean().sqrt())
            spatial = output.ndim == 4 and isinstance(module, QuantConv2d)
            return output + (shift.view(-1, 1, 1) if spatial else shift)

        return hook

    hooks = [reference.get_submodule(n).register_forward_hook(remember(n)) for n in layers]
    hooks += [model.get_submodule(n).register_forward_hook(correct(n)) for n in layers]
    with removed_after(hooks), torch.no_grad():
        reference(images.clone())
        model(images.clone())
    return corrected


class _Pair(NamedTuple):
    """Two layers in a row, and the ReLU6 between them, by name."""

    first: str
    second: str
    through: tuple[str, ...]


def _equalize(model: nn.Module, chosen: list[_Pair]) -> Callable[[], None]:
    """Scale all pairs until nothing moves; returns a function that undoes it."""
    layers = {n: _layer(model, n) for pair in chosen for n in (pair.first, pair.second)}
    kept = {n: (m.weight, m.bias) for n, m in layers.items()}
    clips = {n: model.get_submodule(n) for pair in chosen for n in pair.through}
    total = {pair.first: torch.ones(len(layers[pair.first].weight)) for pair in chosen}
    for layer in layers.values():
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    for _ in range(SWEEPS):
        moved = 0.0
        for first, second, _ in chosen:
            scale = _balance(layers[first], layers[second])
            total[first] = total[first].to(scale.device) * scale
            moved = max(moved, float((scale - 1).abs().max()))
        if moved < SETTLED:
            break
    for first, _, through in chosen:
        for name in through:
            linear = isinstance(layers[first], nn.Linear)
            replace(model, name, ChannelClip(6 / total[first], last=linear))

    def undo() -> None:
        for name, (weight, bias) in kept.items():
            layers[name].weight, layers[name].bias = weight, bias
        for name, module in clips.items():
            replace(model, name, module)

    return undo


def _balance(first: Layer, second: Layer) -> Tensor:
    """Scale one pair; returns by what the first layer's outputs were divided, (channels,)."""
    one, two = first.weight.data, second.weight.data
    groups = getattr(second, "groups", 1)
    inputs = _by_input(two, groups)
    r1 = one.reshape(len(one), -1).abs().amax(dim=1)
    r2 = inputs.reshape(len(inputs), -1).abs().amax(dim=1)
    live = (r1 > 0) & (r2 > 0)
    scale = torch.where(live, torch.sqrt(r1 / r2.clamp(min=1e-30)), 1.0)
    one /= scale.view(-1, *[1] * (one.ndim - 1))
    if first.bias is not None:
        first.bias.data /= scale
    # Input channel j of group g is channel g * (inputs per group) + j.
    per_group = scale.view(groups, -1).repeat_interleave(len(two) // groups, dim=0)
    two *= per_group.view(*two.shape[:2], *[1] * (two.ndim - 2))
    return scale


def _by_input(weight: Tensor, groups: int) -> Tensor:
    """Weights (O, I / groups, ...) sorted by the input channel that they read: (I, ...)."""
    parts = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    return parts.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def _pairs(model: nn.Module, example: Tensor) -> list[_Pair]:
    """Layers in a row, the output of the first read by the second alone."""
    names = {m: n for n, m in model.named_modules()}
    trails: dict[int, _Trail] = {}  # by the identity of a tensor, which ``reads`` keeps alive
    calls: Counter[str] = Counter()
    found: list[tuple[_Trail, str]] = []
    reads = Reads()

    def before(module: nn.Module, inputs: Any, named: Any) -> None:
        name = names[module]
        calls[name] += 1
        trail = trails.get(id(first_input(inputs, named)))
        if trail is None:
            return
        trail.readers.append(name)
        if quantizable(module):
            found.append((trail, name))

    def after(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        name = names[module]
        if not isinstance(output, Tensor):
            return
        reads.watch(output)
        if quantizable(module):
            trails[id(output)] = _Trail(name, output)
        elif isinstance(module, HOMOGENEOUS):
            trail = trails.get(id(first_input(inputs, named)))
            if trail is not None:
                passed = (name,) if isinstance(module, nn.ReLU6) else ()
                trails[id(output)] = _Trail(trail.layer, output, trail.through + passed, trail)

    hooks: list[Any] = []
    for module in names:
        if not list(module.children()):
            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(module.register_forward_hook(after, with_kwargs=True))
    with removed_after(hooks), torch.no_grad(), reads:
        model(example.clone())
    return [
        _Pair(trail.layer, second, trail.through)
        for trail, second in found
        if trail.alone(reads)
        and _fit(_layer(model, trail.layer), _layer(model, second))
        and all(calls[n] == 1 for n in (trail.layer, second, *trail.through))
    ]


@dataclass
class _Trail:
    """A tensor on its way from a layer through homogeneous functions."""

    layer: str
    tensor: Tensor
    through: tuple[str, ...] = ()
    before: _Trail | None = None
    readers: list[str] = field(default_factory=list)

    def alone(self, reads: Reads) -> bool:
        """Check that nobody else read it, here or on the way: a module, or a function between."""
        way = [self]
        while (before := way[-1].before) is not None:
            way.append(before)
        # What works in place returns the tensor that it was given: they are counted together.
        modules = Counter(id(trail.tensor) for trail in way for _ in trail.readers)
        return all(
            len(trail.readers) == 1 and reads.of(trail.tensor) <= modules[id(trail.tensor)]
            for trail in way
        )


def _layer(model: nn.Module, name: str) -> Layer:
    return cast(Layer, model.get_submodule(name))


def _fit(first: Layer, second: Layer) -> bool:
    """Check that outputs of the first are inputs of the second, channel by channel."""
    wanted = second.in_channels if isinstance(second, nn.Conv2d) else second.in_features
    return type(first) is type(second) and first.weight.shape[0] == wanted


def _channel_means(module: nn.Module, output: Tensor) -> Tensor:
    if isinstance(module, (QuantConv2d, nn.Conv2d)):
        return output.mean(dim=[0, *range(output.ndim)[-2:]] if output.ndim == 4 else [-2, -1])
    return output.reshape(-1, output.shape[-1]).mean(dim=0)
