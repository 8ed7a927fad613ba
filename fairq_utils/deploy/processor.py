"""Name and instructions of a processor, for captions and for compiled code to run on."""

from __future__ import annotations

import platform
import re
from functools import lru_cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Instructions that decide how fast integers and short floats are multiplied.
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")

# What compilers choose between on x86-64; ARM's list is short enough whole.
COMPILED = re.compile(r"avx|amx|fma|f16c|bmi|vaes|gfni|vpclmulqdq|sha_ni|sse4|movbe|popcnt|adx")


@lru_cache(maxsize=1)
def model_name() -> str:
    """Name of the processor, or of its family where it has none."""
    return _field("model name") or platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def flags() -> tuple[str, ...]:
    """Instructions of :data:`FLAGS` that the processor has; empty where the system does not say."""
    has = (_field("flags") or _field("Features") or "").split()
    return tuple(flag for flag in FLAGS if flag in has)


def instructions() -> tuple[str, ...]:
    """Instruction sets that compiled code may use here, sorted; empty where the system is silent.

    Code that was compiled with one that a processor lacks is killed there.
    """
    x86 = [name for name in (_field("flags") or "").split() if COMPILED.match(name)]
    return tuple(sorted({*x86, *(_field("Features") or "").split()}))


def _field(name: str) -> str | None:
    try:
        found = re.search(rf"^{name}\s*:\s*(.+)$", CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None
