"""A trained network as a function from HU to HU."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldct import config as configuration
from ldct import models
from ldct.data.hu import denormalise, normalise, to_hu
from ldct.device import advising, full_precision
from ldct.inference import pretrained
from ldct.models.whole_slice import denoise
from ldct.runs import checkpoint
from shards.common.command import InputError
from shards.pixels import PADDING


class NotFinite(InputError):
    """The output of a network is NaN or infinite somewhere, which no image is.

    Attributes
    ----------
    about : str
        Network, run and checkpoint.
    slices : list of int
        Which of the slices given.
    """

    def __init__(self, about: str, slices: list[int]) -> None:
        number = slices[0] + 1
        super().__init__(f"{about}: its output is not finite (NaN or infinite) for slice {number} of those given")
        self.about, self.slices = about, slices


def finite_hu(output: Tensor, about: str) -> np.ndarray:
    """A network's output in HU, float (H, W) or (B, H, W), as int16; NotFinite if it is no image."""
    return to_hu(_finite(output, about))


def _finite(output: Tensor, about: str) -> np.ndarray:
    bad = ~torch.isfinite(output).flatten(-2).all(-1).reshape(-1)
    if bad.any():
        raise NotFinite(about, bad.nonzero().flatten().tolist())
    return output.cpu().numpy()


class Denoiser:
    """The best checkpoint of a run (its averaged weights, if the run averages), or a network that ships.

    Parameters
    ----------
    source : Path
        Run folder, or a weights' file of ldct/inference/pretrained/.

    Attributes
    ----------
    name : str
        The run's or the network's.
    about : str
        Network, run and checkpoint, in words.
    step : int
        Optimizer step of the checkpoint.
    mode : str
        How a network trained on patches is used on slices, for people.
    precision : str
        What convolutions compute in: as the run was trained and validated. docs/speed.md has bf16's distance from fp32.
    """

    def __init__(self, source: Path, device: torch.device) -> None:
        full_precision()
        ships = source.suffix == pretrained.SUFFIX
        best = pretrained.read(source) if ships else checkpoint.read_best(source)
        self.config = configuration.from_dict(best["config"])
        self.step, self.patch, self.device = best["step"], best["patch"], device
        self.precision = self.config.train.precision
        self.name = source.stem if ships else source.resolve().name
        file = source if ships else checkpoint.best_path(source)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        if ships:
            self.about = f"{self.name}, {self.config.model.name}, weights {digest}"
        else:
            self.about = f"{self.config.model.name} of run {self.name}, step {self.step}, checkpoint {digest}"
        pooled = self.config.model.attention in ("channel", "both")
        self.mode = "whole slice at once" + f", channel attention over {self.patch}x{self.patch} windows" * pooled
        self.model = models.create(self.config.model)
        self.model.load_state_dict(best["model"])
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, low: np.ndarray) -> np.ndarray:
        """Denoise slices: int16 HU, shape (H, W) or (B, H, W), in and out; an InputError where memory is short."""
        return to_hu(self.unrounded(low))

    def unrounded(self, low: np.ndarray) -> np.ndarray:
        """As called, in float32 HU."""
        other = "end what else runs here" if self.device.type == "cpu" else "take --device cpu, or end what runs there"
        advice = f"a slice of {low.shape[-2]} x {low.shape[-1]} does not fit into the memory of {self.device}: {other}"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with advising(advice), torch.no_grad(), autocast:
            images = torch.from_numpy(low).to(self.device).reshape(-1, 1, *low.shape[-2:])
            output = through(partial(denoise, self.model, patch=self.patch), images, self.config.data.normalization)
        return _finite(output.reshape(low.shape), self.about)


class Blended:
    """Low dose and denoised, mixed: what a radiologist chooses who wants to keep some of the noise.

    Parameters
    ----------
    model
        Denoiser or Exported.
    strength : float
        0 = the low dose, 1 = what ``model`` gives.
    """

    def __init__(self, model: Any, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise InputError(f"--strength: expected 0 (the input) to 1 (fully denoised), found {strength:g}")
        self.model, self.strength = model, strength
        self.name, self.about = f"{model.name} {strength:.0%}", f"{model.about}, strength {strength:g}"

    def __call__(self, low: np.ndarray) -> np.ndarray:
        """int16 HU, shape (H, W) or (B, H, W), in and out."""
        mixed = low + self.strength * (self.model(low).astype(np.float32) - low)
        return np.clip(np.rint(mixed), np.minimum(low, PADDING), 32767).astype(np.int16)  # of strength 0: low itself


def through(network: Callable[[Tensor], Tensor], hu: Tensor, normalization: str) -> Tensor:
    """``network``, of normalised values, applied to HU; float32 (B, 1, H, W).

    What the normalization clips away before the network (metal above 2000 HU, padding) is added again behind it.
    """
    values = normalise(hu, normalization)
    return denormalise(network(values), normalization) + (hu - denormalise(values, normalization))
