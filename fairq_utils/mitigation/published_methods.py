"""The published study's methods, by its names: what each does with a model and images.

Those that this study has too (:data:`fairq_utils.quantizers.methods.METHODS`) are the same here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fairq_utils.errors import BadInput
from fairq_utils.metrics.model_metrics import device_of
from fairq_utils.mitigation.accuracy_control import control_accuracy
from fairq_utils.mitigation.balancing_act import affordable_memory
from fairq_utils.mitigation.fine_tuning import fine_tune
from fairq_utils.mitigation.group_mixed import quantize_mixed_for_groups
from fairq_utils.mitigation.group_ranges import observe_groups
from fairq_utils.mitigation.methods import mixed_budget
from fairq_utils.mitigation.preservation import preservation
from fairq_utils.mitigation.sample import Sample
from fairq_utils.quantizers.calibrate import Observed, observe
from fairq_utils.quantizers.methods import BEST_RANGES
from fairq_utils.quantizers.methods import METHODS as STUDIED
from fairq_utils.quantizers.mixed_precision import float_classifier, quantize_mixed
from fairq_utils.quantizers.post_training import quantize_dynamic, quantize_observed
from fairq_utils.quantizers.qat import finish_qat, prepare_qat
from fairq_utils.quantizers.report import QuantReport
from fairq_utils.quantizers.sensitivity import classification_loss, nearest
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.training.loop import Recipe, optimise


class _OnLabels(nn.Module):
    """The loss of batches that bring their labels."""

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return classification_loss(model(images), labels)


@dataclass(frozen=True)
class Task:
    """What a method works on.

    Attributes
    ----------
    model : as it was given
    spec : QuantSpec
    batches, rows : calibration images on the model's device, and their places in the pool
    epoch : gives the batches of one pass of training: images and labels on the model's device
    steps : batches of one pass
    recipe : Recipe
    people : gives the pool, or what there is to train on, with labels and groups
        Refuses, by name, what has none.
    budget : of mixed precision, or None
    seed : int
    """

    model: nn.Module
    spec: QuantSpec
    batches: list[Tensor]
    rows: list[int]
    epoch: Callable[[], Iterator[tuple[Tensor, ...]]]
    steps: int
    recipe: Recipe
    people: Callable[[bool], Sample]
    budget: int | float | None
    seed: int

    def observed(self, *, keep: bool = False) -> Observed:
        """What calibration leaves behind."""
        spec = self.spec
        return observe(
            self.model,
            self.batches,
            [spec.activation_range],
            equalization=spec.equalization,
            keep=keep or spec.bias_correction or spec.rounding != "nearest",
        )

    def train(self, network: nn.Module) -> nn.Module:
        """Train in place; the global random state stays as it is."""
        device = device_of(self.model)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            objective = _OnLabels()
            optimise(network, objective, self.epoch, self.steps, self.recipe, device=device)
        return network


Result = tuple[nn.Module, QuantReport]


def _static(task: Task) -> Result:
    return quantize_observed(task.observed(), task.spec)


def _dynamic(task: Task) -> Result:
    example = task.batches[0] if task.batches else None
    return quantize_dynamic(task.model, task.spec, example)


def _trained(task: Task) -> Result:
    seen = task.observed()
    network = task.train(prepare_qat(seen, task.spec))
    return finish_qat(network, seen, task.spec)


def _mixed(task: Task) -> Result:
    seen = task.observed(keep=True)
    # Not by the loss, though there may be labels: of a calibration set, it is mostly chance.
    return quantize_mixed(seen, _budget(task, seen), task.spec)


def _budget(task: Task, seen: Observed) -> int | float:
    return mixed_budget(seen, nearest(task.spec)) if task.budget is None else task.budget


def _group_ranges(task: Task) -> Result:
    rules = [task.spec.activation_range]
    options = {"equalization": task.spec.equalization, "keep": task.spec.bias_correction}
    drawn = task.people(False).take(task.rows)
    seen = observe_groups(task.model, drawn, rules, weighting="mean", **options)
    return quantize_observed(seen, task.spec)


def _preserved(task: Task) -> Result:
    budget: dict[str, Any] = {} if task.budget is None else {"budget": task.budget}
    return preservation(task.observed(), task.spec, task.people(False), seed=task.seed, **budget)


def _group_mixed(task: Task) -> Result:
    seen = task.observed()
    return quantize_mixed_for_groups(
        seen,
        _budget(task, seen),
        task.spec,
        task.people(False),
        objective="worst_group",
        measure="layer",
    )


def _controlled(task: Task) -> Result:
    return control_accuracy(task.observed(), task.spec, task.people(False))


def _fairly_tuned(task: Task) -> Result:
    people = task.people(True)
    return fine_tune(
        task.observed(),
        task.spec,
        people,
        "balancing_act",
        epochs=task.recipe.epochs,
        learning_rate=task.recipe.learning_rate,
        batch_size=min(task.recipe.batch_size, len(people)),
        seed=task.seed,
        memory=affordable_memory(people.sizes),
    )


def _float_classifier(task: Task) -> Result:
    return float_classifier(task.observed(), task.spec)


@dataclass(frozen=True)
class Method:
    """A way to quantize.

    Attributes
    ----------
    quantize : from a task to a module and its report
    options : of the :class:`~fairq_utils.quantizers.QuantSpec`, beside the bits
    sampler : who is drawn for calibration, of :data:`~fairq_utils.calibration.SAMPLERS`
    calibrates, trains : whether it needs images, and labels
    budgeted : whether it spends a budget of bytes
    """

    quantize: Callable[[Task], Result]
    options: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = "random"
    calibrates: bool = True
    trains: bool = False
    budgeted: bool = False


METHODS: dict[str, Method] = {
    "ptq": Method(_static),
    "bias_aware_calibration": Method(_static, sampler="group_balanced"),
    "dynamic": Method(_dynamic, STUDIED["dynamic"].options, calibrates=False),
    "weight_only": Method(_static, {"activation": "float"}),
    "qat": Method(_trained, STUDIED["qat"].options, trains=True),
    "mixed_precision": Method(_mixed, budgeted=True),
    "group_ranges": Method(_group_ranges, BEST_RANGES),
    "preservation": Method(_preserved, BEST_RANGES, budgeted=True),
    "group_mixed_precision": Method(_group_mixed, BEST_RANGES, budgeted=True),
    "accuracy_control": Method(_controlled, BEST_RANGES),
    "fairness_finetuning": Method(_fairly_tuned, STUDIED["qat"].options, trains=True),
    "float_classifier": Method(_float_classifier),
    "adaround": Method(_static, STUDIED["adaround"].options),
    "reconstruction": Method(_static, STUDIED["block"].options),
    "equalization": Method(_static, STUDIED["equalized"].options),
}


def known(method: str) -> str:
    """The name of a method as it stands in :data:`METHODS`."""
    name = str(method).lower()
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        near = near or [other for other in METHODS if other.startswith(name)]
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadInput(
            f"apply_quantization: method {method!r} is not one of {', '.join(METHODS)}{hint}"
        )
    return name
