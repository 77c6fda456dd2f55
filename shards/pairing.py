"""Find the slices that were taken at both doses."""

import collections
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shards import layouts
from shards.common.command import InputError, Progress
from shards.common.pool import Workers
from shards.dicom import Slice, Unusable, read_slices
from shards.files import files_under

SAME_Z = 0.01
"""Largest difference in mm of the z of a pair."""


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
    pairs: list[Pair] = field(default_factory=list)


@dataclass
class Pairing:
    """The pairs of a folder."""

    patients: list[Patient]
    left_out: list[dict[str, str]]
    """``what`` (file, slice or patient) and ``why``."""


def find_pairs(
    folder: Path,
    workers: Workers | None = None,
    globs: tuple[str, str] | None = None,
    variant: str | None = None,
) -> Pairing:
    """Read every header below ``folder`` and pair the slices of each patient by z.

    Parameters
    ----------
    folder : Path
        Any of the layouts of shards/layouts.py.
    workers : Workers, optional
        Read the headers; without, this process does.
    globs : tuple of str, optional
        The user's own patterns for full and reduced dose, with ``{patient}``.
    variant : str, optional
        Which thickness and kernel to take where there are several, e.g. "1mm_sharp".

    Raises
    ------
    InputError
        If there is no folder, nothing that pairs, or several variants to choose from.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder with DICOM series, found no folder {folder}")
    placed, left_out = _place_files(folder, globs)
    variants = sorted({where.variant for _, where in placed})
    if variant is not None:
        placed = [(path, where) for path, where in placed if where.variant == variant]
    elif len(variants) > 1:
        raise InputError(
            f"{folder} holds several series of each patient: {', '.join(v or 'unnamed' for v in variants)}; "
            f"choose one, e.g. --series {next(v for v in variants if v)}"
        )
    if not placed:
        raise InputError(_nothing(folder, globs, variant, variants, left_out))
    patients, slices = _read_headers(folder, placed, workers or Workers(1), left_out)
    for name in sorted(patients):
        _pair_patient(patients[name], slices[name, True], slices[name, False], left_out, folder)
    pairing = Pairing([patients[name] for name in sorted(patients)], left_out)
    if not any(patient.pairs for patient in pairing.patients):
        reasons = collections.Counter(out["why"] for out in left_out).most_common(3)
        raise InputError(
            f"no slice of {folder} is there at both doses ("
            + "; ".join(f"{p.name}: {p.full} full, {p.low} reduced" for p in pairing.patients[:3])
            + "); left out: "
            + "; ".join(f"{count} x {why}" for why, count in reasons)
        )
    return pairing


def _place_files(
    folder: Path, globs: tuple[str, str] | None
) -> tuple[list[tuple[Path, layouts.Place]], list[dict[str, str]]]:
    """Sort the files into those of a known place and the rest."""
    patterns = (layouts.compile_glob(globs[0], "full"), layouts.compile_glob(globs[1], "quarter")) if globs else None
    root = folder.resolve().name
    placed, left_out = [], []
    for path in files_under(folder):
        inside = path.relative_to(folder)
        if patterns is None and layouts.is_projection(inside):
            left_out.append({"what": inside.as_posix(), "why": "projection data"})
            continue
        where = layouts.by_globs(inside, *patterns) if patterns else layouts.place(inside, root)
        if where is None:
            why = "neither --full nor --quarter fits" if patterns else "the path names no dose"
            left_out.append({"what": inside.as_posix(), "why": why})
        else:
            placed.append((path, where))
    return placed, left_out


def _nothing(
    folder: Path,
    globs: tuple[str, str] | None,
    variant: str | None,
    variants: list[str],
    left_out: list[dict[str, str]],
) -> str:
    """What was tried, when nothing was found."""
    if variants:
        return f"--series {variant}: {folder} has no such series; it has {', '.join(v or 'unnamed' for v in variants)}"
    tried = f"--full {globs[0]!r} and --quarter {globs[1]!r}" if globs else "; ".join(layouts.KNOWN.values())
    seen = f"{len(left_out)} files, e.g. {left_out[0]['what']}" if left_out else "no files"
    return f"no layout recognised in {folder} ({seen}); tried: {tried}; for another give --full and --quarter globs"


def _try_read(path: Path) -> list[Slice] | str:
    """The slices of a file, or why it has none."""
    try:
        return read_slices(path)
    except Unusable as reason:
        return str(reason)


def _try_read_all(paths: list[Path]) -> list[list[Slice] | str]:
    return [_try_read(path) for path in paths]


def _chunks(placed: list[tuple[Path, layouts.Place]]) -> Iterable[list[Path]]:
    """The paths in lists of 64, each worth sending to a process."""
    for start in range(0, len(placed), 64):
        yield [path for path, _ in placed[start : start + 64]]


def _read_headers(
    folder: Path, placed: list[tuple[Path, layouts.Place]], workers: Workers, left_out: list[dict[str, str]]
) -> tuple[dict[str, Patient], dict[tuple[str, bool], list[tuple[Slice, float | None]]]]:
    """Read every header; collect the slices by patient and dose."""
    patients: dict[str, Patient] = {}
    slices: dict[tuple[str, bool], list[tuple[Slice, float | None]]] = collections.defaultdict(list)
    headers = (header for chunk in workers.each(_try_read_all, _chunks(placed)) for header in chunk)
    with Progress("headers", len(placed), "files") as progress:
        for (path, where), header in zip(placed, headers, strict=True):
            progress.update()
            name = where.patient.upper() if re.fullmatch(r"[a-z]\d{3}", where.patient) else where.patient
            patient = patients.setdefault(name, Patient(name, where.layout, where.variant))
            if isinstance(header, str):
                left_out.append({"what": path.relative_to(folder).as_posix(), "why": header})
                continue
            slices[name, where.full] += [(piece, where.dose) for piece in header]
            patient.full += len(header) * where.full
            patient.low += len(header) * (not where.full)
    return patients, slices


def _geometry(piece: Slice) -> tuple[object, ...]:
    """What has to be the same in all slices of a series, rounded."""
    return piece.shape, tuple(round(s, 3) for s in piece.spacing), tuple(round(o, 2) + 0.0 for o in piece.orientation)


def _close(a: tuple[float, ...], b: tuple[float, ...], tolerance: float) -> bool:
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


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


def _only_at(
    pieces: Iterable[tuple[Slice, float | None]], dose: str, left_out: list[dict[str, str]], folder: Path
) -> list[tuple[Slice, float | None]]:
    """The slices in order of z, without any that share their z with another."""
    ordered = sorted(pieces, key=lambda item: (item[0].z, item[0].path, item[0].frame or 0))
    groups: list[list[tuple[Slice, float | None]]] = []
    for item in ordered:
        if groups and item[0].z - groups[-1][-1][0].z <= SAME_Z:
            groups[-1].append(item)
        else:
            groups.append([item])
    for group in groups:
        if len(group) > 1:
            for piece, _ in group:
                why = f"{len(group)} {dose} slices at one z"
                left_out.append({"what": _name(piece, folder), "why": why})
    return [group[0] for group in groups if len(group) == 1]


def _name(piece: Slice, folder: Path) -> str:
    """A slice for people: its file, and its frame."""
    inside = piece.path.relative_to(folder).as_posix()
    return inside if piece.frame is None else f"{inside} frame {piece.frame}"


def key_name(patient: str) -> str:
    """The patient as it may stand in a key; a name that had to be changed gets a piece of its hash to stay unique."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", patient)
    return plain if plain == patient else f"{plain}-{hashlib.sha256(patient.encode()).hexdigest()[:6]}"


def _pair_patient(
    patient: Patient,
    full: list[tuple[Slice, float | None]],
    low: list[tuple[Slice, float | None]],
    left_out: list[dict[str, str]],
    folder: Path,
) -> None:
    """Fill ``patient.pairs``, in order of z; note every slice that finds no mate."""
    geometries = collections.Counter(_geometry(piece) for piece, _ in [*full, *low])
    usual = max(geometries, key=lambda g: (geometries[g], str(g))) if geometries else None
    sides = []
    for pieces, dose_name in ((full, "full-dose"), (low, "reduced-dose")):
        for piece, _ in pieces:
            if _geometry(piece) != usual:
                why = f"matrix, spacing or orientation differs from the patient's other slices: {_geometry(piece)}"
                left_out.append({"what": _name(piece, folder), "why": why})
        same = [item for item in pieces if _geometry(item[0]) == usual]
        sides.append(_only_at(same, dose_name, left_out, folder))
    i = j = 0
    prefix = key_name(patient.name)
    while i < len(sides[0]) or j < len(sides[1]):
        a = sides[0][i][0] if i < len(sides[0]) else None
        b = sides[1][j][0] if j < len(sides[1]) else None
        if a is not None and b is not None and abs(a.z - b.z) <= SAME_Z:
            if problem := _difference(a, b):
                left_out.append({"what": _name(a, folder), "why": problem})
            else:
                dose = b.dose or sides[1][j][1]
                patient.pairs.append(Pair(f"{prefix}_{len(patient.pairs):04d}", patient.name, a, b, dose))
            i, j = i + 1, j + 1
        elif b is None or (a is not None and a.z < b.z):
            assert a is not None
            left_out.append({"what": _name(a, folder), "why": "no reduced-dose slice at its z"})
            i += 1
        else:
            left_out.append({"what": _name(b, folder), "why": "no full-dose slice at its z"})
            j += 1
