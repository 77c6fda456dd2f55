"""How fast the sharder is, beside the bare decode and beside the common way to prepare such data."""

import argparse
import collections
import contextlib
import multiprocessing
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from shards.common.command import InputError
from shards.manifest import load

SCRIPT = Path(__file__).resolve().parents[2] / "shards" / "build.py"
SIDE = 512
PATIENTS = ("L001", "L002")


def generate(folder: Path, pairs: int) -> None:
    """Write ``pairs`` uncompressed 512 x 512 slices at two doses: a noisy disc of water, in the challenge's layout."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    disc = np.where(x * x + y * y < 0.7, 40.0, -1000.0) + 60 * (np.hypot(x - 0.3, y) < 0.2)
    for patient in PATIENTS:
        for dose, sd in (("full", 10.0), ("quarter", 20.0)):
            where = folder / patient / f"{dose}_1mm"
            where.mkdir(parents=True)
            grain = rng.standard_normal((4, SIDE, SIDE)) * sd
            for index in range(pairs // len(PATIENTS)):
                pixels = np.clip(disc + grain[index % 4], -1024, 3071) + 1024
                _write(where / f"{index:05d}.IMA", pixels.astype("<u2"), float(index), f"{patient} {dose}")


def _write(path: Path, pixels: np.ndarray, z: float, series: str) -> None:
    """One slice with a header of 135 elements, as many as the sample of real CT has."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
    dataset.Modality, dataset.ImageType, dataset.ConvolutionKernel = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "B30f"
    dataset.SliceThickness, dataset.KVP, dataset.PixelSpacing = 1, 120, [0.7, 0.7]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    private = dataset.private_block(0x0019, "BENCH", create=True)
    for element in range(135 - len(dataset)):
        private.add_new(element, "LO", f"value {element}")
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def bare_decode(source: Path, out: Path) -> None:
    """Baseline: nothing but the pixels of every file."""
    for path in sorted(source.rglob("*.IMA")):
        _ = pydicom.dcmread(path).pixel_array


def common_script(source: Path, out: Path) -> None:
    """Baseline: read a series, stack it, normalise it as float64 to [0, 1], save an array for each slice."""
    out.mkdir()
    for series in sorted(path for path in source.glob("*/*") if path.is_dir()):
        read = sorted((pydicom.dcmread(path) for path in series.iterdir()), key=lambda d: d.ImagePositionPatient[2])
        stack = np.stack([d.pixel_array for d in read]).astype(np.int16)
        hu = np.array(stack.astype(np.float64) * read[0].RescaleSlope + read[0].RescaleIntercept)
        hu = (hu + 1024) / 4096
        for index, image in enumerate(hu):
            np.save(out / f"{series.parent.name}_{index}_{series.name}.npy", image)


def alone(*variants: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """``variants`` at once, each in an interpreter of its own, as a script would run: what one leaves behind in the
    allocator makes the next one up to three times as fast. With several, each gets the files of one patient."""

    def run(source: Path, out: Path) -> None:
        sources = [source] if len(variants) == 1 else [source / patient for patient in PATIENTS]
        spawn = multiprocessing.get_context("spawn")
        processes = [
            spawn.Process(target=variant, args=(part, out)) for variant, part in zip(variants, sources, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            if process.exitcode:
                raise InputError(f"a baseline ended with status {process.exitcode}; its error stands above")

    return run


def resident_mb(root: int) -> float:
    """Memory in MB that a process and all below it hold, as /proc says; 0 where there is no /proc."""
    resident, below = 0.0, collections.defaultdict(list)
    sizes: dict[int, float] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, KeyError, ValueError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            below[int(fields["PPid"])].append(int(fields["Pid"]))
            sizes[int(fields["Pid"])] = float(fields["VmRSS"].split()[0]) / 1024
    family = [root]
    for pid in family:
        family += below[pid]
        resident += sizes.get(pid, 0)
    return resident


def build_with(workers: int, peak: list[float]) -> Callable[[Path, Path], None]:
    """The sharder as its user runs it: the command, checksums, fsync, start of the interpreter and all."""

    def run(source: Path, out: Path) -> None:
        call = [sys.executable, str(SCRIPT), str(source), str(out), "--val", "--test", "--workers", str(workers)]
        with open(out.with_suffix(".log"), "w+") as log:
            process = subprocess.Popen(call, stdout=log, stderr=log)
            while process.poll() is None:
                peak[0] = max(peak[0], resident_mb(process.pid))
                time.sleep(0.05)
            if process.returncode:
                log.seek(0)
                raise InputError(f"the sharder failed: {log.read().strip().splitlines()[-1]}")
        load(out)

    return run


def measure(pairs: int, repeats: int, scratch: Path | None) -> dict[str, Any]:
    """Run all variants alternating, ``repeats`` times after one round that is not counted.

    Returns
    -------
    dict
        Machine, versions, shapes, the seconds of every round, and for each variant the slices per second (files, two a
        pair): median, lowest, highest; ratios, the median over the rounds; peak memory of all processes together in MB.
    """
    peaks: list[list[float]] = [[0.0], [0.0]]
    variants = {
        "bare decode": alone(bare_decode),
        "bare decode x 2": alone(bare_decode, bare_decode),
        "common script": alone(common_script),
        "shards": build_with(1, peaks[0]),
        "shards x 2": build_with(2, peaks[1]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        generate(source, pairs)
        for repeat in range(repeats + 1):
            for name, variant in variants.items():
                for path in source.rglob("*.IMA"):  # the variant before may have pushed it out of the page cache
                    path.read_bytes()
                began = time.perf_counter()
                variant(source, out)
                if repeat:
                    seconds[name].append(time.perf_counter() - began)
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(out)
    files = 2 * pairs
    rates = {name: sorted(files / value for value in values) for name, values in seconds.items()}

    def ratio(name: str, baseline: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds[name], seconds[baseline], strict=True))

    return {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "pydicom": pydicom.__version__,
        "numpy": np.__version__,
        "files": files,
        "shape": [SIDE, SIDE],
        "repeats": repeats,
        "seconds": seconds,
        "slices_per_second": {
            name: {"median": statistics.median(values), "low": values[0], "high": values[-1]}
            for name, values in rates.items()
        },
        "ratios": {
            "shards / bare decode": ratio("shards", "bare decode"),
            "shards / common script": ratio("shards", "common script"),
            "shards x 2 / shards": ratio("shards x 2", "shards"),
            "bare decode x 2 / bare decode": ratio("bare decode x 2", "bare decode"),
        },
        "peak_mb": {"shards": peaks[0][0], "shards x 2": peaks[1][0]},
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['files']} files of {SIDE} x {SIDE}, uncompressed; {result['repeats']} rounds, {result['machine']}"
    ]
    for name, rate in result["slices_per_second"].items():
        lines.append(f"{name:15} {rate['median']:7.0f} slices/s ({rate['low']:.0f} to {rate['high']:.0f})")
    lines += [f"{name:30} {value:.2f}" for name, value in result["ratios"].items()]
    memory = ", ".join(f"{name} {peak:.0f} MB" for name, peak in result["peak_mb"].items())
    return "\n".join([*lines, f"peak memory, all processes: {memory}"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py shard``."""
    parser.add_argument("--pairs", type=int, default=1024, help="slices at two doses (%(default)s: 1.1 GB of DICOM)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count, after one to warm up (%(default)s)")
    parser.add_argument(
        "--scratch", type=Path, help="folder on the disk to measure (default: the system's temporary one)"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print."""
    if options.pairs < 4 or options.repeats < 1:
        raise InputError(f"--pairs {options.pairs} --repeats {options.repeats}: expected at least 4 and 1")
    result = measure(options.pairs, options.repeats, options.scratch)
    print(table(result))
    return result
