"""What ships: how fast, how large and how faithful quantized files are, from the benchmarks.

Frames of ``fairq bench latency`` and ``fairq bench deployment``, as they are kept in
``book/results/``.
"""

from __future__ import annotations

import pandas as pd

from fairq_utils.quantizers import QuantSpec

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
    """Our INT8 file beside the one that the engine's own toolkit makes, on the same engine.

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


def energy(latency: pd.DataFrame) -> str:
    """What the processor's counters say, in a sentence.

    Examples
    --------
    >>> energy(pd.DataFrame({"key": ["eager_fp32"], "joules": [float("nan")]}))[:36]
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


def sizes(deployed: pd.DataFrame) -> pd.DataFrame:
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
    """What to deploy where: for every architecture and batch size the fastest INT8 file.

    Returns
    -------
    DataFrame
        :func:`speedups` with ``mebibytes``, ``accuracy`` and ``disagreement`` of that engine's
        file, and ``worst_group`` with its ``worst_disagreement``.
    """
    files = sizes(deployed[deployed.bits == bits])
    columns = ["mebibytes", "accuracy", "disagreement", "worst_group", "worst_disagreement"]
    keys = ["architecture", "engine"]
    return speedups(latency).merge(files[[*keys, *columns]], on=keys, how="left")
