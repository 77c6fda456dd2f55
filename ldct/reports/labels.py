"""What a person calls a run: its network and attention, then what else sets it apart from the others."""

import collections
from pathlib import Path
from typing import Any

from ldct import config as configuration
from ldct.config import Config, ModelConfig

ATTENTION = {"none": "", "channel": " + channel", "spatial": " + spatial", "both": " + channel + spatial"}
SHIPPED = "pretrained"
"""Folder of the runs that ldct/inference/pretrained.py makes of networks that ship; they name no shards, and a sweep of
this name does."""
LABELLED = 5
"""Most fields in a run's label behind its network."""


def tells(field: str) -> bool:
    """Whether the field with this dotted name says what a run is, and not only where and how it was done."""
    return field == "train.steps" or not configuration.resumable(field)


def differing(configs: list[Config]) -> list[str]:
    """Names of the fields in which the runs differ, in the order of the configuration.

    A size that differs only because each network has its published one is not among them.
    """
    flats = [configuration.flat(config) for config in configs]
    published = {
        f"model.{key}"
        for key in ("channels", "depth", "kernel")
        if all(flat[f"model.{key}"] == configuration.networks()[flat["model.name"]].sizes[key] for flat in flats)
    }
    return [
        key
        for key in flats[0]
        if tells(key) and key not in published and any(flat[key] != flats[0][key] for flat in flats)
    ]


def network(model: ModelConfig) -> str:
    """The network and its attention: ``RED-CNN + channel``."""
    return configuration.networks()[model.name].label + ATTENTION[model.attention]


def labels(configs: dict[str, Config]) -> dict[str, str]:
    """A short name for each run: its network and attention, then the fields in which the runs differ.

    A value that more than half of the runs have goes without saying. Where more than LABELLED fields differ, those that
    tell the runs apart, and the run's own name if no few do. A network that ships goes by its own name.
    """
    shipped = {name: config for name, config in configs.items() if ships(config)}
    if shipped:
        others = {name: config for name, config in configs.items() if name not in shipped}
        own = {name: Path(config.run_dir).name for name, config in shipped.items()}
        every = {**labels(others), **own} if others else own
        return {name: every[name] for name in configs}
    networks = {name: network(config.model) for name, config in configs.items()}
    flats = {name: configuration.flat(config) for name, config in configs.items()}
    fields = [key for key in differing(list(configs.values())) if key not in ("model.name", "model.attention")]
    usual = {key: common([flat[key] for flat in flats.values()]) for key in fields}
    few = fields if len(fields) <= LABELLED else telling(fields, list(networks.values()), list(flats.values()))
    short = {
        name: ", ".join([networks[name], *(named(key, flat[key]) for key in few if text(flat[key]) != usual[key])])
        for name, flat in flats.items()
    }
    if few != fields:
        alike = {label for label, count in collections.Counter(short.values()).items() if count > 1}
        short = {name: f"{label}, {name}" if label in alike else label for name, label in short.items()}
    return short


def ships(config: Config) -> bool:
    """Whether a run is a network that ships."""
    return not config.data.shards and Path(config.run_dir).parent.name == SHIPPED


def common(values: list[Any]) -> str | None:
    """The value that more than half of the runs have, as ``text``; None if there is none."""
    (value, count), *_ = collections.Counter(map(text, values)).most_common()
    return value if 2 * count > len(values) else None


def telling(fields: list[str], networks: list[str], flats: list[dict[str, Any]]) -> list[str]:
    """At most LABELLED of ``fields``, each chosen for telling most runs apart beside their networks and those before,
    the model's first."""
    chosen: list[str] = []

    def kinds(keys: list[str]) -> int:
        return len({(name, *(str(flat[key]) for key in keys)) for name, flat in zip(networks, flats, strict=True)})

    while len(chosen) < LABELLED and kinds(chosen) < kinds(fields):
        chosen.append(
            max(sorted(fields, key=lambda key: not key.startswith("model.")), key=lambda key: kinds([*chosen, key]))
        )
    return [key for key in fields if key in chosen]


def named(key: str, value: Any) -> str:
    """A field without its section, and its value, for people."""
    return f"{key.split('.')[-1].replace('_', ' ')} {text(value)}"


def text(value: Any) -> str:
    """A configuration value as a person writes it."""
    if isinstance(value, list):
        return " ".join(map(text, value))
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)
