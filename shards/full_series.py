"""The full-dose series in a folder: whose they are, how they were taken, and whether noise can be simulated in them."""

import collections
import hashlib
import re
from pathlib import Path

import numpy as np
from scipy import ndimage

from shards import noise_model
from shards.common.command import InputError
from shards.dicom import Slice, Unusable, read_slices
from shards.files import files_under
from shards.layouts import names_a_dose, place
from shards.pixels import PADDING, read_hu

BELIEVABLE = (10.0, 2000.0)
"""Range of an Exposure in mAs; some scanners write 9 for 200."""

DARKEST = -50
"""HU below which every slice of a body has pixels, also one that shows its middle alone."""


def find_series(folder: Path) -> tuple[dict[str, list[Slice]], dict[str, str]]:
    """The full-dose series below ``folder``: patient to slices in order of z, and what was passed over and why.

    A folder is a series. Where the path names a patient and a dose (shards/layouts.py), full dose alone is taken;
    else the patient is the PatientID where each folder has its own, or the folder.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder with DICOM files, found no folder {folder}")
    slices: dict[Path, list[Slice]] = collections.defaultdict(list)
    names: dict[Path, str] = {}
    passed: dict[str, str] = {}
    for path in files_under(folder):
        inside = path.relative_to(folder)
        where = place(inside, folder.resolve().name)
        if where is not None and not where.full:
            passed[inside.as_posix()] = "a reduced dose already"
            continue
        try:
            pieces = read_slices(path)
        except Unusable as reason:
            passed[inside.as_posix()] = str(reason)
            continue
        slices[path.parent] += pieces
        if where is not None:
            names[path.parent] = f"{where.patient}_{where.variant}" if where.variant else where.patient
    slices = {parent: pieces for parent, pieces in slices.items() if pieces}
    if not slices:
        tried = "; ".join(f"{name}: {why}" for name, why in list(passed.items())[:3]) or "the folder is empty"
        raise InputError(f"no axial CT slice in {folder} ({tried})")
    return _name_series(folder, slices, names), passed


def _name_series(folder: Path, slices: dict[Path, list[Slice]], names: dict[Path, str]) -> dict[str, list[Slice]]:
    """Give each folder's series its patient's name, without two of one name.

    The name comes from the path and never from the header: what stands in a PatientID stays there.
    """
    named: dict[str, list[Slice]] = {}
    for where, pieces in slices.items():
        inside = where.relative_to(folder).as_posix()
        name = names.get(where) or (inside if inside != "." else folder.resolve().name)
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
        name = "patient" if not name or names_a_dose(name) else name
        if name in named:
            raise InputError(
                f"two series would both be named {name} ({where} is one); simulate their folders one by one"
            )
        named[name] = sorted(pieces, key=lambda piece: piece.z)
    return named


def check_source(name: str, pieces: list[Slice]) -> None:
    """Refuse a series whose values are not HU, that was denoised or simulated, or that is several.

    Raises
    ------
    InputError
        Saying which.
    """
    where = pieces[0].path.parent
    without = sum(not piece.coding.rescaled for piece in pieces)
    if without:
        why = (
            f"{without} of {len(pieces)} slices have no RescaleSlope or RescaleIntercept, so their values may not be HU"
        )
        raise InputError(f"{name}: {why}; put the headers in {where} right")
    if made := next((piece.derivation for piece in pieces if piece.denoised or "dose" in piece.simulated), ""):
        raise InputError(f"{name}: expected a full dose as scanned, found {made[:60]!r}; give the folder of its source")
    kernels, people = {piece.kernel for piece in pieces}, {piece.patient_id for piece in pieces}
    if len(kernels) > 1 or len(people) > 1:
        several = f"kernels {', '.join(sorted(kernels))}" if len(kernels) > 1 else f"{len(people)} PatientIDs"
        raise InputError(f"{where} holds several series ({several}); give each a folder of its own")
    try:
        darkest = [int(read_hu(pieces[i])[0].min()) for i in {0, len(pieces) // 2}]
    except Unusable:
        return  # whoever reads them all says so
    if min(darkest) > DARKEST:
        why = f"expected HU, found no pixel below {DARKEST} HU, where fat and air lie"
        raise InputError(f"{name}: {why}; put the RescaleIntercept in {where} right")


def pick_kernel(pieces: list[Slice], choice: str) -> noise_model.Kernel:
    """The filter for a series: by choice, or by ConvolutionKernel (45 or more, lung, bone, edge: sharp)."""
    if choice != "auto":
        return noise_model.SHARP if choice == "sharp" else noise_model.SOFT
    name = pieces[0].kernel.split("/")[0]
    strength = re.search(r"\d+", name)
    sharp = int(strength[0]) >= 45 if strength else re.search("lung|bone|edge|sharp|detail", name, re.I)
    return noise_model.SHARP if sharp else noise_model.SOFT


def exposures(pieces: list[Slice]) -> list[float | None]:
    """mAs of each slice; None for all of a series in which one is missing or absurd."""
    values = [piece.mas for piece in pieces]
    good = all(value is not None and BELIEVABLE[0] <= value <= BELIEVABLE[1] for value in values)
    return values if good else [None] * len(values)


def shared_noise(pieces: list[Slice]) -> list[list[tuple[float, float]]]:
    """How the noise of overlapping slices hangs together: it is a sum of independent noises, one for each slice.

    A spiral scan shows in a slice what lies at a distance from it, weighted by a triangle that is as wide at half
    height as the slice is thick. For 3 mm every 2 mm neighbours then correlate by 0.55 and the second next by 0.09;
    in real series of the AAPM challenge by 0.56 and 0.12. Slices no closer than they are thick share nothing.

    Returns
    -------
    list of list of (float, float)
        For each slice weight and position z in mm of the noises that it has; the squares of its weights add up to 1.
    """
    places = np.unique([piece.z for piece in pieces])
    shares = []
    for piece in pieces:
        reach = max(piece.thickness or 0.0, 1e-3)
        near = places[np.abs(places - piece.z) < reach]
        weights = 1 - np.abs(near - piece.z) / reach
        weights /= np.linalg.norm(weights)
        shares.append([(float(weight), float(z)) for weight, z in zip(weights, near, strict=True)])
    return shares


def content(pieces: list[Slice]) -> str:
    """sha256 of the files of a series, in order of z: the same for the same images, wherever they lie."""
    digest = hashlib.sha256()
    for path in dict.fromkeys(piece.path for piece in pieces):
        try:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def cut_off(hu: np.ndarray) -> float:
    """How much of the edge of the reconstructed field shows body: 0 where the whole body is in it.

    Rays through what the field does not show look thinner than they are, and get too little noise.

    Parameters
    ----------
    hu : numpy.ndarray
        One slice in HU, shape (H, W). -1024 where the scanner reconstructed nothing.
    """
    field = np.pad(ndimage.binary_opening(hu > PADDING, iterations=2), 1)
    edge = field & ~ndimage.binary_erosion(field, iterations=3)
    return float(np.mean(np.pad(hu, 1)[edge] > -300)) if edge.any() else 0.0
