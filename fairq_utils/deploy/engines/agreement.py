"""A file that an engine runs, beside the model that it was written from: outputs compared.

Both get an example, zeros, and the example a hundred times as large. Their outputs may differ by
what floats in another order change, and where a model is quantized by what another rounding of
every rounded value would: a sum on the edge between two integers falls on either side.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fairq_utils.deploy.engines.exported import QUANTIZE
from fairq_utils.deploy.engines.loaded_model import LoadedModel, NotExact, SaturationWarning
from fairq_utils.deploy.engines.qdq import to_qdq
from fairq_utils.errors import BadInput, Fault
from fairq_utils.quantizers import onednn
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.training.inference import device_of, evaluating

LARGE = 100.0  # times the example
RELATIVE = 1e-3  # of the largest output: floats in another order
ROUNDINGS = 3.0  # times the most that another rounding changed
DRAWS = 4  # other roundings that are tried

WriteAndLoad = Callable[[nn.Module, Tensor], LoadedModel]


@dataclass(frozen=True)
class Difference:
    """Largest difference between the outputs of a file and of its model.

    Attributes
    ----------
    inputs : ``the example``, ``zeros`` or ``the example times 100``
    largest, tolerance : in units of the outputs
    """

    inputs: str
    largest: float
    tolerance: float

    @property
    def excessive(self) -> bool:
        """Whether it is beyond the tolerance; a difference that is NaN is."""
        return not self.largest <= self.tolerance


def outputs_of(model: nn.Module, images: Tensor) -> Tensor:
    """Outputs of a model in evaluation mode, float32 on the processor.

    Raises
    ------
    BadInput
        They are no tensor.
    """
    with torch.no_grad(), evaluating(model):
        found = model(images.to(device_of(model), copy=True))
    if not isinstance(found, Tensor):
        keys = f" with {', '.join(map(repr, found))}" if isinstance(found, Mapping) else ""
        raise BadInput(
            f"model returned {type(found).__name__}{keys}, and a file gives one tensor; wrap it in "
            "a module that returns the logits"
        )
    return found.float().cpu()


def difference(model: nn.Module, loaded: LoadedModel, example: Tensor) -> Difference:
    """Compare a file with its model.

    Parameters
    ----------
    model : float or quantized
    loaded : its file
    example : float32 (N, 3, H, W)

    Returns
    -------
    Difference
        Of the first inputs where it is excessive, or of the last.
    """
    rerounded = to_qdq(model) if _rounds(model) else None
    for name, images in inputs(example).items():
        right = outputs_of(model, images)
        given = torch.from_numpy(loaded(images.cpu().contiguous().numpy()))
        tolerance = RELATIVE * float(right.abs().nan_to_num(posinf=0.0).max())
        if rerounded is not None:
            tolerance += ROUNDINGS * _moved(rerounded, images)
        finite = right.isfinite()
        if given.shape != right.shape:
            largest = float("nan")
        else:
            largest = float((given - right)[finite].abs().max()) if finite.any() else 0.0
        found = Difference(name, largest, tolerance)
        if found.excessive:
            break
    return found


def inputs(example: Tensor) -> dict[str, Tensor]:
    """What a file and its model are both given, by name."""
    return {
        "the example": example,
        "zeros": torch.zeros_like(example),
        f"the example times {LARGE:g}": LARGE * example,
    }


def check(
    model: nn.Module, loaded: LoadedModel, example: Tensor, again: WriteAndLoad, what: str
) -> None:
    """Check that a file gives the outputs of its model.

    Parameters
    ----------
    model : float or quantized
    loaded : its file
    example : float32 (N, 3, H, W)
    again : writes a part of the model, or a variant of it, for inputs like a tensor, and loads it
    what : beginning of the sentence

    Raises
    ------
    NotExact
        Outputs differ by more than the tolerance; names the largest difference, and the layer
        whose own file differs.

    Warns
    -----
    SaturationWarning
        They do, because this processor adds products of bytes in 16 bits.
    """
    found = difference(model, loaded, example)
    if not found.excessive:
        return
    told = (
        f"{what}: on {found.inputs} the file's outputs differ from the model's by "
        f"{found.largest:.3g}, where {found.tolerance:.3g} is what rounding explains"
    )
    if _rounds(model) and not onednn.available():
        model = _seven_bits(model)
        if not difference(model, again(model, example), example).excessive:
            warnings.warn(
                f"{told}; the file is right, and this processor, which adds products of bytes in "
                "16 bits, computes something else: run it on one with VNNI, or take weights of 7 "
                "bits",
                SaturationWarning,
                stacklevel=3,
            )
            return
    culprit = _culprit(model, inputs(example)[found.inputs], again)
    where = "not in one layer" if culprit is None else f"in layer {culprit}"
    raise NotExact(
        f"{told}; it arises {where}: write that in another way, take another engine, or say "
        "check=False and compare predictions yourself"
    )


def _rounds(model: nn.Module) -> bool:
    layers = (m for m in model.modules() if isinstance(m, Quantized))
    return any(layer.spec.activation == "static" for layer in layers)


class _OtherRoundings(TorchDispatchMode):
    """Up or down at random, the nearer integer more often."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is QUANTIZE:
            x, scale, *rest = args
            moved = torch.rand(x.shape, generator=self.generator).to(x) - 0.5
            args = (x + scale * moved, scale, *rest)
        return func(*args, **(kwargs or {}))


def _moved(qdq: nn.Module, images: Tensor) -> float:
    """Largest change of an output by other roundings."""
    right = outputs_of(qdq, images)
    found = [0.0]
    for seed in range(DRAWS):
        with _OtherRoundings(seed):
            other = outputs_of(qdq, images)
        found.append(float((other - right).abs().nan_to_num(posinf=0.0).max()))
    return max(found)


def _seven_bits(model: nn.Module) -> nn.Module:
    """A model of the same layers whose sums of two products fit into 16 bits."""
    halved = copied(model, "engines.write")
    for layer in halved.modules():
        if isinstance(layer, Quantized):
            for integers in (layer.weight_integers, layer.weight_zero_point):
                integers.copy_(integers.div(2, rounding_mode="trunc"))
            layer.forget()
    return halved


def _culprit(model: nn.Module, images: Tensor, again: WriteAndLoad) -> str | None:
    """Name and kind of the first and smallest module whose own file differs, if there is one."""
    for name, module, given in _children(model, images):
        try:
            found = difference(module, again(module, given), given)
        except Fault:  # it has no file of its own
            continue
        if found.excessive:
            inner = _culprit(module, given, again)
            own = f"{name} ({type(module).__name__}), which alone is off by {found.largest:.3g}"
            return own if inner is None else f"{name}.{inner}"
    return None


def _children(model: nn.Module, images: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """Outermost modules within that map one tensor, in order of execution, with what each got."""
    found: list[tuple[str, nn.Module, Tensor]] = []

    def watch(name: str, module: nn.Module) -> Any:
        def called(_: nn.Module, given: tuple[Any, ...]) -> None:
            plain = len(given) == 1 and isinstance(given[0], Tensor) and given[0].ndim > 1
            if plain and all(name != other for other, _, _ in found):
                found.append((name, module, given[0].detach().clone()))

        return module.register_forward_pre_hook(called)

    hooks = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        outputs_of(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    names = {name for name, _, _ in found}
    return [one for one in found if not any(one[0].startswith(f"{outer}.") for outer in names)]
