"""What a physicist draws: noise power spectra, transfer functions at edges, detectability over dose.

Of the slices kept as pictures. Frequencies are in 1/mm where the size of the pixels is known.
"""

import numpy as np

from ldct.evaluation import curves
from ldct.evaluation.curves import Targets
from ldct.evaluation.results import FULL, Evaluation
from ldct.metrics import observer, registry
from ldct.reports import charts
from ldct.reports.charts import Curve, Look
from ldct.reports.tables import Row

DETECTABILITY, DOSE = "observer/disc", "observer/dose"
BLACK = Look("#000000", "")


def of(evaluation: Evaluation, rows: list[Row], looks: dict[str, Look]) -> dict[str, str]:
    """Charts by name; empty where the slices have nothing to draw."""
    targets = curves.targets_of(evaluation)
    return {
        "spectrum": spectra(evaluation, targets, rows, looks),
        "edges": transfers(evaluation, targets, rows, looks),
        "dose": over_dose(evaluation, targets, rows, looks),
    }


def spectra(evaluation: Evaluation, targets: Targets, rows: list[Row], looks: dict[str, Look]) -> str:
    """Noise power spectrum of every method in flat soft tissue, mean over the slices that have any."""
    flat = curves.flat(targets)
    if not flat:
        return ""
    power = curves.by_method(curves.noise_power, evaluation, flat)
    unit = "HU\u00b2 mm\u00b2" if curves.in_mm(flat) else "HU\u00b2 pixel\u00b2"
    x = curves.frequency_of(flat).tolist()
    drawn = [Curve(FULL, BLACK, x, power[FULL].tolist()), *_of_rows(x, power, rows, looks)]
    return charts.curves("spectrum", drawn, _axis(flat, targets), f"noise power ({unit})", log=True)


def transfers(evaluation: Evaluation, targets: Targets, rows: list[Row], looks: dict[str, Look]) -> str:
    """Transfer function from the full dose of every method, at edges of high contrast; mean over slices with any."""
    steep = curves.steep(targets)
    if not steep:
        return ""
    found = curves.by_method(curves.transfer, evaluation, steep)
    drawn = _of_rows(curves.frequency_of(steep).tolist(), found, rows, looks)
    return charts.curves("edges", drawn, _axis(steep, targets), "transfer at edges") if drawn else ""


def over_dose(evaluation: Evaluation, targets: Targets, rows: list[Row], looks: dict[str, Look]) -> str:
    """d' of the low dose at every simulated dose, and every method where that reaches it."""
    by_dose = {key: curve for key, target in targets.items() if (curve := observer.by_dose(target)) is not None}
    if not by_dose or DOSE not in evaluation.metrics:
        return ""
    mean = np.mean(list(by_dose.values()), 0)
    shown = mean > 0.3 * mean[-1]  # from about a tenth of the dose
    others = [row.label for row in rows if not row.is_run]
    drawn = [Curve("low dose at any dose", BLACK, observer.DOSES[shown].tolist(), mean[shown].tolist())]
    for row in rows:
        measured = [m.values for m in evaluation.get(row.name).slices if m.key in by_dose]
        reached = float(np.nanmean([values[DETECTABILITY] for values in measured]))
        dose = observer.dose_reaching(reached, mean)
        label = f"{row.label}: {registry.find(DOSE).text(dose)}"
        drawn.append(Curve(label, charts.look_of(row.label, looks, others), [dose], [reached]))
    axis = f"dose, of the full dose; {len(by_dose)} of {len(targets)} slices"
    return charts.curves("dose", drawn, axis, registry.find(DETECTABILITY).label, log_x=True)


def _axis(used: Targets, targets: Targets) -> str:
    unit = "spatial frequency (1/mm)" if curves.in_mm(used) else "cycles per pixel"
    return f"{unit}; {len(used)} of {len(targets)} slices"


def _of_rows(x: list[float], found: dict[str, np.ndarray], rows: list[Row], looks: dict[str, Look]) -> list[Curve]:
    """The curve of every method that has one."""
    others = [row.label for row in rows if not row.is_run]
    return [
        Curve(row.label, charts.look_of(row.label, looks, others), x, found[row.name].tolist())
        for row in rows
        if row.name in found
    ]
