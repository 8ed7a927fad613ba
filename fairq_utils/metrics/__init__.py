"""Fairness metrics as ratios of sums of counts.

Three ways in, one computation:

- **Tables.** Counts (..., G, 2, 2), group x true label x prediction, with bootstrap replicates in
  front: :data:`RATES`, :data:`FAIRNESS` and :data:`INEQUALITY` map names to functions of tables.
- **Rows.** ``metric(y_true, y_pred, *, sensitive_features, method=..., min_cell=...)``, named as
  fairlearn names it; :func:`metric_frame` gives many at once.
- **A model and a loader.** :func:`compute_fairness_metrics`.

A criterion of one's own is one statement (:func:`criterion`) in one's own module; it is then in
:data:`FAIRNESS` by its name, and :func:`row_metric` makes its function of rows.

An empty denominator gives NaN, never 0 or 1. Groups without a rate take no part in a gap; they are
listed with their counts (:class:`LeftOutWarning`, :func:`left_out`, ``MetricFrame.left_out``). Rows
that leave a metric undefined are an error that says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairq_utils.metrics.counts import Counts, count, one_vs_rest
from fairq_utils.metrics.criteria import FAIRNESS, Criterion, criterion
from fairq_utils.metrics.frame import (
    MetricFrame,
    frame_of,
    marginal_and_intersectional,
    metric_frame,
)
from fairq_utils.metrics.gaps import (
    LeftOutWarning,
    difference,
    difference_to_rest,
    gap_to_overall,
    left_out,
    ratio,
    standard_deviation,
    worst_group,
)
from fairq_utils.metrics.inequality import (
    INEQUALITY,
    between_group_generalized_entropy_index,
    coefficient_of_variation,
    generalized_entropy_index,
    theil_index,
)
from fairq_utils.metrics.privileged import (
    average_odds_difference,
    directed_difference,
    directed_ratio,
    statistical_parity_difference,
)
from fairq_utils.metrics.rates import RATES, MeanRate, Rate, overall, rate
from fairq_utils.metrics.row_metrics import (
    accuracy,
    accuracy_difference,
    accuracy_ratio,
    average_abs_odds_difference,
    balanced_accuracy,
    base_rate,
    demographic_parity_difference,
    demographic_parity_ratio,
    disparate_impact,
    equal_opportunity_difference,
    equal_opportunity_ratio,
    equalized_odds_difference,
    equalized_odds_ratio,
    error_rate,
    f1_score,
    false_discovery_rate,
    false_negative_rate,
    false_negative_rate_difference,
    false_negative_rate_ratio,
    false_omission_rate,
    false_positive_rate,
    false_positive_rate_difference,
    false_positive_rate_ratio,
    four_fifths_rule,
    negative_predictive_value,
    positive_predictive_value,
    predictive_equality_difference,
    predictive_equality_ratio,
    predictive_parity_difference,
    predictive_parity_ratio,
    rate_gap,
    row_metric,
    row_rate,
    selection_rate,
    selection_rate_difference,
    selection_rate_ratio,
    treatment_equality_difference,
    treatment_equality_ratio,
    treatment_ratio,
    true_negative_rate,
    true_negative_rate_difference,
    true_negative_rate_ratio,
    true_positive_rate,
    true_positive_rate_difference,
    true_positive_rate_ratio,
    worst_group_accuracy,
)
from fairq_utils.metrics.scores import (
    SCORES,
    ScoresByGroup,
    calibration_error,
    calibration_error_difference,
    roc_auc_difference,
    scores_by_group,
)
from fairq_utils.metrics.thresholds import (
    common_threshold,
    difference_at_common_threshold,
    difference_at_equal_rate,
    rates_at_equal,
)
from fairq_utils.registry import passed_on

if TYPE_CHECKING:
    from fairq_utils.metrics.model_metrics import compute_fairness_metrics

__all__ = [
    "FAIRNESS",
    "INEQUALITY",
    "RATES",
    "SCORES",
    "Counts",
    "Criterion",
    "LeftOutWarning",
    "MeanRate",
    "MetricFrame",
    "Rate",
    "ScoresByGroup",
    "accuracy",
    "accuracy_difference",
    "accuracy_ratio",
    "average_abs_odds_difference",
    "average_odds_difference",
    "balanced_accuracy",
    "base_rate",
    "between_group_generalized_entropy_index",
    "calibration_error",
    "calibration_error_difference",
    "coefficient_of_variation",
    "common_threshold",
    "compute_fairness_metrics",
    "count",
    "criterion",
    "demographic_parity_difference",
    "demographic_parity_ratio",
    "difference",
    "difference_at_common_threshold",
    "difference_at_equal_rate",
    "difference_to_rest",
    "directed_difference",
    "directed_ratio",
    "disparate_impact",
    "equal_opportunity_difference",
    "equal_opportunity_ratio",
    "equalized_odds_difference",
    "equalized_odds_ratio",
    "error_rate",
    "f1_score",
    "false_discovery_rate",
    "false_negative_rate",
    "false_negative_rate_difference",
    "false_negative_rate_ratio",
    "false_omission_rate",
    "false_positive_rate",
    "false_positive_rate_difference",
    "false_positive_rate_ratio",
    "four_fifths_rule",
    "frame_of",
    "gap_to_overall",
    "generalized_entropy_index",
    "left_out",
    "marginal_and_intersectional",
    "metric_frame",
    "negative_predictive_value",
    "one_vs_rest",
    "overall",
    "positive_predictive_value",
    "predictive_equality_difference",
    "predictive_equality_ratio",
    "predictive_parity_difference",
    "predictive_parity_ratio",
    "rate",
    "rate_gap",
    "rates_at_equal",
    "ratio",
    "roc_auc_difference",
    "row_metric",
    "row_rate",
    "scores_by_group",
    "selection_rate",
    "selection_rate_difference",
    "selection_rate_ratio",
    "standard_deviation",
    "statistical_parity_difference",
    "theil_index",
    "treatment_equality_difference",
    "treatment_equality_ratio",
    "treatment_ratio",
    "true_negative_rate",
    "true_negative_rate_difference",
    "true_negative_rate_ratio",
    "true_positive_rate",
    "true_positive_rate_difference",
    "true_positive_rate_ratio",
    "worst_group",
    "worst_group_accuracy",
]

__getattr__, __dir__ = passed_on(__name__)
