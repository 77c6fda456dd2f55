"""What is said of inference is arithmetic on what was measured. No timing."""

import itertools

import numpy as np
import torch
from made import make_run

from ldct import config
from ldct.benchmarks import common, infer
from ldct.inference.denoiser import Denoiser

CPU = torch.device("cpu")


def test_inference_beside_the_baseline(tiny_shards, tmp_path):
    run = make_run(tmp_path / "0-run", tiny_shards, depth=5, scale=0.3)
    low = np.random.default_rng(0).integers(-1000, 1000, (2, 64, 64)).astype(np.int16)
    result = infer.measure_run(run, low, 2, CPU)
    rows = {row["variant"]: row for row in result["rows"]}
    assert list(rows) == ["ours, fp32", "ours, bf16", "baseline"] and result["base"] == "baseline"
    assert rows["ours, fp32"]["rmse_hu"] == 0 and rows["baseline"]["rmse_hu"] < 0.05
    assert 0.05 < rows["ours, bf16"]["rmse_hu"] < 5
    assert rows["baseline"]["ratio"] == 1
    assert Denoiser(run, CPU).precision == "fp32"  # the run's own, not the default


def test_rows_of_inference_are_arithmetic_on_the_repeats():
    settings = config.parse(["--model.channels=4"])
    low = np.array([[[0, 1000], [5000, -3000]]], np.int16).repeat(32, 1).repeat(32, 2)
    near, far = low + 3, low + 3
    far[low == 5000] += 999  # clipped by the normalization: does not count
    repeats = {"ours, fp32": [(2.0, low)] * 2, "ours, bf16": [(5.0, near), (7.0, near)], "baseline": [(1.0, far)] * 2}
    rows = infer.rows(settings, low, repeats, "baseline", {"fp32": 1e9, "bf16": 4e9})
    ours, theirs = rows[1:]
    assert [row["ratio"] for row in rows] == [2, 6, 1]
    assert [row["rmse_hu"] for row in rows] == [0, 3, 3]
    work = common.flops(settings.model, (64, 64))
    inner = sum((64 - 4 * i) ** 2 for i in range(2, 6))
    assert work == 2 * 25 * (2 * 4**2 * inner + 2 * 4 * 60**2)
    assert ours["flop_per_s"] == 6 * work and ours["share"] == 6 * work / 4e9
    assert theirs["share"] == work / 1e9


def test_memory_is_asked_for_parts_of_a_series(tiny_shards, tmp_path, monkeypatch):
    shapes = []
    monkeypatch.setattr(infer, "Denoiser", lambda run, device: lambda part: shapes.append(part.shape))
    peaks = list(itertools.islice(infer.peaks(tmp_path, np.zeros((1, 16, 16), np.int16), CPU), 3))
    assert shapes == [(8, 16, 16)] * 3
    assert peaks[0] > 0


def peak_of_a_process():
    yield infer.peak_mb(CPU)


def test_a_process_has_a_peak_of_its_own():
    """Not its parent's, with which ru_maxrss starts."""
    held = torch.ones(1 << 30, dtype=torch.uint8)
    with common.apart(peak_of_a_process) as peak:
        assert 50 < peak() < infer.peak_mb(CPU) - 500
    del held
