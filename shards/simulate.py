"""Make the reduced-dose series that a full-dose CT lacks, as DICOM, beside a copy of the full one.

    python shards/simulate.py data/sample data/demo --dose 0.25 --i0 auto --seed 0

Writes OUT/PATIENT/full_3mm/*.IMA (copies) and OUT/PATIENT/quarter_3mm/*.IMA, which shards/build.py reads. Finished
files are kept: run again, it does what is missing.
"""

import argparse
import collections
import json
import math
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards import noise_model
from shards.common.atomic import atomic, write_text
from shards.common.command import InputError, Progress, command
from shards.common.pool import Workers
from shards.derived import write_derived
from shards.dicom import Slice, Unusable, read_slices
from shards.files import files_under
from shards.layouts import names_a_dose, place
from shards.noise_level import noise_sd, soft_tissue
from shards.pixels import PADDING, read_hu

CALIBRATION = 3
"""Slices of a series in which ``--i0 auto`` measures the noise."""
BELIEVABLE = (10.0, 2000.0)
"""Range of an Exposure in mAs; some scanners write 9 for 200."""


@dataclass(frozen=True)
class Settings:
    """What decides the noise; stored beside the series, so that a folder never mixes two."""

    dose: tuple[float, float]
    """Lowest and highest dose fraction; each slice draws its own between them."""
    i0: str
    """auto, mas, or photons per ray."""
    kernel: str
    """auto, soft or sharp."""
    seed: int


@dataclass(frozen=True)
class Task:
    """One slice to write."""

    source: Slice
    full: Path
    low: Path
    patient: str
    number: int
    kernel: noise_model.Kernel
    i0: float
    settings: Settings


def parse_dose(text: str) -> tuple[float, float]:
    """``0.25`` or ``0.1-0.5`` as (lowest, highest)."""
    match = re.fullmatch(r"(\d*\.?\d+)(?:-(\d*\.?\d+))?", text)
    low, high = (float(match[1]), float(match[2] or match[1])) if match else (0.0, 0.0)
    if not 0 < low <= high < 1:
        raise InputError(f"--dose {text}: expected a fraction between 0 and 1, e.g. 0.25, or a range, e.g. 0.1-0.5")
    return low, high


def parse_i0(text: str) -> str:
    """``auto``, ``mas`` or a positive number, as text."""
    if text not in ("auto", "mas"):
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number < math.inf:
            raise InputError(f"--i0 {text}: expected auto, mas or a number of photons above 0, e.g. 3e5")
    return text


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
            slices[path.parent] += read_slices(path)
        except Unusable as reason:
            passed[inside.as_posix()] = str(reason)
            continue
        if where is not None:
            names[path.parent] = f"{where.patient}_{where.variant}" if where.variant else where.patient
    if not slices:
        tried = "; ".join(f"{name}: {why}" for name, why in list(passed.items())[:3]) or "the folder is empty"
        raise InputError(f"no axial CT slice in {folder} ({tried})")
    return _name_series(folder, slices, names), passed


def _name_series(folder: Path, slices: dict[Path, list[Slice]], names: dict[Path, str]) -> dict[str, list[Slice]]:
    """Give each folder's series its patient's name, without two of one name."""
    ids = {where: pieces[0].patient_id for where, pieces in slices.items()}
    named: dict[str, list[Slice]] = {}
    for where, pieces in slices.items():
        unique = ids[where] and ids[where] != "Anonymous" and list(ids.values()).count(ids[where]) == 1
        inside = where.relative_to(folder).as_posix()
        name = names.get(where) or (ids[where] if unique else inside if inside != "." else folder.resolve().name)
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
        name = "patient" if not name or names_a_dose(name) else name
        if name in named:
            raise InputError(
                f"two series would both be named {name} ({where} is one); simulate their folders one by one"
            )
        named[name] = sorted(pieces, key=lambda piece: piece.z)
    return named


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


def measure(item: tuple[Slice, noise_model.Kernel]) -> float:
    """Photons per ray at which simulated noise equals the noise the slice has; nan without flat soft tissue.

    The inserted variance is (1-a)/a / I0 times a factor of the slice, and what a dose fraction a adds to a noise
    of variance s^2 is (1-a)/a * s^2: so I0 is the factor over s^2, whatever a. a = 1/2 makes (1-a)/a one.
    """
    piece, kernel = item
    hu, _ = read_hu(piece)
    mask = soft_tissue(hu)
    extra = noise_model.noise(hu, piece.spacing[0], piece.kvp, kernel, 0.5, noise_model.DEFAULT_I0, [0])
    return noise_model.DEFAULT_I0 * (noise_sd(extra, mask) / noise_sd(hu, mask)) ** 2


def photons(
    name: str, pieces: list[Slice], kernel: noise_model.Kernel, settings: Settings, workers: Workers
) -> list[float]:
    """I0 of each slice of a series, by ``--i0``."""
    mas = exposures(pieces)
    if settings.i0 == "mas":
        if mas[0] is None:
            print(f"{name}: no believable Exposure, I0 = {noise_model.DEFAULT_I0:g} for every slice")
        return [noise_model.DEFAULT_I0 if m is None else kernel.photons_per_mas * m for m in mas]
    if settings.i0 != "auto":
        return [float(settings.i0)] * len(pieces)
    count = min(CALIBRATION, len(pieces))
    chosen = [int((i + 0.5) * len(pieces) / count) for i in range(count)]
    per_mas = [
        value / (mas[i] or 1.0)
        for i, value in zip(chosen, workers.each(measure, [(pieces[i], kernel) for i in chosen]), strict=True)
    ]
    factor = float(np.nanmedian(per_mas)) if not np.all(np.isnan(per_mas)) else math.nan
    if not 0 < factor < math.inf:
        raise InputError(f"{name}: no flat soft tissue to measure the noise in; give --i0 mas or a number, e.g. 3e5")
    return [factor * (m or 1.0) for m in mas]


def draw(task: Task) -> tuple[float, list[int]]:
    """The dose fraction of a slice and the seed of its noise, by (seed, patient, z) alone."""
    seed = [task.settings.seed, zlib.crc32(task.patient.encode()), round(task.source.z * 1000) % 2**32]
    low, high = task.settings.dose
    return float(np.random.default_rng([*seed, 0]).uniform(low, high)) if low < high else low, [*seed, 1]


def write_slice(task: Task) -> str | None:
    """Write both files of a slice, those that are not there yet; return why not, if it cannot be read."""
    try:
        if not task.full.exists():
            _copy_full(task)
        if not task.low.exists():
            _write_low(task)
    except Unusable as reason:
        return str(reason)
    return None


def _copy_full(task: Task) -> None:
    """The full-dose file byte for byte; a frame of a multi-frame file as a file of its own."""
    if task.source.frame is not None:
        hu, _ = read_hu(task.source)
        about = f"frame {task.source.frame} of a multi-frame image"
        return write_derived(task.source, hu, task.full, about, f"{task.patient} full", task.number)
    read_hu(task.source)  # a copy without a mate would be of no use
    with atomic(task.full) as target, open(task.source.path, "rb") as source:
        shutil.copyfileobj(source, target)


def _write_low(task: Task) -> None:
    """Add the noise. Pixels at -1024 HU, where the scanner saw nothing, stay; no pixel goes below, as in a scanner."""
    hu, _ = read_hu(task.source)
    dose, seed = draw(task)
    piece = task.source
    extra = noise_model.noise(hu, piece.spacing[0], piece.kvp, task.kernel, dose, task.i0, seed)
    low = np.clip(np.rint(hu + extra), PADDING, 32767)
    low[hu <= PADDING] = PADDING
    about = (
        f"simulated low dose, dose fraction {dose:.4f}, I0 {task.i0:.4g}, {task.kernel.name} kernel, seed "
        f"{task.settings.seed}: quantum noise inserted in parallel projections"
    )
    series = f"{task.patient} {task.settings}"
    write_derived(piece, low.astype(np.int16), task.low, about, series, task.number)


def plan(out: Path, name: str, pieces: list[Slice], settings: Settings, workers: Workers) -> list[Task]:
    """The tasks of one series."""
    kernel = pick_kernel(pieces, settings.kernel)
    i0 = photons(name, pieces, kernel, settings, workers)
    steps = np.abs(np.diff([piece.z for piece in pieces]))
    thickness = pieces[0].thickness or (float(np.median(steps)) if len(steps) else 1.0)
    variant = f"{thickness:g}mm" + ("_sharp" if kernel is noise_model.SHARP else "")
    match = re.fullmatch(rf"(.+)_{re.escape(variant)}", name)  # L067_1mm from an AAPM folder: the variant comes again
    patient = match[1] if match else name
    print(
        f"{patient}: {len(pieces)} slices, kernel {pieces[0].kernel or 'unknown'} ({kernel.name}), I0 {min(i0):.3g}"
        + (f" to {max(i0):.3g}" if max(i0) > min(i0) else "")
        + f" photons per ray ({settings.i0})"
    )
    tasks = []
    for number, (piece, photons_per_ray) in enumerate(zip(pieces, i0, strict=True), 1):
        full, low = (
            out / patient / f"{dose}_{variant}" / f"{patient}_{code}_{number:04d}.IMA"
            for dose, code in (("full", "FD"), ("quarter", "QD"))
        )
        tasks.append(Task(piece, full, low, patient, number, kernel, photons_per_ray, settings))
    return tasks


def check_settings(out: Path, settings: Settings, pieces: dict[str, list[Slice]]) -> None:
    """Refuse a folder that another simulation began; else leave a note of this one in it."""
    fields = json.dumps(settings.__dict__ | {"slices": {n: len(p) for n, p in pieces.items()}}, indent=1) + "\n"
    note = out / "simulation.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if note.exists() and note.read_text() != fields:
            raise InputError(
                f"{out} was made from other data or settings (see {note}); delete it or choose another folder"
            )
        for stale in out.rglob("*.tmp"):
            stale.unlink(missing_ok=True)
        if not note.exists():  # left as it is: a build takes a changed file for changed input
            write_text(note, fields)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None


def write_all(out: Path, tasks: list[Task], workers: Workers) -> None:
    """Write the slices that are not there yet.

    Raises
    ------
    InputError
        If the disk is full or the folder cannot be written.
    """
    todo = [task for task in tasks if not (task.full.exists() and task.low.exists())]
    if not todo:
        print(f"{out}: all {len(tasks)} slices are there already")
        return
    bad = 0
    try:
        for folder in {path.parent for task in tasks for path in (task.full, task.low)}:
            folder.mkdir(parents=True, exist_ok=True)
        with Progress("simulate", len(tasks), "slices", start=len(tasks) - len(todo)) as progress:
            for task, problem in zip(todo, workers.each(write_slice, todo), strict=True):
                if problem:
                    print(f"left out {task.source.path}: {problem}")
                    bad += 1
                progress.update()
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; run again to go on") from None
    print(f"{out}: {len(tasks) - bad} slices at both doses")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("full", type=Path, metavar="FULL", help="folder with one or more full-dose series")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--dose", default="0.25", help="dose fraction, or LOW-HIGH to draw one per slice (%(default)s)")
    parser.add_argument(
        "--i0", default="auto", help="photons per ray: auto (by the slice's own noise), mas (by Exposure) or a number"
    )
    parser.add_argument(
        "--kernel", choices=("auto", "soft", "sharp"), default="auto", help="auto: by ConvolutionKernel"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s); the bytes do not depend on it")
    options = parser.parse_args()
    settings = Settings(parse_dose(options.dose), parse_i0(options.i0), options.kernel, options.seed)
    series, passed = find_series(options.full)
    for reason, count in collections.Counter(passed.values()).most_common():
        print(f"passed over {count} file{'s' * (count > 1)}: {reason}")
    check_settings(options.out, settings, series)
    with Workers(options.workers) as workers:
        plans = [plan(options.out, name, pieces, settings, workers) for name, pieces in series.items()]
        write_all(options.out, [task for tasks in plans for task in tasks], workers)


if __name__ == "__main__":
    command(main)
