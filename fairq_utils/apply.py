"""The published study's ``apply_quantization``: a model, the name of a method, a loader."""

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
from fairq_utils.mitigation.balancing_act import affordable_memory
from fairq_utils.mitigation.fine_tuning import train_under
from fairq_utils.mitigation.sample import Sample, of_batch
from fairq_utils.quantizers.calibrate import Observed, observe
from fairq_utils.quantizers.checks import check_model
from fairq_utils.quantizers.methods import METHODS, Task
from fairq_utils.quantizers.precision import full_precision
from fairq_utils.quantizers.sensitivity import classification_loss
from fairq_utils.quantizers.spec import WIDTHS, QuantSpec
from fairq_utils.registry import unknown
from fairq_utils.training.inference import device_of, evaluating
from fairq_utils.training.loop import Recipe, optimise

CHUNK = 64  # images per forward pass of calibration
PUBLISHED = "bias_aware_calibration"  # the published study's name of balanced calibration
SETTINGS = ("budget", "max_drop", "max_reverted")  # of methods, not of their specs
FEW = 8  # images of a group in a balanced draw, below which a user should know


class _OnLabels(nn.Module):
    """The loss of batches that bring their labels."""

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return classification_loss(model(images), labels)


@full_precision()
def apply_quantization(
    model: nn.Module,
    method: str = "bias_aware_calibration",
    bit_width: int | str = 8,
    calibration_data: Iterable[Any] | None = None,
    *,
    sampler: str | None = None,
    sensitive_attrs: Sequence[str] = (),
    calibration_images: int = 512,
    pool_images: int = 4096,
    train_data: Iterable[Any] | None = None,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Quantize a classifier by the name of a method.

    Parameters
    ----------
    model : module of one tensor argument that returns logits
        It is not changed, traced or moved; batches are moved to it.
    method : str
        Of :data:`fairq_utils.quantizers.methods.METHODS` (``fairq list methods`` prints them with
        what they need), or ``bias_aware_calibration``, the published study's name of ``ptq`` with
        ``sampler="group_balanced"``: static ranges from as many images of each group, all
        attributes crossed. Methods that are group-aware look at labels and groups.
    bit_width : int or str
        8 is W8A8, 4 is W4A4 (weights alone for ``weight_only``, W4A8 for ``dynamic``); or as
        ``"W4A8"``. The first and the last layer have at least 8 bits unless
        ``first_last_bits=None`` is given.
    calibration_data : iterable
        Of (images, labels, groups), (images, labels), (images,), or tensors of images. Groups are a
        mapping or DataFrame of attribute to values, or values without names: (N,) codes or words of
        one attribute, (N, K) of several.
    sampler : str, optional
        Of :data:`fairq_utils.calibration.SAMPLERS`: how images are drawn for calibration; at random
        if not given.
    sensitive_attrs : names of attributes
        To balance over; all if none is given. They also name values that come without names.
    calibration_images : int
        Drawn for calibration; fewer where there are fewer, or where the smallest group allows only
        fewer of each.
    pool_images : int
        At most so many images of ``calibration_data`` are held in memory, to draw from.
    train_data : iterable of (images, labels), optional
        For methods that train: one pass per epoch, batches as they come. Under a constraint on
        groups with these too, and held in memory. Without it, the pool is trained on.
    epochs, learning_rate, batch_size : for methods that train
        AdamW with a one-cycle schedule. ``batch_size`` is that of the pool.
    seed : int
        Of the draw and of the training's order.
    **options
        Settings of the method, such as ``budget`` (for mixed precision bytes, or a fraction of the
        float model's, the size at uniform ``bit_width`` if not given, 6 bits instead of 8, which
        would leave no choice; for ``channels_worst`` and its kind a share of the quantized size) or
        ``max_drop``; and further attributes of :class:`~fairq_utils.quantizers.QuantSpec`.

    Returns
    -------
    module
        With the signature of ``model``, in float simulation (see
        :func:`~fairq_utils.quantizers.use_integers`). Its attribute ``report`` is the
        :class:`~fairq_utils.quantizers.QuantReport`: bits of every layer, what stayed in float and
        why, size.

    Raises
    ------
    BadInput
        An unknown method or option; data that the method needs and is not there; nothing in the
        model could be quantized. Other ``ValueError`` are those of
        :mod:`fairq_utils.quantizers`.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> loader = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), {"gender": [0, 0, 1, 1]})]
    >>> apply_quantization(network, bit_width=8, calibration_data=loader).report.layers
    {'0': 'W8A8', '2': 'W8A8'}
    """
    name, drawn_by = _named(method, sampler)
    if isinstance(sensitive_attrs, str):
        sensitive_attrs = (sensitive_attrs,)
    chosen = METHODS[name]
    settings = {**chosen.settings, **{k: v for k, v in options.items() if k in chosen.settings}}
    _check_settings(name, options)
    spec = _spec(name, bit_width, {k: v for k, v in options.items() if k not in SETTINGS})
    recipe = Recipe(epochs, learning_rate, batch_size)
    pool = None
    if calibration_data is not None:
        pool = gather(calibration_data, pool_images, "calibration_data", sensitive_attrs)
    elif chosen.calibrates or chosen.trains:
        raise BadInput(
            f"apply_quantization: method {name!r} looks at images; give calibration_data, a loader "
            "of (images, labels, groups), (images, labels) or images"
        )
    source = _Source(
        model,
        name,
        spec,
        pool,
        recipe,
        train_data,
        sensitive_attrs,
        drawn_by,
        calibration_images,
        settings,
        seed,
    )
    module, report = chosen.fit(source.task())
    if report is None:  # the FP32 fine-tuning control
        return module.eval().requires_grad_(False)
    if not report.layers:
        reasons = [f"{layer or 'the model'}: {why}" for layer, why in report.left_float.items()]
        raise BadInput(
            f"apply_quantization: nothing in this {type(model).__name__} could be quantized "
            f"({'; '.join(reasons[:3]) or 'it has no layers'}); convolutions (nn.Conv2d) and "
            "linear layers (nn.Linear) that are called as modules can be"
        )
    module.report = report  # type: ignore[assignment]
    return module.eval()


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
    """The attributes to balance over, one column each."""
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


def _named(method: str, sampler: str | None) -> tuple[str, str]:
    """Method and sampler as the registries have them."""
    name = str(method).lower()
    if name == PUBLISHED:
        if sampler not in (None, "group_balanced"):
            raise BadInput(
                f"apply_quantization: {PUBLISHED} is ptq with sampler='group_balanced'; use "
                f"method='ptq' with sampler={sampler!r}"
            )
        name, sampler = "ptq", "group_balanced"
    if name not in METHODS:
        raise BadInput(f"apply_quantization: method {unknown(name, [*METHODS, PUBLISHED])}")
    drawn_by = sampler or "random"
    needs = SAMPLERS.find(drawn_by, "apply_quantization: sampler").needs
    if needs:
        raise BadInput(
            f"apply_quantization: sampler {drawn_by!r} needs {needs}; draw rows with "
            "fairq_utils.calibration.draw and give a loader of these"
        )
    return name, drawn_by


def _check_settings(name: str, options: Mapping[str, Any]) -> None:
    """Refuse settings that are other methods', and a budget that is none."""
    others = [other for other in SETTINGS if other in options]
    for other in others:
        if other not in METHODS[name].settings:
            having = [found for found, method in METHODS.items() if other in method.settings]
            raise BadInput(
                f"apply_quantization: {name} has no {other}; leave it out, or use one of "
                f"{', '.join(having)}"
            )
    budget = options.get("budget")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float)):
        raise BadInput(
            f"apply_quantization: budget: {budget!r} is no number; give bytes, or a fraction such "
            "as 0.05"
        )


def _spec(name: str, bit_width: int | str, options: Mapping[str, Any]) -> QuantSpec:
    fields = [entry.name for entry in dataclasses.fields(QuantSpec)]
    odd = [option for option in options if option not in fields]
    if odd:
        raise BadInput(
            f"apply_quantization: {odd[0]!r} is neither a parameter nor one of QuantSpec's: "
            f"{', '.join(fields)}"
        )
    if isinstance(bit_width, str):
        bits = bit_width
    elif isinstance(bit_width, bool) or bit_width not in WIDTHS:
        raise BadInput(
            f"apply_quantization: bit_width {bit_width!r} is not one of "
            f"{', '.join(map(str, WIDTHS))}, and no text such as 'W4A8'"
        )
    else:
        bits = f"W{bit_width}A{8 if name == 'dynamic' else bit_width}"
    spec = QuantSpec.parse(bits, **{**METHODS[name].options, **options})
    if spec.activation == "dynamic" and name != "dynamic":
        raise BadInput(
            f"apply_quantization: activation='dynamic' is a method of its own; use "
            f"method='dynamic' instead of {name!r}"
        )
    return spec


@dataclass(frozen=True)
class _Source:
    """Arguments of :func:`apply_quantization`, and the task that they make."""

    model: nn.Module
    name: str
    spec: QuantSpec
    pool: Batch | None
    recipe: Recipe
    train_data: Iterable[Any] | None
    sensitive_attrs: Sequence[str]
    sampler: str
    calibration_images: int
    settings: Mapping[str, Any]
    seed: int

    def task(self) -> Task:
        """The method's task; refuses what it cannot work on before anything is computed."""
        check_model(self.model, "apply_quantization")
        if isinstance(self.model, torch.jit.ScriptModule):
            raise BadInput(
                f"apply_quantization: this model is scripted ({type(self.model).__name__}), and "
                "its layers cannot be replaced; give the module that it was made from"
            )
        device, pool = device_of(self.model), self.pool
        train_data = self.train_data
        if isinstance(train_data, Iterator):  # gone through more than once
            train_data = list(train_data)
        batches, rows = list[Tensor](), list[int]()
        classes = 1
        if pool is not None:
            count, attributes = self.calibration_images, self.sensitive_attrs
            rows = _drawn(pool, self.sampler, attributes, count, self.seed).tolist()
            images = rows_of(pool, rows).images
            batches = [part.to(device) for part in images.split(CHUNK)]
            classes = _classes(self.model, batches[0][:1])
        trains, recipe = METHODS[self.name].trains, self.recipe
        epoch, steps = _training(pool, train_data, recipe, classes, device, self.seed)
        if trains and recipe.epochs < 1:
            raise BadInput(f"apply_quantization: epochs: {recipe.epochs} is not at least 1")
        if trains and not steps:
            raise BadInput(
                f"apply_quantization: {self.name} learns from labels, and calibration_data has "
                "none; let it yield (images, labels), or give train_data that does"
            )

        def people(training: bool = False) -> Sample:
            given = train_data if training else None
            return _people(pool, given, self.name, self.sensitive_attrs)

        def train(network: nn.Module, constraint: str | None) -> Mapping[str, Any]:
            if constraint is not None:
                return self._train_under(constraint, network, people(True))
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(self.seed)
                optimise(network, _OnLabels(), epoch, steps, recipe, device=device)
            return {}

        return Task(
            self.model,
            self.spec,
            batches[0] if batches else None,
            lambda: self._observed(batches),
            lambda: people().take(rows),
            people,
            train,
            self.settings,
            seed=self.seed,
        )

    def _observed(self, batches: list[Tensor]) -> Observed:
        """Statistics of calibration; images are kept for methods that look at them again."""
        spec = self.spec
        keep = "kept" in METHODS[self.name].needs
        return observe(
            self.model,
            batches,
            [spec.activation_range],
            equalization=spec.equalization,
            residuals=spec.residuals,
            attention_products=spec.attention_products,
            gates=spec.gates,
            keep=keep or spec.bias_correction or spec.rounding != "nearest",
        )

    def _train_under(self, constraint: str, network: nn.Module, people: Sample) -> dict[str, Any]:
        """Train in place under a constraint on groups; notes for the report."""
        batch = min(self.recipe.batch_size, len(people))
        options: dict[str, Any] = {}
        if constraint == "balancing_act":
            options["memory"] = affordable_memory(people.sizes)
        return train_under(
            constraint,
            network,
            self.model,
            people,
            dataclasses.replace(self.recipe, batch_size=batch),
            self.seed,
            **options,
        )


def _people(
    pool: Batch | None,
    train_data: Iterable[Any] | None,
    name: str,
    sensitive_attrs: Sequence[str],
) -> Sample:
    """Images to train on, or the pool, with labels and groups."""
    what, batch = "calibration_data", pool
    if train_data is not None:
        what, batch = "train_data", gather(train_data, sys.maxsize, "train_data", sensitive_attrs)
    if batch is None:
        raise BadInput(f"apply_quantization: method {name!r} looks at images; give {what}")
    try:
        found = of_batch(batch, sensitive_attrs, what=what)
    except BadInput as error:
        raise BadInput(f"apply_quantization: method {name!r}: {error}") from None
    if len(found.present) < 2:
        raise _one_group(what, found.name(found.present[0]))
    return found


def _one_group(what: str, name: str) -> BadInput:
    return BadInput(
        f"apply_quantization: {what}: every image is of the group {name!r}, so that there is "
        "nothing to compare; give images of others too, or use method 'ptq'"
    )


def _drawn(
    pool: Batch, sampler: str, sensitive_attrs: Sequence[str], count: int, seed: int
) -> NDArray[np.int64]:
    """Rows of the calibration set."""
    images = len(pool.images)
    groups, most = pd.DataFrame(index=range(images)), images
    if sampler == "group_balanced":
        groups = attributes_of(pool, sensitive_attrs)
        most = balanced_size(groups)
        cells = groups.astype(str).agg(" ".join, axis=1).value_counts()
        if len(cells) < 2:
            raise _one_group("calibration_data", str(cells.index[0]))
        if cells.min() < FEW and most < min(count, images):
            warnings.warn(
                f"apply_quantization: the group {cells.idxmin()!r} has {cells.min()} images, so "
                f"that no more than {most} are drawn, as many of each group; add images of it, or "
                "leave an attribute out of sensitive_attrs",
                stacklevel=4,
            )
    names = [str(name) for name in groups]
    target = np.zeros(images, np.int8)
    return calibration.draw(sampler, groups, target, min(count, most), seed=seed, attributes=names)


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
    pool: Batch | None,
    train_data: Iterable[Any] | None,
    recipe: Recipe,
    classes: int,
    device: torch.device,
    seed: int,
) -> tuple[Callable[[], Iterator[tuple[Tensor, ...]]], int]:
    """Batches of one pass of training, and how many there are; 0 where there is no label."""
    generator = torch.Generator().manual_seed(seed)
    if train_data is not None:
        # Every epoch goes through it again, which an iterator would not allow.
        source = train_data
        what = "train_data"
        steps = len(source) if isinstance(source, Sized) else sum(1 for _ in source)

        def batches() -> Iterator[Batch]:
            return read(source, what)

    elif pool is not None and pool.labels is not None:
        what, images = "calibration_data", len(pool.images)
        size = min(recipe.batch_size, images)
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
