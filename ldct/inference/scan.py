"""What a CT series is like in numbers, and whether a network was trained on such: it should know when it should not."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ldct.metrics.noise_texture import BLOCK, flat_blocks, spectrum
from shards import manifest
from shards.dicom import Slice, Unusable
from shards.noise_level import noise_sd, soft_tissue
from shards.pixels import read_hu
from shards.similarity import read_records, whole_slice

SAMPLE = 9
"""Slices of a series that are measured, evenly along z."""

FAR = 1.25
"""Outside the range by more than this factor a series is refused, by less a warning is enough."""

NEAR = 1.02
"""Outside by no more than this factor is within: two slices of one series differ as much."""

PERCENTILES = (1, 99)
"""Of the training slices: between these lies what a network was trained on."""

BONE_HU, BONE_MM = 300, 4.0
"""Above is bone, by means over so many mm: of single pixels noise is some, too."""

BODY_HU = -300
"""Above is body, below air; lungs inside are filled."""


@dataclass(frozen=True)
class Trait:
    """One number that a series is known by."""

    key: str
    label: str
    unit: str
    digits: int
    below: str
    """What a series may be whose value is too small."""
    above: str
    """What a series may be whose value is too large."""
    refused_above: bool = True
    """Whether a value far too large is refused, and not only warned of."""
    far: float = FAR
    """Factor outside the range from which a value is far outside."""
    least_counts: bool = True
    """Whether a value may be too small."""

    def text(self, value: float) -> str:
        """The value for people, without its unit."""
        return f"{value:.{self.digits}f}"


TRAITS = (
    Trait("noise_hu", "noise", " HU", 0, "a full dose, or denoised before?", "less dose than ever seen?"),
    Trait("frequency_per_mm", "texture", "/mm", 2, "a softer kernel, or denoised before?", "a sharper kernel?"),
    Trait("spacing_mm", "pixels", " mm", 2, "a small field of view?", "a large field of view?"),
    # a network sees a window of some 40 pixels: what a larger body changes is the noise, which is judged by itself
    Trait("body_mm", "body", " mm", 0, "a head, a limb or a child?", "a larger body?", refused_above=False),
    Trait("bone", "bone", " of the body", 3, "", "a head or a limb?", far=2.5, least_counts=False),
)
"""noise_hu: SD in flat soft tissue. frequency_per_mm: mean frequency of the noise power spectrum there. spacing_mm:
side of a pixel. body_mm: diameter of the circle with the body's area. bone: share of the body above BONE_HU; slices of
trunks have 0.004 to 0.06, a head of 150 by 190 mm with a skull of 7 mm has 0.17."""

Traits = dict[str, float]
"""Values by the keys of TRAITS; nan where a slice does not show it."""
Ranges = dict[str, tuple[float, float]]
"""Least and largest value by the keys of TRAITS."""


def measure_slice(hu: np.ndarray, spacing_mm: float) -> Traits:
    """The traits of one slice: int16 HU, shape (H, W)."""
    blocks = flat_blocks(hu)
    frequency = math.nan
    if blocks:
        power = spectrum(hu, blocks)
        rings = np.arange(len(power)) / BLOCK / spacing_mm
        frequency = float((rings * power).sum() / power.sum()) if power.sum() > 0 else math.nan
    labels, count = ndimage.label(hu > BODY_HU)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if count else labels > 0
    body = ndimage.binary_fill_holes(largest)
    area = np.count_nonzero(body)
    smooth = ndimage.uniform_filter(hu.astype(np.float32), max(1, round(BONE_MM / spacing_mm)))
    return {
        "noise_hu": noise_sd(hu, soft_tissue(hu)),
        "frequency_per_mm": frequency,
        "spacing_mm": spacing_mm,
        "body_mm": math.sqrt(4 * area / math.pi) * spacing_mm,
        "bone": float(np.mean(smooth[body] > BONE_HU)) if area else math.nan,
    }


def measure_series(slices: list[Slice]) -> Traits:
    """Medians of the traits over SAMPLE slices of a series; what no slice shows, and what cannot be read, is nan."""
    return medians(measure_slices(slices).values())


def medians(measured: Iterable[Traits]) -> Traits:
    """Of each trait the median where it is defined, else nan."""
    each = list(measured)
    return {trait.key: _median(traits[trait.key] for traits in each) for trait in TRAITS}


def measure_slices(slices: list[Slice]) -> dict[float, Traits]:
    """The traits of SAMPLE slices of a series, by their z; without those that cannot be read."""
    chosen = sorted({round(i) for i in np.linspace(0, len(slices) - 1, SAMPLE)})
    measured = {}
    for piece in (slices[index] for index in chosen):
        try:
            spacing_mm = math.sqrt(piece.spacing[0] * piece.spacing[1])
            measured[piece.z] = measure_slice(read_hu(piece)[0], spacing_mm)
        except Unusable:
            continue  # whoever denoises it says so
    return measured


def uneven_noise(measured: dict[float, Traits], ranges: Ranges) -> str:
    """Where along z the noise is far from what was trained on, "" where it is nowhere: a median does not show it."""
    least, most = ranges["noise_hu"]
    noise = {z: traits["noise_hu"] for z, traits in measured.items()}
    far = {z: sd for z, sd in noise.items() if sd < least / FAR or sd > most * FAR}
    if not far:
        return ""
    where = ", ".join(f"{sd:.0f} HU at z {z:g} mm" for z, sd in far.items())
    return f"the noise of {len(far)} of {len(noise)} slices looked at is far from {least:.0f} to {most:.0f} HU: {where}"


def _median(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.median(defined)) if defined else math.nan


def trained_on(shards: Path, slices: int = 300) -> tuple[Ranges, list[str]]:
    """Ranges of the traits over the low dose of ``slices`` training slices in ``shards``, and their kernels."""
    measured, kernels = [], set()
    for hu, about in _low_dose(shards, slices):
        row, column = about["spacing"]
        measured.append(measure_slice(hu, math.sqrt(row * column)))
        kernels.add(about["kernel"])
    ranges = {}
    for trait in TRAITS:
        values = [each[trait.key] for each in measured if not math.isnan(each[trait.key])]
        least, most = np.percentile(values, PERCENTILES) if values else (math.nan, math.nan)
        ranges[trait.key] = (round(float(least), 3), round(float(most), 3))
    return ranges, sorted(filter(None, kernels))


def _low_dose(shards: Path, slices: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Low dose and description of about ``slices`` training slices, evenly among them."""
    tars = [shard for shard in manifest.load(shards).shards if shard.split == "train"]
    every = max(1, sum(len(shard.records) for shard in tars) // slices)
    number = 0
    for shard in tars:
        for _, array, about in read_records(shards / shard.name):
            if number % every == 0:
                yield whole_slice(array, about)[0, 0].astype(np.int16), about
            number += 1


@dataclass(frozen=True)
class Judgement:
    """Whether a network was trained on such a series."""

    line: str
    """Every trait with its range, for people."""
    outside: list[str]
    """What lies outside, and what that may mean."""
    refused: bool
    """Whether something lies far outside."""


def judge(traits: Traits, ranges: Ranges, kernels: Iterable[str], trained_kernels: Iterable[str]) -> Judgement:
    """Hold a series' ``traits`` against the ``ranges`` that a network was trained on.

    Kernels are told and not judged: their names are each maker's own, their sharpness is in the texture.
    """
    told, outside, refused = [], [], False
    for trait in TRAITS:
        value, (least, most) = traits[trait.key], ranges[trait.key]
        range_text = f"{trait.text(least)} to {trait.text(most)}"
        if math.isnan(value):
            told.append(f"{trait.label} not measurable ({range_text}{trait.unit})")
            outside.append(f"{trait.label} not measurable: no flat soft tissue?")
            refused |= trait.key == "noise_hu"  # then nothing is known of it
            continue
        told.append(f"{trait.label} {trait.text(value)}{trait.unit} ({range_text})")
        if value > most * NEAR or (trait.least_counts and value < least / NEAR):
            why = trait.below if value < least else trait.above
            outside.append(f"{trait.label} {trait.text(value)}{trait.unit}, trained on {range_text}: {why}")
            refused |= value < least / trait.far or (trait.refused_above and value > most * trait.far)
    names = [", ".join(sorted(set(filter(None, given)))) or "unknown" for given in (kernels, trained_kernels)]
    told.append(f"kernel {names[0]} ({names[1]})")
    return Judgement("; ".join(told), outside, refused)
