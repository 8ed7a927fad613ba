"""Scaling: how much sooner two workers of a cluster have evaluated a study than one.

Workers are processes of this machine, with one thread each. They start, load the package and read
the images before the clock does; models are trained already. What is timed is the evaluation of
all static runs, from the first task handed out to the last run in the ledger.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fairq_utils.bench.outcome import Outcome, say, words
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.bench.subjects import with_trained
from fairq_utils.study import cluster
from fairq_utils.study.execution import execute
from fairq_utils.study.ledger import Ledger
from fairq_utils.study.params.cluster import Cluster
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import baseline_of, plan
from fairq_utils.study.study import Study

PHASES = ("quantization", "mitigation")
METHOD = "ptq"
WORKERS = (1, 2)
ROUNDS = 2


@benchmark("cluster", title="how much sooner two workers are done than one", needs="study")
def bench_cluster(subject: Subject) -> Outcome:
    """Evaluate the static runs of a study by one worker and by two, in turn.

    Returns
    -------
    Outcome
        ``runs``; ``one_worker_seconds`` and ``two_workers_seconds``, medians over
        ``rounds``; ``ratio`` of the second to the first; ``differing_runs``, whose scores or
        counts are not the same bits for both; and ``cluster``: each round.

    Raises
    ------
    Fault
        A model is not trained yet.
    """
    study = subject.study
    runs = plan(Study(_static(study.params, ".")), PHASES)
    rows, differing = [], set[str]()
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            stores = []
            for workers in WORKERS if number % 2 == 0 else reversed(WORKERS):
                own = Study(_static(study.params, str(Path(folder, str(workers)))))
                store = with_trained(study.ledger, own.ledger, map(baseline_of, runs))
                seconds = _seconds(own.params, workers)
                rows.append({"round": number, "workers": workers, "seconds": seconds})
                say(f"cluster: {rows[-1]}")
                stores.append(store)
            differing |= {run.key for run in runs if not _same(run.key, *stores)}
    table = pd.DataFrame(rows)
    one, two = (statistics.median(table.seconds[table.workers == workers]) for workers in WORKERS)
    figures = {
        "runs": len(runs),
        "one_worker_seconds": round(one, 3),
        "two_workers_seconds": round(two, 3),
        "ratio": round(two / one, 3),
        "differing_runs": len(differing),
        "rounds": ROUNDS,
    }
    return Outcome(figures, words(table.round(2), figures), {"cluster": table})


def _static(params: Params, folder: str) -> Params:
    """Same study with its static runs only, in another ledger."""
    given = params.model_dump()
    given["grid"] = [entry for entry in given["grid"] if entry["method"] == (METHOD,)]
    given["execution"]["ledger"] = folder
    del given["dials"], given["cluster"]
    return type(params).model_validate(given)


def _seconds(params: Params, workers: int) -> float:
    with running(params, workers) as address:
        elsewhere = params.model_copy(update={"cluster": Cluster().elsewhere(address)})
        began = time.perf_counter()
        execute(Study(elsewhere), PHASES, stream=io.StringIO())
        return time.perf_counter() - began


@contextmanager
def running(params: Params, workers: int) -> Iterator[str]:
    """Address of a scheduler whose workers have read the images."""
    own = params.model_copy(update={"cluster": Cluster(kind="local", workers=workers)})
    with cluster.client(own) as client:
        client.wait_for_workers(workers)
        client.run(_read, params)
        yield str(client.scheduler_info(n_workers=0)["address"])


def _read(params: Params) -> None:
    torch.set_num_threads(1)
    _ = Study(params).faces


def _same(key: str, one: Ledger, two: Ledger) -> bool:
    """True where two ledgers hold the same bits of a run's predictions."""
    a, b = one.read(key), two.read(key)
    return np.array_equal(a.scores, b.scores) and np.array_equal(a.counts, b.counts)
