"""A DICOM series derived from another: its header, other pixels, its own identity."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from shards.common.atomic import atomic
from shards.dicom import Slice, read_file


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
    instance = f"{series} {source.path.name} {source.frame} {source.z}"
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


def write_derived(source: Slice, hu: np.ndarray, path: Path, description: str, series: str, number: int) -> None:
    """``derive`` and ``write``."""
    write(derive(source, hu, description, series, number), path)


def _flatten(dataset: FileDataset, source: Slice) -> None:
    """Turn one frame of an enhanced file into the header of an ordinary one; leave an ordinary one alone."""
    if source.frame is None:
        return
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames",
                 "DimensionOrganizationSequence", "DimensionIndexSequence"):  # fmt: skip
        if name in dataset:
            del dataset[name]
    dataset.ImagePositionPatient = list(source.position)
    dataset.ImageOrientationPatient = list(source.orientation)
    dataset.PixelSpacing = list(source.spacing)
    dataset.SliceThickness, dataset.KVP, dataset.Exposure = source.thickness, source.kvp, source.mas
    dataset.ConvolutionKernel = source.kernel


def _set_pixels(dataset: FileDataset, hu: np.ndarray) -> None:
    """Store ``hu`` uncompressed as signed 16 bit, and drop what no longer holds.

    LossyImageCompression stays: what was once lossy remains so (PS3.3 C.7.6.1.1.5).
    """
    dataset.Rows, dataset.Columns = hu.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit", "SmallestImagePixelValue", "LargestImagePixelValue",
                 "ReferencedImageSequence"):  # fmt: skip
        if name in dataset:
            del dataset[name]
    dataset.PixelData = hu.astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
