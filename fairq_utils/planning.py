"""What a study consists of: its runs, and a refusal of those that its people cannot serve."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils import calibration
from fairq_utils.data.attributes import ATTRIBUTES
from fairq_utils.data.population import SPLITS, demographics
from fairq_utils.dials import LABELS, worlds
from fairq_utils.fingerprint import code_version
from fairq_utils.ledger import Run
from fairq_utils.mitigation.methods import METHODS as FAIR
from fairq_utils.mitigation.methods import ONE_GROUP, RANGES
from fairq_utils.params import Params, ParamsError
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.resources import population

PHASES = ("baseline", "quantization", "mitigation")
TRAINED_BY = (
    "fairq_utils.data.population",
    "fairq_utils.data.attributes",
    "fairq_utils.data.group_dials",
    "fairq_utils.data.head",
    "fairq_utils.data.kernels",
    "fairq_utils.data.render",
    "fairq_utils.models",
    "fairq_utils.objectives",
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
            "kept_rows",
            "report",
            "checks",
            "sensitivity",
            "allocation",
            "mixed",
            "methods",
        )
    ),
)

FAIR_BY = (
    *QUANTIZED_BY,
    "fairq_utils.metrics.rows",
    "fairq_utils.metrics.answers",
    *(
        f"fairq_utils.mitigation.{name}"
        for name in (
            "sample",
            "coverage",
            "ranges",
            "sensitivity",
            "logits",
            "reducers",
            "allocation",
            "drops",
            "control",
            "spending",
            "precision",
            "channel_scores",
            "preservation",
            "group_facts",
            "group_losses",
            "balancing_act",
            "constraints",
            "fine_tuning",
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
        cells = product(*(ATTRIBUTES[attribute] for attribute in params.analysis.attributes))
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


def _code(method: str, sampler: str | None) -> str:
    """Version of the code that a run depends on."""
    if method == "fp32":
        return code_version(TRAINED_BY)
    looks = sampler in ("core_set", "worst_group")  # at what the FP32 model makes of the pool
    return code_version(FAIR_BY if method in FAIR or looks else QUANTIZED_BY)


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
        settings=_settings(params, method, sampler),
        code=_code(method, sampler),
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
        name = _name(empty.index[0])
        raise ParamsError(
            f"data.test: none of {params.data.test} test images shows the group {name!r} of "
            f"analysis.attributes ({', '.join(attributes)}); enlarge data.test, give the group "
            "more weight in data.joint or data.race, or take an attribute out"
        )
    for world in worlds(params):
        try:
            check(world.params)
        except ParamsError as error:
            where = f"{LABELS[world.dial]} {world.level:g}".strip()
            raise ParamsError(f"dials: {where}: {error}") from None
    _check_tuning(params)
    target, groups = _calibration_pool(params)
    wanted = params.quantization.calibration_images
    named = [name for name in params.mitigation.methods if name not in FAIR]
    for sampler in dict.fromkeys(("random", *params.mitigation.samplers, *named)):
        key = "methods" if sampler in named else "samplers"
        try:
            if sampler in ("one_group", "worst_group"):
                # Which group is the worst is known only after training.
                for cell in product(*(ATTRIBUTES[attribute] for attribute in attributes)):
                    only = " ".join(cell)
                    calibration.draw(
                        "one_group",
                        groups,
                        target,
                        wanted,
                        seed=0,
                        group=only,
                        attributes=attributes,
                    )
            elif sampler == "matched":
                who = population(params, "test")
                calibration.draw(
                    sampler,
                    groups,
                    target,
                    wanted,
                    seed=0,
                    attributes=attributes,
                    population=shares({"race": who.race, "joint": {"test": who.joint}}, attributes),
                )
            elif sampler != "core_set":
                calibration.draw(sampler, groups, target, wanted, seed=0, attributes=attributes)
        except ValueError as error:
            raise ParamsError(f"mitigation.{key}: {sampler}: {error}") from None


def _name(cell: Any) -> str:
    """A crossed group in words."""
    return " ".join(str(value) for value in np.atleast_1d(np.asarray(cell, object)))


def _check_tuning(params: Params) -> None:
    """Refuse methods that need a picture of each group where there is none."""
    fair = [FAIR[name] for name in params.mitigation.methods if name in FAIR]
    if any(method.validates for method in fair):
        people = population(params, "validation")
        _, groups = demographics(people, "validation", np.arange(params.data.validation))
        sizes = groups.groupby(list(params.analysis.attributes), observed=False).size()
        if (sizes == 0).any():
            raise ParamsError(
                f"data.validation: none of {params.data.validation} pictures shows the group "
                f"{_name(sizes.index[int(np.argmin(sizes))])!r}, which methods look at there; "
                "enlarge it"
            )
    if not any(method.trains for method in fair):
        return
    images = params.quantization.tuning.images or params.data.train
    _, groups = demographics(population(params), "train", np.arange(images))
    sizes = groups.groupby(list(params.analysis.attributes), observed=False).size()
    if (sizes == 0).any():
        name = _name(sizes.index[int(np.argmin(sizes))])
        raise ParamsError(
            f"quantization.tuning.images: the first {images} training pictures show nobody of the "
            f"group {name!r}, whose losses are constrained; enlarge it"
        )


def shares(data: dict[str, Any], attributes: Sequence[str]) -> dict[str, float]:
    """Share of each crossed group among the test people of a run's data, by its name."""
    found: dict[str, float] = {}
    race = sum(data["race"].values())
    for cell, weight in data["joint"]["test"].items():
        gender, age, _ = cell.split("|")
        for name, part in data["race"].items():
            values = {"gender": gender, "age": age, "race": name}
            group = " ".join(values[attribute] for attribute in attributes)
            found[group] = found.get(group, 0.0) + weight * part / race
    return found


def _calibration_pool(params: Params) -> tuple[NDArray[np.int8], pd.DataFrame]:
    who = population(params, "calibration")
    return demographics(who, "calibration", np.arange(params.data.calibration))


def calibration_draws(params: Params) -> pd.DataFrame:
    """Images per crossed group in the first draw of each sampler that needs no model."""
    target, groups = _calibration_pool(params)
    attributes = list(params.analysis.attributes)
    columns = {}
    for sampler in ("random", *params.mitigation.samplers):
        if sampler in calibration.NEEDS:  # a model's answers, or a population
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
