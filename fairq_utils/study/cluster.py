"""A Dask cluster as a params file names it: on this machine, by SSH, SLURM or Kubernetes."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
from dask.utils import parse_bytes
from distributed import Client, LocalCluster

from fairq_utils.errors import Fault
from fairq_utils.study.params.cluster import Cluster
from fairq_utils.study.params.study import Params

DEATHS = 4  # of workers that one task may take with it before it is the task's fault
QUIET = {"dashboard": False, "dashboard_address": ":0"}  # a scheduler's: no pages, any port
CONNECTING = 10.0  # seconds in which a scheduler has to answer
JOINING = 60.0  # seconds in which the first worker of a running scheduler has to join


class ClusterError(Fault):
    """A cluster cannot be used; says which and the way out."""


@contextmanager
def client(params: Params) -> Iterator[Client]:
    """A client of the cluster of ``params.cluster``; workers that it started end with it.

    Raises
    ------
    ClusterError
        Nobody answers, workers cannot be started or used, or a package is not installed.
    """
    settings = params.cluster
    with dask.config.set(_configuration(settings)):
        if settings.kind == "address":
            with _connected(settings.address) as found:
                _check(found, settings)
                yield found
            return
        with _started(settings) as workers, Client(workers) as found:
            yield found


def _configuration(settings: Cluster) -> dict[str, Any]:
    """Environment that processes started from here inherit."""
    kept = dask.config.get("distributed.nanny.pre-spawn-environ")
    return {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.nanny.pre-spawn-environ": {**kept, **_threads(settings)},
        # A worker's memory is mostly models, which pausing would not give back.
        "distributed.worker.memory.pause": False,
        "distributed.worker.profile.enabled": False,
    }


def _threads(settings: Cluster) -> dict[str, str]:
    numbers = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    asleep = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}  # as in cli.py
    return {**dict.fromkeys(numbers, str(settings.threads)), **asleep}


def _environment(settings: Cluster) -> dict[str, str]:
    """The same for processes that somebody else starts."""
    return {**_threads(settings), "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False"}


def _offers(settings: Cluster) -> dict[str, float]:
    """A worker's Dask resources."""
    return {"GPU": settings.gpus} if settings.gpus else {}


@contextmanager
def _started(settings: Cluster) -> Iterator[Any]:
    try:
        workers = STARTERS[settings.kind](settings)
    except Fault:
        raise
    except Exception as error:  # whatever a cluster's own software says
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ClusterError(
            f"cluster: workers of kind {settings.kind} could not be started ({reason}); correct "
            "the section cluster"
        ) from error
    with workers:
        yield workers


def _local(settings: Cluster) -> LocalCluster:
    with _deaf():
        return LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            memory_limit=settings.memory,
            resources=_offers(settings),
            dashboard_address=None,
            scheduler_kwargs=QUIET,
            silence_logs=logging.ERROR,
        )


@contextmanager
def _deaf() -> Iterator[None]:
    """Children that are started meanwhile leave Ctrl-C to this process, which ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ssh(settings: Cluster) -> Any:
    _package("asyncssh", settings)
    from distributed import SSHCluster

    hosts, shared = settings.hosts, _interface(settings)
    return SSHCluster(
        [hosts[0], *(hosts[i % len(hosts)] for i in range(settings.workers))],
        worker_options={
            "nthreads": 1,
            "memory_limit": settings.memory,
            "resources": _offers(settings),
            **shared,
        },
        scheduler_options={"port": 0, **QUIET, **shared},
        remote_python=settings.python or None,
        silence_logs=logging.ERROR,
    )


def _slurm(settings: Cluster) -> Any:
    package = _package("dask_jobqueue", settings)
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "cluster.kind: slurm submits jobs with sbatch, which is not on this machine; run on a "
            "login node of the cluster"
        )
    jobs = package.SLURMCluster(
        cores=1,
        processes=1,
        job_cpu=settings.threads,
        memory=settings.memory,
        queue=settings.queue or None,
        account=settings.account or None,
        walltime=settings.walltime,
        python=settings.python or sys.executable,
        job_name="fairq",
        job_extra_directives=[*_gres(settings), *settings.directives],
        job_script_prologue=[
            *(f"export {name}={value}" for name, value in _environment(settings).items()),
            *settings.prologue,
        ],
        worker_extra_args=["--resources", f"GPU={settings.gpus}"] if settings.gpus else [],
        scheduler_options=QUIET,
        **_interface(settings),
    )
    jobs.scale(settings.workers)
    return jobs


def _gres(settings: Cluster) -> list[str]:
    return [f"--gres=gpu:{settings.gpus}"] if settings.gpus else []


def _interface(settings: Cluster) -> dict[str, str]:
    return {"interface": settings.interface} if settings.interface else {}


def _kubernetes(settings: Cluster) -> Any:
    operator = _package("dask_kubernetes.operator", settings)
    return operator.KubeCluster(
        namespace=settings.namespace,
        custom_cluster_spec=kubernetes_resource(settings, operator.make_cluster_spec),
        quiet=True,
    )


def kubernetes_resource(settings: Cluster, make: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The ``DaskCluster`` that the operator is asked for.

    Parameters
    ----------
    make : ``make_cluster_spec`` of dask-kubernetes
    """
    offers = ["--resources", f"GPU={settings.gpus}"] if settings.gpus else []
    size = str(parse_bytes(settings.memory))
    resource = make(
        name=f"fairq-{uuid.uuid4().hex[:8]}",
        image=settings.image,
        n_workers=settings.workers,
        env=_environment(settings),
        worker_command=["dask", "worker", "--nthreads", "1", "--memory-limit", size, *offers],
    )
    limits = {"memory": size, "cpu": str(settings.threads)}
    if settings.gpus:
        limits["nvidia.com/gpu"] = str(settings.gpus)
    # The scheduler needs neither the memory nor the GPU of a worker.
    container = resource["spec"]["worker"]["spec"]["containers"][0]
    container["resources"] = {"limits": limits, "requests": limits}
    return resource


STARTERS: dict[str, Callable[[Cluster], Any]] = {
    "local": _local,
    "ssh": _ssh,
    "slurm": _slurm,
    "kubernetes": _kubernetes,
}


def _package(name: str, settings: Cluster) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ClusterError(
            f"cluster.kind: {settings.kind} needs the package {name.partition('.')[0]}, which is "
            "not installed; install it by `pip install -c constraints.txt -e '.[cluster]'`"
        ) from None


def _connected(address: str) -> Client:
    """A client of a scheduler that runs already."""
    by_file = "://" not in address
    if by_file and not Path(address).is_file():
        raise ClusterError(
            f"cluster: {address} is neither an address such as tcp://host:8786 nor a scheduler "
            "file that exists; correct it"
        )
    where = {"scheduler_file": address} if by_file else {"address": address}
    try:
        return Client(timeout=CONNECTING, **where)
    except (KeyError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ClusterError(
            f"cluster: no scheduler answers at {address} ({reason}); start one by `dask "
            "scheduler`, or name another address"
        ) from error


def _check(found: Client, settings: Cluster) -> None:
    """Refuse workers that somebody else started where a study cannot use them."""
    try:
        found.wait_for_workers(1, timeout=JOINING)
    except TimeoutError:
        raise ClusterError(
            f"cluster: the scheduler at {settings.address} has no worker; start some by `dask "
            f"worker {settings.address} --nthreads 1`"
        ) from None
    workers = found.scheduler_info(n_workers=-1)["workers"]
    for name, about in workers.items():
        if about["nthreads"] > 1:
            raise ClusterError(
                f"cluster: the worker {name} would run {about['nthreads']} tasks at once, and a "
                "run needs a process of its own; start workers with --nthreads 1, and say in "
                "cluster.threads how many threads a run takes"
            )
    if settings.gpus and not any(about["resources"].get("GPU") for about in workers.values()):
        raise ClusterError(
            f"cluster.gpus: no worker of {settings.address} offers a GPU; start workers with "
            "--resources GPU=1, or set cluster.gpus to 0"
        )
