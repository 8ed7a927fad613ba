"""Bias correction: rounding shifts the mean of a layer's output; its bias takes the shift back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairq_utils.quantizers.layers import QuantConv2d, Quantized
from fairq_utils.quantizers.places import removed_after


def correct_biases(
    model: nn.Module, reference: nn.Module, layers: Sequence[str], images: Tensor
) -> dict[str, float]:
    """Correct, in place, the bias of every quantized layer, first to last.

    The empirical form of Nagel et al. 2019, section 4.2: what a layer answers on average, channel
    by channel, is compared with what its float layer does, where the inputs of the quantized layer
    come from quantized, already corrected layers. One pass over all images at once does them all,
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
    calls: dict[str, int] = {}
    corrected: dict[str, float] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            means[name] = _channel_means(module, output)

        return hook

    def correct(name: str) -> Any:
        def hook(module: Quantized, _: Any, output: Tensor) -> Tensor | None:
            if calls.get(name) != 1:
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


def _channel_means(module: nn.Module, output: Tensor) -> Tensor:
    if isinstance(module, (QuantConv2d, nn.Conv2d)):
        return output.mean(dim=[0, *range(output.ndim)[-2:]] if output.ndim == 4 else [-2, -1])
    return output.reshape(-1, output.shape[-1]).mean(dim=0)
