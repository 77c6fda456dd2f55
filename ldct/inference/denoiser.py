"""A trained run as a function from HU to HU."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldct import config as configuration
from ldct import models
from ldct.data.hu import denormalise, normalise, to_hu
from ldct.device import full_precision
from ldct.models.whole_slice import denoise
from ldct.runs import checkpoint


class Denoiser:
    """The best checkpoint of a run (its averaged weights, if the run averages).

    Attributes
    ----------
    name : str
        The run's.
    about : str
        Network, run and checkpoint, in words.
    step : int
        Optimizer step of the checkpoint.
    mode : str
        How a network trained on patches is used on slices, for people.
    precision : str
        What convolutions compute in: as the run was trained and validated. docs/speed.md has bf16's distance from fp32.
    """

    def __init__(self, run: Path, device: torch.device) -> None:
        full_precision()
        best = checkpoint.read_best(run)
        self.config = configuration.from_dict(best["config"])
        self.step, self.patch, self.device = best["step"], best["patch"], device
        self.name, self.precision = run.resolve().name, self.config.train.precision
        digest = hashlib.sha256((run / "checkpoints" / checkpoint.BEST).read_bytes()).hexdigest()
        self.about = f"{self.config.model.name} of run {self.name}, step {self.step}, checkpoint {digest[:8]}"
        pooled = self.config.model.attention in ("channel", "both")
        self.mode = "whole slice at once" + f", channel attention over {self.patch}x{self.patch} windows" * pooled
        self.model = models.create(self.config.model)
        self.model.load_state_dict(best["model"])
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, low: np.ndarray) -> np.ndarray:
        """Denoise slices: int16 HU, shape (H, W) or (B, H, W), in and out."""
        images = torch.from_numpy(low).to(self.device).reshape(-1, 1, *low.shape[-2:])
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = through(partial(denoise, self.model, patch=self.patch), images, self.config.data.normalization)
        return to_hu(output.reshape(low.shape).cpu().numpy())


def through(network: Callable[[Tensor], Tensor], hu: Tensor, normalization: str) -> Tensor:
    """``network``, of normalised values, applied to HU; float32 (B, 1, H, W).

    What the normalization clips away before the network (metal above 2000 HU, padding) is added again behind it.
    """
    values = normalise(hu, normalization)
    return denormalise(network(values), normalization) + (hu - denormalise(values, normalization))
