"""Benchmarks by name: each measures one thing on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairq_utils.bench.outcome import Outcome, words
from fairq_utils.data.whole_files import written_whole
from fairq_utils.errors import BadInput, needs
from fairq_utils.registry import Registry

if TYPE_CHECKING:
    from fairq_utils.study.study import Study

Needs = Literal["", "study", "folder"]


@dataclass(frozen=True)
class Subject:
    """Subject of a benchmark: the arguments of :func:`run`.

    Attributes
    ----------
    given : the study, where a benchmark needs one
    root : the folder, if one is given
    """

    given: Study | None = None
    root: Path | None = None

    @property
    def study(self) -> Study:
        """The study of a benchmark that needs one; :func:`run` sees to it."""
        assert self.given is not None
        return self.given


Measure = Callable[[Subject], Outcome]


@dataclass(frozen=True)
class Benchmark:
    """One thing that can be measured.

    Attributes
    ----------
    name, title : by which it is asked for; its figures in a few words
    measure : from a :class:`Subject` to an :class:`~fairq_utils.bench.outcome.Outcome`
    needs : ``study``, whose trained models it measures; ``folder``, of image files, which it makes
        where none is given; or ""
    """

    name: str
    title: str
    measure: Measure
    needs: Needs = ""


BENCHMARKS: Registry[Benchmark] = Registry("benchmark", "fairq_utils.bench")


def benchmark(name: str, *, title: str, needs: Needs = "") -> Callable[[Measure], Measure]:
    """Register a function from a :class:`Subject` to an outcome as a benchmark.

    Parameters
    ----------
    name, title, needs : see :class:`Benchmark`
    """

    def registered(measure: Measure) -> Measure:
        BENCHMARKS.add(name, Benchmark(name, title, measure, needs))
        return measure

    return registered


def run(
    name: str,
    folder: str | os.PathLike[str] = "build/bench",
    study: Study | None = None,
    root: Path | None = None,
) -> tuple[dict[str, Any], Path]:
    """Run a benchmark; keep its figures in ``folder/NAME.json``, in words in ``folder/NAME.txt``.

    Tables of a benchmark are kept beside them, as ``folder/TABLE.csv``.

    Parameters
    ----------
    study : Study, optional
        The study whose models are measured, where the benchmark needs one.
    root : Path, optional
        The folder whose images are measured, where it takes one.

    Returns
    -------
    figures, path
        The figures, and the JSON file that holds them.

    Raises
    ------
    BadInput
        There is no benchmark of that name; it needs a study and none is given, or a folder is given
        that it does not take.
    """
    with needs("`fairq bench`", "study,engines"):
        found = BENCHMARKS.find(name, "bench")
    if root is not None and found.needs != "folder":
        raise BadInput(f"bench: {name} takes no folder; leave --root out")
    if study is None and found.needs == "study":
        raise BadInput(f"bench: {name} measures the models of a study; give its params")
    with needs("`fairq bench`", "study,engines"):
        outcome = found.measure(Subject(study, root))
    path = Path(folder) / f"{name}.json"
    texts = {
        path: json.dumps(outcome.figures, indent=1) + "\n",
        path.with_suffix(".txt"): (outcome.text or words(outcome.figures)) + "\n",
    }
    for table, rows in outcome.tables.items():
        texts[path.with_name(f"{table}.csv")] = rows.to_csv(index=False)
    for file, text in texts.items():
        with written_whole(file) as place:
            place.write_text(text)
    return outcome.figures, path
