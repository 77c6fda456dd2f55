"""RED-CNN and U-Net as people use them today, to measure beside: fp32, NCHW, eager, one process, float64 files.

Written from the public descriptions (Chen 2017, IEEE TMI 36:2524; Ronneberger 2015, MICCAI) and from how the most used
public implementation of RED-CNN prepares its data and trains: pixels normalised beforehand and saved as float64 .npy,
read by a DataLoader, cast to fp32; MSE and Adam. Two departures, so that it minimises the same function as ours and the
losses can be compared: no ReLU after RED-CNN's last addition (it would cut off negative values), and U-Net adds its
input to its output. Either costs one pass over a single channel.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ldct.config import ModelConfig, networks
from ldct.data.hu import denormalise, normalise
from shards.common.command import InputError


class RedCNN(nn.Module):
    """Five 5 x 5 convolutions without padding, five transposed ones, ReLUs, three skips; (B, 1, H, W)."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        if depth != networks()["redcnn"].depth:
            raise InputError(f"the baseline of RED-CNN has the published depth only, found {depth}")
        self.conv1 = nn.Conv2d(1, channels, 5)
        self.conv2 = nn.Conv2d(channels, channels, 5)
        self.conv3 = nn.Conv2d(channels, channels, 5)
        self.conv4 = nn.Conv2d(channels, channels, 5)
        self.conv5 = nn.Conv2d(channels, channels, 5)
        self.tconv1 = nn.ConvTranspose2d(channels, channels, 5)
        self.tconv2 = nn.ConvTranspose2d(channels, channels, 5)
        self.tconv3 = nn.ConvTranspose2d(channels, channels, 5)
        self.tconv4 = nn.ConvTranspose2d(channels, channels, 5)
        self.tconv5 = nn.ConvTranspose2d(channels, 1, 5)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        second = self.relu(self.conv2(self.relu(self.conv1(x))))
        fourth = self.relu(self.conv4(self.relu(self.conv3(second))))
        out = self.tconv1(self.relu(self.conv5(fourth)))
        out = self.tconv2(self.relu(out + fourth))
        out = self.tconv3(self.relu(out))
        out = self.tconv4(self.relu(out + second))
        return self.tconv5(self.relu(out)) + x


class UNet(nn.Module):
    """64 to 1024 channels and back, padded convolutions, transposed convolutions of 2 x 2; (B, 1, H, W)."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        widths = [channels * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([1, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[-2::-1])
        self.join = nn.ModuleList(_double(2 * width, width) for width in widths[-2::-1])
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        multiple, (height, width) = 2 ** len(self.up), x.shape[-2:]
        rows, columns = -height % multiple, -width % multiple
        left, top = columns // 2, rows // 2
        out = F.pad(x, (left, columns - left, top, rows - top), mode="replicate")
        skips = []
        for number, stage in enumerate(self.down):
            out = stage(self.pool(out) if number else out)
            skips.append(out)
        skips.pop()
        for up, stage in zip(self.up, self.join, strict=True):
            out = stage(torch.cat([skips.pop(), up(out)], 1))
        return x + self.last(out)[..., top : top + height, left : left + width]


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
    )


BASELINES: dict[str, Callable[[int, int], nn.Module]] = {"redcnn": RedCNN, "unet": UNet}
"""By the name of our network: a function of channels and depth. A network may have none."""


def create(model: ModelConfig, weights: dict[str, Tensor]) -> nn.Module:
    """The baseline of our network ``model`` with its weights: the same layers in the same order under other names.

    Raises
    ------
    InputError
        If ours has other layers: attention, batch norm, another depth of RED-CNN or another kernel; or no baseline.
    """
    assert model.channels and model.depth  # config.resolved
    if model.name not in BASELINES:
        raise InputError(f"{model.name} has no baseline; there are those of {', '.join(BASELINES)}")
    network = BASELINES[model.name](model.channels, model.depth)
    own = network.state_dict()
    if [value.shape for value in own.values()] != [value.shape for value in weights.values()]:
        raise InputError("the baseline has neither attention nor batch norm, and the published kernels and depth only")
    network.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    return network


def write_patches(pairs: Tensor, numbers: list[int], folder: Path, normalization: str) -> None:
    """Write int16 HU pairs (n, 2, p, p) as ``NUMBER.npy``: normalised, float64, (2, p, p)."""
    for number, pair in zip(numbers, normalise(pairs, normalization).double().numpy(), strict=True):
        np.save(folder / f"{number}.npy", pair)


class Patches(Dataset):
    """The files of write_patches: ``[number]`` is (low dose, full dose), float64 (1, p, p)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        low, full = np.load(self.folder / f"{number}.npy")
        return low[None], full[None]


def training(
    network: nn.Module, folder: Path, batches: list[list[int]], lr: float, device: torch.device, workers: int
) -> Iterator[Tensor]:
    """Train; gives the loss of every step. ``batches`` are numbers of files in ``folder``, as they are used."""
    network = network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    loader = DataLoader(Patches(folder), batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda")
    for low, full in loader:
        loss = F.mse_loss(network(low.float().to(device)), full.float().to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.detach()


@torch.no_grad()
def denoise(network: nn.Module, hu: np.ndarray, normalization: str, device: torch.device) -> np.ndarray:
    """Denoise one slice: HU of any dtype in, float64 HU out, (H, W)."""
    values = normalise(torch.from_numpy(hu.astype(np.float64)), normalization)
    output = network(values[None, None].to(device))
    return denormalise(output[0, 0], normalization).double().cpu().numpy()
