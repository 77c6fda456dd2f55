"""The configuration of a run: one dataclass per concern, every field documented, checked when it is made.

fields.py      the dataclasses
parsing.py     files, flags and nested fields to a Config
identity.py    a Config as text; what makes two of them the same run
networks.py    the networks' published sizes, read from their own files
renamed.py     names that version 0.1 had
"""

from ldct.config.fields import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrackConfig,
    TrainConfig,
    ValConfig,
)
from ldct.config.identity import RESUMABLE, decisive, differences, flat, hash8, resumable, to_dict, to_yaml
from ldct.config.networks import Published, networks
from ldct.config.parsing import explain, from_dict, instantiate, load, parse, parser, resolved

__all__ = [
    "RESUMABLE",
    "Config",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "Published",
    "TrackConfig",
    "TrainConfig",
    "ValConfig",
    "decisive",
    "differences",
    "explain",
    "flat",
    "from_dict",
    "hash8",
    "instantiate",
    "load",
    "networks",
    "parse",
    "parser",
    "resolved",
    "resumable",
    "to_dict",
    "to_yaml",
]
