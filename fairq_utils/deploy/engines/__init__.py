"""Quantized models on real integer kernels: written to a file, run by an engine."""

from fairq_utils.deploy.engines.loaded_model import Kernels, LoadedModel, NotExact, NotRunning
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
    "Kernels",
    "LoadedModel",
    "NotExact",
    "NotInstalled",
    "NotRunning",
    "engine",
    "files",
    "installed",
    "load",
    "write",
]
