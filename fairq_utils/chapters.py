"""What the book's chapters share: one study opened from its params file, and its printed tables.

Chapters hold narrative and calls. A chapter never trains: it reads the ledger, and runs what is
missing there through the same function as the command line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from fairq_utils import calibration, figures, metrics, models, probe, stats, study, tables
from fairq_utils.data import FaceData
from fairq_utils.data.population import Population
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.ledger import Ledger, RunRecord
from fairq_utils.params import Params, load_params

PROBE_IMAGES = 6000  # training pictures of the probe; fewer where the study has fewer
PROBE_EPOCHS = 4

# The published study's FP32 sizes (its README, Phase 1), in the megabytes it prints.
PUBLISHED_SIZES = {
    "resnet50": 89.89,
    "mobilenet_v2": 8.91,
    "efficientnet_b0": 15.43,
    "vit_small": 85.76,
    "squeezenet1_1": 2.83,
}


def glue(name: str, value: float | str) -> None:
    """Keep a figure for the prose: a float or a string, under a name."""
    from myst_nb import glue as keep

    keep(name, value if isinstance(value, str) else float(value), display=False)


@dataclass(frozen=True)
class Chapter:
    """One study, as a chapter sees it."""

    params: Params
    store: Ledger

    glue = staticmethod(glue)

    @property
    def population(self) -> Population:
        """Who is in the pictures."""
        return study.population(self.params)

    @property
    def crossed(self) -> str:
        """Name of the scope in which all attributes are crossed."""
        return list(tables.scopes(self.params))[-1]

    def faces(self) -> FaceData:
        """The study's pictures."""
        return study.faces(self.params)

    @cached_property
    def runs(self) -> list[RunRecord]:
        """All runs of the study; those missing in the ledger are computed."""
        study.execute(self.params)
        return tables.records(self.store, self.params)

    def effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.tables.effects` of this study."""
        return tables.effects(self.runs, self.params)

    def group_effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.tables.group_effects` of this study."""
        return tables.group_effects(self.runs, self.params)

    def mitigation_effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.tables.mitigation_effects` of this study."""
        return tables.mitigation_effects(self.runs, self.params)

    def sizes(self) -> pd.DataFrame:
        """:func:`fairq_utils.tables.sizes` of this study."""
        return tables.sizes(self.runs)

    def frontier(self) -> pd.DataFrame:
        """Configurations in accuracy, gap (all attributes crossed) and size."""
        return tables.frontier(self.effects(), self.sizes(), self.crossed)

    def recovery(self) -> pd.DataFrame:
        """Confusion of the sensitive attributes by a small network, computed once."""
        count = min(PROBE_IMAGES, self.params.data.train)
        data = self.params.data.model_dump(mode="json")
        recipe = {
            "data": {k: v for k, v in data.items() if k not in ("calibration", "validation")},
            "images": count,
            "epochs": PROBE_EPOCHS,
            "code": code_version((*study.TRAINED_BY, "fairq_utils.probe")),
        }
        key = f"probe-{fingerprint(recipe)}"
        found = self.store.read_table(key)
        if found is None:
            small = probe.reduced(self.faces(), count, self.params.data.test)
            found = probe.recover(small, epochs=PROBE_EPOCHS, device=study.device(self.params))
            self.store.write_table(key, found)
        return found

    def perfect_gap(self) -> float:
        """Demographic parity gap of a classifier without errors, all attributes crossed."""
        table = tables.counts(self.runs[0], self.params.analysis.attributes).table
        label = table.sum(axis=(2, 3))
        perfect = np.zeros((len(label), 2, 2), np.int64)
        perfect[:, 0, 0], perfect[:, 1, 1] = label[:, 0], label[:, 1]
        return float(metrics.FAIRNESS["demographic_parity_difference"](perfect))

    def share(self, **groups: str) -> float:
        """Share of the calibration pool that belongs to these groups."""
        pool = self.faces().subset("calibration").groups
        inside = np.logical_and.reduce([pool[k].to_numpy() == v for k, v in groups.items()])
        return float(inside.mean())

    def group_sizes(self) -> list[int]:
        """Test images of each crossed group."""
        table = tables.counts(self.runs[0], self.params.analysis.attributes).table
        return [int(n) for n in table.sum(axis=(1, 2, 3))]

    def change_floor(self) -> float:
        """Half-width of the noise floor of a gap's change, a fraction.

        The 95th percentile of the absolute change of the demographic parity gap between two models
        that are equally accurate and treat all groups alike, but flip as many answers as the median
        quantized configuration of this study does.
        """
        tables_ = [tables.counts(r, self.params.analysis.attributes).table for r in self.runs]
        flips = [
            (t[:, :, 0, 1].sum() + t[:, :, 1, 0].sum()) / t.sum()
            for t, r in zip(tables_, self.runs, strict=True)
            if r.run.method != "fp32"
        ]
        return stats.change_noise_floor(
            tables_[0].sum(axis=3),
            float(np.median(flips)),
            metrics.FAIRNESS["demographic_parity_difference"],
            replicates=self.params.analysis.replicates,
            seed=self.params.data.seed,
        )

    def write_results(self) -> list[Path]:
        """Write the study's tables as files; see :func:`fairq_utils.tables.write_results`."""
        root = Path(os.environ.get("FAIRQ_ROOT", Path(__file__).resolve().parents[1]))
        folder = root / "build" / "results" / self.params.name
        return tables.write_results(self.effects(), self.sizes(), folder)


def open_chapter(params_file: str | os.PathLike[str]) -> Chapter:
    """Open the study that a params file describes, with the book's style."""
    figures.use_style()
    pd.set_option("display.precision", 3)
    params = load_params(params_file)
    return Chapter(params, study.ledger(params))


def recovered(confusion: pd.DataFrame) -> dict[str, float]:
    """Share of test pictures whose attribute was recovered, by attribute."""
    right = confusion[confusion.true == confusion.predicted].groupby("attribute").images.sum()
    share = right / confusion.groupby("attribute").images.sum()
    return {str(k): float(v) for k, v in share.items()}


def _shown(frame: pd.DataFrame) -> HTML:
    """A table as HTML without its index; long ones scroll."""
    body = frame.to_html(index=False, border=0, justify="left", classes="dataframe")
    return HTML(f'<div class="table-scroll">{body}</div>')


def group_table(groups: pd.DataFrame) -> HTML:
    """Images and accuracy with interval, by architecture and group."""
    rows = tables.named(groups)
    error = [tables.interval(*v) for v in rows[["compared", "compared", "compared"]].to_numpy()]
    cells = [e.split(" ")[0] for e in error]
    wide = rows.assign(cell=cells).pivot_table(
        index=["group", "images"],
        columns="architecture",
        values="cell",
        aggfunc="first",
        sort=False,
    )
    return _shown(wide.reset_index().rename_axis(columns=None))


def gap_table(effects: pd.DataFrame, scope: str) -> HTML:
    """Gaps with their intervals, one row per architecture, in points."""
    rows = effects[effects["scope"] == scope]
    cells = []
    for row in rows.itertuples():
        ratio = row.statistic == "disparate_impact"
        cells.append(
            tables.interval(
                row.compared,
                row.compared_low,
                row.compared_high,
                1 if ratio else 100,
                2 if ratio else 1,
            )
        )
    wide = tables.named(rows.assign(cell=cells)).pivot_table(
        index="architecture", columns="statistic", values="cell", aggfunc="first", sort=False
    )
    keep = [
        c for c in wide if c not in ("Accuracy", "Worst-group accuracy", "Equal opportunity gap")
    ]
    return _shown(wide[keep].reset_index().rename_axis(columns=None))


def size_table() -> HTML:
    """FP32 size of the five two-class models at 224 px, beside the published figures."""
    rows = []
    for name in models.ARCHITECTURES:
        model = models.build(name, image_size=224)
        parameters = sum(p.numel() for p in model.parameters())
        rows.append(
            {
                "architecture": models.DISPLAY_NAMES[name],
                "parameters (M)": f"{parameters / 1e6:.2f}",
                "parameters and buffers (MiB)": f"{models.float_megabytes(model):.2f}",
                "parameters (10^6 bytes)": f"{parameters * 4 / 1e6:.2f}",
                "published": f"{PUBLISHED_SIZES[name]:.2f}",
            }
        )
    return _shown(pd.DataFrame(rows))


def glue_extremes(keep: Any, effects: pd.DataFrame, scope: str) -> None:
    """Glue the largest accuracy change at W8A8, and the worst at the fewest bits."""
    rows = effects[(effects.statistic == "accuracy") & (effects["scope"] == scope)]
    eight = rows[rows.bits == "W8A8"]
    if eight.empty:
        keep("largest_w8a8", float("nan"))
    else:
        keep("largest_w8a8", 100 * eight.loc[eight.change.abs().idxmax(), "change"])
    low = narrowest(rows)
    worst = low.loc[low.change.idxmin()]
    keep("lowest_bits", str(worst.bits))
    keep("worst_low", 100 * worst.change)
    keep("worst_low_model", models.DISPLAY_NAMES[worst.architecture])


def narrowest(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the static configuration with the fewest bits and the first range rule, at random."""
    rows = frame[(frame.method == "ptq") & (frame.sampler == "random")]
    if rows.empty:
        rows = frame[frame.method != "fp32"]
    bits = min(set(rows.bits), key=lambda b: [int(x) for x in b[1:].split("A")][::-1])
    rows = rows[rows.bits == bits]
    return rows[rows.ranges == rows.ranges.iloc[0]]


def glue_verdicts(keep: Any, effects: pd.DataFrame, chapter: Chapter) -> None:
    """Glue how many changes of the parity gap are different, equivalent and undecided."""
    rows = effects[
        (effects.statistic == "demographic_parity_difference")
        & (effects["scope"] == chapter.crossed)
    ]
    margin = chapter.params.analysis.equivalence_margin
    inside = (rows.low > -margin) & (rows.high < margin)
    keep("comparisons", len(rows))
    keep("outside", int(((rows.low > 0) | (rows.high < 0)).sum()))
    keep("equivalent", int(inside.sum()))
    keep("margin", 100 * margin)


def flip_table(groups: pd.DataFrame) -> HTML:
    """Answers lost and won by group, with McNemar's mid-p."""
    rows = tables.named(groups)
    frame = pd.DataFrame(
        {
            "architecture": rows.architecture,
            "bits": rows.bits,
            "group": rows.group,
            "images": rows.images,
            "change (points)": [
                tables.interval(*v) for v in rows[["change", "low", "high"]].to_numpy()
            ],
            "lost": rows.lost,
            "won": rows.won,
            "McNemar mid-p": [f"{p:.3f}" for p in rows.mcnemar_p],
        }
    )
    return _shown(frame)


def quantized_size_table(sizes: pd.DataFrame) -> HTML:
    """Size in MiB and ratio to FP32, by architecture and bits."""
    rows = tables.named(sizes[sizes.sampler.isin(["", "random"])]).drop_duplicates(
        ["architecture", "method", "bits"]
    )
    rows = rows.assign(
        cell=[f"{m:.2f} ({r:.2f}x)" for m, r in rows[["mebibytes", "ratio"]].to_numpy()],
        configuration=rows.method.map({"fp32": "", "ptq": "static ", "dynamic": "dynamic "})
        + rows.bits,
    )
    wide = rows.pivot_table(
        index="architecture", columns="configuration", values="cell", aggfunc="first", sort=False
    )
    return _shown(wide.reset_index().rename_axis(columns=None))


def sampler_table(chapter: Chapter) -> HTML:
    """Images per crossed group in one draw of each sampler."""
    params = chapter.params
    pool = chapter.faces().subset("calibration")
    columns = {}
    for sampler in ("random", *params.mitigation.samplers):
        rows = calibration.draw(
            sampler, pool.groups, pool.target, params.quantization.calibration_images, seed=0
        )
        drawn = pool.groups.iloc[rows][list(params.analysis.attributes)]
        columns[sampler.replace("_", " ")] = drawn.value_counts(sort=False)
    frame = pd.DataFrame(columns).fillna(0).astype(int).sort_index()
    return _shown(frame.reset_index())


def glue_mitigation(keep: Any, effects: pd.DataFrame, chapter: Chapter) -> None:
    """Glue how often balance helps, hurts, and had anything to mend."""
    scope = effects[effects["scope"] == chapter.crossed]
    rows = scope[scope.statistic == "demographic_parity_difference"]
    accuracy = scope[scope.statistic == "accuracy"]
    keep("pairs", len(rows))
    keep("mean_change", 100 * rows.change.mean())
    keep("better", int((rows.high < 0).sum()))
    keep("worse", int((rows.low > 0).sum()))
    keep("accuracy_change", 100 * accuracy.change.mean())
    whole = chapter.effects()
    harm = whole[
        (whole.statistic == "demographic_parity_difference")
        & (whole["scope"] == chapter.crossed)
        & (whole.method == "ptq")
        & (whole.sampler == "random")
    ]
    keep("harmed", int((harm.low > 0).sum()))


def mitigation_table(effects: pd.DataFrame, scope: str) -> HTML:
    """Harm under both draws and their paired difference, in points."""
    rows = effects[
        (effects["scope"] == scope)
        & effects.statistic.isin(
            ["accuracy", "demographic_parity_difference", "equalized_odds_difference"]
        )
    ]
    shown = tables.named(rows)
    frame = pd.DataFrame(
        {
            "architecture": shown.architecture,
            "bits": shown.bits,
            "ranges": shown.ranges,
            "statistic": shown.statistic,
            "change, random": [f"{v * 100:+.1f}" for v in shown.harm_random],
            "change, balanced": [f"{v * 100:+.1f}" for v in shown.harm],
            "balanced - random": [
                tables.interval(*v) for v in shown[["change", "low", "high"]].to_numpy()
            ],
        }
    )
    return _shown(frame)


def noise_figure(keep: Any, chapter: Chapter) -> Figure:
    """The distribution of a max-min gap of accuracy where no group differs, glued and drawn."""
    table = tables.counts(chapter.runs[0], chapter.params.analysis.attributes).table
    rate = float(metrics.overall(table.sum(axis=3), "accuracy"))
    sizes = chapter.group_sizes()
    gaps = stats.null_gaps(
        sizes, rate, replicates=chapter.params.analysis.replicates, seed=chapter.params.data.seed
    )
    keep("floor_mean", 100 * gaps.mean())
    keep("floor_high", 100 * np.quantile(gaps, 0.95))
    return figures.noise(gaps, sizes)


def group_summary(groups: pd.DataFrame) -> HTML:
    """Accuracy of every group by configuration, averaged over architectures, in percent."""
    rows = groups[groups.sampler.isin(["", "random"]) & (groups.method != "dynamic")]
    rows = rows.assign(configuration=rows.apply(figures.label, axis=1))
    wide = rows.pivot_table(
        index=["group", "images"], columns="configuration", values="compared", sort=False
    )
    shown = (wide * 100).map("{:.1f}".format).reset_index().rename_axis(columns=None)
    return _shown(shown)


def pareto_table(frontier: pd.DataFrame) -> HTML:
    """The Pareto-optimal configurations, smallest first."""
    rows = frontier[frontier.pareto].sort_values("mebibytes")
    return _shown(
        pd.DataFrame(
            {
                "architecture": rows.architecture.map(models.DISPLAY_NAMES),
                "configuration": [figures.label(row) for _, row in rows.iterrows()],
                "accuracy (%)": [f"{v * 100:.1f}" for v in rows.accuracy],
                "parity gap (points)": [
                    f"{v * 100:.1f}" for v in rows.demographic_parity_difference
                ],
                "size (MiB)": [f"{v:.2f}" for v in rows.mebibytes],
            }
        )
    )


def full_table(effects: pd.DataFrame, scope: str) -> HTML:
    """Every configuration and metric with its interval."""
    rows = effects[effects["scope"] == scope]
    cells = []
    for row in rows.itertuples():
        ratio = row.statistic == "disparate_impact"
        values = (row.compared, row.compared_low, row.compared_high)
        cells.append(tables.interval(*values, scale=1 if ratio else 100, digits=2 if ratio else 1))
    rows = rows.assign(cell=cells, configuration=rows.apply(figures.label, axis=1))
    wide = tables.named(rows).pivot_table(
        index=["architecture", "configuration"],
        columns="statistic",
        values="cell",
        aggfunc="first",
        sort=False,
    )
    return _shown(wide.reset_index().rename_axis(columns=None))
