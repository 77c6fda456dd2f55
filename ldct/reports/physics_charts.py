"""What a physicist draws: noise power spectra, transfer functions at edges, detectability over dose.

Of the slices kept as pictures. Frequencies are in 1/mm where the size of the pixels is known.
"""

from collections.abc import Callable

import numpy as np

from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import FULL, Evaluation
from ldct.metrics import edges, noise_texture, observer, registry
from ldct.metrics.slice_pair import SlicePair
from ldct.reports import charts
from ldct.reports.charts import Curve, Look
from ldct.reports.tables import Row

DETECTABILITY, DOSE = "observer/disc", "observer/dose"
BLACK = Look("#000000", "")


def of(evaluation: Evaluation, rows: list[Row], looks: dict[str, Look]) -> dict[str, str]:
    """Charts by name; empty where the slices have nothing to draw."""
    pairs = {key: _pair(evaluation, key) for key in evaluation.full}
    return {
        "spectrum": spectra(evaluation, pairs, rows, looks),
        "edges": transfers(evaluation, pairs, rows, looks),
        "dose": over_dose(evaluation, pairs, rows, looks),
    }


def _pair(evaluation: Evaluation, key: str) -> SlicePair:
    """The low dose beside the full dose of a slice; its blocks are found once for all methods."""
    low, taken = evaluation.get(LOW).pictures.get(key), evaluation.taken.get(key)
    full = evaluation.full[key]
    return SlicePair(full, full, taken.spacing if taken else None, low, taken.dose if taken else None)


def spectra(evaluation: Evaluation, pairs: dict[str, SlicePair], rows: list[Row], looks: dict[str, Look]) -> str:
    """Noise power spectrum of every method in flat soft tissue, mean over the slices that have any."""
    flat = {key: pair for key, pair in pairs.items() if pair.once(noise_texture.blocks_of)}
    scale = np.square(np.hanning(noise_texture.BLOCK)).sum() ** 2

    def power(image: np.ndarray, pair: SlicePair) -> np.ndarray:
        values = noise_texture.spectrum(image, pair.once(noise_texture.blocks_of)) / scale
        return values * (pair.spacing or 1) ** 2

    drawn = _by_method(power, evaluation, flat, rows, looks)
    of_full = {key: evaluation.full[key] for key in flat}
    drawn = [*_mean(power, flat, of_full, FULL, BLACK), *drawn]
    if not drawn:
        return ""
    unit = "HU\u00b2 mm\u00b2" if _known(flat) else "HU\u00b2 pixel\u00b2"
    return charts.curves("spectrum", drawn, _axis(flat, pairs), f"noise power ({unit})", log=True)


def transfers(evaluation: Evaluation, pairs: dict[str, SlicePair], rows: list[Row], looks: dict[str, Look]) -> str:
    """Transfer function from the full dose of every method, at edges of high contrast; mean over slices with any."""
    steep = {key: pair for key, pair in pairs.items() if pair.once(edges.edge_blocks)}

    def transfer(image: np.ndarray, pair: SlicePair) -> np.ndarray:
        curve = edges.transfer_to(image, pair)
        assert curve is not None  # it has edges
        return curve

    drawn = _by_method(transfer, evaluation, steep, rows, looks)
    return charts.curves("edges", drawn, _axis(steep, pairs), "transfer at edges") if drawn else ""


def over_dose(evaluation: Evaluation, pairs: dict[str, SlicePair], rows: list[Row], looks: dict[str, Look]) -> str:
    """d' of the low dose at every simulated dose, and every method where that reaches it."""
    curves = {key: curve for key, pair in pairs.items() if (curve := observer.by_dose(pair)) is not None}
    if not curves or DOSE not in evaluation.metrics:
        return ""
    mean = np.mean(list(curves.values()), 0)
    shown = mean > 0.3 * mean[-1]  # from about a tenth of the dose
    others = [row.label for row in rows if not row.is_run]
    drawn = [Curve("low dose at any dose", BLACK, observer.DOSES[shown].tolist(), mean[shown].tolist())]
    for row in rows:
        measured = [m.values for m in evaluation.get(row.name).slices if m.key in curves]
        reached = float(np.nanmean([values[DETECTABILITY] for values in measured]))
        dose = observer.dose_reaching(reached, mean)
        label = f"{row.label}: {registry.find(DOSE).text(dose)}"
        drawn.append(Curve(label, charts.look_of(row.label, looks, others), [dose], [reached]))
    axis = f"dose, of the full dose; {len(curves)} of {len(pairs)} slices"
    return charts.curves("dose", drawn, axis, registry.find(DETECTABILITY).label, log_x=True)


def _known(pairs: dict[str, SlicePair]) -> bool:
    """Whether every slice's size of a pixel is known."""
    return all(pair.spacing for pair in pairs.values())


def _axis(used: dict[str, SlicePair], pairs: dict[str, SlicePair]) -> str:
    unit = "spatial frequency (1/mm)" if _known(used) else "cycles per pixel"
    return f"{unit}; {len(used)} of {len(pairs)} slices"


def _by_method(
    measure: Callable[[np.ndarray, SlicePair], np.ndarray],
    evaluation: Evaluation,
    pairs: dict[str, SlicePair],
    rows: list[Row],
    looks: dict[str, Look],
) -> list[Curve]:
    """The mean curve of every method that has all of the slices."""
    others, drawn = [row.label for row in rows if not row.is_run], []
    for row in rows:
        look = charts.look_of(row.label, looks, others)
        drawn += _mean(measure, pairs, evaluation.get(row.name).pictures, row.label, look)
    return drawn


def _mean(
    measure: Callable[[np.ndarray, SlicePair], np.ndarray],
    pairs: dict[str, SlicePair],
    images: dict[str, np.ndarray],
    label: str,
    look: Look,
) -> list[Curve]:
    """Mean over slices, at frequencies that all of them have; none where a slice is missing."""
    if not pairs or not pairs.keys() <= images.keys():
        return []
    sides = {key: (pair.spacing or 1) if _known(pairs) else 1 for key, pair in pairs.items()}
    frequency = noise_texture.FREQUENCY[1:] / max(sides.values())
    measured = [
        np.interp(frequency, noise_texture.FREQUENCY / sides[key], measure(images[key], pair))
        for key, pair in pairs.items()
    ]
    return [Curve(label, look, frequency.tolist(), np.mean(measured, 0).tolist())]
