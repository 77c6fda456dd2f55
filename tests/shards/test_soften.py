"""Thick, soft slices of a thin, sharp series: what happens to noise, edges and headers."""

import sys

import numpy as np
import pydicom
import pytest
from phantom import write_slice
from scipy import ndimage

from shards import soften
from shards.dicom import read_slices
from shards.noise_level import noise_sd, soft_tissue
from shards.noise_model import SHARP, SOFT
from shards.pixels import read_hu

SPACING = 0.7


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["soften.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        soften.command(soften.main)
    return error.value.code or 0, *capsys.readouterr()


def test_white_noise_gets_the_ratio_of_the_windows():
    rng = np.random.default_rng(0)
    white = rng.normal(50, 20, (256, 256))
    soft = soften.change_kernel(white, SPACING, SHARP, SOFT)
    f = np.hypot(*np.meshgrid(*[np.fft.fftfreq(512, SPACING)] * 2))
    expected = 20 * np.sqrt(np.mean(SOFT.power(f) / SHARP.power(f)))
    assert soft.std() == pytest.approx(expected, rel=0.03) and soft.mean() == pytest.approx(white.mean(), abs=0.1)


def test_an_edge_becomes_that_of_the_soft_kernel():
    """An edge as a sharp kernel shows it, made soft, is the edge that a soft kernel shows."""
    ideal = np.where(np.arange(256) < 128, -100.0, 50.0) * np.ones((256, 1))

    def seen_through(kernel):
        f = np.hypot(*np.meshgrid(*[np.fft.fftfreq(256, SPACING)] * 2))
        return np.fft.ifft2(np.fft.fft2(ideal) * np.sqrt(kernel.power(f))).real

    made = soften.change_kernel(seen_through(SHARP), SPACING, SHARP, SOFT)
    np.testing.assert_allclose(made[:, 64:192], seen_through(SOFT)[:, 64:192], atol=0.5)


@pytest.fixture
def thin(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(7):
        hu = np.full((128, 128), 50) + ndimage.gaussian_filter(rng.normal(0, 1, (128, 128)), 0.6) * 120
        hu[:10] = -1024
        write_slice(tmp_path / f"in/{index}.dcm", np.rint(hu), z=1.25 * index, number=index, ConvolutionKernel="LUNG")
    return tmp_path / "in"


def test_series_on_disk(thin, tmp_path, monkeypatch, capsys):
    status, out, err = run(monkeypatch, capsys, thin, tmp_path / "out")
    assert status == 0 and "2 slices of 3.75 mm; noise in soft tissue" in out, err
    for number, path in enumerate(sorted((tmp_path / "out").iterdir())):
        header, (piece,) = pydicom.dcmread(path), read_slices(path)
        assert (piece.z, piece.thickness, piece.kernel) == (1.25 * (1 + 3 * number), 3.75, "softened")
        assert header.ImageType[0] == "DERIVED" and "3 slices averaged" in header.DerivationDescription
        before, after = read_hu(read_slices(thin / "1.dcm")[0])[0], read_hu(piece)[0]
        assert (after[:10] == -1024).all() and (after[10:] > -1024).all()
        mask = soft_tissue(after)
        assert noise_sd(after, mask) < noise_sd(before, mask) / np.sqrt(3)
    status, _, err = run(monkeypatch, capsys, thin, tmp_path / "out")
    assert status == 2 and "is there already" in err and err.count("\n") == 1


def test_a_gap_is_refused(thin, tmp_path, monkeypatch, capsys):
    (thin / "3.dcm").unlink()
    status, _, err = run(monkeypatch, capsys, thin, tmp_path / "out")
    assert status == 2 and "slices at equal steps" in err and err.count("\n") == 1
