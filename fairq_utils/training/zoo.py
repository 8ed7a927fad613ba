"""Architectures by name, and how each is built: any of timm's and of torchvision's classifiers.

Those that need care have an entry here. PyTorch is imported where a model is built, not before, so
that a params file is read without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from fairq_utils.errors import BadInput
from fairq_utils.registry import Registry, unknown

if TYPE_CHECKING:
    from torch import nn

Build = Callable[..., "nn.Module"]


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes
    ----------
    name, label : by which it is asked for; how figures and tables call it
    build : from ``classes`` (logits), ``image_size`` (pixels per side) and ``pretrained`` (with the
        hub's ImageNet weights) to a module; logits of pretrained ones may be ImageNet's 1000
    multiple : pixels of which image sizes are multiples, or 0 where only a trial tells
    """

    name: str
    label: str
    build: Build
    multiple: int = 0


ARCHITECTURES: Registry[Architecture] = Registry("architecture", "fairq_utils.training.zoo")


def architecture(name: str, *, label: str, build: Build, multiple: int = 0) -> None:
    """Register an architecture.

    Parameters
    ----------
    name, label, build, multiple : see :class:`Architecture`
    """
    ARCHITECTURES.add(name, Architecture(name, label, build, multiple))


def _timm(name: str, *, classes: int, image_size: int, pretrained: bool) -> nn.Module:
    import timm

    create = partial(timm.create_model, name, pretrained=pretrained, num_classes=classes)
    return _sized(create, "img_size", image_size)


def _torchvision(
    name: str, *, classes: int, image_size: int, pretrained: bool, **options: Any
) -> nn.Module:
    from torchvision.models import get_model

    head = {"weights": "DEFAULT"} if pretrained else {"num_classes": classes}
    return _sized(partial(get_model, name, **head, **options), "image_size", image_size)


def _sized(create: Build, argument: str, image_size: int) -> nn.Module:
    """A model that is told its image size, if it takes one."""
    try:
        return create(**{argument: image_size})
    except TypeError as error:
        if argument not in str(error):
            raise
        return create()


def _squeezenet(name: str, *, classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """SqueezeNet without the ReLU that torchvision puts on its logits.

    That ReLU is harmless over 1000 classes; over two it can leave both logits at zero for every
    image, where no gradient flows and training never starts.
    """
    from torch import nn
    from torchvision.models import get_model

    model = get_model(name, weights="DEFAULT" if pretrained else None, dropout=0.1)
    head = nn.Conv2d(512, classes, kernel_size=1)
    model.classifier = nn.Sequential(model.classifier[0], head, nn.AdaptiveAvgPool2d((1, 1)))
    return model


architecture("resnet50", label="ResNet-50", build=partial(_timm, "resnet50"), multiple=1)
architecture(
    "mobilenet_v2", label="MobileNetV2", build=partial(_timm, "mobilenetv2_100"), multiple=1
)
architecture(
    "efficientnet_b0", label="EfficientNet-B0", build=partial(_timm, "efficientnet_b0"), multiple=1
)
architecture(
    "vit_small", label="ViT-Small", build=partial(_timm, "vit_small_patch16_224"), multiple=16
)
architecture(
    "squeezenet1_1", label="SqueezeNet 1.1", build=partial(_squeezenet, "squeezenet1_1"), multiple=1
)
architecture(
    "squeezenet1_0", label="SqueezeNet 1.0", build=partial(_squeezenet, "squeezenet1_0"), multiple=1
)
# Without its two auxiliary classifiers, whose logits come beside the last one's in training.
architecture(
    "googlenet",
    label="GoogLeNet",
    build=partial(_torchvision, "googlenet", aux_logits=False, init_weights=False),
)


@cache
def known() -> dict[str, Build]:
    """Builders of timm's and torchvision's classifiers by name; of a name of both, timm's."""
    import timm
    import torchvision

    theirs = torchvision.models.list_models(module=torchvision.models)
    # Names with a tag, such as resnet50.a1_in1k, say which pretrained weights are meant.
    ours = [*timm.list_models(), *timm.list_models(pretrained=True)]
    found: dict[str, Build] = {name: partial(_torchvision, name) for name in theirs}
    return found | {name: partial(_timm, name) for name in ours}


def find(name: str) -> Architecture:
    """The architecture of a name that somebody wrote.

    Raises
    ------
    BadInput
        There is none; names the nearest.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if name in known():
        return Architecture(name, name, known()[name])
    raise BadInput(f"architecture {unknown(name, [*ARCHITECTURES, *known()])}")


def display_name(name: str) -> str:
    """Name of an architecture as figures and tables print it."""
    return ARCHITECTURES[name].label if name in ARCHITECTURES else name
