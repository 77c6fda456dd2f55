"""Find the slices of a folder that were taken at both doses."""

import collections
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shards import layouts
from shards.common.command import InputError
from shards.common.pool import Workers
from shards.dicom import Unreadable, Unusable
from shards.files import files_under, printable
from shards.headers import Headers
from shards.matching import Dosed, Patient, key_names, match
from shards.series import choose_by_header, choose_by_path

Placed = list[tuple[Path, layouts.Place]]
"""Files of a known place."""


@dataclass
class Pairing:
    """The pairs of a folder."""

    patients: list[Patient]
    left_out: list[dict[str, str]]
    """``what`` (file, slice or patient) and ``why``."""
    problems: dict[str, str] = field(default_factory=dict)
    """What could not be looked at, by patient or folder: the pairs may be fewer than there are."""
    keys: dict[str, str] = field(default_factory=dict)
    """What each patient is called in the keys of its records."""


def find_pairs(
    folder: Path,
    workers: Workers | None = None,
    globs: tuple[str, str] | None = None,
    variant: str | None = None,
    memory: Path | None = None,
    rename: Callable[[Iterable[str]], dict[str, str]] | None = None,
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
    memory : Path, optional
        File that remembers the headers for the next time.
    rename : callable, optional
        What patients are called from here on, by what their folders call them.

    Raises
    ------
    InputError
        If there is no folder, nothing that pairs, or several series to choose from.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder with DICOM series, found no folder {folder}")
    placed, left_out, problems = _place_files(folder, globs)
    if not placed:
        raise InputError(_nothing(folder, globs, left_out, problems))
    placed, by_header = choose_by_path(folder, placed, variant)
    reader = Headers(workers or Workers(1), memory)
    patients, slices = _read_headers(folder, placed, reader, left_out, problems)
    choose_by_header(folder, slices, by_header, variant)
    names = rename(sorted(patients)) if rename else {name: name for name in patients}
    problems = {names.get(name, name): why for name, why in problems.items()}
    keys = key_names(names.values())
    for name in sorted(patients, key=names.__getitem__):
        patient, full, low = patients[name], slices[name, True], slices[name, False]
        patient.name, patient.full, patient.low = names[name], len(full), len(low)
        match(patient, keys[patient.name], full, low, left_out, folder)
    pairing = Pairing(sorted(patients.values(), key=lambda patient: patient.name), left_out, problems, keys)
    if not any(patient.pairs for patient in pairing.patients):
        reasons = collections.Counter(out["why"] for out in left_out).most_common(3)
        raise InputError(
            f"no slice of {folder} is there at both doses ("
            + "; ".join(f"{p.name}: {p.full} full, {p.low} reduced" for p in pairing.patients[:3])
            + "); left out: "
            + "; ".join([f"{count} x {why}" for why, count in reasons] + [f"{k}: {v}" for k, v in problems.items()])
        )
    return pairing


def _patient_name(where: layouts.Place) -> str:
    """The patient, one line of UTF-8; l067 and L067 are one."""
    name = printable(where.patient)
    return name.upper() if re.fullmatch(r"[a-z]\d{3}", name) else name


def _place_files(folder: Path, globs: tuple[str, str] | None) -> tuple[Placed, list[dict[str, str]], dict[str, str]]:
    """Sort the files into those of a known place and the rest; and the folders that were not read."""
    patterns = (layouts.compile_glob(globs[0], "full"), layouts.compile_glob(globs[1], "quarter")) if globs else None
    root = folder.resolve().name
    placed: Placed = []
    left_out = []
    passed_over: dict[Path, str] = {}
    for path in files_under(folder, passed_over):
        inside = path.relative_to(folder)
        if patterns is None and layouts.is_projection(inside):
            left_out.append({"what": printable(inside), "why": "projection data"})
            continue
        where = layouts.by_globs(inside, *patterns) if patterns else layouts.place(inside, root)
        if where is None:
            why = "neither --full nor --quarter fits" if patterns else "the path names no dose"
            left_out.append({"what": printable(inside), "why": why})
        else:
            placed.append((path, where))
    problems: dict[str, str] = {}
    for path, why in passed_over.items():
        inside = path.relative_to(folder)
        if path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve()):  # a loop: nothing is lost
            left_out.append({"what": printable(inside), "why": "a link to a folder above"})
            continue
        where = None if patterns else layouts.place(inside / "x", root)
        problems[_patient_name(where) if where else printable(inside)] = f"{printable(inside)}: {why}"
    return placed, left_out, problems


def _nothing(
    folder: Path, globs: tuple[str, str] | None, left_out: list[dict[str, str]], problems: dict[str, str]
) -> str:
    """What was tried, when no file has a known place."""
    tried = f"--full {globs[0]!r} and --quarter {globs[1]!r}" if globs else "; ".join(layouts.KNOWN.values())
    seen = f"{len(left_out)} files, e.g. {left_out[0]['what']}" if left_out else "no files"
    seen += "".join(f"; {problem}" for problem in list(problems.values())[:1])
    return f"no layout recognised in {folder} ({seen}); tried: {tried}; for another give --full and --quarter globs"


def _read_headers(
    folder: Path, placed: Placed, reader: Headers, left_out: list[dict[str, str]], problems: dict[str, str]
) -> tuple[dict[str, Patient], dict[tuple[str, bool], list[Dosed]]]:
    """Read every header; collect the slices by patient and dose."""
    patients: dict[str, Patient] = {}
    slices: dict[tuple[str, bool], list[Dosed]] = collections.defaultdict(list)
    unreadable: dict[str, list[str]] = collections.defaultdict(list)
    for (path, where), header in zip(placed, reader.read([path for path, _ in placed]), strict=True):
        name = _patient_name(where)
        patients.setdefault(name, Patient(name, where.layout, where.variant))
        if isinstance(header, Unusable):
            inside = printable(path.relative_to(folder))
            left_out.append({"what": inside, "why": str(header)})
            if isinstance(header, Unreadable):
                unreadable[name].append(f"{inside}: {header}")
            continue
        slices[name, where.full] += [(piece, where.dose) for piece in header]
    for name, files in unreadable.items():
        problems.setdefault(name, f"{len(files)} file{'s' * (len(files) > 1)} cannot be read, e.g. {files[0]}")
    return patients, slices
