"""Pictures and tables of the chapter on what a study costs."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.cost import HOUR, INFER, PARTS, TRAIN
from fairq_utils.figures import finished, panels
from fairq_utils.tables import METHOD_LABELS, named, shown
from fairq_utils.work import KINDS

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
    table : of :func:`fairq_utils.cost.table`
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
    table : of :func:`fairq_utils.cost.table` by method
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
    overview : of :func:`fairq_utils.cost_chapter.overview`
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
