"""How the weights move: optimizer, learning rate, moving average, and what happens to a gradient that is not finite."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ldct.config import OptimConfig
from ldct.models.network import Network

NEVER = 2**62
"""Stands for "no step" where the smallest step is looked for."""


def create(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of ``optim.name``, in its fused form: one kernel, or one pass over memory, per update."""
    if config.name == "adam":
        return torch.optim.Adam(parameters, config.lr, fused=True)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=True)


class LearningRate:
    """Learning rate by step: linear warm-up, then constant, half a cosine to zero, or halved where validation stalls.

    But for plateau it is a function of the step alone.
    """

    def __init__(self, config: OptimConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        self.factor, self.best, self.stalls = 1.0, -math.inf, 0

    def at(self, step: int) -> float:
        """Learning rate of the update number ``step``, from 0."""
        config = self.config
        if step < config.warmup:
            return config.lr * (step + 1) / config.warmup
        if config.schedule == "cosine":
            part = (step - config.warmup) / max(1, self.steps - config.warmup)
            return config.lr * (1 + math.cos(math.pi * min(1.0, part))) / 2
        return config.lr * self.factor

    def validated(self, value: float) -> None:
        """Hear of a validation (larger is better); plateau lowers the learning rate after plateau_patience stalls."""
        if value > self.best:
            self.best, self.stalls = value, 0
            return
        self.stalls += 1
        if self.config.schedule == "plateau" and self.stalls >= self.config.plateau_patience:
            self.factor, self.stalls = self.factor * self.config.plateau_factor, 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"factor": self.factor, "best": self.best, "stalls": self.stalls}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state."""
        self.factor, self.best, self.stalls = state["factor"], state["best"], state["stalls"]


class Average:
    """Exponential moving average of a model's weights and buffers, in a copy of the model.

    The decay is min(``decay``, (1 + step) / (10 + step)), so that the random start is forgotten early (as
    TensorFlow's ExponentialMovingAverage does with num_updates).
    """

    def __init__(self, model: Network, copy: Network, decay: float) -> None:
        self.model, self.copy, self.decay = model, copy, decay
        self.copy.requires_grad_(False).eval()
        self.copy.load_state_dict(model.state_dict())
        # the tensors themselves, which stay where they are: to list them again would take longer than to move them
        pairs = list(zip(self.copy.state_dict().values(), model.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self.averages, self.weights = map(list, zip(*floats, strict=True))
        self.counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self, step: int) -> None:
        """Move the average after update number ``step``, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
        for average, count in self.counts:  # batch norm's count of batches
            average.copy_(count)


class FiniteGuard:
    """Notes the first step whose loss or gradient is not finite, on the device, so that no step has to wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.first = torch.tensor([NEVER, NEVER], device=device)

    def note(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Look at this rank's loss and the norm of the averaged gradient of ``step``."""
        self.first = torch.where(torch.stack([loss, norm]).isfinite(), self.first, self.first.clamp(max=step))

    def firsts(self) -> tuple[int, int]:
        """First step with a loss, and with a gradient, that was not finite; NEVER if there was none."""
        loss, gradient = self.first.tolist()
        return loss, gradient
