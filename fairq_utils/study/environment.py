"""Is this machine ready? Versions, compiler, processor or GPU, libraries, disk, data."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from fairq_utils.errors import BadInput
from fairq_utils.study.work_folder import work_folder

if TYPE_CHECKING:
    from fairq_utils.study.params.study import Params

PACKAGES = {  # distribution -> what is imported, and the extra that brings it
    "torch": ("torch", ""),
    "torchvision": ("torchvision", "study"),
    "timm": ("timm", "study"),
    "anny": ("anny", "study"),
    "warp-lang": ("warp", "study"),
    "dask": ("dask", "study"),
    "papermill": ("papermill", "book"),
    "jupyter-book": ("jupyter_book", "book"),
}
SLOW = ("anny", "jupyter-book", "papermill")  # to import, or chatty
FREE_GIB = 2.0


@dataclass(frozen=True)
class Item:
    """One thing that was looked at: its name, whether it is there, and what was found."""

    name: str
    ok: bool
    detail: str


def inspect(params: Params | None = None) -> Iterator[Item]:
    """Look at the set-up, one thing at a time; nothing is written.

    Parameters
    ----------
    params : Params, optional
        Also ask whether this study's device and image source are there.
    """
    yield Item(
        "python", sys.version_info >= (3, 11), platform.python_version() + " (3.11 or newer)"
    )
    for name in PACKAGES:
        yield _package(name)
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    yield Item("C++ compiler", compiler is not None, compiler or "install one: apt install g++")
    yield from _processors(params)
    places = _places(params)
    free = min(shutil.disk_usage(_existing(place)).free for place in places.values()) / 2**30
    yield Item("disk", free >= FREE_GIB, f"{free:.0f} GiB free ({FREE_GIB:.0f} needed)")
    yield _written(places)
    if params is not None:
        yield _pictures(params)
        yield _people(params)


def _places(params: Params | None) -> dict[str, Path]:
    """Folders that are written to, by what names them."""
    places = {"the work folder" if work_folder() else "build": (work_folder() or Path()) / "build"}
    if params is not None:
        execution = params.execution
        places |= {
            f"execution.{name}": Path(place)
            for name in ("ledger", "cache", "results")
            if "://" not in (place := getattr(execution, name))
        }
    return places


def _written(places: dict[str, Path]) -> Item:
    """Whether all places can be written, or made."""
    for name, place in places.items():
        there = _existing(place)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            what = "cannot be written" if there.is_dir() else "is no folder"
            detail = f"{name}: {there} {what}; name another place with --work DIR"
            return Item("places", False, detail)
    return Item("places", True, ", ".join(dict.fromkeys(map(str, places.values()))))


def _package(name: str) -> Item:
    module, extra = PACKAGES[name]
    try:
        found = version(name)
    except PackageNotFoundError:
        what = f"'fairq_utils[{extra}]'" if extra else name
        return Item(name, False, f"not installed: pip install {what}")
    if name in SLOW:
        return Item(name, True, found)
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Item(name, False, f"{found} is installed but does not import ({error})")
    return Item(name, True, found)


def _processors(params: Params | None) -> Iterator[Item]:
    import torch

    from fairq_utils.training.loop import computes_in

    capability = torch.backends.cpu.get_cpu_capability()
    bf16 = f"bf16 in {computes_in('bf16', 'cpu')}"
    threads = f"{torch.get_num_threads()} threads"
    yield Item("processor", True, f"{platform.machine()}, {capability}, {bf16}, {threads}")
    gpu = torch.cuda.is_available()
    wanted = params is not None and params.execution.device == "cuda"
    detail = torch.cuda.get_device_name() if gpu else "none found; the CPU is used"
    if wanted and not gpu:
        detail = "none found, but execution.device is cuda; set it to auto"
    yield Item("GPU", gpu or not wanted, detail)


def _pictures(params: Params) -> Item:
    from fairq_utils.study.params.data import Photographs

    data = params.data
    if isinstance(data, Photographs):
        there = Path(data.root).is_dir()
        return Item("data", there, f"{data.name}, {data.root}" + ("" if there else " is not there"))
    cached = Path(params.execution.cache, "population").exists()
    source = "rendered before" if cached else "will be rendered"
    return Item("data", True, f"{data.name}, {source}")


def _people(params: Params) -> Item:
    from fairq_utils.study.feasibility import check
    from fairq_utils.study.study import Study

    try:
        check(Study(params))
    except BadInput as error:
        return Item("people", False, str(error))
    return Item("people", True, "every group has test images, every sampler enough to draw from")


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
