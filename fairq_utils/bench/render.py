"""How fast people are rendered."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from fairq_utils.data.population import Population

RENDER_SIZE = 64  # pixels per side
RENDER_FACES = 1024
REPEATS = 3


def bench_render() -> dict[str, Any]:
    """Faces rendered per second, drawing of the people included, cache and set-up excluded.

    Returns
    -------
    dict
        ``faces_per_second`` (median of three runs), ``slowest`` and ``fastest`` of them, ``size``
        in pixels per side, ``threads``, ``device`` and ``faces`` per run.
    """
    import torch

    from fairq_utils.data.render import default_device, render

    device = default_device()
    threads = torch.get_num_threads()
    population = Population()
    # The first call builds the head and compiles the kernels.
    render(population, "train", np.arange(128), RENDER_SIZE, device=device, threads=threads)
    rates = []
    for repeat in range(REPEATS):
        indices = np.arange(RENDER_FACES) + RENDER_FACES * repeat
        began = time.perf_counter()
        render(population, "train", indices, RENDER_SIZE, device=device, threads=threads)
        rates.append(RENDER_FACES / (time.perf_counter() - began))
    return {
        "faces_per_second": round(statistics.median(rates), 1),
        "slowest": round(min(rates), 1),
        "fastest": round(max(rates), 1),
        "size": RENDER_SIZE,
        "threads": threads,
        "device": device,
        "faces": RENDER_FACES,
    }
