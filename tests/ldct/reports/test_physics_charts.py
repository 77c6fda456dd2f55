"""Spectra, transfer functions and detectability over dose, of a phantom with known ones."""

import math
import re

import numpy as np
import pytest
from scipy import ndimage

from ldct.evaluation import curves, measure
from ldct.evaluation.baselines import LOW
from ldct.evaluation.datasets import Acquisition
from ldct.evaluation.results import Evaluation, Result
from ldct.metrics.intervals import Measured
from ldct.metrics.slice_pair import Target
from ldct.reports import physics_charts, tables

SIZE = 256


@pytest.fixture(scope="module")
def evaluation():
    """A full dose of 10 HU of noise, a quarter dose, a blur of it, and the half dose as "half"."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    clean = np.where((y < 100) & ((y - 50) ** 2 + (x % 64 - 32) ** 2 < 12**2), 1000.0, 50.0)
    clean = ndimage.gaussian_filter(clean, 0.5)
    evaluation, acquisition = Evaluation("test", "data", "by patient", ["abd400"]), Acquisition(0.7, 0.25)
    slices: dict[str, list[tuple[Measured, np.ndarray]]] = {}
    for key in ("a", "b"):
        full = (clean + random.normal(0, 10, clean.shape)).astype(np.int16)
        added = random.normal(0, 10 * math.sqrt(3), clean.shape)
        low = (full + added).astype(np.int16)
        outputs = {LOW: low, "Gaussian blur": ndimage.gaussian_filter(low, 1), "half": full + added / math.sqrt(3)}
        evaluation.full[key], evaluation.taken[key] = full, acquisition
        for name, output in outputs.items():
            output = output.astype(np.int16)
            target = Target(full, acquisition.spacing, low, acquisition.dose)
            slices.setdefault(name, []).append(
                (Measured("p", key, measure.values_of(output, target, ["abd400"])), output)
            )
    for name, both in slices.items():
        pictures = {measured.key: output for measured, output in both}
        evaluation.results.append(Result(name, "", [measured for measured, _ in both], 1.0, "CPU", "", pictures))
    return evaluation


def drawn(evaluation):
    return physics_charts.of(evaluation, tables.rows(evaluation, {}), {})


def test_a_method_stands_at_the_dose_that_reaches_it(evaluation):
    labels = re.findall(r">([^<>]+): (\d\.\d\d)<", drawn(evaluation)["dose"])
    doses = {label: float(dose) for label, dose in labels}
    assert doses["low dose"] == pytest.approx(0.25, abs=0.02)
    assert doses["half"] == pytest.approx(0.5, abs=0.05)


def test_frequencies_are_per_mm_where_pixels_have_a_size(evaluation):
    charts = drawn(evaluation)
    assert all("1/mm" in charts[name] for name in ("spectrum", "edges"))
    unknown = drawn(Evaluation("test", "data", "", ["abd400"], evaluation.results, evaluation.full))
    assert all("cycles per pixel" in unknown[name] for name in ("spectrum", "edges"))
    assert not unknown["dose"]


def test_white_noise_has_its_variance_and_a_blur_loses_edges(evaluation, monkeypatch):
    curves = {}
    monkeypatch.setattr(
        physics_charts.charts, "curves", lambda name, drawn, *_, **__: curves.update({name: drawn}) or name
    )
    drawn(evaluation)
    power = {curve.label: np.array(curve.y) for curve in curves["spectrum"]}
    assert power["full dose"][4:].mean() == pytest.approx(10**2 * 0.7**2, rel=0.15)
    assert power["low dose"][4:].mean() == pytest.approx(20**2 * 0.7**2, rel=0.15)
    assert curves["spectrum"][0].x[-1] == pytest.approx(0.5 / 0.7)
    transfer = {curve.label: np.array(curve.y) for curve in curves["edges"]}
    assert transfer["low dose"][:8] == pytest.approx(np.ones(8), abs=0.15)
    assert transfer["Gaussian blur"][8] == pytest.approx(math.exp(-2 * (math.pi * 0.28) ** 2), abs=0.15)


def test_spectra_are_written_as_they_are_drawn(evaluation, tmp_path):
    (tmp_path / "eval").mkdir()
    curves.save(tmp_path, evaluation, curves.targets_of(evaluation))
    path = tmp_path / "eval" / "test-noise-power.csv"
    head, *lines = path.read_text().splitlines()
    assert head == "per_mm,full dose,low dose,Gaussian blur,half"
    values = np.array([line.split(",") for line in lines], float)
    assert values[-1, 0] == pytest.approx(0.5 / 0.7, rel=1e-5) and len(values) == 16
    assert values[4:, 1:3].mean(0) == pytest.approx([10**2 * 0.7**2, 20**2 * 0.7**2], rel=0.15)
    curves.save(tmp_path, Evaluation("test", "data", "", ["abd400"], evaluation.results), {})
    assert not path.exists()
