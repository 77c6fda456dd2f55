"""Which files are a series, and which of its slices are there already: never another person's."""

import os
import shutil

import numpy as np
import pydicom
import pytest
from phantom import images, write_series, write_slice

from ldct.inference.dicom import denoise_series
from ldct.inference.series import find_series
from shards.common.command import InputError
from shards.deidentify import Deidentifier


def denoised(folder, key=None):
    series, _ = find_series(folder / "in", folder / "out")
    return denoise_series(series, lambda low: low, "a", "b", key)


@pytest.mark.parametrize("uids", [{}, {"SOPInstanceUID": "", "SeriesInstanceUID": "", "StudyInstanceUID": ""}])
@pytest.mark.parametrize("keyed", [False, True])
def test_what_was_made_of_other_images_under_the_same_names_is_not_taken(tmp_path, uids, keyed):
    """Another person's series in the same place: its files there would be this one's result."""
    key = Deidentifier(tmp_path / "key") if keyed else None
    write_series(tmp_path / "in", "L067", "quarter", 2, 64, **uids)
    assert denoised(tmp_path, key)[0] == 2 and denoised(tmp_path, key)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write_series(tmp_path / "in", "L067", "quarter", 2, 64, seed=1, **uids)
    with pytest.raises(InputError, match=r"\.dcm was made of another image than IN holds now, or by another version; "):
        denoised(tmp_path, key)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_images_that_are_not_of_the_series_are_named(tmp_path):
    paths = write_series(tmp_path / "in", "L067", "quarter", 3, 64)
    denoised(tmp_path)
    paths[1].unlink()
    with pytest.raises(InputError, match=rf"out holds 1 images that are not of .*in, e.g. {paths[1].name}.dcm; choose"):
        denoised(tmp_path)


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    write_series(tmp_path / "in" / "a", "L067", "quarter", 1, 64)
    write_series(tmp_path / "in" / "b", "L067", "quarter", 1, 64)
    scandir = os.scandir

    def refuse(path):
        if path == os.fspath(tmp_path / "in" / "b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"in/b: the folder cannot be read: Permission denied; its series w"):
        find_series(tmp_path / "in", tmp_path / "out")


def test_a_link_to_a_folder_that_was_read_is_said(tmp_path):
    write_series(tmp_path / "in" / "a", "L067", "quarter", 1, 64)
    (tmp_path / "in" / "b").symlink_to(tmp_path / "in" / "a")
    series, passed = find_series(tmp_path / "in", tmp_path / "out")
    assert len(series) == 1 and passed == {"the same folder as a, by a link": [tmp_path / "in" / "b"]}


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"ConvolutionKernel": "D45f"}, 2),
        ({"PixelSpacing": [0.5, 0.5]}, 2),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.999999, 0]}, 1),
    ],
)
def test_slices_without_uids_are_one_series_by_kernel_and_pixels(tmp_path, changes, count):
    """What is measured of a series would be that of another; and rounding makes no series of its own."""
    hu = images("L001", "quarter", 1, size=64)[0]
    for number, change in enumerate(({}, changes)):
        write_slice(tmp_path / "in" / f"{number}.dcm", hu, number, SeriesInstanceUID="", **change)
    assert len(find_series(tmp_path / "in", tmp_path / "out")[0]) == count


def test_names_that_are_no_utf8(tmp_path):
    (path,) = write_series(tmp_path / "in", "L067", "quarter", 1, 64, SeriesInstanceUID="")
    os.makedirs(folder := os.fsencode(tmp_path / "in") + b"/M\xfcller")
    shutil.move(path, os.fsdecode(folder + b"/\xe4.dcm"))
    assert denoised(tmp_path)[0] == 1 and denoised(tmp_path)[0] == 0
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert os.fsencode(written).endswith(b"/M\xfcller/\xe4.dcm")
    hu = images("L067", "quarter", 1, 64)[0]
    np.testing.assert_array_equal(pydicom.dcmread(written).pixel_array - 1024.0, hu)
