"""Small DICOM series for tests: a body with organs, bone and a lung, its noise, and headers like the challenge's."""

import zlib
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

FULL_SD = 10.0
"""Noise of the full dose in HU; the quarter dose has sqrt(3) times as much on top."""


def body(patient, index, size=128):
    """The noiseless slice: int HU, shape (size, size); each patient and each slice differs a little."""
    rng = np.random.default_rng(zlib.crc32(patient.encode()))
    shift = rng.uniform(-0.1, 0.1, 8)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]

    def ellipse(cy, cx, ry, rx):
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

    grow = 1 + 0.01 * index
    image = np.full((size, size), -1000)
    image[ellipse(0, 0, 0.75 + shift[0] / 2, 0.9)] = -100
    image[ellipse(0, 0, 0.68 + shift[0] / 2, 0.82)] = 50
    image[ellipse(-0.2 + shift[1], 0.4 + shift[2], 0.25 * grow, 0.2)] = -850
    image[ellipse(0.1 + shift[3], -0.4, 0.3 * grow, 0.25 + shift[4])] = 100
    image[ellipse(0.5, shift[5] / 2, 0.13, 0.12)] = 700
    image[ellipse(0.2, shift[6], 0.06 * grow, 0.06)] = 180
    return image


def images(patient, dose, n_slices, size=128, seed=0, full_sd=FULL_SD):
    """HU of a series at ``dose`` ("full" or "quarter"), int16, shape (n_slices, size, size)."""
    result = []
    for index in range(n_slices):
        rng = np.random.default_rng([seed, zlib.crc32(patient.encode()), index])
        grain = ndimage.gaussian_filter(rng.standard_normal((2, size, size)), (0, 0.6, 0.6))
        grain /= grain.std()
        noisy = body(patient, index, size) + full_sd * grain[0]
        if dose != "full":
            noisy = noisy + np.sqrt(3) * full_sd * grain[1]
        result.append(np.clip(np.rint(noisy), -1024, 3071))
    return np.array(result, np.int16)


def header(size, z, number, series_uid, study_uid):
    """A data set like the challenge's: unsigned 12 bit in 16, slope 1, intercept -1024, PatientID Anonymous."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series_uid, str(number)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "Anonymous", "Anonymous"
    dataset.Manufacturer, dataset.ConvolutionKernel, dataset.KVP, dataset.Exposure = "SIEMENS", "B30f", 100, 200
    dataset.SliceThickness, dataset.InstanceNumber = 1.0, number
    dataset.ImagePositionPatient = [-size * 0.35, -size * 0.35, z]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.7, 0.7]
    dataset.Rows = dataset.Columns = size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    return dataset


def write_slice(path, hu, z=0.0, number=1, series="a", study="b", **changes):
    """Write one CT file; ``changes`` are header attributes to set, or to delete where the value is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = header(hu.shape[0], z, number, generate_uid(entropy_srcs=[series]), generate_uid(entropy_srcs=[study]))
    dataset.Rows, dataset.Columns = hu.shape
    dataset.PixelData = (hu.astype(np.int32) + 1024).astype("<u2").tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def write_series(folder, patient, dose, n_slices, size=128, seed=0, name="{patient}_{code}_1_1.CT.{index:04d}.IMA",
                 step=1.0, first_z=-50.0, **changes):  # fmt: skip
    """Write ``n_slices`` slices of ``patient`` at ``dose`` ("full" or "quarter"); return their paths in order of z."""
    code = "FD" if dose == "full" else "QD"
    return [
        write_slice(
            Path(folder) / name.format(patient=patient, code=code, index=index + 1),
            hu,
            z=first_z + step * index,
            number=index + 1,
            series=f"{patient} {dose}",
            study=patient,
            **changes,
        )
        for index, hu in enumerate(images(patient, dose, n_slices, size, seed))
    ]


def make_dataset(folder, patients=("L067", "L096"), slices=4, size=128, seed=0):
    """The challenge's layout: PATIENT/full_1mm and PATIENT/quarter_1mm; return ``folder``."""
    for patient in patients:
        for dose in ("full", "quarter"):
            write_series(Path(folder) / patient / f"{dose}_1mm", patient, dose, slices, size, seed)
    return Path(folder)


def multi_frame(path, frames):
    """An enhanced CT: geometry per frame, slope and spacing shared."""
    write_slice(path, frames[0])
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                 "RescaleSlope", "RescaleIntercept", "ConvolutionKernel"):  # fmt: skip
        delattr(dataset, name)

    def group(name, **fields):
        item, outer = Dataset(), Dataset()
        for key, value in fields.items():
            setattr(item, key, value)
        setattr(outer, name, Sequence([item]))
        return outer

    shared = Dataset()
    for one in (
        group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.7], SliceThickness=2),
        group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"),
        group("CTReconstructionSequence", ConvolutionKernel="B30f"),
    ):
        shared.update(one)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [group("PlanePositionSequence", ImagePositionPatient=[0, 0, 3.0 * i]) for i in range(len(frames))]
    )
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = (frames.astype(int) + 1024).astype("<u2").tobytes()
    dataset.save_as(path)
    return path


def water(size=128, radius=100.0, spacing=2.0):
    """A disc of water of ``radius`` mm, HU."""
    axis = (np.arange(size) - (size - 1) / 2) * spacing
    return np.where(np.hypot(*np.meshgrid(axis, axis)) <= radius, 0, -1000).astype(np.int16)
