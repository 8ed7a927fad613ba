"""Chapter on deployment: how fast, how large and how faithful quantized files are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils.deploy.engines.registry import ENGINES
from fairq_utils.quantizers.spec import QuantSpec
from fairq_utils.report.chapter import DEFAULT, glue
from fairq_utils.report.figures import BELOW, finished, panels
from fairq_utils.report.tables import html_table, named, points, title, wide_table
from fairq_utils.study.params.file import load_params

EAGER, FLOAT, OURS, TOOLKIT = "eager_fp32", "fp32", "int8", "toolkit_int8"
# The published study's speed-ups of one image from FP32 to INT8 (its README, "Inference Speed").
PUBLISHED_SPEEDUPS = {
    "resnet50": 3.75,
    "mobilenet_v2": 3.6,
    "efficientnet_b0": 3.5,
    "vit_small": 3.47,
}
LEVEL = 0.05  # two medians this close are level on a machine that others use too
FLOAT_BITS = 32
ENGINE_LABELS = {"eager": "PyTorch, eager", **{n: e.label for n, e in ENGINES.items()}}
KINDS = {
    FLOAT: ("FP32", "0.45", "o"),
    OURS: ("INT8, ours", "#0173b2", "o"),
    TOOLKIT: ("INT8, the engine's toolkit", "#de8f05", "D"),
}


def split_keys(latency: pd.DataFrame) -> pd.DataFrame:
    """The frame with ``engine`` and ``kind`` (``fp32``, ``int8``, ``toolkit_int8``) from its keys.

    Examples
    --------
    >>> split_keys(pd.DataFrame({"key": ["openvino_toolkit_int8"]})).iloc[0].tolist()
    ['openvino_toolkit_int8', 'openvino', 'toolkit_int8']
    """
    parts = latency["key"].str.split("_", n=1, expand=True)
    return latency.assign(engine=parts[0], kind=parts[1])


def speedups(latency: pd.DataFrame) -> pd.DataFrame:
    """The fastest INT8 file of ours for every architecture and batch size, and what it gains.

    Returns
    -------
    DataFrame
        ``architecture``, ``batch``, ``engine``; ``int8``, ``eager``, ``same_engine`` (that engine's
        FP32) in milliseconds per image; ``over_eager`` and ``over_same``, how many times faster;
        ``published``, what the published study prints; ``images_per_second``.
    """
    rows = []
    frame = split_keys(latency)
    for (architecture, batch), part in frame.groupby(["architecture", "batch"], sort=False):
        ours = part[(part.kind == OURS)]
        eager = part[part["key"] == EAGER]
        if ours.empty or eager.empty:
            continue
        best = ours.loc[ours["median"].idxmin()]
        same = part[(part.engine == best.engine) & (part.kind == FLOAT)]["median"]
        before = float(eager["median"].iloc[0])
        rows.append(
            {
                "architecture": architecture,
                "batch": batch,
                "engine": best.engine,
                "int8": float(best["median"]),
                "eager": before,
                "same_engine": float(same.iloc[0]) if len(same) else float("nan"),
                "published": PUBLISHED_SPEEDUPS.get(str(architecture), float("nan")),
                "images_per_second": 1000 / float(best["median"]),
            }
        )
    table = pd.DataFrame(rows)
    return table.assign(
        over_eager=table.eager / table.int8, over_same=table.same_engine / table.int8
    )


def against_toolkits(latency: pd.DataFrame) -> pd.DataFrame:
    """Compare our INT8 file with the one that the engine's own toolkit makes, on the same engine.

    Returns
    -------
    DataFrame
        ``architecture``, ``batch``, ``engine``, ``ours``, ``toolkit`` (milliseconds per image),
        ``ratio`` (toolkit over ours; above one ours is faster). Pairs with both figures only.
    """
    frame = split_keys(latency)
    wide = frame[frame.kind.isin([OURS, TOOLKIT])].pivot_table(
        index=["architecture", "batch", "engine"], columns="kind", values="median", sort=False
    )
    wide = wide.reindex(columns=[OURS, TOOLKIT]).dropna().reset_index()
    wide = wide.rename(columns={OURS: "ours", TOOLKIT: "toolkit"}).rename_axis(columns=None)
    return wide.assign(ratio=wide.toolkit / wide.ours)


def energy_sentence(latency: pd.DataFrame) -> str:
    """Sentence on what the processor's energy counters say.

    Examples
    --------
    >>> energy_sentence(pd.DataFrame({"key": ["eager_fp32"], "joules": [float("nan")]}))[:36]
    'The processor of this measurement do'
    """
    known = latency.dropna(subset=["joules"])
    if known.empty:
        return (
            "The processor of this measurement does not let its energy counters be read; where it "
            "does, the benchmark prints joules per image."
        )
    one = known[known.batch == known.batch.min()]
    least = one.loc[one.groupby("architecture").joules.idxmin()]
    parts = [f"{row.architecture} {row.joules:.2f} J ({row.key})" for row in least.itertuples()]
    return "Least joules per image, one at a time: " + "; ".join(parts) + "."


def file_sizes(deployed: pd.DataFrame) -> pd.DataFrame:
    """Bytes on disk beside the FP32 model's, and beside the ratio of the bits.

    Returns
    -------
    DataFrame
        The rows with ``mebibytes``, ``ratio`` (FP32 parameters over the file), ``packed_ratio``
        (over integers, scales and what stayed in float) and ``ideal``.
    """
    return deployed.assign(
        mebibytes=deployed.file_bytes / 2**20,
        ratio=deployed.float_bytes / deployed.file_bytes,
        packed_ratio=deployed.float_bytes / deployed.packed_bytes,
        ideal=[FLOAT_BITS / QuantSpec.parse(bits).weight_bits for bits in deployed.bits],
    )


def guideline(latency: pd.DataFrame, deployed: pd.DataFrame, bits: str = "W8A8") -> pd.DataFrame:
    """Fastest INT8 file for every architecture and batch size, and what it keeps.

    Returns
    -------
    DataFrame
        :func:`speedups` with ``mebibytes``, ``accuracy`` and ``disagreement`` of that engine's
        file, and ``worst_group`` with its ``worst_disagreement``.
    """
    files = file_sizes(deployed[deployed.bits == bits])
    columns = ["mebibytes", "accuracy", "disagreement", "worst_group", "worst_disagreement"]
    keys = ["architecture", "engine"]
    return speedups(latency).merge(files[[*keys, *columns]], on=keys, how="left")


def latency_figure(latency: pd.DataFrame, batch: int) -> Figure:
    """Milliseconds per image by engine: medians, with a bar from quartile to quartile.

    Parameters
    ----------
    latency : of ``fairq bench latency``
    batch : images at a time
    """
    frame = split_keys(latency[latency.batch == batch])
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
    for axis in axes.flat[: len(architectures)][-axes.shape[1] :]:  # the lowest of each column
        axis.set_xlabel("ms per image", fontsize=9)
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linestyle="")
        for _, colour, marker in KINDS.values()
    ]
    figure.tight_layout()
    figure.legend(handles, [text for text, _, _ in KINDS.values()], ncol=3, **BELOW)
    return finished(figure)


def speedup_table(latency: pd.DataFrame) -> HTML:
    """Gains of INT8 over eager FP32, over FP32 in the same engine, and in print."""
    frame = named(speedups(latency))
    return html_table(
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


def toolkit_table(latency: pd.DataFrame) -> HTML:
    """Ratio of the speed of our file to that of the toolkit's own, by engine."""
    frame = named(against_toolkits(latency))
    frame = frame.assign(cell=frame.ratio.map("{:.2f}x".format))
    frame = frame.assign(engine=frame.engine.map(ENGINE_LABELS))
    return wide_table(frame, ["architecture", "batch"], "engine")


def size_table(deployed: pd.DataFrame) -> HTML:
    """MiB on disk and ratio to FP32, by engine, beside the ratio of the bits."""
    frame = file_sizes(deployed).drop_duplicates(["architecture", "bits", "engine"])
    cells = [f"{m:.2f} ({r:.2f}x)" for m, r in frame[["mebibytes", "ratio"]].to_numpy()]
    frame = named(frame).assign(cell=cells, engine=frame.engine.map(ENGINE_LABELS))
    wide = frame.pivot_table(
        index=["architecture", "bits"], columns="engine", values="cell", aggfunc="first", sort=False
    ).fillna("")
    ratios = frame.groupby(["architecture", "bits"], sort=False)[["packed_ratio", "ideal"]].first()
    wide["integers and scales"] = ratios.packed_ratio.map("{:.2f}x".format)
    wide["ideal"] = ratios.ideal.map("{:.0f}x".format)
    return html_table(wide.reset_index().rename_axis(columns=None))


def disagreement_table(deployed: pd.DataFrame) -> HTML:
    """Share of test images on which a file and its simulation differ, and by which kernels."""
    frame = named(deployed)
    return html_table(
        pd.DataFrame(
            {
                "architecture": frame.architecture,
                "bits": frame.bits,
                "engine": frame.engine.map(ENGINE_LABELS),
                "differ (%)": points(frame.disagreement, ".2f"),
                "worst group (%)": points(frame.worst_disagreement, ".2f"),
                "which": frame.worst_group.where(frame.worst_disagreement > 0, ""),
                "accuracy": points(frame.accuracy, ".2f"),
                "simulated": points(frame.simulated_accuracy, ".2f"),
                "integer / float kernels": [
                    f"{i:.0f} / {f:.0f}"
                    for i, f in frame[["integer_kernels", "float_kernels"]].to_numpy(float)
                ],
            }
        )
    )


def guideline_table(latency: pd.DataFrame, deployed: pd.DataFrame) -> HTML:
    """Fastest INT8 file for every architecture and batch size, and what it keeps."""
    frame = named(guideline(latency, deployed))
    return html_table(
        pd.DataFrame(
            {
                "architecture": frame.architecture,
                "batch": frame.batch,
                "deploy": "INT8 in " + frame.engine.map(ENGINE_LABELS),
                "ms per image": frame.int8.map("{:.2f}".format),
                "times faster than eager FP32": frame.over_eager.map("{:.1f}".format),
                "MiB on disk": frame.mebibytes.map("{:.2f}".format),
                "accuracy (%)": points(frame.accuracy),
                "differs from simulation (%)": points(frame.disagreement, ".2f"),
            }
        )
    )


def glue_deployment(latency: pd.DataFrame, deployed: pd.DataFrame) -> None:
    """Glue the results of ``fairq bench latency`` and ``deployment``: percent, times, counts."""
    full, low = deployed[deployed.bits == "W8A8"], deployed[deployed.bits != "W8A8"]
    for name, rows, column in (
        ("differ_most", full, "disagreement"),
        ("differ_worst", full, "worst_disagreement"),
        ("low_differ_most", low, "disagreement"),
    ):
        most = rows.loc[rows[column].idxmax()]
        case = f"{title(most.architecture)} in {ENGINES[most.engine].label}"
        if column == "worst_disagreement":
            case += f", {most.worst_group}, {most.worst_images} images"
        glue(name, 100 * most[column])
        glue(f"{name}_case", case if name != "low_differ_most" else f"{case} at {most.bits}")
    gains = speedups(latency)
    for name in ("over_eager", "over_same"):
        glue(f"{name}_least", gains[name].min())
        glue(f"{name}_most", gains[name].max())
    pairs = against_toolkits(latency)
    behind = pairs[pairs.ratio < 1 - LEVEL].sort_values("ratio")
    cases = [
        f"{title(r.architecture)} in {ENGINES[r.engine].label}, batch {r.batch} ({r.ratio:.2f}x)"
        for r in behind.itertuples()
    ]
    glue("behind_margin", 100 * LEVEL)
    glue("compared", len(pairs))
    glue("behind", len(behind))
    glue("behind_cases", "; ".join(cases) or "none")
    first = latency.iloc[0]
    glue("threads", int(first.threads))
    glue("processor", str(first.processor))
    glue("flags", str(first["flags"]))
    glue("calls_least", int(latency.calls.min()))
    glue("pixels", int(first.pixels))
    glue("energy", energy_sentence(latency))
    glue("study_size", load_params(DEFAULT).data.size)
