"""Is a faint lesion still there behind a method? A disc is drawn into the low dose, and the method run with it.

RUN/eval/SPLIT-lesion.json    LESION of every method by patient, of which checkpoint, on which slices

The disc (ldct/metrics/observer.py says its size and contrast) is added to pieces of a slice around its flattest blocks
of soft tissue; so faint a thing hardly changes the noise. The difference of what a method makes with it and without it
is the signal, the noise power spectrum of its output in flat soft tissue the noise.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ldct.evaluation import baselines, curves
from ldct.evaluation.results import FULL, Evaluation, Result
from ldct.inference.denoiser import Denoiser
from ldct.metrics import intervals, noise_texture, observer
from ldct.metrics.intervals import Measured
from ldct.metrics.slice_pair import Target
from shards.common.atomic import write_text
from shards.common.command import Progress
from shards.common.table import text_table

LOCATIONS = 4
"""Discs in a slice at most, in blocks that do not overlap, the flattest first."""
PIECE = 96
"""Side in pixels of what a method is given: the block, and around it more than a RED-CNN sees."""
DETECTABILITY, KEPT = "detectability", "contrast_kept"
LESION = (DETECTABILITY, KEPT)
"""d' of the disc, and what is left of its contrast (1 = all)."""

Method = Callable[[np.ndarray], np.ndarray]
"""From int16 HU to denoised ones, float HU, (n, H, W): rounded, a faint disc would gain contrast or lose it."""


def locations(target: Target) -> list[tuple[int, int]]:
    """First row and column of the pieces of a slice, a flat block in the middle of each; may be none."""
    margin = (PIECE - noise_texture.BLOCK) // 2
    chosen: list[tuple[int, int]] = []
    for block in target.once(noise_texture.blocks_of):
        row, column = (side.start - margin for side in block)
        inside = all(0 <= at <= size - PIECE for at, size in zip((row, column), target.full.shape, strict=True))
        if inside and all(max(abs(row - r), abs(column - c)) >= noise_texture.BLOCK for r, c in chosen):
            chosen.append((row, column))
    return chosen[:LOCATIONS]


def of_slice(method: Method, low: np.ndarray, output: np.ndarray, target: Target) -> dict[str, float]:
    """LESION of one slice with flat soft tissue and a known size of a pixel.

    Parameters
    ----------
    method : callable
        What made ``output`` of ``low``, both HU, (H, W), ``low`` int16.
    target : Target
        The full dose.
    """
    places = locations(target)
    if target.spacing is None or not places:
        return dict.fromkeys(LESION, np.nan)
    pieces = np.stack([low[row : row + PIECE, column : column + PIECE] for row, column in places])
    drawn = observer.disc(PIECE, target.spacing)
    difference = method(pieces + drawn.astype(np.int16)).astype(np.float64) - method(pieces)
    margin = (PIECE - noise_texture.BLOCK) // 2
    middle = slice(margin, margin + noise_texture.BLOCK)
    signal, disc = difference.mean(0)[middle, middle], drawn[middle, middle]
    power = noise_texture.spectrum(output, target.once(noise_texture.blocks_of))
    kept = float((signal * disc).sum() / np.square(disc).sum())
    return {DETECTABILITY: observer.detectability_of(signal, power), KEPT: kept}


def measure(
    folders: list[Path], evaluation: Evaluation, device: torch.device
) -> dict[str, dict[str, dict[str, float]]]:
    """LESION by method and patient: full dose, baselines, and the runs in ``folders``; of the slices kept as pictures.

    Each run's file is written. Slices without flat soft tissue that a piece fits around, or of an unknown size of a
    pixel, are left out.
    """
    every, low = curves.targets_of(evaluation), evaluation.get(baselines.LOW).pictures
    targets = {key: target for key, target in every.items() if target.spacing and locations(target)}
    patients = {measured.key: measured.patient for measured in evaluation.results[0].slices}
    full = Result(FULL, "", [], 0.0, "", pictures=evaluation.full)
    runs = {run.name: run for run in folders}
    found = {}
    with Progress("inserted disc", (len(evaluation.results) + 1) * len(targets), "slices") as progress:
        for result in (full, *evaluation.results):
            if result.name in runs:
                method: Method = Denoiser(runs[result.name], device).unrounded
            else:
                method = _one_by_one(result)
            measured = []
            for key, target in targets.items():
                given = evaluation.full[key] if result is full else low[key]
                values = of_slice(method, given, result.pictures[key], target)
                measured.append(Measured(patients[key], key, values))
                progress.update()
            found[result.name] = intervals.by_patient(measured) if measured else {}
    for run in folders:
        of_run = {name: found[name] for name in (FULL, *baselines.NAMES, run.name)}
        about = {"data": evaluation.data, "checkpoint_sha256": evaluation.get(run.name).mark}
        disc = {"diameter_mm": observer.DIAMETER_MM, "contrast_hu": observer.CONTRAST_HU}
        content = {**about, **disc, "slices": list(targets), "by_method": of_run}
        write_text(run / "eval" / f"{evaluation.split}-lesion.json", json.dumps(content, indent=1) + "\n")
    return found


def load(run: Path, evaluation: Evaluation | None) -> dict[str, dict[str, dict[str, float]]]:
    """What ``measure`` wrote of the checkpoint and the slices of ``evaluation``, the run's; empty if it did not."""
    if evaluation is None:
        return {}
    try:
        stored = json.loads((run / "eval" / f"{evaluation.split}-lesion.json").read_text())
    except (OSError, ValueError):
        return {}
    expected = (evaluation.data, evaluation.results[-1].mark)
    return stored["by_method"] if (stored["data"], stored["checkpoint_sha256"]) == expected else {}


def _one_by_one(result: Result) -> Method:
    """A baseline, or nothing for the full dose, as a function of several pieces."""
    method = baselines.unchanged if result.name == FULL else baselines.again(result.name, result.detail)
    return lambda pieces: np.stack([method(piece) for piece in pieces])


def as_text(found: dict[str, dict[str, dict[str, float]]], labels: dict[str, str]) -> str:
    """For a terminal, the best d' first; ``labels`` by method."""
    means = {
        name: {key: np.nanmean([v[key] for v in of.values()]) for key in LESION} for name, of in found.items() if of
    }
    if not means:
        return "no slice with flat soft tissue and a known size of its pixels, so no disc was drawn"
    rows = [
        [labels.get(name, name), f"{values[DETECTABILITY]:.2f}", f"{values[KEPT]:.2f}"]
        for name, values in sorted(means.items(), key=lambda item: -item[1][DETECTABILITY])
    ]
    size = f"disc of {observer.DIAMETER_MM:g} mm and {observer.CONTRAST_HU:g} HU, drawn into the low dose"
    return text_table([size, "d'", "contrast kept"], rows)
