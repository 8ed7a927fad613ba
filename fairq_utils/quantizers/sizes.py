"""Size of a model, integers packed at their bits."""

from __future__ import annotations

from torch import Tensor, nn


def packed_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers as they are, of a quantized layer as it packs them.

    A quantized layer has a method ``packed_bytes``, which counts its own parameters and buffers.

    Examples
    --------
    >>> packed_bytes(nn.Linear(3, 2))
    32
    """
    total = 0
    inside: set[int] = set()
    for module in model.modules():
        own = getattr(module, "packed_bytes", None)
        if own is not None:
            total += own()
            inside.update(id(v) for v in (*module.parameters(), *module.buffers()))
    rest = [v for v in (*model.parameters(), *model.buffers()) if id(v) not in inside]
    return total + sum(v.numel() * v.element_size() for v in rest)


def size_mebibytes(model: nn.Module) -> float:
    """Size in MiB; NaN where weights are packed out of sight, rather than a size without them."""
    hidden = any(not isinstance(v, Tensor) for v in model.state_dict().values())
    return float("nan") if hidden else packed_bytes(model) / 2**20
