"""RED-CNN (Chen 2017, IEEE TMI 36:2524): no pooling, low-level detail carried to the end."""

from torch import Tensor, nn

from ldct.config import ModelConfig
from ldct.models.cbam import gated, gates
from ldct.models.network import FirstConv2d, Network, Stage, convolve, register
from shards.common.command import InputError

PUBLISHED = {
    "label": "RED-CNN",
    "channels": 96,
    "depth": 5,
    "kernel": 5,
    "parameters": 1_848_865,
    "source": "Chen 2017, IEEE TMI 36:2524",
}
"""Depth: convolutions. Read by ldct/config/networks.py, which does not import this file: literals only."""


@register
class RedCNN(Network):
    """``depth`` convolutions without padding, then as many transposed ones: 55 -> 35 -> 55 pixels.

    Skips lead from the input and from behind every even convolution to behind the transposed convolution of the same
    size, added before its ReLU. The input's skip is ``residual``. A stage is a convolution with its
    ReLU; its gate stands behind it, and what skips carry has passed it.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        assert model.channels and model.depth and model.kernel  # config.resolved
        channels, kernel = model.channels, model.kernel
        self.residual, self.multiple, self.kernel = model.residual, 1, kernel
        self.stages = [Stage(channels, i * (kernel - 1) // 2, 1) for i in range(1, model.depth + 1)]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                *convolve(nn.Conv2d(channels, channels, kernel) if i else FirstConv2d(1, channels, kernel), model),
                nn.ReLU(),
            )
            for i in range(model.depth)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*convolve(nn.ConvTranspose2d(channels, channels, kernel), model))
            for _ in range(model.depth - 1)
        )
        self.output = nn.ConvTranspose2d(channels, 1, kernel)
        self.relu = nn.ReLU()
        self.gates = gates(model.attention, model.attention_stages, self.stages)

    def receptive_field(self) -> int:
        return 1 + 2 * len(self.stages) * (self.kernel - 1)

    def forward(self, x: Tensor) -> Tensor:
        smallest = 1 + len(self.stages) * (self.kernel - 1)
        if min(x.shape[-2:]) < smallest:
            raise InputError(
                f"RED-CNN of depth {len(self.stages)} and kernel {self.kernel}: expected an image of "
                f"{smallest} x {smallest} pixels or more, found {x.shape[-2]} x {x.shape[-1]}; lower one of them"
            )
        features, skips = x, {}
        for number, block in enumerate(self.encoder, start=1):
            features = gated(self.gates, number, block(features))
            if number % 2 == 0:
                skips[len(self.encoder) - number] = features
        for number, layer in enumerate(self.decoder, start=1):
            features = layer(features)
            features = self.relu(features + skips[number] if number in skips else features)
        out = self.output(features)
        return x + out if self.residual else out
