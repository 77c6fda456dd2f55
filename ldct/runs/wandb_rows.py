"""What W&B shows of a run: rows of its history, pictures, and the summary. docs/wandb.md lists the names."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from ldct.config import Config
from ldct.metrics import names, registry
from ldct.metrics.intervals import Measured
from ldct.metrics.judged import WHICH, median_and_worst
from ldct.runs.slices_file import SlicesFile

ATTENTION = ("channel_sd", names.HISTOGRAM, "spatial_sd", "spatial_edges", "spatial_texture")
"""Attention statistics that W&B shows, while training. All eleven of each stage, and those of validations, would be 110
of 129 panels; they stand in metrics.jsonl."""

UNPLOTTED = ("elapsed_s", "attempt")
"""Of a row, what W&B draws no panel of by itself, beside attention: a run's page is to open on loss, PSNR, pictures."""

WINDOW_HU = (-160, 240)
"""What is black and white in the pictures of slices."""


def goals(config: Config) -> dict[str, str]:
    """Of which values the best is told beside the last, and whether that is the largest or the least.

    They are the training loss and every metric of the registry that validation measures.
    """
    chosen = {names.TRAIN_LOSS: "min"}
    for metric in registry.per_protocol():
        if metric.higher_is_better is not None:
            name = names.validation(names.metric(config.val.protocol, metric.key))
            chosen[name] = "max" if metric.higher_is_better else "min"
    return chosen


def is_shown(name: str) -> bool:
    """Whether W&B shows what metrics.jsonl calls ``name``."""
    attention = names.split_attention(name)
    return attention is None or (attention[1] in ATTENTION and not names.is_validation(name))


def row(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl as a row for W&B: numbers, and shares in equal bins over 0..1 as histograms."""
    import wandb

    values: dict[str, Any] = {}
    for key, value in line.items():
        if not is_shown(key):
            continue
        if key.endswith(names.HISTOGRAM):
            values[key] = wandb.Histogram(np_histogram=(np.array(value), np.linspace(0, 1, len(value) + 1)))
        elif isinstance(value, int | float):
            values[key] = value
    return values


def is_plotted(name: str) -> bool:
    """Whether W&B draws a panel of ``name``, of a row, by itself."""
    return name not in UNPLOTTED and names.split_attention(name) is None


def spectra(path: Path, run: str) -> tuple[str, list[dict[str, float]]]:
    """Noise power spectra in ``path``, by ldct/evaluation/curves.py: the axis's name, and a row for each frequency."""
    split = path.name.removesuffix(names.NOISE_POWER)
    with open(path, newline="") as file:
        head, *lines = csv.reader(file)
    columns = [names.spectrum(split, names.NETWORK if column == run else column) for column in head]
    return columns[0], [dict(zip(columns, map(float, line), strict=True)) for line in lines]


def summary(lines: list[dict[str, Any]], goals: dict[str, str]) -> dict[str, Any]:
    """The last value of everything in ``lines`` of metrics.jsonl, as W&B has it, and the best by ``goals``."""
    rows = [row(line) for line in lines]
    values = {key: value for row in rows for key, value in row.items()}
    for name in values.keys() & goals.keys():
        best = (max if goals[name] == "max" else min)(row[name] for row in rows if name in row)
        values[name] = {goals[name]: best, "last": values[name]}
    return values


def picture_files(folder: Path) -> list[Path]:
    """Of the run in ``folder``, what is shown as pictures: the PNG files, and slices that were evaluated.

    Those slices are the same as of SPLIT-median.png and SPLIT-worst.png, which are left out.
    """
    drawn = [path for path in (folder / "eval").glob("**/*.png") if not path.stem.endswith(WHICH)]
    return sorted([*drawn, *(folder / "eval").glob("*-slices.npz")])


def picture(path: Path, folder: Path) -> dict[str, Any]:
    """The pictures in the file ``path`` below eval/ of the run in ``folder``, for a row or the summary; may be none."""
    import wandb

    image = wandb.Image(str(path)) if path.suffix == ".png" else _slices(path, folder.resolve().name)
    return {names.picture(str(path.relative_to(folder / "eval").with_suffix(""))): image} if image else {}


def _slices(path: Path, run: str) -> list[Any]:
    """The median and the worst slice: low dose, what the network made of it, full dose, side by side in one window.

    None of them while the tables beside the file ``path`` are not written.
    """
    import wandb

    try:
        protocol = json.loads(path.with_name(path.name.replace("-slices.npz", ".json")).read_text())["protocols"][0]
        name = names.metric(protocol, registry.JUDGED)
        with open(path.with_suffix(".csv"), newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == run]
        measured = [Measured(row["patient"], row["slice"], {name: float(row[name])}) for row in rows]
    except (OSError, ValueError, KeyError):
        return []
    (low, high), metric, images = WINDOW_HU, registry.find(name), []
    with SlicesFile(path) as file:
        kept = [slice_ for slice_ in measured if f"{run}/{slice_.key}" in file]
        for which, slice_ in zip(WHICH, median_and_worst(kept, protocol), strict=False):
            shown = [method for method in ("low dose", run, "full dose") if f"{method}/{slice_.key}" in file]
            hu = np.concatenate([file[f"{method}/{slice_.key}"] for method in shown], axis=1)
            grey = np.rint((np.clip(hu, low, high) - low) * (255 / (high - low))).astype(np.uint8)
            value = f"{metric.label} {metric.text(slice_.values[name])} {metric.unit}"
            caption = f"{which}, {value}: {slice_.key}; {', '.join(shown)}; {low} to {high} HU"
            images.append(wandb.Image(grey, caption=caption))
    return images


def evaluated(folder: Path) -> dict[str, Any]:
    """What launch/evaluate.py measured of the run in ``folder``, for the summary.

    {"eval/<split>/<protocol>/<metric>": mean over patients} of the run; of the baselines beside it, its input among
    them, as eval/<split>/low_dose/...; and which slices these are, as eval/<split>/data.
    """
    means: dict[str, Any] = {}
    for path in sorted((folder / "eval").glob("*.json")):
        content = json.loads(path.read_text())
        for method in content.get("methods", []):
            means[names.evaluation(path.stem, names.DATA)] = content["data"][:12]
            own = method["name"] == folder.name
            for key, value in method["metrics"].items():
                of_baseline = names.baseline_evaluation(path.stem, method["name"], key)
                if value["mean"] is not None:
                    means[names.evaluation(path.stem, key) if own else of_baseline] = value["mean"]
    return means


def told(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """``now``, what was evaluated, beside what was told ``before``, maybe under other protocols.

    What was measured on other slices under the same name is emptied: it does not belong beside the new values.
    """
    sets = [names.evaluation(split, "") for split in {key.split("/")[1] for key in now}]
    others = tuple(
        each for each in sets if before.get(each + names.DATA, now[each + names.DATA]) != now[each + names.DATA]
    )
    return before | {key: None for key in before if key.startswith(others)} | now
