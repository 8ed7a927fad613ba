"""Sensitivity of each layer by group, and its aggregation over groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.sample import CHUNK, Sample, checked, refuse_labels
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.sensitivity import (
    Found,
    classification_loss,
    layer_powers,
    noise_over_signal,
    one_at_a_time,
    output_powers,
    refuse_candidates,
    refuse_measure,
    squares,
)
from fairq_utils.quantizers.sizes import packed_bytes
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.training.inference import device_of

Reducer = Literal["overall", "mean", "worst_group", "cvar"]
Floats: TypeAlias = NDArray[np.float64]
KEY = ["layer", "bits"]


def tail_mean(values: Floats, alpha: float) -> Floats:
    r"""Conditional value at risk at level ``alpha`` of values (..., G), each weighing 1/G.

    The mean of the largest ``(1 - alpha) G`` values, the last of them by its fraction; equal to
    ``min over eta of  eta + sum_g max(v_g - eta, 0) / ((1 - alpha) G)`` (Rockafellar & Uryasev
    2000). The mean at 0; the maximum from ``1 - 1 / G`` on.

    Examples
    --------
    >>> float(tail_mean(np.array([1.0, 5.0, 3.0, 2.0]), 0.5))  # of the worst two
    4.0
    >>> float(tail_mean(np.array([1.0, 5.0, 3.0]), 0.5))  # (5 + 3 / 2) / 1.5
    4.333333333333333
    """
    mass = (1 - alpha) * values.shape[-1]
    shares = np.clip(mass - np.arange(values.shape[-1]), 0, 1)
    found: Floats = np.sort(values, axis=-1)[..., ::-1] @ (shares / shares.sum())
    return found


# (values (..., G), weights of the groups (G,), alpha) -> (...)
REDUCERS: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "overall": lambda values, weights, alpha: values @ weights,
    "mean": lambda values, weights, alpha: values.mean(axis=-1),
    "worst_group": lambda values, weights, alpha: values.max(axis=-1),
    "cvar": lambda values, weights, alpha: tail_mean(values, alpha),
}


@dataclass(frozen=True)
class ByGroup:
    """Sensitivities as an array, and how to reduce it over groups.

    Attributes
    ----------
    rows : DataFrame of R rows
        ``layer``, ``bits`` and ``bytes`` of every candidate, in the table's order.
    names : G names of groups
    values : float64 (R, G)
        Sensitivities.
    reduce : (..., G) -> (...)
    """

    rows: pd.DataFrame
    names: tuple[str, ...]
    values: Floats
    reduce: Callable[[Floats], Floats]


def by_group(
    table: pd.DataFrame,
    reducer: str,
    alpha: float = 0.5,
    weights: Mapping[str, float] | None = None,
    what: str = "reduced",
) -> ByGroup:
    """Read a table of group sensitivities; parameters and errors as in :func:`reduced`."""
    needed = [*KEY, "group", "images", "sensitivity", "bytes"]
    lacking = [column for column in needed if column not in table]
    if lacking or not len(table):
        raise BadInput(
            f"{what}: table: has no {lacking[0] if lacking else 'rows'}; give what "
            "group_sensitivities returns"
        )
    refuse_settings(reducer, alpha, weights, what)
    groups = table.drop_duplicates("group")
    names = tuple(groups["group"])
    rows = table.drop_duplicates(KEY)[[*KEY, "bytes"]].reset_index(drop=True)
    twice = table[table.duplicated([*KEY, "group"])]
    if len(twice) or len(table) != len(rows) * len(names):
        raise BadInput(
            f"{what}: table: has {len(table)} rows, not one for each of {len(rows)} candidates and "
            f"{len(names)} groups; give what group_sensitivities returns"
        )
    wide = table.set_index([*KEY, "group"])["sensitivity"].unstack("group")
    values = wide.loc[pd.MultiIndex.from_frame(rows[KEY]), list(names)].to_numpy(float)
    each = _weights(names, groups["images"].to_numpy(float), weights, what)
    return ByGroup(rows, names, values, lambda found: REDUCERS[reducer](found, each, alpha))


def reduced(
    table: pd.DataFrame,
    reducer: Reducer = "worst_group",
    *,
    alpha: float = 0.5,
    weights: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """One sensitivity per layer and candidate, as :func:`fairq_utils.quantizers.allocate` takes it.

    Parameters
    ----------
    table : from :func:`~fairq_utils.mitigation.group_sensitivity.group_sensitivities`
    reducer : str
        ``overall``: groups by ``weights``; ``mean``: each group alike; ``worst_group``: the
        largest; ``cvar``: the mean of the worst tail, see :func:`tail_mean`. Taken for each layer
        by itself, a worst group need not be the same from layer to layer;
        :func:`~fairq_utils.mitigation.group_mixed.allocate_for_groups` reduces the groups' sums.
    alpha : float
        Of ``cvar``, in [0, 1): 0.5 is the worst half.
    weights : mapping of group to weight, optional
        For ``overall``, of any sum; the groups' shares of the images if not given.

    Returns
    -------
    DataFrame
        ``layer``, ``bits``, ``sensitivity``, ``bytes``.

    Raises
    ------
    BadInput
        An unknown reducer, an alpha outside [0, 1), weights of other groups, negative ones or for
        another reducer, or a table that lacks a row.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": "a", "bits": "W4A8", "group": ["f", "m"],
    ...                       "images": [30, 10], "sensitivity": [0.2, 0.6], "bytes": 8})
    >>> reduced(table).sensitivity.item(), round(reduced(table, "overall").sensitivity.item(), 3)
    (0.6, 0.3)
    """
    found = by_group(table, reducer, alpha, weights)
    values = found.reduce(found.values)
    return found.rows.assign(sensitivity=values)[[*KEY, "sensitivity", "bytes"]]


def refuse_settings(
    reducer: str, alpha: float, weights: Mapping[str, float] | None, what: str
) -> None:
    """Refuse an unknown reducer, an alpha outside [0, 1), and weights that it does not use."""
    if reducer not in REDUCERS:
        raise BadInput(f"{what}: {reducer!r} is not one of {', '.join(REDUCERS)}")
    if not 0 <= alpha < 1:
        raise BadInput(f"{what}: alpha: {alpha!r} is not in [0, 1), such as 0.5")
    if weights is not None and reducer != "overall":
        raise BadInput(
            f"{what}: weights: only 'overall' weighs groups, {reducer!r} does not; leave them out"
        )


def _weights(
    names: tuple[str, ...], images: Floats, weights: Mapping[str, float] | None, what: str
) -> Floats:
    """Weight of each group, summing to 1: as given, or its share of the images, (G,)."""
    if weights is None:
        return images / images.sum()
    if set(weights) != set(names):
        raise BadInput(
            f"{what}: weights: are those of {', '.join(map(str, weights))}, but the groups are "
            f"{', '.join(names)}"
        )
    found = np.array([float(weights[name]) for name in names])
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise BadInput(f"{what}: weights: {dict(weights)} must be 0 or more, and not all of them 0")
    return found / found.sum()


Measure = Literal["output", "loss", "layer"]
COLUMNS = ["layer", "bits", "group", "images", "sensitivity", "bytes"]
WHAT = "group_sensitivities"


@usual_modes()
def group_sensitivities(
    observed: Observed,
    specs: Sequence[QuantSpec],
    sample: Sample,
    *,
    measure: Measure = "output",
) -> pd.DataFrame:
    """Quantize one layer at a time, at every candidate spec, and measure what each group notices.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
        It stays as it is.
    specs : candidates
        As in :func:`fairq_utils.quantizers.sensitivities`: the first and the last layer are tried
        at ``first_last_bits`` or more, and weights are rounded to nearest.
    sample : Sample
        Images of every group; not those that the result will be tested on. What is said of a group
        is as noisy as the group is small, its ``loss`` more so than its noise.
    measure : str
        ``output``: noise over signal in the model's output y, ``sum_{i in g} |y_i - y^_i|^2 /
        sum_{i in g} |y_i|^2``. ``loss``: increase of the mean cross-entropy of the group, which may
        be below 0. ``layer``: noise over signal in the layer's own output, of which one pass shows
        all; it says nothing of what later layers make of it.

    Returns
    -------
    DataFrame
        A row per layer, in order of execution, distinct spec, and group that has an image:
        ``layer``; ``bits``; ``group``, as it is shown; ``images`` of the group; ``sensitivity``;
        ``bytes`` of the layer.

    Raises
    ------
    BadInput
        No images, labels that the model has no logit for, or outputs that are not one row per
        image.
    ValueError
        No candidate, an unknown measure, two candidates of the same bits, or an effect that is not
        finite.
    """
    refuse_measure(measure, get_args(Measure), WHAT)
    refuse_candidates(observed, specs, WHAT)
    if not len(sample):
        raise BadInput(f"{WHAT}: sample: has no images; give some of every group")
    names = [sample.name(code) for code in sample.present]
    if len(set(names)) < len(names):
        raise BadInput(
            f"{WHAT}: sample: two groups have one name among {', '.join(names)}; rename a value"
        )
    sizes = np.unique(sample.groups.codes, return_counts=True)[1].tolist()
    rows = []
    with torch.no_grad():
        for name, layer, values in MEASURES[measure](observed, specs, sample):
            bits, size = layer.spec.label, packed_bytes(layer)
            for group, images, value in zip(names, sizes, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise ValueError(
                        f"{WHAT}: {bits} in layer {name!r} has no finite effect on {group!r}; an "
                        "output is not finite, or all zeros in float: check the images and the "
                        "model"
                    )
                rows.append((name, bits, group, images, value, size))
    return pd.DataFrame(rows, columns=COLUMNS)


def _noises(
    walk: Callable[..., Found[Floats]],
    observed: Observed,
    specs: Sequence[QuantSpec],
    sample: Sample,
) -> Found[Floats]:
    images, add = _images(observed, sample), _adding(sample)

    def powers(batch: int, reference: Tensor, other: Tensor) -> Floats:
        _refuse_rows(reference, len(images[batch]))
        both = squares(reference, other)
        return np.stack([add(batch, x.reshape(len(x), -1).sum(dim=1)) for x in both])

    def one_row(batch: int, reference: Tensor, other: Tensor) -> Floats:
        _refuse_rows(reference, 1)
        return np.zeros(1)

    if walk is layer_powers:
        # A batch of as many images as a layer has positions would hide that rows are positions.
        list(layer_powers(observed, specs[:1], [images[0][:1]], one_row))
    for name, layer, sums in walk(observed, specs, images, powers):
        yield name, layer, np.array([noise_over_signal(*pair) for pair in sums.T.tolist()])


def _loss_increases(
    observed: Observed, specs: Sequence[QuantSpec], sample: Sample
) -> Found[Floats]:
    images, add = _images(observed, sample), _adding(sample)
    refuse_labels(sample.labels, checked(observed.model(images[0][:1].clone()), 1, WHAT), WHAT)
    labels = sample.labels.to(images[0].device).split(CHUNK)
    sizes = np.unique(sample.groups.codes, return_counts=True)[1]

    def means(model: nn.Module) -> Floats:
        sums: Floats = np.zeros(len(sizes))
        for at, (x, y) in enumerate(zip(images, labels, strict=True)):
            sums += add(at, classification_loss(model(x.clone()), y, "none"))
        return sums / sizes

    before = means(observed.model)
    for name, layer, model in one_at_a_time(observed, specs):
        yield name, layer, means(model) - before


MEASURES: dict[str, Callable[[Observed, Sequence[QuantSpec], Sample], Found[Floats]]] = {
    "output": partial(_noises, output_powers),
    "loss": _loss_increases,
    "layer": partial(_noises, layer_powers),
}


def _images(observed: Observed, sample: Sample) -> list[Tensor]:
    device = device_of(observed.model)
    return [x.to(device) for x, _, _ in sample.batches()]


def _adding(sample: Sample) -> Callable[[int, Tensor], Floats]:
    """``(number of the batch, a number per image (B,)) -> its sum in each group (G,)``."""
    present, codes = np.unique(sample.groups.codes, return_inverse=True)
    parts = [codes[start : start + CHUNK] for start in range(0, len(codes), CHUNK)]

    def add(batch: int, values: Tensor) -> Floats:
        sums = np.bincount(parts[batch], values.double().cpu().numpy(), len(present))
        return sums.astype(np.float64)  # as it is; the stub says integers

    return add


def _refuse_rows(output: object, images: int) -> None:
    if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != images:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BadInput(
            f"{WHAT}: an output for {images} images is {shape}, not a row per image, so that it "
            "cannot be told apart by group; of layers like that take measure='output'"
        )
