"""Subjects of the benchmarks of a study: its trained models, and its calibration images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fairq_utils import calibration
from fairq_utils.study import weights as checkpoints
from fairq_utils.study.ledger import Ledger
from fairq_utils.study.params.study import Params
from fairq_utils.study.planning import plan
from fairq_utils.study.run_models import trained
from fairq_utils.study.run_record import Run
from fairq_utils.study.study import Study
from fairq_utils.training import architectures


def pinned_threads(params: Params) -> int:
    """Set PyTorch to the threads that the study asks for, or leave its own number; returns it."""
    threads = params.execution.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    return threads


def trained_models(study: Study) -> dict[str, nn.Module]:
    """Load the FP32 model of every architecture, at the study's first training seed.

    Raises
    ------
    Fault
        One is not trained yet; says how to train it.
    """
    seed = study.params.training.seeds[0]
    return {
        run.architecture: trained(study, run)
        for run in plan(study, ("baseline",))
        if run.training["seed"] == seed
    }


def with_trained(store: Ledger, fresh: Ledger, baselines: Iterable[Run]) -> Ledger:
    """Fill a fresh ledger with the FP32 runs of another and links to their weights.

    Raises
    ------
    LedgerError
        One is not trained yet.
    """
    fresh.prepare()
    for run in dict.fromkeys(baselines):
        fresh.write(store.read(run.key))
        weights = fresh.checkpoint_path(run.weights)
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.symlink_to(checkpoints.fetch(store, run.weights).resolve())
    return fresh


def calibration_images(study: Study, batch: int) -> tuple[Tensor, ...]:
    """Draw the study's first random calibration set from its calibration split.

    Returns
    -------
    float32 (B, 3, H, W) each, normalized; B is ``batch`` but for the last
    """
    pool, wanted = study.faces.subset("calibration"), study.params.quantization
    rows = calibration.draw(
        "random",
        pool.groups,
        pool.target,
        wanted.calibration_images,
        seed=wanted.calibration_seeds[0],
    )
    images = pool.images[torch.from_numpy(rows)]
    return tuple(architectures.normalize(part) for part in images.split(batch))
