"""Weights on disk: a trained model as a safetensors file."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


def save_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights as safetensors, under a temporary name first: a kill leaves no half file.

    A file that is there already stays: where two processes trained the same model, the first one's
    weights are those that everybody evaluates.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    state = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    try:
        save_file(state, temporary, metadata=dict(metadata or {}))
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Read weights written by :func:`save_checkpoint` into ``model`` and return it.

    Raises
    ------
    ValueError
        The file is damaged, or belongs to another architecture.
    """
    try:
        state = load_file(path)
        model.load_state_dict(state)
    except SafetensorError as error:
        raise ValueError(f"{path}: this checkpoint is damaged ({error}); delete it") from error
    except RuntimeError as error:
        raise ValueError(
            f"{path}: not a checkpoint of this architecture ({str(error).splitlines()[0]}); "
            "delete it"
        ) from error
    return model
