"""Other toolkits, each used for post-training quantization as its documentation recommends.

One module per toolkit, each with one function ``quantize(task)`` that returns what answers in the
place of the model: a function from pictures, as the networks take them, to logits.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from torch import Tensor, nn

from fairq_utils.deploy.quiet import silence
from fairq_utils.errors import Fault

Answer = Callable[[Tensor], Tensor]

EDGE_BITS = 8  # of the first and the last layer, for everybody
EXTRA = "toolkits"  # the optional dependencies that hold what is not in the main ones


class NotOffered(Fault):
    """A toolkit has no way to quantize this model to these bits; the message says why."""


class NotInstalled(Fault):
    """A toolkit is not there; the message names what brings it."""


@dataclass(frozen=True)
class Task:
    """What a toolkit is given; the same for all.

    Attributes
    ----------
    model : module in evaluation mode, float32; it must stay as it is
    weight_bits, activation_bits : int
    batches : float32 (B, 3, H, W) each
        The calibration pictures, as the model takes them.
    first, last : names of the first and the last layer to run, which stay at :data:`EDGE_BITS`
    transformer : whether the model has attention
    """

    model: nn.Module
    weight_bits: int
    activation_bits: int
    batches: tuple[Tensor, ...]
    first: str
    last: str
    transformer: bool


@dataclass(frozen=True)
class Peer:
    """A toolkit.

    Attributes
    ----------
    label : how the table calls it
    package : what is imported
    distribution : what is installed
    module : our adapter
    """

    label: str
    package: str
    distribution: str
    module: str


PEERS: dict[str, Peer] = {
    "torchao_pt2e": Peer("torchao PT2E", "torchao", "torchao", "torchao_pt2e"),
    "nncf": Peer("NNCF", "nncf", "nncf", "nncf_ptq"),
    "onnxruntime": Peer("ONNX Runtime", "onnxruntime", "onnxruntime", "onnxruntime_qdq"),
    "brevitas": Peer("Brevitas", "brevitas", "brevitas", "brevitas_ptq"),
}


def installed(name: str) -> str:
    """The version of a toolkit.

    Raises
    ------
    NotInstalled
        It is not there; names the extra that brings it.
    """
    peer = PEERS[name]
    if importlib.util.find_spec(peer.package) is None:
        raise NotInstalled(
            f"{peer.label} is not installed; `make toolkits`, or "
            f"pip install -c constraints.txt -e '.[{EXTRA}]', brings it"
        )
    return version(peer.distribution)


def quantize(name: str, task: Task) -> Answer:
    """Quantize with a toolkit, without its words.

    Raises
    ------
    NotInstalled, NotOffered
        See there. Whatever else a toolkit raises passes through.
    """
    installed(name)
    with silence():
        adapter = importlib.import_module(f"{__name__}.{PEERS[name].module}")
        answer: Answer = adapter.quantize(task)
    return answer
