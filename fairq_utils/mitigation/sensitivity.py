"""How much each group minds a layer being quantized: one layer at a time, every candidate spec.

As :func:`fairq_utils.quantizers.sensitivities`, group by group (Woergaard & Selvan 2026, FairQuant,
arXiv 2602.23192, allocate bits by the importance of layers to groups). One pass over all images for
each layer and candidate serves all groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fairq_utils.faults import BadInput
from fairq_utils.metrics.answers import device_of
from fairq_utils.mitigation.logits import checked, refuse_labels
from fairq_utils.mitigation.reducers import Floats
from fairq_utils.mitigation.sample import CHUNK, Sample
from fairq_utils.quantizers.ptq import Observed
from fairq_utils.quantizers.report import packed_bytes
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
from fairq_utils.quantizers.spec import QuantSpec

Measure = Literal["output", "loss", "layer"]
COLUMNS = ["layer", "bits", "group", "images", "sensitivity", "bytes"]
WHAT = "group_sensitivities"


def group_sensitivities(
    seen: Observed,
    specs: Sequence[QuantSpec],
    sample: Sample,
    *,
    measure: Measure = "output",
) -> pd.DataFrame:
    """Quantize one layer at a time, at every candidate spec, and measure what each group notices.

    Parameters
    ----------
    seen : from :func:`fairq_utils.quantizers.observe`
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
    refuse_candidates(seen, specs, WHAT)
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
        for name, layer, values in MEASURES[measure](seen, specs, sample):
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
    seen: Observed,
    specs: Sequence[QuantSpec],
    sample: Sample,
) -> Found[Floats]:
    images, add = _images(seen, sample), _adding(sample)

    def powers(batch: int, reference: Tensor, other: Tensor) -> Floats:
        _refuse_rows(reference, len(images[batch]))
        both = squares(reference, other)
        return np.stack([add(batch, x.reshape(len(x), -1).sum(dim=1)) for x in both])

    def one_row(batch: int, reference: Tensor, other: Tensor) -> Floats:
        _refuse_rows(reference, 1)
        return np.zeros(1)

    if walk is layer_powers:
        # A batch of as many images as a layer has positions would hide that rows are positions.
        list(layer_powers(seen, specs[:1], [images[0][:1]], one_row))
    for name, layer, sums in walk(seen, specs, images, powers):
        yield name, layer, np.array([noise_over_signal(*pair) for pair in sums.T.tolist()])


def _loss_increases(seen: Observed, specs: Sequence[QuantSpec], sample: Sample) -> Found[Floats]:
    images, add = _images(seen, sample), _adding(sample)
    refuse_labels(sample.labels, checked(seen.model(images[0][:1].clone()), 1, WHAT), WHAT)
    labels = sample.labels.to(images[0].device).split(CHUNK)
    sizes = np.unique(sample.groups.codes, return_counts=True)[1]

    def means(model: nn.Module) -> Floats:
        sums: Floats = np.zeros(len(sizes))
        for at, (x, y) in enumerate(zip(images, labels, strict=True)):
            sums += add(at, classification_loss(model(x.clone()), y, "none"))
        return sums / sizes

    before = means(seen.model)
    for name, layer, model in one_at_a_time(seen, specs):
        yield name, layer, means(model) - before


MEASURES: dict[str, Callable[[Observed, Sequence[QuantSpec], Sample], Found[Floats]]] = {
    "output": partial(_noises, output_powers),
    "loss": _loss_increases,
    "layer": partial(_noises, layer_powers),
}


def _images(seen: Observed, sample: Sample) -> list[Tensor]:
    device = device_of(seen.model)
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
