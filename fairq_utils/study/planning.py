"""Plan of a study: its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd

from fairq_utils import calibration
from fairq_utils.calibration import SAMPLERS
from fairq_utils.data.loading import RENDERER
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.study.dials import worlds
from fairq_utils.study.params.grid import Configuration, Entry, expanded
from fairq_utils.study.params.study import Params
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study
from fairq_utils.training.zoo import ARCHITECTURES

PHASES = ("baseline", "quantization", "mitigation")
TRAINING = ("fairq_utils.training.loop", "fairq_utils.training.objectives")
# What puts a run together: its pictures and its training; its evaluation; its quantization.
TRAINING_STEPS = (
    "fairq_utils.study.people",
    "fairq_utils.data.loading",
    "fairq_utils.study.run_training",
)
STEPS = (
    "fairq_utils.study.runs",
    "fairq_utils.training.inference",
    "fairq_utils.quantizers.precision",
)
QUANTIZATION = "fairq_utils.study.run_models"
LOOKED_AT = ("train", "validation", "test")  # splits that every run is trained or measured on
ONE_GROUP = "one_group="  # a run's sampler begins so, and the group's name follows


def plan(study: Study, phases: Sequence[str] = PHASES) -> list[Run]:
    """All runs of these phases, in the order of the grid.

    With a run come those that it is compared with: balanced calibration with a random draw of equal
    size, a group-aware method with plain quantization at its bits, one that trains with QAT and the
    FP32 fine-tuning control.
    """
    runs: list[Run] = []
    found = list(configurations(study))
    for architecture, seed in _models(study.params):
        if "baseline" in phases:
            runs.append(_run(study, architecture, seed))
        for configuration in found:
            if _is_on(configuration, architecture, seed) and phase_of(configuration) in phases:
                for each in (configuration, *compared_with(configuration)):
                    runs.append(_run(study, architecture, seed, each))
    return list(dict.fromkeys(runs))


def with_dials(study: Study, phases: Sequence[str] = PHASES) -> dict[Run, Study]:
    """All runs of these phases, those of the dials' worlds behind, each with its own study."""
    found = dict.fromkeys(plan(study, phases), study)
    if "mitigation" in phases:
        for world in worlds(study.params):
            own = study.of(world.params)
            found |= {run: own for run in plan(own) if run not in found}
    return found


def configurations(study: Study) -> Iterator[Configuration]:
    """The grid's configurations; ``one_group`` as a sampler of each group."""
    params = study.params
    for found in expanded(params.grid, params.quantization.calibration_seeds):
        if found.sampler != "one_group":
            yield found
            continue
        for cell in product(*(study.values[name] for name in params.analysis.attributes)):
            yield replace(found, sampler=f"{ONE_GROUP}{' '.join(cell)}")


def phase_of(configuration: Configuration) -> str:
    """``mitigation`` where groups have a say in it, else ``quantization``."""
    balanced = configuration.sampler not in (None, "random")
    aware = METHODS[configuration.method].group_aware
    return "mitigation" if aware or balanced else "quantization"


def compared_with(configuration: Configuration) -> list[Configuration]:
    """Configurations without which one says nothing: its controls."""
    found: list[Configuration] = []
    method = METHODS[configuration.method]
    plain = replace(configuration, sampler="random")
    if configuration.sampler not in (None, "random"):
        found.append(plain)
    if method.group_aware:
        found.append(replace(plain, method="ptq", settings=()))
    if method.trains and method.name != CONTROL:
        if method.name != "qat":
            found.append(replace(plain, method="qat"))
        found.append(
            replace(
                plain,
                method=CONTROL,
                bits=None,
                range=None,
                sampler=None,
                calibration_images=None,
                calibration_seed=None,
            )
        )
    return found


def single(study: Study, architecture: str, seed: int, method: str, bits: str, draw: int) -> Run:
    """A run by itself, calibrated on images drawn at random, whether or not the grid has it.

    Parameters
    ----------
    seed, draw : of the training, and of the calibration draw
    """
    entry = Entry(method=(method,), bits=(bits,), calibration_seeds=(draw,))
    return _run(study, architecture, seed, next(expanded([entry], [draw])))


def bits_of(params: Params, method: str = "ptq") -> tuple[str, ...]:
    """Bits at which the grid has a method."""
    found = (e.bits for e in params.grid if method in e.method)
    return tuple(dict.fromkeys(width for widths in found for width in widths))


def beside_random(params: Params) -> tuple[str, ...]:
    """Samplers that the grid names beside ``random``, for plain quantization."""
    entries = [e for e in params.grid if "ptq" in e.method and "random" in e.sampler]
    return tuple(dict.fromkeys(s for e in entries for s in e.sampler if s != "random"))


def mitigations(study: Study) -> list[Configuration]:
    """Configurations in which groups have a say."""
    return [found for found in configurations(study) if phase_of(found) == "mitigation"]


def _is_on(configuration: Configuration, architecture: str, seed: int) -> bool:
    models, seeds = configuration.models, configuration.seeds
    return (not models or architecture in models) and (not seeds or seed in seeds)


def _settings(params: Params, found: Configuration) -> dict[str, Any]:
    """Settings that decide a result beyond the spec: the entry's, the study's, the method's."""
    shared = params.quantization.tuning.model_dump(mode="json")
    shared |= {"iterations": params.quantization.iterations}
    method, own = METHODS[found.method], dict(found.settings)
    settings = {
        name: own.get(name, shared.get(name, default)) for name, default in method.settings.items()
    }
    if method.group_aware or found.sampler not in (None, "random"):
        settings["attributes"] = list(params.analysis.attributes)
    return settings


def code_of(method: str, sampler: str | None, architecture: str, data: Mapping[str, Any]) -> str:
    """Version of the code that makes a run; see :func:`modules_of`."""
    entries, alone = modules_of(method, sampler, architecture, data)
    return code_version(*entries, alone=alone)


def modules_of(
    method: str, sampler: str | None, architecture: str, data: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Modules whose code decides a run: those that count with all that they import, and others.

    The first are the renderer of its people, the training and the architecture, the method and the
    sampler; the others put them together.

    Parameters
    ----------
    data : what :meth:`fairq_utils.study.study.Study.described` says
        Of photographs the renderer is no part; their contents stand there.
    """
    entries, alone = training_modules_of(architecture, data)
    alone += STEPS
    if method != "fp32":
        alone.append(QUANTIZATION)
        entries.append(METHODS.home(method))
    if sampler is not None:
        name = sampler.partition("=")[0]
        entries.append(SAMPLERS.home(name))
        if SAMPLERS[name].looks:  # at what the FP32 model makes of the pool
            entries.append("fairq_utils.mitigation.pool")
    return entries, alone


def weights_of(study: Study, architecture: str, training: Mapping[str, Any]) -> str:
    """Name of FP32 weights: a hash of the images, the recipe and the code that they are made by.

    How a model is evaluated has no part in it, so that another test split, or another way to look
    at it, trains nothing again.

    Parameters
    ----------
    training : seed and hyperparameters, as :class:`Run` has them
    """
    data = study.described(["train"])
    entries, alone = training_modules_of(architecture, data)
    made = {"data": data, "architecture": architecture, "training": dict(training)}
    return fingerprint({**made, "code": code_version(*entries, alone=alone)})


def training_modules_of(architecture: str, data: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Modules whose code decides FP32 weights, as :func:`modules_of` those of a run."""
    entries = [*TRAINING, *(() if _listed(data) else RENDERER)]
    entries.append("fairq_utils.training.architectures")
    if architecture in ARCHITECTURES:
        entries.append(ARCHITECTURES.home(architecture))
    return entries, [*TRAINING_STEPS]


def _listed(data: Mapping[str, Any]) -> bool:
    """True if a run's images are photographs."""
    return "people" in data


def _models(params: Params) -> list[tuple[str, int]]:
    return [(name, seed) for name in params.training.models for seed in params.training.seeds]


def _run(study: Study, architecture: str, seed: int, found: Configuration | None = None) -> Run:
    """The run of a configuration, or without one of the FP32 model."""
    params = study.params
    sampler = None if found is None else found.sampler
    # Calibration images matter only to runs that look at them.
    data = study.described([*LOOKED_AT, *(["calibration"] if sampler else [])])
    # Photographs come without the coefficients that an auxiliary loss would tell.
    auxiliary = 0.0 if _listed(data) else params.training.auxiliary
    training = {
        "seed": seed,
        "pretrained": params.training.pretrained,
        "auxiliary": auxiliary,
        **params.training.models[architecture].model_dump(mode="json"),
    }
    method = "fp32" if found is None else found.method
    ranges = None if found is None else found.range
    images = None if found is None else found.calibration_images
    return Run(
        data=data,
        architecture=architecture,
        training=training,
        method=method,
        bits=None if found is None else found.bits,
        ranges=ranges,
        percentile=params.quantization.percentile if ranges == "percentile" else None,
        sampler=sampler,
        calibration_images=(images or params.quantization.calibration_images) if sampler else None,
        calibration_seed=None if found is None else found.calibration_seed,
        settings={} if found is None else _settings(params, found),
        weights=weights_of(study, architecture, training),
        code=code_of(method, sampler, architecture, data),
    )


def baseline_of(run: Run) -> Run:
    """The FP32 run that a quantized run is compared with."""
    data = {k: v for k, v in run.data.items() if k != "calibration"}
    if _listed(data):
        for key in ("people", "images"):
            data[key] = {split: data[key][split] for split in LOOKED_AT}
    return Run(
        data=data,
        architecture=run.architecture,
        training=run.training,
        method="fp32",
        bits=None,
        ranges=None,
        percentile=None,
        sampler=None,
        calibration_images=None,
        calibration_seed=None,
        settings={},
        weights=run.weights,
        code=code_of("fp32", None, run.architecture, data),
    )


def calibration_draws(study: Study) -> pd.DataFrame:
    """Images per crossed group in the first draw of each sampler that needs no model."""
    params = study.params
    target, groups = study.people("calibration")
    attributes = list(params.analysis.attributes)
    columns = {}
    for sampler in ("random", *beside_random(params)):
        if calibration.SAMPLERS[sampler].needs:  # a model's answers, or a population
            continue
        rows = calibration.draw(
            sampler,
            groups,
            target,
            params.quantization.calibration_images,
            seed=params.quantization.calibration_seeds[0],
            attributes=attributes,
        )
        drawn = groups.iloc[rows].groupby(attributes, observed=False).size()
        columns[sampler.replace("_", " ")] = drawn
    return pd.DataFrame(columns).reset_index()
