"""Deployment: quantized models as files for engines, their cards, and predictions from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.deploy.card_terms import BadDeployable, write_card
    from fairq_utils.deploy.export import export_run
    from fairq_utils.deploy.predict import (
        Deployed,
        NoImage,
        Prediction,
        classify,
        open_deployable,
    )

__all__ = [
    "BadDeployable",
    "Deployed",
    "NoImage",
    "Prediction",
    "classify",
    "export_run",
    "open_deployable",
    "write_card",
]

__getattr__, __dir__ = passed_on(__name__, extra="study,engines")
