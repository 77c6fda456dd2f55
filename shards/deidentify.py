"""Headers without the patient: the Basic Application Level Confidentiality Profile of DICOM PS3.15, annex E.

The profile lists what has to go. Here stands what may stay, and everything else goes: private elements, overlays,
sequences, and what a later edition of the standard will add. Pixels stay: a head can be recognised in them.
"""

import hashlib
import os
import secrets
import sys
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import generate_uid

from shards.common.atomic import temporary_name
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
        File with the secret, 32 bytes in hex; made, for its owner alone, where it is missing. Who has it and the
        original can find out which image is which, and nobody else can.

    Raises
    ------
    InputError
        If the file cannot be read or made, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            new = not path.exists()
            if new:
                temporary = temporary_name(path)
                with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(secrets.token_hex(32) + "\n")
                try:
                    os.link(temporary, path)
                except FileExistsError:  # another part of the same command made one
                    new = False
                temporary.unlink()
            self.key = bytes.fromhex(path.read_text())
        except OSError as error:
            raise InputError(f"{path}: the secret cannot be read or made: {error.strerror}") from None
        except ValueError:
            self.key = b""
        if len(self.key) != 32:
            raise InputError(f"{path}: expected a secret of 64 hexadecimal digits; give a new name, and it is made")
        if new:
            differ = "PatientIDs and UIDs differ from those made with another one"
            keep = "Keep it, apart from the images, to get the same again"
            print(f"note: made a new key, {path.resolve()}; {differ}. {keep}", file=sys.stderr)

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
