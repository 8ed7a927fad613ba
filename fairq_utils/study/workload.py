"""What a run works through, in images, and how long that takes at given rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from fairq_utils.mitigation.methods import METHODS as FAIR
from fairq_utils.quantizers.layers import quantizable
from fairq_utils.quantizers.methods import CONTROL
from fairq_utils.quantizers.reconstruction import BATCH
from fairq_utils.quantizers.spec import WIDTHS
from fairq_utils.study.ledger import Run
from fairq_utils.training import architectures
from fairq_utils.training.loop import SETTLING

BACKWARD = 2  # a backward pass costs about two forward passes
BLOCK = 3  # layers of a usual block whose roundings are learnt together
RANKED = 300  # images that accuracy control ranks layers by
POOLED = ("core_set", "worst_group")  # samplers that look at the whole calibration pool
KINDS = {
    "train": "train FP32 models",
    "quantize": "quantize, evaluate",
    "choose": "choose ranges, layers or bits",
    "learn": "learn roundings",
    "train_on": "train on (QAT, constraints)",
}


@dataclass(frozen=True)
class Rates:
    """How fast one architecture is at one picture size on one machine.

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
    """What of an architecture decides how often it is passed through.

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
    with torch.device("meta"):
        model = architectures.build(architecture)
    return Structure(
        sum(quantizable(module) for module in model.modules()),
        any(isinstance(module, nn.BatchNorm2d) for module in model.modules()),
    )


def pictures(run: Run, split: str) -> int:
    """Pictures of a split that a run looks at."""
    found = run.data.get("images", run.data)[split]
    return int(found["images"] if isinstance(found, Mapping) else found)


def work(run: Run) -> Work:
    """What a run works through, from its parameters alone.

    Methods that choose look again: mixed precision once in float and once for every width of a
    layer's weights; ablation of layers once for each; learnt roundings on the way to each layer or
    block, on average half of the network, in float and quantized; accuracy control at the
    validation images before every step and once for every layer that it ranks, counted as if it
    took all of its steps and ranked once.
    """
    test = pictures(run, "test")
    if run.method == "fp32":
        train = pictures(run, "train")
        settled = min(train, SETTLING) if structure(run.architecture).normed else 0
        trained = train * int(run.training["epochs"])
        return Work("train", trained=trained, evaluated=test + settled, quantizes=False)
    if run.method == "dynamic":
        return Work("quantize", dynamic=test)
    calibrated = float(run.calibration_images or 0)
    if run.sampler in POOLED:
        calibrated += pictures(run, "calibration")
    if "epochs" in run.settings:
        images = run.settings["images"] or pictures(run, "train")
        passed = images * int(run.settings["epochs"])
        if run.method == CONTROL:
            return Work("train_on", trained_on=passed, evaluated=test, quantizes=False)
        facts = images if run.method in FAIR else 0  # what the float model makes of the groups
        return Work("train_on", tuned=passed, quantized=test, calibrated=calibrated, looked=facts)
    again = LOOKS[_family(run.method)](run) if _family(run.method) in LOOKS else 0
    learnt = int(run.settings.get("iterations", 0)) * BATCH
    kind = "learn" if learnt else "choose" if again else "quantize"
    return Work(kind, learnt=learnt, quantized=test, calibrated=calibrated, looked=again)


def _family(method: str) -> str:
    return method.split("_")[0] if method in FAIR else method


def _drawn(run: Run) -> int:
    return int(run.calibration_images or 0)


def _each_layer(run: Run) -> int:
    return structure(run.architecture).layers * _drawn(run)


def _each_block(run: Run) -> int:
    return _each_layer(run) // BLOCK


def _each_width(run: Run) -> int:
    return (1 + len(WIDTHS)) * _drawn(run)


def _preserved_layers(run: Run) -> int:
    return 0 if run.method.endswith("random") else _each_layer(run)


def _preserved_channels(run: Run) -> int:
    return 0 if run.method.endswith("random") else (1 + BACKWARD) * pictures(run, "validation")


def _controlled(run: Run) -> int:
    images = pictures(run, "validation")
    steps = 2 + int(run.settings["max_reverted"])  # the float model, plain quantization, each step
    return steps * images + structure(run.architecture).layers * min(RANKED, images)


# Images that a method looks at beyond its calibration, by its name or, of those that mind groups,
# by how its name begins. Other methods look at none.
LOOKS: dict[str, Callable[[Run], int]] = {
    "equalized": lambda run: 2 * _drawn(run),
    "adaround": _each_layer,
    "block": _each_block,
    "mixed": _each_width,
    "ranges": _drawn,
    "layers": _preserved_layers,
    "channels": _preserved_channels,
    "control": _controlled,
}
