"""The device of a study, and whether it can train what is to be trained."""

from __future__ import annotations

import torch

from fairq_utils.errors import Fault
from fairq_utils.study.params.study import Params


def device(params: Params) -> str:
    """``cuda`` or ``cpu``; asking for a GPU where there is none is an error."""
    if params.execution.device == "cuda" and not torch.cuda.is_available():
        raise Fault(
            "execution.device: cuda was asked for but PyTorch finds no GPU; use auto or cpu"
        )
    if params.execution.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return params.execution.device


def _check_recipes(params: Params) -> None:
    """Refuse what the device that is to train, here or of a cluster's workers, cannot train."""
    if params.cluster.kind == "none":
        gpu, here = device(params) == "cuda", "this study runs on the CPU"
    else:
        # Whether a worker has the GPU that it is to have, it finds itself.
        gpu = params.cluster.gpus > 0 and params.execution.device != "cpu"
        here = "the workers have none by execution.device and cluster.gpus"
    for name, recipe in params.training.models.items():
        if recipe.precision == "fp16" and not gpu:
            raise Fault(
                f"training.models.{name}.precision: fp16 needs a GPU, and {here}; take bf16 or fp32"
            )
