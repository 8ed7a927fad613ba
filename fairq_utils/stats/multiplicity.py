"""Many tests as one family."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

# Column -> statsmodels' name. Holm is what verdicts use; Bonferroni is shown because the published
# study used it; Benjamini-Hochberg bounds the share of false findings, not the chance of any.
CORRECTIONS: dict[str, str] = {
    "holm": "holm",
    "bonferroni": "bonferroni",
    "benjamini_hochberg": "fdr_bh",
}


def adjusted(p_values: Mapping[str, float]) -> pd.DataFrame:
    """P-values of one family, as they are and corrected three ways, by statsmodels.

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
        if not 0 <= p <= 1:
            raise ValueError(f"p_values[{name!r}]: {p} is not between 0 and 1")
    raw = np.array(list(p_values.values()), float)
    columns = {
        column: multipletests(raw, method=method)[1] for column, method in CORRECTIONS.items()
    }
    return pd.DataFrame({"test": list(p_values), "p_value": raw, **columns})
