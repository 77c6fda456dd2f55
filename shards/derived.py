"""A DICOM series derived from another: its header, other pixels, its own identity."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat
from scipy import ndimage

from shards.common.atomic import atomic
from shards.common.command import InputError
from shards.deidentify import Deidentifier
from shards.dicom import Damaged, Slice, Unusable, read_file
from shards.files import printable
from shards.pixels import PADDING

NO_LONGER_TRUE = (
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "SmallestImagePixelValue", "LargestImagePixelValue"),
    *("SmallestPixelValueInSeries", "LargestPixelValueInSeries", "ReferencedImageSequence", "IconImageSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PresentationLUTShape"),
    *("FloatPixelData", "DoubleFloatPixelData"),
)
"""Elements that speak of pixels or a coding which a derived image has not."""


def shrunk(source: Slice, factor: float) -> Slice:
    """A slice whose pixels are ``factor`` times as large, its middle where it was: as of a smaller body."""
    down, right = source.spacing
    return _with_pixels(source, source.shape, (down * factor, right * factor)) if factor != 1 else source


def _with_pixels(source: Slice, shape: tuple[int, int], spacing: tuple[float, float]) -> Slice:
    """A slice with another matrix and pixel size, its middle where it was."""
    rightward, downward = np.reshape(source.orientation, (2, 3))
    across = ((source.shape[1] - 1) * source.spacing[1] - (shape[1] - 1) * spacing[1]) / 2
    along = ((source.shape[0] - 1) * source.spacing[0] - (shape[0] - 1) * spacing[0]) / 2
    x, y, z = source.position + across * rightward + along * downward
    return dataclasses.replace(source, shape=shape, spacing=spacing, position=(float(x), float(y), float(z)))


def resampled(source: Slice, hu: np.ndarray, spacing: float) -> tuple[Slice, np.ndarray]:
    """A slice with pixels of about ``spacing`` mm, exactly the same field of view, and its header's geometry.

    Cubic splines; to larger pixels after a Gaussian, so that nothing finer than they are folds back.

    Parameters
    ----------
    source : Slice
        Geometry.
    hu : numpy.ndarray
        int16 HU, shape (rows, columns).
    spacing : float
        Wanted pixel size in mm; the nearest one is taken that makes the number of pixels whole.

    Returns
    -------
    Slice
        ``source`` with its shape, spacing and position changed.
    numpy.ndarray
        int16 HU.
    """
    (rows, columns), (down, right) = source.shape, source.spacing
    shape = max(1, round(rows * down / spacing)), max(1, round(columns * right / spacing))
    zoom = shape[0] / rows, shape[1] / columns
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), [max(0.0, (1 / z - 1) / 2) for z in zoom])
    image = ndimage.zoom(smooth, zoom, order=3, mode="nearest", grid_mode=True)
    outside = ndimage.zoom((hu <= PADDING).astype(np.float32), zoom, order=1, mode="nearest", grid_mode=True) > 0.5
    image = np.clip(np.rint(image), PADDING + 1, 32767).astype(np.int16)
    image[outside] = PADDING
    return _with_pixels(source, shape, (down / zoom[0], right / zoom[1])), image


@contextlib.contextmanager
def copying() -> Iterator[None]:
    """Where a source's header is read, changed and written: what pydicom raises of damage in it becomes Damaged."""
    try:
        yield
    except (Unusable, InputError, OSError, MemoryError):
        raise
    except Exception as error:  # nearly anything
        raise Damaged(f"its header cannot be copied: {' '.join(str(error).split())[:200]}") from None


def derive(source: Slice, hu: np.ndarray, description: str, series: str, number: int) -> FileDataset:
    """``hu`` as a CT image derived from ``source``; with the same arguments the same image.

    Parameters
    ----------
    source : Slice
        Its header is kept, apart from what follows.
    hu : numpy.ndarray
        int16, shape (rows, columns). Stored signed, slope 1, intercept 0: every HU value as it is.
    description : str
        What was done: DerivationDescription, shortened for SeriesDescription.
    series : str
        Names the new series: the same text and study give the same SeriesInstanceUID.
    number : int
        InstanceNumber.
    """
    dataset = read_file(source.path)
    study = str(dataset.get("StudyInstanceUID") or "") or generate_uid(entropy_srcs=[series, "study"])
    instance = f"{series} {printable(source.path.name)} {source.frame} {source.z}"
    old = str(dataset.get("SOPInstanceUID") or "")
    uid = generate_uid(entropy_srcs=[study, instance, old])
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[study, series])
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid
    kind = [str(k) for k in dataset.get("ImageType") or []]
    dataset.ImageType = ["DERIVED", "PRIMARY", *(kind[2:] or ["AXIAL"])]
    dataset.DerivationDescription = description
    dataset.SeriesDescription = description[:64]
    dataset.InstanceNumber = number
    dataset.Modality = "CT"
    _flatten(dataset, source)
    _set_geometry(dataset, source)
    _set_pixels(dataset, hu)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return dataset


def write(dataset: FileDataset, path: Path) -> None:
    """Write a derived image, atomically; its folder must exist."""
    with atomic(path) as file:
        pydicom.dcmwrite(file, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)


def write_derived(
    source: Slice,
    hu: np.ndarray,
    path: Path,
    description: str,
    series: str,
    number: int,
    deidentifier: Deidentifier | None = None,
) -> None:
    """``derive``, take the patient out where that is wanted, and ``write``."""
    with copying():
        dataset = derive(source, hu, description, series, number)
        if deidentifier is not None:
            deidentifier.apply(dataset, derived=True)
        write(dataset, path)


def write_copy(source: Path, path: Path, deidentifier: Deidentifier) -> None:
    """Write an image as it is, without the patient; its folder must exist."""
    with copying(), atomic(path) as file:
        dataset = read_file(source)
        deidentifier.apply(dataset, derived=False)
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)


def _flatten(dataset: FileDataset, source: Slice) -> None:
    """Turn one frame of an enhanced file into the header of an ordinary one; leave an ordinary one alone."""
    if source.frame is None:
        return
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames",
                 "DimensionOrganizationSequence", "DimensionIndexSequence"):  # fmt: skip
        if name in dataset:
            del dataset[name]
    dataset.ImageOrientationPatient = list(source.orientation)
    dataset.SliceThickness, dataset.KVP, dataset.Exposure = source.thickness, source.kvp, source.mas
    dataset.ConvolutionKernel = source.kernel
    if "AcquisitionNumber" not in dataset:
        dataset.AcquisitionNumber = None  # what every CT image must have, and may have empty


def _set_geometry(dataset: FileDataset, source: Slice) -> None:
    """Position and pixel size, where ``source`` is not as its file says: one frame of many, or resampled."""
    for name, values in (("ImagePositionPatient", source.position), ("PixelSpacing", source.spacing)):
        if [float(v) for v in dataset.get(name) or []] != list(values):
            setattr(dataset, name, [DSfloat(value, auto_format=True) for value in values])


def _set_pixels(dataset: FileDataset, hu: np.ndarray) -> None:
    """Store ``hu`` uncompressed as signed 16 bit, and drop what no longer holds.

    LossyImageCompression stays: what was once lossy remains so (PS3.3 C.7.6.1.1.5).
    """
    dataset.Rows, dataset.Columns = hu.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
    for name in NO_LONGER_TRUE:
        if name in dataset:
            del dataset[name]
    for group in range(0x6000, 0x6020, 2):  # an overlay in the upper bits of pixels that have none any more
        if (group, 0x0010) in dataset and (group, 0x3000) not in dataset:
            for tag in [tag for tag in dataset.keys() if tag.group == group]:  # noqa: SIM118 (a data set gives elements)
                del dataset[tag]
    dataset.PixelData = hu.astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
