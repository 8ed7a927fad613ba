"""Cost of a study: its plan, run by run, in images; and images in seconds.

Nothing is trained and no photograph needs to be there: a collection is counted as published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torchvision

from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.data.population import SPLITS
from fairq_utils.errors import BadInput
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.study import recorded
from fairq_utils.study.execution import by_calibration
from fairq_utils.study.ledger import Run, RunRecord
from fairq_utils.study.params.data import Data, Photographs
from fairq_utils.study.params.study import Params
from fairq_utils.study.people import listing
from fairq_utils.study.planning import PHASES, with_dials
from fairq_utils.study.progress import GRIDS
from fairq_utils.study.workload import Rates, Work, work

HOUR = 3600.0
PARTS = ("training_seconds", "quantizer_seconds")
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
        return {split: int((listing(params).split == split).sum()) for split in SPLITS}
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
                f"data.images.{split}: {wanted} pictures are asked for and "
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
    """A run of a study, and what it works through.

    Attributes
    ----------
    calibrates : whether it bears the calibration that it shares with others
    group : number of those that share it, or of its own
    """

    run: Run
    work: Work
    calibrates: bool
    group: int

    def seconds(self, rates: Mapping[str, Rates]) -> tuple[float, float]:
        """Seconds of training and answers, and of the quantizer."""
        own = rates[self.run.architecture]
        return (
            self.work.training_seconds(own),
            self.work.quantizer_seconds(own, calibrates=self.calibrates),
        )


def jobs(params: Params, phases: Sequence[str] = PHASES) -> list[Job]:
    """All runs of a study, dials' worlds included, with what they work through.

    Parameters
    ----------
    params : Params
    phases : of :data:`fairq_utils.study.planning.PHASES`

    Raises
    ------
    BadInput
        See :func:`counts` and :func:`counted`.
    """
    runs = list(with_dials(counted(params), phases))
    found = [Job(run, work(run), False, -1) for run in runs if run.method == "fp32"]
    for number, (_, members) in enumerate(by_calibration(runs)):
        found += [Job(run, work(run), place == 0, number) for place, run in enumerate(members)]
    return found


def seconds(planned: Sequence[Job], rates: Mapping[str, Rates]) -> pd.DataFrame:
    """Seconds of every run.

    Parameters
    ----------
    planned : from :func:`jobs`
    rates : by architecture, at the study's size of pictures

    Returns
    -------
    DataFrame
        A row per run: ``architecture``, ``kind`` (of :data:`fairq_utils.study.workload.KINDS`),
        ``method`` (with the sampler of the calibration images, unless random), ``bits``, ``draw``
        of the calibration, ``training_seconds`` (training, and answers about test images),
        ``quantizer_seconds`` (calibrating, choosing, learning), and their sum ``seconds``.

    Raises
    ------
    BadInput
        An architecture without rates.
    """
    rows = []
    for job in planned:
        run = job.run
        if run.architecture not in rates:
            raise BadInput(
                f"cost: there are no rates of {run.architecture}; give some, or take it out of "
                "training.models"
            )
        draws = run.sampler not in (None, "random")
        method = f"{run.method} {run.sampler}" if draws else run.method
        what = (run.architecture, job.work.kind, method, run.bits, run.calibration_seed)
        rows.append((*what, *job.seconds(rates)))
    columns = ["architecture", "kind", "method", "bits", "draw", *PARTS]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(seconds=frame[list(PARTS)].sum(axis=1))


def table(
    planned: Sequence[Job], rates: Mapping[str, Rates], by: Sequence[str] = ("architecture", "kind")
) -> pd.DataFrame:
    """Seconds of a study by architecture and kind of run, or by other columns of :func:`seconds`.

    Returns
    -------
    DataFrame
        The columns of ``by``, ``runs``, ``training_seconds``, ``quantizer_seconds``, ``seconds``.
    """
    frame = seconds(planned, rates).assign(runs=1)
    kept = [*by, "runs", *PARTS, "seconds"]
    return frame[kept].groupby(list(by), sort=False).sum().reset_index()


def one_more(
    params: Params, planned: Sequence[Job], rates: Mapping[str, Rates]
) -> dict[str, float]:
    """Hours that one more of something adds: the average over those that the study has.

    Returns
    -------
    dict
        ``seed`` of training, ``architecture``, ``draw`` of calibration images, and
        ``method`` of those that are group-aware.
    """
    frame = seconds(planned, rates)
    aware = frame[frame.method.isin([m for m in METHODS if METHODS[m].group_aware])]
    parts = {
        "seed": (frame, len(params.training.seeds)),
        "architecture": (frame, len(params.training.models)),
        "draw": (frame[frame.draw.notna()], len(params.quantization.calibration_seeds)),
        "method": (aware, aware.method.nunique()),
    }
    return {
        what: float(rows.seconds.sum()) / HOUR / many if many else 0.0
        for what, (rows, many) in parts.items()
    }


def spread(planned: Sequence[Job], rates: Mapping[str, Rates], workers: int) -> float:
    """Hours until a study is done by so many workers that are each as fast as the rates say.

    Runs that share a calibration are one worker's. Each task goes to the worker that is free first,
    the longest first, and quantized models wait until all FP32 models are trained, so that this is
    a little too long.
    """
    trained: list[float] = []
    grouped: dict[int, float] = {}
    for job in planned:
        took = sum(job.seconds(rates))
        if job.group < 0:
            trained.append(took)
        else:
            grouped[job.group] = grouped.get(job.group, 0.0) + took
    return (_makespan(trained, workers) + _makespan(list(grouped.values()), workers)) / HOUR


def _makespan(tasks: Sequence[float], workers: int) -> float:
    busy = np.zeros(workers)
    for seconds in sorted(tasks, reverse=True):
        busy[busy.argmin()] += seconds
    return float(busy.max())


def gpu(*, single: float = SINGLE) -> dict[str, Rates]:
    """Rates of a GPU at 224 pixels, from timm's published benchmarks.

    Parameters
    ----------
    single : float
        How much slower single precision is, in which this package evaluates, quantizes and trains
        on.

    Returns
    -------
    dict
        By architecture. Where no rate is published, that of the architecture that stands in for
        it, times their ratio of multiply-adds.
    """
    found = {}
    for architecture, rows in published().groupby("architecture", sort=False):
        speed = rows.set_index("what").images_per_second
        train, evaluate = float(speed[TRAIN]), float(speed[INFER]) / single
        found[str(architecture)] = Rates(
            train=train,
            train_on=train / single,
            tune=train / single / GRIDS,
            evaluate=evaluate,
            quantized=evaluate / GRIDS,
            dynamic=evaluate / GRIDS,
            calibrate=evaluate,
            look=evaluate,
            learn=train / single / GRIDS,
        )
    for missing, other in STANDS_IN.items():
        found[missing] = _slower(found[other], 1 / multiply_adds_ratio(missing, other))
    return found


def _slower(rates: Rates, factor: float) -> Rates:
    given = {name: value * factor for name, value in vars(rates).items() if name != "overhead"}
    return replace(rates, **given)


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


def fitted(records: Sequence[RunRecord], share: float = 1.0) -> dict[str, Rates]:
    """Rates that a study's ledger shows.

    Parameters
    ----------
    records : of at least an FP32 and a quantized run of each architecture
    share : seconds of the processor per second that passed, where others used it too

    Returns
    -------
    dict
        By architecture. Work that no run did has the rate of what comes nearest to it.
    """
    found = {}
    for architecture in dict.fromkeys(record.run.architecture for record in records):
        own = [record for record in records if record.run.architecture == architecture]
        found[architecture] = _fitted([(record, work(record.run)) for record in own], share)
    return found


def _fitted(runs: Sequence[tuple[RunRecord, Work]], share: float) -> Rates:
    def rate(what: str, spent: Callable[[RunRecord], float], kind: str = "") -> float:
        """Images per second of one kind of work; NaN where there was none."""
        some = [(r, w) for r, w in runs if getattr(w, what) and kind in ("", w.kind)]
        passed = sum(spent(r) for r, _ in some) * share
        return sum(getattr(w, what) for _, w in some) / passed if some else np.nan

    def trained(record: RunRecord) -> float:
        return record.measures["train_seconds"]

    def answered(record: RunRecord) -> float:
        return record.seconds - _own(record)

    train = rate("trained", trained)
    train_on = _either(rate("trained_on", trained), train)
    tune = _either(rate("tuned", trained), train_on / GRIDS)
    evaluate = rate("evaluated", lambda record: record.seconds - trained(record), "train")
    quantized = rate("quantized", answered, "quantize")
    plain = [_own(record) for record, work in runs if work.kind == "quantize"]
    overhead = float(np.mean(plain)) * share

    def learning(record: RunRecord) -> float:
        return _own(record) - (overhead + work(record.run).looked / evaluate) / share

    return Rates(
        train=train,
        train_on=train_on,
        tune=tune,
        evaluate=evaluate,
        quantized=quantized,
        dynamic=_either(rate("dynamic", answered), quantized),
        calibrate=rate("calibrated", lambda r: r.measures["calibrate_seconds"], "quantize"),
        look=evaluate,
        learn=_either(rate("learnt", learning), tune),
        overhead=overhead,
    )


def _either(rate: float, other: float) -> float:
    """A rate that was found, or what comes nearest to it."""
    return other if np.isnan(rate) else rate


def _own(record: RunRecord) -> float:
    """Seconds of quantizing, without the calibration that runs share."""
    return record.measures["quantize_seconds"] - record.measures["calibrate_seconds"]
