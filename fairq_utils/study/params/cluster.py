"""The section ``cluster`` of a params file: whose processes run the study."""

from __future__ import annotations

from typing import Annotated, Literal

from dask.utils import parse_bytes
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Kind = Literal["none", "local", "ssh", "slurm", "kubernetes", "address"]
AUTO = "auto"
# What a kind needs, and what it reads besides `threads` and `gpus`.
NEEDS: dict[Kind, tuple[str, ...]] = {
    "ssh": ("hosts",),
    "slurm": ("memory",),
    "kubernetes": ("image", "memory"),
    "address": ("address",),
}
READS: dict[Kind, tuple[str, ...]] = {
    "local": ("workers", "memory"),
    "ssh": ("workers", "memory", "hosts", "python", "interface"),
    "slurm": (
        *("workers", "memory", "python", "interface"),
        *("queue", "account", "walltime", "directives", "prologue"),
    ),
    "kubernetes": ("workers", "memory", "image", "namespace"),
    "address": ("address",),
}


def _memory(value: str) -> str:
    if value != AUTO:
        try:
            enough = parse_bytes(value) >= 2**30
        except ValueError:
            enough = False
        if not enough:
            raise ValueError(f"{value!r} is not auto or a size of at least 1 GiB, such as 8GB")
    return value


class Cluster(BaseModel):
    """Workers of a study; with ``kind: none`` it runs in the process that was started.

    ``workers`` are all of them. Each answers one task at a time, with ``threads`` of PyTorch and,
    where ``gpus`` is 1, a GPU of its own, which it offers as the Dask resource ``GPU``. ``memory``
    is a worker's. ``hosts`` are reached by SSH, the first also runs the scheduler, and they take
    workers in turn; ``python`` is the interpreter there, ``interface`` the network they share.
    ``queue``, ``account``, ``walltime``, further ``directives`` and shell lines of a ``prologue``
    are those of a SLURM job, one for each worker. ``image`` holds this package. ``address`` is
    that of a scheduler that runs already, or the path of its scheduler file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    kind: Kind = "none"
    workers: Annotated[int, Field(ge=1, le=10_000)] = 2
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    memory: Annotated[str, AfterValidator(_memory)] = AUTO
    hosts: tuple[str, ...] = ()
    python: str = ""
    interface: str = ""
    queue: str = ""
    account: str = ""
    walltime: Annotated[str, Field(pattern=r"^(\d+-)?\d{1,3}(:\d\d){0,2}$")] = "04:00:00"
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    image: str = ""
    namespace: str = "default"
    address: str = ""

    @model_validator(mode="after")
    def _of_its_kind(self) -> Cluster:
        if self.kind == "none":
            return self
        for key in NEEDS.get(self.kind, ()):
            if getattr(self, key) in ("", (), AUTO):
                raise ValueError(f"{key}: a cluster of kind {self.kind} needs it; add it")
        known = {"kind", "threads", "gpus", *READS[self.kind]}
        for key in type(self).model_fields:
            if key in self.model_fields_set and key not in known:
                raise ValueError(
                    f"{key}: a cluster of kind {self.kind} does not read it; take it out"
                )
        return self

    def elsewhere(self, address: str) -> Cluster:
        """A scheduler that runs already in place of this section; threads and GPUs stay."""
        return Cluster(kind="address", address=address, threads=self.threads, gpus=self.gpus)
