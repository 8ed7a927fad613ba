"""What a study consists of: its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from fairq_utils import calibration
from fairq_utils.data.loading import RENDERER
from fairq_utils.fingerprint import code_version
from fairq_utils.mitigation.methods import METHODS as FAIR
from fairq_utils.mitigation.methods import ONE_GROUP, RANGES
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.study.dials import worlds
from fairq_utils.study.ledger import Run
from fairq_utils.study.params.study import Params
from fairq_utils.study.people import described, people, values

PHASES = ("baseline", "quantization", "mitigation")
TRAINING = ("fairq_utils.training.loop", "fairq_utils.training.objectives")
MADE_BY = {
    "mixed": ("fairq_utils.quantizers.mixed_precision",),
    "float_classifier": ("fairq_utils.quantizers.mixed_precision",),
    "qat": ("fairq_utils.quantizers.qat",),
    CONTROL: ("fairq_utils.quantizers.qat",),
}
CALIBRATION = ("fairq_utils.calibration", "fairq_utils.quantizers.post_training")


def plan(params: Params, phases: Sequence[str] = PHASES) -> list[Run]:
    """All runs of these phases, in the order in which they are worth having."""
    runs: list[Run] = []
    q, cells = params.quantization, params.mitigation.samplers
    for architecture, seed in _models(params):
        if "baseline" in phases:
            runs.append(_run(params, architecture, seed))
        for bits in q.bits:
            for ranges in q.ranges:
                for draw in q.calibration_seeds:
                    for sampler in ("random", *cells):
                        phase = "quantization" if sampler == "random" else "mitigation"
                        if phase in phases:
                            runs.append(
                                _run(
                                    params,
                                    architecture,
                                    seed,
                                    method="ptq",
                                    bits=bits,
                                    ranges=ranges,
                                    sampler=sampler,
                                    calibration_seed=draw,
                                )
                            )
        if "mitigation" in phases:
            runs += _fair(params, architecture, seed)
        if "quantization" in phases:
            if "dynamic" in q.methods:
                bits = next(b for b in q.bits if b.endswith("A8"))
                runs.append(_run(params, architecture, seed, method="dynamic", bits=bits))
            runs += _further(params, architecture, seed)
    return list(dict.fromkeys(runs))


def with_dials(params: Params, phases: Sequence[str] = PHASES) -> dict[Run, Params]:
    """All runs of these phases, those of the dials' worlds behind, each with its own params."""
    found = dict.fromkeys(plan(params, phases), params)
    if "mitigation" in phases:
        for world in worlds(params):
            found |= {run: world.params for run in plan(world.params) if run not in found}
    return found


def _fair(params: Params, architecture: str, seed: int) -> list[Run]:
    """Plain quantization and what is compared with it, one run for each calibration draw."""
    m = params.mitigation
    if not m.methods or (m.models and architecture not in m.models):
        return []
    names = ["ptq", *_expanded(params, m.methods)]
    if any(name in FAIR and FAIR[name].trains for name in names):
        names.append("qat")
    runs = [
        _fair_run(params, architecture, seed, name, bits, draw)
        for bits in m.bits
        for name in names
        for draw in params.quantization.calibration_seeds
    ]
    if "qat" in names:
        runs.append(_run(params, architecture, seed, method=CONTROL))
    return runs


def _expanded(params: Params, names: Sequence[str]) -> list[str]:
    """Names of methods, ``one_group`` as a sampler for each group."""
    out: list[str] = []
    for name in names:
        if name != "one_group":
            out.append(name)
            continue
        cells = product(*(values(params)[attribute] for attribute in params.analysis.attributes))
        out += [f"{ONE_GROUP}{' '.join(cell)}" for cell in cells]
    return out


def _fair_run(params: Params, architecture: str, seed: int, name: str, bits: str, draw: int) -> Run:
    """A method's run; a name that is no method is that of the sampler of plain quantization."""
    method = name if name in FAIR or name == "qat" else "ptq"
    return _run(
        params,
        architecture,
        seed,
        method=method,
        bits=bits,
        ranges=RANGES,
        sampler="random" if method != "ptq" or name == "ptq" else name,
        calibration_seed=draw,
        validates=name in FAIR and FAIR[name].validates,
    )


def _further(params: Params, architecture: str, seed: int) -> list[Run]:
    """Runs of the further methods, one for each calibration draw; and QAT's control."""
    q = params.quantization
    runs: list[Run] = []
    if q.further_models and architecture not in q.further_models:
        return runs
    for method, widths in q.further.items():
        for bits in widths:
            for draw in q.calibration_seeds:
                runs.append(further_run(params, architecture, seed, method, bits, draw))
    if "qat" in q.further:
        runs.append(_run(params, architecture, seed, method=CONTROL))
    return runs


def further_run(
    params: Params, architecture: str, seed: int, method: str, bits: str, draw: int
) -> Run:
    """A run of a further method, calibrated on pictures drawn at random.

    Parameters
    ----------
    seed, draw : of the training, and of the calibration draw
    """
    return _run(
        params,
        architecture,
        seed,
        method=method,
        bits=bits,
        ranges=METHODS[method].spec(bits).activation_range,
        sampler="random",
        calibration_seed=draw,
    )


def _settings(params: Params, method: str, sampler: str | None) -> dict[str, Any]:
    """What decides a result beyond the spec: of learnt rounding, further training, and groups."""
    q, found = params.quantization, dict[str, Any]()
    if method in (CONTROL, "qat") or (method in FAIR and FAIR[method].trains):
        found |= q.tuning.model_dump(mode="json")
    if method in METHODS and METHODS[method].spec("W8A8").rounding != "nearest":
        found["iterations"] = q.iterations
    if method in FAIR:
        found |= {name: getattr(params.mitigation, name) for name in FAIR[method].settings}
    if method in FAIR or sampler not in (None, "random"):
        found["attributes"] = list(params.analysis.attributes)
    return found


def code_of(method: str, sampler: str | None, data: Mapping[str, Any]) -> str:
    """Version of the code that makes a run: of its people, its training, its method, its sampler.

    Parameters
    ----------
    data : what :func:`fairq_utils.study.people.described` says
        Of photographs the renderer is no part; their contents stand there.
    """
    entries = [*TRAINING, *(() if _listed(data) else RENDERER)]
    if method != "fp32":
        entries += [*CALIBRATION, *MADE_BY.get(method, ())]
    if method in FAIR:
        entries += ["fairq_utils.mitigation.methods", "fairq_utils.mitigation.fine_tuning"]
    if sampler in ("core_set", "worst_group"):  # look at what the FP32 model makes of the pool
        entries.append("fairq_utils.mitigation.pool")
    return code_version(*entries)


def _listed(data: Mapping[str, Any]) -> bool:
    """Whether a run's pictures are photographs."""
    return "people" in data


def _models(params: Params) -> list[tuple[str, int]]:
    return [(name, seed) for name in params.training.models for seed in params.training.seeds]


def _run(
    params: Params,
    architecture: str,
    seed: int,
    *,
    method: str = "fp32",
    bits: str | None = None,
    ranges: str | None = None,
    sampler: str | None = None,
    calibration_seed: int | None = None,
    validates: bool = False,
) -> Run:
    # Calibration and validation pictures matter only to runs that look at them.
    looked_at = {"train": True, "test": True, "calibration": sampler, "validation": validates}
    data = described(params, [split for split, looks in looked_at.items() if looks])
    # Photographs come without the coefficients that an auxiliary loss would tell.
    auxiliary = 0.0 if _listed(data) else params.training.auxiliary
    return Run(
        data=data,
        architecture=architecture,
        training={
            "seed": seed,
            "pretrained": params.training.pretrained,
            "auxiliary": auxiliary,
            **params.training.models[architecture].model_dump(mode="json"),
        },
        method=method,
        bits=bits,
        ranges=ranges,
        percentile=params.quantization.percentile if ranges == "percentile" else None,
        sampler=sampler,
        calibration_images=params.quantization.calibration_images if sampler else None,
        calibration_seed=calibration_seed,
        settings=_settings(params, method, sampler),
        code=code_of(method, sampler, data),
    )


def baseline_of(run: Run) -> Run:
    """The FP32 run that a quantized run is compared with."""
    data = {k: v for k, v in run.data.items() if k not in ("calibration", "validation")}
    if _listed(data):
        for key in ("people", "images"):
            data[key] = {split: data[key][split] for split in ("train", "test")}
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
        code=code_of("fp32", None, data),
    )


def calibration_draws(params: Params) -> pd.DataFrame:
    """Images per crossed group in the first draw of each sampler that needs no model."""
    target, groups = people(params, "calibration")
    attributes = list(params.analysis.attributes)
    columns = {}
    for sampler in ("random", *params.mitigation.samplers):
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
