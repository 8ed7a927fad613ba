"""Fine-tuning of a quantized model under a constraint on its groups, and its control in float."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fairq_utils.data.faces import FaceData
from fairq_utils.errors import BadInput
from fairq_utils.mitigation.balancing_act import affordable_memory
from fairq_utils.mitigation.constraints import CONSTRAINTS
from fairq_utils.mitigation.group_facts import GroupFacts, counted, facts, groups_of
from fairq_utils.mitigation.sample import Sample
from fairq_utils.quantizers.calibrate import Observed
from fairq_utils.quantizers.methods import MSE, Fit, Result, Task, method
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.quantizers.qat import finish_qat, folded_float, prepare_qat
from fairq_utils.quantizers.report import QuantReport, float_bytes
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.training.inference import device_of
from fairq_utils.training.loop import Recipe, optimise

INSPECTED = ("weights", "multipliers")  # what a constraint has learnt of its groups


class OnFaces(nn.Module):
    """A constraint as an objective of :func:`fairq_utils.training.loop.fit`.

    Parameters
    ----------
    data : FaceData
        The rows that are trained on.
    constraint : from :data:`~fairq_utils.mitigation.constraints.CONSTRAINTS`
        Made from :func:`~fairq_utils.mitigation.group_facts.facts_of_faces` of the same data and
        attributes.
    attributes : names of sensitive attributes, crossed

    Raises
    ------
    BadInput
        The constraint was made for other groups; a group has no image; there is one group only.
    """

    def __init__(
        self, data: FaceData, constraint: nn.Module, attributes: Sequence[str] = ("gender", "age")
    ) -> None:
        super().__init__()
        groups = groups_of(data, attributes)
        wanted = cast(tuple[str, ...], constraint.names)
        if groups.names != wanted:
            raise BadInput(
                f"OnFaces: the constraint was made for the groups {_shown(wanted)}, and "
                f"{', '.join(groups.attributes)} make {_shown(groups.names)}; use facts_of_faces "
                "with the same attributes"
            )
        self.constraint = constraint
        self.target: Tensor
        self.codes: Tensor
        self.register_buffer("target", torch.from_numpy(data.target.astype(np.int64)))
        self.register_buffer("codes", torch.from_numpy(groups.codes))

    def forward(self, model: nn.Module, images: Tensor, rows: Tensor, flipped: Tensor) -> Tensor:
        """Loss of these images, a scalar; ``rows`` (B,) index the data."""
        loss: Tensor = self.constraint(model(images), self.target[rows], self.codes[rows])
        return loss


class OnLoader(nn.Module):
    """A constraint as an objective of :func:`fairq_utils.training.loop.optimise`.

    Batches bring images, labels and group codes, positions in ``facts.names``.
    """

    def __init__(self, constraint: nn.Module) -> None:
        super().__init__()
        self.constraint = constraint

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """Loss of a batch, a scalar."""
        loss: Tensor = self.constraint(model(images), labels, groups)
        return loss


@usual_modes()
def fine_tune(
    observed: Observed,
    spec: QuantSpec | None,
    sample: Sample,
    constraint: str = "none",
    *,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
    seed: int = 0,
    **options: Any,
) -> tuple[nn.Module, QuantReport]:
    """Quantization-aware training under a constraint, from the calibrated solution on.

    Whole batches in an order that the seed decides, another in every epoch, the same whatever the
    spec and the constraint: two models differ by these alone. The images are trained on as they
    are, without mirroring.

    Parameters
    ----------
    observed : from :func:`fairq_utils.quantizers.observe`
        Its model is the FP32 reference of the groups' accuracies. It stays as it is.
    spec : QuantSpec or None
        None is the control: the same training without quantization.
    sample : Sample
        Images to train on, labels 0 and 1, at least two groups.
    constraint : str
        Of :data:`~fairq_utils.mitigation.constraints.CONSTRAINTS`.
    epochs, learning_rate, batch_size : AdamW with a one-cycle schedule
    seed : int
        Of the order, and of what is random in the model. The global random state stays as it is.
    **options
        The constraint's: ``strength``, ``step``, ``adjustment``, ``tolerance``, ``dual_rate``,
        ``memory``, ``label_smoothing``.

    Returns
    -------
    module, report
        In float simulation, as from :func:`~fairq_utils.quantizers.finish_qat`. In the report,
        ``corrections["fine_tuning"]`` has the constraint, its options, the FP32 accuracy of each
        group, and the final weights or multipliers, where there are any.

    Raises
    ------
    BadInput
        An unknown constraint or option, an option out of range, fewer images than a batch, a group
        without an image, one group only, a label other than 0 and 1.
    ValueError
        As :func:`~fairq_utils.quantizers.prepare_qat`.

    Examples
    --------
    >>> from fairq_utils.mitigation.sample import as_sample
    >>> from fairq_utils.quantizers import observe
    >>> images = torch.randn(64, 3)
    >>> people = as_sample(images, [0, 1] * 32, {"gender": ["f", "f", "m", "m"] * 16})
    >>> network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> observed = observe(network, [images])
    >>> module, report = fine_tune(
    ...     observed, QuantSpec.parse("W4A8"), people, "odds", strength=0.5, batch_size=32
    ... )
    >>> report.layers, report.corrections["fine_tuning"]["constraint"]
    ({'0': 'W8A8', '2': 'W8A8'}, 'odds')
    """
    _check(sample, constraint, epochs, learning_rate, batch_size, options)
    work = folded_float(observed) if spec is None else prepare_qat(observed, spec)
    recipe = Recipe(epochs, learning_rate, batch_size)
    notes = train_under(constraint, work, observed.model, sample, recipe, seed, **options)
    if spec is None:
        module = work.eval().requires_grad_(False)
        report = _float_report(module, observed)
    else:
        module, report = finish_qat(work, observed, spec)
    corrections = {**report.corrections, "fine_tuning": notes}
    return module, dataclasses.replace(report, corrections=corrections)


@usual_modes()
def train_under(
    constraint: str,
    network: nn.Module,
    reference: nn.Module,
    sample: Sample,
    recipe: Recipe,
    seed: int,
    **options: Any,
) -> dict[str, Any]:
    """Train a network in place under a constraint on its groups.

    Parameters
    ----------
    constraint, sample, seed, options : see :func:`fine_tune`
        A batch, and the memory of ``balancing_act`` if none is named, are no larger than the images
        allow.
    reference : the float model that the groups' accuracies are measured of
    recipe : Recipe

    Returns
    -------
    dict
        Notes for the report: the constraint, its options, the reference's accuracy of each group,
        and the final weights or multipliers, where there are any.
    """
    known = facts(reference, sample)
    if constraint == "balancing_act":
        options = {"memory": affordable_memory(known.sizes), **options}
    objective = CONSTRAINTS[constraint](known, **options)
    whole = dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(sample)))
    _train(network, objective, sample, whole, seed)
    return _notes(constraint, options, known, objective)


def _train(
    model: nn.Module, constraint: nn.Module, sample: Sample, recipe: Recipe, seed: int
) -> None:
    """Train in place; the global random state stays as it is."""
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    codes, size = sample.codes, recipe.batch_size
    steps = len(sample) // size

    def epoch() -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(len(sample), generator=generator)
        for rows in order.split(size):
            parts = sample.images[rows], sample.labels[rows], codes[rows]
            yield tuple(part.to(device) for part in parts)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        optimise(model, OnLoader(constraint), epoch, steps, recipe, device=device)


def _float_report(model: nn.Module, observed: Observed) -> QuantReport:
    left = {**observed.left, **dict.fromkeys(observed.order, "was asked to stay in float")}
    size = float_bytes(model)
    return QuantReport(
        {}, {}, left, tuple(observed.folded), size, observed.float_bytes, observed.images
    )


def _notes(
    constraint: str, options: Mapping[str, Any], known: GroupFacts, objective: nn.Module
) -> dict[str, Any]:
    notes: dict[str, Any] = {"constraint": constraint, "options": dict(options)}
    notes["accuracies"] = dict(zip(known.names, known.accuracies, strict=True))
    buffers = dict(objective.named_buffers())
    for name in INSPECTED:
        if name in buffers:
            notes[name] = dict(zip(known.names, buffers[name].tolist(), strict=True))
    return notes


def _check(
    sample: Sample,
    constraint: str,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    options: Mapping[str, Any],
) -> None:
    if constraint not in CONSTRAINTS:
        raise BadInput(
            f"fine_tune: constraint {constraint!r} is not one of {', '.join(CONSTRAINTS)}"
        )
    allowed = [name for name in inspect.signature(CONSTRAINTS[constraint]).parameters][1:]
    for name in options:
        if name not in allowed:
            raise BadInput(
                f"fine_tune: {name!r} is no option of {constraint!r}; those are "
                f"{', '.join(allowed)}"
            )
    CONSTRAINTS[constraint](counted(sample.groups), **options)  # refuses bad options and groups
    if epochs < 1:
        raise BadInput(f"fine_tune: epochs: {epochs} is not at least 1")
    if not learning_rate > 0:
        raise BadInput(f"fine_tune: learning_rate: {learning_rate} is not greater than 0")
    if batch_size < 1 or len(sample) < batch_size:
        raise BadInput(
            f"fine_tune: sample has {len(sample)} images, and a batch takes {batch_size}; give "
            "more images, or a batch_size between 1 and their number"
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(name.replace("|", " ") for name in names)


def _fit(constraint: str) -> Fit:
    def fit(task: Task) -> Result:
        observed = task.observed()
        network = prepare_qat(observed, task.spec)
        notes = task.train(network, constraint)
        module, report = finish_qat(network, observed, task.spec)
        corrections = {**report.corrections, **({"fine_tuning": notes} if notes else {})}
        return module, dataclasses.replace(report, corrections=corrections)

    return fit


method(
    "qat_parity",
    label="parity penalty",
    family="group-aware fine-tuning",
    fit=_fit("parity"),
    options=MSE,
    needs="images kept groups labels",
    trains=True,
    constraint="parity",
    source="Buyl et al. 2024 (fairret)",
)
method(
    "qat_odds",
    label="odds penalty",
    family="group-aware fine-tuning",
    fit=_fit("odds"),
    options=MSE,
    needs="images kept groups labels",
    trains=True,
    constraint="odds",
    source="Buyl et al. 2024 (fairret)",
)
method(
    "qat_group_dro",
    label="group DRO",
    family="group-aware fine-tuning",
    fit=_fit("group_dro"),
    options=MSE,
    needs="images kept groups labels",
    trains=True,
    constraint="group_dro",
    source="Sagawa et al. 2020",
)
method(
    "qat_balancing_act",
    label="Balancing Act",
    family="group-aware fine-tuning",
    fit=_fit("balancing_act"),
    options=MSE,
    needs="images kept groups labels",
    trains=True,
    constraint="balancing_act",
    source="Hashemizadeh et al. 2024",
)
