"""The configuration of a run: one dataclass per concern, every field documented, checked when it is made."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ldct.config.networks import networks
from shards.common.command import InputError


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
    """Smallest share of a patch's pixels above -500 HU for the patch to be trained on; 0 keeps air."""
    window_shards: int = 32
    """Shards shuffled together; bounds the memory that a shuffled read touches. 0 = all shards at once."""
    store: Literal["auto", "mmap", "device"] = "auto"
    """Where the training patches are read from: the mapped tars, or a copy on the device. auto = device on a GPU where
    they take at most half of its free memory."""
    stage: str = ""
    """Folder on a disk of the node (e.g. $TMPDIR or /dev/shm) that the shards are copied to before training, once per
    node, and read from; empty = they are read where they are."""
    augment: bool = True
    """Flips and quarter turns, drawn for each patch from (seed, step)."""

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
        require(self.name in networks(), "model.name", f"one of {', '.join(networks())}", self.name)
        for key in networks()[self.name].sizes:
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
    """Patches per optimizer step, over all ranks and accumulated parts."""
    accumulate: int = 1
    """Parts a rank's share of the batch is computed in, one after the other, to save memory."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 = autocast; weights, optimizer and loss stay in fp32. Needs a GPU (Ampere or later) or a CPU that has it
    (avx512_bf16, amx); elsewhere it is slow: see launch/bench.py train --recommend."""
    channels_last: bool = True
    """Memory format NHWC for convolutions."""
    cuda_graph: bool = False
    """Record forward and backward once on a GPU and start them as a whole: fewer launches where a GPU has few patches,
    for the memory of a second step. Where that cannot be, a line says that training goes on without."""
    compile: Literal["none", "step"] = "none"
    """step = forward and backward through torch.compile, on a GPU and with a C compiler; costs time at each start."""
    deterministic: bool = False
    """Only deterministic kernels; on a GPU needed for bit-exact resume, and slower. On a CPU resume is exact anyway."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    init_from: str = ""
    """Run whose best weights to start from; launch/train.py --init sets it, and takes over its network."""
    log_every: int = 50
    """Steps between two lines of training metrics."""
    save_every_s: float = 300.0
    """Seconds between two checkpoints by the clock: a lost node gives no warning."""
    keep_every_steps: int = 0
    """Checkpoints at multiples of this are made and never removed; 0 = only the last two are kept."""
    skip_nonfinite: int = 0
    """Steps with a gradient that is not finite to leave out before the run stops. Above 0 every step waits
    for the device."""
    timeout_s: float = 60.0
    """Seconds a rank waits for the others before it ends with an error."""
    hang_s: float = 1800.0
    """Seconds a step may take before its rank ends, with the stacks of all its threads in the log; 0 = no limit."""

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
        require(self.keep_every_steps >= 0, "train.keep_every_steps", "a number of steps, or 0", self.keep_every_steps)
        require(self.save_every_s > 0, "train.save_every_s", "a positive number of seconds", self.save_every_s)
        require(self.timeout_s > 0, "train.timeout_s", "a positive number of seconds", self.timeout_s)
        require(self.hang_s >= 0, "train.hang_s", "a number of seconds, or 0 for no limit", self.hang_s)


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
