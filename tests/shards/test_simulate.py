"""Series that simulate.py writes: what was drawn, DICOM, same seed same bytes, and what is refused."""

import json
import shutil
import sys

import numpy as np
import pydicom
import pytest
from conftest import run_command
from phantom import images, multi_frame, water, write_series, write_slice

from shards import full_series, noise_model, simulate, variation
from shards.common.command import InputError
from shards.dicom import read_slices
from shards.noise_level import noise_sd, soft_tissue
from shards.pairing import find_pairs
from shards.pixels import read_hu
from shards.similarity import read_records


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


def test_parts_write_what_one_process_writes(full, tmp_path, monkeypatch, capsys):
    write_series(tmp_path / "full", "L096", "full", 2, name="b{index}", PixelSpacing=[2.5, 2.5])
    other = tmp_path / "parts" / "L300" / "full_3mm" / "of another process.tmp"
    other.parent.mkdir(parents=True)
    other.touch()
    for out, parts in (("one", ["1/1"]), ("parts", ["2/3", "1/3", "3/3"])):
        for part in parts:
            status, _, err = run(monkeypatch, capsys, full, tmp_path / out, "--i0", "1e5", "--part", part)
            assert status == 0, err
    assert contents(tmp_path / "one") == contents(tmp_path / "parts")
    assert len(contents(tmp_path / "one")) == 10 and other.exists()
    status, out, _ = run(monkeypatch, capsys, full, tmp_path / "parts", "--i0", "1e5", "--part", "4/4")
    assert status == 0 and out == "part 4/4: no series\n"


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


def test_noise_of_overlapping_slices_correlates_as_their_triangles_do(tmp_path, monkeypatch, capsys):
    """3 mm every 2 mm: weights of 1/3, 1, 1/3, so 6/11, 1/11 and nothing; real 0.56 and 0.12. 2 mm: nothing."""
    flat = water(128, 120.0, 2.5)

    def correlations(thickness, *options):
        folder, out = tmp_path / f"{thickness}", tmp_path / f"out{thickness}{len(options)}"
        for number in range(5):
            write_slice(folder / f"{number}", flat, 2.0 * number, PixelSpacing=[2.5, 2.5], SliceThickness=thickness)
        status, _, err = run(monkeypatch, capsys, folder, out, "--i0", "3e5", *options)
        assert status == 0, err
        made = [read_hu(read_slices(path)[0])[0][32:96, 32:96] for path in sorted(out.rglob("*_QD_*"))]
        correlation = np.corrcoef([hu.ravel() for hu in made])
        return contents(out), [float(np.diagonal(correlation, apart).mean()) for apart in range(4)]

    written, overlapping = correlations(3)
    assert overlapping == pytest.approx([1, 6 / 11, 1 / 11, 0], abs=0.06)
    assert correlations(3, "--workers", 2)[0] == written
    assert correlations(2)[1] == pytest.approx([1, 0, 0, 0], abs=0.06)


def test_i0_by_exposure(full):
    slices = [read_slices(path)[0] for path in sorted(full.iterdir())]
    i0 = simulate.photons("x", slices, noise_model.SOFT, "mas", simulate.Workers(1))
    assert i0 == [noise_model.PHOTONS_PER_MAS * 200] * 3


@pytest.mark.parametrize("exposure", [9, 0, 99999, None])
def test_absurd_exposure(tmp_path, exposure):
    write_series(tmp_path, "L067", "full", 2, Exposure=exposure)
    slices = [read_slices(path)[0] for path in sorted(tmp_path.iterdir())]
    assert simulate.photons("x", slices, noise_model.SOFT, "mas", simulate.Workers(1)) == [3e5, 3e5]


@pytest.mark.parametrize("name", ["B30f", "Br38f", "STANDARD", "", "D45f", "B70f", "LUNG", "BONEPLUS"])
def test_kernels(tmp_path, name):
    sharp = name in ("D45f", "B70f", "LUNG", "BONEPLUS")
    (piece,) = read_slices(write_slice(tmp_path / "a", images("a", "full", 1)[0], ConvolutionKernel=name))
    assert full_series.pick_kernel([piece], "auto") is (noise_model.SHARP if sharp else noise_model.SOFT)
    assert full_series.pick_kernel([piece], "soft") is noise_model.SOFT


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
        (("--dose", "0"), "--dose 0: expected a number from 0.0001 to 0.9999"),
        (("--dose", "1.5"), "--dose 1.5: expected a number"),
        (("--dose", "0.5-0.1"), "--dose 0.5-0.1: expected a number"),
        (("--dose", "quarter"), "--dose quarter: expected a number"),
        (("--spacing", "0.7-9"), "--spacing 0.7-9: expected a number from 0.2 to 3"),
        (("--full-dose", "0"), "--full-dose 0: expected a number"),
        (("--variants", "0"), "--variants 0: expected 1 to 100 copies"),
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


@pytest.mark.parametrize("text, bounds", [("1e-3", (1e-3, 1e-3)), ("1e-3-2.5E-1", (1e-3, 0.25)), (".1-.5", (0.1, 0.5))])
def test_numbers_and_ranges(text, bounds):
    assert variation.parse("dose", text) == bounds


def test_copies_differ_in_what_their_headers_say(full, tmp_path, monkeypatch, capsys):
    ranges = ("--spacing", "1.5-3", "--full-dose", "0.2-1", "--kernel-half", "0.3-1", "--shrink", "0.5-1")
    options = ("--i0", "1e5", "--variants", 2, *ranges)
    status, _, err = run(monkeypatch, capsys, full, tmp_path / "a", *options)
    assert status == 0, err
    run(monkeypatch, capsys, full, tmp_path / "b", *options, "--workers", 2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and len(contents(tmp_path / "a")) == 12
    patients = find_pairs(tmp_path / "a").patients
    assert [patient.name for patient in patients] == ["patient-v00", "patient-v01"]
    spacings, targets = set(), set()
    source = read_slices(next(full.iterdir()))[0]
    for pair in (pair for patient in patients for pair in patient.pairs):
        for piece, what in ((pair.full, "simulated target at"), (pair.low, "simulated low dose, dose fraction 0.2500")):
            header = pydicom.dcmread(piece.path)
            said = header.DerivationDescription
            assert said.startswith(what) and f"pixels {piece.spacing[0]:.4f} mm" in said and "seed 0" in said
            factor = float(said.split("body shrunk to ")[1].split(",")[0])
            for axis in (0, 1):  # the field of view keeps its middle, and its size but for the body's
                middle = [p.position[axis] + (p.shape[axis] - 1) / 2 * p.spacing[axis] for p in (piece, source)]
                assert middle[0] == pytest.approx(middle[1], abs=1e-6)
                ratio = piece.shape[axis] * piece.spacing[axis] / (source.shape[axis] * source.spacing[axis])
                assert ratio == pytest.approx(factor, abs=1e-3)
        drawn = pair.low.simulated
        assert pair.dose == drawn["dose"] == 0.25 and drawn["shrink"] == factor and drawn["seed"] == 0
        assert 0.2 <= drawn["full_dose"] <= 1 and 0.3 <= drawn["kernel_half"] <= 1 and drawn["i0"] > 0
        assert drawn["pixels"] == pytest.approx(pair.low.spacing[0], abs=1e-4)
        assert (drawn["bowtie"], drawn["modulation"]) == (1, 0.5) and len(drawn) == 9
        assert pair.full.simulated == {}
        spacings.add(pair.full.spacing)
        targets.add(read_hu(pair.full)[0].tobytes())
    assert len(spacings) == 2 and len(targets) == 6


def test_the_record_of_a_shard_says_what_was_drawn(full, tmp_path, monkeypatch, capsys):
    run(monkeypatch, capsys, full, tmp_path / "pairs", "--i0", "1e5", "--dose", "0.1-0.4", "--seed", 3)
    run_command("shards/build.py", tmp_path / "pairs", tmp_path / "shards", "--split", "test")
    records = [about for _, _, about in read_records(tmp_path / "shards/test-00000.tar")]
    assert len({about["simulated"]["dose"] for about in records}) == len(records) == 3
    for about in records:
        assert about["simulated"].pop("dose") == about["dose"]
        assert about["simulated"] == {
            "full_dose": 1, "i0": 1e5, "kernel_half": 0.34, "bowtie": 1, "modulation": 0.5, "shrink": 1, "pixels": 2.5,
            "seed": 3,
        }  # fmt: skip


def test_folders_without_a_slice_are_no_series(full, tmp_path, monkeypatch, capsys):
    shutil.move(full, tmp_path / "in/L067")
    (tmp_path / "in/metadata.csv").write_text("a,b\n")
    write_slice(tmp_path / "in/scout/1.dcm", images("a", "full", 1)[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    status, out, err = run(monkeypatch, capsys, tmp_path / "in", tmp_path / "out", "--i0", "1e5")
    assert status == 0, err
    assert "passed over 1 file: a localizer" in out and "passed over 1 file: not DICOM" in out
    assert {name.split("/")[0] for name in contents(tmp_path / "out")} == {"L067"}


def test_of_two_that_begin_at_once_with_other_settings_one_goes_on(tmp_path):
    """Both have looked before either wrote its note."""
    simulate.begin(tmp_path / "out", {"seed": 0}, [])
    simulate.begin(tmp_path / "out", {"seed": 0}, [])
    with pytest.raises(InputError, match=r"made from other data or settings \(seed; see "):
        simulate.begin(tmp_path / "out", {"seed": 1}, [])
    assert simulate.read_note(tmp_path / "out") == {"seed": 0}


def test_another_body_is_not_mixed_in(full, tmp_path, monkeypatch, capsys):
    """As many slices of the same name, at the same places, and other pixels."""
    run(monkeypatch, capsys, full, tmp_path / "out", "--i0", "1e5")
    before = contents(tmp_path / "out")
    moved = shutil.copytree(full, tmp_path / "moved/full")  # the same images elsewhere are the same source
    assert run(monkeypatch, capsys, moved, tmp_path / "out", "--i0", "1e5")[0] == 0
    shutil.rmtree(full)
    write_series(full, "L096", "full", 3, name="{index}", PixelSpacing=[2.5, 2.5])
    status, _, err = run(monkeypatch, capsys, full, tmp_path / "out", "--i0", "1e5")
    assert status == 2 and "other images of patient" in err and err.count("\n") == 1
    assert contents(tmp_path / "out") == before


def test_a_refused_i0_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    write_slice(tmp_path / "in/a.dcm", np.full((64, 64), -900))
    status, _, err = run(monkeypatch, capsys, tmp_path / "in", tmp_path / "out")
    assert status == 2 and "--i0 mas or a number, e.g. 3e5" in err and not (tmp_path / "out").exists()
    assert run(monkeypatch, capsys, tmp_path / "in", tmp_path / "out", "--i0", "3e5")[0] == 0


@pytest.mark.parametrize("out", [".", "inside"])
def test_out_is_not_in_full(full, monkeypatch, capsys, out):
    before = sorted(full.rglob("*"))
    status, _, err = run(monkeypatch, capsys, full, full / out)
    assert status == 2 and "choose a folder beside it" in err and sorted(full.rglob("*")) == before


def test_a_body_that_the_field_cuts_off_is_said(tmp_path, monkeypatch, capsys):
    whole = images("L067", "full", 1)[0]
    assert full_series.cut_off(whole) < 0.05
    write_slice(tmp_path / "in/a.dcm", whole[24:104, 24:104], PixelSpacing=[2.5, 2.5])
    status, out, err = run(monkeypatch, capsys, tmp_path / "in", tmp_path / "out")
    assert status == 0 and "of the edge of the reconstructed field shows body" in out, err
    assert "level of the noise is fitted to the slice's own" in out
    assert (
        "by a given I0 comes out far too low"
        in run(monkeypatch, capsys, tmp_path / "in", tmp_path / "o1", "--i0", 1e5)[1]
    )
    status, _, err = run(monkeypatch, capsys, tmp_path / "in", tmp_path / "o2", "--i0", "mas")
    assert status == 2 and "give --i0 auto" in err


def test_the_note_says_what_made_the_folder(full, tmp_path, monkeypatch, capsys):
    run(monkeypatch, capsys, full, tmp_path / "out", "--i0", "1e5", "--dose", "1e-1")
    note = json.loads((tmp_path / "out/simulation.json").read_text())
    assert note["ranges"]["dose"] == [0.1, 0.1] and note["model"] == simulate.MODEL
    assert note["sources"]["patient"]["slices"] == 3 and len(note["sources"]["patient"]["sha256"]) == 64


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"RescaleIntercept": None}, "4 of 4 slices have no RescaleSlope or RescaleIntercept, so their values may not"),
        ({"RescaleIntercept": 0}, "expected HU, found no pixel below -50 HU, where fat and air lie; put the RescaleI"),
        ({"DerivationDescription": "denoised by x"}, "expected a full dose as scanned, found 'denoised by x'; give"),
        ({"DerivationDescription": "simulated low dose, dose fraction 0.2500"}, "found 'simulated low dose, dose fr"),
        ({"second": {"ConvolutionKernel": "B70f"}}, "holds several series (kernels B30f, B70f); give each a folder o"),
        ({"second": {"PatientID": "other"}}, "holds several series (2 PatientIDs); give each a folder of its own"),
    ],
)
def test_a_source_that_is_no_full_dose_in_hu_is_one_line(tmp_path, monkeypatch, capsys, changes, message):
    second = changes.pop("second", None)
    write_series(tmp_path / "in", "L067", "full", 4, 64, **changes)
    if second:
        write_series(tmp_path / "in", "L067", "full", 2, 64, name="b{index}", first_z=9.0, **second)
    status, _, err = run(monkeypatch, capsys, tmp_path / "in", tmp_path / "out")
    assert status == 2 and message in err and err.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_a_slice_that_cannot_be_decoded_where_the_noise_is_measured_is_one_line(full, tmp_path, monkeypatch, capsys):
    for path in full.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.JPEG2000Lossless)
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51 no image"])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    status, _, err = run(monkeypatch, capsys, full, tmp_path / "out")
    assert status == 2 and f"error: {full}: a slice cannot be read: pixels cannot be decoded" in err
    assert "Traceback" not in err and not (tmp_path / "out").exists()
