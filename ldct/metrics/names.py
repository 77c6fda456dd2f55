"""Names under which numbers are written down: in metrics.jsonl, in eval/ and in W&B. They are spelled here only.

abd400/psnr                      a metric under a protocol, of an evaluation
train/loss                       of the last steps, in metrics.jsonl
val/abd400/psnr                  of a validation; val/low_dose/abd400/psnr is that of its input
attention/2/channel_sd           an attention statistic at the second encoder stage; val/attention/2/channel_sd
eval/test/abd400/psnr            an evaluation's mean over patients, in W&B; eval/test/low_dose/abd400/psnr
pictures/features                a picture, in W&B
spectra/test/low_dose            noise power of a method over spectra/test/per_mm, in W&B
"""

import re

TRAIN_LOSS = "train/loss"
LEARNING_RATE = "train/lr"
GRAD_NORM = "train/grad_norm"
OUTPUT_SD = "val/output_sd_hu"
FLAGS = "val/flags"

DEPTH = "depth"
"""Attention statistic: where a stage stands, 0 = first, 1 = deepest encoder stage."""
HISTOGRAM = "channel_histogram"
"""Attention statistic: shares of the channel weights in equal bins over 0..1."""

_LOW_DOSE = "low_dose"
_STAGE = re.compile(r"(?:val/)?attention/(\d+)/(.+)")


def metric(protocol: str, key: str) -> str:
    """The metric ``key`` under ``protocol``: ``abd400/psnr``."""
    return f"{protocol}/{key}"


def split_metric(name: str) -> tuple[str, str]:
    """Protocol and key of a name that ``metric`` made."""
    protocol, _, key = name.rpartition("/")
    return protocol, key


def validation(name: str) -> str:
    """``name`` as a validation while training gives it: ``val/abd400/psnr``."""
    return f"val/{name}"


def low_dose_validation(name: str) -> str:
    """``name`` of a validation's input: ``val/low_dose/abd400/psnr``."""
    return f"val/{_LOW_DOSE}/{name}"


def is_validation(name: str) -> bool:
    """Whether ``name`` comes from a validation."""
    return name.startswith("val/")


def attention(stage: int | str, statistic: str) -> str:
    """An attention statistic of an encoder stage, counted from 1 (or a pattern): ``attention/2/channel_sd``."""
    return f"attention/{stage}/{statistic}"


def split_attention(name: str) -> tuple[int, str] | None:
    """Stage and statistic of a name that ``attention`` made, also of a validation; None for another name."""
    parts = _STAGE.fullmatch(name)
    return (int(parts[1]), parts[2]) if parts else None


DATA = "data"
"""Of ``evaluation``: twelve hex digits that name the slices. Runs with other ones were measured on other slices."""


def evaluation(split: str, name: str) -> str:
    """``name`` as the summary of a W&B run has it: ``eval/test/abd400/psnr``."""
    return f"eval/{split}/{name}"


def baseline_evaluation(split: str, baseline: str, name: str) -> str:
    """``name`` of a baseline in the summary of a W&B run: ``eval/test/low_dose/abd400/psnr``."""
    return f"eval/{split}/{_word(baseline)}/{name}"


def _word(method: str) -> str:
    return re.sub("[ -]", "_", method)


def picture(name: str) -> str:
    """A picture of eval/ in a W&B run: ``pictures/features``."""
    return f"pictures/{name}"


NOISE_POWER = "-noise-power.csv"
"""End of the name of an evaluation's file of noise power spectra."""
PER_MM, PER_PIXEL = "per_mm", "per_pixel"
"""Its first column, frequencies, and their unit."""
NETWORK = "network"
"""Of ``spectrum``: the method that is the run itself."""


def spectrum(split: str, column: str) -> str:
    """Noise power of a method, or its frequencies, in a W&B run: ``spectra/test/low_dose``, ``spectra/test/per_mm``."""
    return f"spectra/{split}/{_word(column)}"
