"""A study on a cluster: its tasks in which pieces and order, and what is said meanwhile.

Pictures are rendered first, once for everybody; then each model is trained, and each piece of its
quantized runs evaluated. Tasks carry parameters and runs; pictures, weights and results are read
from the cache and the ledger, and written there. So a worker that dies loses the run in hand and
nothing else: its task begins again elsewhere and leaves out the runs that are there.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

import dask
from dask import delayed
from distributed import Client, KilledWorker, as_completed

from fairq_utils.study import cluster, worker
from fairq_utils.study.cluster import ClusterError
from fairq_utils.study.params.data import Data, Photographs
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import baseline_of
from fairq_utils.study.progress import Progress, Tick
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study

PIECES = 4  # per worker: small enough to end together, large enough to share a calibration
FIRST = 1e9  # priority of what everything waits for
KEPT = "every finished run is kept, the same command goes on"
Cost = Callable[[Run], float]


def compute(
    study: Study,
    baselines: Mapping[Run, Study],
    groups: Sequence[tuple[Study, Sequence[Run]]],
    bars: Progress,
) -> None:
    """Train and evaluate on the cluster that the params name.

    Parameters
    ----------
    baselines : FP32 runs, each with its own study
    groups : quantized runs that share a calibration, with their study

    Raises
    ------
    ClusterError
        The cluster cannot be used, or its workers died of one task again and again.
    Fault
        What a task cannot do; the sentence is the same as in one process.
    """
    params = study.params
    with cluster.client(params) as client, study.ledger.mark() as mark:
        workers = len(client.nthreads())
        if not workers:
            bars.say(f"cluster · asked for {params.cluster.workers} workers, none has joined yet")
        workers = max(workers, 1 if params.cluster.kind == "address" else params.cluster.workers)
        limit = sum(bars.cost(run) for _, members in groups for run in members) / (PIECES * workers)
        parts = [
            (own.params, part)
            for own, members in groups
            for part in pieces(members, bars.cost, limit)
        ]
        terms = worker.Terms(params.cluster.threads, mark)
        relay = worker.Relay(f"fairq-{uuid.uuid4().hex}")
        alone = {run: own.params for run, own in baselines.items()}
        tasks = graph(alone, parts, bars.cost, terms, relay, params.cluster.gpus)
        ear = Ear(bars)
        client.subscribe_topic(relay.topic, ear.hear)
        _wait(client, tasks)
        ear.say_the_rest()


def pieces(members: Sequence[Run], cost: Cost, limit: float) -> list[list[Run]]:
    """Cut runs that share a calibration into pieces of nearly equal cost.

    As many as keep a piece within ``limit`` if runs were divisible; a run stays whole.

    Examples
    --------
    >>> pieces(["a", "b", "c", "d"], {"a": 5, "b": 1, "c": 2, "d": 2}.get, limit=5)
    [['a'], ['b', 'c', 'd']]
    """
    count = min(len(members), math.ceil(sum(map(cost, members)) / limit)) if limit else 1
    made: list[list[Run]] = [[] for _ in range(count)]
    for run in sorted(members, key=cost, reverse=True):
        min(made, key=lambda piece: sum(map(cost, piece))).append(run)
    place = {run: i for i, run in enumerate(members)}
    return [sorted(piece, key=place.__getitem__) for piece in made]


def graph(
    baselines: Mapping[Run, Params],
    parts: Sequence[tuple[Params, Sequence[Run]]],
    cost: Cost,
    terms: worker.Terms,
    relay: worker.Relay,
    gpus: int,
) -> list[Any]:
    """The tasks as ``dask.delayed``; who has most work behind comes first.

    Parameters
    ----------
    baselines, parts : FP32 runs, and pieces of quantized ones, with their params
    gpus : that a task takes of its worker
    """
    own = uuid.uuid4().hex[:8]  # a scheduler remembers what was called alike
    resources = {"GPU": gpus} if gpus else {}
    behind: dict[str, float] = {}
    for _, members in parts:
        key = baseline_of(members[0]).key
        behind[key] = max(behind.get(key, 0.0), sum(map(cost, members)))
    rendered: dict[Data | Photographs, Any] = {}
    for params in [*baselines.values(), *(params for params, _ in parts)]:
        if params.data not in rendered:
            name = f"pictures-{own}-{len(rendered)}"
            with dask.annotate(priority=FIRST, resources=resources):
                rendered[params.data] = delayed(worker.pictures)(params, terms, dask_key_name=name)
    trained = {}
    for run, params in baselines.items():
        with dask.annotate(priority=cost(run) + behind.get(run.key, 0.0), resources=resources):
            trained[run.key] = delayed(worker.baseline)(
                params,
                terms,
                run,
                relay,
                rendered[params.data],
                dask_key_name=f"baseline-{own}-{run.key}",
            )
    tasks = list(trained.values())
    for number, (params, members) in enumerate(parts):
        with dask.annotate(priority=sum(map(cost, members)), resources=resources):
            tasks.append(
                delayed(worker.quantized)(
                    params,
                    terms,
                    list(members),
                    trained[baseline_of(members[0]).key],
                    relay,
                    rendered[params.data],
                    dask_key_name=f"quantized-{own}-{number}",
                )
            )
    return tasks


@dataclass
class Ear:
    """Hears what workers say, on a thread of the client, and tells the terminal."""

    bars: Progress
    ticks: dict[str, Tick] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.runs = {run.key: run for run in self.bars.missing}

    def hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """One word of :class:`fairq_utils.study.worker.Relay`, with its time."""
        word = event[1]
        run = self.runs.get(word["run"])
        with self.lock:
            if run is None or run.key in self.bars.done:
                return
            if "step" not in word:
                self.bars.finish(run)
                return
            tick = self.ticks.setdefault(run.key, self.bars.training(run))
            tick(word["step"], word["steps"], word["loss"])

    def say_the_rest(self) -> None:
        """Name runs that are done but went unsaid: a worker that dies takes its word with it."""
        with self.lock:
            for run in self.bars.missing:
                if run.key not in self.bars.done:
                    self.bars.finish(run)


def _wait(client: Client, tasks: Sequence[Any]) -> None:
    """Compute all tasks; the first that fails ends it with what it raised."""
    # No retries: what a task cannot do it cannot do twice. Deaths of workers are counted apart.
    futures = client.compute(list(tasks), optimize_graph=False)
    try:
        for future in as_completed(futures):
            future.result()
    except KilledWorker as error:
        raise ClusterError(
            f"cluster: {error.allowed_failures + 1} workers died of the same task ({error.task}), "
            "most often for want of memory or time; give them more in cluster.memory or "
            f"cluster.walltime. Meanwhile, {KEPT}"
        ) from error
    except CancelledError as error:
        raise ClusterError(
            f"cluster: the scheduler went away before the study was done; {KEPT} once there is "
            "one again"
        ) from error
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"cluster: a worker has no package {error.name}; install this project there"
        ) from error
    finally:
        if client.status == "running":
            client.cancel(futures, force=True)
