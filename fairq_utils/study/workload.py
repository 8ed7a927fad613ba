"""Workload of a run, in images, and its seconds at given rates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from fairq_utils.calibration import SAMPLERS
from fairq_utils.quantizers.layers import quantizable
from fairq_utils.quantizers.methods import CONTROL, METHODS, Size
from fairq_utils.quantizers.reconstruction import BATCH
from fairq_utils.study.run_record import Run
from fairq_utils.training import architectures
from fairq_utils.training.loop import SETTLING

KINDS = ("train", "quantize", "choose", "learn", "fine_tune")  # of runs
GRIDS = 2.0  # times as long that a pass takes with quantization grids


@dataclass(frozen=True)
class Rates:
    """Images per second of one architecture at one image size on one machine.

    Attributes
    ----------
    train : forward and backward, FP32 models, by the precision of their recipe
    fine_tune : the same in single precision
    predict, quantized : forward, of float models and of quantized ones
    """

    train: float
    fine_tune: float
    predict: float
    quantized: float


@dataclass(frozen=True)
class Work:
    """Images that a run passes through a network, by what is done with them.

    Attributes
    ----------
    kind : of :data:`KINDS`
    trained, fine_tuned, tuned : forward and backward: FP32 models, on FP32 weights, and with
        quantization grids
    predicted, quantized : forward: a float model, evaluated or looked at by a method that chooses
        (where that depends on what is found, the most that it may be), and a quantized one
    calibrated : forward: observed by the quantizer, shared by the runs of one calibration
    """

    kind: str
    trained: float = 0
    fine_tuned: float = 0
    tuned: float = 0
    predicted: float = 0
    quantized: float = 0
    calibrated: float = 0

    def seconds(self, rates: Rates, *, calibrates: bool = True) -> float:
        """Seconds at these rates.

        Parameters
        ----------
        calibrates : bool
            Whether the run bears the calibration that it shares with others.
        """
        return (
            self.trained / rates.train
            + (self.fine_tuned + GRIDS * self.tuned) / rates.fine_tune
            + (self.predicted + calibrates * self.calibrated) / rates.predict
            + self.quantized / rates.quantized
        )


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


def images(run: Run, split: str) -> int:
    """Images of a split that a run looks at."""
    photographs = run.data.get("images")
    return int(photographs[split] if photographs else run.data[split]["images"])


def work(run: Run) -> Work:
    """Workload of a run, from its parameters alone.

    Methods say how often they look again (:attr:`fairq_utils.quantizers.methods.Method.images`),
    where that depends on what is found, the most that it may be.
    """
    test = images(run, "test")
    if run.method == "fp32":
        train = images(run, "train")
        settled = min(train, SETTLING) if structure(run.architecture).normed else 0
        trained = train * int(run.training["epochs"])
        return Work("train", trained=trained, predicted=test + settled)
    method = METHODS[run.method]
    if method.family == "dynamic":
        return Work("quantize", quantized=test)
    calibrated = float(run.calibration_images or 0)
    if run.sampler is not None and SAMPLERS[run.sampler.partition("=")[0]].looks:
        calibrated += images(run, "calibration")
    if method.trains:
        shown = run.settings["images"] or images(run, "train")
        passed = shown * int(run.settings["epochs"])
        if run.method == CONTROL:
            return Work("fine_tune", fine_tuned=passed, predicted=test)
        facts = shown if method.constraint else 0  # what the float model makes of the groups
        return Work(
            "fine_tune", tuned=passed, predicted=facts, quantized=test, calibrated=calibrated
        )
    again = method.images(
        Size(
            structure(run.architecture).layers,
            int(run.calibration_images or 0),
            images(run, "validation") if "validation" in method.needs else 0,
            run.settings,
        )
    )
    learnt = int(run.settings.get("iterations", 0)) * BATCH
    kind = "learn" if learnt else "choose" if again else "quantize"
    return Work(kind, tuned=learnt, predicted=again, quantized=test, calibrated=calibrated)


def _rates(training: float, evaluation: float) -> Rates:
    """Rates where a training pass and an evaluation pass take so many milliseconds per image."""
    return Rates(1e3 / training, 1e3 / training, 1e3 / evaluation, 1e3 / evaluation)


# Milliseconds per image of 64 pixels on two cores (training pass, evaluation pass). They only weigh
# estimates of time, which correct themselves as runs finish.
COST = {
    "resnet50": _rates(10.0, 4.0),
    "mobilenet_v2": _rates(4.0, 1.2),
    "efficientnet_b0": _rates(5.5, 1.8),
    "vit_small": _rates(11.0, 4.0),
    "squeezenet1_1": _rates(1.2, 0.7),
}
OTHERS = _rates(5.0, 2.0)  # of architectures that were not timed
PIXELS = 64


def seconds_on_two_cores(run: Run) -> float:
    """Seconds that a run is expected to take on two cores, in proportion to its pixels."""
    share = (float(run.data.get("size", PIXELS)) / PIXELS) ** 2
    return share * work(run).seconds(COST.get(run.architecture, OTHERS))
