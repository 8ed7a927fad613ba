"""A worker of a cluster: a study's tasks, on its own threads and GPU, with word of them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from distributed import get_worker

from fairq_utils.errors import Fault
from fairq_utils.registry import load_plugins
from fairq_utils.study import runs
from fairq_utils.study.ledger import Ledger
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import code_of
from fairq_utils.study.progress import Tick
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SPOKEN = 5.0  # seconds between two words about one training
# The random numbers and the threads of PyTorch are a process's, so it does one task at a time.
_alone = threading.Lock()


@dataclass(frozen=True)
class Relay:
    """Says on a topic of the scheduler what :class:`.progress.Progress` is told here.

    A word is a mapping: ``run``, a key, and while it is trained ``step``, ``steps`` and ``loss``.
    """

    topic: str

    def training(self, run: Run) -> Tick:
        """A callback for :func:`fairq_utils.training.loop.fit`."""
        said = time.perf_counter()

        def tick(step: int, steps: int, loss: float) -> None:
            nonlocal said
            if time.perf_counter() - said >= SPOKEN or step == steps:
                said = time.perf_counter()
                self._say({"run": run.key, "step": step, "steps": steps, "loss": loss})

        return tick

    def finish(self, run: Run) -> None:
        """A run is in the ledger."""
        self._say({"run": run.key})

    def _say(self, word: dict[str, Any]) -> None:
        get_worker().log_event(self.topic, word)


@dataclass(frozen=True)
class Terms:
    """Terms on which a worker takes a task.

    Attributes
    ----------
    threads : of PyTorch
    mark : in the ledger; everybody who shares it sees it
    """

    threads: int
    mark: str


def pictures(params: Params, terms: Terms) -> None:
    """Render the pictures of a study into the cache, so that nobody else has to."""
    with _at_work(params, terms, ()) as study:
        _ = study.device, study.faces  # in this order: a GPU that is missing is said at once


def baseline(params: Params, terms: Terms, run: Run, relay: Relay, rendered: None) -> str:
    """:func:`fairq_utils.study.runs.train_baseline` on a worker.

    Parameters
    ----------
    rendered : what :func:`pictures` gave, which has to come before
    """
    with _at_work(params, terms, [run]) as study:
        return runs.train_baseline(study, run, relay)


def quantized(
    params: Params, terms: Terms, members: list[Run], key: str, relay: Relay, rendered: None
) -> None:
    """:func:`fairq_utils.study.runs.evaluate_quantized` on a worker.

    Parameters
    ----------
    key : of the FP32 run
    """
    with _at_work(params, terms, members) as study:
        runs.evaluate_quantized(study, members, key, relay)


@contextmanager
def _at_work(params: Params, terms: Terms, wanted: Iterable[Run]) -> Iterator[Study]:
    """The study, for one task at a time, on its threads and GPU, where worker and client agree."""
    with _alone:
        _keep_memory()
        load_plugins(params.plugins)
        torch.set_num_threads(terms.threads)
        if params.execution.device != "cpu" and torch.cuda.is_available():
            torch.cuda.set_device(_gpu())
        elif params.execution.device == "auto" and params.cluster.gpus:
            raise Fault(
                f"cluster.gpus: the worker {get_worker().address} has none that PyTorch finds; set "
                "cluster.gpus to 0, or mend its installation"
            )
        if not _shares(params.execution.ledger, terms.mark):
            raise Fault(
                f"execution.ledger: the worker {get_worker().address} does not see "
                f"{params.execution.ledger}; name a folder or a store that every machine of the "
                "cluster reaches"
            )
        for run in wanted:
            if code_of(run.method, run.sampler, run.architecture, run.data) != run.code:
                raise Fault(
                    f"cluster: the worker {get_worker().address} has another version of "
                    "fairq_utils; install the same one there"
                )
        yield _opened(params)


@lru_cache(maxsize=8)
def _opened(params: Params) -> Study:
    return Study(params)


@lru_cache(maxsize=8)
def _shares(url: str, mark: str) -> bool:
    return Ledger(url).sees(mark)


@lru_cache(maxsize=1)
def _keep_memory() -> None:
    """Let freed memory stay with the process, where a network's next layer wants it again.

    Dask's nanny has glibc give it back at once, which made evaluation three times as slow. These
    are the limits to which glibc raises its own thresholds where nobody sets them (mallopt(3)).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)


@lru_cache(maxsize=1)
def _gpu() -> int:
    """A GPU that no other worker of this machine has, while there is one; held until the end."""
    for number in range(torch.cuda.device_count()):
        name = str(torch.cuda.get_device_properties(number).uuid)
        path = Path(tempfile.gettempdir(), f"fairq-gpu-{name}-{os.getuid()}")
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            continue
        return number
    return 0
