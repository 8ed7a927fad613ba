"""Intervals, noise floors, tests and verdicts, all from counts.

==================  ====================================================================
module              answers
==================  ====================================================================
``resampling``      who is drawn in a bootstrap: images, seeds, calibration draws
``intervals``       percentile and BCa intervals from replicates
``paired``          by how much do two models' metrics differ?
``coverage``        how often do these intervals hold the truth? (``coverage_of_seeds``)
``floors``          what would chance alone have made?
``training_noise``  what would another training seed alone have made?
``flips``           which group lost answers, which won?
==================  ====================================================================
"""

from fairq_utils.stats.flips import flips_by_group, mcnemar_mid_p
from fairq_utils.stats.floors import (
    change_noise_floor,
    exchange_floors,
    noise_floor,
    null_gaps,
)
from fairq_utils.stats.paired import Replicates, Statistic, paired_bootstrap, replicate
from fairq_utils.stats.resampling import SharedImages, resample, share_images
from fairq_utils.stats.training_noise import seed_floors, seed_pairs

__all__ = [
    "Replicates",
    "SharedImages",
    "Statistic",
    "change_noise_floor",
    "exchange_floors",
    "flips_by_group",
    "mcnemar_mid_p",
    "noise_floor",
    "null_gaps",
    "paired_bootstrap",
    "replicate",
    "resample",
    "seed_floors",
    "seed_pairs",
    "share_images",
]
