"""Names that a params file or a call may have, as ``fairq list`` prints them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd

from fairq_utils.study.overview import aligned

Row = tuple[str, str, str, str]


def _methods() -> Iterator[Row]:
    from fairq_utils.quantizers.methods import METHODS

    for name, entry in sorted(METHODS.items(), key=lambda item: item[1].place):
        needs = [need for need in sorted(entry.needs) if need != "kept"]
        label = f"{entry.family}: {entry.label}" if entry.group_aware else entry.label
        yield name, label, entry.source, ", ".join(needs)


def _samplers() -> Iterator[Row]:
    from fairq_utils.calibration import SAMPLERS

    for name, entry in SAMPLERS.items():
        yield name, entry.label, entry.source, entry.needs


def _models() -> Iterator[Row]:
    from fairq_utils.training.zoo import ARCHITECTURES

    for name, entry in ARCHITECTURES.items():
        yield name, entry.label, "", ""
    yield "any other", "a classifier that timm or torchvision names so", "", ""


def _engines() -> Iterator[Row]:
    from fairq_utils.deploy.engines.registry import ENGINES

    for name, entry in ENGINES.items():
        yield name, entry.label, "", entry.package


def _data() -> Iterator[Row]:
    from fairq_utils.data.photographs.registry import COLLECTIONS

    yield "population", "rendered people", "Anny (Bregier et al. 2026)", ""
    for name, entry in COLLECTIONS.items():
        source = entry.published.source if entry.published else ""
        yield name, entry.title, source, "root"


LISTS: dict[str, Callable[[], Iterator[Row]]] = {
    "methods": _methods,
    "samplers": _samplers,
    "models": _models,
    "engines": _engines,
    "data": _data,
}


def listed(kind: str) -> pd.DataFrame:
    """Entries of one registry.

    Parameters
    ----------
    kind : of :data:`LISTS`

    Returns
    -------
    DataFrame
        ``name``, ``label``, ``source``, ``needs``; texts.
    """
    return pd.DataFrame(list(LISTS[kind]()), columns=["name", "label", "source", "needs"])


def text(kind: str) -> str:
    """The table of :func:`listed` as the terminal shows it."""
    return aligned(listed(kind))
