"""Copies of a user's model, which itself is never changed: all that quantizes works on one."""

from __future__ import annotations

import copy
import threading
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fairq_utils.errors import BadInput
from fairq_utils.quantizers.checks import check_module

# What a copy may have in common with its model: it holds nothing that a forward pass leaves behind.
SHARED = (ModuleType, type(threading.Lock()), type(threading.RLock()))


def copied(model: nn.Module, what: str) -> nn.Module:
    """Copy a model as it computes now.

    Tensors that were computed, such as a stored feature map or a masked weight, are copied by their
    values. Of a model that is compiled or made parallel (``torch.compile``, ``nn.DataParallel``)
    the module inside is copied, wherever in the model that is.

    Parameters
    ----------
    model : nn.Module
    what : the call that copies it, for errors

    Raises
    ------
    BadInput
        An attribute cannot be copied, such as an open file; names it. The layers of the model
        cannot be replaced.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> model.stored = model(torch.ones(1, 2))
    >>> torch.equal(copied(model, "example").stored, model.stored)
    True
    """
    check_module(model, what)
    model = _inside(model)
    shared = {
        id(value): value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, SHARED)
    }
    with _ByValue():
        try:
            work: nn.Module = copy.deepcopy(model, dict(shared))
        except Exception as error:  # what is raised depends on what cannot be copied
            raise BadInput(f"{what}: {_not_copied(model, shared)} ({error})") from error
    for parent in list(work.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and _inside(child) is not child:
                setattr(parent, name, _inside(child))
    return work


class _ByValue(TorchFunctionMode):
    """Lets tensors that were computed be copied; PyTorch copies leaves of a graph only."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            x, memo = args
            return memo.setdefault(id(x), x.detach().clone())
        return func(*args, **(kwargs or {}))


def _inside(model: nn.Module) -> nn.Module:
    """The module that a compiled or parallel one was made from."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):  # torch.compile
            model = inner
        else:
            return model


def _not_copied(model: nn.Module, shared: dict[int, Any]) -> str:
    """A sentence about the attribute that cannot be copied."""
    rest = {id(module): module for module in model.modules()} | shared
    way = (
        "and a quantizer changes a copy, not the model; take it off the model, or let "
        "__deepcopy__ or __getstate__ of its class leave it out"
    )
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(rest))
            except Exception:  # whatever its class's own way of copying raises; told by the caller
                place = f"{name}.{attribute}" if name else attribute
                return f"the attribute {place}, {type(value).__name__}, cannot be copied, {way}"
    return f"{type(model).__name__} cannot be copied, {way}"
