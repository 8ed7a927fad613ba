"""Tests of changed predictions (McNemar), and corrections for many tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
import pandas as pd
from scipy.stats import binom

from fairq_utils.errors import BadInput
from fairq_utils.given import each_name
from fairq_utils.stats.resampling import Counts

# Column -> statsmodels' name. Holm is what verdicts use; Bonferroni is shown because the published
# study used it; Benjamini-Hochberg bounds the share of false findings, not the chance of any.
CORRECTIONS: dict[str, str] = {
    "holm": "holm",
    "bonferroni": "bonferroni",
    "benjamini_hochberg": "fdr_bh",
}


def flips_by_group(table: Counts, groups: Sequence[str]) -> pd.DataFrame:
    """Predictions lost and won: one row per group and one for all.

    Parameters
    ----------
    table : int (G, 2, 2, 2)
        Group x label x reference prediction x compared prediction.
    groups : G names

    Returns
    -------
    DataFrame
        ``group``, ``images``, ``lost`` (right before, wrong after), ``won``, ``churn`` (share of
        images whose prediction changed), ``change`` of accuracy, ``mcnemar_exact`` and
        ``mcnemar_mid_p``. P-values are of one group each; correct them over the groups
        (:func:`~fairq_utils.stats.adjusted`).

    Raises
    ------
    BadInput
        The table has another shape, or holds no numbers of images but sums of weights.

    Examples
    --------
    >>> table = np.zeros((2, 2, 2, 2), int)
    >>> table[:, 1, 1, 1] = 90
    >>> table[0, 1, 1, 0], table[0, 1, 0, 1], table[1, 1, 0, 1] = 9, 1, 8
    >>> flips_by_group(table, ["old", "young"])[["group", "lost", "won"]].values.tolist()
    [['old', 9, 1], ['young', 0, 8], ['all', 9, 9]]
    """
    groups, counts = each_name(groups), np.asarray(table)
    if counts.shape != (len(groups), 2, 2, 2):
        raise BadInput(
            f"table has shape {counts.shape}, {len(groups)} groups need ({len(groups)}, 2, 2, 2)"
        )
    if not np.array_equal(counts, np.rint(counts)):
        raise BadInput(
            "table: holds sums of weights (sample_weight), and McNemar's test counts images; give "
            "counts without weights"
        )
    if (counts < 0).any():
        raise BadInput("table: has negative counts; give numbers of images")
    from statsmodels.stats.contingency_tables import mcnemar  # takes a second to import

    rows = []
    for name, cells in [*zip(groups, counts, strict=True), ("all", counts.sum(axis=0))]:
        # A prediction is right where it equals the label.
        lost = int(cells[0, 0, 1] + cells[1, 1, 0])
        won = int(cells[0, 1, 0] + cells[1, 0, 1])
        images = int(cells.sum())
        exact = mcnemar([[0, lost], [won, 0]], exact=True).pvalue if lost + won else 1.0
        rows.append(
            {
                "group": name,
                "images": images,
                "lost": lost,
                "won": won,
                "churn": (lost + won) / images if images else float("nan"),
                "change": (won - lost) / images if images else float("nan"),
                "mcnemar_exact": float(exact),
                "mcnemar_mid_p": mcnemar_mid_p(lost, won),
            }
        )
    return pd.DataFrame(rows)


def mcnemar_mid_p(lost: int, won: int) -> float:
    r"""Two-sided mid-p value of McNemar's test (Fagerland et al. 2013, equation 5).

    .. math:: 2 P(X \le k) - P(X = k), \quad X \sim \mathrm{Binomial}(n, 1/2),

    with :math:`n` the predictions that flipped and :math:`k` the fewer of the two kinds. The exact
    test keeps below its level by a wide margin when few predictions flip; this one keeps close to
    it. (The exact one is statsmodels' ``mcnemar``, and stands beside this in
    :func:`flips_by_group`.)

    Parameters
    ----------
    lost, won : int
        Predictions right before and wrong after, and the reverse.

    Examples
    --------
    >>> mcnemar_mid_p(3, 0)
    0.125
    >>> mcnemar_mid_p(0, 0)
    1.0
    """
    for name, count in (("lost", lost), ("won", won)):
        if not isinstance(count, Real) or not 0 <= count < np.inf or count != np.rint(count):
            raise BadInput(f"{name}: {count!r} is no number of predictions; count them, 0 or more")
    n, k = lost + won, min(lost, won)
    if n == 0:
        return 1.0
    exact = 2 * binom.cdf(k, n, 0.5)
    return float(min(1.0, exact - binom.pmf(k, n, 0.5)))


def adjusted(p_values: Mapping[str, float]) -> pd.DataFrame:
    """P-values of one family, as they are and corrected: by Holm 1979, Benjamini and Hochberg 1995.

    The family is named and complete: a p-value that is missing would shrink the correction of all
    others, so NaN is refused instead of dropped.

    Returns
    -------
    DataFrame
        ``test``, ``p_value`` and the columns of :data:`CORRECTIONS`, in the order given.

    Examples
    --------
    >>> adjusted({"H1": 0.01, "H2": 0.04, "H3": 0.03})[["test", "holm", "bonferroni"]].round(3)
      test  holm  bonferroni
    0   H1  0.03        0.03
    1   H2  0.06        0.12
    2   H3  0.06        0.09
    """
    if not p_values:
        raise ValueError("p_values is empty")
    for name, p in p_values.items():
        if not isinstance(p, Real) or not 0 <= p <= 1:
            raise ValueError(f"p_values[{name!r}]: {p} is not between 0 and 1")
    from statsmodels.stats.multitest import multipletests  # takes a second to import

    raw = np.array(list(p_values.values()), float)
    columns = {
        column: multipletests(raw, method=method)[1] for column, method in CORRECTIONS.items()
    }
    return pd.DataFrame({"test": list(p_values), "p_value": raw, **columns})
