"""The networks by name. Every variant goes through one code path; see ModelConfig for the switches.

A network is one file: ldct/models/NAME.py, with its published sizes in PUBLISHED and its class under @register.
"""

import dataclasses
import importlib
from dataclasses import dataclass

import torch

from ldct.config import ModelConfig, networks, resolved
from ldct.models.network import REGISTERED, Network, initialise


def names() -> list[str]:
    """Names that ModelConfig.name may have."""
    return list(networks())


def create(model: ModelConfig) -> Network:
    """The network that ``model`` describes, with its starting weights drawn from torch's global generator.

    With the same seed, two arms (of attention, norm, init, init_output or residual) start with the same weights in all
    that they share.

    Raises
    ------
    InputError
        If ``model.attention_stages`` names a stage that the network does not have.
    """
    model = resolved(model)
    importlib.import_module(f"{__name__}.{model.name}")
    network = REGISTERED[model.name](model)
    initialise(network, model)
    return network


@dataclass(frozen=True)
class Description:
    """What can be said of a network before it is trained."""

    parameters: int
    """Trainable parameters in all."""
    attention_parameters: int
    """Of these, the gates'."""
    receptive_field: int
    """Side in pixels of the input window that the convolutions let one output pixel see."""
    stages: int
    """Encoder stages, where a gate can stand."""


def describe(model: ModelConfig) -> Description:
    """Size and reach of the network that ``model`` describes; takes no memory and no random numbers."""
    with torch.device("meta"):
        network = create(dataclasses.replace(model, init="default"))
    return Description(
        parameters=sum(weight.numel() for weight in network.parameters()),
        attention_parameters=sum(weight.numel() for weight in network.gates.parameters()),
        receptive_field=network.receptive_field(),
        stages=len(network.stages),
    )
