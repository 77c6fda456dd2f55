"""Which patient and which dose a file belongs to, read from its path: the headers do not know."""

import re
from dataclasses import dataclass
from pathlib import PurePath

from shards.common.command import InputError

KNOWN = {
    "AAPM patient folders": "L067/full_1mm[_sharp]/*.IMA beside L067/quarter_1mm[_sharp]/*.IMA",
    "AAPM dose folders": "[3mm B30/][full/][FD_3mm/]full_3mm/L067[/full_3mm]/*.IMA beside .../quarter_3mm/...",
    "AAPM file names": "L067_FD_1_1.CT.*.IMA beside L067_QD_1_1.CT.*.IMA, in any folder",
    "TCIA": "C121/STUDY/*Full Dose Images*/*.dcm beside C121/STUDY/*Low Dose Images*/*.dcm",
}
"""The layouts that are recognised, by name, with a pattern for people. Upper and lower case are the same."""

_DOSE = re.compile(
    r"(?P<dose>full|quarter|fd|qd)(?:[ _]dose)?(?:[ _](?P<mm>\d+(?:\.\d+)?)mm)?(?P<sharp>[ _]sharp)?", re.I
)
_KERNEL = re.compile(r"(?P<mm>\d+(?:\.\d+)?)mm[ _](?P<kernel>[A-Za-z])(?P<strength>\d+)[a-z]?", re.I)
_TCIA = re.compile(r"(?:^|[-_ .\d])(?P<dose>full|low)[ _]dose[ _](?P<what>images|projections?)", re.I)
_NAME = re.compile(r"(?P<patient>[A-Za-z]+\d+)_(?P<dose>FD|QD)_(?P<mm>\d+)_", re.I)
_PATIENT = re.compile(r"[A-Za-z]{1,5}[-_]?\d{2,8}")
_FULL = ("full", "fd")


@dataclass(frozen=True, slots=True)
class Place:
    """What a path says."""

    patient: str
    full: bool
    """Full dose, or else the reduced one."""
    variant: str
    """Thickness and kernel, e.g. 3mm or 1mm_sharp; empty where the path does not say."""
    layout: str
    """A key of KNOWN, or "globs"."""
    dose: float | None
    """Fraction of the dose of the reduced series that this layout stands for."""


def place(path: PurePath, root: str) -> Place | None:
    """Read patient and dose from a path.

    Parameters
    ----------
    path : PurePath
        The file, relative to the input folder.
    root : str
        Name of the input folder: the patient, where the path has none.

    Returns
    -------
    Place or None
        None if the path fits no known layout.
    """
    return _tcia(path, root) or _aapm(path, root) or _aapm_name(path)


def names_a_dose(folder: str) -> bool:
    """Whether a folder of this name would be taken for a dose or a kernel, so that no patient can be named so."""
    return bool(_DOSE.fullmatch(folder) or _KERNEL.fullmatch(folder))


def is_projection(path: PurePath) -> bool:
    """Whether a file lies among projection data (DICOM-CT-PD), which are no images."""
    folders = path.parts[:-1]
    return any("DICOM-CT-PD" in f.upper() or re.search(r"dose[ _]projection", f, re.I) for f in folders)


def _tcia(path: PurePath, root: str) -> Place | None:
    """``C121/STUDY/1.000000-Low Dose Images-00959/1-001.dcm``."""
    folders = (root, *path.parts[:-1])
    for i in range(len(folders) - 1, 0, -1):
        if (match := _TCIA.search(folders[i])) and match["what"].lower() == "images":
            named = [f for f in folders[:i] if re.fullmatch(r"[CLN]\d{3}", f, re.I)]
            patient = named[-1] if named else folders[max(i - 2, 0)]
            tenth = re.fullmatch(r"C\d{3}", patient, re.I)
            return Place(patient, match["dose"].lower() == "full", "", "TCIA", 0.1 if tenth else 0.25)
    return None


def _aapm(path: PurePath, root: str) -> Place | None:
    """A folder named after the dose, above or below the patient's."""
    folders = path.parts[:-1]
    doses = [(i, match) for i, folder in enumerate(folders) if (match := _DOSE.fullmatch(folder))]
    if not doses or len({match["dose"].lower() in _FULL for _, match in doses}) != 1:
        return None
    last, match = doses[-1]
    kernels = [kernel for folder in folders if (kernel := _KERNEL.fullmatch(folder))]
    others = [i for i, f in enumerate(folders) if not _DOSE.fullmatch(f) and not _KERNEL.fullmatch(f)]
    like_ids = [i for i in others if _PATIENT.fullmatch(folders[i])]
    below, above = [i for i in others if i > last], [i for i in others if i < last]
    chosen = like_ids[-1:] or below[:1] or above[-1:]
    patient = folders[chosen[0]] if chosen else root
    thickness = next((m["mm"] for _, m in reversed(doses) if m["mm"]), None) or (kernels[-1]["mm"] if kernels else None)
    sharp = any(m["sharp"] for _, m in doses) or any(k["kernel"].upper() == "D" for k in kernels)
    variant = (f"{float(thickness):g}mm" if thickness else "") + ("_sharp" if sharp else "")
    first = chosen and chosen[0] > doses[0][0]
    layout = "AAPM dose folders" if first else "AAPM patient folders"
    return Place(patient, match["dose"].lower() in _FULL, variant, layout, 0.25)


def _aapm_name(path: PurePath) -> Place | None:
    """``L067_QD_1_1.CT.0003.0038...IMA``."""
    match = _NAME.match(path.name)
    if match is None:
        return None
    return Place(match["patient"], match["dose"].upper() == "FD", f"{match['mm']}mm", "AAPM file names", 0.25)


def compile_glob(pattern: str, option: str) -> re.Pattern[str]:
    """Turn a glob with ``{patient}`` into a pattern for paths relative to the input folder.

    ``*`` and ``?`` stay within a folder, ``**/`` stands for any folders.

    Raises
    ------
    InputError
        If ``{patient}`` is not there exactly once.
    """
    if pattern.count("{patient}") != 1:
        raise InputError(f"--{option} {pattern!r} must hold {{patient}} once, e.g. 'scans/{{patient}}/nd/*.dcm'")
    parts = re.split(r"(\*\*/|\*|\?|\{patient\})", pattern)
    meaning = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]", "{patient}": "(?P<patient>[^/]+?)"}
    return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts))


def by_globs(path: PurePath, full: re.Pattern[str], quarter: re.Pattern[str]) -> Place | None:
    """The place of a path by the user's own two patterns.

    Raises
    ------
    InputError
        If both fit.
    """
    hits = [pattern.fullmatch(path.as_posix()) for pattern in (full, quarter)]
    if hits[0] and hits[1]:
        raise InputError(f"--full and --quarter both fit {path}; make the patterns exclude each other")
    hit = hits[0] or hits[1]
    return Place(hit["patient"], hits[0] is not None, "", "globs", None) if hit else None
