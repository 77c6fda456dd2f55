"""Headers without the patient, in what simulate.py and denoise.py write, and images that are as valid as before."""

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import run_command
from made import make_run
from phantom import images, write_slice

from ldct.inference.folder_key import FolderKey, open_key, read_note
from shards.common.command import InputError
from shards.deidentify import Deidentifier
from shards.dicom import read_slices
from shards.pixels import read_hu

SECRETS = {
    "PatientName": "Doe^Jane", "PatientID": "MRN4711", "PatientBirthDate": "19520301", "PatientSex": "F",
    "PatientAge": "071Y", "StudyDate": "20231121", "AcquisitionTime": "101112", "AccessionNumber": "ACC99",
    "ReferringPhysicianName": "House^Gregory", "InstitutionName": "Princeton", "StudyDescription": "Doe liver",
    "SeriesDescription": "Jane abdomen", "ProtocolName": "Jane protocol", "StationName": "CT7",
    "OtherPatientIDs": "X12", "DeviceSerialNumber": "SN555", "ImageComments": "Jane again",
    "DerivationDescription": "for Jane",
}  # fmt: skip


@pytest.fixture
def source(tmp_path):
    """Two series of two patients, in folders that say nothing but in what they hold."""
    folder = tmp_path / "in"
    for number, name in enumerate(("a", "b")):
        for index, hu in enumerate(images(name, "full", 2, 64)):
            path = write_slice(
                folder / name / f"{index}.dcm", hu, z=float(index), number=index + 1, series=name, study=name
            )
            dataset = pydicom.dcmread(path)
            for keyword, value in SECRETS.items():
                setattr(dataset, keyword, value)
            dataset.PatientID = f"MRN4711{number}"
            dataset.FrameOfReferenceUID = dataset.StudyInstanceUID + ".9"
            block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
            block.add_new(0x10, "LO", "Doe Jane private")
            item = pydicom.Dataset()
            item.PatientID = "MRN4711"
            dataset.OtherPatientIDsSequence = [item]
            dataset.add_new(0x60000022, "LO", "overlay of Jane")
            dataset.save_as(path)
    return folder


def check(paths, originals, kernel="B30f"):
    """Nothing of the patient is left in files, and what says how to read them is."""
    uids = {str(dataset[tag].value) for dataset in map(pydicom.dcmread, originals)
            for tag in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")}  # fmt: skip
    assert len(paths) > 1
    for path in paths:
        content = path.read_bytes()
        header = content[: content.index(b"\xe0\x7f\x10\x00")]
        for secret in (*SECRETS.values(), "Jane", "MRN4711", "SIEMENS CSA", *uids):
            assert secret == "F" or secret.encode() not in header, (path, secret)
        dataset = pydicom.dcmread(path)
        assert dataset.PatientIdentityRemoved == "YES" and dataset.PatientName == dataset.StudyDate == ""
        assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert dataset.ConvolutionKernel == kernel and dataset.KVP == 100 and len(dataset.PatientID) == 12
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def names_of(path):
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    return dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID


def test_simulated_series(source, tmp_path):
    key, out = tmp_path / "key", tmp_path / "out"
    run_command("shards/simulate.py", source, out, "--i0", "3e5", "--deidentify", key)
    paths = sorted(out.rglob("*.IMA"))
    assert sorted({path.relative_to(out).parts[0] for path in paths}) == ["patient-001", "patient-002"]
    assert len(paths) == 8 and stat.S_IMODE(os.stat(key).st_mode) == 0o600
    check(paths, list(source.rglob("*.dcm")))
    assert len({names_of(path)[0] for path in paths}) == 2 and len({names_of(path)[2] for path in paths}) == 4
    full = [path for path in paths if "full" in path.parent.name]
    hu = {read_hu(read_slices(path)[0])[0].tobytes() for path in full}
    assert hu == {read_hu(read_slices(path)[0])[0].tobytes() for path in source.rglob("*.dcm")}
    before = {path: path.read_bytes() for path in paths}
    shutil.rmtree(out)
    run_command("shards/simulate.py", source, out, "--i0", "3e5", "--deidentify", key)
    assert {path: path.read_bytes() for path in paths} == before
    done = run_command("shards/simulate.py", source, out, "--i0", "3e5", check=False)
    assert done.returncode == 2 and "made from other data or settings" in done.stderr and "deidentified" in done.stderr


def test_a_second_key_does_not_get_into_a_series(source, tmp_path):
    out = tmp_path / "out"
    call = ("shards/simulate.py", source, out, "--i0", "3e5", "--deidentify")
    run_command(*call, tmp_path / "key")
    paths = sorted(out.rglob("*.IMA"))
    paths[0].unlink()
    done = run_command(*call, tmp_path / "other", check=False)
    assert done.returncode == 2 and "was made with another key" in done.stderr
    assert not paths[0].exists() and not (tmp_path / "other").exists()
    note = json.loads((out / "simulation.json").read_text()) | {"deidentified": True}
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "simulation.json").write_text(json.dumps(note))
    earlier = run_command(*call[:2], tmp_path / "earlier", *call[3:], tmp_path / "key", check=False)
    assert earlier.returncode == 2 and "deidentified by a version that noted no key; delete it, or" in earlier.stderr
    inside = run_command(*call, out / "key", check=False)
    assert inside.returncode == 2 and "lies inside OUT" in inside.stderr and not (out / "key").exists()
    assert "note: made" not in run_command(*call, tmp_path / "key").stderr and paths[0].exists()


def test_an_image_without_identity_gets_one(source, tmp_path):
    for number, path in enumerate(sorted((source / "a").iterdir())):  # as the sample of real CT, and as one even barer
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.SOPInstanceUID = ""
        if number:
            del dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.save_as(path, enforce_file_format=False)
    out = tmp_path / "out"
    run_command("shards/simulate.py", source / "a", out, "--i0", "3e5", "--deidentify", tmp_path / "key")
    full = [pydicom.dcmread(path) for path in sorted(out.rglob("*_FD_*.IMA"))]
    assert [dataset.SOPClassUID for dataset in full] == [pydicom.uid.CTImageStorage] * 2
    assert len({dataset.SOPInstanceUID for dataset in full}) == 2 and all(d.SOPInstanceUID.is_valid for d in full)
    assert full[0].file_meta.MediaStorageSOPInstanceUID == full[0].SOPInstanceUID
    original = pydicom.dcmread(source / "a/0.dcm").file_meta.MediaStorageSOPInstanceUID
    assert full[0].SOPInstanceUID == Deidentifier(tmp_path / "key").uid(original)


def test_softened_series(source, tmp_path):
    run_command("shards/soften.py", source / "a", tmp_path / "out", "--slices", 1, "--deidentify", tmp_path / "key")
    paths = sorted((tmp_path / "out").iterdir())
    check(paths, list(source.rglob("*.dcm")), kernel="softened")
    assert [path.name for path in paths] == ["0001.IMA", "0002.IMA"]
    assert "1 slices averaged" in pydicom.dcmread(paths[0]).DerivationDescription


def test_denoised_series(source, tmp_path, tiny_shards):
    run = make_run(tmp_path / "run", tiny_shards)
    call = ("launch/denoise.py", "--run", run, source, tmp_path / "out", "--deidentify", tmp_path / "key")
    run_command(*call)
    paths = sorted((tmp_path / "out").rglob("*.dcm"))
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == [
        "a/0001.dcm", "a/0002.dcm", "b/0001.dcm", "b/0002.dcm"
    ]  # fmt: skip
    check(paths, list(source.rglob("*.dcm")))
    dataset = pydicom.dcmread(paths[0])
    assert dataset.DerivationDescription.startswith("denoised by ")
    reference = dataset.SourceImageSequence[0].ReferencedSOPInstanceUID
    original = pydicom.dcmread(source / "a/0.dcm")
    assert reference == Deidentifier(tmp_path / "key").uid(original.SOPInstanceUID)
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert "0 of 4 slices" in run_command(*call).stdout
    paths[-1].unlink()
    other = run_command(*call[:-1], tmp_path / "other", check=False)
    assert other.returncode == 2 and "out was made with another key; give that to --deidentify" in other.stderr
    with pytest.raises(InputError, match="out is deidentified; give its key to --deidentify"):
        open_key(None, tmp_path / "out", source)
    (tmp_path / "out" / "deidentified.json").unlink()
    with pytest.raises(InputError, match="were made without --deidentify, or by a version that noted no key"):
        open_key(tmp_path / "key", tmp_path / "out", source)
    assert not paths[-1].exists() and not (tmp_path / "other").exists()
    assert {path: path.stat().st_mtime_ns for path in paths[:-1]} == {path: before[path] for path in paths[:-1]}


def test_a_folder_with_images_without_a_key_is_refused_wherever_they_lie_in_it(source, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(source / "a", out / "A" / "deep")  # as denoise.py writes them without --deidentify
    with pytest.raises(InputError, match=r"out/A/deep holds images and .* is not there: they were made without"):
        open_key(tmp_path / "key", out, source / "b")
    assert open_key(tmp_path / "key", out, out / "A")  # but what is to be denoised may lie there


def test_one_key_of_two_parts_that_begin_at_once(tmp_path):
    first, second = (FolderKey(tmp_path / "key", tmp_path / "out") for _ in range(2))
    first.keep()
    second.keep()
    assert first.fingerprint() == second.fingerprint() == read_note(tmp_path / "out")


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="no dciodvfy here: apt-get install dicom3tools")
def test_a_deidentified_image_has_no_error_that_its_source_has_not(source, tmp_path):
    path = tmp_path / "out.dcm"
    dataset = pydicom.dcmread(source / "a/0.dcm")
    Deidentifier(tmp_path / "key").apply(dataset, derived=False)
    dataset.save_as(path, enforce_file_format=True)

    def errors(file):
        lines = subprocess.run(["dciodvfy", file], capture_output=True, text=True).stderr.splitlines()
        return {re.sub("<.*>", "", line) for line in lines if line.startswith("Error")}

    assert errors(path) <= errors(source / "a/0.dcm")


def test_a_new_secret_is_told_and_where_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Deidentifier(Path("key"))
    assert not Path("key").exists()
    Deidentifier(Path("key")).keep()
    assert capsys.readouterr().err == (
        f"note: made a new key, {tmp_path}/key; PatientIDs and UIDs differ from those made with another one. "
        "Keep it, apart from the images, to get the same again\n"
    )
    Deidentifier(Path("key")).keep()
    assert capsys.readouterr().err == ""


def test_another_secret_gives_other_names(source, tmp_path):
    names = []
    for name in ("one", "two"):
        dataset = pydicom.dcmread(source / "a/0.dcm")
        Deidentifier(tmp_path / name).apply(dataset, derived=False)
        names.append((dataset.PatientID, dataset.StudyInstanceUID))
    assert not set(names[0]) & set(names[1])
    np.testing.assert_array_equal(dataset.pixel_array, pydicom.dcmread(source / "a/0.dcm").pixel_array)


@pytest.mark.parametrize("content", ["", "abc", "00" * 31])
def test_a_secret_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / "key").write_text(content)
    with pytest.raises(InputError, match="expected a secret of 64 hexadecimal digits"):
        Deidentifier(tmp_path / "key")


def test_no_patient_id_gets_into_a_path(source, tmp_path):
    run_command("shards/simulate.py", source, tmp_path / "out", "--i0", "3e5")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "simulation.json"]
    assert not [path for path in (tmp_path / "out").rglob("*") if "MRN" in str(path.relative_to(tmp_path))]
