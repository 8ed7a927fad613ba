"""Workload of a run, in images, and its seconds at given rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from fairq_utils.calibration import SAMPLERS
from fairq_utils.quantizers.layers import quantizable
from fairq_utils.quantizers.methods import CONTROL, METHODS, Size
from fairq_utils.quantizers.reconstruction import BATCH
from fairq_utils.study.ledger import Run
from fairq_utils.training import architectures
from fairq_utils.training.loop import SETTLING

KINDS = {
    "train": "train FP32 models",
    "quantize": "quantize, evaluate",
    "choose": "choose ranges, layers or bits",
    "learn": "learn roundings",
    "train_on": "train on (QAT, constraints)",
}


@dataclass(frozen=True)
class Rates:
    """Rates of one architecture at one image size on one machine.

    Images per second, but for ``overhead``.

    Attributes
    ----------
    train : FP32 models, by the precision of their recipe
    train_on : float models trained on, which is done in single precision
    tune : models with quantization grids trained on
    evaluate, quantized, dynamic : answers of float models, of quantized ones, and of those that
        find the ranges of their inputs as they answer
    calibrate : forward passes in which the quantizer watches every layer
    look : forward passes of the quantizer where it chooses
    learn : of the quantizer, forward and backward, where roundings are learnt
    overhead : seconds per quantized run, whatever the number of images
    """

    train: float
    train_on: float
    tune: float
    evaluate: float
    quantized: float
    dynamic: float
    calibrate: float
    look: float
    learn: float
    overhead: float = 0.0


@dataclass(frozen=True)
class Work:
    """Images that a run passes through a network, by what is done with them.

    Attributes
    ----------
    kind : of :data:`KINDS`
    trained, trained_on, tuned, learnt : forward and backward, at the rates of :class:`Rates`
    evaluated, quantized, dynamic : test images (and those that batch norms are averaged over)
    calibrated : watched by the quantizer, shared by the runs of one calibration
    looked : looked at by the quantizer for this run alone; where that depends on what is found,
        the most that it may be
    quantizes : whether the run has the overhead of a quantized one
    """

    kind: str
    trained: float = 0
    trained_on: float = 0
    tuned: float = 0
    learnt: float = 0
    evaluated: float = 0
    quantized: float = 0
    dynamic: float = 0
    calibrated: float = 0
    looked: float = 0
    quantizes: bool = True

    def training_seconds(self, rates: Rates) -> float:
        """Seconds of training and evaluation."""
        return (
            self.trained / rates.train
            + self.trained_on / rates.train_on
            + self.tuned / rates.tune
            + self.evaluated / rates.evaluate
            + self.quantized / rates.quantized
            + self.dynamic / rates.dynamic
        )

    def quantizer_seconds(self, rates: Rates, *, calibrates: bool = True) -> float:
        """Seconds of calibrating, choosing and learning.

        Parameters
        ----------
        calibrates : bool
            Whether the run bears the calibration that it shares with others.
        """
        return (
            calibrates * self.calibrated / rates.calibrate
            + self.looked / rates.look
            + self.learnt / rates.learn
            + self.quantizes * rates.overhead
        )

    def seconds(self, rates: Rates) -> float:
        """All of it, as if no other run shared the calibration."""
        return self.training_seconds(rates) + self.quantizer_seconds(rates)


@dataclass(frozen=True)
class Structure:
    """Properties of an architecture that decide how often it is passed through.

    Attributes
    ----------
    layers : that can be quantized
    normed : whether it has batch norms, which are averaged over images after training
    """

    layers: int
    normed: bool


@lru_cache(maxsize=8)
def structure(architecture: str) -> Structure:
    """Layers and norms of an architecture, counted without weights."""
    model = architectures.outline(architecture)
    return Structure(
        sum(quantizable(module) for module in model.modules()),
        any(isinstance(module, nn.BatchNorm2d) for module in model.modules()),
    )


def pictures(run: Run, split: str) -> int:
    """Pictures of a split that a run looks at."""
    found = run.data.get("images", run.data)[split]
    return int(found["images"] if isinstance(found, Mapping) else found)


def work(run: Run) -> Work:
    """Workload of a run, from its parameters alone.

    Methods say how often they look again (:attr:`fairq_utils.quantizers.methods.Method.images`),
    where that depends on what is found, the most that it may be.
    """
    test = pictures(run, "test")
    if run.method == "fp32":
        train = pictures(run, "train")
        settled = min(train, SETTLING) if structure(run.architecture).normed else 0
        trained = train * int(run.training["epochs"])
        return Work("train", trained=trained, evaluated=test + settled, quantizes=False)
    method = METHODS[run.method]
    if method.family == "dynamic":
        return Work("quantize", dynamic=test)
    calibrated = float(run.calibration_images or 0)
    if run.sampler is not None and SAMPLERS[run.sampler.partition("=")[0]].looks:
        calibrated += pictures(run, "calibration")
    if method.trains:
        images = run.settings["images"] or pictures(run, "train")
        passed = images * int(run.settings["epochs"])
        if run.method == CONTROL:
            return Work("train_on", trained_on=passed, evaluated=test, quantizes=False)
        facts = images if method.constraint else 0  # what the float model makes of the groups
        return Work("train_on", tuned=passed, quantized=test, calibrated=calibrated, looked=facts)
    again = method.images(
        Size(
            structure(run.architecture).layers,
            int(run.calibration_images or 0),
            pictures(run, "validation") if "validation" in method.needs else 0,
            run.settings,
        )
    )
    learnt = int(run.settings.get("iterations", 0)) * BATCH
    kind = "learn" if learnt else "choose" if again else "quantize"
    return Work(kind, learnt=learnt, quantized=test, calibrated=calibrated, looked=again)
