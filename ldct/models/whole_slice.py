"""Whole slices through a network that learned from patches."""

from contextlib import nullcontext

import torch
from torch import Tensor

from ldct.models.cbam import pool_locally
from ldct.models.network import Network
from shards.common.command import InputError

MODES = ("local", "whole", "tiles")
"""local = the whole slice at once, channel attention pooling around each pixel over a window of the training size;
whole = the whole slice at once, channel attention pooling over all of it, which it never saw in training;
tiles = overlapping tiles of the training size, blended. Without channel attention local and whole are the same."""

PIXELS = 512 * 512
"""Pixels through the network at once, but at least one image: bounds the memory to that of a slice (a map of 96
channels takes 0.1 GB)."""


@torch.no_grad()
def denoise(model: Network, low: Tensor, patch: int, mode: str = "local") -> Tensor:
    """Denoised images, in eval mode; the model is left in the mode it was in. Autocast is the caller's choice.

    Parameters
    ----------
    model : Network
        The bare network, not wrapped in DDP.
    low : Tensor
        Low-dose images, float (B, 1, H, W), normalised, on the model's device.
    patch : int
        Side of the training patches in pixels.
    mode : str
        One of MODES.

    Returns
    -------
    Tensor
        float32 (B, 1, H, W), normalised.

    Raises
    ------
    InputError
        If there is no such mode.
    """
    if mode not in MODES:
        raise InputError(f"inference mode: expected one of {', '.join(MODES)}, found {mode!r}")
    training = model.training
    model.eval()
    try:
        if mode == "tiles":
            return tiled(model, low, patch, patch // 2)
        with pool_locally(model, patch) if mode == "local" else nullcontext():
            return in_parts(model, low)
    finally:
        model.train(training)


def in_parts(model: Network, images: Tensor) -> Tensor:
    """``model`` of ``images``, about PIXELS pixels at a time, as float32."""
    at_once = max(1, PIXELS // (images.shape[-2] * images.shape[-1]))
    return torch.cat([model(part).float() for part in images.split(at_once)])


def tiled(model: Network, images: Tensor, patch: int, overlap: int) -> Tensor:
    """``model`` of overlapping tiles of ``images``, averaged with weights that fall towards a tile's edge.

    Parameters
    ----------
    images : Tensor
        (B, 1, H, W); a side shorter than ``patch`` is taken as one tile.
    patch, overlap : int
        Side of a tile, and the least overlap of neighbours, in pixels. The last tile of a row ends at the edge.
    """
    rows, columns = (min(patch, size) for size in images.shape[-2:])
    corners = [
        (top, left)
        for top in origins(images.shape[-2], rows, overlap)
        for left in origins(images.shape[-1], columns, overlap)
    ]
    weight = ramp(rows).to(images.device)[:, None] * ramp(columns).to(images.device)
    results = []
    for image in images:
        tiles = torch.stack([image[:, top : top + rows, left : left + columns] for top, left in corners])
        total = torch.zeros(image.shape, device=image.device)
        norm = torch.zeros_like(total)
        for (top, left), tile in zip(corners, in_parts(model, tiles), strict=True):
            total[:, top : top + rows, left : left + columns] += tile * weight
            norm[:, top : top + rows, left : left + columns] += weight
        results.append(total / norm)
    return torch.stack(results)


def origins(size: int, patch: int, overlap: int) -> list[int]:
    """First pixels of the tiles that cover ``size`` pixels."""
    return [*range(0, size - patch, max(1, patch - overlap)), size - patch]


def ramp(size: int) -> Tensor:
    """1, 2, ... up to the middle and back down to 1."""
    rise = torch.arange(1, size + 1, dtype=torch.float32)
    return torch.minimum(rise, rise.flip(0))
