"""Printed tables: how names and numbers are printed, and a frame as HTML.

Rates and gaps are printed in points (hundredths), ratios as they are, with intervals in brackets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.training.zoo import display_name

if TYPE_CHECKING:
    from IPython.display import HTML


class _Labels(dict[str, str]):
    """Labels of statistics; a criterion that has none here is called by its title."""

    def __missing__(self, name: str) -> str:
        return FAIRNESS[name].title or name.replace("_", " ")


LABELS = _Labels(
    accuracy="Accuracy",
    worst_group_accuracy="Worst-group accuracy",
    demographic_parity_difference="Demographic parity gap",
    equalized_odds_difference="Equalized odds gap",
    equal_opportunity_difference="Equal opportunity gap",
    predictive_equality_difference="Predictive equality gap",
    disparate_impact="Disparate impact",
    directed_accuracy_difference="Accuracy, unprivileged less others",
    directed_selection_rate_difference="Selection rate, unprivileged less others",
)
RATIOS = ("disparate_impact",)
RULES = {"minmax": "min-max", "moving_average": "moving average", "mse": "MSE"}


def title(architecture: str) -> str:
    """Name of an architecture as it is printed."""
    return display_name(architecture)


def label(row: pd.Series) -> str:
    """Short name of a configuration: bits, method, ranges, and the sampler unless random."""
    words = [] if row["bits"] == "FP32" else [row["bits"]]
    words.append(method_label(row))
    if row["sampler"] not in ("", "random"):
        words.append(row["sampler"].replace("_", " "))
    return " ".join(words)


def labels(frame: pd.DataFrame) -> list[str]:
    """Short names of configurations, told apart by their setting where one name has several."""
    return told_apart([label(row) for _, row in frame.iterrows()], frame)


def told_apart(names: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """Names of the rows of a frame, with the ``setting`` where rows of one name differ in it."""
    if "setting" not in frame:
        return list(names)
    settings = frame.setting.groupby(list(names)).nunique()
    return [
        f"{name}, {setting}" if settings[name] > 1 else name
        for name, setting in zip(names, frame.setting, strict=True)
    ]


def method_label(row: pd.Series) -> str:
    """Short name of a method; of plain static quantization with its range rule."""
    name = named_method(row["method"])
    if row["method"] == "ptq" and row["ranges"]:
        name += f" {range_label(row['ranges'])}"
    return name


def named_method(name: str) -> str:
    """Label of a method; of a group-aware one with its family."""
    if name == "fp32":
        return "FP32"
    method = METHODS[name]
    return f"{method.family}: {method.label}" if method.group_aware else method.label


def range_label(rule: str) -> str:
    """Short name of a range rule."""
    return RULES.get(rule, rule)


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """Rename architectures and statistics to what is printed."""
    renamed = frame.copy()
    if "architecture" in renamed:
        renamed["architecture"] = renamed.architecture.map(title)
    if "statistic" in renamed:
        renamed["statistic"] = renamed.statistic.map(LABELS)
    return renamed


def points(values: Iterable[float], form: str = ".1f") -> list[str]:
    """Fractions times 100, such as ``-1.2`` of -0.012; what is not defined is left empty."""
    return ["" if value != value else format(100 * value, form) for value in values]


def floors(values: Iterable[float]) -> list[str]:
    """Noise floors in points, such as ``±1.2``."""
    return [f"±{value}" if value else "" for value in points(values)]


def intervals(frame: pd.DataFrame, column: str = "compared") -> list[str]:
    """``value [low, high]`` of a column, a cell per row; ratios stay ratios."""
    ends = ("low", "high") if column == "change" else (f"{column}_low", f"{column}_high")
    names = frame["statistic"] if "statistic" in frame else [""] * len(frame)
    cells = []
    for name, values in zip(names, frame[[column, *ends]].to_numpy(float), strict=True):
        scale, digits = (1, 2) if name in RATIOS else (100, 1)
        value, low, high = (f"{scale * number:.{digits}f}" for number in values)
        cells.append(f"{value} [{low}, {high}]")
    return cells


def html_table(frame: pd.DataFrame, *, wrapped: bool = False) -> HTML:
    """Turn a frame into HTML without its index; a wide or long one scrolls in its own box.

    Parameters
    ----------
    wrapped : whether cells hold sentences, which go over several lines
    """
    from IPython.display import HTML  # here, because names and numbers are printed without it

    classes = "dataframe wrapped" if wrapped else "dataframe"
    body = frame.to_html(index=False, border=0, justify="left", classes=classes)
    return HTML(f'<div class="table-scroll">{body}</div>')


def note(text: str) -> HTML:
    """A sentence in the place of a figure or table."""
    from IPython.display import HTML

    return HTML(f"<p><em>{text}</em></p>")


def wide_table(frame: pd.DataFrame, index: list[str], columns: str) -> HTML:
    """Spread the column ``cell`` over columns, in the order in which they come."""
    wide = frame.pivot_table(
        index=index, columns=columns, values="cell", aggfunc="first", sort=False
    )
    return html_table(wide.fillna("").reset_index().rename_axis(columns=None))


def flips_table(frame: pd.DataFrame) -> HTML:
    """Right predictions lost and won by group, with McNemar's mid-p.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.effects.by_group`
    """
    rows = named(frame)
    return html_table(
        pd.DataFrame(
            {
                "architecture": rows.architecture,
                "bits": rows.bits,
                "group": rows.group,
                "images": rows.images,
                "change (points)": intervals(frame, "change"),
                "lost": rows.lost,
                "won": rows.won,
                "p (McNemar)": [f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in rows.p_value],
            }
        )
    )
