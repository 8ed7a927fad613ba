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
from fairq_utils.report.figures import finished, panels
from fairq_utils.report.tables import METHOD_LABELS, named, shown
from fairq_utils.study import cost, progress
from fairq_utils.study.cost import HOUR, INFER, PARTS, TRAIN
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.workload import KINDS
from fairq_utils.training.zoo import display_name

COLOURS = dict(zip(KINDS, ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#d55e00"), strict=True))
PARTS_LABELS = dict(zip(PARTS, ("train, answer", "calibrate, choose, learn"), strict=True))
WHAT = {TRAIN: "train, mixed precision", INFER: "answer, mixed"}


def growth(figures: dict[str, Any]) -> Figure:
    """Seconds over images on logarithmic axes: dots measured, lines predicted, a panel each.

    Parameters
    ----------
    figures : of ``fairq bench cost``
    """
    frame = pd.DataFrame(figures["kinds"])
    frame = named(frame)
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
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=2, fontsize=8)
    return finished(figure)


def sizes(figures: dict[str, Any]) -> HTML:
    """Seconds measured and predicted at every size."""
    frame = pd.DataFrame(figures["sizes"])
    fitted = frame.factor == frame.factor.min()
    return shown(
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


def hours(table: pd.DataFrame) -> HTML:
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
    return shown(
        wide.rename(columns=KINDS).map("{:.1f}".format).rename_axis(columns=None).reset_index()
    )


def methods(table: pd.DataFrame) -> HTML:
    """Hours by method, the most first, of training and answers and of the quantizer.

    Parameters
    ----------
    table : of :func:`fairq_utils.study.cost.table` by method
    """
    frame = table.sort_values("seconds", ascending=False, kind="stable")
    names = frame.method.str.split(" ", n=1)
    words = [
        " ".join([METHOD_LABELS[name[0]], *(s.replace("_", " ") for s in name[1:])])
        for name in names
    ]
    found = {"method": words, "runs": frame.runs}
    found |= {PARTS_LABELS[part]: (frame[part] / HOUR).map("{:.1f}".format) for part in PARTS}
    return shown(pd.DataFrame(found | {"hours": (frame.seconds / HOUR).map("{:.1f}".format)}))


def studies(overview: pd.DataFrame) -> HTML:
    """Hours of whole studies.

    Parameters
    ----------
    overview : of :func:`fairq_utils.report.cost.overview`
    """
    shares = [name for name in overview if name.startswith("on ")]
    return shown(
        pd.DataFrame(
            {
                "study": overview.study,
                "training images": overview.train.map("{:,}".format),
                "test images": overview.test.map("{:,}".format),
                "runs": overview.runs.map("{:,}".format),
                "training and answers (h)": overview.training.map("{:.0f}".format),
                "quantizer (h)": overview.quantizer.map("{:.0f}".format),
                **{f"{name} (h)": overview[name].map("{:.1f}".format) for name in shares},
            }
        )
    )


def rates(published: pd.DataFrame) -> HTML:
    """Published rates, images per second; the last row has the files that they are from."""
    frame = named(published)
    frame = frame.assign(
        cell=frame.images_per_second.map("{:.0f}".format),
        what=frame.what.map(WHAT) + ", " + frame.machine,
    )
    files = frame.drop_duplicates("what").assign(architecture="file", cell=lambda x: x.source)
    wide = pd.concat([frame, files]).pivot_table(
        index="architecture", columns="what", values="cell", aggfunc="first", sort=False
    )
    return shown(wide.rename_axis(columns=None).reset_index(), wrapped=True)


STUDIES = ("celeba", "utkface", "fairface")  # of params/
GPUS = (1, 4, 8)
DOUBT = (1.0, 3.0)  # least and most that single precision may be slower by


@dataclass(frozen=True)
class Planned:
    """A study and its jobs."""

    params: Params
    jobs: list[cost.Job]


def planned(names: tuple[str, ...] = STUDIES) -> dict[str, Planned]:
    """The studies of these params files."""
    found = {}
    for name in names:
        params = load_params(DEFAULT.with_name(f"{name}.yaml"))
        found[name] = Planned(params, cost.jobs(params))
    return found


def overview(studies: Mapping[str, Planned]) -> pd.DataFrame:
    """Whole studies at the published rates.

    Returns
    -------
    DataFrame
        ``study``; ``train``, ``test`` (images); ``runs``; GPU hours of ``training`` and answers,
        and of the ``quantizer``; ``on N GPUs``, hours until all is done by so many.
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
            "training": sums.training_seconds.sum() / cost.HOUR,
            "quantizer": sums.quantizer_seconds.sum() / cost.HOUR,
        }
        for many in GPUS[1:]:
            row[f"on {many} GPUs"] = cost.spread(found.jobs, rates, many)
        rows.append(row)
    return pd.DataFrame(rows)


def glue_growth(figures: dict[str, Any]) -> None:
    """Glue what the benchmark measured."""
    sizes = pd.DataFrame(figures["sizes"])
    later = sizes[sizes.factor > sizes.factor.min()]
    for name in ("exponent", "predicted_exponent", "pixels", "processor", "threads"):
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
    glue(
        "worst_case",
        f"{display_name(worst.architecture)}, {worst.kind.replace('_', ' ')}",
    )
    names = [display_name(name) for name in figures["rates"]]
    glue("architectures_measured", " and ".join(names))
    rates = pd.DataFrame(figures["rates"]).T
    glue("squeezenet_faster", float(rates.train["squeezenet1_1"] / rates.train["mobilenet_v2"]))


def glue_cost(studies: Mapping[str, Planned]) -> None:
    """Glue what the studies cost, in hours."""
    for row in overview(studies).itertuples():
        name = row.study.lower()
        glue(f"{name}_runs", row.runs)
        glue(f"{name}_images", row.train)
        glue(f"{name}_training", row.training)
        glue(f"{name}_quantizer", row.quantizer)
        glue(f"{name}_whole", row.training + row.quantizer)
    first = studies[STUDIES[0]]
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
        glue(f"whole_{name}", own.seconds.sum() / cost.HOUR)
    glue("celeba_pixels", first.params.data.size)
    glue("architectures", len(first.params.training.models))
    glue("seeds", len(first.params.training.seeds))
    glue("grids", progress.GRIDS)
    glue("single", cost.SINGLE)
    glue("single_least", DOUBT[0])
    glue("single_most", DOUBT[1])
    glue("stand_in_ratio", cost.multiply_adds_ratio("squeezenet1_1", "mobilenet_v2"))
