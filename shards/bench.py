"""How fast the sharder is, beside the bare decode and beside the common way of preparing such data."""

import argparse
import contextlib
import io
import json
import platform
import resource
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

from shards.atomic import write_text
from shards.command import InputError
from shards.manifest import load

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
    """One slice with a header as short as a valid one can be."""
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
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def bare_decode(source: Path, out: Path) -> None:
    """Reference (a): nothing but the pixels of every file."""
    for path in sorted(source.rglob("*.IMA")):
        _ = pydicom.dcmread(path).pixel_array


def common_script(source: Path, out: Path) -> None:
    """Reference (b): read a series, stack it, normalise it as float64 to [0, 1], save an array for each slice."""
    out.mkdir()
    for series in sorted(path for path in source.glob("*/*") if path.is_dir()):
        read = sorted((pydicom.dcmread(path) for path in series.iterdir()), key=lambda d: d.ImagePositionPatient[2])
        stack = np.stack([d.pixel_array for d in read]).astype(np.int16)
        hu = np.array(stack.astype(np.float64) * read[0].RescaleSlope + read[0].RescaleIntercept)
        hu = (hu + 1024) / 4096
        for index, image in enumerate(hu):
            np.save(out / f"{series.parent.name}_{index}_{series.name}.npy", image)


def build_with(workers: int) -> Callable[[Path, Path], None]:
    """The sharder as its user runs it: the command, checksums, fsync, start of the interpreter and all."""

    def run(source: Path, out: Path) -> None:
        script = Path(__file__).with_name("build.py")
        call = [sys.executable, str(script), str(source), str(out), "--val", "--test", "--workers", str(workers)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"the sharder failed: {done.stderr.strip().splitlines()[-1]}")
        load(out)

    return run


def measure(pairs: int, repeats: int, scratch: Path | None) -> dict[str, Any]:
    """Run all ways in turn, ``repeats`` times after one round that is not counted.

    Returns
    -------
    dict
        Machine, versions, shapes, the seconds of every round, and for each way the slices per second (files, two a
        pair): median, lowest, highest; ratios of medians taken round by round; the largest process in MB.
    """
    ways = {
        "bare decode": bare_decode,
        "common script": common_script,
        "shards": build_with(1),
        "shards x 2": build_with(2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        generate(source, pairs)
        for turn in range(repeats + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way(source, out)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(out)
    files = 2 * pairs
    rates = {name: sorted(files / value for value in values) for name, values in seconds.items()}

    def ratio(name: str, reference: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds[name], seconds[reference], strict=True))

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
        },
        "largest_process_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    text = io.StringIO()
    print(
        f"{result['files']} files of {SIDE} x {SIDE}, uncompressed; {result['repeats']} rounds, {result['machine']}",
        file=text,
    )
    for name, rate in result["slices_per_second"].items():
        print(f"{name:15} {rate['median']:7.0f} slices/s ({rate['low']:.0f} to {rate['high']:.0f})", file=text)
    for name, value in result["ratios"].items():
        print(f"{name:24} {value:.2f}", file=text)
    print(f"largest process          {result['largest_process_mb']:.0f} MB", file=text, end="")
    return text.getvalue()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py shard``."""
    parser.add_argument("--pairs", type=int, default=512, help="slices at two doses (%(default)s: 540 MB of DICOM)")
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


def write_json(result: dict[str, Any], path: Path) -> None:
    """Keep the result."""
    write_text(path, json.dumps(result, indent=1) + "\n")
