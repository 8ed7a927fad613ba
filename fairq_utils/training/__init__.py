"""Training: architectures, the one loop, and stopped trainings that go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.training.architectures import (
        Normalized,
        PretrainedUnavailable,
        build,
        initialise,
        normalize,
    )
    from fairq_utils.training.checkpoints import load_checkpoint, save_checkpoint
    from fairq_utils.training.loop import (
        History,
        Recipe,
        fit,
        optimise,
        predict,
        settle_batch_norms,
    )
    from fairq_utils.training.objectives import Classification, WithFactors
    from fairq_utils.training.resume import Checkpoints
    from fairq_utils.training.zoo import ARCHITECTURES, Architecture, architecture

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Checkpoints",
    "Classification",
    "History",
    "Normalized",
    "PretrainedUnavailable",
    "Recipe",
    "WithFactors",
    "architecture",
    "build",
    "fit",
    "initialise",
    "load_checkpoint",
    "normalize",
    "optimise",
    "predict",
    "save_checkpoint",
    "settle_batch_norms",
]

__getattr__, __dir__ = passed_on(__name__, extra="study")
