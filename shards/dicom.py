"""DICOM CT slices: which files hold one, where it lies, and how its pixels are stored (shards/pixels.py reads them)."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from shards import drawn

HU_TYPES = ("HU", "HU_MOD", "HOUNSFIELD", "HOUNSFIELD UNITS", "US", "")
"""RescaleTypes that are HU, or say nothing (US: unspecified); an iodine map has MGML."""

IMAGE_SUFFIXES = (".dcm", ".ima")
"""A file of such a name should have been an image."""

MAX_PADDING = -900
"""A PixelPaddingValue above this HU is a wrong header (0 in a series where 0 is water) and is not believed."""

NO_BODY = 32767
"""But from this HU on it is none of a body: -2000 in pixels that are signed, and whose header says unsigned."""


class Unusable(Exception):
    """This file gives no CT slice. The message is the reason; the caller knows the file's name."""


class Damaged(Unusable):
    """This file may hold a CT slice, but not a whole one: its series has a gap."""


class Unreadable(Damaged):
    """The file system gives no bytes of this file: no permission, an I/O error, a link to nowhere."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How the pixels of a slice are stored and what they mean."""

    start: int | None
    """Byte in the file at which uncompressed 16 bit little endian pixels begin; None: pydicom has to decode them."""
    signed: bool
    """PixelRepresentation is 1."""
    stored: int
    """BitsStored."""
    high: int
    """HighBit."""
    slope: float
    """RescaleSlope."""
    intercept: float
    """RescaleIntercept."""
    rescaled: bool
    """Whether the header has both; else slope is 1, intercept 0, and the values may not be HU."""
    padding: tuple[float, float] | None
    """Lowest and highest pixel value that means outside the field of view, if the header names one to believe."""


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
    study_uid: str
    series_uid: str
    sop_uid: str
    """SOPInstanceUID."""
    description: str
    """SeriesDescription."""
    coding: Coding
    derivation: str
    """DerivationDescription, where this project wrote it."""
    size: int
    """Bytes in the file."""
    mtime_ns: int
    """Time of the file's last change in ns since 1970, when its header was read."""

    @property
    def simulated(self) -> dict[str, float]:
        """What shards/simulate.py drew for a reduced dose, by the names of shards/drawn.py; {} for a scanner's."""
        return drawn.parse(self.derivation)

    @property
    def denoised(self) -> bool:
        """Whether launch/denoise.py made it."""
        return self.derivation.startswith(drawn.DENOISED)

    @property
    def z(self) -> float:
        """Table position in mm."""
        return self.position[2]


def read_file(path: Path, file: IO[bytes] | None = None, **options: Any) -> FileDataset:
    """``pydicom.dcmread``, also for a data set without preamble or transfer syntax; all failures become Unusable.

    Parameters
    ----------
    path : Path
        The file.
    file : file object, optional
        The same file, open; it is left where reading stopped.
    options
        For ``pydicom.dcmread``.
    """
    try:
        try:
            dataset = pydicom.dcmread(file or path, **options)
        except InvalidDicomError:
            with open(path, "rb") as again:
                start = again.read(2)
            if path.suffix.lower() in IMAGE_SUFFIXES and not start.strip(b"\0"):
                raise Damaged("empty, or it begins with zeros: was it copied whole?") from None
            if start not in (b"\x08\x00", b"\x02\x00"):  # no preamble: a data set begins with group 8 (or 2)
                raise Unusable("not DICOM") from None
            if file is not None:
                file.seek(0)
            dataset = pydicom.dcmread(file or path, force=True, **options)
    except Unusable:
        raise
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged header raises nearly anything inside pydicom
        raise Damaged(f"broken DICOM: {type(error).__name__}: {error}") from None
    meta = getattr(dataset, "file_meta", None)
    if meta is None or "TransferSyntaxUID" not in meta:  # pydicom found out the coding by itself
        implicit = dataset.original_encoding[0]
        dataset.file_meta = meta or FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


_tag = functools.cache(Tag)


@functools.lru_cache(maxsize=4096)
def _converted(
    keyword: str, vr: str | None, value: bytes, implicit: bool, little: bool, charset: str | tuple[str, ...]
) -> Any:
    """The value of an element, from its bytes in the file."""
    raw = RawDataElement(_tag(keyword), vr, len(value), value, 0, implicit, little)
    return convert_raw_data_element(raw, encoding=charset if isinstance(charset, str) else list(charset)).value


def _get(dataset: Dataset, keyword: str, default: Any = None) -> Any:
    """``dataset.get(keyword, default)``, but slices of a series share most values, and each is converted only once.

    Reading a header takes half the time so. Not for sequences, nor where the VR depends on other elements.
    """
    raw = dataset.get_item(_tag(keyword))
    if raw is None:
        return default
    if not isinstance(raw, RawDataElement) or not raw.value:
        return dataset.get(keyword, default)
    charset = dataset.original_character_set
    if not isinstance(charset, str):
        charset = tuple(charset)
    return _converted(keyword, raw.VR, raw.value, raw.is_implicit_VR, raw.is_little_endian, charset)


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
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            header = read_file(path, file, stop_before_pixels=True)  # specific_tags would only slow it down
            end = file.tell()  # where the pixel data's own header begins
            next_bytes = file.read(12)
        _check_image(header, stat.st_size)
        frames = range(int(header.NumberOfFrames)) if header.get("PerFrameFunctionalGroupsSequence") else [None]
        return [_slice(header, path, frame, end, next_bytes, stat) for frame in frames]
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    except Unusable:
        raise
    except Exception as error:  # as in read_file
        raise Damaged(f"broken header: {' '.join(str(error).split())}") from None


def _check_image(header: FileDataset, size: int) -> None:
    """Raise Unusable for a file that holds something else than CT slices, or fewer bytes than they need."""
    kind = [str(k).upper() for k in (_get(header, "ImageType") or [])]
    rows, columns = _get(header, "Rows"), _get(header, "Columns")
    if rows is None or columns is None:
        raise Unusable("no image in it (no Rows and Columns)")
    if (modality := _get(header, "Modality") or "CT") != "CT":
        raise Unusable(f"not CT: Modality {modality}")
    if "LOCALIZER" in kind:
        raise Unusable("a localizer")
    if str(_get(header, "SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.7"):
        raise Unusable("a secondary capture")
    if int(_get(header, "SamplesPerPixel") or 1) != 1:
        raise Unusable("a colour image")
    if rows < 1 or columns < 1:
        raise Unusable(f"an image of {rows} x {columns} pixels")
    syntax = _get(header.file_meta, "TransferSyntaxUID")
    if not syntax.is_encapsulated and not syntax.is_deflated:
        frames = int(_get(header, "NumberOfFrames") or 1)
        need = rows * columns * int(_get(header, "BitsAllocated") or 16) // 8 * frames
        if size < need:
            raise Damaged(f"truncated: {size} bytes, the pixels alone need {need}")
    if header.get("ModalityLUTSequence"):  # no CT image has one (PS3.3 A.3.3), and without it the values are not HU
        raise Unusable("its values go through a Modality LUT, which is not supported: only RescaleSlope and -Intercept")


def _slice(
    header: FileDataset, path: Path, frame: int | None, end: int, next_bytes: bytes, stat: os.stat_result
) -> Slice:
    """One frame's header, checked."""
    place = _group(header, frame, "PlanePositionSequence")
    plane = _group(header, frame, "PlaneOrientationSequence")
    measures = _group(header, frame, "PixelMeasuresSequence")
    reconstruction = _group(header, frame, "CTReconstructionSequence")
    x, y, z = _vector(_get(place, "ImagePositionPatient"), 3, "ImagePositionPatient")
    orientation = _vector(_get(plane, "ImageOrientationPatient"), 6, "ImageOrientationPatient")
    row, column = _vector(_get(measures, "PixelSpacing"), 2, "PixelSpacing")
    if row <= 0 or column <= 0:
        raise Unusable(f"PixelSpacing {row:g} x {column:g} mm")
    along_z = orientation[0] * orientation[4] - orientation[1] * orientation[3]  # of the normal to the slice
    if abs(along_z) < 0.7:  # a tilted gantry (head CT) passes, coronal and sagittal images do not
        raise Unusable("not axial: ImageOrientationPatient " + ", ".join(f"{v:g}" for v in orientation))
    kernel = _get(reconstruction, "ConvolutionKernel") or ""
    exposure = _group(header, frame, "CTExposureSequence")
    kvp = _get(_group(header, frame, "CTXRayDetailsSequence"), "KVP")
    derivation = str(_get(header, "DerivationDescription") or "")
    shape = (int(_get(header, "Rows")), int(_get(header, "Columns")))
    return Slice(
        path=path,
        frame=frame,
        position=(x, y, z),
        orientation=orientation,
        shape=shape,
        spacing=(row, column),
        thickness=_number(_get(measures, "SliceThickness")),
        kernel=kernel if isinstance(kernel, str) else "/".join(str(k) for k in kernel),
        kvp=_number(kvp),
        mas=_number(_get(exposure, "ExposureInmAs" if frame is not None else "Exposure")),
        patient_id=str(_get(header, "PatientID") or "").strip(),
        study_uid=str(_get(header, "StudyInstanceUID") or ""),
        series_uid=str(_get(header, "SeriesInstanceUID") or ""),
        sop_uid=str(_get(header, "SOPInstanceUID") or ""),
        coding=_coding(header, frame, shape, end, next_bytes),
        description=str(_get(header, "SeriesDescription") or "").strip(),
        derivation=derivation if derivation.startswith(drawn.DENOISED) or drawn.parse(derivation) else "",
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
    )


def _coding(header: FileDataset, frame: int | None, shape: tuple[int, int], end: int, next_bytes: bytes) -> Coding:
    """How the pixels are stored. ``next_bytes`` lie at ``end``, where the header stopped before the pixel data."""
    rescale = _group(header, frame, "PixelValueTransformationSequence")
    slope, intercept = _number(_get(rescale, "RescaleSlope", 1)), _number(_get(rescale, "RescaleIntercept", 0))
    rescaled = "RescaleSlope" in rescale and "RescaleIntercept" in rescale
    if not slope or intercept is None:
        raise Unusable("RescaleSlope or RescaleIntercept is broken")
    unit = str(_get(rescale, "RescaleType") or "").strip()
    if unit.upper() not in HU_TYPES:
        raise Unusable(f"its values are not HU: RescaleType {unit}")
    signed = int(_get(header, "PixelRepresentation") or 0) == 1
    stored = int(_get(header, "BitsStored") or _get(header, "BitsAllocated") or 16)
    high = _get(header, "HighBit")
    high = stored - 1 if high is None else int(high)
    if not 0 < stored <= high + 1 <= int(_get(header, "BitsAllocated") or 16):
        raise Unusable(f"BitsStored {stored}, HighBit {high}, BitsAllocated {_get(header, 'BitsAllocated')}")
    return Coding(
        start=_start(header, frame, shape, end, next_bytes),
        signed=signed,
        stored=stored,
        high=high,
        slope=slope,
        intercept=intercept,
        rescaled=rescaled,
        padding=_padding(header, signed, slope, intercept),
    )


def _start(header: FileDataset, frame: int | None, shape: tuple[int, int], end: int, next_bytes: bytes) -> int | None:
    """Where plain 16 bit pixels begin, so that they can be read without pydicom: five times as fast."""
    syntax = _get(header.file_meta, "TransferSyntaxUID")
    plain = {ExplicitVRLittleEndian: 12, ImplicitVRLittleEndian: 8}
    if frame is not None or syntax not in plain or _get(header, "BitsAllocated") != 16:
        return None
    length = int.from_bytes(next_bytes[plain[syntax] - 4 : plain[syntax]], "little")
    if next_bytes[:4] != b"\xe0\x7f\x10\x00" or length < 2 * shape[0] * shape[1]:
        return None
    return end + plain[syntax]


def _padding(header: FileDataset, signed: bool, slope: float, intercept: float) -> tuple[float, float] | None:
    """Range of padded pixel values, after PixelPaddingValue and PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2)."""
    first = _number(header.get("PixelPaddingValue"))
    if first is None:
        return None
    last = _number(header.get("PixelPaddingRangeLimit"))
    ends = [first, first if last is None else last]
    if signed:  # -2000 is often written with the VR of an unsigned value: 63536
        ends = [end - 65536 if end > 32767 else end for end in ends]
    if MAX_PADDING < max(end * slope + intercept for end in ends) < NO_BODY:
        return None
    return min(ends), max(ends)
