import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import torch
from made import make_run
from phantom import images, multi_frame, write_slice

from ldct.inference import dicom
from ldct.inference.denoiser import Denoiser
from ldct.inference.dicom import denoise_series
from ldct.inference.export import open_model
from ldct.inference.series import find_series, first_few, uneven
from ldct.runs import checkpoint
from shards.common.command import InputError
from shards.dicom import read_slices
from shards.pixels import read_hu

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_shards, tmp_path_factory):
    return Denoiser(make_run(tmp_path_factory.mktemp("run") / "0-abcd1234", tiny_shards, scale=0.3), CPU)


def write_series(folder, series="a", slices=3, z0=0.0, **changes):
    """A series of the phantom; returns its pixels in HU."""
    hu = images("L001", "quarter", slices, size=96)
    for number, image in enumerate(hu, 1):
        write_slice(
            folder / f"1.2.{series}.{number}", image, z0 + number, number, series, PatientName="Doe^Jo", **changes
        )
    return hu


def denoised(source, out, model):
    series, _ = find_series(source, out)
    return denoise_series(series, model, model.about, model.name)


def test_pixels_are_the_models_and_the_header_is_the_sources(tmp_path, model):
    hu = write_series(
        tmp_path / "in" / "p", WindowCenter=40, WindowWidth=400, SeriesDescription="Abdomen", SeriesNumber=3
    )
    count, _, broken = denoised(tmp_path / "in", tmp_path / "out", model)
    assert (count, broken) == (3, [])
    uids = set()
    for number in range(1, 4):
        before = pydicom.dcmread(tmp_path / "in" / "p" / f"1.2.a.{number}")
        after = pydicom.dcmread(tmp_path / "out" / "p" / f"1.2.a.{number}.dcm")
        written, _ = read_hu(read_slices(tmp_path / "out" / "p" / f"1.2.a.{number}.dcm")[0])
        np.testing.assert_array_equal(written, model(hu[number - 1]))
        assert written.min() == -1024  # air, and no pixel below what the source can hold
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows",
                     "RescaleSlope", "RescaleIntercept", "PixelRepresentation", "PatientName", "PatientID",
                     "StudyInstanceUID", "InstanceNumber", "WindowCenter", "WindowWidth", "SOPClassUID"):  # fmt: skip
            assert after[name].value == before[name].value, name
        assert list(after.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert after.SeriesDescription == "Abdomen denoised 0-abcd1234"
        assert after.DerivationDescription.startswith("denoised by redcnn of run 0-abcd1234, step 20, checkpoint ")
        assert after.SourceImageSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
        assert after.SeriesInstanceUID != before.SeriesInstanceUID and after.SeriesNumber == 1003
        uids |= {after.SOPInstanceUID, before.SOPInstanceUID, after.SeriesInstanceUID}
    assert len(uids) == 7  # six images, one new series


def test_private_data_stay_behind(tmp_path, model):
    write_series(tmp_path / "in", slices=1)
    path = tmp_path / "in" / "1.2.a.1"
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0029, "SIEMENS CSA", create=True).add_new(0x10, "LO", "raw data of the scanner")
    dataset.save_as(path)
    denoised(tmp_path / "in", tmp_path / "out", model)
    assert b"raw data" in path.read_bytes()
    assert b"raw data" not in (tmp_path / "out" / "1.2.a.1.dcm").read_bytes()


def test_a_long_series_description_still_names_the_model(tmp_path, model):
    write_series(tmp_path / "in", slices=1, SeriesDescription="x" * 64)
    denoised(tmp_path / "in", tmp_path / "out", model)
    after = pydicom.dcmread(tmp_path / "out" / "1.2.a.1.dcm")
    assert after.SeriesDescription == "x" * 44 + " denoised 0-abcd1234"


@pytest.mark.parametrize("names", [("A", "A.dcm"), ("A.dcm", "A"), ("A-2", "A", "A.dcm"), ("A-2.dcm", "A.dcm", "A")])
def test_files_whose_names_differ_in_dcm_alone_stay_apart(tmp_path, names):
    hu = images("L001", "quarter", len(names), size=96)
    for number, (name, image) in enumerate(zip(names, hu, strict=True), 1):
        write_slice(tmp_path / "in" / name, image, number, number, "a")
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    assert denoise_series(series, lambda low: low, "a", "b")[0] == len(names)
    written = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").iterdir())]
    assert sorted(int(dataset.InstanceNumber) for dataset in written) == list(range(1, len(names) + 1))
    for dataset in written:
        np.testing.assert_array_equal(dataset.pixel_array - 1024.0, hu[dataset.InstanceNumber - 1])
    assert denoise_series(series, lambda low: low, "a", "b")[0] == 0


def test_a_folder_called_as_a_series_is_numbered_keeps_its_place(tmp_path):
    write_series(tmp_path / "in", "a", slices=1)
    write_series(tmp_path / "in", "b", slices=1)
    write_series(tmp_path / "in" / "series-1", "c", slices=1)
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    assert [str(each.folder.relative_to(tmp_path / "out")) for each in series] == [
        "series-2",
        "series-3",
        "series-1",
    ]


@pytest.mark.parametrize("size", [0, 100, 300, 9000])
def test_a_file_that_was_cut_off_is_written_again(tmp_path, size):
    write_series(tmp_path / "in")
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    denoise_series(series, lambda low: low, "a", "b")
    path = tmp_path / "out" / "1.2.a.2.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert denoise_series(series, lambda low: low, "a", "b")[0] == 3
    assert path.read_bytes() == whole
    path.write_bytes(b"a letter to my aunt, longer than the first lines of a DICOM file" * 3)
    with pytest.raises(InputError, match="holds files made by 'something else'; choose another folder"):
        denoise_series(series, lambda low: low, "a", "b")


def test_gaps_and_doubles_along_z_are_named(tmp_path):
    hu = images("L001", "quarter", 1, size=96)[0]
    for z in (0, 2, 4, 10, 12, 12.005, 14):
        write_slice(tmp_path / f"{z}.dcm", hu, z, 1, "a")
    slices = sorted((read_slices(path)[0] for path in tmp_path.iterdir()), key=lambda piece: piece.z)
    assert uneven(slices) == [
        "gaps along z where slices lie 2 mm apart: 4 to 10 mm",
        "several slices at one place: z 12 mm (12.dcm, 12.005.dcm)",
    ]
    assert uneven(slices[:3]) == uneven(slices[:1]) == []


def test_the_first_few_are_named_and_the_rest_counted():
    assert first_few("ab") == "a, b" and first_few("abcde") == "a, b, c and 2 more"


@pytest.mark.parametrize("number", [1, 3])
def test_an_output_that_is_not_finite_is_an_error_that_names_run_and_slice(tmp_path, tiny_shards, number):
    write_series(tmp_path / "in")
    run = make_run(tmp_path / "0-run", tiny_shards)
    model = Denoiser(run, CPU)
    with torch.no_grad():  # finite everywhere but where the slice is brighter than any other
        model.model.forward = lambda x: x.where(x != x.max() if number == 1 else x < 2, torch.nan)
    hu = images("L001", "quarter", 3, size=96)[number - 1]
    hu[5, 5] = 2500
    write_slice(tmp_path / "in" / f"1.2.a.{number}", hu, number, number, "a")
    path = tmp_path / "in" / f"1.2.a.{number}"
    with pytest.raises(InputError) as error:
        denoised(tmp_path / "in", tmp_path / "out", model)
    assert str(error.value).startswith("redcnn of run 0-run, step 20, checkpoint ")
    assert f": its output for {path} is not finite (NaN or infinite); nothing of this series" in str(error.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_what_was_lossy_stays_lossy(tmp_path):
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 10,
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    write_series(tmp_path / "in", slices=1, **lossy)
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    denoise_series(series, lambda low: low, "a", "b")
    after = pydicom.dcmread(tmp_path / "out" / "1.2.a.1.dcm")
    assert {name: after[name].value for name in lossy} == lossy


@pytest.mark.parametrize("rescale", ["the source's", "another"])
@pytest.mark.parametrize(
    ("padding", "limit", "tagged"), [(-2000, None, True), (-2000, -1990, True), (-3024, None, False)]
)
def test_padding_stays_padding(tmp_path, padding, limit, tagged, rescale):
    """Value and tag, also where the scanner does not say it, and where HU do not fit the source's rescale."""
    hu = images("L001", "quarter", 1, size=96)[0]
    path = write_slice(tmp_path / "in" / "a.dcm", hu)
    dataset = pydicom.dcmread(path)
    dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0 if rescale == "the source's" else -0.5
    stored = hu.copy()
    stored[:10], stored[10] = padding, padding if limit is None else limit
    dataset.PixelData = stored.astype("<i2").tobytes()
    dataset.BitsStored, dataset.HighBit = 16, 15
    if tagged:
        dataset.add_new("PixelPaddingValue", "SS", padding)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", "SS", limit)
    dataset.save_as(path)
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    denoise_series(series, lambda low: low + 9, "a", "b")
    after = pydicom.dcmread(tmp_path / "out" / "a.dcm")
    shift = 0 if rescale == "the source's" else 0.5  # whole HU are stored, as near as they come
    assert np.abs(after.pixel_array[:11] - stored[:11]).max() <= shift
    assert (after.get("PixelPaddingValue"), after.get("PixelPaddingRangeLimit")) == (padding if tagged else None, limit)
    written, _ = read_hu(read_slices(tmp_path / "out" / "a.dcm")[0])
    assert (written[:11] == -1024).all() and (written[11:] != -1024).any()


def test_hu_below_the_sources_range_are_kept_under_another_rescale(tmp_path, model):
    write_series(tmp_path / "in", slices=1)
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    denoise_series(series, lambda low: np.full_like(low, -1200), "a", "b")
    after = pydicom.dcmread(tmp_path / "out" / "1.2.a.1.dcm")
    assert (after.RescaleIntercept, after.RescaleSlope, after.PixelRepresentation) == (0, 1, 1)
    assert (after.pixel_array == -1200).all()


def test_several_series_in_one_folder_and_other_files(tmp_path, model):
    write_series(tmp_path / "in", "a")
    write_series(tmp_path / "in", "b", slices=2, z0=50)
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    series, passed = find_series(tmp_path / "in", tmp_path / "out")
    assert [(s.folder.name, len(s.slices)) for s in series] == [("series-1", 3), ("series-2", 2)]
    assert passed == {"not DICOM": [tmp_path / "in" / "notes.txt"]}
    denoise_series(series, model, model.about, model.name)
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 5


def test_parts_of_a_series_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "BATCH", 2)
    hu, batches = write_series(tmp_path / "in", slices=5), []
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    assert denoise_series(series, lambda low: batches.append(len(low)) or low + 7, "a", "b")[0] == 5
    assert batches == [2, 2, 1]
    for number, low in enumerate(hu, 1):
        after = pydicom.dcmread(tmp_path / "out" / f"1.2.a.{number}.dcm")
        assert after.InstanceNumber == number
        np.testing.assert_array_equal(after.pixel_array + after.RescaleIntercept, low + 7)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_broken_slice_leaves_its_series_out_and_nothing_half_written(tmp_path, model, monkeypatch, batch):
    monkeypatch.setattr(dicom, "BATCH", batch)
    write_series(tmp_path / "in" / "good", "a")
    write_series(tmp_path / "in" / "bad", "b")
    path = tmp_path / "in" / "bad" / "1.2.b.2"
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51 no image"])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    count, _, broken = denoised(tmp_path / "in", tmp_path / "out", model)
    assert count == 3 and len(broken) == 1
    assert str(path) in broken[0] and "cannot be decoded" in broken[0]
    assert list((tmp_path / "out" / "bad").iterdir()) == []
    assert len(list((tmp_path / "out" / "good").iterdir())) == 3


def test_a_damaged_file_leaves_out_the_series_of_its_folder(tmp_path, model):
    write_series(tmp_path / "in" / "good", "a")
    write_series(tmp_path / "in" / "bad", "b")
    (tmp_path / "in" / "good" / "notes.txt").write_text("no DICOM")
    path = tmp_path / "in" / "bad" / "1.2.b.2"
    path.write_bytes(path.read_bytes()[:9000])
    count, _, broken = denoised(tmp_path / "in", tmp_path / "out", model)
    assert count == 3 and broken == [f"{path}: truncated: 9000 bytes, the pixels alone need 18432"]
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["good"]


def test_run_again_it_goes_on_and_does_not_mix_models(tmp_path, model, tiny_shards):
    write_series(tmp_path / "in" / "a")
    assert denoised(tmp_path / "in", tmp_path / "out", model)[0] == 3
    files = sorted((tmp_path / "out" / "a").iterdir())
    before = [path.read_bytes() for path in files]
    assert denoised(tmp_path / "in", tmp_path / "out", model)[0] == 0
    files[1].unlink()
    assert denoised(tmp_path / "in", tmp_path / "out", model)[0] == 3
    assert [path.read_bytes() for path in files] == before  # the same UIDs, too
    other = Denoiser(make_run(tmp_path / "1-other", tiny_shards, seed=9), CPU)
    with pytest.raises(InputError, match="holds files made by 'denoised by redcnn of run 0-abcd1234"):
        denoised(tmp_path / "in", tmp_path / "out", other)


def test_frames_of_an_enhanced_file_are_numbered(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "BATCH", 2)
    (tmp_path / "in").mkdir()
    multi_frame(tmp_path / "in" / "a.dcm", images("L001", "quarter", 3, size=96))
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    assert denoise_series(series, lambda low: low, "a", "b")[0] == 3
    written = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").iterdir())]
    assert [dataset.InstanceNumber for dataset in written] == [1, 2, 3]
    assert [dataset.SourceImageSequence[0].ReferencedFrameNumber for dataset in written] == [1, 2, 3]


@pytest.mark.parametrize("out", [".", "denoised"])
def test_out_inside_in_is_one_line(tmp_path, out):
    write_series(tmp_path, slices=1)
    with pytest.raises(InputError, match="lies inside IN"):
        find_series(tmp_path, tmp_path / out)


def test_gpus_compute_in_full_precision(tmp_path, tiny_shards):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    Denoiser(make_run(tmp_path / "0-run", tiny_shards), CPU)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_no_ct_is_one_line(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match=r"no axial CT slice in .*folder is empty"):
        find_series(tmp_path / "in", tmp_path / "out")


def test_what_the_scheme_clips_comes_back(model):
    """Metal and padding: the network sees 2000 and -1000 HU."""
    low = np.full((64, 64), 40, np.int16)
    low[20:24, 20:24], low[40:44, 40:44] = 3000, -1024
    clipped = np.clip(low, -1000, 2000)
    np.testing.assert_array_equal(model(low) - model(clipped), low - clipped)


def test_slices_together_are_slices_alone(model):
    low = images("L001", "quarter", 3, size=96)
    np.testing.assert_array_equal(model(low), np.stack([model(image) for image in low]))


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="no dciodvfy here: apt-get install dicom3tools")
def test_a_validator_finds_nothing_that_the_source_did_not_have(tmp_path, model):
    write_series(tmp_path / "in", slices=1)

    def errors(path):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}

    denoised(tmp_path / "in", tmp_path / "out", model)
    before, after = errors(tmp_path / "in" / "1.2.a.1"), errors(tmp_path / "out" / "1.2.a.1.dcm")
    assert after <= before, after - before


def test_a_run_that_never_learned_does_not_denoise(tmp_path, tiny_shards):
    run = make_run(tmp_path / "0-run", tiny_shards)
    best = checkpoint.read_best(run)
    checkpoint.save(run / "checkpoints", checkpoint.BEST, best | {"step": 0})
    with pytest.raises(InputError, match="0-run: its best checkpoint is of step 0, before it learned anything"):
        open_model(run, CPU)
