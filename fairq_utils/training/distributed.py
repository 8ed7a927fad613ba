"""One training by several processes, each with a device and its part of every batch.

This process is the first of them. The others are spawned for one training, build the same model
and data from the same arguments, and end with it; what is written and said is the first one's.
Gradients are averaged by PyTorch's DistributedDataParallel, and batch norms see the whole batch, so
that the weights are those of one device but for the rounding of sums. Dropout, and whatever else
draws from the global random state, draws from a stream of its own in each process: a model with
dropout gets other masks, and so other weights, with another number of devices, as it would with
another seed. A run's ``train_devices`` says how many there were.
"""

from __future__ import annotations

import inspect
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch import multiprocessing as torch_multiprocessing
from torch.multiprocessing.spawn import ProcessException
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from fairq_utils.errors import Fault

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """One of the processes that train together.

    Attributes
    ----------
    rank, count : its number, and how many there are
    device : such as ``cpu`` or ``cuda:1``
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    def part(self, batch: Tensor) -> Tensor:
        """Rows of a batch that are this process's (B, ...), which divides among the processes."""
        return batch if self.count == 1 else batch.chunk(self.count)[self.rank]

    def average(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        return value if self.count == 1 else _sum(value) / self.count

    def stream(self, seed: int) -> int:
        """Seed of this process's own random numbers, the training's where there is one process.

        It mixes seed and rank (:class:`numpy.random.SeedSequence`): with their sum, a process would
        draw the masks of another one of the next seed.
        """
        if self.rank == 0:
            return seed
        mixed = np.random.SeedSequence([seed, self.rank]).generate_state(1, np.uint64)
        return int(mixed[0])

    def agreed(self, wanted: bool) -> bool:
        """What the first process wants."""
        if self.count == 1:
            return wanted
        flag = torch.tensor(wanted, dtype=torch.uint8, device=self.device)
        distributed.broadcast(flag, 0)
        return bool(flag)

    def gathered(self, value: Tensor) -> Tensor:
        """Everybody's tensor (...), on this process's device: (count, ...)."""
        if self.count == 1:
            return value.detach()[None]
        mine = value.detach().to(self.device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        distributed.all_gather(parts, mine)
        return torch.stack(parts)

    def wrapped(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over the processes."""
        if self.count == 1:
            return module
        # Batch norms see the same numbers everywhere: no buffer needs to be sent at every step.
        known = inspect.signature(DistributedDataParallel).parameters
        new = "forward_sync_buffers"  # its name from PyTorch 2.14 on
        options: dict[str, Any] = {new if new in known else "broadcast_buffers": False}
        return DistributedDataParallel(module, **options)

    def whole_batch(self) -> AbstractContextManager[object]:
        """Within it, batch norms that train take their statistics from all parts of the batch."""
        return nullcontext() if self.count == 1 else _WholeBatch()


ALONE = Ranks()


# Arguments of F.batch_norm.
NAMES = (
    *("input", "running_mean", "running_var", "weight", "bias"),
    *("training", "momentum", "eps"),
)


class _Sum(torch.autograd.Function):
    """Sum over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _sum(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient)


def _sum(value: Tensor) -> Tensor:
    value = value.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(value)
    return value


class _WholeBatch(TorchFunctionMode):
    """Replaces ``F.batch_norm``, which every kind of batch norm layer calls.

    ``nn.SyncBatchNorm`` exists on GPUs only, and converting layers into it loses what a subclass
    does beside normalising, such as timm's activation.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            given = {**dict(zip(NAMES, args, strict=False)), **(kwargs or {})}
            if given.get("training", False):
                return _batch_norm(**given)
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm of (B, C, ...) by mean and variance over the parts of all processes."""
    x = input
    around = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    values = x.to(torch.promote_types(x.dtype, torch.float32))  # sums of short floats are coarse
    local = values.new_tensor([x.numel() / x.shape[1]])
    sums = _Sum.apply(torch.cat([values.sum(dim=around), local]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean.view(shape)
    var = _Sum.apply(centred.square().sum(dim=around)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var), momentum)
    out = centred * (var + eps).rsqrt().view(shape)
    if weight is not None:
        out = out * weight.view(shape)
    if bias is not None:
        out = out + bias.view(shape)
    return out.to(x.dtype)


def together(
    work: Callable[..., Result],
    args: Sequence[Any] = (),
    *,
    count: int,
    device: str,
    first: Mapping[str, Any] | None = None,
) -> Result:
    """Call ``work(ranks, *args)`` in ``count`` processes, and return what the first one returned.

    Parameters
    ----------
    work : callable
        A function of a module, with small arguments: spawned processes import the one and are sent
        the others.
    count : int
        1 calls it here and starts nothing.
    device : str
        ``cpu`` (processes talk through gloo) or ``cuda`` (one GPU each, through NCCL).
    first : mapping, optional
        Keyword arguments for the first process alone, such as where progress goes.

    Raises
    ------
    Fault
        Another process failed, or this one may not start any.
    """
    if count == 1:
        return work(Ranks(device=device), *args, **(first or {}))
    if multiprocessing.current_process().daemon:
        raise Fault(
            "execution.devices: a worker that is a daemon cannot start further processes; set "
            "devices: 1, or let the cluster's workers be no daemons (distributed.worker.daemon)"
        )
    threads = torch.get_num_threads()
    each = max(1, threads // count) if device == "cpu" else threads
    with tempfile.TemporaryDirectory(prefix="fairq-") as folder:
        others = torch_multiprocessing.spawn(
            _other, (folder, count, device, each, work, tuple(args)), count - 1, join=False
        )
        try:
            while len(list(Path(folder).glob("ready-*"))) < count - 1:
                others.join(timeout=0.1)
            torch.set_num_threads(each)
            result = work(_joined(folder, 0, count, device), *args, **(first or {}))
            while not others.join():
                continue
            return result
        except ProcessException as error:
            raise _fault(error) from None
        except RuntimeError:
            # The end of another process shows here as a broken connection: say why it ended.
            try:
                others.join(timeout=5)
            except ProcessException as error:
                raise _fault(error) from None
            raise
        finally:
            torch.set_num_threads(threads)
            for process in others.processes:
                if process.is_alive():
                    process.terminate()
                process.join()
            if distributed.is_initialized():
                distributed.destroy_process_group()


def _fault(error: ProcessException) -> Fault:
    last = str(error).strip().splitlines()[-1]
    return Fault(f"execution.devices: process {error.error_index + 1} of a training failed: {last}")


def _joined(folder: str, rank: int, count: int, device: str) -> Ranks:
    name = f"cuda:{rank}" if device == "cuda" else device
    if device == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=Path(folder, "meeting").as_uri(),
        rank=rank,
        world_size=count,
    )
    return Ranks(rank, count, name)


def _other(
    index: int,
    folder: str,
    count: int,
    device: str,
    threads: int,
    work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    Path(folder, f"ready-{index}").touch()
    work(_joined(folder, index + 1, count, device), *args)
    distributed.destroy_process_group()
