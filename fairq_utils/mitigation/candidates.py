"""Candidates that a quantizer that certifies may return, the cheapest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch import nn

from fairq_utils import calibration
from fairq_utils.mitigation.accuracy_control import control_accuracy
from fairq_utils.mitigation.balancing_act import affordable_memory
from fairq_utils.mitigation.fine_tuning import fine_tune
from fairq_utils.mitigation.group_mixed import quantize_mixed_for_groups
from fairq_utils.mitigation.preservation import preserve
from fairq_utils.mitigation.sample import CHUNK, Sample
from fairq_utils.quantizers.calibrate import Observed, observe
from fairq_utils.quantizers.post_training import quantize_observed
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec
from fairq_utils.training.inference import device_of

WIDER = 2  # bits that mixed precision may spend per weight, beyond bit_width
CALIBRATED = 512  # images that set ranges, of those that make the candidates

Result = tuple[nn.Module, QuantReport]


@dataclass(frozen=True)
class Making:
    """Material that candidates are made from.

    Attributes
    ----------
    model : the float model
    spec : QuantSpec
    sample : Sample
    seen : what calibration on a random draw from it left behind
    train : images to fine-tune on; None where that is not allowed
    limit : of the gap or its increase
    seed : int
    """

    model: nn.Module
    spec: QuantSpec
    sample: Sample
    seen: Observed
    train: Sample | None
    limit: float
    seed: int


def calibrated(
    model: nn.Module, sample: Sample, spec: QuantSpec, sampler: str, seed: int
) -> Observed:
    """Calibration on at most :data:`CALIBRATED` images of a sample."""
    cells = pd.DataFrame({"group": [sample.name(code) for code in sample.groups.codes]})
    count_ = min(CALIBRATED, len(sample))
    if sampler == "group_balanced":
        count_ = min(count_, int(cells.value_counts().min()) * cells.nunique().item())
    rows = calibration.draw(
        sampler,
        cells,
        sample.labels.numpy().astype(np.int8),
        count_,
        seed=seed,
        attributes=["group"],
    )
    device = device_of(model)
    batches = (images.to(device) for images, _, _ in sample.take(rows).batches())
    # Kept: which layers mind few bits is measured on these images.
    return observe(model, batches, [spec.activation_range], keep=True)


def _static(made: Making) -> Result:
    return quantize_observed(made.seen, made.spec)


def _balanced(made: Making) -> Result:
    seen = calibrated(made.model, made.sample, made.spec, "group_balanced", made.seed)
    return quantize_observed(seen, made.spec)


def _preserved(made: Making) -> Result:
    return preserve(made.seen, made.spec, made.sample, unit="channels", by="worst_group")


def _mixed(made: Making) -> Result:
    """Bits where the worst group needs them; of eight bits, layers back to float."""
    bits = made.spec.weight_bits
    if bits == max(WIDTHS):
        return control_accuracy(
            made.seen, made.spec, made.sample, criterion="gap", max_drop=made.limit / 2
        )
    wider = replace(made.spec, weight_bits=min(w for w in WIDTHS if w >= bits + WIDER))
    budget = quantize_observed(made.seen, wider)[1].size_bytes
    return quantize_mixed_for_groups(
        made.seen, budget, made.spec, made.sample, objective="worst_group", measure="layer"
    )


def _fine_tuned(made: Making) -> Result:
    assert made.train is not None
    batch = min(CHUNK, len(made.train))
    return fine_tune(
        made.seen,
        made.spec,
        made.train,
        "balancing_act",
        batch_size=batch,
        seed=made.seed,
        memory=affordable_memory(made.train.sizes),
    )


# In order of cost: the first of those certified is returned.
CANDIDATES: dict[str, Callable[[Making], Result]] = {
    "static": _static,
    "balanced calibration": _balanced,
    "preserved channels": _preserved,
    "mixed precision": _mixed,
    "fine-tuned": _fine_tuned,
}
