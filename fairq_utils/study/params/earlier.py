"""Keys that earlier params files had, and what is written in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from fairq_utils.calibration import SAMPLERS

QUANTIZATION = ("bits", "methods", "ranges", "further", "further_models")
MITIGATION = ("kept", "max_drop", "max_reverted", "samplers", "methods", "bits", "models")
DIALS = ("bits", "methods")
REVERTED = 10  # layers that accuracy control could put back where a file named no number


def replaced(content: Mapping[str, Any]) -> str | None:
    """A sentence about the first key that a grid replaces, with the grid it stands for.

    Examples
    --------
    >>> replaced({"mitigation": {"samplers": ["core_set"]}}).partition(" write ")[2][:52]
    'grid: [{method: ptq, bits: W8A8, sampler: [random, c'
    """
    for section, keys in (("quantization", QUANTIZATION), ("mitigation", MITIGATION)):
        given = content.get(section)
        if isinstance(given, Mapping):
            key = next((key for key in keys if key in given), None)
            if key is not None:
                return _sentence(f"{section}.{key}", list(_grid(content)))
    dials = content.get("dials")
    if isinstance(dials, Mapping):
        key = next((key for key in DIALS if key in dials), None)
        if key is not None:
            methods = dials.get("methods", ["group_balanced"])
            bits = dials.get("bits", ["W8A8", "W4A4"])
            settings = {"budget": None, "max_drop": None, "max_reverted": REVERTED}
            entries = list(_compared(methods, bits, settings=settings))
            return _sentence(f"dials.{key}", entries, "dials.grid")
    return None


def _sentence(key: str, entries: list[dict[str, Any]], place: str = "grid") -> str:
    written = yaml.safe_dump(entries, default_flow_style=True, sort_keys=False, width=10**6)
    return (
        f"{key}: what is quantized how is a grid now; in its place write {place}: {written.strip()}"
    )


def _grid(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Entries that say what the two old sections said."""
    q, m = (dict(content.get(name) or {}) for name in ("quantization", "mitigation"))
    bits = list(q.get("bits", ["W8A8"]))
    samplers = ["random", *m.get("samplers", ["group_balanced"])]
    plain: dict[str, Any] = {"method": "ptq", "bits": bits, "range": q.get("ranges")}
    yield _short({**plain, "sampler": samplers if len(samplers) > 1 else None})
    eights = [width for width in bits if str(width).endswith("A8")]
    if eights and "dynamic" in q.get("methods", ("ptq", "dynamic")):
        yield _short({"method": "dynamic", "bits": eights[:1]})
    for method, widths in dict(q.get("further") or {}).items():
        yield _short({"method": method, "bits": widths, "models": q.get("further_models")})
    names = m.get("methods", [])
    settings = {"budget": m.get("kept"), "max_drop": m.get("max_drop")}
    settings |= {"max_reverted": m.get("max_reverted", REVERTED)}
    yield from _compared(names, m.get("bits", ["W8A8", "W4A4"]), m.get("models"), settings)


def _compared(
    names: Any, bits: Any, models: Any = None, settings: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Entries of what is compared with plain quantization."""
    given = dict(settings or {})
    samplers = [name for name in names if name in SAMPLERS]
    if samplers:
        entry = {"method": "ptq", "bits": bits, "range": "mse", "sampler": samplers}
        yield _short({**entry, "models": models})
    preserved = [name for name in names if str(name).startswith(("layers", "channels"))]
    controlled = [name for name in names if str(name).startswith("control")]
    rest = [name for name in names if name not in (*samplers, *preserved, *controlled)]
    for group, keys in ((rest, ()), (preserved, ("budget",)), (controlled, tuple(given)[1:])):
        if group:
            own = {key: given.get(key) for key in keys}
            yield _short({"method": group, "bits": bits, "models": models, **own})


def _short(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without empty keys, and with lists of one as the one."""
    found = {key: value for key, value in entry.items() if value not in (None, [], ())}
    return {
        key: value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
        for key, value in found.items()
    }
