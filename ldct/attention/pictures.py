"""What attention shows, in pictures over real anatomy: spatial maps and feature maps at every depth."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from ldct.models.cbam import SpatialGate, each_gate
from ldct.models.network import Network
from ldct.models.whole_slice import denoise
from shards.common.atomic import atomic


def pictures(network: Network, low: Tensor, folder: Path, patch: int = 55, channels: int = 4) -> list[Path]:
    """Spatial maps and features per depth over one slice, as PNG.

    Parameters
    ----------
    network : Network
        The bare network.
    low : Tensor
        Low-dose slice, float (1, 1, H, W), normalised, on the network's device.
    folder : Path
        Gets features.png, and attention.png where there is spatial attention.
    patch : int
        Side of the training patches in pixels, for channel attention (see ldct/models/whole_slice.py).
    channels : int
        Features shown per depth: those that vary most over the slice.

    Returns
    -------
    list of Path
        The files written.
    """
    maps: dict[int, Tensor] = {}
    features: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for stage, module in enumerate(network.encoder, start=1):
            hooks.enter_context(module.register_forward_hook(keep(features, stage, channels)))
        for stage, gate in each_gate(network):
            if isinstance(gate, SpatialGate):
                hooks.enter_context(gate.sigmoid.register_forward_hook(keep(maps, stage, 1)))
        denoise(network, low, patch)
    image = low[0, 0].float().cpu()
    written = [save_panels(folder / "features.png", image, features)]
    return [*written, save_panels(folder / "attention.png", image, maps)] if maps else written


def keep(kept: dict[int, Tensor], stage: int, channels: int) -> Callable[[nn.Module, Any, Tensor], None]:
    """Hook that puts the ``channels`` channels of a module's output that vary most into ``kept``."""

    def hook(module: nn.Module, inputs: Any, out: Tensor) -> None:
        spread = out[0].float().std((1, 2), correction=0)
        kept[stage] = out[0, spread.topk(min(channels, len(spread))).indices].float().cpu()

    return hook


def save_panels(path: Path, image: Tensor, shown: dict[int, Tensor]) -> Path:
    """Write a column of panels per stage, ``shown`` as (n, h, w), right of the low-dose ``image``. Every panel has its
    own range of grey, given above it, from the 2nd to the 98th percentile."""
    rows = max(map(len, shown.values()))
    figure = Figure(figsize=(2.6 * (len(shown) + 1), 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, len(shown) + 1, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].imshow(image.numpy(), cmap="gray")
    axes[0, 0].set_title("low dose", fontsize=8)
    for column, (stage, panels) in enumerate(shown.items(), start=1):
        for row, panel in enumerate(panels):
            low, high = np.percentile(panel.numpy(), (2, 98))
            axes[row, column].imshow(panel.numpy(), cmap="gray", vmin=low, vmax=high)
            axes[row, column].set_title(f"stage {stage}: {low:.3g} to {high:.3g}", fontsize=8)
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
