"""Attention gates of CBAM (Woo 2018, ECCV, arXiv:1807.06521): which channels, then which pixels, count.

A gate learns from patches of 55 x 55 and is used on slices of 512 x 512. Spatial attention looks at 7 x 7 pixels and
does not mind; channel attention pools over the whole input, and a patch of lung has other averages than a slice. At
inference channel attention can therefore pool around each pixel over a window of the size it was trained on (test-time
local conversion, Chu 2022, ECCV, arXiv:2112.04491).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldct.models.network import Network, Stage
from shards.common.command import InputError

KINDS = {"none": (), "channel": ("channel",), "spatial": ("spatial",), "both": ("channel", "spatial")}
"""What stands behind a stage, in the order of its use."""


class ChannelGate(nn.Module):
    """x * sigmoid(MLP(mean of x) + MLP(max of x)): one weight per channel (CBAM, equation 2).

    Parameters
    ----------
    channels : int
        Channels of x.
    reduction : int
        Channels per hidden unit of the MLP, which has no biases; there is at least one hidden unit.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.sigmoid = nn.Sigmoid()  # a module, so that a hook can read the weights
        self.window: int | None = None
        """Side of the pooling window in feature pixels; None = the whole input. See pool_locally."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.window is None or self.window >= max(height, width):
            values = by_pixel(x).flatten(1, 2)
            mean, most = values.mean(1), highest(values, 1)
            return x * self.sigmoid(self.mlp(mean[..., None, None]) + self.mlp(most[..., None, None]))
        window = min(self.window, height), min(self.window, width)
        squeeze, relu, excite = self.mlp
        # a sum over channels and a mean over pixels may change places: fewer maps to pool
        mean = sliding(squeeze(x), window, window_mean).to(x.dtype)
        most = squeeze(sliding(countable(x), window, window_max).view(x.dtype))
        return x * self.sigmoid(spread(excite(relu(mean) + relu(most)), height, width))


class SpatialGate(nn.Module):
    """x * sigmoid(conv 7 x 7 of (mean, max) over the channels): one weight per pixel (CBAM, equation 3)."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        values = by_pixel(x)
        return x * self.sigmoid(self.conv(torch.stack([values.mean(3), highest(values, 3)], 1)))


def by_pixel(x: Tensor) -> Tensor:
    """``x`` (B, C, H, W) seen as (B, H, W, C): in channels_last the order in memory, so that what is computed from it,
    gradients above all, has that order too.

    Over the axes of ``x`` itself a gate takes 14 to 16 ms forward and backward, because torch adds up gradients of two
    orders; this way 10 to 12; and 6.6 with max in place of amax, which splits its gradient among equals (16 x 96 x 47 x
    47, bf16, 2 CPU cores).
    """
    return x.permute(0, 2, 3, 1)


def highest(values: Tensor, axis: int) -> Tensor:
    """Maxima along ``axis``; where gradients are kept, each leads to one of equal ones.

    Where none are kept, in fp32 and without the index, which takes 8 times as long to find.
    """
    if torch.is_grad_enabled():
        return values.max(axis).values
    return values.float().amax(axis).to(values.dtype) if values.dtype == torch.bfloat16 else values.amax(axis)


def gates(kind: str, numbers: list[int] | None, stages: list[Stage]) -> nn.ModuleDict:
    """The gates of a network by the number of their stage: {"1": Sequential(channel=..., spatial=...), ...}.

    Both gates are drawn for every stage and the ones not wanted dropped: a gate that two arms share starts with
    the same weights in both, and every arm leaves the same random state behind. Made after the convolutions.

    Raises
    ------
    InputError
        If the network has no stage of such a number, or none is named.
    """
    valid = range(1, len(stages) + 1)
    wanted = list(valid) if numbers is None else numbers
    if not wanted or not set(wanted) <= set(valid):
        raise InputError(f"model.attention_stages: expected some of {', '.join(map(str, valid))}, found {numbers}")
    drawn = {i: {"channel": ChannelGate(stages[i - 1].channels), "spatial": SpatialGate()} for i in valid}
    chosen = nn.ModuleDict()
    for number in sorted(set(wanted)) if kind != "none" else ():
        chosen[str(number)] = nn.Sequential()
        for name in KINDS[kind]:
            chosen[str(number)].add_module(name, drawn[number][name])
    return chosen


def gated(gates: nn.ModuleDict, number: int, features: Tensor) -> Tensor:
    """``features`` of stage ``number`` behind its gate, where it has one."""
    return gates[str(number)](features) if str(number) in gates else features


def each_gate(network: Network) -> Iterator[tuple[int, ChannelGate | SpatialGate]]:
    """Every gate with the number of its stage; two at a stage with both kinds of attention, in the order of use."""
    for number, stage in network.gates.items():
        yield from ((int(number), gate) for gate in stage.children() if isinstance(gate, ChannelGate | SpatialGate))


@contextmanager
def pool_locally(network: Network, patch: int) -> Iterator[None]:
    """Within the block, channel attention pools over windows as large as on a training patch.

    Parameters
    ----------
    network : Network
        Its channel gates are switched, and switched back at the end.
    patch : int
        Side of the training patches in pixels.
    """
    switched = []
    for number, gate in each_gate(network):
        if isinstance(gate, ChannelGate):
            switched.append((gate, gate.window))
            gate.window = network.feature_size(number, patch)
    try:
        yield
    finally:
        for gate, window in switched:
            gate.window = window


def spread(pooled: Tensor, height: int, width: int) -> Tensor:
    """Values of every window inside the image as a map of (height, width): each pixel gets those of the window
    centred on it, or, near an edge, of the nearest window that lies inside."""
    top, left = (height - pooled.shape[-2]) // 2, (width - pooled.shape[-1]) // 2
    bottom, right = height - pooled.shape[-2] - top, width - pooled.shape[-1] - left
    return F.pad(pooled, (left, right, top, bottom), mode="replicate")


def sliding(x: Tensor, window: tuple[int, int], pool: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """``pool`` of ``x`` (B, C, H, W) over every ``window`` (h, w) inside it: (B, C, H-h+1, W-w+1).

    16 channels at a time: at 512 x 512 and 96 channels that is four times as fast as all at once, and takes a sixth
    of the memory.
    """
    parts = [pool(pool(part, 2, window[0]), 3, window[1]) for part in x.split(16, 1)]
    return torch.cat(parts, 1)


def countable(x: Tensor) -> Tensor:
    """``x``, or in bf16 on a CPU the same bits as integers, whose maxima are those of ``x`` and found twice as fast.

    Bits of floats have the order of the floats as long as none is negative, and features behind a ReLU are not.
    """
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return x
    bits = x.view(torch.int16)
    return bits if bits.amin() >= 0 else x


def window_max(x: Tensor, axis: int, size: int) -> Tensor:
    """Maxima of every ``size`` neighbours along ``axis``, from windows twice as wide at each pass."""
    covers = 1
    while covers < size:
        step = min(covers, size - covers)
        x = torch.maximum(x.narrow(axis, 0, x.shape[axis] - step), x.narrow(axis, step, x.shape[axis] - step))
        covers += step
    return x


def window_mean(x: Tensor, axis: int, size: int) -> Tensor:
    """Means of every ``size`` neighbours along ``axis``, in float32 or better.

    The sum is put together from windows of 1, 2, 4, ... neighbours, those in the binary digits of ``size``: log2
    passes, and none of the rounding of a running sum.
    """
    power = x.to(torch.promote_types(x.dtype, torch.float32))
    length, offset, covers = x.shape[axis] - size + 1, 0, 1
    total = torch.zeros_like(power.narrow(axis, 0, length))
    while covers <= size:
        if size & covers:
            total = total + power.narrow(axis, offset, length)
            offset += covers
        if 2 * covers <= size:
            reach = power.shape[axis] - covers
            power = power.narrow(axis, 0, reach) + power.narrow(axis, covers, reach)
        covers *= 2
    return total / size
