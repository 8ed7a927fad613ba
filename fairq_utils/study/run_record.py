"""A run: everything that decides a result, named by its content, and the record that it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils.fingerprint import fingerprint


@dataclass(frozen=True)
class Run:
    """Everything that decides a result, and nothing else.

    Attributes
    ----------
    data : population parameters and split sizes that matter to the run
    architecture : name that :func:`fairq_utils.training.zoo.find` knows
    training : seed and hyperparameters
    method : ``fp32``, or a name in :data:`fairq_utils.quantizers.methods.METHODS`
    bits : such as ``W4A8``; None for FP32
    ranges, percentile, sampler, calibration_images, calibration_seed : of static quantization
    settings : of the method, and ``attributes`` where groups have a say
    weights : name of the FP32 weights that the run starts from, a hash of what decides them
    code : version of the code that the run depends on
    """

    data: dict[str, Any]
    architecture: str
    training: dict[str, Any]
    method: str
    bits: str | None
    ranges: str | None
    percentile: float | None
    sampler: str | None
    calibration_images: int | None
    calibration_seed: int | None
    settings: dict[str, Any]
    weights: str
    code: str

    @cached_property
    def key(self) -> str:
        """Twenty hex digits: the hash of the run's content."""
        return fingerprint({entry.name: getattr(self, entry.name) for entry in fields(self)})

    @property
    def setting(self) -> str:
        """Images and settings that runs of one method may differ in, in words."""
        images = [f"{self.calibration_images} images"] if self.calibration_images else []
        named = {k: v for k, v in sorted(self.settings.items()) if k != "attributes"}
        own = [f"{name} {value}" for name, value in named.items() if value is not None]
        return ", ".join(images + own)

    def __str__(self) -> str:
        parts = (self.method, self.bits, self.ranges, self.sampler, self.setting)
        return " ".join(part for part in parts if part)

    def __hash__(self) -> int:
        return int(self.key, 16)


@dataclass(frozen=True)
class RunRecord:
    """Record of a run: predictions, counts, sizes and provenance.

    Attributes
    ----------
    counts : int64 (G, 2, 2, 2)
        Group x label x FP32 prediction x this run's prediction.
    scores : float16 (N,)
        Margin of every test image; its sign is the prediction.
    cells : int16 (N,)
        Group number x 2 + label of every test image.
    validation_scores, validation_cells : float16 (V,), int16 (V,)
        The same of the validation images: thresholds are placed there.
    size_bytes : int
        Weights as they would be stored.
    seconds : float
        Wall time of the run.
    measures, provenance, report : mappings
        Further figures, where they came from, and what the quantizer did.
    """

    run: Run
    attributes: tuple[str, ...]
    groups: tuple[str, ...]
    counts: NDArray[np.int64]
    scores: NDArray[np.float16]
    cells: NDArray[np.int16]
    validation_scores: NDArray[np.float16]
    validation_cells: NDArray[np.int16]
    size_bytes: int
    seconds: float
    measures: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
