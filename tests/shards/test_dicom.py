"""Pixels in HU: known values through every coding, and what is refused with its reason."""

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from phantom import images, multi_frame, write_slice
from pydicom.data import get_testdata_file
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from shards.dicom import Unusable, read_slices
from shards.files import files_under
from shards.pixels import read_hu


@pytest.fixture
def hu():
    return images("L067", "full", 1)[0]


def read(path):
    (piece,) = read_slices(path)
    return read_hu(piece)


def test_plain_slice_has_its_geometry_and_its_hu(tmp_path, hu):
    path = write_slice(tmp_path / "a.IMA", hu, z=-12.5)
    (piece,) = read_slices(path)
    assert (piece.z, piece.shape, piece.spacing, piece.thickness) == (-12.5, (128, 128), (0.7, 0.7), 1.0)
    assert (piece.kernel, piece.kvp, piece.mas, piece.patient_id) == ("B30f", 100.0, 200.0, "Anonymous")
    values, clipped = read_hu(piece)
    assert values.dtype == np.int16 and clipped == 0
    np.testing.assert_array_equal(values, hu)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_compressed_slices_decode_to_the_same_hu(tmp_path, hu, syntax):
    path = write_slice(tmp_path / "a.dcm", hu)
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    dataset.save_as(path)
    np.testing.assert_array_equal(read(path)[0], hu)


@pytest.mark.skipif(not shutil.which("dcmcjpeg"), reason="no dcmcjpeg and dcmcjpls here: apt-get install dcmtk")
@pytest.mark.parametrize(
    "encoder, syntax",
    [
        (["dcmcjpeg", "+el"], JPEGLossless),
        (["dcmcjpeg", "+e1"], JPEGLosslessSV1),
        (["dcmcjpls"], JPEGLSLossless),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value.name,
)
def test_jpeg_lossless_and_jpeg_ls_slices_decode_to_the_same_hu(tmp_path, hu, encoder, syntax):
    plain, path = write_slice(tmp_path / "plain.dcm", hu), tmp_path / "a.dcm"
    subprocess.run([*encoder, plain, path], check=True)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read(path)[0], hu)


def test_lossy_12_bit_jpeg(tmp_path):
    """No encoder of it is at hand, so a real file is made to look like CT."""
    path = tmp_path / "a.dcm"
    dataset = pydicom.dcmread(get_testdata_file("JPGExtended.dcm", download=False))
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
    if "NumberOfFrames" in dataset:
        del dataset.NumberOfFrames
    dataset.save_as(path)
    values = read(path)[0]
    assert values.shape == (1024, 256) and values.min() == -1000 and 0 < values.max() + 1000 < 4096


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_uncompressed_codings(tmp_path, hu, syntax):
    path = write_slice(tmp_path / "a.dcm", hu)
    dataset = pydicom.dcmread(path)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        path, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian
    )
    np.testing.assert_array_equal(read(path)[0], hu)


def test_no_preamble_and_no_file_meta(tmp_path, hu):
    path = write_slice(tmp_path / "a.dcm", hu)
    dataset = pydicom.dcmread(path)
    del dataset.file_meta
    dataset.preamble = None
    with open(path, "wb") as file:
        pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(read(path)[0], hu)


def test_slope_and_intercept_are_applied_and_rounded(tmp_path, hu):
    path = write_slice(tmp_path / "a.dcm", hu, RescaleSlope=0.25, RescaleIntercept=-500.5)
    stored = hu.astype(int) + 1024
    np.testing.assert_array_equal(read(path)[0], np.rint(stored * 0.25 - 500.5).astype(np.int16))


def test_signed_twelve_bits_with_an_overlay_in_the_upper_four(tmp_path):
    hu = np.full((64, 64), -7)
    pixels = (hu & 0x0FFF) | 0x3000  # two's complement in 12 bits, an overlay bit above
    path = write_slice(tmp_path / "a.dcm", np.zeros((64, 64)), PixelData=pixels.astype("<u2").tobytes(),
                       PixelRepresentation=1, RescaleIntercept=0)  # fmt: skip
    np.testing.assert_array_equal(read(path)[0], hu)


@pytest.mark.parametrize("value, limit", [(-2000, None), (63536, None), (-2000, -1990)])
def test_padding_of_a_signed_series_becomes_air(tmp_path, value, limit):
    pixels = np.full((64, 64), 1064)
    pixels[0, :] = -2000
    if limit is not None:
        pixels[1, :] = -1995
    path = write_slice(tmp_path / "a.dcm", np.zeros((64, 64)), PixelData=pixels.astype("<i2").tobytes(),
                       PixelRepresentation=1, BitsStored=16, HighBit=15)  # fmt: skip
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", "SS", limit)
    dataset.save_as(path)
    values = read(path)[0]
    assert set(values[0]) == {-1024} and set(values[1]) == {-1024 if limit else 40} and set(values[2]) == {40}


def test_padding_that_the_header_does_not_name_becomes_air(tmp_path):
    pixels = np.full((64, 64), 40)
    pixels[:5] = -3024
    path = write_slice(tmp_path / "a.dcm", np.zeros((64, 64)), PixelData=pixels.astype("<i2").tobytes(),
                       PixelRepresentation=1, BitsStored=16, HighBit=15, RescaleIntercept=0)  # fmt: skip
    values = read(path)[0]
    assert set(values[:5].ravel()) == {-1024} and set(values[5:].ravel()) == {40}


def test_a_padding_value_in_the_middle_of_tissue_is_not_believed(tmp_path, hu):
    path = write_slice(tmp_path / "a.dcm", hu, PixelPaddingValue=1024 + 50)
    np.testing.assert_array_equal(read(path)[0], hu)


def test_values_outside_int16_are_clipped_and_counted(tmp_path):
    pixels = np.full((64, 64), 1000)
    pixels[0, :10] = 40000
    path = write_slice(tmp_path / "a.dcm", np.zeros((64, 64)), PixelData=pixels.astype("<u2").tobytes(),
                       BitsStored=16, HighBit=15, RescaleIntercept=0)  # fmt: skip
    values, clipped = read(path)
    assert clipped == 10 and values[0, 0] == 32767 and values[1, 1] == 1000


def test_not_square_and_tilted_slices_work(tmp_path):
    hu = np.arange(60 * 80).reshape(60, 80) % 1000
    path = write_slice(tmp_path / "a.dcm", hu, ImageOrientationPatient=[1, 0, 0, 0, 0.94, -0.34])
    np.testing.assert_array_equal(read(path)[0], hu)


def test_enhanced_multi_frame(tmp_path):
    frames = images("L067", "full", 3)
    pieces = read_slices(multi_frame(tmp_path / "a.dcm", frames))
    assert [piece.z for piece in pieces] == [0, 3, 6] and pieces[0].thickness == 2 and pieces[0].kernel == "B30f"
    for piece, frame in zip(pieces, frames, strict=True):
        np.testing.assert_array_equal(read_hu(piece)[0], frame)


def test_files_under_ends_on_a_loop_of_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [path.name for path in files_under(tmp_path)] == ["x"]


def change(path, **changes):
    dataset = pydicom.dcmread(path)
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)


def cut_short(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def compressed_cut(path):
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless)
    dataset.save_as(path)
    cut_short(path, path.stat().st_size * 2 // 3)


MALFORMED = {
    "empty file": (lambda p: p.write_bytes(b""), "empty, or it begins with zeros: was it copied whole?"),
    "text": (lambda p: p.write_text("L067 is complete\n"), "not DICOM"),
    "zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(500)), "not DICOM"),
    "noise": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)), "not DICOM"),
    "link to nowhere": (lambda p: (p.unlink(), p.symlink_to(p.parent / "gone")), "cannot be read: No such file"),
    "a folder's name": (lambda p: (p.unlink(), p.mkdir()), "cannot be read: Is a directory"),
    "preamble alone": (lambda p: cut_short(p, 132), "no image"),
    "cut in the meta header": (lambda p: cut_short(p, 200), ""),
    "cut in the header": (lambda p: cut_short(p, 600), ""),
    "cut before the pixels": (lambda p: cut_short(p, p.stat().st_size - 128 * 128 * 2), "truncated"),
    "cut in the pixels": (lambda p: cut_short(p, 20000), "truncated"),
    "one byte short": (lambda p: cut_short(p, p.stat().st_size - 1), "truncated"),
    "compressed and cut": (compressed_cut, ""),
    "no pixel data": (lambda p: change(p, PixelData=None), "truncated"),
    "no rows": (lambda p: change(p, Rows=None), "no image"),
    "zero rows": (lambda p: change(p, Rows=0), "an image of 0 x 128"),
    "more rows than pixels": (lambda p: change(p, Rows=512), "truncated"),
    "MR": (lambda p: change(p, Modality="MR"), "not CT: Modality MR"),
    "structured report": (lambda p: change(p, Modality="SR", Rows=None, PixelData=None), "no image"),
    "localizer": (lambda p: change(p, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localizer"),
    "secondary capture": (lambda p: change(p, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "a secondary capture"),
    "colour": (lambda p: change(p, SamplesPerPixel=3), "a colour image"),
    "no position": (lambda p: change(p, ImagePositionPatient=None), "ImagePositionPatient is missing"),
    "empty position": (lambda p: change(p, ImagePositionPatient=[]), "ImagePositionPatient is missing"),
    "position of two numbers": (lambda p: change(p, ImagePositionPatient=[1, 2]), "ImagePositionPatient is missing"),
    "no orientation": (lambda p: change(p, ImageOrientationPatient=None), "ImageOrientationPatient is missing"),
    "coronal": (lambda p: change(p, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "not axial"),
    "sagittal": (lambda p: change(p, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "not axial"),
    "no spacing": (lambda p: change(p, PixelSpacing=None), "PixelSpacing is missing"),
    "zero spacing": (lambda p: change(p, PixelSpacing=[0, 0]), "PixelSpacing 0 x 0"),
    "slope zero": (lambda p: change(p, RescaleSlope=0), "RescaleSlope or RescaleIntercept is broken"),
    "empty intercept": (lambda p: change(p, RescaleIntercept=None) or change(p, RescaleIntercept=""), "is broken"),
    "a value of another length": (
        lambda p: p.write_bytes(p.read_bytes().replace(b"\x18\x00\x52\x11IS", b"\x18\x00\x52\x11FD")),
        "broken header",
    ),
    "bits that cannot be": (lambda p: change(p, HighBit=12811), "BitsStored 12, HighBit 12811, BitsAllocated 16"),
    "an iodine map": (lambda p: change(p, RescaleType="MGML"), "its values are not HU: RescaleType MGML"),
    "zeros": (lambda p: p.rename(p.with_suffix(".x")) and p.write_bytes(bytes(5000)), "empty, or it begins with zeros"),
    "unknown coding": (
        lambda p: p.write_bytes(p.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")),
        "",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_with_the_reason(tmp_path, hu, name):
    path = write_slice(tmp_path / "a.dcm", hu)
    break_it, reason = MALFORMED[name]
    break_it(path)
    with pytest.raises(Unusable) as error:
        read(path)
    assert str(error.value).startswith(reason) or reason in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) > 5


def test_a_file_that_vanishes_between_header_and_pixels(tmp_path, hu):
    (piece,) = read_slices(write_slice(tmp_path / "a.dcm", hu))
    piece.path.unlink()
    with pytest.raises(Unusable, match="cannot be read: No such file"):
        read_hu(piece)


def test_a_file_that_shrinks_between_header_and_pixels(tmp_path, hu):
    (piece,) = read_slices(write_slice(tmp_path / "a.dcm", hu))
    cut_short(piece.path, 5000)
    with pytest.raises(Unusable, match="truncated"):
        read_hu(piece)


def test_equal_bytes_in_another_character_set_are_another_text(tmp_path):
    """Values are converted once for equal bytes; the character set is part of what makes them equal."""
    texts = []
    for charset, text in (("ISO_IR 100", "Ä"), ("ISO_IR 101", "Ä"), ("ISO_IR 144", "Ф")):
        path = write_slice(tmp_path / charset, np.zeros((8, 8), np.int16), SpecificCharacterSet=charset, PatientID=text)
        texts.append((path.read_bytes().count(b"\xc4 "), read_slices(path)[0].patient_id))
    assert texts == [(1, "Ä"), (1, "Ä"), (1, "Ф")]
