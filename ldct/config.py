"""The configuration of a run: one dataclass per concern, every field documented, checked when it is made."""

import copy
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from shards.common.command import InputError

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the docstring under a field becomes its --help

PLAIN = {"redcnn": {"channels": 96, "depth": 5, "kernel": 5}, "unet": {"channels": 64, "depth": 4, "kernel": 3}}
"""Sizes as published: RED-CNN (Chen 2017, IEEE TMI 36:2524) and U-Net (Ronneberger 2015, MICCAI)."""

RESUMABLE = ("run_dir", "data.shards", "data.store", "train.steps", "train.save_every_s", "train.timeout_s", "track")
"""What may change between two parts of one run; anything else is another run. The shards are known by their manifest's
hash, not by their folder."""


def require(ok: bool, field: str, expected: str, found: Any) -> None:
    """Raise the one-line error for a configuration value that cannot be."""
    if not ok:
        raise InputError(f"{field}: expected {expected}, found {found!r}")


@dataclass
class DataConfig:
    """What is read, and in which order."""

    shards: str = ""
    """Folder with manifest.json and the tar shards, written by shards/build.py."""
    normalization: Literal["hu1000", "hu500", "redcnn"] = "hu1000"
    """How HU become network values: hu1000 = clip [-1000, 2000] / 1000; hu500 = (HU + 500) / 500;
    redcnn = (HU + 1024) / 4096."""
    min_body: float = 0.3
    """Smallest share of a tile's pixels above -500 HU for the tile to be trained on; 0 keeps air."""
    window_shards: int = 32
    """Shards shuffled together; bounds the memory that a shuffled read touches. 0 = all shards at once."""
    store: Literal["auto", "mmap", "device"] = "auto"
    """Where the training pairs are read from: the mapped tars, or a copy on the device. auto = device on a GPU where
    they take at most half of its free memory."""
    augment: bool = True
    """Flips and quarter turns, drawn for each pair from (seed, step)."""

    def __post_init__(self) -> None:
        require(0 <= self.min_body <= 1, "data.min_body", "a share between 0 and 1", self.min_body)
        require(self.window_shards >= 0, "data.window_shards", "a number of shards, or 0 for all", self.window_shards)


@dataclass
class ModelConfig:
    """The network. Arms of a comparison differ in one of these fields and in nothing else."""

    name: str = "redcnn"
    """Name in the registry of ldct/models: redcnn or unet."""
    channels: int | None = None
    """Filters of the first stage; not given = as published (redcnn 96, unet 64)."""
    depth: int | None = None
    """redcnn: number of convolutions (5); unet: number of down-samplings (4)."""
    kernel: int | None = None
    """Side of the convolution kernels in pixels, odd (redcnn 5, unet 3)."""
    norm: Literal["none", "batch"] = "none"
    """Normalisation between convolution and ReLU, on all but the output layer."""
    attention: Literal["none", "channel", "spatial", "both"] = "none"
    """CBAM gates (Woo 2018) behind encoder stages; both = channel, then spatial."""
    attention_stages: list[int] | None = None
    """Encoder stages with a gate, counted from 1; not given = every stage."""
    init: Literal["default", "gaussian", "kaiming"] = "default"
    """Weights at the start: torch's default, normal with SD 0.01, or kaiming_normal_(fan_out, relu)."""
    init_output: Literal["zero", "same"] = "zero"
    """Last layer: zero makes the network start as the identity (with residual); same = as the others."""
    residual: bool = True
    """Add the input to the output (RED-CNN's outermost skip; the same for U-Net)."""

    def __post_init__(self) -> None:
        require(self.name in PLAIN, "model.name", f"one of {', '.join(PLAIN)}", self.name)
        for key in PLAIN[self.name]:
            value = getattr(self, key)
            require(value is None or value >= 1, f"model.{key}", "at least 1", value)
        require(self.kernel is None or self.kernel % 2 == 1, "model.kernel", "an odd number of pixels", self.kernel)
        for stage in self.attention_stages or []:
            require(stage >= 1, "model.attention_stages", "stages counted from 1", stage)


@dataclass
class LossConfig:
    """What is minimised."""

    name: Literal["mse", "l1", "mse+vgg"] = "mse"
    """Mean squared error, mean absolute error, or mean squared error plus a perceptual term."""
    vgg_weight: float = 0.01
    """Weight of the L1 distance between the VGG16 features of output and full dose (mse+vgg)."""
    vgg_weights: str = ""
    """File with VGG16's ImageNet weights (mse+vgg); empty = torch's hub cache, filled beforehand on a
    machine with a network."""
    vgg_imagenet: bool = True
    """Shift and scale the input of VGG16 as in its ImageNet training."""


@dataclass
class OptimConfig:
    """How the weights move."""

    name: Literal["adamw", "adam"] = "adamw"
    """Optimizer."""
    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.01
    """Weight decay of adamw."""
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    """After warm-up: constant, half a cosine down to zero at the last step, or times plateau_factor where
    validation stalls."""
    warmup: int = 100
    """Steps over which the learning rate rises linearly from zero."""
    plateau_factor: float = 0.5
    """Factor at each stall (plateau)."""
    plateau_patience: int = 10
    """Validations without a better value that make a stall (plateau)."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 = no clipping."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is validated and saved as best; 0 = none."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", "a positive learning rate", self.lr)
        require(0 <= self.ema < 1, "optim.ema", "a decay of at least 0 and below 1", self.ema)
        require(self.warmup >= 0, "optim.warmup", "a number of steps", self.warmup)
        require(0 < self.plateau_factor < 1, "optim.plateau_factor", "between 0 and 1", self.plateau_factor)
        require(self.plateau_patience >= 1, "optim.plateau_patience", "at least 1 validation", self.plateau_patience)
        require(self.clip_norm >= 0, "optim.clip_norm", "a norm, or 0 for no clipping", self.clip_norm)


@dataclass
class TrainConfig:
    """The loop."""

    steps: int = 20_000
    """Optimizer steps in all."""
    global_batch: int = 128
    """Patch pairs per optimizer step, over all ranks and accumulated parts."""
    accumulate: int = 1
    """Parts a rank's share of the batch is computed in, one after the other, to save memory."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 = autocast; weights, optimizer and loss stay in fp32. Needs a GPU (Ampere or later) or a CPU that has it
    (avx512_bf16, amx); elsewhere it is slow: see launch/bench.py train --recommend."""
    channels_last: bool = True
    """Memory format NHWC for convolutions."""
    deterministic: bool = False
    """Only deterministic kernels; on a GPU needed for bit-exact resume, and slower. On a CPU resume is exact anyway."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    log_every: int = 50
    """Steps between two lines of training metrics."""
    save_every_s: float = 300.0
    """Seconds between two checkpoints by the clock: a lost node gives no warning."""
    skip_nonfinite: int = 0
    """Steps with a gradient that is not finite to leave out before the run stops. Above 0 every step waits
    for the device."""
    timeout_s: float = 60.0
    """Seconds a rank waits for the others before it ends with an error."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "accumulate", "log_every"):
            require(getattr(self, name) >= 1, f"train.{name}", "at least 1", getattr(self, name))
        require(
            self.global_batch % self.accumulate == 0,
            "train.accumulate",
            f"a divisor of train.global_batch ({self.global_batch})",
            self.accumulate,
        )
        require(self.seed >= 0, "train.seed", "0 or more", self.seed)
        require(self.skip_nonfinite >= 0, "train.skip_nonfinite", "0 or more", self.skip_nonfinite)
        require(self.save_every_s > 0, "train.save_every_s", "a positive number of seconds", self.save_every_s)
        require(self.timeout_s > 0, "train.timeout_s", "a positive number of seconds", self.timeout_s)


@dataclass
class ValConfig:
    """Validation on whole slices while training."""

    every: int = 1000
    """Steps between two validations; there is always one before the first and one after the last step."""
    protocol: str = "abd400"
    """Metric protocol (ldct/metrics/protocols.py) whose PSNR decides which checkpoint is best."""
    slices: int = 0
    """Slices to validate on, evenly spaced over the split; 0 = all."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "val.every", "at least 1 step", self.every)
        require(self.slices >= 0, "val.slices", "a number of slices, or 0 for all", self.slices)


@dataclass
class TrackConfig:
    """Weights & Biases."""

    wandb: Literal["online", "offline", "disabled"] = "offline"
    """online needs a key (wandb login); offline writes to the run folder, to be sent later with wandb sync."""
    project: str = "ldct"
    """Project the run belongs to."""
    entity: str = ""
    """Team or user; empty = the key's own."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""


@dataclass
class Config:
    """Everything that decides a run."""

    data: DataConfig = field(default_factory=DataConfig)
    """What is read."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How the weights move."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    val: ValConfig = field(default_factory=ValConfig)
    """Validation."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Weights & Biases."""
    run_dir: str = ""
    """Folder of the run; a run continues there from its newest checkpoint."""


SECTIONS: dict[str, Any] = {f.name: f.default_factory for f in dataclasses.fields(Config) if f.name != "run_dir"}
"""Section -> its dataclass."""


def parser(**kwargs: Any) -> ArgumentParser:
    """An argument parser with ``--config FILE.yaml`` and one ``--section.field`` for every field of Config."""
    made = ArgumentParser(exit_on_error=False, **kwargs)
    made.add_argument("--config", action="config", help="YAML file with any of the fields below")
    made.add_class_arguments(Config, as_group=False)
    return made


def resolved(model: ModelConfig) -> ModelConfig:
    """``model`` with the published sizes where it names none, so that config.yaml says what was run."""
    missing: dict[str, Any] = {key: value for key, value in PLAIN[model.name].items() if getattr(model, key) is None}
    return dataclasses.replace(model, **missing)


def instantiate(made: ArgumentParser, namespace: Namespace) -> Config:
    """Config from a parsed namespace, resolved."""
    parts = made.instantiate(namespace)
    config = Config(**{f.name: parts[f.name] for f in dataclasses.fields(Config)})
    return dataclasses.replace(config, model=resolved(config.model))


def parse(argv: Sequence[str] | None = None) -> Config:
    """Config from a command line.

    Raises
    ------
    InputError
        For a field, a value or a file that cannot be; one line.
    """
    made = parser()
    try:
        return instantiate(made, made.parse_args(argv))
    except ArgumentError as error:
        raise InputError(explain(error)) from None


def from_dict(values: dict[str, Any]) -> Config:
    """Config from nested fields (a YAML file's content); fields not named keep their defaults.

    Raises
    ------
    InputError
        As parse.
    """
    check_names(values)
    texts = {name: json.dumps(values.get(name, {}), sort_keys=True, default=str) for name in SECTIONS}
    parts = {name: section(name, text) for name, text in texts.items()}
    config = Config(**copy.deepcopy(parts), run_dir=str(values.get("run_dir", "")))
    return dataclasses.replace(config, model=resolved(config.model))


@functools.lru_cache(maxsize=10_000)
def section(name: str, fields: str) -> Any:
    """One section of Config from its fields as JSON. The runs of a sweep share most of their sections, and a whole
    Config takes 13 ms: without this a sweep of 500 runs would take 7 s to check."""
    made = section_parser(name)
    try:
        # the dataclass has the defaults too; without them parsing is nine times faster
        chosen = made.parse_object({name: json.loads(fields)}, defaults=False)
        return SECTIONS[name](**(vars(chosen[name]) if name in chosen else {}))
    except ArgumentError as error:
        raise InputError(explain(error)) from None


@functools.cache
def section_parser(name: str) -> ArgumentParser:
    """A parser of one section of Config."""
    made = ArgumentParser(exit_on_error=False)
    made.add_class_arguments(SECTIONS[name], name)
    return made


def load(path: Path) -> Config:
    """Config from a YAML file, e.g. a run's config.yaml.

    Raises
    ------
    InputError
        If the file cannot be read, is no YAML mapping, or names a field or value that cannot be.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: expected a configuration file: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(values).__name__}")
    try:
        return from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_names(values: dict[str, Any]) -> None:
    """Raise an InputError that lists the valid names if ``values`` holds an unknown section or field."""
    sections = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    for section, fields in values.items():
        if section not in sections:
            raise InputError(f"unknown section {section!r}; there are: {', '.join(sections)}")
        if section == "run_dir":
            continue
        require(isinstance(fields, dict), section, "a mapping of fields", fields)
        valid = [f.name for f in dataclasses.fields(sections[section])]  # type: ignore[arg-type]
        for name in fields:
            if name not in valid:
                raise InputError(f"unknown field {section}.{name}; {section} has: {', '.join(valid)}")


def explain(error: ArgumentError) -> str:
    """jsonargparse's message as one line, with the way to the valid names where one is not known."""
    text = " ".join(str(error).split()).replace('Parser key "', '"')
    union = r"Does not validate .*Subtypes: \[(.*)\] Errors: .* Given value: "
    text = re.sub(union, r"Expected one of \1. Got value: ", text)
    text = re.sub(r"a typing.Literal\[(.*)\]", r"one of \1", text)
    text = re.sub(r"(a )?<class '(\w+)'>", r"\2", text).replace("NoneType", "null")
    return f"{text}; --help lists every field" if "unrecognized" in text or "not accept" in text else text


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


def hash8(config: Config) -> str:
    """Eight hex digits that name what is trained: of every field but the run's folder and the tracking."""
    named = {k: v for k, v in flat(config).items() if k != "run_dir" and not k.startswith("track.")}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]


def decisive(config: Config) -> dict[str, Any]:
    """Nested fields that a run cannot change on its way: all but RESUMABLE."""
    kept: dict[str, Any] = {}
    for name, value in flat(config).items():
        section, _, field_name = name.partition(".")
        if name not in RESUMABLE and section not in RESUMABLE:
            kept.setdefault(section, {})[field_name] = value
    return kept


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which ``new`` is another run than ``old``: {name: (old, new)}; RESUMABLE ones do not count."""
    a, b = ({f"{s}.{k}": v for s, part in decisive(c).items() for k, v in part.items()} for c in (old, new))
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}
