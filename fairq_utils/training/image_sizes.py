"""Sizes of images that an architecture takes; a trial without weights tells where no entry does."""

from __future__ import annotations

from functools import lru_cache

from fairq_utils.errors import BadInput
from fairq_utils.training import zoo

STEPS = (4, 8, 14, 16, 28, 32)  # pixels that patches, windows and strides usually come to
LARGER = (64, 75, 80, 96, 128, 160, 192, 224, 240, 256, 299, 331, 384, 448, 512)
ODD = 331  # no multiple of anything: who takes it takes all that are large enough


def check_size(name: str, image_size: int, key: str) -> None:
    """Refuse images that an architecture cannot take.

    Parameters
    ----------
    name : str
        See :func:`fairq_utils.training.zoo.find`.
    image_size : pixels per side
    key : of the params file, for the sentence

    Raises
    ------
    BadInput
        Names the size, the architecture and a size that it takes.
    """
    if not takes(name, image_size):
        raise BadInput(
            f"{key}: {name} takes no images of {image_size} pixels; {_way_out(name, image_size)}"
        )


@lru_cache(maxsize=256)
def takes(name: str, image_size: int) -> bool:
    """Whether two images (2, 3, image_size, image_size) become two logits each in training mode."""
    entry = zoo.find(name)
    if entry.multiple:
        return image_size % entry.multiple == 0
    import torch
    from timm.layers import PatchEmbed

    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]), torch.no_grad():
                model = entry.build(classes=2, image_size=image_size, pretrained=False).train()
                logits = model(torch.zeros(2, 3, image_size, image_size))
        except Exception as error:  # whatever a model says of the size
            if "meta" in str(error):  # it reads values, and there are none on that device
                continue
            return False
        if not isinstance(logits, torch.Tensor) or logits.shape != (2, 2):
            return False
        patches = [part for part in model.modules() if isinstance(part, PatchEmbed)]
        # They would leave out what is over at the right and below, and say nothing.
        return not any(image_size % part.patch_size[0] for part in patches)
    return False


def _way_out(name: str, image_size: int) -> str:
    """Way out, in words."""
    multiple = zoo.find(name).multiple
    steps = (multiple,) if multiple else STEPS
    larger = [size for size in LARGER if size > image_size]
    if not multiple and takes(name, ODD):
        least = next(size for size in larger if takes(name, size))
        return f"take {least} or more, or leave it out"
    for step in steps:
        first = -(-image_size // step) * step
        if takes(name, first) and takes(name, first + step):
            return f"take a multiple of {step}, or leave it out"
    fits = next((size for size in larger if takes(name, size)), None)
    return f"take {fits}, or leave it out" if fits else "leave it out"
