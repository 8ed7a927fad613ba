"""Pictures and tables of the chapter on what ships."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils import shipping
from fairq_utils.engines import ENGINES
from fairq_utils.figures import finished, panels, title
from fairq_utils.tables import named, shown

ENGINE_LABELS = {"eager": "PyTorch, eager", **{n: e.label for n, e in ENGINES.items()}}
KINDS = {
    shipping.FLOAT: ("FP32", "0.45", "o"),
    shipping.OURS: ("INT8, ours", "#0173b2", "o"),
    shipping.TOOLKIT: ("INT8, the engine's toolkit", "#de8f05", "D"),
}


def latencies(latency: pd.DataFrame, batch: int) -> Figure:
    """Milliseconds per image by engine: medians, with a bar from quartile to quartile.

    Parameters
    ----------
    latency : of ``fairq bench latency``
    batch : images at a time
    """
    frame = shipping.split_keys(latency[latency.batch == batch])
    architectures = list(dict.fromkeys(frame.architecture))
    engines = [name for name in ENGINE_LABELS if name in set(frame.engine)]
    figure, axes = panels(len(architectures), each=(2.7, 2.1), around=(1.4, 0.7))
    for axis, architecture in zip(axes.flat, architectures, strict=False):
        part = frame[frame.architecture == architecture]
        for shift, (kind, (_, colour, marker)) in zip((-0.2, 0.0, 0.2), KINDS.items(), strict=True):
            some = part[part.kind == kind]
            places = [engines.index(e) + shift for e in some.engine]
            axis.hlines(places, some.low, some.high, color=colour, linewidth=3, alpha=0.35)
            axis.plot(some["median"], places, marker, color=colour, markersize=4.5)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "25" else "")
        axis.tick_params(axis="x", which="both", labelsize=8)
        axis.set_title(title(architecture), fontsize=10)
        axis.set_yticks(range(len(engines)), [ENGINE_LABELS[e] for e in engines], fontsize=8)
    axes[0, 0].invert_yaxis()
    for axis in list(axes.flat[: len(architectures)])[
        -axes.shape[1] :
    ]:  # the lowest of each column
        axis.set_xlabel("ms per image", fontsize=9)
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linestyle="")
        for _, colour, marker in KINDS.values()
    ]
    figure.tight_layout()
    figure.legend(
        handles,
        [text for text, _, _ in KINDS.values()],
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncol=3,
        fontsize=8,
    )
    return finished(figure)


def speedups(latency: pd.DataFrame) -> HTML:
    """What INT8 gains over eager FP32, over FP32 in the same engine, and in print."""
    frame = named(shipping.speedups(latency))
    return shown(
        pd.DataFrame(
            {
                "architecture": frame.architecture,
                "batch": frame.batch,
                "fastest INT8": frame.engine.map(ENGINE_LABELS),
                "ms per image": frame.int8.map("{:.2f}".format),
                "images per second": frame.images_per_second.map("{:.0f}".format),
                "over eager FP32": frame.over_eager.map("{:.1f}x".format),
                "over the same engine's FP32": frame.over_same.map("{:.1f}x".format),
                "published": frame.published.map(lambda r: "" if r != r else f"{r:.2f}x"),
            }
        )
    )


def toolkits(latency: pd.DataFrame) -> HTML:
    """How many times as fast as the toolkit's own file ours is, by engine."""
    frame = named(shipping.against_toolkits(latency))
    frame = frame.assign(cell=frame.ratio.map("{:.2f}x".format))
    frame = frame.assign(engine=frame.engine.map(ENGINE_LABELS))
    wide = frame.pivot_table(
        index=["architecture", "batch"],
        columns="engine",
        values="cell",
        aggfunc="first",
        sort=False,
    )
    return shown(wide.fillna("").reset_index().rename_axis(columns=None))


def sizes(deployed: pd.DataFrame) -> HTML:
    """MiB on disk and ratio to FP32, by engine, beside the ratio of the bits."""
    frame = shipping.sizes(deployed).drop_duplicates(["architecture", "bits", "engine"])
    cells = [f"{m:.2f} ({r:.2f}x)" for m, r in frame[["mebibytes", "ratio"]].to_numpy()]
    frame = named(frame).assign(cell=cells, engine=frame.engine.map(ENGINE_LABELS))
    wide = frame.pivot_table(
        index=["architecture", "bits"], columns="engine", values="cell", aggfunc="first", sort=False
    ).fillna("")
    ratios = frame.groupby(["architecture", "bits"], sort=False)[["packed_ratio", "ideal"]].first()
    wide["integers and scales"] = ratios.packed_ratio.map("{:.2f}x".format)
    wide["ideal"] = ratios.ideal.map("{:.0f}x".format)
    return shown(wide.reset_index().rename_axis(columns=None))


def disagreements(deployed: pd.DataFrame) -> HTML:
    """Share of test pictures on which a file and its simulation differ, and by which kernels."""
    frame = named(deployed)
    return shown(
        pd.DataFrame(
            {
                "architecture": frame.architecture,
                "bits": frame.bits,
                "engine": frame.engine.map(ENGINE_LABELS),
                "differ (%)": (100 * frame.disagreement).map("{:.2f}".format),
                "worst group (%)": (100 * frame.worst_disagreement).map("{:.2f}".format),
                "which": frame.worst_group.where(frame.worst_disagreement > 0, ""),
                "accuracy": (100 * frame.accuracy).map("{:.2f}".format),
                "simulated": (100 * frame.simulated_accuracy).map("{:.2f}".format),
                "integer / float kernels": [
                    f"{i:.0f} / {f:.0f}"
                    for i, f in frame[["integer_kernels", "float_kernels"]].to_numpy(float)
                ],
            }
        )
    )


def guideline(latency: pd.DataFrame, deployed: pd.DataFrame) -> HTML:
    """What to deploy where."""
    frame = named(shipping.guideline(latency, deployed))
    return shown(
        pd.DataFrame(
            {
                "architecture": frame.architecture,
                "batch": frame.batch,
                "deploy": "INT8 in " + frame.engine.map(ENGINE_LABELS),
                "ms per image": frame.int8.map("{:.2f}".format),
                "times faster than eager FP32": frame.over_eager.map("{:.1f}".format),
                "MiB on disk": frame.mebibytes.map("{:.2f}".format),
                "accuracy (%)": (100 * frame.accuracy).map("{:.1f}".format),
                "differs from simulation (%)": (100 * frame.disagreement).map("{:.2f}".format),
            }
        )
    )
