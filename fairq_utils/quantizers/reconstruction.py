"""Learnt rounding: AdaRound layer by layer, or block by block with the inputs' step sizes.

Every unit (a layer, or a block of a few layers) is made to reproduce the output of its float
counterpart on the calibration images. Nothing but roundings, and in blocks the step sizes of
inputs, is learnt; no label is used. An image whose output is stronger than the median one counts as
if it had that power: otherwise a single odd image would decide for all.

- ``adaround`` (Nagel et al. 2020): a unit is a layer, with the activation behind it; its inputs
  are those that the quantized layers before it produce.
- ``block`` (Li et al. 2021, BRECQ; Wei et al. 2022, QDrop): a unit is a block; input step sizes
  are learnt along, and each value of the block's input is, with probability 1/2, the float one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.layers import Quantized, use_integers
from fairq_utils.quantizers.learned import LearnedLayer, SoftRounding
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.tracing import first_input, removed_after, replace

LARGEST_BLOCK = 5  # layers: a residual block of the usual networks has three to five
BATCH = 16
PART = 64  # images at a time where all are passed through
DROP = 0.5  # probability that an input of a block is the float one (QDrop)
ROUNDING_RATE = 5e-2  # Adam's learning rate of roundings
STEP_RATE = 1e-3  # and of the inputs' step sizes, as multiples of the calibrated ones
PRESSURE = 0.01  # weight of the term that makes roundings decide
WARM_UP = 0.2  # share of iterations without that term
BETA = (20.0, 2.0)  # its exponent, from the first to the last iteration
SEED = 0  # of the minibatches and of the drop
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU)
Ranges = Callable[[str, QuantSpec], tuple[float, float]]


def reconstruct(
    model: nn.Module,
    specs: Mapping[str, QuantSpec],
    ranges: Ranges,
    batches: Sequence[Tensor],
) -> tuple[nn.Module, dict[str, tuple[float, float]]]:
    """Quantize a float model with learnt roundings.

    Parameters
    ----------
    model : float, batch norms folded, in evaluation mode; it stays as it is
    specs : layer -> spec, in order of execution; all with the same ``rounding``
    ranges : ranges(layer, spec) gives the calibrated range of the layer's input
    batches : calibration images (B, ...)

    Returns
    -------
    model, errors
        Unit -> mean squared error of its output with nearest and with learnt rounding, per value.
        Layers that are called several times are rounded to nearest and are in no unit.
    """
    work = copied(model, "quantize_observed").requires_grad_(False)
    order, block = list(specs), next(iter(specs.values())).rounding == "block"
    blocks = units(model, order, batches[0], LARGEST_BLOCK)
    single = {n for u in units(model, order, batches[0], 1) for n in u.layers}
    learnt = {n for u in blocks for n in u.layers if block or n in single}
    behind = {} if block else activations_behind(model, order, batches[0])
    errors: dict[str, tuple[float, float]] = {}

    def soft(name: str) -> LearnedLayer:
        """A layer of the working copy on grids that can be learnt."""
        layer, spec = cast(nn.Conv2d | nn.Linear, work.get_submodule(name)), specs[name]
        ends = ranges(name, spec) if spec.activation == "static" else None
        return LearnedLayer(layer, spec, SoftRounding, ends)

    for name in order:
        if name not in learnt:
            work = replace(work, name, soft(name).settled())
    generator, device = torch.Generator().manual_seed(SEED), batches[0].device
    for unit in blocks:
        use_integers(work)  # the layers that are settled: only their outputs are wanted
        float_root, root = model.get_submodule(unit.name), work.get_submodule(unit.name)
        float_inputs, targets = _capture(model, float_root, batches, device)
        inputs = _capture(work, root, batches, device)[0]
        local = {n: n[len(unit.name) :].lstrip(".") for n in unit.layers if n in learnt}
        if block:
            layers = {inner: soft(name) for name, inner in local.items()}
            task = _Task(inputs, float_inputs, targets, nn.Identity(), device)
            root, errors[unit.name] = _learn(root, layers, task, generator)
        else:
            for name, inner in local.items():
                layer = root.get_submodule(inner)
                float_layer = float_root.get_submodule(inner)
                wanted = _capture(float_root, float_layer, [float_inputs], device)[1]
                given = _capture(root, layer, [inputs], device)[0]
                task = _Task(given, None, wanted, behind.get(name, nn.Identity()), device)
                layer, errors[name] = _learn(layer, {"": soft(name)}, task, generator)
                root = replace(root, inner, layer)
        work = replace(work, unit.name, root)
    for module in work.modules():
        if isinstance(module, Quantized):
            module.integer = False
    return work, errors


@dataclass(frozen=True)
class Unit:
    """A layer, or a block that contains several, which are reconstructed at once."""

    name: str
    layers: tuple[str, ...]


def units(model: nn.Module, layers: Sequence[str], example: Tensor, largest: int) -> list[Unit]:
    """Cut a model into units, in order of execution.

    A unit is the outermost module with at most ``largest`` of the layers inside that is called
    once, with one tensor, and returns one. Layers in no such module (called several times)
    are in no unit.
    """
    calls: dict[str, list[bool]] = {}
    names = {m: n for n, m in model.named_modules()}

    def hook(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        given = [*inputs, *(v for v in named.values() if v is not None)]
        plain = len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor)
        calls.setdefault(names[module], []).append(plain)

    hooks = [m.register_forward_hook(hook, with_kwargs=True) for m in names]
    with removed_after(hooks), torch.no_grad():
        model(example.clone())
    found: list[Unit] = []

    def descend(name: str) -> None:
        module = model.get_submodule(name)
        prefix = f"{name}." if name else ""
        inside = tuple(n for n in layers if n == name or n.startswith(prefix))
        if not inside:
            return
        once = all(len(calls.get(n, ())) == 1 for n in inside)
        if name and once and calls.get(name) == [True] and len(inside) <= largest:
            found.append(Unit(name, inside))
            return
        for child, _ in module.named_children():
            descend(prefix + child)

    descend("")
    place = {name: i for i, name in enumerate(layers)}
    return sorted(dict.fromkeys(found), key=lambda unit: place[unit.layers[0]])


def activations_behind(
    model: nn.Module, layers: Sequence[str], example: Tensor
) -> dict[str, nn.Module]:
    """Layer -> activation function that is applied to its output, where a module does that."""
    wanted = {model.get_submodule(name): name for name in layers}
    outputs: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, nn.Module] = {}

    def after(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[id(output)] = (wanted[module], output)

    def before(module: nn.Module, inputs: Any, named: Any) -> None:
        x = first_input(inputs, named)
        name, output = outputs.get(id(x), ("", None))
        if output is x:
            found.setdefault(name, module)

    hooks: list[Any] = [m.register_forward_hook(after) for m in wanted]
    hooks += [
        m.register_forward_pre_hook(before, with_kwargs=True)
        for m in model.modules()
        if isinstance(m, ACTIVATIONS)
    ]
    with removed_after(hooks), torch.no_grad():
        model(example.clone())
    return found


@dataclass(frozen=True)
class _Task:
    """Inputs of a unit, the outputs that it should have, and the activation behind it.

    Tensors are on the CPU, for a large network's are gigabytes; what is looked at moves to
    ``device``.
    """

    inputs: Tensor
    float_inputs: Tensor | None  # mixed in at random where there are some
    targets: Tensor
    behind: nn.Module
    device: torch.device
    weights: Tensor = field(default_factory=lambda: torch.ones(1))

    def on(self, grid: nn.Module) -> _Task:
        """The same task, its inputs on a grid that does not change."""
        return replace_fields(self, inputs=self._each(grid, self.inputs))

    def weighted(self) -> _Task:
        """The same task, its targets as they are behind the unit, with a weight for each image."""
        wanted = self._each(self.behind, self.targets)
        return replace_fields(self, targets=wanted, weights=_weights(wanted))

    def _each(self, module: nn.Module, values: Tensor) -> Tensor:
        with torch.no_grad():
            # Copies, since an activation may write into its input.
            parts = [module(x.to(self.device, copy=True)).cpu() for x in values.split(PART)]
        return torch.cat(parts)


def _learn(
    module: nn.Module,
    layers: Mapping[str, LearnedLayer],
    task: _Task,
    generator: torch.Generator,
) -> tuple[nn.Module, tuple[float, float]]:
    """Learn the roundings of a unit's layers, by their names within it.

    Returns the unit in integers, and its error before and after.
    """
    for inner, layer in layers.items():
        module = replace(module, inner, layer)
    roundings = [w for w in (x.weights for x in layers.values()) if isinstance(w, SoftRounding)]
    choices = [rounding.choice for rounding in roundings]
    steps = [layer.inputs.multiple for layer in layers.values() if layer.inputs is not None]
    learnt = [{"params": choices, "lr": ROUNDING_RATE}]
    grids = {inner: layer.inputs for inner, layer in layers.items()}
    if task.float_inputs is not None:
        learnt.append({"params": steps, "lr": STEP_RATE})
    elif (fixed := grids.get("")) is not None:  # a single layer: its inputs are what they are
        task = task.on(fixed)
        layers[""].inputs = None
    start = [p.detach().clone() for p in (*choices, *steps)]
    task = task.weighted()
    before = _error(module, roundings, task)
    iterations = next(iter(layers.values())).spec.iterations
    optimizer = torch.optim.Adam(learnt, fused=True)
    _descend(module, roundings, optimizer, task, iterations, generator)
    after = _error(module, roundings, task)
    if not after < before:  # nothing was learnt that helps: nearest rounding stays
        after = before
        with torch.no_grad():
            for parameter, value in zip((*choices, *steps), start, strict=True):
                parameter.copy_(value)
    for inner, layer in layers.items():
        layer.inputs = grids[inner]
        module = replace(module, inner, layer.settled())
    return module, (before, after)


def _descend(
    module: nn.Module,
    roundings: Sequence[SoftRounding],
    optimizer: torch.optim.Optimizer,
    task: _Task,
    iterations: int,
    generator: torch.Generator,
) -> None:
    warm = int(WARM_UP * iterations)
    wanted = task.targets
    axis = 1 if wanted.ndim in (2, 4) else -1  # channels of (N, C), (N, C, H, W) or (N, T, C)
    for step in range(iterations):
        rows = torch.randint(len(wanted), (min(BATCH, len(wanted)),), generator=generator)
        x = task.inputs[rows]
        if task.float_inputs is not None:
            dropped = torch.rand(x.shape, generator=generator) < DROP
            x = torch.where(dropped, task.float_inputs[rows], x)
        x, y, weights = (v.to(task.device) for v in (x, wanted[rows], task.weights[rows]))
        error = (task.behind(module(x)) - y).square().sum(dim=axis)
        loss = (error.reshape(len(rows), -1).mean(dim=1) * weights).mean()
        if step >= warm:
            done = (step - warm) / max(iterations - warm, 1)
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - done)
            loss = loss + PRESSURE * torch.stack([r.undecided(beta) for r in roundings]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _weights(wanted: Tensor) -> Tensor:
    """``min(1, median power / power)`` of every image's target, (N,)."""
    power = wanted.reshape(len(wanted), -1).square().mean(dim=1)
    return (power.median() / power.clamp(min=1e-30)).clamp(max=1.0)


def _error(module: nn.Module, roundings: Sequence[SoftRounding], task: _Task) -> float:
    """Weighted mean squared error per value, every rounding decided."""
    for rounding in roundings:
        rounding.decided = True
    total = 0.0
    values = (task.inputs, task.targets, task.weights)
    with torch.no_grad():
        for part in zip(*(v.split(PART) for v in values), strict=True):
            x, y, weight = (v.to(task.device) for v in part)
            error = (task.behind(module(x)) - y).square().reshape(len(x), -1).sum(dim=1)
            total += float((error * weight).sum())
    for rounding in roundings:
        rounding.decided = False
    return total / task.targets.numel()


def _capture(
    root: nn.Module, inner: nn.Module, batches: Sequence[Tensor], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Input and output of a module inside ``root`` over all batches; stops when it is reached.

    They come back on the CPU.
    """
    inputs, outputs = (_Gathered(sum(map(len, batches))) for _ in range(2))

    def before(module: nn.Module, given: Any, named: Any) -> None:
        inputs.add(first_input(given, named).detach())  # copied: it may be changed in place

    def after(module: nn.Module, given: Any, output: Tensor) -> None:
        outputs.add(output.detach())
        raise _Reached

    hooks = [
        inner.register_forward_pre_hook(before, with_kwargs=True),
        inner.register_forward_hook(after),
    ]
    with removed_after(hooks), torch.no_grad():
        for batch in batches:
            for part in batch.split(PART):
                inputs.images = outputs.images = len(part)
                try:
                    root(part.to(device, copy=True))
                except _Reached:
                    continue
    return inputs.values, outputs.values


class _Gathered:
    """Tensors of so many images together, each copied once to where it stays.

    Attributes
    ----------
    images : of the next tensor, which may have several rows for each
    """

    values: Tensor

    def __init__(self, whole: int) -> None:
        self.whole, self.images, self.rows = whole, 0, 0

    def add(self, x: Tensor) -> None:
        """Copy one tensor behind those before it."""
        if not self.rows:
            form = torch.contiguous_format
            if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
                form = torch.channels_last
            shape = (len(x) * self.whole // self.images, *x.shape[1:])
            self.values = torch.empty(shape, dtype=x.dtype, memory_format=form)
        self.values[self.rows : self.rows + len(x)] = x
        self.rows += len(x)


class _Reached(Exception):
    """Raised where the forward pass has come as far as it was wanted."""
