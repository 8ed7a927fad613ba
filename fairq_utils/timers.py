"""Time, memory and energy of a call: warm, repeated until the median is known, with its spread.

The median of ``n`` calls has a standard error of about ``1.25 IQR / (1.35 sqrt(n))`` (McGill, Tukey
and Larsen 1978, "Variations of Box Plots", from which box plots have their notches); calls are
repeated until that is small against the median. ``torch.utils.benchmark`` has the clock, but stops
when the quartiles themselves are close, however many calls there were, and averages fast calls in
blocks, which hides how they spread.
"""

from __future__ import annotations

import re
import statistics
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

WARM_UP = 3  # calls before any is timed
LEAST, MOST = 5, 2000  # timed calls
POWER = Path("/sys/class/powercap")  # counters of the processor's energy (Linux, RAPL)
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timing:
    """Time of a call.

    Attributes
    ----------
    median, low, high : float
        Milliseconds per call: the median and the quartiles around it.
    relative_error : float
        Standard error of the median, as a fraction of it.
    calls : int
        How many were timed, after the warm-up.
    device : str
        ``cpu``, or ``cuda``.
    """

    median: float
    low: float
    high: float
    relative_error: float
    calls: int
    device: str = "cpu"

    def per(self, images: int) -> Timing:
        """The same per image of a batch.

        Examples
        --------
        >>> Timing(8.0, 7.0, 9.0, 0.01, 20).per(4).median
        2.0
        """
        median, low, high = (t / images for t in (self.median, self.low, self.high))
        return replace(self, median=median, low=low, high=high)


def time_call(
    call: Callable[[], Any],
    *,
    relative_error: float = 0.01,
    seconds: float = 3.0,
    device: str = "cpu",
) -> Timing:
    """Time a call until its median is known to a relative error, or its time is up.

    Parameters
    ----------
    call : function without arguments
    relative_error : float
        Standard error of the median over the median, at which timing ends.
    seconds : float
        After which it ends in any case; at least 5 calls are timed.
    device : str
        ``cpu``, or ``cuda`` for calls that queue work on a GPU. The clock is PyTorch's own, which
        waits for a GPU, where there is one, before it is read.

    Raises
    ------
    RuntimeError
        ``cuda`` without a GPU.

    Examples
    --------
    >>> time_call(lambda: sum(range(1000)), seconds=0.05).calls >= 5
    True
    """
    import torch
    from torch.utils import benchmark

    if device != "cpu" and not torch.cuda.is_available():
        raise RuntimeError(f"timers: {device} was asked for and PyTorch sees no GPU here; use cpu")
    for _ in range(WARM_UP):
        call()
    once = timeit.Timer(call, timer=benchmark.timer)  # without garbage collection in the call
    times: list[float] = []
    began = benchmark.timer()
    while len(times) < MOST:
        times.append(1e3 * once.timeit(number=1))
        if len(times) < LEAST:
            continue
        if benchmark.timer() - began > seconds or error_of_median(times) < relative_error:
            break
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, low, high, error_of_median(times), len(times), device)


def error_of_median(times: list[float]) -> float:
    """Standard error of the median over the median.

    Examples
    --------
    >>> error_of_median([1.0] * 10)
    0.0
    """
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return 1.25 * (high - low) / (1.35 * len(times) ** 0.5 * median)


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Bytes that a call needs at its peak beyond what is held before it.

    On a CPU by the resident set's high-water mark, which Linux lets a process reset; None where it
    does not. On CUDA by PyTorch's allocator.
    """
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    try:
        CLEAR.write_text("5")  # resets VmHWM (proc(5))
        before = _kilobytes("VmRSS")
        call()
        return 1024 * max(_kilobytes("VmHWM") - before, 0)
    except (OSError, LookupError):
        return None


def anonymous_memory() -> int | None:
    """Bytes of resident memory that belong to no file, so that only swapping could free them.

    None where the system does not tell (Linux does).
    """
    try:
        return 1024 * _kilobytes("RssAnon")
    except (OSError, LookupError):
        return None


def energy(call: Callable[[], Any], seconds: float = 1.0) -> float | None:
    """Joules per call, by the processor's own counters; None where they cannot be read.

    The counters hold what all cores use, whoever works on them.
    """
    before = _microjoules()
    if before is None:
        return None
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        call()
        calls += 1
    after = _microjoules() or {}
    used = [after[name] - value for name, value in before.items() if name in after]
    # A counter that has wrapped around says nothing.
    return sum(used) / 1e6 / calls if used and min(used) >= 0 else None


def _microjoules() -> dict[str, int] | None:
    """Counter -> microjoules of every processor package; None where there is none to read."""
    try:
        found = {
            folder.name: int((folder / "energy_uj").read_text())
            for folder in sorted(POWER.glob("intel-rapl:*"))
            if folder.name.count(":") == 1  # a package, not one of its parts
        }
    except (OSError, ValueError):
        return None
    return found or None


def _kilobytes(what: str) -> int:
    found = re.search(rf"^{what}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(what)
    return int(found[1])
