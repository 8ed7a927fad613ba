"""What the book's chapters share: one study opened from its params file, and what they glue.

Chapters hold narrative and calls. A chapter never trains: it reads the ledger, and runs what is
missing there through the same function as the command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython import get_ipython

from fairq_utils import (
    anatomy,
    effects,
    figures,
    metrics,
    models,
    planning,
    probe,
    recovery,
    resources,
    shipping,
    stats,
    study,
    tables,
)
from fairq_utils.data import FaceData
from fairq_utils.data.photographs import TITLES
from fairq_utils.data.population import Population
from fairq_utils.data_params import Data
from fairq_utils.engines import ENGINES
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.injection import refuse_unknown_in
from fairq_utils.ledger import Ledger, RunRecord
from fairq_utils.mitigation.methods import METHODS as FAIR
from fairq_utils.params import Params
from fairq_utils.params_file import load_params
from fairq_utils.people import described, people
from fairq_utils.quantizers.methods import CONTROL

PROBE_IMAGES = 6000  # training pictures of the probe; fewer where the study has fewer
PROBE_EPOCHS = 4
DEFAULT = Path(__file__).resolve().parents[1] / "params" / "default.yaml"  # whose models are timed
POINT = 0.01


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
        """Who is in rendered pictures."""
        return resources.population(self.params)

    def of_rendered_people(self) -> Chapter:
        """The study itself; a small one of rendered people where its own are in photographs."""
        if isinstance(self.params.data, Data):
            return self
        small = Data(seed=self.params.data.seed, train=2000, calibration=100, validation=100)
        return Chapter(self.params.model_copy(update={"data": small}), self.store)

    def ceiling(self) -> float | None:
        """The best accuracy that anybody could have; unknown of photographs."""
        return self.population.bayes_accuracy if isinstance(self.params.data, Data) else None

    def images(self, split: str) -> int:
        """How many pictures of a split the study has."""
        return len(people(self.params, split)[0])

    @property
    def crossed(self) -> str:
        """Name of the scope in which all attributes are crossed."""
        return list(effects.scopes(self.params))[-1]

    def faces(self) -> FaceData:
        """The study's pictures."""
        return resources.faces(self.params)

    @cached_property
    def runs(self) -> list[RunRecord]:
        """All runs of the study; those missing in the ledger are computed."""
        study.execute(self.params)
        return effects.records(self.store, self.params)

    @cached_property
    def effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.effects.by_configuration` of this study."""
        return self.measured("effects", effects.by_configuration)

    @cached_property
    def group_effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.effects.by_group` of this study."""
        return self.measured("groups", effects.by_group)

    @cached_property
    def mitigation_effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.effects.of_mitigation` of this study."""
        return self.measured("mitigation", effects.of_mitigation)

    def measured(
        self, name: str, measure: Callable[[list[RunRecord], Params], pd.DataFrame]
    ) -> pd.DataFrame:
        """A frame of all runs, kept beside them: several chapters read the same one."""
        recipe = {
            "runs": [record.run.key for record in self.runs],
            "analysis": self.params.analysis.model_dump(mode="json"),
            "seed": self.params.data.seed,
            "code": code_version(effects.MEASURED_BY),
        }
        return self.kept(f"{name}-{fingerprint(recipe)}", lambda: measure(self.runs, self.params))

    def kept(self, key: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A frame under a key of the ledger, computed once."""
        found = self.store.read_table(key)
        if found is None:
            found = compute()
            self.store.write_table(key, found)
        return found

    def sizes(self) -> pd.DataFrame:
        """:func:`fairq_utils.effects.sizes` of this study."""
        return effects.sizes(self.runs)

    def frontier(self) -> pd.DataFrame:
        """Configurations in accuracy, gap (all attributes crossed) and size."""
        return effects.frontier(self.effects, self.sizes(), self.crossed)

    def recovery(self) -> pd.DataFrame:
        """Confusion of the sensitive attributes by a small network, computed once."""
        train, test = (self.images(split) for split in ("train", "test"))
        count = min(PROBE_IMAGES, train)
        recipe = {
            "data": described(self.params, ("train", "test")),
            "images": count,
            "epochs": PROBE_EPOCHS,
            "code": code_version((*planning.TRAINED_BY, "fairq_utils.probe")),
        }

        def recover() -> pd.DataFrame:
            small = probe.reduced(self.faces(), count, test)
            device = resources.device(self.params)
            return probe.recover(small, epochs=PROBE_EPOCHS, device=device)

        return self.kept(f"probe-{fingerprint(recipe)}", recover)

    def specimen(self) -> anatomy.Specimen:
        """One FP32 model of the study under calibration, for the pictures of the methods."""
        baselines = [record.run for record in self.runs if record.run.method == "fp32"]
        return anatomy.specimen(self.params, baselines)

    def _block_records(self) -> list[RunRecord]:
        found = [record for record in self.runs if record.run.method == "block"]
        fewest = min((tables.width(str(r.run.bits)) for r in found), default=None)
        return [r for r in found if tables.width(str(r.run.bits)) == fewest]

    def block_bits(self) -> str:
        """The fewest bits of block reconstruction in this study."""
        return next((str(r.run.bits) for r in self._block_records()), "no bits of this study")

    def block_errors(self) -> dict[str, dict[str, list[float]]]:
        """Architecture -> block -> error with nearest and with learnt rounding, fewest bits."""
        return {
            r.run.architecture: r.report["corrections"]["reconstruction"]
            for r in reversed(self._block_records())
        }

    def perfect_gap(self) -> float:
        """Demographic parity gap of a classifier without errors, all attributes crossed."""
        label = self.group_counts().sum(axis=-1)
        perfect = np.zeros((*label.shape, 2), np.int64)
        perfect[:, 0, 0], perfect[:, 1, 1] = label[:, 0], label[:, 1]
        return float(metrics.FAIRNESS["demographic_parity_difference"](perfect))

    def rarest(self) -> tuple[str, float]:
        """The crossed group with the fewest pictures in the calibration pool, and its share."""
        _, pool = people(self.params, "calibration")
        shares = pool.groupby(list(self.params.analysis.attributes), observed=False).size()
        rare = shares.sort_values(kind="stable").index[0]
        return " ".join(map(str, rare)), float(shares.min() / shares.sum())

    def group_counts(self) -> np.ndarray[Any, Any]:
        """The first FP32 model's counts (G, 2, 2): crossed group x label x prediction."""
        return effects.counts(self.runs[0], self.params.analysis.attributes).reference

    def equal_errors(self) -> pd.DataFrame:
        """:func:`fairq_utils.effects.equal_errors` of this study."""
        return effects.equal_errors(self.runs, self.params)

    def write_results(self) -> list[Path]:
        """Write the study's tables as files; see :func:`fairq_utils.tables.write_results`."""
        return tables.write_results(self.effects, self.sizes(), resources.results(self.params))


def open_chapter(
    params_file: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None
) -> Chapter:
    """Open the study that a params file describes, with the book's style.

    Parameters
    ----------
    params_file : path
    overrides : mapping, optional
        Values by dotted key, such as ``{"quantization.bits": ["W8A8"]}``, in place of the file's.

    Raises
    ------
    ParamsError
        See :func:`fairq_utils.params_file.load_params`.
    UnknownParameterError
        papermill was given a parameter that the chapter does not have.
    """
    shell = get_ipython()
    if shell is not None:
        refuse_unknown_in(shell.user_ns.get("In", []))
    figures.use_style()
    pd.set_option("display.precision", 3)
    params = load_params(params_file, overrides)
    return Chapter(params, resources.ledger(params))


def attainable(chapter: Chapter) -> str:
    """The best accuracy that anybody could have, in words."""
    ceiling = chapter.ceiling()
    return "what is attainable is unknown" if ceiling is None else f"{ceiling:.1%} is attainable"


def whose(chapter: Chapter) -> str:
    """Whose faces a chapter about rendered people shows, in a sentence."""
    data = chapter.params.data
    if isinstance(data, Data):
        return "The people of this chapter are those of all other chapters."
    return (
        f"The other chapters are about the photographs of {TITLES[data.name]}; the people of this "
        "chapter are rendered, and stand beside them."
    )


def recovered(confusion: pd.DataFrame) -> dict[str, float]:
    """Share of test pictures whose attribute was recovered, by attribute."""
    right = confusion[confusion.true == confusion.predicted].groupby("attribute").images.sum()
    share = right / confusion.groupby("attribute").images.sum()
    return {str(k): float(v) for k, v in share.items()}


def of(frame: pd.DataFrame, statistic: str, scope: str) -> pd.DataFrame:
    """The rows of one statistic over one partition into groups."""
    return frame[(frame.statistic == statistic) & (frame["scope"] == scope)]


def accuracy(frame: pd.DataFrame, scope: str) -> pd.DataFrame:
    """The rows of accuracy, once."""
    return of(frame, "accuracy", scope)


def static(frame: pd.DataFrame) -> pd.DataFrame:
    """Quantized configurations before mitigation: calibrated at random, or not at all."""
    others = ["fp32", CONTROL, *FAIR]
    return frame[~frame.method.isin(others) & frame.sampler.isin(["", "random"])]


def at_bits(frame: pd.DataFrame, *, fewest: bool) -> pd.DataFrame:
    """Rows of the static configurations with the fewest or most bits, calibrated at random."""
    rows = frame[(frame.method == "ptq") & (frame.sampler == "random")]
    if rows.empty:
        rows = frame[frame.method != "fp32"]
    bits = (min if fewest else max)(set(rows.bits), key=tables.width)
    return rows[rows.bits == bits]


def first_rule(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first range rule of the study."""
    return frame[frame.ranges == frame.ranges.iloc[0]]


def glue_extremes(frame: pd.DataFrame, scope: str) -> None:
    """Glue what the most and the fewest bits do to accuracy, and who bears it worst."""
    rows = of(frame, "accuracy", scope)
    for name, fewest in (("most", False), ("fewest", True)):
        part = at_bits(rows, fewest=fewest)
        worst = part.loc[part.change.idxmin()]
        glue(f"{name}_bits", str(worst.bits))
        glue(f"{name}_worst", worst.change / POINT)
        glue(f"{name}_worst_model", models.DISPLAY_NAMES[worst.architecture])
        glue(f"{name}_worst_ranges", str(worst.ranges))
        glue(f"{name}_configurations", len(part))
        glue(f"{name}_hurt", int((part.high < -POINT).sum()))
        glue(f"{name}_flips", float(part.flips.median()))


def verdicts(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Two claims about every change, judged: that it is none, and that there is one.

    Returns
    -------
    DataFrame
        The rows with ``none`` (within ``margin`` of 0) and ``some`` (different from 0, and larger
        than what chance makes of as many flips): supported, contradicted or undecided.
    """
    judged = []
    for row in rows.itertuples():
        interval = (row.change, row.low, row.high)
        judged.append(
            {
                "none": stats.verdict(stats.near(0, margin), *interval).outcome,
                "some": stats.verdict(
                    stats.differs(), *interval, p_value=row.p_adjusted, floor=row.floor
                ).outcome,
            }
        )
    return rows.assign(**pd.DataFrame(judged, index=rows.index))


def glue_recovery(found: pd.DataFrame) -> None:
    """Glue how much of a clear naive loss the best other method brings back."""
    best = recovery.best_of(found).dropna(subset=["recovered"])
    glue("recovered_cases", len(best))
    if best.empty:
        raise ValueError("recorded study: no naive configuration loses clearly; nothing to recover")
    least = best.loc[best.recovered.idxmin()]
    glue("recovered_median", 100 * best.recovered.median())
    glue("recovered_least", 100 * least.recovered)
    glue("recovered_least_case", f"{models.DISPLAY_NAMES[least.architecture]} at {least.bits}")


def glue_toolkits(found: pd.DataFrame) -> None:
    """Glue how far ours is ahead of, or behind, the best of the other toolkits."""
    full = found[found.bits == "W8A8"]
    low = found[found.bits != "W8A8"]
    glue("toolkits_full", len(full))
    glue("toolkits_full_least", full.ahead.min() / POINT)
    glue("toolkits_low", len(low))
    glue("toolkits_low_best", int((low.ahead >= 0).sum()))
    behind = low[low.ahead < 0].sort_values("ahead")
    names = [
        f"{models.DISPLAY_NAMES[r.architecture]} at {r.bits} ({tables.TOOLKITS[r.who]}, "
        f"{-r.ahead / POINT:.1f} points better)"
        for r in behind.itertuples()
    ]
    glue("toolkits_behind", "; ".join(names) or "none")


def glue_verdicts(frame: pd.DataFrame, scope: str, params: Params) -> None:
    """Glue how many changes of the parity gap are shown, shown to be none, and undecided.

    P-values are corrected over all of them. Of the changes shown, those are counted apart whose
    model has lost more than ten points of accuracy.
    """
    rows = of(frame, "demographic_parity_difference", scope).reset_index(drop=True)
    names = {str(i): p for i, p in enumerate(rows.p_value.fillna(1.0))}
    rows = rows.assign(p_adjusted=stats.adjusted(names).holm.to_numpy())
    rows = verdicts(rows, params.analysis.equivalence_margin)
    glue("comparisons", len(rows))
    glue("outside", int(((rows.low > 0) | (rows.high < 0)).sum()))
    glue("beyond_floor", int((rows.change.abs() > rows.floor).sum()))
    glue("shown", int((rows.some == "supported").sum()))
    glue("equivalent", int((rows.none == "supported").sum()))
    glue("margin", params.analysis.equivalence_margin / POINT)
    glue("unflipped", int((rows.flips == 0).sum()))
    accuracy = of(frame, "accuracy", scope).set_index(effects.CONFIGURATION).change
    shown = rows[rows.some == "supported"].set_index(effects.CONFIGURATION)
    glue("shown_broken", int((accuracy.loc[shown.index] < -10 * POINT).sum()))


def glue_mitigation(chapter: Chapter) -> None:
    """Glue how often balance helps, hurts, and had anything to mend."""
    frame = chapter.mitigation_effects
    rows = of(frame, "demographic_parity_difference", chapter.crossed)
    glue("pairs", len(rows))
    glue("mean_change", rows.change.mean() / POINT)
    glue("better", int((rows.high < 0).sum()))
    glue("worse", int((rows.low > 0).sum()))
    glue("beyond_floor", int((rows.change.abs() > rows.floor).sum()))
    accuracy = of(frame, "accuracy", chapter.crossed)
    glue("accuracy_change", accuracy.change.mean() / POINT)
    harm = of(static(chapter.effects), "demographic_parity_difference", chapter.crossed)
    harm = harm[harm.method == "ptq"]
    glue("static", len(harm))
    draws = len(chapter.params.quantization.calibration_seeds)
    glue("draws", "once" if draws == 1 else f"{draws} times")
    glue("harmed", int(((harm.low > 0) & (harm.change > harm.floor)).sum()))


def glue_baselines(frame: pd.DataFrame, scope: str) -> None:
    """Glue the best and the weakest FP32 model, and whether their intervals overlap."""
    rows = of(frame[frame.method == "fp32"], "accuracy", scope)
    best, worst = rows.loc[rows.compared.idxmax()], rows.loc[rows.compared.idxmin()]
    for name, row in (("best", best), ("worst", worst)):
        glue(name, models.DISPLAY_NAMES[row.architecture])
        glue(f"{name}_accuracy", row.compared)
    glue("models", len(rows))
    glue("overlapping", int((rows.compared_high >= best.compared_low).sum()))
    glue("seeds", int(rows.seeds.max()))
    odds = of(frame[frame.method == "fp32"], "equalized_odds_difference", scope)
    parity = of(frame[frame.method == "fp32"], "demographic_parity_difference", scope)
    for name, gaps in (("odds", odds), ("parity", parity)):
        glue(f"{name}_low", gaps.compared.min() / POINT)
        glue(f"{name}_high", gaps.compared.max() / POINT)


def glue_shipping(latency: pd.DataFrame, deployed: pd.DataFrame) -> None:
    """Glue what the benchmarks of what ships found, in percent, times and milliseconds."""
    full, low = deployed[deployed.bits == "W8A8"], deployed[deployed.bits != "W8A8"]
    for name, rows, column in (
        ("differ_most", full, "disagreement"),
        ("differ_worst", full, "worst_disagreement"),
        ("low_differ_most", low, "disagreement"),
    ):
        most = rows.loc[rows[column].idxmax()]
        case = f"{models.DISPLAY_NAMES[most.architecture]} in {ENGINES[most.engine].label}"
        if column == "worst_disagreement":
            case += f", {most.worst_group}, {most.worst_images} pictures"
        glue(name, 100 * most[column])
        glue(f"{name}_case", case if name != "low_differ_most" else f"{case} at {most.bits}")
    gains = shipping.speedups(latency)
    for name in ("over_eager", "over_same"):
        glue(f"{name}_least", gains[name].min())
        glue(f"{name}_most", gains[name].max())
    pairs = shipping.against_toolkits(latency)
    behind = pairs[pairs.ratio < 1 - shipping.LEVEL].sort_values("ratio")
    cases = [
        f"{models.DISPLAY_NAMES[r.architecture]} in {ENGINES[r.engine].label}, batch {r.batch} "
        f"({r.ratio:.2f}x)"
        for r in behind.itertuples()
    ]
    glue("behind_margin", 100 * shipping.LEVEL)
    glue("compared", len(pairs))
    glue("behind", len(behind))
    glue("behind_cases", "; ".join(cases) or "none")
    first = latency.iloc[0]
    glue("threads", int(first.threads))
    glue("processor", str(first.processor))
    glue("flags", str(first["flags"]))
    glue("calls_least", int(latency.calls.min()))
    glue("pixels", int(first.pixels))
    glue("energy", shipping.energy(latency))
    glue("study_size", load_params(DEFAULT).data.size)
