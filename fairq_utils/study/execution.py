"""From a params file to a full ledger: what to run, and running what is missing.

The study is a graph of ``dask.delayed`` tasks: each trained model is one task, each quantized
model another that depends on it. It runs in this process, or on the cluster that the params name,
which gets the same tasks in pieces (:mod:`fairq_utils.study.schedule`). A task whose run is in the
ledger does nothing, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import dask
import torch
from dask import delayed

from fairq_utils.study import run_models, runs, tracking
from fairq_utils.study.feasibility import check, check_decoded
from fairq_utils.study.ledger import Ledger
from fairq_utils.study.params.data import Photographs
from fairq_utils.study.planning import PHASES, baseline_of, with_dials
from fairq_utils.study.progress import Progress
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study


def execute(
    study: Study, phases: Sequence[str] = PHASES, *, stream: TextIO | None = None
) -> Ledger:
    """Run what is missing of these phases, and return the ledger.

    Quantized runs need their FP32 model, which is trained first where it is missing.

    Parameters
    ----------
    stream : text stream, optional
        Where progress goes; standard error if not given.
    """
    check(study)
    study.prepare()
    check_decoded(study)
    params, store = study.params, study.ledger
    tracking.tracker(params)
    wanted = with_dials(study, phases)
    missing = {run: part for run, part in wanted.items() if not store.contains(run.key)}
    study.remove_abandoned(wanted.keys() - missing.keys())
    baselines = {baseline_of(run): part for run, part in missing.items()}
    # A phase by itself may need FP32 models that are not trained yet.
    first = [run for run in baselines if run not in wanted and not store.contains(run.key)]
    bars = Progress([*first, *missing], stream or sys.stderr, len(wanted) + len(first))
    _say_what_was_left_out(study, bars)
    shown = params.tracking.tensorboard or params.tracking.mlflow
    if shown and len(missing) < len(wanted):
        bars.say(
            "tracking shows runs as they are computed: those in the ledger are not shown again"
        )
    if not missing:
        bars.say(f"all {len(wanted)} runs are in the ledger")
        return store
    groups = by_calibration(missing)
    if params.cluster.kind != "none":
        # The client takes seconds to import, and a study on one machine does without.
        from fairq_utils.study import schedule

        own = [(missing[members[0]], members) for _, members in groups]
        schedule.compute(study, baselines, own, bars)
        return store
    if params.execution.threads:
        torch.set_num_threads(params.execution.threads)
    trained = {
        base.key: delayed(runs.train_baseline, pure=False)(part, base, bars)
        for base, part in baselines.items()
    }
    tasks = [
        delayed(runs.evaluate_quantized, pure=False)(
            missing[members[0]], members, trained[base.key], bars
        )
        for base, members in groups
    ]
    with dask.config.set(scheduler="synchronous"):
        dask.compute(*trained.values(), *tasks)
    return store


def _say_what_was_left_out(study: Study, bars: Progress) -> None:
    """Report how many photographs were left out, and what the first of them lacks."""
    if not isinstance(study.params.data, Photographs):
        return
    lost = [finding for finding in study.faces.meta["findings"] if finding["counts"]]
    if lost:
        bars.say(
            f"data: {len(lost)} pictures or labels were left out, such as {lost[0]['place']}: "
            f"{lost[0]['problem']}; `fairq data check` lists all"
        )


def by_calibration(wanted: Iterable[Run]) -> list[tuple[Run, list[Run]]]:
    """Quantized runs in groups that share a calibration, each with its FP32 run."""
    grouped: dict[tuple[Any, ...], list[Run]] = {}
    for run in wanted:
        if run.method != "fp32":
            kind = run_models.calibration_kind(run)
            pool = json.dumps(run.data.get("calibration"))
            what = (kind, run.sampler, run.calibration_images, run.calibration_seed, pool)
            grouped.setdefault((baseline_of(run).key, *what), []).append(run)
    return [(baseline_of(members[0]), members) for members in grouped.values()]
