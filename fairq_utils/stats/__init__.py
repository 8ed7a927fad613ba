"""Intervals, noise floors, tests and verdicts, all from counts.

================  ======================================================================
module            contents
================  ======================================================================
``resampling``    bootstrap replicates: images, seeds, calibration draws
``intervals``     percentile and BCa intervals from replicates
``paired``        metrics of two models, and the difference between them
``crossed``       the same over seeds, calibration draws and images that are crossed
``group_blind``   changes that flips make which do not know the group
``floors``        gaps and changes that chance, or another training seed, makes
``significance``  predictions lost and won by group; many tests as one family
``disagreement``  images on which populations of models part ways, and their groups
``across_seeds``  tests whose unit is a training seed
``trends``        trend of a quantity with capacity
``effects``       effect sizes with intervals
``power``         changes that so many seeds and images can find
``verdicts``      supported, contradicted or undecided, and why
================  ======================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.stats.across_seeds import (
        ArmTests,
        Equivalence,
        PairedTests,
        arm_tests,
        equivalence,
        paired_tests,
    )
    from fairq_utils.stats.crossed import Components, components, crossed_changes
    from fairq_utils.stats.disagreement import (
        Exemplars,
        churn,
        exemplars,
        modal,
        over_representation,
    )
    from fairq_utils.stats.effects import Effect, cliffs_delta, cohens_d, cohens_dz
    from fairq_utils.stats.floors import (
        change_noise_floor,
        equal_errors,
        exchange_floors,
        noise_floor,
        null_gaps,
        seed_floors,
    )
    from fairq_utils.stats.group_blind import group_blind_tables
    from fairq_utils.stats.paired import Replicates, Statistic, paired_bootstrap, replicate
    from fairq_utils.stats.power import change_sd, detectable_change, power_to_detect, seeds_needed
    from fairq_utils.stats.resampling import SharedImages, resample, share_images
    from fairq_utils.stats.significance import adjusted, flips_by_group, mcnemar_mid_p
    from fairq_utils.stats.trends import Trend, trend
    from fairq_utils.stats.verdicts import (
        Claim,
        Verdict,
        above,
        below,
        between,
        differs,
        judge,
        near,
        together,
        verdict,
    )

__all__ = [
    "ArmTests",
    "Claim",
    "Components",
    "Effect",
    "Equivalence",
    "Exemplars",
    "PairedTests",
    "Replicates",
    "SharedImages",
    "Statistic",
    "Trend",
    "Verdict",
    "above",
    "adjusted",
    "arm_tests",
    "below",
    "between",
    "change_noise_floor",
    "change_sd",
    "churn",
    "cliffs_delta",
    "cohens_d",
    "cohens_dz",
    "components",
    "crossed_changes",
    "detectable_change",
    "differs",
    "equal_errors",
    "equivalence",
    "exchange_floors",
    "exemplars",
    "flips_by_group",
    "group_blind_tables",
    "judge",
    "mcnemar_mid_p",
    "modal",
    "near",
    "noise_floor",
    "null_gaps",
    "over_representation",
    "paired_bootstrap",
    "paired_tests",
    "power_to_detect",
    "replicate",
    "resample",
    "seed_floors",
    "seeds_needed",
    "share_images",
    "together",
    "trend",
    "verdict",
]

__getattr__, __dir__ = passed_on(__name__)
