"""Toolkits by name, each used for post-training quantization as its documentation recommends."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fairq_utils.bench.outcome import NotOffered
from fairq_utils.deploy.engines.registry import ENGINES, NotInstalled, files
from fairq_utils.deploy.quiet import silence
from fairq_utils.registry import Registry

Logits = Callable[[Tensor], Tensor]  # images, as the networks take them -> logits

EDGE_BITS = 8  # of the first and the last layer, for everybody
EXTRA = "toolkits"  # the optional dependencies that hold what is not in the main ones


@dataclass(frozen=True)
class Task:
    """Quantization of one model; the same for all toolkits.

    Attributes
    ----------
    model : module in evaluation mode, float32; it must stay as it is
    weight_bits, activation_bits : int
    batches : float32 (B, 3, H, W) each
        The calibration images, as the model takes them.
    first, last : names of the first and the last layer to run, which stay at :data:`EDGE_BITS`
    """

    model: nn.Module
    weight_bits: int
    activation_bits: int
    batches: tuple[Tensor, ...]
    first: str = ""
    last: str = ""

    @property
    def transformer(self) -> bool:
        """True of a model with attention."""
        return any("Attention" in type(module).__name__ for module in self.model.modules())


Write = Callable[[Task, Tensor, Path], None]


@dataclass(frozen=True)
class Peer:
    """A toolkit.

    Attributes
    ----------
    name, label : by which it is asked for; how the table calls it
    package : what is imported and installed
    quantize : from a :class:`Task` to what computes logits in the place of the model
    engine : name of the engine that it makes INT8 files for, or ""
    write : from a task, an example and the file's path to such a file
    """

    name: str
    label: str
    package: str
    quantize: Callable[[Task], Logits]
    engine: str = ""
    write: Write | None = None


PEERS: Registry[Peer] = Registry("peer", "fairq_utils.bench.peers")


def peer(name: str, **attributes: Any) -> Peer:
    """Register a toolkit; its attributes are those of :class:`Peer`."""
    return PEERS.add(name, Peer(name, **attributes))


def installed(peer: Peer) -> str:
    """Version of a toolkit.

    Raises
    ------
    NotInstalled
        It is not there; names the extra that brings it.
    """
    if importlib.util.find_spec(peer.package) is None:
        raise NotInstalled(
            f"{peer.label} is not installed; `make toolkits`, or "
            f"pip install -c constraints.txt -e '.[{EXTRA}]', brings it"
        )
    return version(peer.package)


def quantize(name: str, task: Task) -> Logits:
    """Quantize with a toolkit, without its words.

    Raises
    ------
    NotInstalled, NotOffered
        See there. Whatever else a toolkit raises passes through.
    """
    with silence():
        peer = PEERS[name]
        installed(peer)
        return peer.quantize(task)


def write(model: nn.Module, engine: str, folder: Path, example: Tensor, images: Tensor) -> None:
    """Write the INT8 file that the toolkit of an engine makes, as it recommends it.

    Parameters
    ----------
    model : float, in evaluation mode
    engine : str
        One of :data:`fairq_utils.deploy.engines.registry.ENGINES`.
    example : float32 (N, 3, H, W)
        See :func:`fairq_utils.deploy.engines.registry.write`.
    images : float32 (N, 3, H, W)
        For calibration.

    Raises
    ------
    NotInstalled
        Names the extra that brings the toolkit.
    NotOffered
        No toolkit here makes files for this engine.
    """
    with silence():
        for peer in PEERS.values():
            if peer.engine == engine and peer.write is not None:
                installed(peer)
                task = Task(model, 8, 8, tuple(images.split(8)))
                return peer.write(task, example, files(engine, folder)[0])
    raise NotOffered(f"no toolkit here makes files for {ENGINES[engine].label}")
