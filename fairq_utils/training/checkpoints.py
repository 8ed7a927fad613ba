"""Weights on disk: a trained model as a safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fairq_utils.data.whole_files import written_whole


def save_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights as safetensors, under a temporary name first: a kill leaves no half file.

    A file that is there already stays: where two processes trained the same model, the first one's
    weights are those that everybody evaluates.
    """
    state = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    with written_whole(path, first_stays=True) as place:
        save_file(state, place, metadata=dict(metadata or {}))


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
