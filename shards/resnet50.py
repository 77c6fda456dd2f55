"""ResNet-50 under torchvision's names, so that its weight files fit: torchvision itself is not needed, and beside a
CPU build of torch the one on the package index cannot be imported."""

import torch
from torch import Tensor, nn

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""Width and number of the blocks of each stage (He 2016, CVPR, table 1)."""

EXPANSION = 4
"""Output channels of a block, as a multiple of its width."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside a shortcut; the stride is in the 3x3, as torchvision has it."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = nn.Sequential()  # the first block of a stage changes the shape, the others' shortcut is plain
        if channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """Images (B, 3, H, W), normalised as ImageNet's, to the 2048 pooled features before the classifier, (B, 2048).

    The classifier ``fc`` is there so that weight files fit strictly: one of another network is refused, not used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for number, (width, blocks) in enumerate(STAGES, start=1):
            stage = []
            for block in range(blocks):
                stage.append(Bottleneck(channels, width, stride=2 if number > 1 and block == 0 else 1))
                channels = width * EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.fc = nn.Linear(channels, 1000)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x.mean((2, 3))
