"""What a reader of the published study's examples has at hand, and registries as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairq_utils.calibration import SAMPLERS
from fairq_utils.metrics.criteria import FAIRNESS
from fairq_utils.quantizers import onednn
from fairq_utils.quantizers.methods import METHODS
from fairq_utils.registry import Registry
from fairq_utils.training.zoo import ARCHITECTURES

REGISTRIES: tuple[Registry[Any], ...] = (METHODS, SAMPLERS, FAIRNESS, ARCHITECTURES)
# Without VNNI, pairs of 8-bit products are summed in 16 bits, where engines saturate.
needs_kernels = pytest.mark.skipif(
    not onednn.available(), reason="this processor has no exact integer kernels"
)
ATTRIBUTES = {"gender": 2, "age": 2, "race": 3}


def people(count: int, seed: int) -> TensorDataset:
    """Pictures that tell the label, with codes of all attributes (N, 3)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    codes = [torch.randint(n, (count,), generator=generator) for n in ATTRIBUTES.values()]
    images = torch.randn(count, 3, 4, 4, generator=generator)
    images[:, 0] += 3 * (labels - 0.5)[:, None, None]
    images[:, 1] += 0.3 * codes[0][:, None, None]
    return TensorDataset(images, labels, torch.stack(codes, dim=1))


def collate(rows: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, dict[str, list[int]]]:
    """Batches of (images, labels, groups)."""
    images, labels, codes = (torch.stack(part) for part in zip(*rows, strict=True))
    return images, labels, {name: codes[:, i].tolist() for i, name in enumerate(ATTRIBUTES)}


def loader(count: int, seed: int) -> Any:
    """A loader of (images, labels, groups)."""
    return DataLoader(people(count, seed), batch_size=256, collate_fn=collate)


def trained() -> nn.Module:
    """A small network that tells the labels apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    images, labels, _ = people(2000, 1).tensors
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(autouse=True)
def _published(
    request: pytest.FixtureRequest,
    doctest_namespace: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The names of the published examples, where these are run."""
    if request.node.name != "test_published_examples.txt":
        return
    monkeypatch.chdir(tmp_path)
    torch.save(trained(), "my_model.pth")
    whole = [nn.Sequential, nn.Conv2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, set]
    torch.serialization.add_safe_globals(whole)
    doctest_namespace["calib_loader"] = loader(600, 2)
    doctest_namespace["test_loader"] = loader(1200, 3)
    doctest_namespace["balanced_calib_loader"] = loader(30_000, 4)


@contextmanager
def as_shipped() -> Iterator[None]:
    """Registries without what others added to them, and afterwards as they were.

    They are the process's, as is Python's path, where modules ``my_...`` are looked for.
    """
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for registry in REGISTRIES:
            stack.enter_context(registry.as_shipped())
        patch.setattr(sys, "path", [p for p in sys.path if not list(Path(p).glob("my_*.py"))])
        for name in _mine():
            patch.delitem(sys.modules, name)
        try:
            yield
        finally:
            for name in _mine():
                del sys.modules[name]


def _mine() -> list[str]:
    return [name for name in sys.modules if name.startswith("my_")]
