"""What the benches share: the machine, variants that are measured alternating, the matrix product as the limit."""

import contextlib
import dataclasses
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ldct import models
from ldct.benchmarks import shard as sharder
from ldct.config import ModelConfig
from ldct.device import device_name
from shards.common.command import InputError

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]

DTYPES = (("fp32", torch.float32), ("bf16", torch.bfloat16))
"""Precisions as train.precision names them."""

NOT_MEASURED = "GPU: not measured, there is none here"


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure belongs to."""
    return {
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """The processor's name as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def nvidia_smi(field: str) -> list[str]:
    """A field of every GPU as nvidia-smi has it, e.g. driver_version; nothing where there is no nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def heading(result: dict[str, Any]) -> str:
    """The machine on one line."""
    about = f"{result['machine']}, {result['cores']} cores; {result['device']}; torch {result['torch']}"
    return f"{about}\n{NOT_MEASURED}" if result["device"].startswith("CPU") else about


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall clock of ``work``, with what it left the device to do."""
    wait_for(device)
    began = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Return when the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compute_mode() -> str:
    """Of the first GPU: Default, Exclusive_Process or Prohibited, as nvidia-smi says; empty where it does not."""
    return (nvidia_smi("compute_mode") or [""])[0]


def share_device(device: torch.device) -> None:
    """Raise an InputError where several processes are to be measured at once on a GPU that lets only one in."""
    if device.type == "cuda" and compute_mode() == "Exclusive_Process":
        raise InputError(
            "the GPU is in EXCLUSIVE_PROCESS mode, and variants are processes that take turns on it: use a GPU in "
            "DEFAULT mode (nvidia-smi -c 0, as root), or bench.py accept, which has one process at a time"
        )


@contextlib.contextmanager
def apart(variant: Callable[..., Generator[T]], *arguments: object) -> Iterator[Callable[[], T]]:
    """A function whose calls give what ``variant(*arguments)`` yields, one value a call, in a process of its own.

    As a user would run it: what the other variants set for their process (threads, precision, memory) or left in its
    allocator does not reach it.

    Raises
    ------
    InputError
        From a call, if the process ended.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_answer, args=(there, variant, *arguments))
    process.start()
    there.close()

    def ask() -> T:
        try:
            here.send(None)
            answer: T = here.recv()
        except (EOFError, OSError):
            raise InputError(f"{variant.__name__} ended while it was measured; its error stands above") from None
        return answer

    try:
        yield ask
    finally:
        here.close()
        process.join()


def _answer(pipe: Connection, variant: Callable[..., Generator[T]], *arguments: object) -> None:
    """The other end of ``apart``, until that closes the pipe."""
    with contextlib.closing(variant(*arguments)) as values:
        while True:
            try:
                pipe.recv()
            except (EOFError, OSError):
                return
            value = next(values)
            with contextlib.suppress(OSError):  # closed meanwhile, which the next recv will hear of
                pipe.send(value)


def alternate(variants: Mapping[str, Callable[[], T]], repeats: int, warmup: int = 1) -> dict[str, list[T]]:
    """What each variant says in ``repeats`` rounds, one variant after the other, after ``warmup`` that are not counted.

    Alternating, so that a machine that becomes slower for a while does so for all of them.
    """
    values: dict[str, list[T]] = {name: [] for name in variants}
    for repeat in range(warmup + repeats):
        for name, variant in variants.items():
            value = variant()
            if repeat >= warmup:
                values[name].append(value)
    return values


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Median over the rounds of ``values`` over ``baseline``."""
    return statistics.median(a / b for a, b in zip(values, baseline, strict=True))


def matrix_products(device: torch.device, size: int | None = None) -> dict[str, Callable[[], float]]:
    """The limit, by precision: each call says the FLOP per second of a large matrix product, the best of a few."""
    return {name: _product(dtype, device, size or (8192 if device.type == "cuda" else 2048)) for name, dtype in DTYPES}


def _product(dtype: torch.dtype, device: torch.device, size: int) -> Callable[[], float]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: a @ b]
    if device.type == "cpu" and dtype is torch.float32 and torch.backends.mkldnn.is_available():
        # what torch's fp32 convolutions use; MKL, behind matmul, is 2.5 times slower on an AMD EPYC
        x, weight = a.to_mkldnn(), b.to_mkldnn()
        products.append(lambda: F.linear(x, weight))
    return lambda: 2 * size**3 / min(seconds(product, device) for product in products for _ in range(3))


def flops(model: ModelConfig, shape: tuple[int, int], backward: bool = False) -> int:
    """FLOP of the network on an image of ``shape``, forward or both ways, as torch counts them: of convolutions and
    matrix products, two for each multiplication and addition."""
    with torch.device("meta"):
        network = models.create(dataclasses.replace(model, init="default"))
        image = torch.zeros(1, 1, *shape)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        output = network(image)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def generate(folder: Path, pairs: int) -> Path:
    """Shards of a water phantom, ``pairs`` slices of two patients, one to train and one to validate."""
    sharder.generate(folder / "dicom", pairs)
    shards, (_, second) = folder / "shards", sharder.PATIENTS
    call("shards/build.py", folder / "dicom", shards, "--val", second, "--test")
    return shards


def call(script: str, *arguments: object, before: Sequence[str] = (), **environment: str) -> None:
    """Run one of the project's commands to its end, ``before`` between Python and the script.

    Raises
    ------
    InputError
        If it fails, with its last line.
    """
    done = subprocess.run(
        [sys.executable, *before, str(ROOT / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{script} failed with status {done.returncode}: {last}")
