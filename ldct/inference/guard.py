"""Which series may be denoised: those in HU, not denoised yet, and like what the network was trained on."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ldct.inference.pretrained import Card
from ldct.inference.scan import judge, measure_slices, medians, uneven_noise
from ldct.inference.series import Series
from shards.dicom import Slice, Unusable
from shards.dose_comparison import air_level
from shards.pairing_report import AIR, BODY
from shards.pixels import read_hu

LOOKED_AT = 3
"""Slices of a series, evenly along z, in which air and body are looked for."""


def check_images(series: list[Series], force: bool) -> list[Series]:
    """Leave out, or with ``force`` note on, what no network should denoise: values that are not HU; twice."""
    return [_refuse(each, "; ".join(doubts(each.slices)), force) for each in series]


def doubts(slices: list[Slice]) -> Iterator[str]:
    """What speaks against denoising a series, whatever the network."""
    without = sum(not piece.coding.rescaled for piece in slices)
    if without:
        yield f"{without} of {len(slices)} slices have no RescaleSlope or RescaleIntercept: are the values HU?"
    if any(piece.denoised for piece in slices):
        yield "it was denoised before"
    air, tissue = [], []
    for index in sorted({round(i) for i in np.linspace(0, len(slices) - 1, LOOKED_AT + 2)[1:-1]}):
        try:
            hu = read_hu(slices[index])[0]
        except Unusable:
            continue  # whoever denoises it says so
        air.append(air_level(hu))
        tissue.append(float(((hu >= -200) & (hu <= 300)).mean()))
    if air and not AIR[0] <= (level := float(np.nanmedian(air))) <= AIR[1]:
        yield f"its darkest percent lies at {level:.0f} HU, air near -1000: are the values HU, is there no air?"
    elif tissue and np.median(tissue) < BODY:
        yield "it shows no body: less than 1 % of the pixels lie from -200 to 300 HU"


def check(series: list[Series], card: Card, force: bool) -> tuple[list[Series], list[str]]:
    """Measure every series and hold it against the card of the network.

    Returns
    -------
    series
        In their order. What is far outside is left out, or with ``force`` gets a note that says so.
    lines
        For people: what was measured of each, and warnings.
    """
    checked, lines = [], []
    for each in series:
        if each.left_out:
            checked.append(each)
            continue
        where = each.slices[0].path.parent
        kernels = {piece.kernel for piece in each.slices}
        measured = measure_slices(each.slices)
        judgement = judge(medians(measured.values()), card.ranges, kernels, card.kernels)
        lines.append(f"{where}: {judgement.line}")
        if not judgement.refused and (uneven := uneven_noise(measured, card.ranges)):
            lines.append(f"warning: {where}: {uneven}; look at these slices")
        outside = "; ".join(judgement.outside)
        if outside and (force or not judgement.refused):
            lines.append(f"warning: {where}: {card.name} was not trained on such a series: {outside}")
        if judgement.refused:
            each = _refuse(each, f"{card.name} was not trained on such a series ({outside})", force)
        checked.append(each)
    return checked, lines


def _refuse(series: Series, why: str, force: bool) -> Series:
    """``series`` left out for that reason, or with a note of it; as it is without a reason."""
    if not why:
        return series
    if force:
        return dataclasses.replace(series, note=f"{series.note}, in spite of: {why}")
    reason = f"{series.slices[0].path.parent}: {why}; --force denoises it"
    return dataclasses.replace(series, left_out=series.left_out or reason)
