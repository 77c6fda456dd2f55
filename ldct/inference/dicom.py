"""DICOM series in, derived DICOM series out."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from ldct.device import give_back
from shards.common.command import InputError, Progress
from shards.derived import derive, write
from shards.dicom import Damaged, Slice, Unusable, read_file, read_slices
from shards.files import files_under
from shards.pixels import read_hu

BATCH = 8
"""Slices read, denoised and written at a time, their files in as many threads: what a series takes in memory."""


@dataclass(frozen=True)
class Series:
    """One series to denoise."""

    slices: list[Slice]
    """In order of z."""
    target: Path
    """Folder to write to."""
    damage: str = ""
    """A damaged file in its folder. Which series that belongs to cannot be known, and none may lose a slice unseen."""


def find_series(folder: Path, out: Path) -> tuple[list[Series], dict[str, int]]:
    """The CT series below ``folder``, and how many files were passed over by reason.

    Slices belong together that lie in one folder and have the same SeriesInstanceUID, orientation and size. A series
    goes to its folder's place below ``out``; where a folder holds several, to series-1, series-2 ... in it.

    Raises
    ------
    InputError
        If there is no CT slice, or ``out`` lies inside ``folder``: a second run would denoise the first one's output.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder with DICOM series, found no folder {folder}")
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"OUT {out} lies inside IN {folder}; choose a folder beside it")
    groups: dict[tuple[object, ...], list[Slice]] = {}
    passed: dict[str, int] = {}
    damage: dict[Path, str] = {}
    for path in files_under(folder):
        try:
            for piece in read_slices(path):
                groups.setdefault((path.parent, piece.series_uid, piece.orientation, piece.shape), []).append(piece)
        except Unusable as reason:
            passed[str(reason)] = passed.get(str(reason), 0) + 1
            if isinstance(reason, Damaged):
                damage[path.parent] = f"{path}: {reason}"
    if not groups:
        tried = "; ".join(f"{count} x {why}" for why, count in passed.items()) or "the folder is empty"
        raise InputError(f"no axial CT slice in {folder} ({tried})")
    parents = [slices[0].path.parent for slices in groups.values()]
    found = []
    for number, (parent, slices) in enumerate(zip(parents, groups.values(), strict=True)):
        target = out / parent.relative_to(folder)
        if parents.count(parent) > 1:
            target /= f"series-{parents[: number + 1].count(parent)}"
        found.append(Series(sorted(slices, key=lambda piece: piece.z), target, damage.get(parent, "")))
    return found, passed


def denoise_series(
    found: list[Series], model: Callable[[np.ndarray], np.ndarray], about: str, name: str
) -> tuple[int, float, list[str]]:
    """Denoise all series; those that are there already are kept.

    A series is written to a hidden folder that gets its name when it is whole, so nothing half-written is ever found.

    Parameters
    ----------
    about : str
        What denoises, for DerivationDescription.
    name : str
        Short, for SeriesDescription.

    Returns
    -------
    slices, seconds, broken
        Slices denoised, the time they took, and a line for each series left out: which file of it cannot be used.
    """
    todo = [series for series in found if not series.damage and not _done(series, about)]
    count, broken, began = 0, [series.damage for series in found if series.damage], time.monotonic()
    with Progress("denoise", sum(len(s.slices) for s in todo), "slices") as progress, ThreadPoolExecutor(BATCH) as pool:
        for series in todo:
            hidden = series.target / ".unfinished"
            hidden.mkdir(parents=True, exist_ok=True)
            for old in hidden.iterdir():
                old.unlink()
            try:
                for done in _through(series.slices, model, partial(_write, hidden, about, name), pool):
                    progress.update(done)
            except Unusable as reason:
                broken.append(str(reason))
                for old in hidden.iterdir():
                    old.unlink()
            else:
                for file in hidden.iterdir():
                    file.rename(series.target / file.name)
                count += len(series.slices)
            hidden.rmdir()
    return count, time.monotonic() - began, broken


def _through(
    slices: list[Slice], model: Callable[[np.ndarray], np.ndarray], write: Callable[..., None], pool: ThreadPoolExecutor
) -> Iterator[int]:
    """``model`` of ``slices``, a part at a time; yields the slices of each part.

    While a part is computed the next one is read and the last one written. On 2 cores 15 slices/s became 22 with a
    model that sleeps for 30 ms, as if a GPU computed; 3.6 slices/s stayed 3.6 with one that took both cores.
    """
    parts = [slices[start : start + BATCH] for start in range(0, len(slices), BATCH)]
    ahead, behind = pool.map(_pixels, parts[0]), pool.map(write, [])
    try:
        for number, part in enumerate(parts):
            low = np.stack(list(ahead))
            ahead = pool.map(_pixels, parts[number + 1] if part is not parts[-1] else [])
            outputs = model(low)
            give_back()
            list(behind)
            behind = pool.map(write, part, outputs, range(number * BATCH + 1, number * BATCH + 1 + len(part)))
            yield len(part)
    finally:
        list(behind)  # also where a slice is broken: nothing may be written while the caller tidies up


def _done(series: Series, about: str) -> bool:
    """Whether the series is there; InputError if what is there was made by something else."""
    paths = [series.target / _file_name(piece) for piece in series.slices]
    there = [path for path in paths if path.is_file()]
    if there:
        made = str(read_file(there[0], stop_before_pixels=True).get("DerivationDescription", ""))
        if about not in made:
            raise InputError(f"{series.target} holds files made by {made or 'something else'!r}; choose another folder")
    return len(there) == len(paths)


def _pixels(piece: Slice) -> np.ndarray:
    try:
        return read_hu(piece)[0]
    except Unusable as reason:
        raise Unusable(f"{piece.path}: {reason}") from None


def _file_name(piece: Slice) -> str:
    """The source's name; DICOM files are often named by UID, so a dot does not begin a suffix."""
    name = piece.path.name.removesuffix(".dcm")
    return f"{name}.dcm" if piece.frame is None else f"{name}-{piece.frame + 1:04d}.dcm"


def _write(folder: Path, about: str, name: str, piece: Slice, hu: np.ndarray, number: int) -> None:
    """Write one denoised slice."""
    dataset = derive(piece, hu, f"denoised by {about}", f"{piece.series_uid or piece.path.parent} {about}", number)
    source = read_file(piece.path, stop_before_pixels=True)
    identify(dataset, source, name)
    if piece.frame is None:
        keep_rescale(dataset, source, hu)
        if source.get("InstanceNumber") is not None:  # of an enhanced file it is one number for all frames
            dataset.InstanceNumber = source.InstanceNumber
    write(dataset, folder / _file_name(piece))


def identify(dataset: FileDataset, source: FileDataset, name: str) -> None:
    """Say that the image is derived and from what; keep the patient, drop what only the scanner understands."""
    kind = [str(k) for k in source.get("ImageType") or []]
    dataset.ImageType = ["DERIVED", "SECONDARY", *(kind[2:] or ["AXIAL"])]
    what = f" denoised {name}"[:64]  # DICOM allows 64 characters, and these are the ones that matter
    dataset.SeriesDescription = (str(source.get("SeriesDescription") or "CT")[: 64 - len(what)] + what).strip()
    dataset.SeriesNumber = 1000 + int(source.get("SeriesNumber") or 0)
    if source.get("SOPInstanceUID"):
        reference = Dataset()
        reference.ReferencedSOPClassUID = source.SOPClassUID
        reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
        dataset.SourceImageSequence = [reference]
    dataset.remove_private_tags()


def keep_rescale(dataset: FileDataset, source: FileDataset, hu: np.ndarray) -> None:
    """Store the pixels with the source's rescale slope and intercept, where those can hold every HU value as it is."""
    slope, intercept = float(source.get("RescaleSlope", 1)), float(source.get("RescaleIntercept", 0))
    signed = int(source.get("PixelRepresentation", 1))
    least, most = (-32768, 32767) if signed else (0, 65535)
    pixels = (hu.astype(np.int32) - intercept) / slope
    if (pixels != np.rint(pixels)).any() or pixels.min() < least or pixels.max() > most:
        return  # derive() has stored HU as they are: slope 1, intercept 0
    dataset.RescaleSlope, dataset.RescaleIntercept = source.RescaleSlope, source.RescaleIntercept
    dataset.PixelRepresentation = signed
    dataset.PixelData = pixels.astype("<i2" if signed else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"
