"""U-Net (Ronneberger 2015, MICCAI): pooling down to high-level features, and back with skips."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldct.config import ModelConfig
from ldct.models.cbam import gated, gates
from ldct.models.network import FirstConv2d, Network, Stage, convolve, register

PUBLISHED = {
    "label": "U-Net",
    "channels": 64,
    "depth": 4,
    "kernel": 3,
    "parameters": 31_030_593,
    "source": "Ronneberger 2015, MICCAI",
}
"""Depth: down-samplings. Read by ldct/config/networks.py, which does not import this file: literals only."""


@register
class UNet(Network):
    """``depth`` times two convolutions and a 2 x 2 max-pool, two convolutions at the bottom, and back up.

    Convolutions keep the size (zero padding), as in most uses since; images of any size are padded to a multiple of
    2**depth by repeating the edge, and cropped at the end. The way up takes transposed convolutions of 2 x 2 and joins
    the skip's channels. ``residual`` adds the input to the output. A gate stands behind a stage's two convolutions;
    stages 1 to depth lead down, stage depth + 1 is the bottom; what skips carry has passed its gate.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        assert model.channels and model.depth and model.kernel  # config.resolved
        depth, self.kernel = model.depth, model.kernel
        self.residual, self.multiple = model.residual, 2**depth
        widths = [model.channels * 2**i for i in range(depth + 1)]
        self.stages = [Stage(width, 0, 2**i) for i, width in enumerate(widths)]
        self.encoder = nn.ModuleList(
            double(1 if i == 0 else widths[i - 1], width, model) for i, width in enumerate(widths)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1]))
        self.decoder = nn.ModuleList(double(2 * width, width, model) for width in reversed(widths[:-1]))
        self.output = nn.Conv2d(widths[0], 1, 1)
        self.gates = gates(model.attention, model.attention_stages, self.stages)

    def receptive_field(self) -> int:
        depth, reach = len(self.stages) - 1, self.kernel - 1  # two convolutions reach kernel - 1 pixels to each side
        widest = 0
        for pixel in range(self.multiple):  # it depends on where in its pooling window the pixel lies
            low = high = pixel
            for _ in range(depth):  # from the output down to the bottom ...
                low, high = (low - reach) // 2, (high + reach) // 2
            low, high = low - reach, high + reach
            for _ in range(depth):  # ... and up to the input
                low, high = 2 * low - reach, 2 * high + 1 + reach
            widest = max(widest, high - low + 1)
        return widest

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        left, right, top, below = self.padding(height, width)
        features = F.pad(x, (left, right, top, below), mode="replicate")
        skips = []
        for number, block in enumerate(self.encoder, start=1):
            features = gated(self.gates, number, block(features))
            if number < len(self.encoder):
                skips.append(features)
                features = self.pool(features)
        for up, block in zip(self.up, self.decoder, strict=True):
            features = block(torch.cat([skips.pop(), up(features)], 1))
        out = self.output(features)[..., top : top + height, left : left + width]
        return x + out if self.residual else out


def double(inputs: int, outputs: int, model: ModelConfig) -> nn.Sequential:
    """Two convolutions that keep the size, each followed by its normalisation and ReLU."""
    assert model.kernel
    padding, first = model.kernel // 2, FirstConv2d if inputs == 1 else nn.Conv2d
    return nn.Sequential(
        *convolve(first(inputs, outputs, model.kernel, padding=padding), model),
        nn.ReLU(),
        *convolve(nn.Conv2d(outputs, outputs, model.kernel, padding=padding), model),
        nn.ReLU(),
    )
