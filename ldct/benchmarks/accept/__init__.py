"""Everything that one GPU can show, in one command and within minutes; on a CPU what makes sense there.

correctness.py   values: against the CPU, after an interruption, over ranks, exported
speed.py         patches and slices per second, launches, memory, where the time goes
isolation.py     a check in a process of its own, for so long and no longer
page.py          the table and the page
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ldct.benchmarks import common
from ldct.benchmarks.accept import correctness, page, speed
from ldct.benchmarks.accept.isolation import (
    FAILED,
    LEFT_OUT,
    NOT_DONE,
    PASSED,
    PRELOADED,
    Check,
    Outcome,
    Setting,
    carry_out,
)
from ldct.runs.folder import code_version, package_version
from shards.common.atomic import write_text
from shards.common.command import InputError

CHECKS = (
    Check("machine", "device, driver and versions", 60, speed.machine),
    Check("no waits", "a step never waits for the GPU", 60, correctness.no_waits),
    Check("CPU beside GPU", "the same losses, the same slice", 60, correctness.cpu_beside_gpu),
    Check("exact resume", "interrupted and continued: the same bytes", 90, correctness.exact_resume),
    Check("steps, RED-CNN", "patches/s beside the baseline and a matrix product", 75, speed.steps_redcnn),
    Check("recorded step", "train.cuda_graph gives the losses of the plain step", 60, correctness.recorded_step),
    Check("steps, recorded", "patches/s with train.cuda_graph", 60, speed.steps_recorded),
    Check("world of one", "DDP over the GPUs' backend", 45, correctness.world_of_one),
    Check("two ranks", "two processes train as one does", 75, correctness.two_ranks),
    Check("out of memory", "ends in advice that works", 60, correctness.out_of_memory),
    Check("where the time goes", "launches, busy share, time by layer", 60, speed.busy),
    Check("export", "one file, from and to CPU and GPU", 90, correctness.exported),
    Check("steps, U-Net", "patches/s beside the baseline and a matrix product", 75, speed.steps_unet),
    Check("slices", "slices/s, bf16's distance, memory", 75, speed.slices),
    Check("stores", "patches on the device, and read from the tars", 45, speed.stores),
    Check("steps, compiled", "patches/s with train.compile", 120, speed.steps_compiled),
)
"""In the order of importance: where the time does not suffice, the last ones are left out."""

SLICES = 64
"""Of the phantom that shards are made of for a GPU; 16 do for a CPU."""

ON_CPU = 4
"""How many times as long as on a GPU a check may take on a CPU, which others may be using too."""

LEAST_S = 10.0
"""With less time left than this, no check is begun."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py accept``."""
    parser.add_argument("--shards", type=Path, help="shards to use (default: of a water phantom, made first)")
    parser.add_argument("--out", type=Path, default=Path("accept"), help="folder of results and logs (%(default)s)")
    parser.add_argument("--minutes", type=float, default=9, help="time for all checks (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small networks and few steps; on a CPU always so")
    parser.add_argument("--only", nargs="+", metavar="CHECK", default=[], help=f"some of: {quoted()}")


def quoted() -> str:
    """The names of all checks, some of which have a comma, as a shell takes them."""
    return "; ".join(f"'{check.name}'" for check in CHECKS)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Make the checks, print and keep what they found; ``failed`` in the result is how many failed."""
    names = [check.name for check in CHECKS]
    if unknown := [name for name in options.only if name not in names]:
        raise InputError(f"--only {unknown[0]}: expected some of {quoted()}")
    if not options.minutes > 0:  # nan too
        raise InputError(f"--minutes: expected a positive number, found {options.minutes:g}")
    began, logs = time.monotonic(), options.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        gpu = usable_gpu()
        shards = options.shards or common.generate(Path(scratch), SLICES if gpu else 16)
        setting = Setting(
            shards.resolve(), Path(scratch), gpu, small=options.quick or not gpu, method=method(gpu, logs)
        )
        outcomes: list[Outcome] = []
        for number, check in enumerate(c for c in CHECKS if c.name in (options.only or names)):
            left = began + 60 * options.minutes - time.monotonic()
            own = dataclasses.replace(setting, scratch=setting.scratch / f"check-{number}")
            outcomes.append(made(check, own, left, logs))
            shutil.rmtree(own.scratch, ignore_errors=True)
            result = kept(options.out, outcomes, time.monotonic() - began)
    print(page.text(result))
    print(f"{options.out}: accept.json, accept.md, logs", file=sys.stderr)
    return result


def usable_gpu() -> bool:
    """Whether there is a GPU; one that torch cannot use is an error, lest a CPU's figures pass for its own."""
    there, usable = common.nvidia_smi("name"), torch.cuda.is_available()
    if there and not usable and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        raise InputError(
            f"nvidia-smi shows {there[0]}, but torch {torch.__version__} sees no GPU: install torch's build for its "
            "driver, or set CUDA_VISIBLE_DEVICES= to check the CPU"
        )
    return usable


def made(check: Check, setting: Setting, left_s: float, logs: Path) -> Outcome:
    """What came of ``check``, with a line of progress."""
    if left_s < LEAST_S:
        return Outcome(check.name, check.what, LEFT_OUT, "no time was left")
    log = logs / f"{check.name.replace(',', '').replace(' ', '-')}.log"
    limit_s = check.limit_s * (1 if setting.gpu else ON_CPU)
    outcome = carry_out(check, setting, min(limit_s, left_s), log)
    if left_s < limit_s and outcome.said == NOT_DONE and all(figure.good for figure in outcome.figures):
        outcome.state, outcome.said = LEFT_OUT, "no time was left to end it; its figures up to then stand"
    print(f"{outcome.state:8} {check.name}, {outcome.seconds:.0f} s  {outcome.said}", file=sys.stderr, flush=True)
    return outcome


def kept(folder: Path, outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """The result up to now, written to accept.json and accept.md."""
    code = code_version()
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "version": package_version("ldct"),
        "code": (code["commit"][:12] or "not known") + " with changes" * bool(code["diff"]),
        "command": f"python launch/bench.py {' '.join(sys.argv[1:])}",
        "seconds": seconds,
        "failed": sum(outcome.state == FAILED for outcome in outcomes),
        "checks": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    write_text(folder / "accept.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / "accept.md", page.markdown(result))
    return result


def method(gpu: bool, logs: Path) -> str:
    """How to start processes: from a server that has imported everything and not touched CUDA, where that works."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    if not gpu:
        return "forkserver"
    probe = Check("probe", "", 60, speed.machine)
    setting = Setting(Path(), Path(tempfile.gettempdir()), gpu, small=True)
    return "forkserver" if carry_out(probe, setting, 60, logs / "probe.log").state == PASSED else "spawn"
