"""One training loop; FP32 models, QAT and fine-tuning under constraints differ in the objective."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fairq_utils.data.faces import FaceData, Images
from fairq_utils.errors import BadInput
from fairq_utils.quantizers.modes import usual_modes
from fairq_utils.training.architectures import normalize
from fairq_utils.training.resume import Checkpoints, Keeper, Learner, Place

Progress = Callable[[int, int, float], None]
# objective(model, *batch) -> scalar loss; of a FaceData, a batch is images, rows, flipped
Objective = nn.Module
SETTLING = 2048  # images over which batch norms are averaged after training
REPORTED = 100  # steps between two calls of the progress callback
SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what autocast computes in
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Recipe:
    """Recipe of a training.

    Attributes
    ----------
    epochs : passes over the training split
    learning_rate : peak of a one-cycle schedule
    batch_size : images per step
    weight_decay : AdamW's decoupled decay
    precision : ``fp32``, ``bf16`` or ``fp16`` (autocast; weights stay float32)
        fp16, whose gradients are scaled lest they vanish, needs a GPU. A processor without bf16
        would imitate it at a twentieth of the speed and computes in fp32; see
        :func:`computes_in`.
    label_smoothing : share of the target spread over the other class
    """

    epochs: int
    learning_rate: float
    batch_size: int = 64
    weight_decay: float = 0.05
    precision: str = "fp32"
    label_smoothing: float = 0.02


@dataclass(frozen=True)
class History:
    """Mean loss of each epoch of a training, and its wall seconds."""

    loss: tuple[float, ...]
    seconds: float


class Passes:
    """Batches of images, half of them mirrored, in an order that a seed decides; pass after pass.

    Calling it begins a pass: images as networks take them (B, 3, H, W), their rows (B,), and which
    of them are mirrored, bool (B,).

    Parameters
    ----------
    data : FaceData
    batch : int
        Images per batch; those that are left over at the end of a pass are left out.
    seed : int

    Attributes
    ----------
    first : batches that the next pass leaves out, because they were trained on already
    steps : batches of a pass
    """

    def __init__(
        self,
        data: FaceData,
        batch: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data, self.batch, self.device = data, batch, device
        self.steps = len(data) // batch
        self.generator = torch.Generator().manual_seed(seed)
        self.first = 0

    def __call__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One pass."""
        first, self.first = self.first, 0
        order = torch.randperm(len(self.data), generator=self.generator)
        for step in range(self.steps):
            rows = order[step * self.batch : (step + 1) * self.batch]
            flipped = torch.rand(self.batch, generator=self.generator) < 0.5
            if step < first:
                continue
            images = self.data.images[rows]
            images[flipped] = images[flipped].flip(-1)
            yield normalize(images, self.device), rows.to(self.device), flipped.to(self.device)


def fit(
    model: nn.Module,
    data: FaceData,
    recipe: Recipe,
    objective: Objective,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Train ``model`` in place on all rows of ``data``.

    AdamW with a one-cycle schedule (Smith and Topin 2018), gradients clipped to norm 1, mirrored
    images half of the time. The seed decides the order of the images and the mirroring; the
    initial weights are the caller's.

    Parameters
    ----------
    model, objective : modules
        ``objective(model, images, rows, flipped)`` returns a scalar loss; its own parameters are
        trained too.
    seed : int
    progress : callable, optional
        Called now and then, and after the last step, as ``progress(step, steps, mean_loss)``; the
        steps are those of all epochs, the loss is that of the epoch so far.
    checkpoints : Checkpoints, optional
        Where the training goes on from if it was stopped, and writes that to.

    Raises
    ------
    FloatingPointError
        The loss is no longer finite; names the epoch and step.
    BadInput
        fp16 without a GPU.
    """
    batch = min(recipe.batch_size, len(data))
    passes = Passes(data, batch, seed=seed, device=device)
    history = optimise(
        model,
        objective,
        passes,
        passes.steps,
        recipe,
        device=device,
        progress=progress,
        keeper=None if checkpoints is None else Keeper(checkpoints, passes),
    )
    settle_batch_norms(model, data.images, seed=seed, device=device)
    model.eval()
    return history


@usual_modes()
def optimise(
    model: nn.Module,
    objective: Objective,
    epoch: Callable[[], Iterable[tuple[Tensor, ...]]],
    steps: int,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> History:
    """Train in place on batches of any kind; :func:`fit` feeds it those of a :class:`FaceData`.

    Parameters
    ----------
    model, objective : modules
        ``objective(model, *batch)`` returns a scalar loss; its own parameters are trained too.
    epoch : callable
        Gives the batches of one pass, tensors on ``device``.
    steps : int
        Batches of one pass.
    keeper : Keeper, optional
        Of ``epoch``; puts the training where it was stopped, and keeps where it is.
    """
    began = time.perf_counter()
    kind = torch.device(device).type
    if recipe.precision == "fp16" and kind != "cuda":
        raise BadInput(
            f"training.models.*.precision: fp16 needs a GPU, and this training is on the {kind}; "
            "take bf16 or fp32"
        )
    model.to(device).to(memory_format=torch.channels_last).train()
    objective.to(device).train()
    parameters = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
    total_steps = recipe.epochs * steps
    learner = _learner(model, objective, parameters, recipe, total_steps, kind)
    optimizer, scaler = learner.optimizer, learner.scaler
    at = Place(torch.zeros((), device=device)) if keeper is None else keeper.resume(learner)
    if progress is not None and (at.step or at.history):  # it goes on, which is said at once
        progress(at.epoch * steps + at.step, total_steps, at.mean)
    for number in range(at.epoch, recipe.epochs):
        if keeper is not None:
            keeper.start()
        for batch in itertools.islice(epoch(), steps - at.step):
            if keeper is not None:
                keeper.offer(learner, at)
            with _computing(kind, computes_in(recipe.precision, kind)):
                loss = objective(model, *batch)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            # A scale that is too large for fp16 is halved until it fits: not the model's fault.
            if at.step % 50 == 0 and not math.isfinite(float(norm)) and scaler.get_scale() <= 1:
                raise FloatingPointError(
                    f"training: the gradient is not finite at epoch {number + 1}, step "
                    f"{at.step + 1}; lower training.models.*.learning_rate"
                )
            scaler.step(optimizer)
            scaler.update()
            learner.schedule.step()
            at.total += loss.detach()
            at.step += 1
            done = number * steps + at.step
            if progress is not None and (done % REPORTED == 0 or done == total_steps):
                progress(done, total_steps, at.mean)
        at.history.append(at.mean)
        if not math.isfinite(at.history[-1]):
            raise FloatingPointError(
                f"training: the loss is not finite in epoch {number + 1}; "
                "lower training.models.*.learning_rate"
            )
        at = Place(torch.zeros_like(at.total), number + 1, 0, at.history, at.seconds)
    model.eval()
    return History(tuple(at.history), at.seconds + time.perf_counter() - began)


def _learner(
    model: nn.Module,
    objective: Objective,
    parameters: list[nn.Parameter],
    recipe: Recipe,
    total_steps: int,
    kind: str,
) -> Learner:
    """AdamW, its one-cycle schedule, and the scale of fp16's gradients."""
    optimizer = torch.optim.AdamW(
        _decayed(parameters, recipe.weight_decay), lr=recipe.learning_rate, fused=True
    )
    rise = 0.25 if total_steps == 5 else 0.2  # of five steps, OneCycleLR divides by 0.2 * 5 - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=total_steps, pct_start=rise
    )
    scaler = torch.amp.GradScaler(kind, enabled=recipe.precision == "fp16")
    return Learner(model, objective, optimizer, schedule, scaler)


def _decayed(parameters: list[nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and filters, none for biases and normalisation."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def computes_in(precision: str, kind: str) -> str:
    """Precision of a training on a kind of device: ``fp32`` for bf16 that a processor lacks.

    Examples
    --------
    >>> computes_in("bf16", "cuda"), computes_in("fp32", "cpu")
    ('bf16', 'fp32')
    """
    lacks = kind == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "fp32" if precision == "bf16" and lacks else precision


@contextmanager
def _computing(kind: str, precision: str) -> Iterator[None]:
    """Precision of a forward pass on a kind of device, and how attention is computed in it."""
    short = SHORT.get(precision)
    # On a CPU, fused attention over the few tokens of a small image costs a third more.
    backends = [SDPBackend.MATH] if kind == "cpu" else FUSED
    with nullcontext() if short is None else torch.autocast(kind, short), sdpa_kernel(backends):
        yield


def settle_batch_norms(
    model: nn.Module, images: Images, *, seed: int, device: torch.device | str = "cpu"
) -> None:
    """Replace, in place, the running statistics of batch norms by those of the final weights.

    A running average still holds the weights of a hundred steps ago. After a short training that
    is enough for a few images to grow by a factor of hundreds through a deep network: harmless
    in float, ruinous to a min-max range. A plain average over :data:`SETTLING` images at the
    final weights mends it (Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3).

    Parameters
    ----------
    images : uint8 (N, 3, H, W)
        Of the training split.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
    model.eval()
    for norm in norms:
        norm.train()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for rows in order[:SETTLING].split(64):
            if len(rows) > 1:
                model(normalize(images[rows], device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def predict(
    model: nn.Module,
    images: Images,
    *,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Margins (N,): logit of the target minus logit of its absence; positive predicts it.

    Parameters
    ----------
    images : uint8 (N, 3, H, W)
    """
    model.to(device).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            logits = model(normalize(images[start : start + batch_size], device))
            parts.append((logits[:, 1] - logits[:, 0]).float().cpu())
    margins = torch.cat(parts).numpy()
    bad = np.flatnonzero(~np.isfinite(margins))
    if len(bad):
        raise FloatingPointError(f"predict: the margin of image {bad[0]} is not finite")
    return margins
