"""A Config as text, and what makes two of them the same run."""

import dataclasses
import hashlib
import json
from collections.abc import Collection
from typing import Any

import yaml

from ldct.config import renamed
from ldct.config.fields import Config

RESUMABLE = (
    "run_dir",
    "data.shards",
    "data.store",
    "data.stage",
    "train.steps",
    "train.save_every_s",
    "train.keep_every_steps",
    "train.timeout_s",
    "train.hang_s",
    "track",
)
"""What may change between two parts of one run; anything else is another run. The shards are known by their manifest's
hash, not by their folder."""


def to_dict(config: Config) -> dict[str, Any]:
    """Nested fields of ``config``."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The text of config.yaml: every field, in the order of the dataclasses; reading it back gives an equal Config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def flat(config: Config) -> dict[str, Any]:
    """Fields by dotted name: {"model.name": "redcnn", ...}."""
    out: dict[str, Any] = {}
    for section, value in to_dict(config).items():
        if isinstance(value, dict):
            out.update({f"{section}.{key}": v for key, v in value.items()})
        else:
            out[section] = value
    return out


def resumable(name: str) -> bool:
    """Whether the field with this dotted name may change between two parts of one run."""
    return name in RESUMABLE or name.partition(".")[0] in RESUMABLE


def hash8(config: Config, also: Collection[str] = ()) -> str:
    """Eight hex digits that name what is trained: RESUMABLE fields count as if not given, but for those of ``also``."""
    defaults = flat(Config())
    named = {k: defaults[k] if resumable(k) and k not in also else v for k, v in flat(config).items()}
    named = {k: v for k, v in named.items() if k != "run_dir" and not k.startswith("track.")}
    named = renamed.as_first_named(named)
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]


def decisive(config: Config) -> dict[str, Any]:
    """Nested fields that a run cannot change on its way: all but RESUMABLE."""
    kept: dict[str, Any] = {}
    for name, value in flat(config).items():
        section, _, field_name = name.partition(".")
        if not resumable(name):
            kept.setdefault(section, {})[field_name] = value
    return kept


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which ``new`` is another run than ``old``: {name: (old, new)}; RESUMABLE ones do not count."""
    a, b = flat(old), flat(new)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name] and not resumable(name)}
