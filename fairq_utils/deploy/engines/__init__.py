"""Quantized models on real integer kernels: written to a file, run by an engine."""

from fairq_utils.deploy.engines.loaded_model import (
    FloatKernelsWarning,
    Kernels,
    KernelsWarning,
    LoadedModel,
    NotExact,
    NotRunning,
    SaturationWarning,
)
from fairq_utils.deploy.engines.registry import (
    ENGINES,
    Engine,
    NotInstalled,
    engine,
    files,
    installed,
    load,
    write,
)

__all__ = [
    "ENGINES",
    "Engine",
    "FloatKernelsWarning",
    "Kernels",
    "KernelsWarning",
    "LoadedModel",
    "NotExact",
    "NotInstalled",
    "NotRunning",
    "SaturationWarning",
    "engine",
    "files",
    "installed",
    "load",
    "write",
]
