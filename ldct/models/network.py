"""What the networks have in common: where their encoder stages lie on the image, and how weights start."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldct.config import ModelConfig

N = TypeVar("N", bound="Network")


@dataclass(frozen=True)
class Stage:
    """Where the features of an encoder stage lie on the input image."""

    channels: int
    """Feature channels."""
    margin: int
    """Input pixels lost at each side, by convolutions without padding."""
    stride: int
    """Input pixels per feature pixel."""


class Network(nn.Module):
    """A denoising network; input and output (B, 1, H, W), normalised values.

    The output has no ReLU: normalised values may be negative (air is -1 in the normalization hu1000).
    """

    stages: list[Stage]
    """Encoder stages, the shallowest first. They are numbered from 1."""
    multiple: int
    """The image is padded to a multiple of this many pixels."""
    encoder: nn.ModuleList
    """One module per stage; its output is the stage's features, before the gate."""
    gates: nn.ModuleDict
    """Attention by the number of its stage ("1", "2", ...)."""
    output: nn.Module
    """The last layer."""

    def receptive_field(self) -> int:
        """Side in pixels of the input window that the convolutions let one output pixel see (gates not counted)."""
        raise NotImplementedError

    def feature_size(self, number: int, pixels: int) -> int:
        """Side of the features of stage ``number`` (from 1) of an image with a side of ``pixels``."""
        stage = self.stages[number - 1]
        padded = -(-pixels // self.multiple) * self.multiple
        return (padded - 2 * stage.margin) // stage.stride

    def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels added (left, right, above, below) to an image for a multiple of ``multiple``, half at each side."""
        rows, columns = -height % self.multiple, -width % self.multiple
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2

    def convolutions(self) -> Iterator[nn.Conv2d | nn.ConvTranspose2d]:
        """Every convolution but the gates'."""
        for name, part in self.named_modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and not name.startswith("gates."):
                yield part


REGISTERED: dict[str, type[Network]] = {}
"""Name -> class, of the networks whose files have been imported."""


def register(network: type[N]) -> type[N]:
    """Decorator of a network's class: known from here on under the name of its file."""
    REGISTERED[network.__module__.rpartition(".")[2]] = network
    return network


class FirstConv2d(nn.Conv2d):
    """The convolution of the image itself, which computes in fp32 also under autocast; its output is as of any other.

    bf16 has 8 bits: it rounds bone of 1000 HU by up to 4 HU. That was nearly all of bf16's error, 0.48 HU of RMSE in a
    trained RED-CNN against 0.08 with this.
    """

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):  # of others torch may know none
            return super().forward(x)
        with torch.autocast(kind, enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype(kind))


def convolve(conv: nn.Conv2d | nn.ConvTranspose2d, model: ModelConfig) -> list[nn.Module]:
    """``conv`` and its normalisation. The convolution keeps its bias beside batch norm, where it is idle, so that
    both arms draw the same weights."""
    return [conv, nn.BatchNorm2d(conv.out_channels)] if model.norm == "batch" else [conv]


@torch.no_grad()
def initialise(network: Network, model: ModelConfig) -> None:
    """Set the starting weights that ``model.init`` and ``model.init_output`` ask for.

    They are drawn from a generator of their own, seeded as the global one was: the arms of ``init`` leave the same
    biases, gates and random state behind, and the arms of ``attention`` the same convolutions.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for conv in network.convolutions():
        if model.init == "gaussian":
            nn.init.normal_(conv.weight, std=0.01, generator=generator)
        elif model.init == "kaiming":
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    if model.init_output == "zero":
        for weight in network.output.parameters():
            nn.init.zeros_(weight)
