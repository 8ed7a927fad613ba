"""Chapter on costs: hours of a GPU that the studies of photographs take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from IPython.display import HTML

from fairq_utils.data.photographs.registry import COLLECTIONS
from fairq_utils.report.chapter import DEFAULT, glue
from fairq_utils.report.tables import html_table, named
from fairq_utils.study import cost
from fairq_utils.study.cost import INFER, TRAIN
from fairq_utils.study.params.file import load_params
from fairq_utils.study.params.study import Params
from fairq_utils.study.workload import GRIDS, KINDS

RATES_LABELS = {TRAIN: "train", INFER: "predict"}
STUDIES = ("celeba", "utkface", "fairface")  # of params/
DOUBT = (1.0, 3.0)  # least and most that single precision may be slower by


@dataclass(frozen=True)
class Planned:
    """A study, the work of its runs, and the hours of that."""

    params: Params
    jobs: list[cost.Job]

    @cached_property
    def hours(self) -> pd.DataFrame:
        """Hours by :func:`fairq_utils.study.cost.hours`."""
        return cost.hours(self.jobs)


def planned() -> dict[str, Planned]:
    """The studies of :data:`STUDIES`, by the name of their params file."""
    found = {}
    for name in STUDIES:
        params = load_params(DEFAULT.with_name(f"{name}.yaml"))
        found[name] = Planned(params, cost.jobs(params))
    return found


def hours_table(hours: pd.DataFrame) -> HTML:
    """Hours by architecture and kind of run, with sums.

    Parameters
    ----------
    hours : of :func:`fairq_utils.study.cost.hours`
    """
    wide = named(hours).pivot_table(
        index="architecture", columns="kind", values="hours", aggfunc="sum", sort=False
    )
    wide = wide.reindex(columns=[kind for kind in KINDS if kind in wide]).fillna(0)
    wide["sum"] = wide.sum(axis=1)
    wide.loc["sum"] = wide.sum()
    return html_table(
        wide.rename(columns=lambda kind: kind.replace("_", "-"))
        .map("{:.1f}".format)
        .rename_axis(columns=None)
        .reset_index()
    )


def rates_table(published: pd.DataFrame) -> HTML:
    """Published rates, images per second; the last row has the files that they are from."""
    frame = named(published)
    frame = frame.assign(
        cell=frame.images_per_second.map("{:.0f}".format),
        what=frame.what.map(RATES_LABELS) + ", " + frame.machine,
    )
    files = frame.drop_duplicates("what").assign(architecture="file", cell=lambda x: x.source)
    wide = pd.concat([frame, files]).pivot_table(
        index="architecture", columns="what", values="cell", aggfunc="first", sort=False
    )
    return html_table(wide.rename_axis(columns=None).reset_index(), wrapped=True)


def studies_table(studies: dict[str, Planned]) -> HTML:
    """Images, runs and hours of whole studies.

    Parameters
    ----------
    studies : of :func:`planned`
    """
    counts = [cost.counts(found.params) for found in studies.values()]
    return html_table(
        pd.DataFrame(
            {
                "study": [COLLECTIONS[name].title for name in studies],
                "training images": [f"{images['train']:,}" for images in counts],
                "test images": [f"{images['test']:,}" for images in counts],
                "runs": [f"{len(found.hours):,}" for found in studies.values()],
                "hours": [f"{found.hours.hours.sum():.0f}" for found in studies.values()],
            }
        )
    )


def glue_cost(studies: dict[str, Planned]) -> None:
    """Glue the hours of the studies."""
    for name, found in studies.items():
        glue(f"{name}_whole", float(found.hours.hours.sum()))
    first = studies["celeba"]
    whole = first.hours.hours.sum()
    for kind, hours in first.hours.groupby("kind").hours.sum().items():
        glue(f"share_{kind}", float(100 * hours / whole))
    for name, single in zip(("least", "most"), DOUBT, strict=True):
        hours = cost.hours(first.jobs, cost.gpu(single=single))
        glue(f"whole_{name}", float(hours.hours.sum()))
    glue("celeba_runs", len(first.hours))
    glue("celeba_pixels", first.params.data.size)
    glue("architectures", len(first.params.training.models))
    glue("seeds", len(first.params.training.seeds))
    glue("grids", GRIDS)
    glue("single", cost.SINGLE)
    glue("single_most", DOUBT[1])
    glue("stand_in_ratio", cost.multiply_adds_ratio("squeezenet1_1", "mobilenet_v2"))
