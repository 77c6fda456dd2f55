"""The slices to look at before a method is believed: its median and its worst, as numbers and as pictures.

RUN/eval/SPLIT-median.png, RUN/eval/SPLIT-worst.png    full dose, low dose, output, output minus full dose
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import FULL, Evaluation
from ldct.metrics import registry
from ldct.metrics.judged import WHICH, median_and_worst
from ldct.metrics.names import metric as name_under
from shards.common.atomic import atomic

WINDOW = (-160, 240)
"""HU shown from black to white: abdomen."""
DIFFERENCE = (-100, 100)
"""HU of the difference shown from black to white."""


def save(run: Path, evaluation: Evaluation) -> None:
    """Write the pictures of the run, which is the last of the results, among the slices that are kept as pictures."""
    result, low, protocol = evaluation.results[-1], evaluation.get(LOW), evaluation.protocols[0]
    both = result.pictures.keys() & low.pictures.keys()  # those of an earlier version kept fewer
    kept = [measured for measured in result.slices if measured.key in both]
    for which, measured in zip(WHICH, median_and_worst(kept, protocol), strict=False):
        key, metric = measured.key, registry.find(registry.JUDGED)
        value = metric.text(measured.values[name_under(protocol, metric.key)])
        panels = {
            FULL: evaluation.full[key],
            LOW: low.pictures[key],
            f"{run.name}: {metric.label} {value} {metric.unit}": result.pictures[key],
        }
        draw(run / "eval" / f"{evaluation.split}-{which}.png", panels, f"{which} slice, {key}")


def draw(path: Path, panels: dict[str, np.ndarray], title: str) -> None:
    """Write ``panels`` (int16 HU by name, the full dose first, the output last) and the difference of those two."""
    images = list(panels.values())
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize=9)
    shown = [(name, image, WINDOW) for name, image in panels.items()]
    difference = images[-1].astype(np.int32) - images[0]
    shown.append((f"difference to the full dose, ±{DIFFERENCE[1]} HU", difference, DIFFERENCE))
    for axes, (name, image, (low, high)) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        axes.imshow(image, cmap="gray", vmin=low, vmax=high)
        axes.set_title(name.replace("$", r"\$"), fontsize=8)
        axes.axis("off")
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=150)
