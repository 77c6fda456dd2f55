"""The header of a derived series, of sources with what headers have in them."""

import numpy as np
import pydicom
import pytest
from phantom import images, write_slice
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from ldct.inference.dicom import denoise_series
from ldct.inference.series import find_series
from shards.deidentify import Deidentifier

HU = images("L001", "quarter", 1, size=64)[0]


def derived(folder, change, key=None, model=lambda low: low):
    """One slice whose header ``change`` changed, denoised by ``model``."""
    path = write_slice(folder / "in" / "a.dcm", HU)
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    series, _ = find_series(folder / "in", folder / "out")
    count, _, left_out = denoise_series(series, model, "a", "b", key)
    assert (count, left_out) == (1, [])
    return pydicom.dcmread(folder / "out" / "a.dcm")


@pytest.mark.parametrize(
    ("keyword", "vr", "text", "written"),
    [
        ("SeriesNumber", "IS", b"1a", 1000),
        ("SeriesNumber", "IS", b"2147483000 ", 2**31 - 1),
        ("InstanceNumber", "IS", b"x ", 1),
        ("InstanceNumber", "IS", b"", 1),
    ],
)
def test_numbers_that_are_none(tmp_path, keyword, vr, text, written):
    tag = Tag(keyword)
    raw = RawDataElement(tag, vr, len(text), text, 0, False, True)
    after = derived(tmp_path, lambda dataset: dataset._dict.__setitem__(tag, raw))
    assert after[keyword].value == written


def test_a_header_that_cannot_be_copied_leaves_its_series_out(tmp_path):
    path = write_slice(tmp_path / "in" / "a.dcm", HU, SeriesNumber=1234)
    path.write_bytes(path.read_bytes().replace(b"\x20\x00\x11\x00IS", b"\x20\x00\x11\x00FD"))  # four bytes of eight
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    count, _, left_out = denoise_series(series, lambda low: low, "a", "b")
    assert count == 0
    assert left_out[0].startswith(f"{path}: its header cannot be copied: ")
    assert not list((tmp_path / "out").rglob("*.dcm"))


def test_an_overlay_in_the_bits_of_the_pixels_does_not_become_one_of_hu(tmp_path):
    """Bit 12 of a derived image is part of its HU; an overlay with data of its own stays."""

    def overlays(dataset):
        dataset.PixelData = (dataset.pixel_array | (np.eye(64, dtype="<u2") << 12)).tobytes()
        for group in (0x6000, 0x6002):
            dataset.add_new((group, 0x0010), "US", 64)
            dataset.add_new((group, 0x0011), "US", 64)
            dataset.add_new((group, 0x0100), "US", 16 if group == 0x6000 else 1)
            dataset.add_new((group, 0x0102), "US", 12 if group == 0x6000 else 0)
        dataset.add_new((0x6002, 0x3000), "OW", b"\1" * 512)

    after = derived(tmp_path, overlays)
    assert {element.tag.group for element in after if element.tag.group >> 8 == 0x60} == {0x6002}
    np.testing.assert_array_equal(after.pixel_array - 1024.0, HU)


def test_what_the_source_says_of_itself_is_kept(tmp_path):
    def change(dataset):
        dataset.DerivationDescription = "iterative, strength 3"

    assert derived(tmp_path, change).DerivationDescription == "denoised by a; source: iterative, strength 3"
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    assert denoise_series(series, lambda low: low, "a", "b")[0] == 0  # it is there
    after = derived(tmp_path / "keyed", change, Deidentifier(tmp_path / "key"))
    assert after.DerivationDescription == "denoised by a"  # a text of the scanner's may name the patient


def test_what_speaks_of_other_pixels_is_dropped(tmp_path):
    def change(dataset):
        dataset.PresentationLUTShape, dataset.PhotometricInterpretation = "INVERSE", "MONOCHROME1"
        dataset.add_new("LargestPixelValueInSeries", "US", 4000)
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = bytes(8), bytes(8)

    after = derived(tmp_path, change)
    assert not {"PresentationLUTShape", "LargestPixelValueInSeries", "ExtendedOffsetTable"} & set(after.dir())
    assert after.PhotometricInterpretation == "MONOCHROME2"  # HU are HU


def test_padding_of_a_signed_scan_that_says_it_is_unsigned(tmp_path):
    """-2000 as 63536, in pixels and tag: 62512 HU, which is no tissue."""

    def change(dataset):
        pixels = dataset.pixel_array.copy()
        pixels[:8] = 63536
        dataset.PixelData, dataset.BitsStored, dataset.HighBit = pixels.tobytes(), 16, 15
        dataset.add_new("PixelPaddingValue", "US", 63536)

    seen = []
    after = derived(tmp_path, change, model=lambda low: seen.append(low) or low)
    assert (seen[0][0, :8] == -1024).all()
    assert after.PixelPaddingValue == 63536 and (after.pixel_array[:8] == 63536).all()
    np.testing.assert_array_equal(after.pixel_array[8:] - 1024.0, HU[8:])
