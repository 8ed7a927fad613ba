"""The five architectures by name, how pictures enter them, and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.data.faces import Images
from fairq_utils.errors import Fault

# Statistics of ImageNet's training pictures (RGB, 0 to 1), which pretrained weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PATCH = 16  # pixels per side of a ViT-Small patch


def _timm(model: str, *, classes: int, image_size: int, pretrained: bool) -> nn.Module:
    sized: dict[str, Any] = {"img_size": image_size} if model.startswith("vit") else {}
    return timm.create_model(model, pretrained=pretrained, num_classes=classes, **sized)


def _squeezenet(*, classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """SqueezeNet 1.1 without the ReLU that torchvision puts on its logits.

    That ReLU is harmless over 1000 classes; over two it can leave both logits at zero for every
    picture, where no gradient flows and training never starts.
    """
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT if pretrained else None
    model = torchvision.models.squeezenet1_1(weights=weights, dropout=0.1)
    head = nn.Conv2d(512, classes, kernel_size=1)
    model.classifier = nn.Sequential(model.classifier[0], head, nn.AdaptiveAvgPool2d((1, 1)))
    return model


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "resnet50": partial(_timm, "resnet50"),
    "mobilenet_v2": partial(_timm, "mobilenetv2_100"),
    "efficientnet_b0": partial(_timm, "efficientnet_b0"),
    "vit_small": partial(_timm, "vit_small_patch16_224"),
    "squeezenet1_1": _squeezenet,
}

DISPLAY_NAMES = {
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "efficientnet_b0": "EfficientNet-B0",
    "vit_small": "ViT-Small",
    "squeezenet1_1": "SqueezeNet 1.1",
}


class PretrainedUnavailable(Fault):
    """ImageNet weights were asked for and could not be fetched."""


def build(
    name: str, *, classes: int = 2, image_size: int = 64, pretrained: bool = False
) -> nn.Module:
    """Build an architecture.

    Parameters
    ----------
    name : str
        One of :data:`ARCHITECTURES`.
    classes : int
        Number of logits.
    image_size : int
        Pixels per side; only ViT-Small's position embedding depends on it, and it must be a
        multiple of 16 there.
    pretrained : bool
        Start from the hub's ImageNet weights; the last layer is always fresh.

    Raises
    ------
    ValueError
        Unknown name, or an image size that does not divide into patches.
    PretrainedUnavailable
        The weights are neither cached nor reachable.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r} is not one of {', '.join(ARCHITECTURES)}")
    if name == "vit_small" and image_size % PATCH:
        raise ValueError(f"vit_small: image size {image_size} is not a multiple of {PATCH} pixels")
    try:
        model = ARCHITECTURES[name](classes=classes, image_size=image_size, pretrained=pretrained)
    except Exception as error:
        if not pretrained:
            raise
        raise PretrainedUnavailable(
            f"training.pretrained: the ImageNet weights of {name} could not be fetched "
            f"({type(error).__name__}); connect to the network once, or set pretrained: false"
        ) from error
    # timm scales the last layer by its number of classes: over two, the first losses are above
    # three and a third of a short training goes into undoing that.
    head = classifier(model)
    nn.init.normal_(head.weight, std=0.01)  # type: ignore[arg-type]
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    return model


def initialise(model: nn.Module, images: Tensor) -> None:
    """Give a vision transformer that starts from scratch a first layer that fits the pictures.

    Position embeddings become the fixed sine and cosine grid (Beyer et al. 2022, "Better plain ViT
    baselines for ImageNet-1k"), and the patch embedding a random rotation of the whitened principal
    components of patches (Krähenbühl et al. 2016, "Data-dependent initializations of convolutional
    neural networks"). Both speed up the first epochs, which is all that a small training has.
    Other architectures stay as they are.

    Parameters
    ----------
    model : module
        Changed in place.
    images : uint8 (N, 3, H, W)
        Training pictures.
    """
    if not isinstance(model, VisionTransformer):
        return
    proj = model.patch_embed.proj
    width, side = proj.out_channels, proj.kernel_size[0]
    with torch.no_grad():
        grid = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), width, temperature=100.0)
        if model.pos_embed is not None:
            model.pos_embed[:, model.num_prefix_tokens :] = grid
        patches = F.unfold(normalize(images).contiguous(), side, stride=side)
        patches = patches.transpose(1, 2).flatten(0, 1).double()
        mean = patches.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        # Components that hold less than a thousandth of the first one's variance are noise here.
        scale = (values + 1e-3 * values[-1]).rsqrt()
        whiten = (vectors * scale)[:, -width:].T
        rotation = torch.linalg.qr(torch.randn(len(whiten), len(whiten)).double()).Q
        weight = rotation @ whiten
        weight /= ((patches - mean) @ weight.T).std()
        proj.weight.copy_(weight.view_as(proj.weight))
        proj.bias.copy_(-(weight @ mean))


def normalize(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """From uint8 (N, 3, H, W) to what the networks eat: float32, ImageNet's mean and scale.

    The result is channels-last in memory, which convolutions on CPU and CUDA prefer.
    """
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
    x = images.to(device)  # as bytes, which are a quarter of it
    x = x.to(dtype=torch.float32, memory_format=torch.channels_last)
    return (x / 255 - mean) / std


class Normalized:
    """Pictures as the networks eat them; what is indexed is normalised then, and not kept.

    A split of a large collection, normalised as a whole, would fill the memory.

    Parameters
    ----------
    images : uint8 (N, 3, H, W), a tensor or pictures on disk
    device : of what is indexed
    """

    def __init__(self, images: Images, device: torch.device | str = "cpu") -> None:
        self.images, self.device = images, device

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, H, W)."""
        return self.images.shape

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Float32 (B, 3, H, W)."""
        return normalize(self.images[rows], self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """Tensors of ``size`` pictures each, the last of what is left."""
        return (normalize(part, self.device) for part in self.images.split(size))

    def take(self, rows: Tensor) -> Normalized:
        """The pictures at these rows, int64 (B,), none of them normalised yet."""
        kept = self.images
        picked = kept[rows] if isinstance(kept, Tensor) else kept.take(rows.numpy())
        return Normalized(picked, self.device)


Inputs = Tensor | Normalized  # what a model takes, (N, ...)


def classifier(model: nn.Module) -> nn.Module:
    """The layer that turns features into logits: the last linear or convolution with weights."""
    found = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear or convolution layer")
    return found[-1]


def float_megabytes(model: nn.Module) -> float:
    """Parameters and buffers as float32, in MiB: what the published study calls FP32 size."""
    values = [*model.parameters(), *model.buffers()]
    return sum(v.numel() * v.element_size() for v in values) / 2**20
