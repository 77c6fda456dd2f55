"""Make thick, soft slices of a thin, sharp series: a noisy series becomes a target to learn from.

    python shards/soften.py data/chest data/chest-soft

Slices that follow each other are averaged, without overlap, and filtered to what a soft kernel would show. Prints the
noise before and after, and writes a derived DICOM series that shards/simulate.py takes.
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import fft

from shards import noise_model
from shards.common.command import InputError, Progress, command
from shards.deidentify import Deidentifier
from shards.derived import copying, derive, write
from shards.dicom import Slice, Unusable
from shards.full_series import check_source, find_series, pick_kernel
from shards.noise_level import noise_sd, soft_tissue
from shards.noise_model import Kernel
from shards.pixels import PADDING, read_hu

PADDED = 64
"""Pixels by which a slice is mirrored at its borders before it is filtered."""


def change_kernel(hu: np.ndarray, spacing: float, old: Kernel, new: Kernel) -> np.ndarray:
    """A slice as another, softer kernel would show it: its spectrum times the ratio of the two windows.

    Parameters
    ----------
    hu : numpy.ndarray
        HU, shape (H, W).
    spacing : float
        Pixel size in mm.
    old, new : Kernel
        The kernel it was reconstructed with and the one wanted.

    Returns
    -------
    numpy.ndarray
        float32 HU, shape (H, W).
    """
    padded = np.pad(hu.astype(np.float32), PADDED, mode="symmetric")
    f = np.hypot(fft.fftfreq(padded.shape[0], spacing)[:, None], fft.rfftfreq(padded.shape[1], spacing))
    ratio = np.sqrt(new.power(f) / old.power(f)).astype(np.float32)
    return fft.irfft2(fft.rfft2(padded) * ratio, padded.shape)[PADDED:-PADDED, PADDED:-PADDED]


def thick_slices(pieces: list[Slice], count: int) -> Iterator[tuple[Slice, np.ndarray]]:
    """Averages of ``count`` slices each, float32 HU, with the header of the middle one; a rest is left out."""
    for start in range(0, len(pieces) - count + 1, count):
        group = np.stack([read_hu(piece)[0] for piece in pieces[start : start + count]])
        average = np.asarray(group.mean(axis=0, dtype=np.float32))
        average[group.min(axis=0) <= PADDING] = PADDING
        yield pieces[start + count // 2], average


def check(pieces: list[Slice], count: int) -> float:
    """Refuse a series with gaps; return the thickness of ``count`` of its slices in mm."""
    steps = np.diff([piece.z for piece in pieces])
    if len(pieces) < count or np.ptp(steps) > 0.1 * steps.mean():
        raise InputError(
            f"{pieces[0].path.parent}: expected at least {count} slices at equal steps, found {len(pieces)} slices "
            f"{steps.min(initial=np.inf):g} to {steps.max(initial=0):g} mm apart"
        )
    return float(count * steps.mean())


def soften(name: str, pieces: list[Slice], out: Path, count: int, deidentifier: Deidentifier | None) -> str:
    """Write the soft series of one patient; return a line on its noise before and after."""
    thickness, old = check(pieces, count), pick_kernel(pieces, "auto")
    about = f"softened: {count} slices averaged, {old.name} kernel filtered to soft"
    before, after = [], []
    if deidentifier is not None:
        deidentifier.keep()
    with Progress(name, len(pieces) // count, "slices") as progress:
        for number, (piece, average) in enumerate(thick_slices(pieces, count), 1):
            soft = change_kernel(average, piece.spacing[0], old, noise_model.SOFT)
            soft[average <= PADDING] = PADDING
            hu = np.clip(np.rint(soft), PADDING, 32767).astype(np.int16)
            with copying():
                dataset = derive(piece, hu, about, f"{piece.series_uid} {about}", number)
                dataset.SliceThickness, dataset.ConvolutionKernel = f"{thickness:g}", "softened"
                if deidentifier is not None:
                    deidentifier.apply(dataset, derived=True)
                write(dataset, out / f"{number:04d}.IMA")
            mask = soft_tissue(hu)
            before.append(noise_sd(read_hu(piece)[0], mask))
            after.append(noise_sd(hu, mask))
            progress.update()
    return (
        f"{len(after)} slices of {thickness:g} mm; noise in soft tissue {np.nanmedian(before):.3g} HU before, "
        f"{np.nanmedian(after):.3g} HU now"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN", help="folder with one series")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to, not there yet")
    parser.add_argument("--slices", type=int, default=3, help="slices to average (%(default)s)")
    parser.add_argument(
        "--deidentify", type=Path, metavar="KEY", help="headers without the patient; KEY: file of a secret"
    )
    options = parser.parse_args()
    if options.slices < 1:
        raise InputError(f"--slices {options.slices}: expected 1 or more")
    series, _ = find_series(options.source)
    if len(series) != 1:
        raise InputError(f"{options.source} holds {len(series)} series, {', '.join(series)}; give the folder of one")
    if options.out.exists():
        raise InputError(f"{options.out} is there already; choose another folder")
    deidentifier = Deidentifier(options.deidentify, options.out) if options.deidentify else None
    unfinished = options.out.with_name(options.out.name + ".unfinished")  # what is under OUT's name is whole
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        ((name, pieces),) = series.items()
        check_source(name, pieces)
        report = soften(name, pieces, unfinished, options.slices, deidentifier)
        unfinished.rename(options.out)
        print(f"{options.out}: {report}")
    except Unusable as reason:
        raise InputError(f"{options.source}: a slice cannot be read: {reason}") from None
    except OSError as error:
        raise InputError(f"cannot write to {options.out}: {error.strerror}") from None


if __name__ == "__main__":
    command(main)
