"""A trained run as a function from HU to HU."""

from pathlib import Path

import numpy as np
import torch

from ldct import checkpoint, models
from ldct import config as configuration
from ldct.baselines import to_hu
from ldct.data import denormalise, normalise
from ldct.inference import denoise
from shards.command import InputError


def pick_device(name: str) -> torch.device:
    """The device called ``name``; auto = the GPU where there is one.

    Raises
    ------
    InputError
        If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name}: {str(error).splitlines()[0]}; expected auto, cpu, cuda or cuda:N") from None
    return device


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU with its threads: what a speed belongs to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


class Denoiser:
    """The best checkpoint of a run (its averaged weights, if the run averages), in fp32.

    Attributes
    ----------
    step : int
        Optimizer step of the checkpoint.
    mode : str
        How a network trained on patches is used on slices, for people.
    """

    def __init__(self, run: Path, device: torch.device) -> None:
        best = checkpoint.read_best(run)
        self.config = configuration.from_dict(best["config"])
        self.step, self.patch, self.device = best["step"], best["patch"], device
        pooled = self.config.model.attention in ("channel", "both")
        self.mode = "whole slice at once" + f", channel attention over {self.patch}x{self.patch} windows" * pooled
        self.model = models.create(self.config.model)
        self.model.load_state_dict(best["model"])
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, low: np.ndarray) -> np.ndarray:
        """Denoise slices: int16 HU, shape (H, W) or (B, H, W), in and out.

        What the scheme clips away before the network (metal above 2000 HU, padding) is added again behind it.
        """
        scheme, hu = self.config.data.scheme, torch.from_numpy(low).to(self.device).reshape(-1, 1, *low.shape[-2:])
        values = normalise(hu, scheme)
        output = denormalise(denoise(self.model, values, self.patch), scheme) + (hu - denormalise(values, scheme))
        return to_hu(output.reshape(low.shape).cpu().numpy())
