"""What the benchmarks of a study measure: its trained models, on its calibration pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairq_utils import calibration, models
from fairq_utils.data import FaceData
from fairq_utils.params import Params
from fairq_utils.planning import plan
from fairq_utils.run_models import trained


def pinned_threads(params: Params) -> int:
    """How many threads the study asks for, or PyTorch's own number; PyTorch is set to it."""
    threads = params.execution.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    return threads


def trained_models(params: Params) -> dict[str, nn.Module]:
    """The FP32 model of every architecture, at the study's first training seed.

    Raises
    ------
    Fault
        One is not trained yet; says how to train it.
    """
    seed = params.training.seeds[0]
    return {
        run.architecture: trained(params, run.architecture, run.key)
        for run in plan(params, ("baseline",))
        if run.training["seed"] == seed
    }


def calibration_pictures(params: Params, data: FaceData, batch: int) -> tuple[Tensor, ...]:
    """The study's first random draw from its calibration split.

    Returns
    -------
    float32 (B, 3, H, W) each, normalized; B is ``batch`` but for the last
    """
    pool, wanted = data.subset("calibration"), params.quantization
    rows = calibration.draw(
        "random",
        pool.groups,
        pool.target,
        wanted.calibration_images,
        seed=wanted.calibration_seeds[0],
    )
    images = pool.images[torch.from_numpy(rows)]
    return tuple(models.normalize(part) for part in images.split(batch))
