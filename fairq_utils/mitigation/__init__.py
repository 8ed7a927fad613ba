"""Fairness-aware quantization: group-aware ranges, allocation, training, and a certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.mitigation.accuracy_control import control_accuracy
    from fairq_utils.mitigation.balancing_act import BalancingAct
    from fairq_utils.mitigation.certificate import Question, images_needed
    from fairq_utils.mitigation.certified import FairnessAwareQuantizer
    from fairq_utils.mitigation.constraints import GroupDRO, OddsPenalty, ParityPenalty, Plain
    from fairq_utils.mitigation.fine_tuning import fine_tune, train_under
    from fairq_utils.mitigation.group_mixed import allocate_for_groups, quantize_mixed_for_groups
    from fairq_utils.mitigation.group_ranges import clipped, observe_groups
    from fairq_utils.mitigation.group_sensitivity import group_sensitivities, reduced
    from fairq_utils.mitigation.pool import pool_features, pool_losses
    from fairq_utils.mitigation.precision import preserve_channels, preserve_layers
    from fairq_utils.mitigation.preservation import preserve
    from fairq_utils.mitigation.sample import Sample, as_sample
    from fairq_utils.mitigation.sequential_test import Certificate, NotCertified, Trial

__all__ = [
    "BalancingAct",
    "Certificate",
    "FairnessAwareQuantizer",
    "GroupDRO",
    "NotCertified",
    "OddsPenalty",
    "ParityPenalty",
    "Plain",
    "Question",
    "Sample",
    "Trial",
    "allocate_for_groups",
    "as_sample",
    "clipped",
    "control_accuracy",
    "fine_tune",
    "group_sensitivities",
    "images_needed",
    "observe_groups",
    "pool_features",
    "pool_losses",
    "preserve",
    "preserve_channels",
    "preserve_layers",
    "quantize_mixed_for_groups",
    "reduced",
    "train_under",
]

__getattr__, __dir__ = passed_on(__name__)
