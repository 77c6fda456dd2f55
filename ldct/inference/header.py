"""The header of a denoised slice: the source's, with what is no longer true put right."""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels import pixel_array
from pydicom.uid import UID, generate_uid

from shards.deidentify import Deidentifier
from shards.derived import copying, derive, write
from shards.dicom import Slice, read_file
from shards.files import printable
from shards.pixels import NO_TISSUE

PADDING_TAGS = ("PixelPaddingValue", "PixelPaddingRangeLimit")

OF = "; source: "
"""In DerivationDescription, between what denoised and what the source's own says."""


def write_denoised(
    path: Path,
    source: Slice,
    hu: np.ndarray,
    made_by: str,
    name: str,
    number: int,
    deidentifier: Deidentifier | None = None,
) -> None:
    """Write ``hu``, the denoised slice ``source``, to ``path``, atomically.

    Parameters
    ----------
    source : Slice
        Patient, study, place and rescale are kept; identity, type and description become the derived image's.
    hu : numpy.ndarray
        int16, shape (rows, columns).
    made_by : str
        What denoised, for DerivationDescription; the same text gives the same UIDs.
    name : str
        Short, for SeriesDescription.
    number : int
        InstanceNumber, where the source has none.
    deidentifier : Deidentifier, optional
        Takes the patient out of the header.

    Raises
    ------
    Unusable
        If the source's header is too damaged to be copied.
    """
    with copying():
        write(_denoised(source, hu, made_by, name, number, deidentifier), path)


def _denoised(
    source: Slice, hu: np.ndarray, made_by: str, name: str, number: int, deidentifier: Deidentifier | None
) -> FileDataset:
    dataset = derive(source, hu, made_by, f"{source.series_uid or printable(source.path.parent)} {made_by}", number)
    original = read_file(source.path, stop_before_pixels=source.frame is not None)  # a frame is read by itself
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance_uid(source, made_by)
    if before := source.derivation if deidentifier else str(original.get("DerivationDescription") or ""):
        dataset.DerivationDescription = f"{made_by}{OF}{before}"[:1024]
    identify(dataset, original, source.frame, name)
    pixels = original.pixel_array if source.frame is None else pixel_array(source.path, index=source.frame)
    if source.frame is None:
        # of an enhanced file it is one number for all frames
        dataset.InstanceNumber = _whole_number(original, "InstanceNumber", number)
        keep_rescale(dataset, original, hu)
    keep_padding(dataset, original, pixels, source)
    if deidentifier is not None:
        deidentifier.apply(dataset, derived=True)
    return dataset


def instance_uid(source: Slice, made_by: str) -> UID:
    """The SOPInstanceUID of ``source`` denoised: another for other images, also where they have no UIDs or the same."""
    digest = _file_digest(source.path, source.size, source.mtime_ns)
    return generate_uid(entropy_srcs=[made_by, digest, str(source.frame), os.fsencode(source.path.name).hex()])


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """sha256 of a file that was changed at ``mtime_ns``; remembered for the frames of one file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole_number(dataset: Dataset, keyword: str, default: int) -> int:
    """A header's number; ``default`` where it is missing or none."""
    try:
        value: Any = dataset.get(keyword)
        return default if value in (None, "") else int(value)
    except (ValueError, TypeError, OverflowError):
        return default


def identify(dataset: FileDataset, original: FileDataset, frame: int | None, name: str) -> None:
    """Say that the image is derived and from what; keep the patient, drop what only the scanner understands."""
    kind = [str(k) for k in original.get("ImageType") or []]
    dataset.ImageType = ["DERIVED", "SECONDARY", *(kind[2:] or ["AXIAL"])]
    what = f" denoised {name}"[:64]  # DICOM allows 64 characters, and these are the ones that matter
    dataset.SeriesDescription = (str(original.get("SeriesDescription") or "CT")[: 64 - len(what)] + what).strip()
    dataset.SeriesNumber = min(1000 + _whole_number(original, "SeriesNumber", 0), 2**31 - 1)
    if original.get("SOPInstanceUID"):
        reference = Dataset()
        reference.ReferencedSOPClassUID = original.SOPClassUID
        reference.ReferencedSOPInstanceUID = original.SOPInstanceUID
        if frame is not None:
            reference.ReferencedFrameNumber = frame + 1
        dataset.SourceImageSequence = [reference]
    dataset.remove_private_tags()


def keep_rescale(dataset: FileDataset, original: FileDataset, hu: np.ndarray) -> None:
    """Store the pixels with the source's rescale slope and intercept, where those can hold every HU value as it is."""
    slope, intercept = float(original.get("RescaleSlope", 1)), float(original.get("RescaleIntercept", 0))
    signed = int(original.get("PixelRepresentation", 1))
    least, most = (-32768, 32767) if signed else (0, 65535)
    pixels = (hu.astype(np.int32) - intercept) / slope
    if (pixels != np.rint(pixels)).any() or pixels.min() < least or pixels.max() > most:
        return  # derive() has stored HU as they are: slope 1, intercept 0
    dataset.RescaleSlope, dataset.RescaleIntercept = original.RescaleSlope, original.RescaleIntercept
    dataset.PixelRepresentation = signed
    set_pixels(dataset, pixels)


def keep_padding(dataset: FileDataset, original: FileDataset, pixels: np.ndarray, source: Slice) -> None:
    """Give the pixels outside the field of view the source's value again, and the tags that say which value that is.

    A network makes -1020 of -1024 there, and what a viewer hides becomes part of the image. ``pixels`` are the
    source's, as stored. A padding value that cannot be one (0 where 0 is water) is not believed and its tag not kept.
    """
    coding = source.coding
    outside = pixels * coding.slope + coding.intercept < NO_TISSUE  # scanners that pad so often do not say it
    if coding.padding is not None:
        outside |= (pixels >= coding.padding[0]) & (pixels <= coding.padding[1])

    def stored(values: np.ndarray) -> np.ndarray:
        """The stored ``values`` of the source as ``dataset`` stores the same HU."""
        hu = values * coding.slope + coding.intercept
        return np.rint((hu - float(dataset.RescaleIntercept)) / float(dataset.RescaleSlope))

    if outside.any():
        kind = "<i2" if dataset.PixelRepresentation else "<u2"
        denoised = np.frombuffer(dataset.PixelData, kind, pixels.size).reshape(pixels.shape).copy()
        denoised[outside] = stored(pixels[outside]).clip(np.iinfo(kind).min, np.iinfo(kind).max)
        set_pixels(dataset, denoised)
    for tag in PADDING_TAGS:
        if coding.padding is not None and tag in original:
            value = int(original[tag].value)
            value -= 65536 * (coding.signed and value > 32767)  # -2000 is often written as 63536
            dataset.add_new(tag, "SS" if dataset.PixelRepresentation else "US", int(stored(np.array(value))))


def set_pixels(dataset: FileDataset, pixels: np.ndarray) -> None:
    """Store whole numbers, uncompressed 16 bit, signed or not as the data set says."""
    dataset.PixelData = pixels.astype("<i2" if dataset.PixelRepresentation else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"
