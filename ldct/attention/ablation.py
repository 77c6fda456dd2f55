"""What a gate's choice is worth: with its mean in place of the gate, a stage scales all its features alike."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ldct.models.cbam import each_gate
from ldct.models.network import Network


def gates(network: Network) -> dict[int, list[nn.Module]]:
    """The modules that give a gate's weights, by encoder stage from 1; two at a stage with both kinds of attention."""
    modules: dict[int, list[nn.Module]] = {}
    for stage, gate in each_gate(network):
        modules.setdefault(stage, []).append(gate.sigmoid)
    return modules


@contextmanager
def mean_weights(network: Network) -> Iterator[dict[nn.Module, list[float]]]:
    """Within the block every pass through ``network`` adds each gate's mean weight, over channels and pixels."""
    seen: dict[nn.Module, list[float]] = {module: [] for modules in gates(network).values() for module in modules}

    def note(module: nn.Module, inputs: Any, weights: Tensor) -> None:
        seen[module].append(weights.float().mean().item())

    with ExitStack() as hooks:
        for module in seen:
            hooks.enter_context(module.register_forward_hook(note))
        yield seen


@contextmanager
def constant_gate(network: Network, stage: int, means: dict[nn.Module, float]) -> Iterator[None]:
    """Within the block the gate at ``stage`` gives one weight, its entry in ``means``, to all channels and pixels."""
    gate = network.gates[str(stage)]
    network.gates[str(stage)] = Scaled(math.prod(means[module] for module in gates(network)[stage]))
    try:
        yield
    finally:
        network.gates[str(stage)] = gate


class Scaled(nn.Module):
    """Features times a number, in place of a gate, which then need not be computed."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, features: Tensor) -> Tensor:
        return features * self.weight
