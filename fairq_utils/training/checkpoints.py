"""Weights on disk: a trained model as a safetensors file, with a checksum of what is in it."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fairq_utils.data.whole_files import WAY_OUT, readable, written_whole

CHECKSUM = "checksum"  # its name in the file's metadata


class DamagedCheckpoint(ValueError):
    """A file of tensors is not what was written: its bytes, or the run that it is of."""


def save_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights as safetensors, under a temporary name first: a kill leaves no half file.

    A file that is there already stays: where two processes trained the same model, the first one's
    weights are those that everybody evaluates.

    Raises
    ------
    NotWritten
        The disk is full, or the place cannot be written.
    """
    write_tensors(path, model.state_dict(), metadata or {}, first_stays=True)


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], run: str | None = None
) -> nn.Module:
    """Read weights written by :func:`save_checkpoint` into ``model`` and return it.

    Parameters
    ----------
    run : str, optional
        Key of the run that the file has to be of, where it says.

    Raises
    ------
    ValueError
        The file is damaged, or belongs to another run or architecture.
    NotRead
        It is there and cannot be read.
    """
    try:
        state, metadata = read_tensors(path)
        check_run(metadata, run)
    except DamagedCheckpoint as error:
        raise ValueError(f"{path}: this checkpoint is damaged ({error}); delete it") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: not a checkpoint of this architecture ({str(error).splitlines()[0]}); "
            "delete it"
        ) from error
    return model


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    first_stays: bool = False,
    way_out: str = WAY_OUT,
) -> None:
    """Write tensors and what is said of them, with a checksum over both.

    Arguments and errors are those of :func:`fairq_utils.data.whole_files.written_whole`.
    """
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    said = {**metadata, CHECKSUM: _checksum(held, metadata)}
    with written_whole(path, first_stays=first_stays, way_out=way_out) as place:
        place.write_bytes(save(held, said))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, and what is said of them; a file without a checksum is taken as it is.

    Raises
    ------
    DamagedCheckpoint
        The content is not what was written; says why, without the path.
    FileNotFoundError, NotRead
        There is no file, or it cannot be read.
    """
    with readable(path):
        content = Path(path).read_bytes()
    try:
        tensors = load(content)
        metadata = _metadata(content)
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise DamagedCheckpoint(str(error)) from error
    expected = metadata.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(tensors, metadata):
        raise DamagedCheckpoint("it does not match its checksum")
    return tensors, metadata


def check_run(metadata: Mapping[str, str], run: str | None) -> None:
    """Refuse a file that says to be of another run.

    Raises
    ------
    DamagedCheckpoint
        Names the run that it is of.
    """
    found = metadata.get("run")
    if run is not None and found is not None and found != run:
        raise DamagedCheckpoint(f"it holds the weights of run {found}")


def _metadata(content: bytes) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return dict(found)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of names, kinds, shapes and bytes: any one bit that is another changes it."""
    found = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        value = tensors[name]
        found = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), found)
        found = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
