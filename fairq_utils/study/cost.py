"""Cost of a study on a GPU, in hours, before anything is computed or downloaded.

Nothing is trained and no photograph needs to be there: a collection is counted as published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torchvision

from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.population import SPLITS
from fairq_utils.errors import BadInput
from fairq_utils.study import recorded
from fairq_utils.study.execution import by_calibration
from fairq_utils.study.params.data import Data, Photographs
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import with_dials
from fairq_utils.study.study import Study
from fairq_utils.study.workload import GRIDS, Rates, Work, work

HOUR = 3600.0
# How much slower single precision is than mixed precision, for which the GPU's rates are published:
# our assumption, since the peak rates of the GPU's two kinds of units differ by it.
SINGLE = 2.0
STANDS_IN = {"squeezenet1_1": "mobilenet_v2"}  # no rate is published; of a similar size

RATES = "published_rates"  # of book/results/
TRAIN, INFER = "train_amp", "infer_amp"


def counts(params: Params) -> dict[str, int]:
    """Images of each split: those asked for, or of a collection as many as were published.

    Carved shares are of the expected size; the hash that carves them may give a few more or less.

    Raises
    ------
    BadInput
        ``data.images`` asks for more than there are.
    """
    if isinstance(params.data, Data):
        return {split: int(getattr(params.data, split)) for split in SPLITS}
    collection = COLLECTIONS[params.data.name]
    published = collection.published
    if published is None:
        return {split: int((Study(params).listing.split == split).sum()) for split in SPLITS}
    given = {str(split): share for split, share in (params.data.held_out or {}).items()}
    shares = collection.shares(given)
    found: dict[str, int] = {}
    for together, images in (published.splits or {SPLITS: published.images}).items():
        carved = {split: round(images * shares[split]) for split in together if split in shares}
        rest = [split for split in together if split not in carved]
        if not rest:  # what rounding left
            carved[together[-1]] += images - sum(carved.values())
        found |= carved | {split: images - sum(carved.values()) for split in rest}
    for split, wanted in params.data.images.items():
        if wanted > found[split]:
            raise BadInput(
                f"data.images.{split}: {wanted} images are asked for and "
                f"{params.data.name} has about {found[split]}; name fewer"
            )
        found[split] = wanted
    return {split: found[split] for split in SPLITS}


def counted(params: Params) -> Params:
    """The same study of as many rendered people, which can be planned without a photograph.

    Raises
    ------
    BadInput
        Its runs depend on which groups there are, which only the photographs say.
    """
    if not isinstance(params.data, Photographs):
        return params
    if any("one_group" in entry.sampler for entry in params.grid):
        raise BadInput(
            f"grid: one_group has a run for each group, and which there are in "
            f"{params.data.name} only its files say; leave it out to count the cost"
        )
    images: dict[str, Any] = counts(params)
    people = Data.model_construct(size=params.data.size, **images)
    return params.model_copy(update={"data": people})


@dataclass(frozen=True)
class Job:
    """A run's work.

    Attributes
    ----------
    architecture : str
    work : Work
    calibrates : whether it bears the calibration that it shares with others
    """

    architecture: str
    work: Work
    calibrates: bool


def jobs(params: Params) -> list[Job]:
    """Work of every run of a study, dials' worlds included.

    Raises
    ------
    BadInput
        See :func:`counts` and :func:`counted`.
    """
    runs = list(with_dials(Study(counted(params))))
    shared = {run for _, members in by_calibration(runs) for run in members[1:]}
    return [Job(run.architecture, work(run), run not in shared) for run in runs]


def hours(planned: Sequence[Job], rates: Mapping[str, Rates] | None = None) -> pd.DataFrame:
    """Hours of every run, one GPU working at all of them.

    Parameters
    ----------
    planned : of :func:`jobs`
    rates : by architecture, at the study's size of images; those of :func:`gpu` if not given

    Returns
    -------
    DataFrame
        A row per run: ``architecture``, ``kind`` (of :data:`fairq_utils.study.workload.KINDS`)
        and ``hours``. A calibration that runs share is the first one's.

    Raises
    ------
    BadInput
        An architecture without rates.
    """
    given = gpu() if rates is None else rates
    rows = []
    for job in planned:
        if job.architecture not in given:
            raise BadInput(
                f"cost: there are no rates of {job.architecture}; give some, or take it out of "
                "training.models"
            )
        took = job.work.seconds(given[job.architecture], calibrates=job.calibrates)
        rows.append((job.architecture, job.work.kind, took / HOUR))
    return pd.DataFrame(rows, columns=["architecture", "kind", "hours"])


def gpu(*, single: float = SINGLE) -> dict[str, Rates]:
    """Rates of a GPU at 224 pixels, from timm's published benchmarks.

    Parameters
    ----------
    single : float
        How much slower single precision is, in which this package evaluates, quantizes and
        fine-tunes.

    Returns
    -------
    dict
        By architecture. Where no rate is published, that of the architecture that stands in for
        it, times their ratio of multiply-adds.
    """
    found = {}
    for architecture, rows in published().groupby("architecture", sort=False):
        speed = rows.set_index("what").images_per_second
        train, predict = float(speed[TRAIN]), float(speed[INFER]) / single
        found[str(architecture)] = Rates(train, train / single, predict, predict / GRIDS)
    for missing, other in STANDS_IN.items():
        slower = multiply_adds_ratio(missing, other)
        found[missing] = Rates(*(value / slower for value in vars(found[other]).values()))
    return found


def multiply_adds_ratio(architecture: str, other: str) -> float:
    """Multiply-adds of one image at 224 pixels over another network's, as torchvision counts them.

    >>> round(multiply_adds_ratio("squeezenet1_1", "mobilenet_v2"), 2)
    1.16
    """
    found = torchvision.models
    ops = {
        name: found.get_model_weights(name).DEFAULT.meta["_ops"] for name in (architecture, other)
    }
    return float(ops[architecture] / ops[other])


def published() -> pd.DataFrame:
    """Rates that others have published, and where.

    Returns
    -------
    DataFrame
        ``architecture``; ``what``: training or inference, in mixed precision; ``machine``;
        ``images_per_second``; ``source``, a file, and its ``row``.
    """
    return recorded.read_rows(RATES)
