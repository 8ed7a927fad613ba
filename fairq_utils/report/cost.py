"""Chapter on costs: what a study costs, and what it grows with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.report.chapter import DEFAULT, glue
from fairq_utils.report.figures import BELOW, finished, panels
from fairq_utils.report.tables import html_table, named, named_method, title
from fairq_utils.study import cost, progress
from fairq_utils.study.cost import HOUR, INFER, PARTS, TRAIN
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.workload import KINDS

COLOURS = dict(zip(KINDS, ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#d55e00"), strict=True))
PARTS_LABELS = dict(zip(PARTS, ("train, predict", "calibrate, choose, learn"), strict=True))
RATES_LABELS = {TRAIN: "train, mixed precision", INFER: "predict, mixed"}
STUDIES = ("celeba", "utkface", "fairface")  # of params/
GPUS = (1, 4, 8)
DOUBT = (1.0, 3.0)  # least and most that single precision may be slower by


@dataclass(frozen=True)
class Planned:
    """A study and its jobs."""

    params: Params
    jobs: list[cost.Job]


def planned() -> dict[str, Planned]:
    """The studies of :data:`STUDIES`, by the name of their params file."""
    found = {}
    for name in STUDIES:
        params = load_params(DEFAULT.with_name(f"{name}.yaml"))
        found[name] = Planned(params, cost.jobs(params))
    return found


def growth_figure(figures: dict[str, Any]) -> Figure:
    """Seconds over images on logarithmic axes: dots measured, lines predicted, a panel each.

    Parameters
    ----------
    figures : of ``fairq bench cost``
    """
    frame = named(pd.DataFrame(figures["kinds"]))
    architectures = list(dict.fromkeys(frame.architecture))
    figure, axes = panels(len(architectures), each=(3.6, 2.9), around=(0.8, 0.3))
    for axis, architecture in zip(axes.flat, architectures, strict=False):
        part = frame[frame.architecture == architecture]
        for kind, rows in part.groupby("kind", sort=False):
            colour = COLOURS[kind]
            axis.plot(rows.images, rows.predicted, color=colour, linewidth=1.2)
            axis.plot(rows.images, rows.seconds, "o", color=colour, label=KINDS[kind])
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axis.set_xticks(sorted(set(part.images)))
        axis.set_title(architecture, fontsize=10)
        axis.set_xlabel("images", fontsize=9)
    axes[0, 0].set_ylabel("seconds", fontsize=9)
    figure.tight_layout()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncol=2, **BELOW)
    return finished(figure)


def sizes_table(figures: dict[str, Any]) -> HTML:
    """Seconds measured and predicted at every size.

    Parameters
    ----------
    figures : of ``fairq bench cost``
    """
    frame = pd.DataFrame(figures["sizes"])
    fitted = frame.factor == frame.factor.min()
    return html_table(
        pd.DataFrame(
            {
                "images": frame.images,
                "measured (s)": frame.seconds.map("{:.1f}".format),
                "by the model (s)": frame.predicted.map("{:.1f}".format),
                "model / measured": frame.ratio.map("{:.2f}".format),
                "": fitted.map({True: "rates are fitted here", False: "predicted"}),
            }
        )
    )


def glue_growth(figures: dict[str, Any]) -> None:
    """Glue the results of ``fairq bench cost``."""
    sizes = pd.DataFrame(figures["sizes"])
    later = sizes[sizes.factor > sizes.factor.min()]
    for name in ("exponent", "predicted_exponent", "pixels", "processor"):
        glue(name, figures[name])
    for kind, slope in figures["exponents"].items():
        glue(f"exponent_{kind}", slope)
    for what, ratio in figures["additivity"].items():
        glue(f"additive_{what}", ratio)
    glue("images_least", int(sizes.images.min()))
    glue("images_most", int(sizes.images.max()))
    glue("miss_most", 100 * float((later.ratio - 1).abs().max()))
    kinds = pd.DataFrame(figures["kinds"])
    kinds = kinds[kinds.factor > kinds.factor.min()]
    off = (kinds.predicted / kinds.seconds - 1).abs()
    worst = kinds.loc[off.idxmax()]
    glue("worst_miss", 100 * float(off.max()))
    glue("worst_case", f"{title(worst.architecture)}, {worst.kind.replace('_', ' ')}")
    names = [title(name) for name in figures["rates"]]
    glue("architectures_measured", " and ".join(names))
    rates = pd.DataFrame(figures["rates"]).T
    glue("squeezenet_faster", float(rates.train["squeezenet1_1"] / rates.train["mobilenet_v2"]))


def hours_table(table: pd.DataFrame) -> HTML:
    """Hours by architecture and kind of run, with sums.

    Parameters
    ----------
    table : of :func:`fairq_utils.study.cost.table`
    """
    wide = named(table).pivot_table(
        index="architecture", columns="kind", values="seconds", aggfunc="sum", sort=False
    )
    wide = wide.reindex(columns=[kind for kind in KINDS if kind in wide]).fillna(0) / HOUR
    wide["sum"] = wide.sum(axis=1)
    wide.loc["sum"] = wide.sum()
    return html_table(
        wide.rename(columns=KINDS).map("{:.1f}".format).rename_axis(columns=None).reset_index()
    )


def methods_table(table: pd.DataFrame) -> HTML:
    """Hours by method, the most first, of training and predictions and of the quantizer.

    Parameters
    ----------
    table : of :func:`fairq_utils.study.cost.table` by method
    """
    frame = table.sort_values("seconds", ascending=False, kind="stable")
    names = frame.method.str.split(" ", n=1)
    words = [
        " ".join([named_method(name[0]), *(s.replace("_", " ") for s in name[1:])])
        for name in names
    ]
    found = {"method": words, "runs": frame.runs}
    found |= {PARTS_LABELS[part]: (frame[part] / HOUR).map("{:.1f}".format) for part in PARTS}
    return html_table(pd.DataFrame(found | {"hours": (frame.seconds / HOUR).map("{:.1f}".format)}))


def rates_table(published: pd.DataFrame) -> HTML:
    """Published rates, images per second; the last row has the files that they are from."""
    frame = named(published)
    frame = frame.assign(
        cell=frame.images_per_second.map("{:.0f}".format),
        what=frame.what.map(RATES_LABELS) + ", " + frame.machine,
    )
    files = frame.drop_duplicates("what").assign(architecture="file", cell=lambda x: x.source)
    wide = pd.concat([frame, files]).pivot_table(
        index="architecture", columns="what", values="cell", aggfunc="first", sort=False
    )
    return html_table(wide.rename_axis(columns=None).reset_index(), wrapped=True)


def overview(studies: Mapping[str, Planned]) -> pd.DataFrame:
    """Whole studies at the published rates.

    Returns
    -------
    DataFrame
        ``study``; ``train``, ``test`` (images); ``runs``; GPU hours of ``training`` and
        predictions, and of the ``quantizer``; ``on N GPUs``, hours until all is done by so many.
    """
    rows, rates = [], cost.gpu()
    for name, found in studies.items():
        counts = cost.counts(found.params)
        sums = cost.seconds(found.jobs, rates)
        row: dict[str, Any] = {
            "study": COLLECTIONS[name].title,
            "train": counts["train"],
            "test": counts["test"],
            "runs": len(found.jobs),
            "training": sums.training_seconds.sum() / HOUR,
            "quantizer": sums.quantizer_seconds.sum() / HOUR,
        }
        for many in GPUS[1:]:
            row[f"on {many} GPUs"] = cost.spread(found.jobs, rates, many)
        rows.append(row)
    return pd.DataFrame(rows)


def overview_table(overview: pd.DataFrame) -> HTML:
    """Hours of whole studies.

    Parameters
    ----------
    overview : of :func:`overview`
    """
    shares = [name for name in overview if name.startswith("on ")]
    return html_table(
        pd.DataFrame(
            {
                "study": overview.study,
                "training images": overview.train.map("{:,}".format),
                "test images": overview.test.map("{:,}".format),
                "runs": overview.runs.map("{:,}".format),
                "training and predictions (h)": overview.training.map("{:.0f}".format),
                "quantizer (h)": overview.quantizer.map("{:.0f}".format),
                **{f"{name} (h)": overview[name].map("{:.1f}".format) for name in shares},
            }
        )
    )


def glue_cost(studies: Mapping[str, Planned]) -> None:
    """Glue the hours of the studies."""
    for row in overview(studies).itertuples():
        name = row.study.lower()
        glue(f"{name}_runs", row.runs)
        glue(f"{name}_images", row.train)
        glue(f"{name}_training", row.training)
        glue(f"{name}_quantizer", row.quantizer)
        glue(f"{name}_whole", row.training + row.quantizer)
    first = studies["celeba"]
    rates = cost.gpu()
    kinds = cost.table(first.jobs, rates, ["kind"]).set_index("kind")
    shares = 100 * kinds.training_seconds / kinds.training_seconds.sum()
    for kind in ("train", "train_on"):
        glue(f"share_{kind}", float(shares[kind]))
    for what, hours in cost.one_more(first.params, first.jobs, rates).items():
        glue(f"more_{what}", hours)
    for many in GPUS:
        glue(f"on_{many}", cost.spread(first.jobs, rates, many))
    for name, single in zip(("least", "most"), DOUBT, strict=True):
        own = cost.seconds(first.jobs, cost.gpu(single=single))
        glue(f"whole_{name}", own.seconds.sum() / HOUR)
    glue("celeba_pixels", first.params.data.size)
    glue("architectures", len(first.params.training.models))
    glue("seeds", len(first.params.training.seeds))
    glue("grids", progress.GRIDS)
    glue("single", cost.SINGLE)
    glue("single_most", DOUBT[1])
    glue("stand_in_ratio", cost.multiply_adds_ratio("squeezenet1_1", "mobilenet_v2"))
