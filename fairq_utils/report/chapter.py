"""One study, opened from its params file as every chapter opens it, and figures for its prose.

Chapters hold narrative and calls. A chapter never trains: it reads the ledger, and runs what is
missing there through the same function as the command line.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from IPython import get_ipython
from numpy.typing import NDArray

from fairq_utils.data.faces import FaceData
from fairq_utils.fingerprint import code_version, fingerprint
from fairq_utils.report import effects
from fairq_utils.report.notebooks import refuse_unknown_in
from fairq_utils.report.style import use_style
from fairq_utils.study import execution, statistics
from fairq_utils.study.params.data import Data
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.run_record import RunRecord
from fairq_utils.study.study import Study

DEFAULT = Path(__file__).resolve().parents[2] / "params" / "default.yaml"  # whose models are timed
POINT = 0.01


def glue(name: str, value: float | str) -> None:
    """Keep a figure for the prose: a number or a string, under a name."""
    from myst_nb import glue as keep

    keep(name, value if isinstance(value, str) else float(value), display=False)


@dataclass(frozen=True)
class Chapter:
    """One study, as a chapter sees it."""

    study: Study

    @property
    def params(self) -> Params:
        """The study's params."""
        return self.study.params

    @property
    def crossed(self) -> str:
        """Name of the scope in which all attributes are crossed."""
        return list(statistics.scopes(self.params))[-1]

    def faces(self) -> FaceData:
        """The study's images."""
        return self.study.faces

    def count(self, split: str) -> int:
        """Number of images in a split."""
        return len(self.study.people(split)[0])

    def of_rendered_people(self) -> Chapter:
        """The study itself; a small one of rendered people where its own are in photographs."""
        if isinstance(self.params.data, Data):
            return self
        small = Data(seed=self.params.data.seed, train=2000, calibration=100, validation=100)
        return Chapter(self.study.of(self.params.model_copy(update={"data": small})))

    @cached_property
    def runs(self) -> list[RunRecord]:
        """All runs of the study; those missing in the ledger are computed."""
        execution.execute(self.study)
        return statistics.records(self.study)

    @cached_property
    def effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.report.effects.by_configuration` of this study."""
        return self.measured("effects", effects.by_configuration)

    @cached_property
    def group_effects(self) -> pd.DataFrame:
        """:func:`fairq_utils.report.effects.by_group` of this study."""
        return self.measured("groups", effects.by_group)

    def measured(
        self, name: str, measure: Callable[[list[RunRecord], Params], pd.DataFrame]
    ) -> pd.DataFrame:
        """Measure all runs; the frame is kept beside them, for several chapters read the same."""
        recipe = {
            "runs": [record.run.key for record in self.runs],
            "analysis": self.params.analysis.model_dump(mode="json"),
            "seed": self.params.data.seed,
            "code": code_version("fairq_utils.report.effects"),
        }
        return self.kept(f"{name}-{fingerprint(recipe)}", lambda: measure(self.runs, self.params))

    def kept(self, key: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Compute a frame once, and keep it under a key of the ledger."""
        found = self.study.ledger.read_table(key)
        if found is None:
            found = compute()
            self.study.ledger.write_table(key, found)
        return found

    def group_counts(self) -> NDArray[Any]:
        """Counts of the first FP32 model, (G, 2, 2): crossed group x label x prediction."""
        return statistics.counts(self.runs[0], self.params.analysis.attributes).reference


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
    use_style()
    warnings.filterwarnings("ignore", message="IProgress not found")  # no cell shows progress
    pd.set_option("display.precision", 3)
    return Chapter(Study(load_params(params_file, overrides)))
