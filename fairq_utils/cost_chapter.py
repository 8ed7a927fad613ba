"""What the chapter on costs computes, and the figures that it glues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fairq_utils import cost, models
from fairq_utils.chapters import DEFAULT, glue
from fairq_utils.params import Params
from fairq_utils.params_file import load_params

STUDIES = ("celeba", "utkface", "fairface")  # of params/
LABELS = {"celeba": "CelebA", "utkface": "UTKFace", "fairface": "FairFace"}
GPUS = (1, 4, 8)
DOUBT = (1.0, 3.0)  # least and most that single precision may be slower by


@dataclass(frozen=True)
class Planned:
    """A study and its jobs."""

    params: Params
    jobs: list[cost.Job]


def planned(names: tuple[str, ...] = STUDIES) -> dict[str, Planned]:
    """The studies of these params files."""
    found = {}
    for name in names:
        params = load_params(DEFAULT.with_name(f"{name}.yaml"))
        found[name] = Planned(params, cost.jobs(params))
    return found


def overview(studies: Mapping[str, Planned]) -> pd.DataFrame:
    """Whole studies at the published rates.

    Returns
    -------
    DataFrame
        ``study``; ``train``, ``test`` (images); ``runs``; GPU hours of ``training`` and answers,
        and of the ``quantizer``; ``on N GPUs``, hours until all is done by so many.
    """
    rows, rates = [], cost.gpu()
    for name, found in studies.items():
        counts = cost.counts(found.params)
        sums = cost.seconds(found.jobs, rates)
        row: dict[str, Any] = {
            "study": LABELS[name],
            "train": counts["train"],
            "test": counts["test"],
            "runs": len(found.jobs),
            "training": sums.training_seconds.sum() / cost.HOUR,
            "quantizer": sums.quantizer_seconds.sum() / cost.HOUR,
        }
        for many in GPUS[1:]:
            row[f"on {many} GPUs"] = cost.spread(found.jobs, rates, many)
        rows.append(row)
    return pd.DataFrame(rows)


def glue_growth(figures: dict[str, Any]) -> None:
    """Glue what the benchmark measured."""
    sizes = pd.DataFrame(figures["sizes"])
    later = sizes[sizes.factor > sizes.factor.min()]
    for name in ("exponent", "predicted_exponent", "pixels", "processor", "threads"):
        glue(name, figures[name])
    for kind, slope in figures["exponents"].items():
        glue(f"exponent_{kind}", slope)
    for what, ratio in figures["additivity"].items():
        glue(f"additive_{what}", ratio)
    glue("images_least", int(sizes.images.min()))
    glue("images_most", int(sizes.images.max()))
    glue("miss_most", 100 * float((later.ratio - 1).abs().max()))
    kinds = pd.DataFrame(figures["kinds"])
    kinds = kinds[kinds.factor > kinds.factor.min()]
    off = (kinds.predicted / kinds.seconds - 1).abs()
    worst = kinds.loc[off.idxmax()]
    glue("worst_miss", 100 * float(off.max()))
    glue(
        "worst_case", f"{models.DISPLAY_NAMES[worst.architecture]}, {worst.kind.replace('_', ' ')}"
    )
    names = [models.DISPLAY_NAMES[name] for name in figures["rates"]]
    glue("architectures_measured", " and ".join(names))
    rates = pd.DataFrame(figures["rates"]).T
    glue("squeezenet_faster", float(rates.train["squeezenet1_1"] / rates.train["mobilenet_v2"]))


def glue_cost(studies: Mapping[str, Planned]) -> None:
    """Glue what the studies cost, in hours."""
    for row in overview(studies).itertuples():
        name = row.study.lower()
        glue(f"{name}_runs", row.runs)
        glue(f"{name}_images", row.train)
        glue(f"{name}_training", row.training)
        glue(f"{name}_quantizer", row.quantizer)
        glue(f"{name}_whole", row.training + row.quantizer)
    first = studies[STUDIES[0]]
    rates = cost.gpu()
    kinds = cost.table(first.jobs, rates, ["kind"]).set_index("kind")
    shares = 100 * kinds.training_seconds / kinds.training_seconds.sum()
    for kind in ("train", "train_on"):
        glue(f"share_{kind}", float(shares[kind]))
    for what, hours in cost.one_more(first.params, first.jobs, rates).items():
        glue(f"more_{what}", hours)
    for many in GPUS:
        glue(f"on_{many}", cost.spread(first.jobs, rates, many))
    for name, single in zip(("least", "most"), DOUBT, strict=True):
        own = cost.seconds(first.jobs, cost.gpu(single=single))
        glue(f"whole_{name}", own.seconds.sum() / cost.HOUR)
    glue("celeba_pixels", first.params.data.size)
    glue("architectures", len(first.params.training.models))
    glue("seeds", len(first.params.training.seeds))
    glue("grids", cost.GRIDS)
    glue("single", cost.SINGLE)
    glue("single_least", DOUBT[0])
    glue("single_most", DOUBT[1])
    glue("stand_in_ratio", cost.multiply_adds_ratio("squeezenet1_1", "mobilenet_v2"))
