"""Speed of the renderer of people."""

from __future__ import annotations

import statistics
import timeit
from functools import partial

import numpy as np

from fairq_utils.bench.outcome import Outcome
from fairq_utils.bench.registry import Subject, benchmark
from fairq_utils.data.population import Population

SIZE = 64  # pixels per side
FACES = 1024
REPEATS = 3


@benchmark("render", title="faces rendered per second")
def bench_render(subject: Subject) -> Outcome:
    """Render faces, drawing of the people included, cache and set-up excluded.

    Returns
    -------
    Outcome
        ``faces_per_second`` (median of three runs), ``slowest`` and ``fastest`` of them, ``size``
        in pixels per side, ``threads``, ``device`` and ``faces`` per run.
    """
    import torch

    from fairq_utils.data.render import default_device, render

    device, threads, population = default_device(), torch.get_num_threads(), Population()

    def drawn(start: int, count: int) -> None:
        indices = np.arange(start, start + count)
        render(population, "train", indices, SIZE, device=device, threads=threads)

    drawn(0, 128)  # the first call builds the head and compiles the kernels
    rates = [
        FACES / timeit.timeit(partial(drawn, FACES * repeat, FACES), number=1)
        for repeat in range(REPEATS)
    ]
    return Outcome(
        {
            "faces_per_second": round(statistics.median(rates), 1),
            "slowest": round(min(rates), 1),
            "fastest": round(max(rates), 1),
            "size": SIZE,
            "threads": threads,
            "device": device,
            "faces": FACES,
        }
    )
