"""Curves over spatial frequency of the slices kept as pictures: means over the slices that have what is measured.

RUN/eval/SPLIT-noise-power.csv    noise power in flat soft tissue, HU^2 mm^2, of every method over frequency in 1/mm
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import FULL, Evaluation
from ldct.metrics import edges, names, noise_texture
from ldct.metrics.slice_pair import SlicePair
from shards.common.atomic import write_text

Pairs = dict[str, SlicePair]
"""Slices by key, the full dose beside itself: their blocks are found once for all methods."""
WINDOW = np.square(np.hanning(noise_texture.BLOCK)).sum() ** 2
"""Sum of the squares of the window that noise_texture puts on a block."""


def pairs_of(evaluation: Evaluation) -> Pairs:
    """The slices kept as pictures."""
    pairs = {}
    for key, full in evaluation.full.items():
        low, taken = evaluation.get(LOW).pictures.get(key), evaluation.taken.get(key)
        pairs[key] = SlicePair(full, full, taken.spacing if taken else None, low, taken.dose if taken else None)
    return pairs


def in_mm(pairs: Pairs) -> bool:
    """Whether every slice's size of a pixel is known."""
    return all(pair.spacing for pair in pairs.values())


def flat(pairs: Pairs) -> Pairs:
    """Those with flat soft tissue."""
    return {key: pair for key, pair in pairs.items() if pair.once(noise_texture.blocks_of)}


def steep(pairs: Pairs) -> Pairs:
    """Those with edges of high contrast."""
    return {key: pair for key, pair in pairs.items() if pair.once(edges.edge_blocks)}


def noise_power(image: np.ndarray, pair: SlicePair) -> np.ndarray:
    """Noise power spectrum of ``image``, a slice with flat soft tissue, HU^2 mm^2 (without a pixel's size, pixel^2)."""
    return noise_texture.spectrum(image, pair.once(noise_texture.blocks_of)) / WINDOW * (pair.spacing or 1) ** 2


def transfer(image: np.ndarray, pair: SlicePair) -> np.ndarray:
    """Transfer function from the full dose to ``image``, a slice with edges of high contrast."""
    curve = edges.transfer_to(image, pair)
    assert curve is not None  # it has edges
    return curve


def frequency_of(pairs: Pairs) -> np.ndarray:
    """Frequencies above 0 that all slices have, in 1/mm, or without a pixel's size in cycles per pixel."""
    return noise_texture.FREQUENCY[1:] / max(_sides(pairs).values())


def by_method(
    measure: Callable[[np.ndarray, SlicePair], np.ndarray], evaluation: Evaluation, pairs: Pairs
) -> dict[str, np.ndarray]:
    """Mean of ``measure`` over ``pairs``, at ``frequency_of`` them: of the full dose and methods that have them all."""
    if not pairs:
        return {}
    frequency, sides = frequency_of(pairs), _sides(pairs)
    images = {FULL: evaluation.full} | {result.name: result.pictures for result in evaluation.results}
    return {
        name: np.mean(
            [
                np.interp(frequency, noise_texture.FREQUENCY / sides[key], measure(own[key], pair))
                for key, pair in pairs.items()
            ],
            0,
        )
        for name, own in images.items()
        if pairs.keys() <= own.keys()
    }


def _sides(pairs: Pairs) -> dict[str, float]:
    known = in_mm(pairs)
    return {key: (pair.spacing or 1) if known else 1 for key, pair in pairs.items()}


def save(run: Path, evaluation: Evaluation) -> None:
    """Write the noise power spectra of ``evaluation`` to ``run``/eval; no file where no slice has flat soft tissue."""
    path, pairs = run / "eval" / f"{evaluation.split}{names.NOISE_POWER}", flat(pairs_of(evaluation))
    if not pairs:
        path.unlink(missing_ok=True)  # of an evaluation before
        return
    found = by_method(noise_power, evaluation, pairs)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([names.PER_MM if in_mm(pairs) else names.PER_PIXEL, *found])
    writer.writerows(
        [f"{value:.6g}" for value in row] for row in zip(frequency_of(pairs), *found.values(), strict=True)
    )
    write_text(path, text.getvalue())
