"""Devices of a study: which there are, and whether they can train what is to be trained."""

from __future__ import annotations

import multiprocessing

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


def devices(params: Params) -> int:
    """How many devices train an FP32 model together; more GPUs than there are is an error."""
    wanted, kind = params.execution.devices, device(params)
    gpus = torch.cuda.device_count() if kind == "cuda" else 0
    if wanted == "auto":
        # A cluster has one worker for each GPU, and its workers start no processes.
        return 1 if multiprocessing.current_process().daemon else max(gpus, 1)
    if kind == "cuda" and wanted > gpus:
        raise Fault(
            f"execution.devices: {wanted} were asked for but PyTorch finds {gpus} "
            f"{'GPU' if gpus == 1 else 'GPUs'}; use auto"
        )
    return wanted


def _check_recipes(params: Params) -> None:
    """Refuse what the devices that are to train, here or on a cluster's workers, cannot train."""
    if params.cluster.kind == "none":
        gpu, count, here = device(params) == "cuda", devices(params), "this study runs on the CPU"
    else:
        # Whether a worker has what it was promised, it finds itself.
        gpu = params.cluster.gpus > 0 and params.execution.device != "cpu"
        count = 1 if params.execution.devices == "auto" else params.execution.devices
        here = "the workers have none by execution.device and cluster.gpus"
    for name, recipe in params.training.models.items():
        if recipe.precision == "fp16" and not gpu:
            raise Fault(
                f"training.models.{name}.precision: fp16 needs a GPU, and {here}; take bf16 or fp32"
            )
        if recipe.batch_size % count:
            raise Fault(
                f"training.models.{name}.batch_size: {recipe.batch_size} images do not divide "
                f"among {count} devices; take a multiple of {count}, or set execution.devices"
            )
