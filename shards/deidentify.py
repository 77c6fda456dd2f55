"""Headers without the patient: the Basic Application Level Confidentiality Profile of DICOM PS3.15, annex E.

The profile lists what has to go. Here stands what may stay, and everything else goes: private elements, overlays,
sequences, and what a later edition of the standard will add. Pixels stay: a head can be recognised in them.
"""

import hashlib
import secrets
import sys
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, generate_uid

from shards.common.atomic import write_once
from shards.common.command import InputError

_KEPT = """
    SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID Modality Manufacturer ManufacturerModelName
    SourceImageSequence ReferencedSOPClassUID ReferencedSOPInstanceUID ReferencedFrameNumber BodyPartExamined
    ScanOptions SliceThickness KVP DataCollectionDiameter ReconstructionDiameter DistanceSourceToDetector
    DistanceSourceToPatient GantryDetectorTilt TableHeight RotationDirection ExposureTime XRayTubeCurrent Exposure
    FilterType GeneratorPower FocalSpots ConvolutionKernel PatientPosition SpiralPitchFactor SingleCollimationWidth
    TotalCollimationWidth TableSpeed TableFeedPerRotation CTDIvol ExposureModulationType StudyInstanceUID
    SeriesInstanceUID SeriesNumber AcquisitionNumber InstanceNumber ImagePositionPatient ImageOrientationPatient
    FrameOfReferenceUID PositionReferenceIndicator SliceLocation SamplesPerPixel PhotometricInterpretation Rows
    Columns PixelSpacing BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue
    PixelPaddingRangeLimit BurnedInAnnotation WindowCenter WindowWidth RescaleIntercept RescaleSlope RescaleType
    LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod SmallestImagePixelValue
    LargestImagePixelValue PixelData
"""
KEPT = frozenset(_KEPT.split())
"""Keywords that say how an image was taken and how to read it, and nothing of whom it shows."""

EMPTY = ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
         "AccessionNumber")  # fmt: skip
"""What every image must have, and may have empty (type 2)."""


class Deidentifier:
    """Takes the patient out of headers; a secret makes UIDs and PatientIDs that are the same in each run.

    Parameters
    ----------
    path : Path
        File with the secret, 32 bytes in hex; where it is missing ``keep`` makes it, for its owner alone. Who has it
        and the original can find out which image is which, and nobody else can.
    out : Path, optional
        Folder of the images, in which it must not lie.

    Raises
    ------
    InputError
        If the file cannot be read, holds something else or lies in ``out``.
    """

    def __init__(self, path: Path, out: Path | None = None) -> None:
        if out is not None and path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"--deidentify {path} lies inside OUT, whose readers could undo it; put it elsewhere")
        self.path = path
        self.key = self._read() if path.exists() else secrets.token_bytes(32)

    def _read(self) -> bytes:
        """The secret in the file."""
        try:
            key = bytes.fromhex(self.path.read_text())
        except OSError as error:
            raise InputError(f"{self.path}: the secret cannot be read: {error.strerror}") from None
        except ValueError:
            key = b""
        if len(key) != 32:
            raise InputError(
                f"{self.path}: expected a secret of 64 hexadecimal digits; give a new name, and it is made"
            )
        return key

    def keep(self) -> None:
        """Write a new secret to its file, before the first image is written; take the file's where there is one."""
        if self.path.exists():
            self.key = self._read()
            return
        try:
            if not write_once(self.path, self.key.hex() + "\n", 0o600):  # another part of the same command made one
                self.key = self._read()
                return
        except OSError as error:
            raise InputError(f"{self.path}: the secret cannot be made: {error.strerror}") from None
        differ = "PatientIDs and UIDs differ from those made with another one"
        again = "Keep it, apart from the images, to get the same again"
        print(f"note: made a new key, {self.path.resolve()}; {differ}. {again}", file=sys.stderr)

    def fingerprint(self) -> str:
        """What tells this secret from another and gives nothing of it away."""
        return hashlib.blake2b(b"note", key=self.key, digest_size=6).hexdigest()

    def uid(self, uid: str) -> str:
        """The UID that stands for another."""
        return generate_uid(entropy_srcs=[self.key.hex(), uid])

    def apply(self, dataset: FileDataset, derived: bool) -> None:
        """Change a header in place.

        Parameters
        ----------
        dataset : FileDataset
            An ordinary CT image, with its file meta information.
        derived : bool
            Whether this project made it, and its descriptions say what was done.
        """
        patient = str(dataset.get("PatientID") or "")
        description = str(dataset.get("DerivationDescription") or "")
        _identify(dataset)
        self._strip(dataset, KEPT)
        if derived:
            dataset.DerivationDescription, dataset.SeriesDescription = description, description[:64]
        for keyword in EMPTY:
            setattr(dataset, keyword, "")
        hashed = hashlib.blake2b(patient.encode(), key=self.key, digest_size=6).hexdigest()
        dataset.PatientID = hashed if patient else ""
        dataset.PatientIdentityRemoved, dataset.LongitudinalTemporalInformationModified = "YES", "REMOVED"
        dataset.DeidentificationMethod = "PS3.15 basic profile, kept by list"
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
        code.CodeMeaning = "Basic Application Confidentiality Profile"
        dataset.DeidentificationMethodCodeSequence = [code]
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        dataset.file_meta, dataset.preamble = meta, b"\0" * 128

    def _strip(self, dataset: Dataset, kept: frozenset[str]) -> None:
        """Drop all elements but ``kept`` ones, also within sequences; replace UIDs of instances."""
        for tag in list(dataset.keys()):
            element = dataset[tag]
            if element.keyword not in kept:
                del dataset[tag]
            elif element.VR == "SQ":
                for item in element.value:
                    self._strip(item, kept)
            elif element.VR == "UI" and not element.keyword.endswith("ClassUID") and element.value:
                element.value = self.uid(str(element.value))


def _identify(dataset: FileDataset) -> None:
    """Fill an empty class and UID: from the file meta information, else as of a CT image with these pixels."""
    if not dataset.get("SOPClassUID"):
        dataset.SOPClassUID = dataset.file_meta.get("MediaStorageSOPClassUID") or CTImageStorage
    if not dataset.get("SOPInstanceUID"):
        content = [hashlib.sha256(dataset.PixelData).hexdigest(), str(dataset.get("ImagePositionPatient"))]
        stands_in = generate_uid(entropy_srcs=[Path(str(dataset.filename)).name, *content])
        dataset.SOPInstanceUID = dataset.file_meta.get("MediaStorageSOPInstanceUID") or stands_in
