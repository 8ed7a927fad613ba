"""Fairness-aware quantization in the study, by name: what each does beyond plain quantization.

Every method starts where plain quantization does (the same calibration images, least-error ranges,
bits), so that a difference between the two is the method's. Choices are made on calibration and
validation images, never on the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fairq_utils.mitigation.accuracy_control import control_accuracy
from fairq_utils.mitigation.group_mixed import quantize_mixed_for_groups
from fairq_utils.mitigation.group_ranges import observe_groups
from fairq_utils.mitigation.preservation import preservation
from fairq_utils.mitigation.sample import Sample
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.methods import BEST_RANGES
from fairq_utils.quantizers.post_training import quantize_observed
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec

RANGES = BEST_RANGES["activation_range"]
ONE_GROUP = "one_group="  # a sampler's name begins so, and a group's follows
FEWER = 2  # bits by which mixed precision stays below eight, which would leave it no choice
LEAST = 1  # images that a group must have where layers are chosen

Result = tuple[nn.Module, QuantReport]


@dataclass(frozen=True)
class Task:
    """What a method works on.

    Attributes
    ----------
    model : the FP32 model
    spec : QuantSpec of plain quantization
    seen : what calibration on random images left behind
    calibration, validation : give the images of these splits, with labels and groups
    settings : ``kept``, ``max_drop``, ``max_reverted``
    seed : int
    """

    model: nn.Module
    spec: QuantSpec
    seen: Observed
    calibration: Callable[[], Sample]
    validation: Callable[[], Sample]
    settings: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class Method:
    """One way to mind the groups.

    Attributes
    ----------
    label : how it is called in figures and tables
    family : what it belongs to
    make : from a :class:`Task` to a module and its report; None where it trains
    validates : whether it looks at validation images
    constraint : of :data:`fairq_utils.mitigation.constraints.CONSTRAINTS`, where it trains
    settings : names of the settings that decide its result
    """

    label: str
    family: str
    make: Callable[[Task], Result] | None = None
    validates: bool = False
    constraint: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether labels of training images and further epochs are needed."""
        return self.constraint is not None

    @property
    def needs_everybody(self) -> bool:
        """Whether every group must be among the calibration images."""
        return self.family == "preservation"


def _ranges(weighting: str) -> Callable[[Task], Result]:
    def make(task: Task) -> Result:
        seen = observe_groups(
            task.model,
            task.calibration(),
            [task.spec.activation_range],
            weighting=weighting,  # type: ignore[arg-type]
        )
        return quantize_observed(seen, task.spec)

    return make


def _preserved(unit: str, by: str) -> Callable[[Task], Result]:
    def make(task: Task) -> Result:
        # Ablation passes over the images once for every layer; a gradient, once.
        images = task.calibration() if unit == "layers" else task.validation()
        return preservation(
            task.seen,
            task.spec,
            images,
            budget=task.settings["kept"],
            unit=unit,
            by=by,
            seed=task.seed,
        )

    return make


def mixed_budget(seen: Observed, spec: QuantSpec) -> int:
    """Bytes for mixed precision: of uniform bits, or of six where uniform is eight."""
    width = spec.weight_bits
    if width == max(WIDTHS):
        width -= FEWER
    return quantize_observed(seen, replace(spec, weight_bits=width))[1].size_bytes


def _mixed(objective: str) -> Callable[[Task], Result]:
    def make(task: Task) -> Result:
        return quantize_mixed_for_groups(
            task.seen,
            mixed_budget(task.seen, task.spec),
            task.spec,
            task.calibration(),
            objective=objective,  # type: ignore[arg-type]
            measure="layer",
        )

    return make


def _controlled(criterion: str) -> Callable[[Task], Result]:
    def make(task: Task) -> Result:
        return control_accuracy(
            task.seen,
            task.spec,
            task.validation(),
            max_drop=task.settings["max_drop"],
            max_reverted=task.settings["max_reverted"],
            criterion=criterion,  # type: ignore[arg-type]
            least=LEAST,
        )

    return make


KEPT, DROP = ("kept",), ("max_drop", "max_reverted")
METHODS: dict[str, Method] = {
    "ranges_mean": Method("each group's error alike", "ranges", _ranges("mean")),
    "ranges_worst": Method("worst group's error", "ranges", _ranges("worst")),
    "layers_random": Method(
        "layers, at random", "preservation", _preserved("layers", "random"), settings=KEPT
    ),
    "layers_overall": Method(
        "layers, by everybody", "preservation", _preserved("layers", "overall"), settings=KEPT
    ),
    "layers_worst": Method(
        "layers, by the worst group",
        "preservation",
        _preserved("layers", "worst_group"),
        settings=KEPT,
    ),
    "channels_random": Method(
        "channels, at random", "preservation", _preserved("channels", "random"), True, None, KEPT
    ),
    "channels_overall": Method(
        "channels, by everybody",
        "preservation",
        _preserved("channels", "overall"),
        True,
        None,
        KEPT,
    ),
    "channels_worst": Method(
        "channels, by the worst group",
        "preservation",
        _preserved("channels", "worst_group"),
        True,
        None,
        KEPT,
    ),
    "mixed_overall": Method("overall", "mixed precision", _mixed("overall")),
    "mixed_worst": Method("worst group", "mixed precision", _mixed("worst_group")),
    "mixed_cvar": Method("worst half of groups", "mixed precision", _mixed("cvar")),
    "control_overall": Method(
        "by everybody", "accuracy control", _controlled("overall"), True, None, DROP
    ),
    "control_worst": Method(
        "by the worst group", "accuracy control", _controlled("worst_group"), True, None, DROP
    ),
    "qat_parity": Method("parity penalty", "fine-tuning", constraint="parity"),
    "qat_odds": Method("odds penalty", "fine-tuning", constraint="odds"),
    "qat_group_dro": Method("group DRO", "fine-tuning", constraint="group_dro"),
    "qat_balancing_act": Method("Balancing Act", "fine-tuning", constraint="balancing_act"),
}
