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

from fairq_utils import metrics
from fairq_utils.data.faces import FaceData
from fairq_utils.data.loading import RENDERER
from fairq_utils.data.population import Population
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.quantizers.methods import CONTROL, METHODS
from fairq_utils.report import anatomy, effects, figures, population, tables
from fairq_utils.report.notebooks import refuse_unknown_in
from fairq_utils.study import devices, execution, statistics, storage
from fairq_utils.study import people as study_people
from fairq_utils.study.ledger import Ledger, RunRecord
from fairq_utils.study.params.data import Data
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.people import described, people

PROBE_IMAGES = 6000  # training pictures of the probe; fewer where the study has fewer
PROBE_EPOCHS = 4
DEFAULT = Path(__file__).resolve().parents[2] / "params" / "default.yaml"  # whose models are timed
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
        return study_people.population(self.params)

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
        return list(statistics.scopes(self.params))[-1]

    def faces(self) -> FaceData:
        """The study's pictures."""
        return study_people.faces(self.params)

    @cached_property
    def runs(self) -> list[RunRecord]:
        """All runs of the study; those missing in the ledger are computed."""
        execution.execute(self.params)
        return statistics.records(self.store, self.params)

    @cached_property
    def effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.report.effects.by_configuration` of this study."""
        return self.measured("effects", effects.by_configuration)

    @cached_property
    def group_effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.report.effects.by_group` of this study."""
        return self.measured("groups", effects.by_group)

    @cached_property
    def mitigation_effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.report.effects.of_mitigation` of this study."""
        return self.measured("mitigation", effects.of_mitigation)

    def measured(
        self, name: str, measure: Callable[[list[RunRecord], Params], pd.DataFrame]
    ) -> pd.DataFrame:
        """A frame of all runs, kept beside them: several chapters read the same one."""
        recipe = {
            "runs": [record.run.key for record in self.runs],
            "analysis": self.params.analysis.model_dump(mode="json"),
            "seed": self.params.data.seed,
            "code": code_version("fairq_utils.report.effects"),
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
        """:func:`fairq_utils.report.effects.sizes` of this study."""
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
            "code": code_version(*RENDERER, "fairq_utils.report.population"),
        }

        def recover() -> pd.DataFrame:
            small = population.reduced(self.faces(), count, test)
            device = devices.device(self.params)
            return population.recover(small, epochs=PROBE_EPOCHS, device=device)

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
        return statistics.counts(self.runs[0], self.params.analysis.attributes).reference

    def equal_errors(self) -> pd.DataFrame:
        """:func:`fairq_utils.report.effects.equal_errors` of this study."""
        return effects.equal_errors(self.runs, self.params)

    def write_results(self) -> list[Path]:
        """Write the study's tables as files; :func:`fairq_utils.report.tables.write_results`."""
        return tables.write_results(self.effects, self.sizes(), storage.results(self.params))


def open_chapter(
    params_file: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None
) -> Chapter:
    """Open the study that a params file describes, with the book's style.

    Parameters
    ----------
    params_file : path
    overrides : mapping, optional
        Values by dotted key, such as ``{"data.test": 500}``, in place of the file's.

    Raises
    ------
    ParamsError
        See :func:`fairq_utils.study.params.file.load_params`.
    UnknownParameterError
        papermill was given a parameter that the chapter does not have.
    """
    shell = get_ipython()
    if shell is not None:
        refuse_unknown_in(shell.user_ns.get("In", []))
    figures.use_style()
    pd.set_option("display.precision", 3)
    params = load_params(params_file, overrides)
    return Chapter(params, storage.ledger(params))


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
    aware = [name for name, method in METHODS.items() if method.group_aware]
    others = ["fp32", CONTROL, *aware]
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
