"""Make the reduced-dose series that a full-dose CT lacks, as DICOM, beside a copy of the full one.

    python shards/simulate.py data/sample data/demo --dose 0.25 --i0 auto --seed 0
    python shards/simulate.py data/sample data/varied --recipe varied --variants 8 --seed 0

Writes OUT/PATIENT/full_3mm/*.IMA (copies) and OUT/PATIENT/quarter_3mm/*.IMA, which shards/build.py reads. Finished
files are kept: run again, it does what is missing. From a range, LOW-HIGH, numbers are drawn log-uniformly;
what was drawn stands in each file's DerivationDescription.
"""

import argparse
import collections
import dataclasses
import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import drawn, noise_model, variation
from shards.common import part
from shards.common.atomic import atomic, write_once
from shards.common.command import InputError, Progress, command
from shards.common.pool import Workers
from shards.deidentify import Deidentifier
from shards.derived import resampled, shrunk, write_copy, write_derived
from shards.dicom import Slice, Unusable
from shards.full_series import check_source, content, cut_off, exposures, find_series, pick_kernel, shared_noise
from shards.noise_level import noise_sd, soft_tissue
from shards.noise_model import Kernel, Scan
from shards.pixels import PADDING, read_hu
from shards.variation import Copy, Ranges

MODEL = 3
"""Version of the noise model: another one gives other bytes for the same settings."""
CALIBRATION = 3
"""Slices of a series in which ``--i0 auto`` measures the noise, and the body's place in the field is looked at."""
CUT_OFF = 0.25
"""Share of the field's edge that may show body; AAPM abdomens have up to 0.07, the sample 0.12."""


@dataclass(frozen=True)
class Settings:
    """What decides the bytes; stored beside the series, so that a folder never mixes two."""

    ranges: Ranges
    i0: str
    """auto, mas, or photons per ray."""
    kernel: str
    """auto, soft or sharp."""
    variants: int
    """Copies of each series, each with its own draws."""
    seed: int


@dataclass(frozen=True)
class Task:
    """One slice to write."""

    source: Slice
    full: Path
    low: Path
    patient: str
    number: int
    copy: Copy
    i0: float
    noises: list[tuple[float, float]]
    """Weight and position z of the independent noises that add up to its own."""
    settings: Settings
    deidentifier: Deidentifier | None = None


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


def matching_photons(item: tuple[Slice, Kernel]) -> float:
    """Photons per ray at which simulated noise equals the noise the slice has; nan without flat soft tissue.

    The inserted variance is (1-a)/a / I0 times a factor of the slice, and what a dose fraction a adds to a noise
    of variance s^2 is (1-a)/a * s^2: so I0 is the factor over s^2, whatever a. a = 1/2 makes (1-a)/a one.
    """
    piece, kernel = item
    hu, _ = read_hu(piece)
    mask = soft_tissue(hu)
    scan = Scan(kernel, kernel, noise_model.DEFAULT_I0)
    _, extra = noise_model.noise(hu, piece.spacing[0], piece.kvp, scan, 1.0, 0.5, [(1.0, [0])])
    return noise_model.DEFAULT_I0 * (noise_sd(extra, mask) / noise_sd(hu, mask)) ** 2


def evenly(pieces: list[Slice]) -> list[int]:
    """Numbers of CALIBRATION slices, evenly spaced over a series."""
    count = min(CALIBRATION, len(pieces))
    return [int((i + 0.5) * len(pieces) / count) for i in range(count)]


def photons(name: str, pieces: list[Slice], kernel: Kernel, i0: str, workers: Workers) -> list[float]:
    """I0 of each slice of a series, by ``--i0``."""
    mas = exposures(pieces)
    if i0 == "mas":
        if mas[0] is None:
            print(f"{name}: no believable Exposure, I0 = {noise_model.DEFAULT_I0:g} for every slice")
        return [noise_model.DEFAULT_I0 if m is None else noise_model.PHOTONS_PER_MAS * m for m in mas]
    if i0 != "auto":
        return [float(i0)] * len(pieces)
    chosen = evenly(pieces)
    per_mas = [
        value / (mas[i] or 1.0)
        for i, value in zip(chosen, workers.each(matching_photons, [(pieces[i], kernel) for i in chosen]), strict=True)
    ]
    factor = float(np.nanmedian(per_mas)) if not np.all(np.isnan(per_mas)) else math.nan
    if not 0 < factor < math.inf:
        raise InputError(f"{name}: no flat soft tissue to measure the noise in; give --i0 mas or a number, e.g. 3e5")
    return [factor * (m or 1.0) for m in mas]


def check_field(name: str, pieces: list[Slice], i0: str) -> None:
    """Warn of a series whose field shows only part of the body; refuse it where I0 is not fitted to its own noise."""
    share = float(np.median([cut_off(read_hu(pieces[i])[0]) for i in evenly(pieces)]))
    if share <= CUT_OFF:
        return
    text = f"{name}: {share:.0%} of the edge of the reconstructed field shows body, so the rest of the body is unknown"
    if i0 == "mas":
        raise InputError(f"{text} and its noise by mAs would be far too low; give --i0 auto")
    level = "is fitted to the slice's own" if i0 == "auto" else "by a given I0 comes out far too low"
    print(f"warning: {text}; it is taken for air, and the level of the noise {level}")


def write_slice(task: Task) -> str | None:
    """Write both files of a slice, those that are not there yet; return why not, if it cannot be read."""
    try:
        if not (task.full.exists() and task.low.exists()):
            _write_pair(task)
    except Unusable as reason:
        return str(reason)
    return None


def _write_pair(task: Task) -> None:
    """Add the noise. Pixels at -1024 HU, where the scanner saw nothing, stay; no pixel goes below, as in a scanner."""
    piece, copy, settings = task.source, task.copy, task.settings
    hu, _ = read_hu(piece)
    full_dose, dose = variation.draw_doses(settings.ranges, task.patient, piece.z, settings.seed)
    rays = [(weight, variation.noise_seed(task.patient, z, settings.seed)) for weight, z in task.noises]
    scan = dataclasses.replace(copy.scan, i0=task.i0)
    if copy.spacing is not None:
        piece, hu = resampled(piece, hu, copy.spacing)
    noises = noise_model.noise(hu, piece.spacing[0], piece.kvp, scan, full_dose, dose, rays)
    full, low = (_with_noise(hu, extra) for extra in noises)
    how = "quantum noise inserted in parallel projections"
    target = drawn.text(
        {
            "full_dose": full_dose,
            "i0": task.i0,
            "kernel_half": scan.kernel.half,
            "bowtie": scan.bowtie,
            "modulation": scan.modulation,
            "shrink": copy.shrink,
            "pixels": piece.spacing[0],
            "seed": settings.seed,
        }
    )
    if not task.full.exists():
        _write_full(task, piece, full, f"simulated {target}: {how}")
    if not task.low.exists():
        about = f"simulated low dose, {drawn.text({'dose': dose})}, {target}: {how}"
        write_derived(piece, low, task.low, about, f"{task.patient} {settings}", task.number, task.deidentifier)


def _with_noise(hu: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """int16 HU."""
    noisy = np.clip(np.rint(hu + extra), PADDING, 32767)
    noisy[hu <= PADDING] = PADDING
    return noisy.astype(np.int16)


def _write_full(task: Task, piece: Slice, full: np.ndarray, about: str) -> None:
    """The full-dose file byte for byte, where nothing changed it; else a derived one."""
    ranges = task.settings.ranges
    changed = any(r is not None for r in (ranges.spacing, ranges.shrink, ranges.full_dose, ranges.kernel_half))
    if changed or piece.frame is not None:
        about = about if changed else f"frame {piece.frame} of a multi-frame image"
        return write_derived(piece, full, task.full, about, f"{task.patient} full", task.number, task.deidentifier)
    if task.deidentifier is not None:
        return write_copy(task.source.path, task.full, task.deidentifier)
    with atomic(task.full) as target, open(task.source.path, "rb") as source:
        shutil.copyfileobj(source, target)


def plan(out: Path, name: str, pieces: list[Slice], settings: Settings, workers: Workers) -> list[Task]:
    """The tasks of one series, all its copies."""
    kernel = pick_kernel(pieces, settings.kernel)
    check_field(name, pieces, settings.i0)
    steps = np.abs(np.diff([piece.z for piece in pieces]))
    thickness = pieces[0].thickness or (float(np.median(steps)) if len(steps) else 1.0)
    variant = f"{thickness:g}mm" + ("_sharp" if kernel is noise_model.SHARP else "")
    match = re.fullmatch(rf"(.+)_{re.escape(variant)}", name)  # L067_1mm from an AAPM folder: the variant comes again
    patient = match[1] if match else name
    tasks = []
    for number in range(settings.variants):
        named = f"{patient}-v{number:02d}" if settings.variants > 1 else patient
        copy = variation.draw_copy(settings.ranges, kernel, named, settings.seed)
        smaller = [shrunk(piece, copy.shrink) for piece in pieces]
        i0 = photons(name, smaller, kernel, settings.i0, workers)
        print(
            f"{named}: {len(pieces)} slices, kernel {pieces[0].kernel or 'unknown'} ({kernel.name}), I0 {min(i0):.3g}"
            + (f" to {max(i0):.3g}" if max(i0) > min(i0) else "")
            + f" photons per ray ({settings.i0})"
        )
        tasks += _tasks(out, named, variant, smaller, copy, i0, settings)
    return tasks


def _tasks(
    out: Path, patient: str, variant: str, pieces: list[Slice], copy: Copy, i0: list[float], settings: Settings
) -> list[Task]:
    """The slices of one copy of a series."""
    tasks = []
    shares = shared_noise(pieces)
    for number, (piece, photons_per_ray, noises) in enumerate(zip(pieces, i0, shares, strict=True), 1):
        full, low = (
            out / patient / f"{dose}_{variant}" / f"{patient}_{code}_{number:04d}.IMA"
            for dose, code in (("full", "FD"), ("quarter", "QD"))
        )
        tasks.append(Task(piece, full, low, patient, number, copy, photons_per_ray, noises, settings))
    return tasks


def check_out(full: Path, out: Path) -> None:
    """Refuse to write into what is read."""
    if out.resolve().is_relative_to(full.resolve()):
        raise InputError(f"OUT {out} is FULL {full} or lies inside it; choose a folder beside it")


def note_of(settings: Settings, series: dict[str, list[Slice]], key: Deidentifier | None = None) -> dict[str, Any]:
    """What simulation.json says: model, settings and sources, these known by their content; and the key likewise."""
    sources = {name: {"slices": len(pieces), "sha256": content(pieces)} for name, pieces in series.items()}
    fields = {"model": MODEL, **dataclasses.asdict(settings), "sources": sources}
    return json.loads(json.dumps(fields | ({"deidentified": key.fingerprint()} if key else {})))


def read_note(out: Path) -> dict[str, Any] | None:
    """What simulation.json says, where there is one."""
    path = out / "simulation.json"
    try:
        note: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete {out} or choose another folder") from None
    return note


def check_note(out: Path, before: dict[str, Any] | None, note: dict[str, Any]) -> None:
    """Refuse a folder that another simulation began, and say what differs."""
    if before is None or before == note:
        return
    path = out / "simulation.json"
    differing = [key for key in before | note if before.get(key) != note.get(key)] or ["settings"]
    if differing == ["deidentified"] and before.get("deidentified") is True and note.get("deidentified"):
        raise InputError(f"{out} was deidentified by a version that noted no key; delete it, or choose another folder")
    if differing == ["deidentified"] and before.get("deidentified") and note.get("deidentified"):
        raise InputError(f"{out} was made with another key; give that to --deidentify, or choose another folder")
    if differing == ["sources"]:
        old, new = before["sources"], note["sources"]
        names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        differing = [f"other images of {', '.join(names)}"]
    raise InputError(
        f"{out} was made from other data or settings ({', '.join(differing)}; see {path}); delete it or choose "
        "another folder"
    )


def begin(out: Path, note: dict[str, Any], tasks: list[Task]) -> None:
    """Leave the note in the folder, and among the tasks' files nothing that an interrupted run left half-written."""
    path = out / "simulation.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for folder in {file.parent for task in tasks for file in (task.full, task.low)}:
            for stale in folder.glob("*.tmp"):
                stale.unlink(missing_ok=True)
        # left as it is where it is there: a build takes a changed file for changed input
        new = not path.exists() and write_once(path, json.dumps(note, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    if not new:  # another process may have begun meanwhile
        check_note(out, read_note(out), note)


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


def arguments() -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("full", type=Path, metavar="FULL", help="folder with one or more full-dose series")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--recipe", choices=variation.RECIPES, default="plain", help="named ranges; the options below override them"
    )
    for name, (_, _, about) in variation.LIMITS.items():
        default = getattr(Ranges(), name)
        default = f"{default[0]:g}" if default else "off"
        parser.add_argument(variation.flag(name), metavar="X", help=f"{about}; a number or LOW-HIGH ({default})")
    parser.add_argument("--variants", type=int, default=1, help="copies of each series, each with its own draws")
    parser.add_argument(
        "--i0", default="auto", help="photons per ray: auto (by the slice's own noise), mas (by Exposure) or a number"
    )
    parser.add_argument(
        "--kernel", choices=("auto", "soft", "sharp"), default="auto", help="auto: by ConvolutionKernel"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of all that is drawn (0)")
    parser.add_argument(
        "--deidentify", type=Path, metavar="KEY", help="headers without the patient; KEY: file of a secret"
    )
    part.add_argument(parser, "of several processes: only these series")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s); the bytes do not depend on it")
    return parser.parse_args()


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings, checked."""
    if not 1 <= options.variants <= 100:
        raise InputError(f"--variants {options.variants}: expected 1 to 100 copies")
    given = {name: text for name in variation.LIMITS if (text := getattr(options, name)) is not None}
    parsed = {name: variation.parse(name, text) for name, text in given.items()}
    ranges = dataclasses.replace(variation.RECIPES[options.recipe], **parsed)
    return Settings(ranges, parse_i0(options.i0), options.kernel, options.variants, options.seed)


def main() -> None:
    options = arguments()
    settings = settings_of(options)
    check_out(options.full, options.out)
    series, passed = find_series(options.full)
    for reason, count in collections.Counter(passed.values()).most_common():
        print(f"passed over {count} file{'s' * (count > 1)}: {reason}")
    before = read_note(options.out)  # before the key: another part writes its key first and then the note
    deidentifier = Deidentifier(options.deidentify, options.out) if options.deidentify else None
    if deidentifier:  # not even the names of folders; by content, so that a second run gives the same
        by_content = sorted(series.values(), key=content)
        series = {f"patient-{number:03d}": pieces for number, pieces in enumerate(by_content, 1)}
    check_note(options.out, before, note_of(settings, series, deidentifier))
    chosen = options.part.of(series.items())
    if not chosen:
        print(f"part {options.part}: no series")
        return
    for name, pieces in chosen:
        check_source(name, pieces)
    with Workers(options.workers) as workers:
        try:
            plans = [plan(options.out, name, pieces, settings, workers) for name, pieces in chosen]
        except Unusable as reason:
            raise InputError(
                f"{options.full}: a slice cannot be read: {reason}; copy it again, or take it away"
            ) from None
        if deidentifier:
            deidentifier.keep()
        tasks = [dataclasses.replace(task, deidentifier=deidentifier) for tasks in plans for task in tasks]
        begin(options.out, note_of(settings, series, deidentifier), tasks)
        write_all(options.out, tasks, workers)


if __name__ == "__main__":
    command(main)
