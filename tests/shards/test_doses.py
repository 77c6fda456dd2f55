"""Pairs that cannot be right stop the build with numbers; each passed without a word once."""

import json
import shutil
import sys

import numpy as np
import pydicom
import pytest
from phantom import make_dataset

from shards import build, dose_comparison, pairing_report
from shards.manifest import load


@pytest.fixture
def source(tmp_path):
    return make_dataset(tmp_path / "in", ("L067", "L096", "L109"), slices=3)


def main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["build.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        build.command(build.main)
    return error.value.code or 0, *capsys.readouterr()


def change(folder, change_header):
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        change_header(dataset)
        dataset.save_as(path)


def no_rescale(dataset):
    del dataset.RescaleSlope, dataset.RescaleIntercept


def shifted(hu):
    def change_header(dataset):
        dataset.RescaleIntercept = dataset.RescaleIntercept + hu

    return change_header


def one_without_intercept(dataset):
    if dataset.InstanceNumber == 2:
        del dataset.RescaleIntercept


def copy_full(source):
    shutil.rmtree(source / "L067/quarter_1mm")
    shutil.copytree(source / "L067/full_1mm", source / "L067/quarter_1mm")


def one_series(source):
    uid = pydicom.dcmread(next((source / "L067/full_1mm").iterdir())).SeriesInstanceUID
    change(source / "L067/quarter_1mm", lambda dataset: setattr(dataset, "SeriesInstanceUID", uid))


def both(source, change_header):
    for dose in ("full", "quarter"):
        change(source / f"L067/{dose}_1mm", change_header)


def setting(**values):
    def change_header(dataset):
        for name, value in values.items():
            setattr(dataset, name, value)

    return change_header


def higher(dataset):
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, z + 1]


def rolled(dataset):
    dataset.PixelData = np.roll(dataset.pixel_array, 2, 1).tobytes()


FAULTS = {
    "a copy": (copy_full, "L067: full and reduced dose have the same pixels: one is a copy of the other"),
    "one series": (one_series, "L067: 3 of 3 pairs have one SeriesInstanceUID at both doses"),
    "100 HU": (lambda s: change(s / "L067/quarter_1mm", shifted(100)), "lies +100."),
    "6 HU": (lambda s: change(s / "L067/quarter_1mm", shifted(-6)), "in soft tissue, expected at most 5"),
    "no rescale": (lambda s: both(s, no_rescale), "6 of 6 slices have no RescaleSlope or RescaleIntercept"),
    "one slice": (lambda s: change(s / "L067/full_1mm", one_without_intercept), "1 of 6 slices have no RescaleSlope"),
    "1024 HU too high": (lambda s: both(s, shifted(1024)), "at full dose, expected near -1000: are the values HU?"),
    "another kernel": (lambda s: change(s / "L067/quarter_1mm", setting(ConvolutionKernel="D45f")), "L067: the doses "
                       "differ in kernel: B30f and D45f; put it right"),
    "another thickness": (lambda s: change(s / "L067/quarter_1mm", setting(SliceThickness=3)), "in mm: 1.0 and 3.0"),
    "another voltage": (lambda s: change(s / "L067/quarter_1mm", setting(KVP=120)), "differ in kVp: 100.0 and 120.0"),
    "a slice lower": (lambda s: change(s / "L067/quarter_1mm", higher), "L067: the reduced dose is closer to the "
                      "full-dose slice below than to its mate: is one dose moved?"),
    "two pixels to the right": (lambda s: change(s / "L067/quarter_1mm", rolled), "closer to the full dose moved by"),
    "denoised": (lambda s: change(s / "L067/full_1mm", setting(DerivationDescription="denoised by x")),
                 "L067: 3 of 6 slices were denoised by launch/denoise.py"),
    "1024 HU too low": (lambda s: both(s, shifted(-1024)), "its slices show no body"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_the_build_with_numbers_unless_it_is_allowed(source, tmp_path, monkeypatch, capsys, fault):
    break_it, message = FAULTS[fault]
    break_it(source)
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out")
    last = err.strip().splitlines()[-1]
    assert status == 2 and message in last and last.endswith("--allow L067") and not (tmp_path / "out").exists()
    assert "L096" not in last
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out", "--allow", "L067")
    assert status == 0, err


def test_a_modality_lut_is_not_ignored(source, tmp_path, monkeypatch, capsys):
    def table(dataset):
        item = pydicom.Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [2, 0, 16], "HU", bytes(4)
        dataset.ModalityLUTSequence = [item]

    change(source / "L067/quarter_1mm", table)
    status, out, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 0, err
    assert "left out 3: its values go through a Modality LUT, which is not supported" in out


@pytest.mark.parametrize("new_uids", [False, True])
def test_one_patient_under_two_names_stops_the_build(source, tmp_path, monkeypatch, capsys, new_uids):
    shutil.copytree(source / "L096", source / "L500")
    if new_uids:
        for path in (source / "L500").rglob("*.IMA"):
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID + ".1"
            dataset.SeriesInstanceUID += ".1"
            dataset.save_as(path)
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert (
        status == 2
        and "L096: has images or the study of L500: one patient under two names would stand in two splits" in err
    )
    assert "L500: has images or the study of L096" in err and err.endswith("--allow L096 L500\n")


@pytest.mark.parametrize(
    "name, value", [("PixelSpacing", [0.707, 0.707]), ("ImagePositionPatient", [-44.8, -39.8, -50])]
)
def test_a_patient_of_whom_nothing_pairs_stops_the_build(source, tmp_path, monkeypatch, capsys, name, value):
    """Another field of view, another height of the table: the patient would be missing without a fault."""
    change(source / "L067/quarter_1mm", setting(**{name: value}))
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 2 and "L067: only 0 of 3 full-dose and 3 reduced-dose slices pair, see above; put it right" in err


def zeros(path):
    """As a copy leaves it that was broken off on a disk that had made room."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


def swap(path):
    other = path.parents[1] / "full_1mm" / path.name.replace("QD", "FD")
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two), other.write_bytes(one)


def copied(path):
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.dcmread(path.parents[1] / "full_1mm" / path.name.replace("QD", "FD")).PixelData
    dataset.save_as(path)


@pytest.mark.parametrize(
    "break_it, why",
    [
        (zeros, "of the body lies more than 200 HU apart at the two doses: damaged?"),
        (swap, "its reduced dose is less noisy than its full one ("),
        (copied, "full and reduced dose have the same pixels"),
    ],
)
def test_one_slice_that_is_no_pair_is_left_out(source, tmp_path, monkeypatch, capsys, break_it, why):
    """The report looks at a few slices; every pair is asked when it is written."""
    break_it(sorted((source / "L109/quarter_1mm").iterdir())[0])
    monkeypatch.setattr(pairing_report, "SAMPLED", 1)
    status, out, err = main(monkeypatch, capsys, source, tmp_path / "out")
    (line,) = (line for line in out.splitlines() if line.startswith("left out L109_0000 ("))
    assert status == 0 and why in line, err
    assert sum(counts["slices"] for counts in load(tmp_path / "out").counts.values()) == 8


def test_a_part_of_a_patient_under_another_name_stops_the_build(source, tmp_path, monkeypatch, capsys):
    """New UIDs, and other slices than the report looks at: the pixels tell it."""
    for dose in ("full", "quarter"):
        (path,) = sorted((source / f"L096/{dose}_1mm").iterdir())[:1]
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        shutil.copy(sorted((source / f"L067/{dose}_1mm").iterdir())[0], path)
        uids = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
        change(path.parent, setting(**{name: pydicom.uid.generate_uid() for name in uids}))
    monkeypatch.setattr(pairing_report, "SAMPLED", 1)
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 2 and "L067 and L096 have the same image (L" in err and "one patient under two names" in err
    assert not list((tmp_path / "out").glob("*.tar"))
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out", "--allow", "L067", "L096")
    assert status == 0, err


def test_noise_ratio_and_levels_stand_in_the_report(source, tmp_path, monkeypatch, capsys):
    change(source / "L067/quarter_1mm", shifted(2))
    status, out, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 0, err
    row = json.loads((tmp_path / "out/pairing.json").read_text())["patients"][0]
    assert row["noise_ratio"] == pytest.approx(2, rel=0.1)
    assert row["level"]["soft"] == pytest.approx(2, abs=1.5) and -1024 <= row["air"]["full"] <= -1000
    line = next(line for line in out.splitlines() if line.startswith("L067"))
    assert f" {row['noise_ratio']:.2f} " in line and f"{row['level']['soft']:+.1f}" in line


def test_level_difference_is_that_of_the_tissue_alone():
    full = np.full((128, 128), 50)
    full[:64] = -100
    low = full + np.where(full == 50, 7, -3)
    assert dose_comparison.level_difference(full, low, dose_comparison.SOFT) == 7
    assert dose_comparison.level_difference(full, low, dose_comparison.FAT) == -3
    assert np.isnan(dose_comparison.level_difference(full, low, (500, 600)))
