"""The CT series below a folder, where each of their slices is written to, and which are there already."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydicom.misc import is_dicom
from pydicom.uid import CTImageStorage

from ldct.inference.header import OF, instance_uid
from shards.common.command import InputError
from shards.deidentify import Deidentifier
from shards.dicom import Damaged, Slice, Unusable, read_file, read_slices
from shards.files import files_under

SAME_Z_MM = 0.01
"""Slices nearer than this along z lie at one place."""

PREAMBLE = 132
"""Bytes at the beginning of a file that say it is DICOM."""


@dataclass(frozen=True)
class Series:
    """One series to denoise."""

    slices: list[Slice]
    """In order of z."""
    folder: Path
    """Folder to write to; no other series is written there."""
    left_out: str = ""
    """Why it is not to be denoised, if it is not. A damaged file in its folder: which series that belongs to cannot be
    known, and none may lose a slice unseen. Or the network was not trained on such."""
    note: str = ""
    """Said behind what denoised it, in DerivationDescription."""
    numbered: bool = False
    """Whether files are called 0001.dcm and so on, and not as their sources, which often have a UID for a name."""

    @cached_property
    def files(self) -> list[Path]:
        """File to write for each slice, no two alike."""
        numbers = [f"{number:04d}.dcm" for number in range(1, len(self.slices) + 1)]
        return [self.folder / name for name in (numbers if self.numbered else unique_names(self.slices))]


def find_series(folder: Path, out: Path) -> tuple[list[Series], dict[str, list[Path]]]:
    """The CT series below ``folder``, and the files that were passed over by reason.

    Slices belong together that lie in one folder and have the same SeriesInstanceUID, kernel, orientation, size and
    pixels' size. A series goes to its folder's place below ``out``; where a folder holds several, to series-1,
    series-2 ... in it.

    Raises
    ------
    InputError
        If there is no CT slice, a folder cannot be read, or ``out`` lies inside ``folder``: a second run would denoise
        the first one's output.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder with DICOM series, found no folder {folder}")
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"OUT {out} lies inside IN {folder}; choose a folder beside it")
    groups: dict[tuple[object, ...], list[Slice]] = {}
    passed: dict[str, list[Path]] = {}
    damage: dict[Path, str] = {}
    skipped: dict[Path, str] = {}
    for path in files_under(folder, skipped):
        try:
            for piece in read_slices(path):
                geometry = [round(value, 3) + 0.0 for value in (*piece.orientation, *piece.spacing)]
                group = (path.parent, piece.series_uid, piece.kernel, piece.shape, *geometry)
                groups.setdefault(group, []).append(piece)
        except Unusable as reason:
            passed.setdefault(str(reason), []).append(path)
            if isinstance(reason, Damaged):
                damage[path.parent] = f"{path}: {reason}"
    for path, why in skipped.items():
        if not path.is_symlink():
            raise InputError(f"{path}: {why}; its series would be lost: allow it to be read, or move it out of IN")
        passed.setdefault(why, []).append(path)
    if not groups:
        tried = "; ".join(f"{first_few(paths)}: {why}" for why, paths in passed.items()) or "the folder is empty"
        raise InputError(f"no axial CT slice in {folder} ({tried})")
    series = []
    parents = [slices[0].path.parent for slices in groups.values()]
    taken = {out / parent.relative_to(folder) for parent in parents}
    for parent, slices in zip(parents, groups.values(), strict=True):
        target = out / parent.relative_to(folder)
        if parents.count(parent) > 1:
            numbered = (target / f"series-{number}" for number in range(1, len(taken) + 2))
            target = next(path for path in numbered if path not in taken)
            taken.add(target)
        series.append(Series(sorted(slices, key=lambda piece: piece.z), target, damage.get(parent, "")))
    return series, passed


def first_few(items: Iterable[object], number: int = 3) -> str:
    """The first ``number`` of ``items``, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - number} more" if len(texts) > number else ""
    return ", ".join(texts[:number]) + more


def unique_names(slices: list[Slice]) -> list[str]:
    """A file name for each slice: its source's, with ``.dcm`` behind it where it is not there, and the frame's number.

    ``A`` and ``A.dcm`` would both be A.dcm: the first file by name keeps the name, the other becomes A-2.dcm.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    for index in sorted(range(len(slices)), key=lambda index: (slices[index].path.name, slices[index].frame or 0)):
        piece = slices[index]
        stem = piece.path.name.removesuffix(".dcm")  # files are often named by UID, so a dot does not begin a suffix
        stem += "" if piece.frame is None else f"-{piece.frame + 1:04d}"
        endings = ("", *(f"-{number}" for number in range(2, len(slices) + 2)))
        names[index] = next(name for end in endings if (name := f"{stem}{end}.dcm") not in taken)
        taken.add(names[index])
    return [names[index] for index in range(len(slices))]


def uneven(slices: list[Slice]) -> list[str]:
    """What is uneven along z in a series in order of z: a line for gaps, and one for places with several slices."""
    z = np.array([piece.z for piece in slices])
    steps = np.diff(z)
    apart = steps[steps > SAME_Z_MM]
    lines = []
    if len(apart) and (gaps := np.flatnonzero(steps > 1.5 * np.median(apart))).size:
        places = first_few(f"{z[gap]:g} to {z[gap + 1]:g} mm" for gap in gaps)
        lines.append(f"gaps along z where slices lie {np.median(apart):g} mm apart: {places}")
    if (doubles := np.flatnonzero(steps <= SAME_Z_MM)).size:
        places = first_few(f"z {z[i]:g} mm ({slices[i].path.name}, {slices[i + 1].path.name})" for i in doubles)
        lines.append(f"several slices at one place: {places}")
    return lines


def oddities(series: list[Series], passed_over: dict[str, list[Path]]) -> list[str]:
    """What a person should know of the files that ``find_series`` found: passed over, gaps and doubles."""
    lines = [
        f"passed over {len(paths)} file{'s' * (len(paths) > 1)}: {reason}: {first_few(paths)}"
        for reason, paths in passed_over.items()
    ]
    return lines + [f"{each.slices[0].path.parent}: {line}" for each in series for line in uneven(each.slices)]


def is_done(series: Series, made_by: str, deidentifier: Deidentifier | None = None) -> bool:
    """Whether every slice of ``series`` is there, whole, made by ``made_by`` of these very images.

    Raises
    ------
    InputError
        If what is there was made by something else or of other images, or there are images beside.
    """
    others = sorted(set(series.folder.glob("*.dcm")) - set(series.files))
    if others:
        raise InputError(
            f"{series.folder} holds {len(others)} images that are not of {series.slices[0].path.parent}, e.g. "
            f"{others[0].name}; choose another folder"
        )
    whole = []
    for piece, path in zip(series.slices, series.files, strict=True):
        if path.exists():
            uid = instance_uid(piece, made_by)
            whole.append(is_whole(path, made_by, deidentifier.uid(uid) if deidentifier else uid))
    return all(whole) and len(whole) == len(series.files)


def is_whole(path: Path, made_by: str, uid: str) -> bool:
    """Whether ``path`` is a whole slice with this SOPInstanceUID; one that was cut off is to be written again.

    Raises
    ------
    InputError
        If something else than ``made_by`` made it, or made it of another image.
    """
    try:
        whole = bool(read_slices(path))
    except Unusable:
        whole = False
    try:
        header = read_file(path, stop_before_pixels=True)
        ours = not whole and header.file_meta.get("MediaStorageSOPClassUID") == CTImageStorage
        maker = str(header.get("DerivationDescription") or (made_by if ours else ""))
    except Unusable:  # cut off in its first lines, or no DICOM
        maker = made_by if path.stat().st_size < PREAMBLE or is_dicom(path) else ""
    maker = maker.split(OF)[0]
    if maker != made_by:
        raise InputError(f"{path.parent} holds files made by {maker or 'something else'!r}; choose another folder")
    if whole and header.get("SOPInstanceUID") != uid:
        raise InputError(
            f"{path} was made of another image than IN holds now, or by another version; choose another folder"
        )
    return whole
