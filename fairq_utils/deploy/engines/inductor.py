"""PyTorch's Inductor, which compiles ahead of time: a package with machine code and weights.

Convolutions and linear layers between Q/DQ operators become oneDNN's integer kernels, with what
follows them (ReLU, SiLU, residual additions, rounding) fused; products of two activations stay in
float. A package takes batches of one size, on processors like the one that wrote it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.whole_files import (
    TEMPORARY,
    NotWritten,
    reason,
    temporary_folder,
    written_whole,
)
from fairq_utils.deploy.engines.loaded_model import (
    Kernels,
    LoadedModel,
    NotExact,
    NotRunning,
    first_line,
)
from fairq_utils.deploy.engines.registry import engine
from fairq_utils.deploy.quiet import silence

if TYPE_CHECKING:
    from torch import Tensor, nn

# Names of the calls in a package's source that multiply integers, and floats.
INTEGER = re.compile(r"qconv|qlinear")
FLOAT = re.compile(r"convolution|linear|addmm|bmm|_mm_out|packed_gemm")
PLACES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # that cannot be written
CALL = re.compile(r"\b(aoti_torch_[a-z_0-9]+|cpp_\w*(?:gemm|bmm)\w*)\(")


def write(model: nn.Module, example: Tensor, path: Path, weight_bits: int) -> None:
    """Compile a float or quantized model for the example's batch size and this processor.

    Parameters
    ----------
    model : nn.Module
        See :func:`fairq_utils.deploy.engines.qdq.to_qdq`.
    example : float32 (N, 3, H, W)
    path : ends in ``.pt2``
    weight_bits : int
        Decides nothing: these kernels have bytes only.

    Raises
    ------
    NotExact
        The model's quantization has no counterpart in integer engines.
    NotRunning
        Inductor cannot compile the model, for one because there is no C++ compiler.
    """
    import torch
    from torch._inductor import aoti_compile_and_package

    from fairq_utils.deploy.engines.exported import export
    from fairq_utils.quantizers.copying import copied
    from fairq_utils.quantizers.layers import Quantized

    for name, layer in model.named_modules():  # its kernels leave these zero-points out of account
        static = isinstance(layer, Quantized) and layer.spec.activation == "static"
        if static and layer.weight_zero_point.any():
            raise NotExact(
                f"layer {name}: Inductor's integer kernels take weights without zero-points; use "
                "weight_scheme='symmetric', or another engine"
            )
    with silence():  # registers the patterns that find integer kernels
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401

    model = copied(model, "write").to(memory_format=torch.channels_last)
    images = example.contiguous(memory_format=torch.channels_last)
    with temporary_folder() as folder, torch.no_grad(), silence():
        package = folder / "model.pt2"
        try:
            aoti_compile_and_package(
                export(model, images, any_batch=False, signed_products=False),
                package_path=os.fspath(package),
                inductor_configs={
                    "freezing": True,
                    "aot_inductor.metadata": {"shape": "x".join(map(str, images.shape))},
                },
            )
        except (NotExact, NotRunning):
            raise
        except Exception as error:  # what is raised depends on which of its parts failed
            full = _no_room(error)
            if full is not None:
                raise NotWritten(
                    f"{full.filename or folder}: could not be written ({reason(full)}); "
                    f"{TEMPORARY} or TORCHINDUCTOR_CACHE_DIR"
                ) from error
            raise NotRunning(
                f"{path}: Inductor cannot compile this model ({first_line(error)}); it needs a "
                "C++ compiler, and a model that torch.export can trace"
            ) from error
        with written_whole(path) as place:
            shutil.copyfile(package, place)


def _no_room(error: BaseException | None) -> OSError | None:
    """What an error comes from, where that is a place that cannot be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in PLACES:
            return error
        error = error.__cause__ or error.__context__
    return None


def load(path: str | os.PathLike[str], threads: int) -> LoadedModel:
    """Load a package.

    Parameters
    ----------
    path : written by :func:`write`
    threads : int
        For all of PyTorch.

    Raises
    ------
    NotRunning
        The file cannot be read, or belongs to another version or processor.
    """
    import torch
    from torch._inductor import aoti_load_package

    torch.set_num_threads(threads)
    try:
        with silence():
            kernels = _kernels(Path(path))
            package = aoti_load_package(os.fspath(path))
            batch, *shape = map(int, package.get_metadata()["shape"].split("x"))
    except (OSError, RuntimeError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise NotRunning(
            f"{path}: PyTorch {torch.__version__} cannot load this package "
            f"({first_line(error)}); export the model again, here"
        ) from error

    def logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
        x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            found: NDArray[np.float32] = package(x).numpy()
        return found

    return LoadedModel("inductor", logits, threads, kernels, batch, tuple(shape), reentrant=True)


def _kernels(path: Path) -> Kernels:
    with zipfile.ZipFile(path) as package:
        sources = [n for n in package.namelist() if n.endswith((".wrapper.cpp", ".kernel.cpp"))]
        wrapper = "".join(package.read(n).decode() for n in sources if "wrapper" in n)
    calls = Counter(CALL.findall(wrapper))
    integer = sum(n for name, n in calls.items() if INTEGER.search(name))
    layers = {n: k for n, k in calls.items() if INTEGER.search(n) or FLOAT.search(n)}
    return Kernels(integer, sum(layers.values()) - integer, layers)


engine(
    "inductor",
    label="Inductor",
    package="torch",
    file="model.pt2",
    write=write,
    load=load,
    compiled=True,
)
