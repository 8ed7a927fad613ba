"""How many functions read a tensor during a forward pass, inside modules and between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Questions about a tensor, not about its values.
UNREAD = {"__get__", "size", "dim", "numel", "stride", "is_contiguous", "_assert", "__len__"}


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
            given = {id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            self._counts.update(given & self._watched.keys())
        return func(*args, **(kwargs or {}))

    def of(self, x: Tensor) -> int:
        """How many functions were given this tensor since it has been watched."""
        return self._counts[id(x)]
