"""One check in a process of its own: what it breaks there, or takes too long for, reaches no other."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PASSED, FAILED, LEFT_OUT = "passed", "FAILED", "left out"

PRELOADED = ["ldct.benchmarks.accept", "ldct.attention.pictures", "torch._dynamo", "torch._inductor.config"]
"""What a server of processes imports once, for all that it starts. None of it may touch CUDA: they could not after."""

NOT_DONE = "not done in its time, ended; its figures up to then stand"
"""Said of a check that took longer than it may."""


class LeftOut(Exception):
    """A check that cannot be made here; the message says why."""


@dataclass(frozen=True)
class Figure:
    """One line of a check's result."""

    name: str
    value: float | str
    unit: str = ""
    wanted: str = ""
    """What it is held against, in words; empty for a figure that is only measured."""
    good: bool = True
    """Whether it is as wanted. A figure that is not makes its check fail."""
    speed: dict[str, Any] = field(default_factory=dict)
    """For ``launch/sweep.py --bench``: network, variant, precision, device, patches_per_s; only of published sizes."""


def at_most(name: str, value: float, limit: float, unit: str = "") -> Figure:
    """A figure that must not be above ``limit``; NaN is."""
    return Figure(name, value, unit, f"at most {limit:g}", value <= limit)


def holds(name: str, true: bool, otherwise: str = "no") -> Figure:
    """A statement that must be true; ``otherwise`` is what to show where it is not."""
    return Figure(name, "yes" if true else otherwise, "", "yes", true)


@dataclass(frozen=True)
class Setting:
    """Where, on what and how large checks are made."""

    shards: Path
    scratch: Path
    """Folder of this check alone."""
    gpu: bool
    small: bool
    """Networks and numbers of steps that take a moment, for a CPU or a first look."""
    method: str = "forkserver"
    """How processes are started: by Python's multiprocessing."""

    def needs_gpu(self) -> None:
        """Leave the check out where there is no GPU."""
        if not self.gpu:
            raise LeftOut("needs a GPU; there is none here")


@dataclass(frozen=True)
class Check:
    """Something that is shown or measured."""

    name: str
    what: str
    """What it shows, in a few words."""
    limit_s: float
    """Seconds after which it is ended."""
    figures: Callable[[Setting], Iterator[Figure]]
    """Yields each figure when it is known, so that what was measured before an error is kept."""


@dataclass
class Outcome:
    """What came of a check."""

    name: str
    what: str
    state: str = PASSED
    said: str = ""
    """Why it failed or was left out, one line."""
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


def carry_out(check: Check, setting: Setting, limit_s: float, log: Path) -> Outcome:
    """Make ``check``; what it prints goes to the file ``log``. It and all that it started are ended after ``limit_s``.

    Raises nothing that comes of the check: an error, a signal that kills it, and a hang are outcomes.
    """
    outcome, began = Outcome(check.name, check.what), time.monotonic()
    here, there = multiprocessing.Pipe(duplex=False)
    context: Any = multiprocessing.get_context(setting.method)
    process = context.Process(target=_child, args=(there, check, setting, log), name=check.name)
    try:
        process.start()
        there.close()
        _listen(here, process, outcome, began + limit_s)
    finally:
        here.close()
        end(process)
    if outcome.state == PASSED and (bad := [figure for figure in outcome.figures if not figure.good]):
        outcome.state, outcome.said = FAILED, f"{bad[0].name}: {shown(bad[0])}, wanted {bad[0].wanted}"
    outcome.seconds = time.monotonic() - began
    return outcome


def shown(figure: Figure) -> str:
    """Value and unit of a figure for people."""
    if isinstance(figure.value, str):
        return figure.value
    value = f"{figure.value:,.0f}" if abs(figure.value) >= 1000 else f"{figure.value:.4g}"
    return f"{value} {figure.unit}".strip()


def _listen(pipe: Connection, process: Any, outcome: Outcome, deadline: float) -> None:
    """Take what the check's process says, until it has said its last."""
    while True:
        if not pipe.poll(max(0.0, deadline - time.monotonic())):
            outcome.state, outcome.said = FAILED, NOT_DONE
            return
        try:
            said = pipe.recv()
        except EOFError:
            process.join(5)
            outcome.state, outcome.said = FAILED, f"its process ended with status {process.exitcode}"
            return
        if isinstance(said, Figure):
            outcome.figures.append(said)
        else:
            outcome.state, outcome.said = said
            return


def _child(pipe: Connection, check: Check, setting: Setting, log: Path) -> None:
    """The check's process."""
    os.setsid()  # so that whoever ends it ends all that it started
    with open(log, "ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    setting.scratch.mkdir(parents=True, exist_ok=True)
    try:
        for figure in check.figures(setting):
            pipe.send(figure)
        pipe.send((PASSED, ""))
    except LeftOut as why:
        pipe.send((LEFT_OUT, str(why)))
    except BaseException as error:  # an outcome, whatever it is
        traceback.print_exc()
        text = " ".join(str(error).split())
        pipe.send((FAILED, f"{type(error).__name__}: {text}"[:300]))
    sys.stdout.flush()
    os._exit(0)  # a broken device may hang in its destructors


def end(process: Any) -> None:
    """Kill ``process`` and its group, however it stands, and wait until it is gone."""
    if process.pid is None:
        return
    process.join(0.5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():  # it had no group of its own yet
        process.kill()
    process.join(10)
