"""The inserted noise against its own formula, and the series that are written against DICOM."""

import sys

import numpy as np
import pydicom
import pytest
from phantom import images, multi_frame, write_series, write_slice

from shards import noise_model, simulate
from shards.dicom import read_slices
from shards.noise_level import noise_sd, soft_tissue
from shards.pairing import find_pairs
from shards.pixels import read_hu

MU = 0.0192


def water(size=128, radius=100.0, spacing=2.0):
    """A disc of water of ``radius`` mm, HU."""
    axis = (np.arange(size) - (size - 1) / 2) * spacing
    return np.where(np.hypot(*np.meshgrid(axis, axis)) <= radius, 0, -1000).astype(np.int16)


def expected_sd(kernel, dose, i0, radius):
    """SD in HU at the centre of a disc of water, from Yu's noise per ray and the theory of filtered back-projection.

    Every ray through the centre sees 2 * radius of water. FBP sums pi/VIEWS times the filtered views, which are
    interpolated linearly between bins (mean power transfer (2 + cos(2 pi f d)) / 3), and white noise of variance v per
    bin has power v * d per frequency.
    """
    ray = (1 - dose) / dose * np.exp(2 * radius * MU) / i0
    f = np.linspace(0, 1 / (2 * noise_model.PITCH), 20001)
    window = np.exp(-np.log(2) * (f / kernel.half) ** 2) if kernel.half else np.ones_like(f)
    power = (f * window) ** 2 * (2 + np.cos(2 * np.pi * f * noise_model.PITCH)) / 3
    variance = np.pi**2 / noise_model.VIEWS * ray * noise_model.PITCH * 2 * np.trapezoid(power, f)
    return np.sqrt(variance) * 1000 / MU


@pytest.mark.parametrize("kernel, dose", [(noise_model.SOFT, 0.25), (noise_model.SOFT, 0.1), (noise_model.SHARP, 0.25)])
def test_noise_in_water_is_what_the_formula_says(kernel, dose):
    hu = water()
    i0 = kernel.photons_per_mas * 200
    noises = [noise_model.noise(hu, 2.0, 120, kernel, dose, i0, [seed]) for seed in range(3)]
    centre = np.array([noise[56:72, 56:72] for noise in noises])
    assert centre.std() == pytest.approx(expected_sd(kernel, dose, i0, 100.0), rel=0.1)
    inside = hu == 0
    assert abs(np.mean([noise[inside].mean() for noise in noises])) < 0.5


def test_noise_has_the_spectrum_of_a_soft_kernel():
    """Mean frequency of the radial noise power spectrum: 0.25 per mm in real B30f quarter-dose scans."""
    size, spacing = 256, 0.8
    noise = noise_model.noise(water(size, 90.0, spacing), spacing, 120, noise_model.SOFT, 0.25, 3e5, [0])
    part = noise[64:192, 64:192]
    power = np.abs(np.fft.fft2(part - part.mean())) ** 2
    f = np.hypot(*np.meshgrid(*[np.fft.fftfreq(128, spacing)] * 2))
    bins = (f / 0.02).astype(int).ravel()
    radial = np.bincount(bins, power.ravel())[:31] / np.bincount(bins)[:31]
    assert (radial * (np.arange(31) + 0.5) * 0.02).sum() / radial.sum() == pytest.approx(0.24, abs=0.02)


def test_noise_is_strongest_along_the_thick_direction():
    """A body wider than high is noisier across: streaks lie along the long rays."""
    axis = (np.arange(128) - 63.5) * 3
    x, y = np.meshgrid(axis, axis)
    hu = np.where((x / 180) ** 2 + (y / 90) ** 2 < 1, 0, -1000)
    part = noise_model.noise(hu, 3.0, 120, noise_model.SOFT, 0.25, 3e5, [0])[48:80, 48:80]
    along_x, along_y = part.mean(axis=1).std(), part.mean(axis=0).std()
    assert along_x > 1.5 * along_y


def test_projection_and_back_projection_are_inverse():
    """The geometry of both fits: an off-centre object comes back where it was, at its HU."""
    hu = water(128, 110, 2.0)
    hu[30:50, 80:95] = 300
    sinogram = noise_model.line_integrals(hu, 2.0, MU)
    assert sinogram.shape == (1152, 736) and sinogram.max() == pytest.approx(2 * 110 * MU, rel=0.1)
    back = noise_model.back_project(sinogram, hu.shape, 2.0, noise_model.SOFT) * 1000 / MU - 1000
    assert back[33:47, 83:92].mean() == pytest.approx(300, abs=15)
    assert back[80:95, 30:50].mean() == pytest.approx(0, abs=10)


def test_noise_measure_on_known_noise():
    hu = images("L067", "full", 1)[0]
    assert noise_sd(hu, soft_tissue(hu)) == pytest.approx(10, rel=0.15)
    assert np.isnan(noise_sd(hu, np.zeros(hu.shape, bool)))


@pytest.fixture
def full(tmp_path):
    write_series(tmp_path / "full", "L067", "full", 3, name="{index}", PixelSpacing=[2.5, 2.5])
    return tmp_path / "full"


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["simulate.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        simulate.command(simulate.main)
    return error.value.code or 0, *capsys.readouterr()


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.IMA"))}


def test_auto_adds_what_a_quarter_dose_lacks(full, tmp_path, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, full, tmp_path / "out")
    assert status == 0, err
    names = list(contents(tmp_path / "out"))
    assert names[0] == "patient/full_1mm/patient_FD_0001.IMA" and names[3] == "patient/quarter_1mm/patient_QD_0001.IMA"
    (patient,) = find_pairs(tmp_path / "out").patients
    assert len(patient.pairs) == 3 and {pair.dose for pair in patient.pairs} == {0.25}
    for pair in patient.pairs:
        low, high = read_hu(pair.low)[0].astype(float), read_hu(pair.full)[0]
        mask = soft_tissue(high)
        assert noise_sd(low - high, mask) == pytest.approx(np.sqrt(3) * noise_sd(high, mask), rel=0.1)
        assert abs((low - high)[mask].mean()) < 0.5
        assert (low[high == -1024] == -1024).all() and low.min() >= -1024


def test_the_copy_is_the_source_and_the_derived_is_valid(full, tmp_path, monkeypatch, capsys):
    for path in full.iterdir():  # as the sample of real CT: identity emptied
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.SOPInstanceUID = dataset.StudyInstanceUID = dataset.SeriesInstanceUID = ""
        dataset.save_as(path, enforce_file_format=False)
    status, _, err = run(monkeypatch, capsys, full, tmp_path / "out", "--i0", "1e5", "--seed", 7)
    assert status == 0, err
    made = contents(tmp_path / "out")
    assert [made[f"patient/full_1mm/patient_FD_000{i}.IMA"] for i in (1, 2, 3)] == [
        path.read_bytes() for path in sorted(full.iterdir())
    ]
    low = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").rglob("*_QD_*.IMA"))]
    assert len({d.SOPInstanceUID for d in low}) == 3 and len({d.SeriesInstanceUID for d in low}) == 1
    for number, dataset in enumerate(low, 1):
        assert dataset.SOPInstanceUID.is_valid and dataset.SeriesInstanceUID.is_valid and dataset.StudyInstanceUID
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2" and dataset.InstanceNumber == number
        assert dataset.ImageType == ["DERIVED", "PRIMARY", "AXIAL"] and dataset.ImagePositionPatient[2] == -51 + number
        assert "dose fraction 0.2500" in dataset.DerivationDescription and "seed 7" in dataset.DerivationDescription


def test_same_seed_same_bytes_whatever_the_workers_and_the_interruption(full, tmp_path, monkeypatch, capsys):
    options = ("--i0", "1e5", "--dose", "0.1-0.5")
    run(monkeypatch, capsys, full, tmp_path / "a", *options)
    run(monkeypatch, capsys, full, tmp_path / "b", *options, "--workers", 2)
    made = contents(tmp_path / "a")
    assert len(made) == 6 and contents(tmp_path / "b") == made
    (tmp_path / "b/patient/quarter_1mm/patient_QD_0002.IMA").unlink()
    (tmp_path / "b/patient/full_1mm/patient_FD_0003.IMA").unlink()
    (tmp_path / "b/patient/full_1mm/patient_FD_0003.IMA.77.tmp").write_bytes(b"half")
    run(monkeypatch, capsys, full, tmp_path / "b", *options)
    assert contents(tmp_path / "b") == made and not list((tmp_path / "b").rglob("*.tmp"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*") if path.is_file()}
    _, out, _ = run(monkeypatch, capsys, full, tmp_path / "b", *options)
    assert "all 3 slices are there already" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before  # a build takes a newer file for changed input
    run(monkeypatch, capsys, full, tmp_path / "c", *options, "--seed", 1)
    assert (
        contents(tmp_path / "c")["patient/quarter_1mm/patient_QD_0001.IMA"]
        != made["patient/quarter_1mm/patient_QD_0001.IMA"]
    )
    doses = [pair.dose for patient in find_pairs(tmp_path / "a").patients for pair in patient.pairs]
    assert len(set(doses)) == 3 and all(0.1 <= dose <= 0.5 for dose in doses)


def test_i0_by_exposure(full):
    slices = [read_slices(path)[0] for path in sorted(full.iterdir())]
    settings = simulate.Settings((0.25, 0.25), "mas", "auto", 0)
    workers = simulate.Workers(1)
    assert simulate.photons("x", slices, noise_model.SOFT, settings, workers) == [1235 * 200] * 3
    assert simulate.photons("x", slices, noise_model.SHARP, settings, workers) == [1390 * 200] * 3


@pytest.mark.parametrize("exposure", [9, 0, 99999, None])
def test_absurd_exposure(tmp_path, exposure):
    write_series(tmp_path, "L067", "full", 2, Exposure=exposure)
    slices = [read_slices(path)[0] for path in sorted(tmp_path.iterdir())]
    settings = simulate.Settings((0.25, 0.25), "mas", "auto", 0)
    assert simulate.photons("x", slices, noise_model.SOFT, settings, simulate.Workers(1)) == [3e5, 3e5]


@pytest.mark.parametrize("name", ["B30f", "Br38f", "STANDARD", "", "D45f", "B70f", "LUNG", "BONEPLUS"])
def test_kernels(tmp_path, name):
    sharp = name in ("D45f", "B70f", "LUNG", "BONEPLUS")
    (piece,) = read_slices(write_slice(tmp_path / "a", images("a", "full", 1)[0], ConvolutionKernel=name))
    assert simulate.pick_kernel([piece], "auto") is (noise_model.SHARP if sharp else noise_model.SOFT)
    assert simulate.pick_kernel([piece], "soft") is noise_model.SOFT


def test_only_the_full_dose_of_a_known_layout_is_taken(tmp_path, monkeypatch, capsys):
    write_series(tmp_path / "in/L067/full_1mm", "L067", "full", 1, PixelSpacing=[2.5, 2.5])
    write_series(tmp_path / "in/L067/quarter_1mm", "L067", "quarter", 1)
    status, out, err = run(monkeypatch, capsys, tmp_path / "in", tmp_path / "out", "--dose", "0.1", "--i0", "mas")
    assert status == 0, err
    assert list(contents(tmp_path / "out")) == ["L067/full_1mm/L067_FD_0001.IMA", "L067/quarter_1mm/L067_QD_0001.IMA"]
    assert "passed over 1 file: a reduced dose already" in out


def test_frames_of_a_multi_frame_file(tmp_path, monkeypatch, capsys):
    frames = images("L067", "full", 2)
    (tmp_path / "in").mkdir()
    multi_frame(tmp_path / "in/a.dcm", frames)
    status, _, err = run(monkeypatch, capsys, tmp_path / "in", tmp_path / "out", "--i0", "3e6")
    assert status == 0, err
    (patient,) = find_pairs(tmp_path / "out").patients
    assert [pair.full.z for pair in patient.pairs] == [0, 3]
    for pair, frame in zip(patient.pairs, frames, strict=True):
        np.testing.assert_array_equal(read_hu(pair.full)[0], frame)
        assert 0.1 < (read_hu(pair.low)[0].astype(int) - frame)[40:90, 40:90].std() < 30


@pytest.mark.parametrize(
    "options, message",
    [
        (("--dose", "0"), "--dose 0: expected a fraction"),
        (("--dose", "1.5"), "--dose 1.5: expected a fraction"),
        (("--dose", "0.5-0.1"), "--dose 0.5-0.1: expected a fraction"),
        (("--dose", "quarter"), "--dose quarter: expected a fraction"),
        (("--i0", "many"), "--i0 many: expected auto, mas or a number"),
        (("--i0", "-3"), "--i0 -3: expected auto, mas or a number"),
    ],
)
def test_bad_options_are_one_line(full, tmp_path, monkeypatch, capsys, options, message):
    arguments = [f"{options[0]}={options[1]}"]
    status, _, err = run(monkeypatch, capsys, full, tmp_path / "out", *arguments)
    assert status == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_no_soft_tissue_to_calibrate_by(tmp_path, monkeypatch, capsys):
    write_slice(tmp_path / "in/a.dcm", np.full((64, 64), -900))
    status, _, err = run(monkeypatch, capsys, tmp_path / "in", tmp_path / "out")
    assert status == 2 and "no flat soft tissue" in err and "--i0 mas or a number" in err


def test_other_settings_and_empty_folders_are_refused(full, tmp_path, monkeypatch, capsys):
    run(monkeypatch, capsys, full, tmp_path / "out", "--i0", "1e5")
    status, _, err = run(monkeypatch, capsys, full, tmp_path / "out", "--i0", "2e5")
    assert status == 2 and "other data or settings" in err
    (tmp_path / "empty").mkdir()
    status, _, err = run(monkeypatch, capsys, tmp_path / "empty", tmp_path / "o2")
    assert status == 2 and "no axial CT slice" in err and "the folder is empty" in err
    status, _, err = run(monkeypatch, capsys, tmp_path / "gone", tmp_path / "o2")
    assert status == 2 and "found no folder" in err
