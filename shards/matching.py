"""Which slices of one patient were taken at both doses."""

import collections
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.dicom import Slice, Unusable
from shards.files import printable
from shards.pixels import read_hu

SAME_Z_UM = 10
"""Largest difference in micrometres of the z of a pair, included. In whole micrometres, because 1.01 - 1.0 > 0.01."""

Dosed = tuple[Slice, float | None]
"""A slice, and the dose fraction that its layout stands for."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One slice at both doses."""

    key: str
    """Name of the record: patient and running number in z."""
    patient: str
    full: Slice
    low: Slice
    dose: float | None
    """Fraction of the full dose; None if neither header nor layout says."""


@dataclass
class Patient:
    """The slices of one patient."""

    name: str
    layout: str
    variant: str
    full: int = 0
    """Slices at full dose."""
    low: int = 0
    """Slices at reduced dose."""
    small: int = 0
    """Pairs that were taken out because they are smaller than a patch."""
    pairs: list[Pair] = field(default_factory=list)


def person(patient: str) -> str:
    """Whose images they are: simulate.py --variants makes NAME-v00, NAME-v01, ... of NAME's."""
    return re.sub(r"-v\d\d$", "", patient)


def micrometres(z: float) -> int:
    """A table position in mm, in whole micrometres: DICOM's decimal texts have no more digits that mean anything."""
    return round(z * 1000)


def slice_name(piece: Slice, folder: Path) -> str:
    """A slice for people: its file below ``folder``, and its frame."""
    inside = printable(piece.path.relative_to(folder))
    return inside if piece.frame is None else f"{inside} frame {piece.frame}"


def key_name(patient: str, length: int = 48, digits: int = 6) -> str:
    """The patient as it may stand in a key; a name that had to be changed gets a piece of its hash to stay unique.

    At most ``length`` + ``digits`` + 1 characters: the name of a tar's member has room for 100.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", patient)[:length]
    return plain if plain == patient else f"{plain}-{hashlib.sha256(patient.encode()).hexdigest()[:digits]}"


def key_names(patients: Iterable[str]) -> dict[str, str]:
    """``key_name`` of each, and all of them different."""
    names = {patient: key_name(patient) for patient in patients}
    taken = collections.Counter(names.values())
    return {patient: name if taken[name] == 1 else key_name(f"{patient}\0", 32, 24) for patient, name in names.items()}


def match(
    patient: Patient, key: str, full: list[Dosed], low: list[Dosed], left_out: list[dict[str, str]], folder: Path
) -> None:
    """Fill ``patient.pairs``, in order of z; note every slice that finds no mate."""
    pieces = [piece for piece, _ in [*full, *low]]
    rounded = collections.Counter(_rounded(piece) for piece in pieces)
    usual = max(pieces, key=lambda piece: (rounded[_rounded(piece)], str(_rounded(piece)))) if pieces else None
    sides = []
    for dosed, dose_name in ((full, "full-dose"), (low, "reduced-dose")):
        same = []
        for piece, dose in dosed:
            if usual is not None and _same_geometry(piece, usual):
                same.append((piece, dose))
                continue
            why = f"matrix, spacing or orientation differs from the patient's other slices: {_rounded(piece)}"
            left_out.append({"what": slice_name(piece, folder), "why": why})
        sides.append(_only_at(same, dose_name, left_out, folder))
    i = j = 0
    while i < len(sides[0]) or j < len(sides[1]):
        a = sides[0][i][0] if i < len(sides[0]) else None
        b = sides[1][j][0] if j < len(sides[1]) else None
        if a is not None and b is not None and abs(micrometres(a.z) - micrometres(b.z)) <= SAME_Z_UM:
            if problem := _difference(a, b):
                left_out.append({"what": slice_name(a, folder), "why": problem})
            else:
                pair_dose = b.simulated.get("dose", sides[1][j][1])
                patient.pairs.append(Pair(f"{key}_{len(patient.pairs):04d}", patient.name, a, b, pair_dose))
            i, j = i + 1, j + 1
        elif b is None or (a is not None and a.z < b.z):
            assert a is not None
            left_out.append({"what": slice_name(a, folder), "why": "no reduced-dose slice at its z"})
            i += 1
        else:
            left_out.append({"what": slice_name(b, folder), "why": "no full-dose slice at its z"})
            j += 1


def _rounded(piece: Slice) -> tuple[object, ...]:
    """Matrix, spacing and orientation, to count which are the usual ones."""
    return piece.shape, tuple(round(s, 3) for s in piece.spacing), tuple(round(o, 2) + 0.0 for o in piece.orientation)


def _close(a: tuple[float, ...], b: tuple[float, ...], tolerance: float) -> bool:
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def _same_geometry(piece: Slice, other: Slice) -> bool:
    """Whether two slices of a patient have the same pixels in space, but for rounding."""
    return (
        piece.shape == other.shape
        and _close(piece.spacing, other.spacing, 1e-3 * min(other.spacing))
        and _close(piece.orientation, other.orientation, 0.01)
    )


def _difference(full: Slice, low: Slice) -> str | None:
    """Why two slices at one z are no pair, or None."""
    if full.shape != low.shape:
        return f"its mate has another matrix: {full.shape} and {low.shape}"
    if not _close(full.spacing, low.spacing, 1e-3 * min(full.spacing)):
        return f"its mate has another pixel spacing: {full.spacing} and {low.spacing} mm"
    if not _close(full.orientation, low.orientation, 1e-3):
        return f"its mate has another orientation: {full.orientation} and {low.orientation}"
    if not _close(full.position[:2], low.position[:2], 0.1):
        return f"its mate lies elsewhere in the plane: {full.position[:2]} and {low.position[:2]} mm"
    return None


def _only_at(pieces: Iterable[Dosed], dose_name: str, left_out: list[dict[str, str]], folder: Path) -> list[Dosed]:
    """The slices in order of z, without any that share their z with another; copies of a slice count once."""
    ordered = sorted(pieces, key=lambda item: (item[0].z, item[0].path, item[0].frame or 0))
    groups: list[list[Dosed]] = []
    for item in ordered:
        if groups and micrometres(item[0].z) - micrometres(groups[-1][-1][0].z) <= SAME_Z_UM:
            groups[-1].append(item)
        else:
            groups.append([item])
    alone = []
    for group in groups:
        first = group[0][0]
        if len(group) > 1 and all(_same_pixels(first, piece) for piece, _ in group[1:]):
            for piece, _ in group[1:]:
                why = f"a copy of another {dose_name} slice"
                left_out.append({"what": slice_name(piece, folder), "why": why})
        elif len(group) > 1:
            for piece, _ in group:
                why = f"{len(group)} {dose_name} slices at one z"
                left_out.append({"what": slice_name(piece, folder), "why": why})
            continue
        alone.append(group[0])
    return alone


def _same_pixels(a: Slice, b: Slice) -> bool:
    """Whether two slices at one z are the same image."""
    try:
        return np.array_equal(read_hu(a)[0], read_hu(b)[0])
    except Unusable:
        return False
