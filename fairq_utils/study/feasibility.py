"""Feasibility of a study: checked before anything is rendered, decoded or written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairq_utils import calibration
from fairq_utils.calibration import SAMPLERS
from fairq_utils.data.faces import FaceData
from fairq_utils.data.population import SPLITS
from fairq_utils.metrics.prevalence import decides
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.study.dials import LABELS, worlds
from fairq_utils.study.params.data import Photographs
from fairq_utils.study.params.study import Params, ParamsError
from fairq_utils.study.planning import mitigations
from fairq_utils.study.study import Study

Who = Callable[[str], tuple[NDArray[np.int8], pd.DataFrame]]
MOST = 100_000  # rendered people of a split that are looked at: those behind are drawn alike


def check(study: Study) -> None:
    """Refuse a study that its people cannot serve.

    Only demographics are drawn, or labels read, which takes moments.

    Raises
    ------
    ParamsError
        A group of ``analysis.attributes`` without a test image, or with too few images in the
        calibration pool for a sampler; names the key, the group and the way out.
    BadInput, Fault
        See :meth:`fairq_utils.study.study.Study.check_places`.
    """
    study.check_places()
    _check(study, partial(study.people, most=MOST))


def check_decoded(study: Study) -> None:
    """The same of the photographs that could be decoded; of rendered people there is no other.

    Raises
    ------
    ParamsError
        As in :func:`check`, where pictures that cannot be used left too few.
    """
    if not isinstance(study.params.data, Photographs):
        return
    data = study.faces
    try:
        _check(study, partial(_usable, data))
    except ParamsError as error:
        left_out = sum(finding["counts"] for finding in data.meta["findings"])
        if not left_out:
            raise
        raise ParamsError(f"{error} ({left_out} pictures or labels were left out)") from None


def _usable(data: FaceData, split: str) -> tuple[NDArray[np.int8], pd.DataFrame]:
    rows = data.split == split
    return data.target[rows], data.groups[rows].reset_index(drop=True)


def _check(study: Study, who: Who) -> None:
    params = study.params
    attributes = list(params.analysis.attributes)
    if isinstance(params.data, Photographs):
        _check_photographs(study, who)
    target, groups = who("test")
    empty = _empty(groups, attributes)
    if empty is not None:
        raise ParamsError(
            f"data.test: none of {len(target)} test images shows the group {empty!r} of "
            f"analysis.attributes ({', '.join(attributes)}); {_more(params)}, or take an attribute "
            "out"
        )
    for world in worlds(params):
        try:
            check(study.of(world.params))
        except ParamsError as error:
            where = f"{LABELS[world.dial]} {world.level:g}".strip()
            raise ParamsError(f"dials: {where}: {error}") from None
    _check_tuning(study, who, attributes)
    _check_samplers(study, who, attributes)
    _check_draws(study, who, attributes)


def _more(params: Params) -> str:
    """Advice on giving a group test images."""
    if isinstance(params.data, Photographs):
        return "keep more pictures in data.images or data.held_out"
    return "enlarge data.test, give the group more weight in data.joint or data.race"


def _empty(groups: pd.DataFrame, attributes: Sequence[str]) -> str | None:
    """A crossed group without a picture, in words."""
    sizes = groups.groupby(list(attributes), observed=False).size()
    return _name(sizes.index[int(np.argmin(sizes))]) if (sizes == 0).any() else None


def _name(cell: Any) -> str:
    """A crossed group in words."""
    return " ".join(str(value) for value in np.atleast_1d(np.asarray(cell, object)))


def _check_photographs(study: Study, who: Who) -> None:
    """Refuse attributes that photographs lack, and numbers that are larger than their splits."""
    params, known = study.params, study.values
    unknown = [name for name in params.analysis.attributes if name not in known]
    if unknown:
        raise ParamsError(
            f"analysis.attributes: {unknown[0]!r} is no group of {params.data.name}; there are "
            f"{', '.join(known)}"
        )
    sizes = {split: len(who(split)[0]) for split in SPLITS}
    for split, size in sizes.items():
        if not size:
            raise ParamsError(
                f"data.root: {params.data.name} has no picture in the split {split}; give it more "
                "pictures, or a larger share in data.held_out"
            )
    for name in params.analysis.attributes:
        target, groups = who("train")
        if decides(groups[name], target):
            raise ParamsError(
                f"analysis.attributes: {name!r} is what the target is made of, so that nobody in a "
                "group of it has another label; leave it out, or choose another data.target"
            )
    quantization = params.quantization
    asked = {
        "quantization.calibration_images": (quantization.calibration_images, "calibration"),
        "quantization.tuning.images": (quantization.tuning.images or 0, "train"),
    } | {
        f"training.models.{name}.batch_size": (recipe.batch_size, "train")
        for name, recipe in params.training.models.items()
    }
    for key, (images, split) in asked.items():
        if images > sizes[split]:
            raise ParamsError(
                f"{key}: {images} images are asked for, but the split {split} of "
                f"{params.data.name} holds {sizes[split]}; ask for fewer"
            )


def _check_tuning(study: Study, who: Who, attributes: Sequence[str]) -> None:
    """Refuse methods that need a picture of each group where there is none."""
    methods = [METHODS[name] for name in {found.method: None for found in mitigations(study)}]
    if any("validation" in method.needs for method in methods):
        target, groups = who("validation")
        empty = _empty(groups, attributes)
        if empty is not None:
            raise ParamsError(
                f"data.validation: none of {len(target)} pictures shows the group {empty!r}, which "
                "methods look at there; enlarge it"
            )
    trained = [found for found in mitigations(study) if METHODS[found.method].constraint]
    if not trained:
        return
    target, groups = who("train")
    shared = study.params.quantization.tuning.images
    asked = [dict(found.settings).get("images", shared) or len(target) for found in trained]
    images = min(asked)
    empty = _empty(groups[:images], attributes)
    if empty is not None:
        raise ParamsError(
            f"quantization.tuning.images: the first {images} training pictures show nobody of the "
            f"group {empty!r}, whose losses are constrained; enlarge it"
        )


def _in_proportion(wanted: int, study: Study, split: str, looked_at: int) -> int:
    """As large a part of the people that are looked at as ``wanted`` is of all in a split."""
    data = study.params.data
    if isinstance(data, Photographs):
        return wanted
    return -(-wanted * looked_at // int(getattr(data, split)))


def _check_samplers(study: Study, who: Who, attributes: Sequence[str]) -> None:
    """Refuse samplers that the calibration pool has too few images for."""
    target, groups = who("calibration")
    shared = study.params.quantization.calibration_images
    for at, entry in enumerate(study.params.grid):
        for sampler in entry.sampler:
            needs, drawn = SAMPLERS[sampler].needs, sampler
            options: list[dict[str, Any]] = [{}]
            if needs == "group" or sampler == "worst_group":
                # Which group has the highest loss is known only after training.
                drawn = "one_group"
                cells = product(*(study.values[attribute] for attribute in attributes))
                options = [{"group": " ".join(cell)} for cell in cells]
            elif needs == "population":
                options = [{"population": study.shares(attributes, who("train")[1])}]
            elif needs in ("losses", "features"):
                drawn = "random"  # no more than a pool that is large enough
            for wanted, option in product(entry.calibration_images or (shared,), options):
                images = _in_proportion(wanted, study, "calibration", len(target))
                try:
                    calibration.draw(
                        drawn, groups, target, images, seed=0, attributes=attributes, **option
                    )
                except ValueError as error:
                    raise ParamsError(f"grid[{at}].sampler: {sampler}: {error}") from None


def _check_draws(study: Study, who: Who, attributes: Sequence[str]) -> None:
    """Refuse draws without a group that a method looks at."""
    target, groups = who("calibration")
    shared = study.params.quantization.calibration_images
    for found in mitigations(study):
        if "everybody" not in METHODS[found.method].needs or found.sampler != "random":
            continue
        wanted, seed = found.calibration_images or shared, int(found.calibration_seed or 0)
        images = min(wanted, len(target))
        rows = calibration.draw("random", groups, target, images, seed=seed, attributes=attributes)
        empty = _empty(groups.iloc[rows], attributes)
        if empty is not None:
            raise ParamsError(
                f"quantization.calibration_images: {wanted} images drawn at random (seed {seed}) "
                f"show nobody of the group {empty!r}, whom {found.method} looks at; draw more"
            )
