"""Curves over spatial frequency of the slices kept as pictures: means over the slices that have what is measured.

RUN/eval/SPLIT-noise-power.csv    noise power in flat soft tissue, HU^2 mm^2, of every method over frequency in 1/mm
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import FULL, Evaluation
from ldct.metrics import edges, names, noise_texture
from ldct.metrics.slice_pair import Target
from shards.common.atomic import write_text
from shards.common.table import csv_text

Targets = dict[str, Target]
"""Slices by key: their blocks are found once for all methods."""
WINDOW = np.square(np.hanning(noise_texture.BLOCK)).sum() ** 2
"""Sum of the squares of the window that noise_texture puts on a block."""


def targets_of(evaluation: Evaluation) -> Targets:
    """The slices kept as pictures."""
    targets = {}
    for key, full in evaluation.full.items():
        low, taken = evaluation.get(LOW).pictures.get(key), evaluation.taken.get(key)
        targets[key] = Target(full, taken.spacing if taken else None, low, taken.dose if taken else None)
    return targets


def in_mm(targets: Targets) -> bool:
    """Whether every slice's size of a pixel is known."""
    return all(target.spacing for target in targets.values())


def flat(targets: Targets) -> Targets:
    """Those with flat soft tissue."""
    return {key: target for key, target in targets.items() if target.once(noise_texture.blocks_of)}


def steep(targets: Targets) -> Targets:
    """Those with edges of high contrast."""
    return {key: target for key, target in targets.items() if target.once(edges.edge_blocks)}


def noise_power(image: np.ndarray, target: Target) -> np.ndarray:
    """Noise power spectrum of ``image``, a slice with flat soft tissue, HU^2 mm^2 (without a pixel's size, pixel^2)."""
    return noise_texture.spectrum(image, target.once(noise_texture.blocks_of)) / WINDOW * (target.spacing or 1) ** 2


def transfer(image: np.ndarray, target: Target) -> np.ndarray:
    """Transfer function from the full dose to ``image``, a slice with edges of high contrast."""
    curve = edges.transfer_to(image, target)
    assert curve is not None  # it has edges
    return curve


def frequency_of(targets: Targets) -> np.ndarray:
    """Frequencies above 0 that all slices have, in 1/mm, or without a pixel's size in cycles per pixel."""
    return noise_texture.FREQUENCY[1:] / max(_sides(targets).values())


def by_method(
    measure: Callable[[np.ndarray, Target], np.ndarray], evaluation: Evaluation, targets: Targets
) -> dict[str, np.ndarray]:
    """Mean of ``measure`` over ``targets``, at ``frequency_of`` them: of the full dose, and methods that have them."""
    if not targets:
        return {}
    frequency, sides = frequency_of(targets), _sides(targets)
    images = {FULL: evaluation.full} | {result.name: result.pictures for result in evaluation.results}
    return {
        name: np.mean(
            [
                np.interp(frequency, noise_texture.FREQUENCY / sides[key], measure(own[key], target))
                for key, target in targets.items()
            ],
            0,
        )
        for name, own in images.items()
        if targets.keys() <= own.keys()
    }


def _sides(targets: Targets) -> dict[str, float]:
    known = in_mm(targets)
    return {key: (target.spacing or 1) if known else 1 for key, target in targets.items()}


def save(run: Path, evaluation: Evaluation, targets: Targets) -> None:
    """Write the noise power spectra of ``evaluation`` to ``run``/eval; no file where no slice has flat soft tissue."""
    path, targets = run / "eval" / f"{evaluation.split}{names.NOISE_POWER}", flat(targets)
    if not targets:
        path.unlink(missing_ok=True)  # of an evaluation before
        return
    found = by_method(noise_power, evaluation, targets)
    head = [names.PER_MM if in_mm(targets) else names.PER_PIXEL, *found]
    rows = zip(frequency_of(targets), *found.values(), strict=True)
    write_text(path, csv_text([head, *([f"{value:.6g}" for value in row] for row in rows)]))
