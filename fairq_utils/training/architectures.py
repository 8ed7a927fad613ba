"""Models by name: built, initialised, and how images enter them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.data.faces import Images
from fairq_utils.errors import Fault, needs
from fairq_utils.training import zoo

# Statistics of ImageNet's training images (RGB, 0 to 1), which pretrained weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class PretrainedUnavailable(Fault):
    """ImageNet weights were asked for and could not be fetched."""


@needs("building an architecture", "study")
def build(
    name: str, *, classes: int = 2, image_size: int = 64, pretrained: bool = False
) -> nn.Module:
    """Build an architecture.

    Parameters
    ----------
    name : str
        Of an entry in :mod:`fairq_utils.training.zoo`, or any that timm or torchvision lists.
    classes : int
        Number of logits.
    image_size : int
        Pixels per side; position embeddings and windows of transformers depend on it. Sizes that
        cannot be are refused by :func:`fairq_utils.training.image_sizes.check_size`.
    pretrained : bool
        Start from the hub's ImageNet weights; the last layer is always fresh.

    Raises
    ------
    BadInput
        Unknown name.
    PretrainedUnavailable
        The weights are neither cached nor reachable, or nobody published any.
    """
    make = zoo.find(name).build
    try:
        model = make(classes=classes, image_size=image_size, pretrained=pretrained)
    except Exception as error:
        if not pretrained or isinstance(error, ImportError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise PretrainedUnavailable(
            f"training.pretrained: the ImageNet weights of {name} could not be fetched "
            f"({type(error).__name__}: {reason}); connect to the network once, or set "
            "pretrained: false"
        ) from error
    # timm scales the last layer by its number of classes: over two, the first losses are above
    # three and a third of a short training goes into undoing that.
    head = _of_classes(model, classes)
    nn.init.normal_(head.weight, std=0.01)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return model


def outline(name: str) -> nn.Module:
    """An architecture of two logits whose parameters have no values: what counting needs."""
    try:
        with torch.device("meta"):
            return build(name)
    except NotImplementedError:  # torchvision's RegNet reads values while it is built
        with torch.random.fork_rng(devices=[]):
            return build(name)


def _of_classes(model: nn.Module, classes: int) -> nn.Linear | nn.Conv2d:
    """The last layer, in the place of ImageNet's where that has other logits."""
    head = classifier(model)
    if head.weight.shape[0] == classes:
        return head
    fresh: nn.Linear | nn.Conv2d
    if isinstance(head, nn.Linear):
        fresh = nn.Linear(head.in_features, classes)
    else:
        fresh = nn.Conv2d(head.in_channels, classes, kernel_size=1)
    path = next(path for path, module in model.named_modules() if module is head)
    model.set_submodule(path, fresh)
    return fresh


def initialise(model: nn.Module, images: Tensor) -> None:
    """Give a vision transformer that starts from scratch a first layer that fits the images.

    Position embeddings become the fixed sine and cosine grid (Beyer et al. 2022, "Better plain ViT
    baselines for ImageNet-1k"), and the patch embedding a random rotation of the whitened principal
    components of patches (Krähenbühl et al. 2016, "Data-dependent initializations of convolutional
    neural networks"). Both speed up the first epochs, which is all that a small training has.
    Other architectures stay as they are, and so do embeddings of more values than a patch has.

    Parameters
    ----------
    model : module
        Changed in place.
    images : uint8 (N, 3, H, W)
        For training.
    """
    from timm.layers import PatchEmbed, build_sincos2d_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    embedding = getattr(model, "patch_embed", None)
    if not isinstance(model, VisionTransformer) or type(embedding) is not PatchEmbed:
        return
    proj = embedding.proj
    width, side = proj.out_channels, proj.kernel_size[0]
    with torch.no_grad():
        if model.pos_embed is not None:
            grid = build_sincos2d_pos_embed(list(embedding.grid_size), width, temperature=100.0)
            model.pos_embed[:, -len(grid) :] = grid  # class and register tokens stand before them
        if width > proj.weight[0].numel() or proj.bias is None:
            return
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
    """From uint8 (N, 3, H, W) to what the networks take: float32, ImageNet's mean and scale.

    All architectures get the same, whatever their pretrained weights were trained with. The result
    is channels-last in memory, which convolutions on CPU and CUDA prefer.
    """
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
    x = images.to(device)  # as bytes, which are a quarter of it
    x = x.to(dtype=torch.float32, memory_format=torch.channels_last)
    return (x / 255 - mean) / std


class Normalized:
    """Images as the networks take them; what is indexed is normalised then, and not kept.

    A split of a large collection, normalised as a whole, would fill the memory.

    Parameters
    ----------
    images : uint8 (N, 3, H, W), a tensor or images on disk
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
        """Tensors of ``size`` images each, the last of what is left."""
        return (normalize(part, self.device) for part in self.images.split(size))

    def take(self, rows: Tensor) -> Normalized:
        """Images at these rows, int64 (B,), none of them normalised yet."""
        kept = self.images
        picked = kept[rows] if isinstance(kept, Tensor) else kept.take(rows.numpy())
        return Normalized(picked, self.device)


Inputs = Tensor | Normalized  # what a model takes, (N, ...)


def classifier(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """The layer that turns features into logits.

    The last linear or convolution of what timm's ``get_classifier`` names, or of the whole model
    where there is no such method.
    """
    named = model.get_classifier() if hasattr(model, "get_classifier") else model  # type: ignore[operator]
    heads = named if isinstance(named, tuple) else (named,)
    found = [m for h in heads for m in h.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear or convolution layer")
    return found[-1]


def float_megabytes(model: nn.Module) -> float:
    """Parameters and buffers as float32, in MiB: what the published study calls FP32 size."""
    values = [*model.parameters(), *model.buffers()]
    return sum(v.numel() * v.element_size() for v in values) / 2**20
