"""Printed tables: frames of :mod:`fairq_utils.study.statistics` as HTML, LaTeX and files.

Rates and gaps are printed in points (hundredths), ratios as they are, with intervals in brackets.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import torch
from IPython.display import HTML

from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.study.statistics import CONFIGURATION
from fairq_utils.training import architectures
from fairq_utils.training.zoo import display_name

LABELS = {
    "accuracy": "Accuracy",
    "worst_group_accuracy": "Worst-group accuracy",
    "demographic_parity_difference": "Demographic parity gap",
    "equalized_odds_difference": "Equalized odds gap",
    "equal_opportunity_difference": "Equal opportunity gap",
    "predictive_equality_difference": "Predictive equality gap",
    "disparate_impact": "Disparate impact",
}
RATIOS = ("disparate_impact",)
METHOD_LABELS = {
    "fp32": "FP32",
    **{
        name: f"{method.family}: {method.label}" if method.group_aware else method.label
        for name, method in METHODS.items()
    },
}
TOOLKITS = {
    "fp32": "FP32",
    "ours_minmax": "ours, min-max",
    "ours": "ours, blocks",
    "torchao_pt2e": "torchao PT2E",
    "nncf": "NNCF",
    "onnxruntime": "ONNX Runtime",
    "brevitas": "Brevitas",
}
RULES = {"minmax": "min-max", "moving_average": "moving average", "mse": "MSE"}

# The published study's FP32 sizes (its README, Phase 1), in the megabytes it prints.
PUBLISHED_SIZES = {
    "resnet50": 89.89,
    "mobilenet_v2": 8.91,
    "efficientnet_b0": 15.43,
    "vit_small": 85.76,
    "squeezenet1_1": 2.83,
}
# Heads that the published figures may have been counted with: two classes, one logit, all forty
# attributes of CelebA, ImageNet's classes.
OUTPUTS = (2, 1, 40, 1000)


def label(row: pd.Series) -> str:
    """Short name of a configuration: bits, method, ranges, and the sampler unless random."""
    words = [] if row["bits"] == "FP32" else [row["bits"]]
    words.append(method_label(row))
    if row["sampler"] not in ("", "random"):
        words.append(row["sampler"].replace("_", " "))
    return " ".join(words)


def method_label(row: pd.Series) -> str:
    """Short name of a method; of plain static quantization with its range rule."""
    name = METHOD_LABELS[row["method"]]
    if row["method"] == "ptq" and row["ranges"]:
        name += f" {RULES.get(row['ranges'], row['ranges'])}"
    return name


def width(bits: str) -> tuple[int, ...]:
    """Sorts ``W4A8`` and its like by activations, then weights."""
    return tuple(int(part) for part in reversed(bits[1:].split("A")))


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table with names as they are printed."""
    shown = frame.copy()
    if "architecture" in shown:
        shown["architecture"] = shown.architecture.map(display_name)
    if "statistic" in shown:
        shown["statistic"] = shown.statistic.map(LABELS)
    return shown


def interval(value: float, low: float, high: float, scale: float = 100, digits: int = 1) -> str:
    """``value [low, high]``, in points unless scaled otherwise."""
    return f"{value * scale:.{digits}f} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def intervals(frame: pd.DataFrame, column: str = "compared") -> list[str]:
    """A cell per row: the column with its interval; statistics that are ratios stay ratios."""
    ends = ("low", "high") if column == "change" else (f"{column}_low", f"{column}_high")
    names = frame["statistic"] if "statistic" in frame else [""] * len(frame)
    values = frame[[column, *ends]].to_numpy(float)
    return [
        interval(value, low, high, *((1, 2) if name in RATIOS else (100, 1)))
        for name, (value, low, high) in zip(names, values, strict=True)
    ]


def shown(frame: pd.DataFrame, *, wrapped: bool = False) -> HTML:
    """A table as HTML without its index; a wide or long one scrolls in its own box.

    Parameters
    ----------
    wrapped : whether cells hold sentences, which go over several lines
    """
    classes = "dataframe wrapped" if wrapped else "dataframe"
    body = frame.to_html(index=False, border=0, justify="left", classes=classes)
    return HTML(f'<div class="table-scroll">{body}</div>')


def note(text: str) -> HTML:
    """A sentence in the place of a figure or table."""
    return HTML(f"<p><em>{text}</em></p>")


def _wide(frame: pd.DataFrame, index: list[str], columns: str) -> HTML:
    """Cells spread over columns, in the order in which they come."""
    wide = frame.pivot_table(
        index=index, columns=columns, values="cell", aggfunc="first", sort=False
    )
    return shown(wide.reset_index().rename_axis(columns=None))


def groups(frame: pd.DataFrame) -> HTML:
    """Images and accuracy with its interval, by group and architecture."""
    rows = named(frame).assign(cell=intervals(frame))
    return _wide(rows, ["group", "images"], "architecture")


def gaps(frame: pd.DataFrame, scope: str, alike: pd.DataFrame) -> HTML:
    """Gaps with their intervals, one row per architecture, over what equal errors would give.

    Parameters
    ----------
    alike : of :func:`fairq_utils.report.effects.equal_errors`
    """
    left_out = ("accuracy", "worst_group_accuracy", "equal_opportunity_difference")
    rows = frame[(frame["scope"] == scope) & ~frame.statistic.isin(left_out)]
    cells = named(rows).assign(cell=intervals(rows))
    cells = pd.concat([cells, _alike(alike, scope, rows.statistic)])
    return _wide(cells, ["architecture"], "statistic")


def _alike(alike: pd.DataFrame, scope: str, statistics: pd.Series) -> pd.DataFrame:
    """The row "if errors were alike": median, and the range of nine draws in ten."""
    rows = alike[(alike["scope"] == scope) & alike.statistic.isin(statistics)]
    as_change = rows.assign(change=rows["median"])
    return pd.DataFrame(
        {
            "architecture": "if errors were alike",
            "configuration": "median [5 %, 95 %]",
            "statistic": rows.statistic.map(LABELS),
            "cell": intervals(as_change, "change"),
        }
    )


def changes(frame: pd.DataFrame, scope: str, statistic: str) -> HTML:
    """Change of one statistic by configuration: interval, noise floor, and share of flips."""
    rows = frame[(frame["scope"] == scope) & (frame.statistic == statistic)]
    return shown(
        pd.DataFrame(
            {
                "architecture": rows.architecture.map(display_name),
                "configuration": [label(row) for _, row in rows.iterrows()],
                "FP32": [f"{v * 100:.1f}" for v in rows.reference],
                "change": intervals(rows, "change"),
                "noise floor": [f"±{v * 100:.1f}" for v in rows.floor],
                "flipped answers (%)": [f"{v * 100:.1f}" for v in rows.flips],
            }
        )
    )


def flips(frame: pd.DataFrame) -> HTML:
    """Answers lost and won by group, with McNemar's mid-p."""
    rows = named(frame)
    return shown(
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


def recovery(frame: pd.DataFrame) -> HTML:
    """Naive loss, best method and the share that it recovers, by architecture and bits.

    Parameters
    ----------
    frame : of :func:`fairq_utils.report.quantization.best_of`
    """
    return shown(
        pd.DataFrame(
            {
                "architecture": frame.architecture.map(display_name),
                "bits": frame.bits,
                "naive (points)": [f"{v * 100:+.1f}" for v in frame.naive],
                "best method": [method_label(row) for _, row in frame.iterrows()],
                "change (points)": intervals(frame, "change"),
                "recovered (%)": ["" if v != v else f"{v * 100:.0f}" for v in frame.recovered],
            }
        )
    )


def costs(frame: pd.DataFrame) -> HTML:
    """Median seconds that a method takes to quantize a model, by architecture."""
    rows = named(frame[~frame.method.isin(["fp32", CONTROL])])
    rows = rows.assign(method=[method_label(row) for _, row in rows.iterrows()])
    wide = rows.pivot_table(
        index="method",
        columns="architecture",
        values="quantize_seconds",
        aggfunc="median",
        sort=False,
    )
    return shown(
        wide.map(lambda v: "" if v != v else f"{v:.0f}").reset_index().rename_axis(columns=None)
    )


def toolkits(figures: dict[str, dict[str, dict[str, float | None]]]) -> HTML:
    """Accuracy in percent of every toolkit beside ours; an empty cell has no figure.

    Parameters
    ----------
    figures : of ``fairq bench toolkits``
    """
    rows = [
        {
            "architecture": display_name(architecture),
            "bits": bits,
            **{
                TOOLKITS[who]: "" if value is None else f"{value * 100:.1f}"
                for who, value in row.items()
            },
        }
        for architecture, by_bits in figures.items()
        for bits, row in by_bits.items()
    ]
    return shown(pd.DataFrame(rows))


def sizes(frame: pd.DataFrame) -> HTML:
    """Size in MiB and ratio to FP32, by architecture and bits."""
    rows = frame[frame.sampler.isin(["", "random"]) & frame.method.isin(["fp32", "ptq", "dynamic"])]
    rows = rows.drop_duplicates(["architecture", "method", "bits"])
    method = rows.method.map({"fp32": "", "ptq": "static ", "dynamic": "dynamic "})
    rows = named(rows).assign(
        cell=[f"{m:.2f} ({r:.2f}x)" for m, r in rows[["mebibytes", "ratio"]].to_numpy()],
        configuration=method + rows.bits,
    )
    return _wide(rows, ["architecture"], "configuration")


def float_sizes() -> HTML:
    """FP32 size of the five two-class models at 224 px, beside the published figures.

    The last column names the first way of counting that gives the published figure to its last
    digit; two classes with buffers in MiB is tried first.
    """
    rows = []
    for name in PUBLISHED_SIZES:
        counts = _float_sizes(name)
        published = f"{PUBLISHED_SIZES[name]:.2f}"
        fits = [way for way, size in counts.items() if f"{size:.2f}" == published]
        rows.append(
            {
                "architecture": display_name(name),
                "ours (MiB)": f"{counts['2 outputs, with buffers, MiB']:.2f}",
                "published": published,
                "the published figure is": fits[0] if fits else "none of the ways tried",
            }
        )
    return shown(pd.DataFrame(rows))


def _float_sizes(name: str) -> dict[str, float]:
    """Size of an architecture by way of counting: outputs, buffers or not, MiB or 10^6 bytes."""
    found = {}
    for outputs in OUTPUTS:
        with torch.device("meta"):
            model = architectures.build(name, classes=outputs, image_size=224)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        head = f"{outputs} output{'s' if outputs > 1 else ''}"
        for (content, size), (unit, scale) in itertools.product(
            (("with buffers", weights + buffers), ("parameters alone", weights)),
            (("MiB", 2**20), ("10^6 bytes", 1e6)),
        ):
            found[f"{head}, {content}, {unit}"] = size / scale
    return found


def mitigation(frame: pd.DataFrame, scope: str) -> HTML:
    """Harm under both draws, their paired difference, and its noise floor."""
    printed = ("accuracy", "demographic_parity_difference", "equalized_odds_difference")
    rows = frame[(frame["scope"] == scope) & frame.statistic.isin(printed)]
    names = named(rows)
    return shown(
        pd.DataFrame(
            {
                "architecture": names.architecture,
                "bits": names.bits,
                "ranges": names.ranges,
                "statistic": names.statistic,
                "change, random": [f"{v * 100:+.1f}" for v in rows.harm_random],
                "change, balanced": [f"{v * 100:+.1f}" for v in rows.harm],
                "balanced - random": intervals(rows, "change"),
                "noise floor": [f"±{v * 100:.1f}" for v in rows.floor],
            }
        )
    )


def group_summary(frame: pd.DataFrame) -> HTML:
    """Accuracy of every group by configuration, averaged over architectures, in percent."""
    rows = frame[frame.sampler.isin(["", "random"]) & (frame.method != "dynamic")]
    rows = rows.assign(configuration=rows.apply(label, axis=1))
    wide = rows.pivot_table(
        index=["group", "images"], columns="configuration", values="compared", sort=False
    )
    return shown((wide * 100).map("{:.1f}".format).reset_index().rename_axis(columns=None))


def pareto(frontier: pd.DataFrame) -> HTML:
    """The Pareto-optimal configurations, smallest first."""
    rows = frontier[frontier.pareto].sort_values("mebibytes")
    return shown(
        pd.DataFrame(
            {
                "architecture": rows.architecture.map(display_name),
                "configuration": [label(row) for _, row in rows.iterrows()],
                "accuracy (%)": _with_ends(rows, "accuracy"),
                "parity gap (points)": _with_ends(rows, "demographic_parity_difference"),
                "floor of its change": [
                    f"±{v * 100:.1f}" for v in rows.demographic_parity_difference_floor
                ],
                "size (MiB)": [f"{v:.2f}" for v in rows.mebibytes],
            }
        )
    )


def _with_ends(frame: pd.DataFrame, name: str) -> list[str]:
    values = frame[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)
    return [interval(value, low, high) for value, low, high in values]


def everything(frame: pd.DataFrame, scope: str, alike: pd.DataFrame) -> HTML:
    """Every configuration and metric with its interval, over what equal errors would give."""
    rows = frame[frame["scope"] == scope]
    cells = named(rows).assign(cell=intervals(rows), configuration=rows.apply(label, axis=1))
    cells = pd.concat([cells, _alike(alike, scope, rows.statistic)])
    return _wide(cells, ["architecture", "configuration"], "statistic")


def latex(frame: pd.DataFrame) -> str:
    """A LaTeX table (booktabs): one row per configuration, one column per statistic, in points."""
    scope = frame["scope"].iloc[-1]
    rows = frame[frame["scope"] == scope]
    wide = (
        named(rows)
        .assign(cell=intervals(rows))
        .pivot_table(
            index=CONFIGURATION, columns="statistic", values="cell", aggfunc="first", sort=False
        )
    )
    wide = wide.reset_index().rename(columns=str.capitalize)
    text = wide.to_latex(
        index=False, escape=True, column_format="l" * 5 + "r" * (wide.shape[1] - 5)
    )
    return (
        f"% Points, with {scope} gaps; disparate impact is a ratio; brackets are intervals.\n"
        "% Needs \\usepackage{booktabs}.\n" + text
    )


def write_results(frame: pd.DataFrame, size: pd.DataFrame, folder: Path) -> list[Path]:
    """Write ``baseline_results.csv``, ``quantization_results.json`` and the LaTeX tables.

    The first two are named as the published study names them.

    Parameters
    ----------
    frame, size : of :func:`fairq_utils.report.effects.by_configuration` and ``sizes``
    folder : created where missing
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = frame.merge(size, on=CONFIGURATION, how="left")
    base = whole[whole.method == "fp32"]
    quantized = whole[whole.method != "fp32"]
    csv = folder / "baseline_results.csv"
    base.drop(columns=["change", "low", "high", "flips", "floor"]).to_csv(csv, index=False)
    path = folder / "quantization_results.json"
    path.write_text(quantized.to_json(orient="records", indent=1, double_precision=6))
    written = [csv, path]
    for name, part in (("baseline", base), ("quantization", quantized)):
        written.append(folder / f"{name}_table.tex")
        written[-1].write_text(latex(part))
    return written
