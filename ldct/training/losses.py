"""What is minimised. A loss is called as loss(output, target) on normalised values (B, 1, H, W) and gives a scalar."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldct.config import LossConfig
from shards.common.command import InputError, first_line

VGG_FILE = "vgg16-397923af.pth"
"""Name of torchvision's VGG16 IMAGENET1K_V1 weights in torch's hub cache."""

VGG_URL = f"https://download.pytorch.org/models/{VGG_FILE}"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the three colours, as in the training of VGG16."""


def create(loss: LossConfig) -> nn.Module:
    """The loss that ``loss`` describes.

    Raises
    ------
    InputError
        For mse+vgg without VGG16's weights.
    """
    if loss.name == "mse+vgg":
        return MseVgg(vgg_features(vgg_weights(loss.vgg_weights)), loss.vgg_weight, loss.vgg_imagenet)
    return {"mse": nn.MSELoss, "l1": nn.L1Loss}[loss.name]()


class MseVgg(nn.Module):
    """Mean squared error + weight * mean absolute difference of VGG16's features (Yang 2018, IEEE TMI 37:1348).

    The one channel is repeated to three. VGG16 is frozen and stays in eval mode.

    Parameters
    ----------
    features : nn.Module
        VGG16.features[:16].
    weight : float
        Weight of the perceptual term.
    imagenet : bool
        Shift and scale the input as in VGG16's training; it is not mapped to 0..1 first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Module, weight: float, imagenet: bool) -> None:
        super().__init__()
        self.features = features.requires_grad_(False)
        self.weight, self.imagenet = weight, imagenet
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> "MseVgg":
        super().train(mode)
        self.features.eval()
        return self

    def perceive(self, image: Tensor) -> Tensor:
        """VGG16's features of ``image`` (B, 1, H, W): (B, 256, H // 4, W // 4)."""
        image = image.expand(-1, 3, -1, -1)
        return self.features((image - self.mean) / self.std if self.imagenet else image)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.perceive(target)
        perceptual = nn.functional.l1_loss(self.perceive(output), wanted)
        return nn.functional.mse_loss(output, target) + self.weight * perceptual


def vgg_weights(file: str) -> dict[str, Any]:
    """VGG16's weights from ``file``, or from torch's hub cache where it is empty. Nothing is downloaded: compute
    nodes have no network.

    Raises
    ------
    InputError
        If the file is missing or holds no VGG16.
    """
    path = Path(file) if file else Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
    if not path.is_file():
        raise InputError(
            f"{path}: expected VGG16's ImageNet weights for loss mse+vgg, found no file; name it in loss.vgg_weights, "
            "or fill the cache on a machine with a network: "
            f"python -c \"import torch; torch.hub.load_state_dict_from_url('{VGG_URL}')\""
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken zip, a pickle with code in it, an old format: torch raises many types
        raise InputError(f"{path}: expected VGG16's weights as torch.save writes them: {first_line(error)}") from None


def vgg_features(weights: dict[str, Any]) -> nn.Module:
    """VGG16.features[:16], up to relu3_3 (Simonyan 2015, column D), with ``weights`` as torchvision's vgg16 names them.

    Sixteen plain layers, so torchvision is not needed: beside a CPU build of torch it often cannot be imported.

    Raises
    ------
    InputError
        If the weights are of another network.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    features = nn.Sequential(*layers[:-1])
    named = {f"features.{name}": name for name in features.state_dict()}
    given = weights if isinstance(weights, dict) else {}
    try:
        features.load_state_dict({named[key]: value for key, value in given.items() if key in named}, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"loss.vgg_weights: expected the weights of torchvision's vgg16: {' '.join(str(error).split())[:200]}"
        ) from None
    return features
