"""A GPU that is not there: tensors that say they are on one, and refuse those that are not.

Their numbers lie in the processor's memory and its kernels compute with them, so that an answer is
what the processor gives. What a GPU would refuse is refused: tensors of two devices in one
operation, a generator of another device, a NumPy array of what is on the GPU. Convolutions are in
TF32 where a GPU's would be. The kind of device is ``gpu``, not ``cuda``: what is done for ``cuda``
by name is not done here, and a few operations of a GPU, such as saving its tensors to a file, are
refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torchgen
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

GPU = "gpu:0"
aten = torch.ops.aten
# Operations that read one device and write another.
COPIES = (aten._to_copy.default, aten.copy_.default)
# Operations whose indices may be on the processor, and only those.
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


CONVOLUTIONS = (aten.convolution.default, aten._convolution.default)


def _short(x: Tensor) -> Tensor:
    """Float32 rounded to TF32's ten bits of mantissa."""
    if x.dtype != torch.float32:
        return x
    return ((x.view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


class OnGpu(Tensor):
    """A tensor that says it is on the GPU.

    Attributes
    ----------
    held : its numbers, on the processor
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made: OnGpu = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(GPU),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = OnGpu(self.held.detach().clone())
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        found: Tensor = memo[id(self)]
        return found

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"


class _Mode(TorchDispatchMode):
    """Tensors that are made on the GPU are :class:`OnGpu`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation returns, on the device that a GPU would return it on."""
    if func._can_decompose():  # without a gradient to record, what is made of others comes whole
        with _Mode():
            return func.decompose(*args, **kwargs)
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = [x for x in given if isinstance(x, OnGpu)]
    if func not in COPIES:
        _refuse_mixed(func, args, given, there)
    asked = kwargs.get("device")
    device = torch.device(asked) if asked is not None else torch.device(GPU if there else "cpu")
    if device.type == "gpu":
        _refuse_generator(func, kwargs)
    if func in (aten.copy_.default,):
        device = args[0].device
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(x.held): x for x in there}
    own_args, own_kwargs = tree_map_only(OnGpu, lambda x: x.held, (args, kwargs))
    if func in CONVOLUTIONS and cast(Any, torch.backends.cudnn).conv.fp32_precision == "tf32":
        own_args = (*map(_short, own_args[:2]), *own_args[2:])
    found = func(*own_args, **own_kwargs)
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # the outer tensor takes the same form
            func(*args, **kwargs)

    def returned(x: Tensor) -> Tensor:
        if id(x) in known:
            return known[id(x)]
        if device.type != "gpu":
            return x
        # What came back as it was given is another tensor when it comes from another device.
        return OnGpu(x.clone() if any(x is y for y in given) else x)

    return tree_map_only(Tensor, returned, found)


def _refuse_mixed(
    func: Any, args: tuple[Any, ...], given: list[Tensor], there: list[OnGpu]
) -> None:
    here = [x for x in given if not isinstance(x, OnGpu)]
    if func in INDEXING:
        inner = [x for x in tree_flatten(args[1])[0] if isinstance(x, Tensor)]
        here = [x for x in here if not any(x is y for y in inner)]
    if not there or not here:
        return
    # A number in a tensor without dimensions goes to the GPU by itself, into some operations; one
    # from there does not.
    alone = all(x.ndim == 0 for x in here) and func.name() not in _checked()
    if alone and (isinstance(given[0], OnGpu) or not (given[0].ndim or _writes(func))):
        return
    raise RuntimeError(
        f"{func}: Expected all tensors to be on the same device, but found gpu:0 and cpu"
    )


def _writes(func: Any) -> bool:
    arguments = func._schema.arguments
    return bool(arguments) and bool(arguments[0].is_write)


@lru_cache(maxsize=1)
def _checked() -> frozenset[str]:
    """Operations that take no operand from another device, not even a number."""
    text = Path(torchgen.__file__).with_name("packaged") / "ATen/native/native_functions.yaml"
    found = {}
    for entry in re.split(r"^- func: ", text.read_text(), flags=re.MULTILINE)[1:]:
        found[entry.partition("(")[0]] = entry
    on_gpu = re.compile(r"^ +(?:\w+, )*CUDA(?:, \w+)*:", re.MULTILINE)

    def for_gpu(entry: str) -> bool:
        other = re.search(r"^ +structured_delegate: (\S+)", entry, re.MULTILINE)
        return bool(on_gpu.search(entry)) or (other is not None and for_gpu(found[other[1]]))

    names = (n for n, e in found.items() if "device_check: NoCheck" not in e and for_gpu(e))
    return frozenset(f"aten::{name}" for name in names)


def _refuse_generator(func: Any, kwargs: dict[str, Any]) -> None:
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != "gpu":
        raise RuntimeError(f"{func}: Expected a 'gpu' device type for generator but found 'cpu'")


def install() -> None:
    """Give this process a device of the kind ``gpu``; it cannot be taken away again."""
    _setup_privateuseone_for_python_backend("gpu")
    # Tensors of inference mode cannot be held by others; without gradients it comes to the same.
    setattr(torch, "inference_mode", lambda mode=True: torch.set_grad_enabled(not mode))  # noqa: B010
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) asks the mode
    _Mode().__enter__()
