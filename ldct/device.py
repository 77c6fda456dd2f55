"""The device that a process computes on: which one, its name, its precision, the memory that torch frees on a CPU."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from shards.common.command import InputError, first_line

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of mallopt(3), from glibc's malloc.h."""

DEVICE_FILES = Path("/dev")
"""Where NVIDIA's driver shows its GPUs: nvidia0, nvidia1, ..."""


def pick_device(name: str) -> torch.device:
    """The device called ``name``; auto = the GPU where there is one.

    Raises
    ------
    InputError
        If there is no such device here.
    """
    hide_gpus_not_given()
    if name == "auto":
        warn_of_unused_gpus()
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # meta has no values to copy: nothing could be computed on it
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name}: {first_line(error)}; expected auto, cpu, cuda or cuda:N") from None
    return device


def hide_gpus_not_given() -> None:
    """In a SLURM job that was given no GPU, see none; before the first call into CUDA.

    Where a cluster does not confine jobs to their devices, such a job sees its neighbours' GPUs and computes there.
    """
    told = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK")
    if "SLURM_JOB_ID" in os.environ and not any(os.environ.get(name) for name in told):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def warn_of_unused_gpus() -> None:
    """Say so in one line where this machine has GPUs that torch cannot use: the CPU would take their work unnoticed."""
    gpus = len(list(DEVICE_FILES.glob("nvidia[0-9]*")))
    if not gpus or "CUDA_VISIBLE_DEVICES" in os.environ or torch.cuda.is_available():
        return
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs alone"
    print(
        f"warning: this machine has {gpus} NVIDIA GPU(s), but torch {torch.__version__}, built {build}, can use none: "
        "computing on the CPU; install the build of torch for the driver that nvidia-smi names, or set "
        "CUDA_VISIBLE_DEVICES= to leave them out",
        file=sys.stderr,
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU with its threads: what a speed belongs to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def full_precision() -> None:
    """Make GPUs compute fp32 in fp32: cuDNN's convolutions round to TF32, 10 bits of mantissa, unless told not to."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the device's memory does not suffice; cuDNN and cuBLAS have errors of their own."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    signs = ("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def free_memory() -> int | None:
    """Bytes that Linux can still give to processes, no more than this one's control group may have (cgroup 2, as SLURM
    sets it); None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        group = Path("/sys/fs/cgroup", *Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip().split("/"))
    except (OSError, StopIteration):
        return None
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # "max", or no such group
            free = min(free, int((folder / "memory.max").read_text()))
    return free


@contextlib.contextmanager
def advising(advice: str) -> Iterator[None]:
    """Around work on the device: where its memory does not suffice, an InputError with ``advice``."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise InputError(advice) from error


def keep_freed() -> None:
    """Let this process keep the memory it frees, to use it again.

    By default glibc gives every freed feature map or gradient above 32 MB, and what lies free on top of its heap, back
    to the system, which maps and zeroes as many pages again a moment later: 36,000 of them in a step of U-Net.
    Without that, whole slices are denoised 1.3 times as fast (docs/speed.md). The process then holds its peak of
    memory, until give_back. Without glibc nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, -1)


def give_back() -> None:
    """Give what is free back to the system now: for the end of a longer piece of work.

    What is free lies in pieces, and where none fits, more is taken: in one run of 320 slices U-Net's process grew from
    768 to 1,034 MB (glibc 2.36), in others it did not grow. After this the next piece of work starts from what is in
    use, so nothing adds up over a series. Once every 8 slices it costs 4 % of the time.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
