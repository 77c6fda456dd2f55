"""DICOM CT slices: which files hold one, where it lies, its pixels in HU, and a derived copy of it."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import pixel_array
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from shards.atomic import atomic

PADDING = -1024
"""HU given to pixels outside the field of view: what a 12-bit scanner with intercept -1024 stores there."""
NO_TISSUE = -1500
"""Below this no noise reaches; scanners that pad with -2000 or -3024 HU often do not say so in the header."""
MAX_PADDING = -900
"""A PixelPaddingValue above this HU is a wrong header (0 in a series where 0 is water) and is not believed."""

_TAGS = [
    "TransferSyntaxUID",
    "SOPClassUID",
    "ImageType",
    "Modality",
    "PatientID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "DerivationDescription",
    "SliceThickness",
    "KVP",
    "Exposure",
    "ConvolutionKernel",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "SamplesPerPixel",
    "PixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_DOSE = re.compile(r"dose fraction ([0-9.]+[0-9])")


class Unusable(Exception):
    """This file gives no CT slice. The message is the reason; the caller knows the file's name."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One CT slice: where its pixels are and what its header says. None: the header does not say."""

    path: Path
    """The file."""
    frame: int | None
    """Index of the frame in an enhanced multi-frame file; None for an ordinary file."""
    position: tuple[float, float, float]
    """ImagePositionPatient in mm."""
    orientation: tuple[float, ...]
    """ImageOrientationPatient: row and column direction."""
    shape: tuple[int, int]
    """Rows, columns."""
    spacing: tuple[float, float]
    """PixelSpacing in mm: between rows, between columns."""
    thickness: float | None
    """SliceThickness in mm."""
    kernel: str
    """ConvolutionKernel, its values joined by a slash."""
    kvp: float | None
    """Tube voltage in kV."""
    mas: float | None
    """Exposure in mAs."""
    patient_id: str
    series_uid: str
    description: str
    """SeriesDescription."""
    dose: float | None
    """Dose fraction, where the series was derived by shards/simulate.py; no scanner writes it."""

    @property
    def z(self) -> float:
        """Table position in mm."""
        return self.position[2]


def files_under(folder: Path) -> Iterator[Path]:
    """Every file below ``folder`` in a fixed order, without hidden ones."""
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        names = [] if real in seen else names  # a link back to a folder above would never end
        seen.add(real)
        yield from (Path(where) / name for name in sorted(names) if not name.startswith("."))


def _read(path: Path, **options: Any) -> FileDataset:
    """``pydicom.dcmread``, also for a data set without the 128 byte preamble; all failures become Unusable."""
    try:
        try:
            return pydicom.dcmread(path, **options)
        except InvalidDicomError:
            with open(path, "rb") as file:
                start = file.read(2)
            if start not in (b"\x08\x00", b"\x02\x00"):  # no preamble: a data set begins with group 8 (or 2)
                raise Unusable("not DICOM") from None
            return pydicom.dcmread(path, force=True, **options)
    except Unusable:
        raise
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged header raises nearly anything inside pydicom
        raise Unusable(f"broken DICOM: {type(error).__name__}: {error}") from None


def _group(dataset: Dataset, frame: int | None, name: str) -> Dataset:
    """The functional group ``name`` of a frame: its own, else the shared one; the data set itself for a plain file."""
    if frame is None:
        return dataset
    for groups in (dataset.PerFrameFunctionalGroupsSequence[frame : frame + 1],
                   dataset.get("SharedFunctionalGroupsSequence", [])):  # fmt: skip
        if groups and name in groups[0] and groups[0][name].value:
            return groups[0][name].value[0]
    return Dataset()


def _number(value: object) -> float | None:
    """A header's number; None for one that is missing, empty or no number."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _vector(value: object, length: int, name: str) -> tuple[float, ...]:
    """A header's list of ``length`` numbers, or Unusable."""
    numbers = [_number(v) for v in value] if isinstance(value, pydicom.multival.MultiValue | list) else []
    if len(numbers) != length or None in numbers:
        raise Unusable(f"{name} is missing or broken")
    return tuple(float(n) for n in numbers if n is not None)


def read_slices(path: Path) -> list[Slice]:
    """The CT slices in a file: one, or one for each frame of an enhanced multi-frame file.

    Raises
    ------
    Unusable
        If the file is no DICOM, no CT image, a localizer, a capture, not axial, or lacks its geometry.
    """
    header = _read(path, stop_before_pixels=True, specific_tags=_TAGS)
    try:
        _check_image(header, path)
        frames = range(int(header.NumberOfFrames)) if header.get("PerFrameFunctionalGroupsSequence") else [None]
        return [_slice(header, path, frame) for frame in frames]
    except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        raise Unusable(f"broken header: {error}") from None


def _check_image(header: FileDataset, path: Path) -> None:
    """Raise Unusable for a file that holds something else than CT slices, or fewer bytes than they need."""
    kind = [str(k).upper() for k in (header.get("ImageType") or [])]
    if "Rows" not in header or "Columns" not in header:
        raise Unusable("no image in it (no Rows and Columns)")
    if (header.get("Modality") or "CT") != "CT":
        raise Unusable(f"not CT: Modality {header.Modality}")
    if "LOCALIZER" in kind:
        raise Unusable("a localizer")
    if str(header.get("SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.7"):
        raise Unusable("a secondary capture")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise Unusable("a colour image")
    meta = getattr(header, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta else None
    if syntax is None or not syntax.is_encapsulated:
        frames = int(header.get("NumberOfFrames") or 1)
        need = header.Rows * header.Columns * int(header.get("BitsAllocated") or 16) // 8 * frames
        if (syntax is None or not syntax.is_deflated) and path.stat().st_size < need:
            raise Unusable(f"truncated: {path.stat().st_size} bytes, the pixels alone need {need}")


def _slice(header: FileDataset, path: Path, frame: int | None) -> Slice:
    """One frame's header, checked."""
    place = _group(header, frame, "PlanePositionSequence")
    plane = _group(header, frame, "PlaneOrientationSequence")
    measures = _group(header, frame, "PixelMeasuresSequence")
    reconstruction = _group(header, frame, "CTReconstructionSequence")
    x, y, z = _vector(place.get("ImagePositionPatient"), 3, "ImagePositionPatient")
    orientation = _vector(plane.get("ImageOrientationPatient"), 6, "ImageOrientationPatient")
    row, column = _vector(measures.get("PixelSpacing"), 2, "PixelSpacing")
    if row <= 0 or column <= 0:
        raise Unusable(f"PixelSpacing {row:g} x {column:g} mm")
    normal = np.cross(orientation[:3], orientation[3:])
    if abs(normal[2]) < 0.7:  # a tilted gantry (head CT) passes, coronal and sagittal images do not
        raise Unusable("not axial: ImageOrientationPatient " + ", ".join(f"{v:g}" for v in orientation))
    kernel = reconstruction.get("ConvolutionKernel") or ""
    exposure = _group(header, frame, "CTExposureSequence")
    kvp = _group(header, frame, "CTXRayDetailsSequence").get("KVP")
    dose = _DOSE.search(str(header.get("DerivationDescription") or ""))
    return Slice(
        path=path,
        frame=frame,
        position=(x, y, z),
        orientation=orientation,
        shape=(int(header.Rows), int(header.Columns)),
        spacing=(row, column),
        thickness=_number(measures.get("SliceThickness")),
        kernel=kernel if isinstance(kernel, str) else "/".join(str(k) for k in kernel),
        kvp=_number(kvp),
        mas=_number(exposure.get("ExposureInmAs" if frame is not None else "Exposure")),
        patient_id=str(header.get("PatientID") or "").strip(),
        series_uid=str(header.get("SeriesInstanceUID") or ""),
        description=str(header.get("SeriesDescription") or "").strip(),
        dose=float(dose[1]) if dose else None,
    )


def _native(dataset: FileDataset) -> np.ndarray | None:
    """Pixels of an uncompressed 16-bit little endian slice straight from the buffer; None for any other coding.

    Twice as fast as ``pixel_array``; bits above BitsStored (old overlays) are removed, the sign is extended.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian) or dataset.BitsAllocated != 16:
        return None
    count = dataset.Rows * dataset.Columns
    if len(dataset.PixelData) < 2 * count:
        raise Unusable(f"truncated: {len(dataset.PixelData)} bytes of pixels, expected {2 * count}")
    signed = dataset.PixelRepresentation == 1
    pixels = np.frombuffer(dataset.PixelData, "<i2" if signed else "<u2", count).reshape(dataset.Rows, dataset.Columns)
    stored = int(dataset.get("BitsStored") or 16)
    high = int(dataset.get("HighBit") or stored - 1)
    if stored == 16:
        return pixels
    return (pixels << (15 - high)) >> (16 - stored)  # up to the top bit, then down: arithmetic where signed


def read_hu(piece: Slice) -> tuple[np.ndarray, int]:
    """The pixels of a slice in HU = pixel * RescaleSlope + RescaleIntercept.

    Returns
    -------
    hu : numpy.ndarray
        int16, shape (rows, columns). Padding (PixelPaddingValue to PixelPaddingRangeLimit) is -1024.
    clipped : int
        Number of pixels that int16 could not hold.

    Raises
    ------
    Unusable
        If the file vanished, is truncated, or no decoder knows its coding.
    """
    dataset = _read(piece.path) if piece.frame is None else _read(piece.path, stop_before_pixels=True)
    meta = getattr(dataset, "file_meta", None)
    if meta is None or "TransferSyntaxUID" not in meta:  # no preamble: pydicom found out the coding by itself
        explicit = dataset.original_encoding[0] is False
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    try:
        if piece.frame is None:
            native = _native(dataset)
            pixels = dataset.pixel_array if native is None else native
        else:
            pixels = pixel_array(piece.path, index=piece.frame)
    except Unusable:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        first = str(error).strip().split("\n")[0]
        raise Unusable(f"pixels cannot be decoded: {type(error).__name__}: {first}") from None
    if pixels.shape != piece.shape:
        raise Unusable(f"pixels have shape {pixels.shape}, the header said {piece.shape}")
    return _to_hu(pixels, dataset, piece.frame)


def _to_hu(pixels: np.ndarray, dataset: FileDataset, frame: int | None) -> tuple[np.ndarray, int]:
    """Apply slope, intercept and padding; round and clip to int16."""
    rescale = _group(dataset, frame, "PixelValueTransformationSequence")
    slope = _number(rescale.get("RescaleSlope", 1))
    intercept = _number(rescale.get("RescaleIntercept", 0))
    if not slope or intercept is None:
        raise Unusable("RescaleSlope or RescaleIntercept is broken")
    ends = sorted(float(value) * slope + intercept for value in (pixels.min(), pixels.max()))
    if (
        slope == 1
        and intercept == int(intercept)
        and ends[1] <= 32767
        and abs(intercept) <= 32767
        and ends[0] >= -32768
    ):
        hu = pixels.astype(np.int16) + np.int16(intercept)  # may wrap on the way, the sum is right modulo 2^16
        clipped = 0
    else:
        exact = np.rint(pixels * slope + intercept)
        clipped = int(np.count_nonzero((exact > 32767) | (exact < -32768)))
        hu = np.clip(exact, -32768, 32767).astype(np.int16)
    if ends[0] < NO_TISSUE:
        hu[hu < NO_TISSUE] = PADDING
    padded = _padding(pixels, dataset, slope, intercept)
    if padded is not None:
        hu[padded] = PADDING
    return hu, clipped


def _padding(pixels: np.ndarray, dataset: FileDataset, slope: float, intercept: float) -> np.ndarray | None:
    """Mask of the padded pixels, after PixelPaddingValue and PixelPaddingRangeLimit (DICOM PS3.3 C.7.5.1.1.2)."""
    first = _number(dataset.get("PixelPaddingValue"))
    if first is None:
        return None
    last = _number(dataset.get("PixelPaddingRangeLimit"))
    ends = [first, first if last is None else last]
    if dataset.PixelRepresentation == 1:  # -2000 is often written with the VR of an unsigned value: 63536
        ends = [end - 65536 if end > 32767 else end for end in ends]
    if max(end * slope + intercept for end in ends) > MAX_PADDING:
        return None
    return (pixels >= min(ends)) & (pixels <= max(ends))


def write_derived(source: Slice, hu: np.ndarray, path: Path, description: str, series: str, number: int) -> None:
    """Write ``hu`` as a CT image derived from ``source``, atomically and with the same bytes each time.

    Parameters
    ----------
    source : Slice
        Its header is kept, apart from what follows.
    hu : numpy.ndarray
        int16, shape (rows, columns). Stored signed, slope 1, intercept 0: every HU value as it is.
    path : Path
        The new file; its folder must exist.
    description : str
        What was done: DerivationDescription, shortened for SeriesDescription.
    series : str
        Names the new series: the same text and study give the same SeriesInstanceUID.
    number : int
        InstanceNumber.
    """
    dataset = _read(source.path)
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
    with atomic(path) as file:
        pydicom.dcmwrite(file, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)


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
    """Store ``hu`` uncompressed as signed 16 bit, and drop what no longer holds."""
    dataset.Rows, dataset.Columns = hu.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit", "SmallestImagePixelValue", "LargestImagePixelValue",
                 "LossyImageCompression", "LossyImageCompressionRatio", "ReferencedImageSequence"):  # fmt: skip
        if name in dataset:
            del dataset[name]
    dataset.PixelData = hu.astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
