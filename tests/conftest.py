"""What tests share: tiny shards by the real sharder, the flags of a tiny training run, and what may be skipped."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from phantom import make_dataset
from wandb_server import Server

from ldct.training.signals import CAUGHT
from shards.common.command import command

ROOT = Path(__file__).resolve().parents[1]

REQUIRE_ALL = "LDCT_REQUIRE_ALL"
"""Set by .ci/run: a test that cannot run here has failed."""
MAY_SKIP = {
    "torch can use the GPUs here": "tests what happens where it cannot",
    "this build of torch has the CUDA that": "launch/bench.py accept checks there what the guard shows without a GPU",
}
"""How the reasons begin for which a test may be skipped all the same, and why."""

# one thread a process: the tests' networks are too small to share, and two ranks must not fight for the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

# on a machine with GPUs too, what is tested is the CPU's: two ranks would share one GPU, which is refused
if any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def required(report):
    """``report``, a failure if it is of a skip where none may be."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(REQUIRE_ALL):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(tuple(MAY_SKIP)):
            report.outcome, report.longrepr = "failed", f"skipped, which {REQUIRE_ALL} forbids: {reason}"
    return report


def pytest_report_header():
    python, torch = platform.python_version(), importlib.metadata.version("torch")
    return f"Python {python}, torch {torch}, no others; those in a clone of their own: make test PYTHON=..."


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return required((yield))


@pytest.fixture(autouse=True)
def same_process():
    """A test leaves the environment and the signal handlers as it found them: another's jobs would inherit what it set,
    and a Latch replaces the handlers."""
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in CAUGHT}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def run_command(*argv, check=True, timeout=120, **kwargs):
    """Run one of the project's commands with this Python, from the project's root; returns the finished process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **kwargs}
    if argv[0] in forked.SCRIPTS and not kwargs:  # others are quick, or need their environment before they import
        done = forked.run(argv, environment, timeout)
    else:
        call = [sys.executable, *map(str, argv)]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def call(monkeypatch, capsys):
    """Run one of the project's commands in this process, which has torch already; exit status, output and errors."""

    def run(script, *argv):
        monkeypatch.setattr("sys.argv", [script, *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            command(importlib.import_module(script.removesuffix(".py").replace("/", ".")).main)
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory):
    """Shards of four patients: 128 training patches of 55 x 55 in 4 shards, 4 val and 4 test slices of 128 x 128."""
    folder = tmp_path_factory.mktemp("tiny")
    make_dataset(folder / "dicom", patients=("L067", "L096", "L109", "L143"), slices=4, size=128, seed=0)
    split = ["--val", "L096", "--test", "L143", "--stride", "24", "--shard-slices", "2"]
    run_command("shards/build.py", folder / "dicom", folder / "shards", *split)
    return folder / "shards"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Home folder of a user of W&B."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server():
    """A W&B server."""
    with Server() as made:
        yield made


SETPRIV = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
"""Takes from root the right to write where the mode of a folder forbids it."""


@pytest.fixture(scope="session")
def plainly():
    """What to put before a command so that modes of folders count, also for root."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv") or subprocess.run([*SETPRIV, "true"], capture_output=True).returncode:
        pytest.skip("runs as root, and no setpriv here that may take root's rights from a command")
    return SETPRIV


def tiny_flags(shards, run_dir, **changes):
    """Flags of a run of 20 steps that takes a second; ``changes`` by dotted name with __ for the dot."""
    fields = {
        "data.shards": shards,
        "data.window_shards": 2,
        "model.name": "redcnn",
        "model.channels": 4,
        "model.depth": 3,
        "optim.warmup": 2,
        "optim.ema": 0.9,
        "train.steps": 20,
        "train.global_batch": 8,
        "train.precision": "fp32",
        "train.log_every": 3,
        "val.every": 7,
        "val.slices": 2,
        "track.wandb": "disabled",
        "run_dir": run_dir,
    }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in fields.items()]
