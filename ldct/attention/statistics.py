"""What attention shows, in numbers per stage, while training or validating.

At a stage with channel attention, the question is whether the network selects channels there: the standard deviation of
the weights across channels is large where it does. At a stage with spatial attention it is what the map follows: edges
(the input's gradient magnitude) or texture (its local standard deviation).
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldct.metrics import names
from ldct.models.cbam import ChannelGate, by_pixel, each_gate
from ldct.models.network import Network

CHANNEL = ("channel_mean", "channel_sd", "channel_entropy", "channel_over_0.9", "channel_under_0.1")
"""Mean of the weights; standard deviation across channels; entropy of the weights as shares of their sum, over its
largest value log(channels), so 1 = all alike; share of channels above 0.9 and below 0.1."""

SPATIAL = ("spatial_mean", "spatial_sd", "spatial_edges", "spatial_texture")
"""Mean and standard deviation of the map over the pixels; its correlation (Pearson) with edges and with texture."""

BINS = 20
"""Equal bins of the histogram of the channel weights over 0..1."""

TEXTURE_WINDOW = 7
"""Side in pixels of the window of the local standard deviation."""


class Collector:
    """Sums over the images seen, made by ``collect``.

    Every image counts the same, however the images were batched. ``sums`` is one float64 tensor on the network's
    device, so that nothing waits for it while images go through: sums of several processes add up (all-reduce it before
    reading) to those of one that saw all images.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.stages = [int(stage) for stage in network.gates]
        self.fields = [*CHANNEL, *SPATIAL]
        width = 2 * len(self.fields) + BINS
        device = next(network.parameters()).device
        self.sums = torch.zeros(len(self.stages), width, dtype=torch.float64, device=device)
        """One row per stage: a sum and a number of images for every field, then the histogram."""
        self.seen: Tensor = torch.empty(0)

    def remember(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of the network: keep its input for the correlations."""
        self.seen = inputs[0].detach().float()

    def channel_hook(self, stage: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, weights: Tensor) -> None:
            weights = weights.detach().float()
            for name, values in channel_values(weights).items():
                self.add(stage, name, values)
            counts = in_bins(weights)
            self.sums[self.stages.index(stage), -BINS:] += counts.double() * len(weights) / weights.numel()

        return hook

    def spatial_hook(self, stage: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, weights: Tensor) -> None:
            weights = weights.detach().float()
            self.add(stage, "spatial_mean", weights.mean((1, 2, 3)))
            self.add(stage, "spatial_sd", weights.std((1, 2, 3), correction=0))
            for name, look in (("spatial_edges", edges), ("spatial_texture", texture)):
                self.add(stage, name, correlation(weights, on_features(self.network, stage, look(self.seen))))

        return hook

    def add(self, stage: int, name: str, values: Tensor) -> None:
        """Count ``values`` (B,), one per image; those that are not defined (nan) are left out."""
        row, column = self.stages.index(stage), 2 * self.fields.index(name)
        self.sums[row, column] += values.double().nan_to_num(0.0).sum()
        self.sums[row, column + 1] += (~values.isnan()).sum()

    def stats(self) -> dict[str, float]:
        """{"attention/<stage>/<stat>": mean over the images}: CHANNEL and SPATIAL, and the relative depth of the stage.

        ``depth`` is 0 at the first and 1 at the last encoder stage, so that networks can be laid side by side. What no
        image defines, such as the correlation of a constant map, is left out.
        """
        deepest = max(1, len(self.network.stages) - 1)
        sums = self.sums.cpu()
        out: dict[str, float] = {}
        for row, stage in enumerate(self.stages):
            out[names.attention(stage, names.DEPTH)] = (stage - 1) / deepest
            for column, statistic in enumerate(self.fields):
                total, number = sums[row, 2 * column : 2 * column + 2].tolist()
                if number:
                    out[names.attention(stage, statistic)] = total / number
        return out

    def histograms(self) -> dict[str, list[float]]:
        """{"attention/<stage>/channel_histogram": shares of the weights in BINS equal bins over 0..1}."""
        return {
            names.attention(stage, names.HISTOGRAM): (row / row.sum()).tolist()
            for stage, row in zip(self.stages, self.sums[:, -BINS:].cpu(), strict=True)
            if row.sum()
        }


@contextmanager
def collect(network: Network) -> Iterator[Collector]:
    """Within the block every pass through ``network`` (bare or inside DDP) is counted; outside, nothing is hooked."""
    collector = Collector(network)
    with ExitStack() as hooks:
        if collector.stages:
            hooks.enter_context(network.register_forward_pre_hook(collector.remember))
        for stage, gate in each_gate(network):
            hook = collector.channel_hook if isinstance(gate, ChannelGate) else collector.spatial_hook
            hooks.enter_context(gate.sigmoid.register_forward_hook(hook(stage)))
        yield collector


def channel_values(weights: Tensor) -> dict[str, Tensor]:
    """CHANNEL for every image of ``weights`` (B, C, h, w), averaged over the positions (h, w) they were pooled at."""
    total = weights.sum(1)
    mean = total / weights.shape[1]
    # in two passes: torch's std over an axis takes ten times as long on a CPU
    sd = (weights - mean[:, None]).square_().mean(1).sqrt()
    # of the shares s = w / total: the sum of -s log s
    entropy = (torch.special.entr(weights).sum(1) / total + total.log()) / max(math.log(weights.shape[1]), 1e-12)
    over, under = ((side.sum(1) / weights.shape[1]) for side in (weights > 0.9, weights < 0.1))
    values = (mean, sd, entropy, over, under)
    return {name: value.mean((1, 2)) for name, value in zip(CHANNEL, values, strict=True)}


def in_bins(weights: Tensor) -> Tensor:
    """How many of ``weights`` lie in each of BINS equal bins over 0..1, int64 (BINS,)."""
    bins = by_pixel(weights * BINS).clamp_(0, BINS - 1).flatten()
    if weights.device.type == "cpu":  # a quarter of the time
        return torch.bincount(bins.to(torch.uint8), minlength=BINS)
    # a GPU's bincount would let the host wait, to see how many bins there are
    return torch.zeros(BINS, dtype=torch.int64, device=bins.device).scatter_add_(
        0, bins.long(), torch.ones_like(bins, dtype=torch.int64)
    )


@functools.cache
def sobel(device: torch.device) -> Tensor:
    """Sobel's two kernels, (2, 1, 3, 3); kept, since the host waits for a copy to a GPU."""
    smooth, differ = torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([-1.0, 0.0, 1.0]) / 2
    return torch.stack([smooth[:, None] * differ, differ[:, None] * smooth])[:, None].to(device)


def edges(image: Tensor) -> Tensor:
    """Gradient magnitude of ``image`` (B, 1, H, W) by Sobel's operator."""
    kernels = sobel(image.device).to(image.dtype)
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernels).square().sum(1, keepdim=True).sqrt()


def texture(image: Tensor) -> Tensor:
    """Standard deviation of ``image`` (B, 1, H, W) within TEXTURE_WINDOW pixels around each pixel."""
    reach = TEXTURE_WINDOW // 2
    padded = F.pad(image - image.mean((2, 3), keepdim=True), (reach,) * 4, mode="replicate")
    mean = F.avg_pool2d(padded, TEXTURE_WINDOW, 1)
    return (F.avg_pool2d(padded.square(), TEXTURE_WINDOW, 1) - mean.square()).clamp(min=0).sqrt()


def on_features(network: Network, stage: int, image: Tensor) -> Tensor:
    """``image`` (B, 1, H, W), of the network's input, on the pixels of the features at ``stage``."""
    where = network.stages[stage - 1]
    padded = F.pad(image, network.padding(*image.shape[-2:]), mode="replicate")
    height, width = (size - where.margin for size in padded.shape[-2:])
    return F.avg_pool2d(padded[..., where.margin : height, where.margin : width], where.stride)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over the pixels, per image of (B, 1, h, w); nan where one of them is constant."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    spread = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(spread > 1e-12, (a * b).sum(1) / spread, math.nan)
