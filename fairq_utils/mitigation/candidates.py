"""Candidates that a quantizer that certifies may return: methods of the registry, cheapest first.

Ranges come from :data:`CALIBRATED` of the images that make candidates; what looks at groups looks
at all of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from fairq_utils import calibration
from fairq_utils.mitigation.accuracy_control import control_accuracy
from fairq_utils.mitigation.fine_tuning import train_under
from fairq_utils.mitigation.sample import CHUNK, Sample
from fairq_utils.mitigation.task import balanced_size
from fairq_utils.quantizers.calibrate import Observed, observe_for
from fairq_utils.quantizers.methods import METHODS, Fit, Result, Task
from fairq_utils.quantizers.post_training import quantize_observed
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec
from fairq_utils.training.inference import device_of
from fairq_utils.training.loop import Recipe

WIDER = 2  # bits that mixed precision may spend per weight, beyond bit_width
CALIBRATED = 512  # images that set ranges, of those that make the candidates
RECIPE = Recipe(epochs=1, learning_rate=1e-4, batch_size=CHUNK)  # of fine-tuning


def candidate_task(
    model: nn.Module,
    spec: QuantSpec,
    sample: Sample,
    train: Sample | None,
    limit: float,
    seed: int,
) -> Task:
    """Task that every candidate is made from; calibrates at once.

    Parameters
    ----------
    sample : images that make the candidates
    train : images to fine-tune on; None where that is not allowed
    limit : of the gap or its increase, a fraction
        Half of it is what layers go back to float for.
    """
    observed = calibrated(model, sample, spec, "random", seed)

    def tune(network: nn.Module, constraint: str | None) -> Mapping[str, Any]:
        assert train is not None and constraint is not None
        return train_under(constraint, network, observed.model, train, RECIPE, seed)

    return Task(
        model,
        spec,
        None,
        lambda: observed,
        lambda: sample,
        lambda: sample,
        tune,
        {"max_drop": limit / 2},
        seed=seed,
    )


def calibrated(
    model: nn.Module, sample: Sample, spec: QuantSpec, sampler: str, seed: int
) -> Observed:
    """Calibration statistics of at most :data:`CALIBRATED` images of a sample."""
    groups = pd.DataFrame({"group": [sample.name(code) for code in sample.groups.codes]})
    count = min(CALIBRATED, len(sample))
    if sampler == "group_balanced":
        count = min(count, balanced_size(groups))
    rows = calibration.draw(
        sampler,
        groups,
        sample.labels.numpy().astype(np.int8),
        count,
        seed=seed,
        attributes=["group"],
    )
    device = device_of(model)
    batches = (images.to(device) for images, _, _ in sample.take(rows).batches())
    # Kept: which layers are sensitive to few bits is measured on these images.
    return observe_for(model, batches, spec, keep=True)


def _by(method: str, **settings: Any) -> Fit:
    """Fit of a method, with its own settings but those named here."""

    def fit(task: Task) -> Result:
        chosen = METHODS[method]
        return chosen.fit(replace(task, settings={**chosen.settings, **settings}))

    return fit


def _balanced(task: Task) -> Result:
    def observed() -> Observed:
        return calibrated(task.model, task.calibration(), task.spec, "group_balanced", task.seed)

    return _by("ptq")(replace(task, observed=observed))


def _mixed(task: Task) -> Result:
    """Bits where the worst group needs them; of eight bits, layers back to float.

    The latter by the gap itself, which no method of the registry looks at: as one, it would be in
    every study's list.
    """
    bits = task.spec.weight_bits
    if bits == max(WIDTHS):
        return control_accuracy(
            task.observed(),
            task.spec,
            task.validation(),
            criterion="gap",
            max_drop=task.settings["max_drop"],
        )
    wider = replace(task.spec, weight_bits=min(w for w in WIDTHS if w >= bits + WIDER))
    budget = quantize_observed(task.observed(), wider)[1].size_bytes
    return _by("mixed_worst", budget=budget)(task)


# In order of cost: the first of those certified is returned.
CANDIDATES: dict[str, Fit] = {
    "static": _by("ptq"),
    "balanced calibration": _balanced,
    "preserved channels": _by("channels_worst"),
    "mixed precision": _mixed,
    "fine-tuned": _by("qat_balancing_act"),
}
