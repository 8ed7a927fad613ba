"""What a study consists of: its runs, and a refusal of those that its people cannot serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils import calibration
from fairq_utils.data.population import SPLITS, demographics
from fairq_utils.fingerprint import code_version
from fairq_utils.ledger import Run
from fairq_utils.params import Params, ParamsError
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.resources import population

PHASES = ("baseline", "quantization", "mitigation")
TRAINED_BY = (
    "fairq_utils.data.population",
    "fairq_utils.data.head",
    "fairq_utils.data.kernels",
    "fairq_utils.data.render",
    "fairq_utils.models",
    "fairq_utils.training",
)
QUANTIZED_BY = (
    *TRAINED_BY,
    "fairq_utils.calibration",
    *(
        f"fairq_utils.quantizers.{name}"
        for name in (
            "spec",
            "grids",
            "observers",
            "ranges",
            "weights",
            "kernels",
            "layers",
            "sites",
            "operations",
            "survey",
            "places",
            "reads",
            "folding",
            "equalization",
            "bias_correction",
            "learned",
            "reconstruction",
            "ptq",
            "dynamic",
            "qat",
            "sensitivity",
            "mixed",
            "methods",
        )
    ),
)


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
        if "quantization" in phases:
            if "dynamic" in q.methods:
                bits = next(b for b in q.bits if b.endswith("A8"))
                runs.append(_run(params, architecture, seed, method="dynamic", bits=bits))
            runs += _further(params, architecture, seed)
    return runs


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


def _settings(params: Params, method: str) -> dict[str, Any]:
    """What decides a learnt rounding or a further training, beyond the spec."""
    q = params.quantization
    if method in (CONTROL, "qat"):
        return q.tuning.model_dump(mode="json")
    if method in METHODS and METHODS[method].spec("W8A8").rounding != "nearest":
        return {"iterations": q.iterations}
    return {}


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
    data = params.data.model_dump(mode="json")
    joints = {split: dict(population(params, split).joint) for split in SPLITS}
    del data["joint_of"]
    data["joint"] = {split: joints[split] for split in ("train", "test")}
    # These matter only to runs that look at them.
    for split, looked_at in (("calibration", sampler), ("validation", validates)):
        images = data.pop(split)
        if looked_at:
            data[split] = {"images": images, "joint": joints[split]}
    return Run(
        data=data,
        architecture=architecture,
        training={
            "seed": seed,
            "pretrained": params.training.pretrained,
            "auxiliary": params.training.auxiliary,
            **params.training.models[architecture].model_dump(mode="json"),
        },
        method=method,
        bits=bits,
        ranges=ranges,
        percentile=params.quantization.percentile if ranges == "percentile" else None,
        sampler=sampler,
        calibration_images=params.quantization.calibration_images if sampler else None,
        calibration_seed=calibration_seed,
        settings=_settings(params, method),
        code=code_version(TRAINED_BY if method == "fp32" else QUANTIZED_BY),
    )


def baseline_of(run: Run) -> Run:
    """The FP32 run that a quantized run is compared with."""
    data = {k: v for k, v in run.data.items() if k not in ("calibration", "validation")}
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
        code=code_version(TRAINED_BY),
    )


def check(params: Params) -> None:
    """Refuse a study that its people cannot serve, before anything is rendered or written.

    Only demographics are drawn, which takes moments.

    Raises
    ------
    ParamsError
        A group of ``analysis.attributes`` without a test image, or with too few images in the
        calibration pool for a sampler; names the key, the group and the way out.
    """
    _, groups = demographics(population(params, "test"), "test", np.arange(params.data.test))
    attributes = list(params.analysis.attributes)
    sizes = groups.groupby(attributes, observed=False).size()
    empty = sizes[sizes == 0]
    if len(empty):
        name = " ".join(str(value) for value in np.atleast_1d(empty.index[0]))
        raise ParamsError(
            f"data.test: none of {params.data.test} test images shows the group {name!r} of "
            f"analysis.attributes ({', '.join(attributes)}); enlarge data.test, give the group "
            "more weight in data.joint or data.race, or take an attribute out"
        )
    target, groups = _calibration_pool(params)
    for sampler in ("random", *params.mitigation.samplers):
        try:
            calibration.draw(
                sampler, groups, target, params.quantization.calibration_images, seed=0
            )
        except ValueError as error:
            raise ParamsError(f"mitigation.samplers: {sampler}: {error}") from None


def _calibration_pool(params: Params) -> tuple[NDArray[np.int8], pd.DataFrame]:
    who = population(params, "calibration")
    return demographics(who, "calibration", np.arange(params.data.calibration))


def calibration_draws(params: Params) -> pd.DataFrame:
    """Images per crossed group in the first draw of each sampler; one column per sampler."""
    target, groups = _calibration_pool(params)
    attributes = list(params.analysis.attributes)
    columns = {}
    for sampler in ("random", *params.mitigation.samplers):
        rows = calibration.draw(
            sampler,
            groups,
            target,
            params.quantization.calibration_images,
            seed=params.quantization.calibration_seeds[0],
        )
        drawn = groups.iloc[rows].groupby(attributes, observed=False).size()
        columns[sampler.replace("_", " ")] = drawn
    return pd.DataFrame(columns).reset_index()
