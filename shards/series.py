"""One series of each patient at each dose, where a folder holds several: 1 mm and 3 mm, soft and sharp kernel."""

import collections
import itertools
from pathlib import Path

from shards.common.command import InputError
from shards.dicom import Slice
from shards.layouts import Place
from shards.matching import Dosed, micrometres

Placed = list[tuple[Path, Place]]

FEW = 3
"""So many slices of another kernel or thickness are a series of their own, and fewer a slip of a header."""


class SeveralSeries(InputError):
    """There are several series and none was named. ``names`` are what ``--series`` takes."""

    def __init__(self, message: str, names: list[str]) -> None:
        super().__init__(message)
        self.names = names


def choose_by_path(folder: Path, placed: Placed, wanted: str | None) -> tuple[Placed, bool]:
    """The files of the series that is wanted, as far as their paths say.

    Returns
    -------
    placed : list
        The files.
    by_header : bool
        Whether ``wanted`` is still to be looked for in the headers.

    Raises
    ------
    InputError
        If the paths name several series and none is wanted, or not the one that is.
    """
    variants = sorted({where.variant for _, where in placed})
    if wanted is None and len(variants) > 1:
        patients = {v: {where.patient for _, where in placed if where.variant == v} for v in variants}
        files = {v: collections.Counter(where.full for _, where in placed if where.variant == v) for v in variants}
        held = {v: f"{len(p)} patient{'s' * (len(p) != 1)}, {files[v][True]} + {files[v][False]} files"
                for v, p in patients.items()}  # fmt: skip
        _refuse(folder, [(v, held[v]) for v in variants if v])
    if wanted is None:
        return placed, False
    fits = [(path, where) for path, where in placed if where.variant.casefold() == wanted.casefold()]
    if not fits and len(variants) > 1:
        raise InputError(f"--series {wanted}: {folder} has no such series; it has {', '.join(filter(None, variants))}")
    return (fits, False) if fits else (placed, True)


def choose_by_header(
    folder: Path, slices: dict[tuple[str, bool], list[Dosed]], by_header: bool, wanted: str | None
) -> None:
    """Leave in ``slices`` one series of each patient and dose, told by thickness and kernel, where paths do not say.

    Raises
    ------
    InputError
        If a patient has several at one dose and none is wanted, or nobody has the one that is.
    """
    if by_header:
        assert wanted is not None
        names = sorted({series_name(piece) for dosed in slices.values() for piece, _ in dosed})
        for where, dosed in slices.items():
            slices[where] = [(piece, dose) for piece, dose in dosed if _fits(piece, wanted)]
        if not any(slices.values()):
            raise InputError(f"--series {wanted}: {folder} has no such series; it has {', '.join(names)}")
    several = sorted({name for dosed in slices.values() for name in _several([piece for piece, _ in dosed])})
    counts = collections.Counter(
        (series_name(piece), full) for (_, full), dosed in slices.items() for piece, _ in dosed
    )
    if several:
        _refuse(folder, [(name, f"{counts[name, True]} + {counts[name, False]} slices") for name in several])


def series_name(piece: Slice) -> str:
    """Thickness and kernel of a slice, e.g. "3mm B30f"."""
    thickness = "" if piece.thickness is None else f"{piece.thickness:g}mm"
    return f"{thickness} {piece.kernel}".strip() or "unnamed"


def _fits(piece: Slice, wanted: str) -> bool:
    """Whether ``wanted`` is the slice's thickness, its kernel, or both."""
    name = series_name(piece).casefold()
    return wanted.casefold() in (name, *name.split(" ", 1))


def _several(pieces: list[Slice]) -> set[str]:
    """The names of the series among the slices of one patient and dose, if they are more than one."""
    z = collections.defaultdict(list)
    for piece in pieces:
        z[series_name(piece)].append(micrometres(piece.z))
    many = {name for name, places in z.items() if len(places) >= FEW}
    overlap = {name for a, b in itertools.combinations(z, 2) if set(z[a]) & set(z[b]) for name in (a, b)}
    return (many | overlap) if len(many | overlap) > 1 else set()


def _refuse(folder: Path, series: list[tuple[str, str]]) -> None:
    listed = ", ".join(f"{name} ({about})" for name, about in series)
    names = [name for name, _ in series]
    advice = f"--series {names[0]!r}" if " " in names[0] else f"--series {names[0]}"
    raise SeveralSeries(f"{folder} holds several series of a patient: {listed}; choose one, e.g. {advice}", names)
