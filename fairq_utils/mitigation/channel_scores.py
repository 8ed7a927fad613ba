"""Sensitivity of each group's loss to the rounding of each output channel, from gradients.

With ``l_i`` the loss of image ``i`` and ``dw = w^ - w`` what rounding does to the weights of one
output channel, the loss changes, to first order, by::

    s_i = sum over w in channel of  dl_i/dw dw

so that a group's mean loss changes by the mean of ``s_i`` over its images (Molchanov et al. 2017
rank feature maps to prune by the absolute value of such a term). It is small where a model was
trained to make it so. The second-order term ``dw' H dw / 2``, with the empirical Fisher information
``mean of g_i g_i'`` in the place of the Hessian, is half the mean of ``s_i^2`` (as in Theis et al.
2018, who prune by it).

All ``s_i`` come from one backward pass: a layer's output is linear in its weight, so ``s_i`` is the
derivative of ``l_i`` by a factor ``t`` before what ``dw`` alone would add to the output, at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.group_sensitivity import REDUCERS
from fairq_utils.mitigation.precision import Kept, channel_costs, plainly
from fairq_utils.mitigation.sample import Sample, refuse_few
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.layers import Quantized
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.sensitivity import classification_loss
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.quantizers.tracing import first_input, removed_after

# From s_i (images or 1, channels), summed over the images where there is one row, to a sum.
MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "gradient": lambda effects: effects.sum(0),
    "fisher": lambda effects: effects.square().sum(0) / 2,
}
BY = ("worst_group", "overall")  # of the reducers, those that need no setting and weigh images


@usual_modes()
def channel_scores(
    observed: Observed,
    spec: QuantSpec,
    sample: Sample,
    *,
    kept: Kept = "more",
    measure: str = "gradient",
) -> pd.DataFrame:
    """The predicted increase of each group's mean loss if one channel alone is quantized.

    Only the rounding of weights is looked at: no channel's precision changes a layer's input.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
        It stays as it is; gradients are those of its float model.
    spec : QuantSpec
        With ``weight_granularity="channel"`` and inputs that are not dynamic. The first and the
        last layer have at least ``first_last_bits``, as everywhere.
    sample : images, labels and groups
    kept : 8, None for float, or ``more``
        At which bits a channel would be kept. ``more`` is 8 bits, or float where ``spec`` has 8.
    measure : a name of :data:`MEASURES`
        ``gradient``: the first-order change, which may be below 0. ``fisher``: the second-order
        term by the empirical Fisher information, 0 or more; it needs layers whose outputs have
        the images along their first axis.

    Returns
    -------
    DataFrame
        A row per layer in order of execution, output channel and group: ``layer``, ``channel``,
        ``group`` (as :meth:`~fairq_utils.mitigation.sample.Sample.name` calls it), ``score`` in
        the unit of the loss, nats, and ``bytes``, by which the model grows if the channel is kept.
        Layers that have the bits of ``kept`` already are left out.

    Raises
    ------
    BadInput
        An empty group, dynamic inputs, scales that channels share, no layer with fewer bits than
        ``kept``, or a score that is not finite.
    """
    check_sample(sample, "channel_scores")
    if measure not in MEASURES:
        raise BadInput(f"channel_scores: measure {measure!r} is not one of {', '.join(MEASURES)}")
    costs, _ = channel_costs(observed, spec, kept)
    plain, _ = plainly(observed, spec)
    work = copied(observed.model, "channel_scores").requires_grad_(False)
    with torch.no_grad():
        rounding = {
            name: _quantized(plain, name).weight() - _weight(work, name)
            for name in dict.fromkeys(layer for layer, _ in costs.index)
        }
    groups = {
        sample.name(code): _scores(work, rounding, sample.members(code), measure)
        for code in sample.present
    }
    wide = pd.DataFrame(groups, index=costs.index)
    if not np.isfinite(wide.to_numpy()).all():
        raise BadInput(
            "channel_scores: a score is not finite; check the images, the labels and the model"
        )
    layers, channels = zip(*costs.index, strict=True)
    return pd.DataFrame(
        {
            "layer": np.repeat(layers, len(groups)),
            "channel": np.repeat(channels, len(groups)),
            "group": np.tile(list(groups), len(costs)),
            "score": wide.to_numpy().reshape(-1),
            "bytes": np.repeat(costs.to_numpy(), len(groups)),
        }
    )


def unit_scores(
    table: pd.DataFrame, unit: Sequence[str], value: str, by: str, sample: Sample
) -> pd.Series:
    """One score per unit from one per unit and group.

    Parameters
    ----------
    table : DataFrame
        Columns ``unit``, ``group`` and ``value``.
    unit : names of the columns that say what is scored
    by : a name of :data:`BY`
        ``worst_group``: of the most sensitive group; ``overall``: weighted by the groups' sizes,
        which is the sensitivity of all images together, blind to groups.

    Returns
    -------
    Series
        In the order of the table.
    """
    counts = np.bincount(sample.groups.codes, minlength=len(sample.groups.names))
    sizes = pd.Series({sample.name(code): float(counts[code]) for code in sample.present})
    named = table.assign(group=table["group"].astype(str).str.replace("|", " "))
    wide = named.pivot(index=list(unit), columns="group", values=value)
    order = table[list(unit)].drop_duplicates()
    index = pd.MultiIndex.from_frame(order) if len(unit) > 1 else pd.Index(order[unit[0]])
    values = wide.loc[index, list(sizes.index)].to_numpy(float)
    return pd.Series(REDUCERS[by](values, (sizes / sizes.sum()).to_numpy(), 0.0), index)


def check_sample(sample: Sample, what: str) -> None:
    """Refuse a sample without images, or with a group that has none."""
    if not len(sample):
        raise BadInput(f"{what}: the sample has no images; give some of every group")
    refuse_few(sample.groups, 1, what)


def _scores(
    work: nn.Module, rounding: Mapping[str, Tensor], members: Sample, measure: str
) -> NDArray[np.float64]:
    """Score of each channel of all layers in a row, float64, over the images of one group."""
    total = torch.zeros(sum(map(len, rounding.values())), dtype=torch.float64)
    for images, labels, _ in members.batches():
        effects = _effects(work, rounding, images, labels, each=measure != "gradient")
        total += MEASURES[measure](effects.double()).cpu()
    scores: NDArray[np.float64] = (total / len(members)).numpy()
    return scores


def _effects(
    work: nn.Module, rounding: Mapping[str, Tensor], images: Tensor, labels: Tensor, each: bool
) -> Tensor:
    """``s_i`` of each image and channel of all layers in a row, (N, C), or their sum, (1, C)."""
    device = next(iter(rounding.values())).device
    images, labels = images.to(device), labels.to(device)
    factors = {
        name: torch.zeros(
            len(images) if each else 1, len(change), device=device, requires_grad=True
        )
        for name, change in rounding.items()
    }
    hooks = [
        work.get_submodule(name).register_forward_hook(
            _adding(name, change, factors[name], len(images)), with_kwargs=True
        )
        for name, change in rounding.items()
    ]
    with removed_after(hooks), torch.enable_grad():
        # Images do not meet: the gradient of their sum holds each image's own.
        loss = classification_loss(work(images.clone()), labels) * len(images)
        found = torch.autograd.grad(
            loss, list(factors.values()), allow_unused=True, materialize_grads=True
        )
    return torch.cat(found, dim=1)


def _adding(name: str, rounding: Tensor, factor: Tensor, images: int) -> Any:
    """A hook that adds to a layer's output ``t`` times what the rounding would add."""

    def hook(module: nn.Module, inputs: Any, named: Any, output: Tensor) -> Tensor:
        with torch.no_grad():
            x = first_input(inputs, named)
            if isinstance(module, nn.Conv2d):
                change = module._conv_forward(x, rounding, None)
            else:
                change = F.linear(x, rounding)
        behind = 2 if isinstance(module, nn.Conv2d) else 0  # axes behind that of the channels
        if len(factor) == 1:
            return output + factor.view(-1, *[1] * behind) * change
        if output.shape[0] != images:
            raise BadInput(
                f"channel_scores: layer {name!r} returns {output.shape[0]} rows for "
                f"{images} images, so that no image's own effect can be told; use "
                "measure='gradient'"
            )
        between = output.ndim - 2 - behind
        shape = (images, *[1] * between, len(rounding), *[1] * behind)
        return output + factor.view(shape) * change

    return hook


def _quantized(model: nn.Module, name: str) -> Quantized:
    layer = model.get_submodule(name)
    assert isinstance(layer, Quantized)
    return layer


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight
