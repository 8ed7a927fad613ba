"""A method's task from what a user has: a model, and loaders of images, labels and groups.

A study makes its tasks from its own faces (:mod:`fairq_utils.study.run_models`).
"""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairq_utils import calibration
from fairq_utils.calibration import SAMPLERS
from fairq_utils.data.batches import Batch, gather, read, rows_of
from fairq_utils.errors import BadInput
from fairq_utils.mitigation.fine_tuning import train_under
from fairq_utils.mitigation.pool import pool_features, pool_losses
from fairq_utils.mitigation.sample import CHUNK, Sample, of_batch
from fairq_utils.quantizers.calibrate import observe_for
from fairq_utils.quantizers.checks import check_model
from fairq_utils.quantizers.copying import copied
from fairq_utils.quantizers.methods import Method, Task
from fairq_utils.quantizers.sensitivity import classification_loss
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.training.inference import device_of, evaluating, refuse_probabilities
from fairq_utils.training.loop import Recipe, optimise

LABELLED = {"labels", "groups", "validation"}  # needs that bring labels
FEW = 8  # images of a group in a balanced draw, below which a user should know


@dataclass(frozen=True)
class UserData:
    """Images that a user gives to calibrate and to train on.

    Attributes
    ----------
    pool : images that the calibration set is drawn from, in memory; None where there are none
    train : iterable of (images, labels[, groups]) to train on, instead of the pool
    attributes : names of sensitive attributes; all that the batches have, if none is named
    sampler : of :data:`fairq_utils.calibration.SAMPLERS`
    calibration_images : drawn at most
    recipe : of methods that train
    seed : of the draw and of the training's order
    outputs : what one output of the model is; see :class:`~fairq_utils.training.inference.Margins`
    """

    pool: Batch | None
    train: Iterable[Any] | None
    attributes: Sequence[str]
    sampler: str
    calibration_images: int
    recipe: Recipe
    seed: int
    outputs: str | None = None


def task_of(
    model: nn.Module, method: Method, spec: QuantSpec, data: UserData, settings: Mapping[str, Any]
) -> Task:
    """Task of a method; refuses what it cannot work on before anything is computed.

    Parameters
    ----------
    model : module of one tensor argument that returns logits
        It is not changed.
    settings : of the method, by name

    Raises
    ------
    BadInput
        A scripted model, or one that does not take these images; no labels or epochs for a method
        that trains. Later, when the method asks for them: images without the labels or groups that
        it looks at.
    ValueError, TypeError
        See :func:`fairq_utils.quantizers.checks.check_model`.
    """
    check_model(model, "apply_quantization")
    model = copied(model, "apply_quantization")  # which keeps what a forward pass leaves behind
    if isinstance(data.train, Iterator):  # gone through more than once
        data = dataclasses.replace(data, train=list(data.train))
    device, pool, recipe = device_of(model), data.pool, data.recipe
    batches, rows = list[Tensor](), list[int]()
    classes = 1
    if pool is not None:
        rows = _drawn(pool, data, model).tolist()
        batches = [part.to(device) for part in rows_of(pool, rows).images.split(CHUNK)]
        classes = _classes(model, batches[0][:1])
        if method.trains or LABELLED & method.needs:
            refuse_probabilities(model, batches, data.outputs, f"apply_quantization: {method.name}")
    epoch, steps = _training(data, classes, device)
    if method.trains and recipe.epochs < 1:
        raise BadInput(f"apply_quantization: epochs: {recipe.epochs} is not at least 1")
    if method.trains and not steps:
        raise BadInput(
            f"apply_quantization: {method.name} learns from labels, and calibration_data has "
            "none; let it yield (images, labels), or give train_data that does"
        )

    def train(network: nn.Module, constraint: str | None) -> Mapping[str, Any]:
        if constraint is not None:
            people = _people(data, method.name, to_train_on=True)
            return train_under(constraint, network, model, people, recipe, data.seed)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(data.seed)
            optimise(network, _OnLabels(), epoch, steps, recipe, device=device)
        return {}

    return Task(
        model,
        spec,
        batches[0] if batches else None,
        lambda: observe_for(model, batches, spec, keep="kept" in method.needs),
        lambda: _people(data, method.name).take(rows),
        lambda: _people(data, method.name),
        train,
        settings,
        seed=data.seed,
    )


def balanced_size(groups: pd.DataFrame) -> int:
    """Number of images of a group-balanced draw: the smallest cell that occurs, times cells.

    Examples
    --------
    >>> balanced_size(pd.DataFrame({"gender": ["f", "f", "f", "m", "m"]}))
    4
    """
    cells = groups.astype(str).value_counts()
    return int(cells.min()) * len(cells)


def attributes_of(
    pool: Batch, sensitive_attrs: Sequence[str], what: str = "calibration_data"
) -> pd.DataFrame:
    """Attributes to balance over, a DataFrame with one column each.

    Raises
    ------
    BadInput
        No groups, or an attribute that is not among them.
    """
    if pool.groups is None:
        raise BadInput(
            f"{what}: bias_aware_calibration draws as many images of each group, but there are no "
            "groups; let every batch be (images, labels, groups), with groups a mapping of "
            "attribute to values, or use method 'ptq'"
        )
    for name in sensitive_attrs:
        if name not in pool.groups:
            raise BadInput(f"sensitive_attrs: {name!r} is not among {', '.join(pool.groups)}")
    return pd.DataFrame({name: pool.groups[name] for name in sensitive_attrs or pool.groups})


class _OnLabels(nn.Module):
    """Loss of batches that bring their labels."""

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return classification_loss(model(images), labels)


def _people(data: UserData, method: str, *, to_train_on: bool = False) -> Sample:
    """Images with labels and groups: the pool, or those to train on where there are such."""
    what, batch = "calibration_data", data.pool
    if to_train_on and data.train is not None:
        what, batch = "train_data", gather(data.train, sys.maxsize, "train_data", data.attributes)
    if batch is None:
        raise BadInput(f"apply_quantization: method {method!r} looks at images; give {what}")
    try:
        found = of_batch(batch, data.attributes, what=what)
    except BadInput as error:
        raise BadInput(f"apply_quantization: method {method!r}: {error}") from None
    if len(found.present) < 2:
        raise _one_group(what, found.name(found.present[0]))
    return found


def _one_group(what: str, name: str) -> BadInput:
    return BadInput(
        f"apply_quantization: {what}: every image is of the group {name!r}, so that there is "
        "nothing to compare; give images of others too, or use method 'ptq'"
    )


def _drawn(pool: Batch, data: UserData, model: nn.Module) -> NDArray[np.int64]:
    """Rows of the calibration set."""
    sampler, images = SAMPLERS[data.sampler], len(pool.images)
    groups, most = pd.DataFrame(index=range(images)), images
    if pool.groups is not None and data.sampler != "random":
        groups = attributes_of(pool, data.attributes)
    if data.sampler == "group_balanced":
        groups = attributes_of(pool, data.attributes)
        most = balanced_size(groups)
        cells = groups.astype(str).agg(" ".join, axis=1).value_counts()
        if len(cells) < 2:
            raise _one_group("calibration_data", str(cells.index[0]))
        if cells.min() < FEW and most < min(data.calibration_images, images):
            warnings.warn(
                f"apply_quantization: the group {cells.idxmin()!r} has {cells.min()} images, so "
                f"that no more than {most} are drawn, as many of each group; add images of it, or "
                "leave an attribute out of sensitive_attrs",
                stacklevel=5,
            )
    labels = None if pool.labels is None else pool.labels.cpu().numpy()
    if labels is None and (data.sampler == "label_balanced" or sampler.needs == "losses"):
        raise BadInput(
            f"apply_quantization: sampler {data.sampler!r} looks at labels, and calibration_data "
            "has none; let it yield (images, labels)"
        )
    looked: dict[str, Any] = {}
    if sampler.needs == "losses":
        looked["losses"] = pool_losses(model, pool.images, labels)
    elif sampler.needs == "features":
        looked["features"] = pool_features(model, pool.images)
    return calibration.draw(
        data.sampler,
        groups,
        np.zeros(images, np.int8) if labels is None else labels,
        min(data.calibration_images, most),
        seed=data.seed,
        attributes=[str(name) for name in groups],
        **looked,
    )


def _classes(model: nn.Module, image: Tensor) -> int:
    """Number of labels that the model's logits tell apart."""
    try:
        with evaluating(model), torch.no_grad():
            logits = model(image)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BadInput(
            f"apply_quantization: the model does not take images of shape {tuple(image.shape[1:])} "
            f"and {image.dtype} as calibration_data gives them ({str(error).splitlines()[0]}); "
            "prepare them as for the float model"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim == 0:
        raise BadInput(
            f"apply_quantization: model returned {type(logits).__name__}, not a tensor of logits "
            "(N, classes) or (N,); wrap it in a module that returns them"
        )
    return max(2, logits.shape[1]) if logits.ndim > 1 else 2


def _training(
    data: UserData, classes: int, device: torch.device
) -> tuple[Callable[[], Iterator[tuple[Tensor, ...]]], int]:
    """Batches of one pass of training, and how many there are; 0 where there is no label."""
    generator, pool = torch.Generator().manual_seed(data.seed), data.pool
    if data.train is not None:
        # Every epoch goes through it again, which an iterator would not allow.
        source = data.train
        what = "train_data"
        steps = len(source) if isinstance(source, Sized) else sum(1 for _ in source)

        def batches() -> Iterator[Batch]:
            return read(source, what)

    elif pool is not None and pool.labels is not None:
        what, images = "calibration_data", len(pool.images)
        size = min(data.recipe.batch_size, images)
        steps = math.ceil(images / size)

        def batches() -> Iterator[Batch]:
            order = torch.randperm(images, generator=generator).tolist()
            return (rows_of(pool, order[i : i + size]) for i in range(0, images, size))

    else:
        return (lambda: iter(())), 0

    def epoch() -> Iterator[tuple[Tensor, ...]]:
        for at, batch in enumerate(batches()):
            if batch.labels is None:
                raise BadInput(f"{what}: batch {at} has no labels, which qat learns from")
            low, high = int(batch.labels.min()), int(batch.labels.max())
            if low < 0 or high >= classes:
                raise BadInput(
                    f"{what}: batch {at} has the label {low if low < 0 else high}, but the model "
                    f"tells labels 0 to {classes - 1} apart"
                )
            yield batch.images.to(device), batch.labels.to(device)

    return epoch, steps
