"""What runs inside the job of a command: the command as a process of its own, watched; and the way back into the queue.

This module imports nothing slow: until the latch is set, a warning signal of SLURM would be lost.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from submitit.helpers import DelayedSubmission

from ldct.runs import folder as runs
from ldct.runs.attempts import Attempt, Superseded
from ldct.training.signals import STOPPED, Latch
from slurm.job import leave

GRACE_S = 20.0
"""Seconds for a command to end after Ctrl-C: it removes what is half-written. SLURM waits for 30 s before it kills."""

POLL_S = 0.2

PROGRESS = re.compile(r"[^:]+: (\d+)/(\d+) (?:.*?, (\d+) s left(?:,|$))?")
"""A line of shards.common.command.Progress in a log."""


class Failed(Exception):
    """The command ended with another status than 0."""


class RunPart:
    """A command, or a part of one, as submitit pickles, calls and requeues it.

    Parameters
    ----------
    folder : str
        Where its status stands, as an absolute path that all nodes see.
    argv : list of str
        Script, relative to the code that this module belongs to, and arguments.
    cwd : str
        Where it runs.
    """

    def __init__(self, folder: str, argv: list[str], cwd: str) -> None:
        self.folder, self.argv, self.cwd = folder, argv, cwd

    def __call__(self) -> str:
        latch = Latch()
        try:
            stopped = run(Path(self.folder), self.argv, self.cwd, latch)
        except Superseded as error:
            print(error, file=sys.stderr)
            sys.exit(STOPPED)
        if stopped is None:
            latch.close()
            return "finished"
        return leave(stopped, 0, latch)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit for what to put back into the queue: the command goes on where it stopped."""
        return DelayedSubmission(self)


class PartStatus:
    """The status.json of a part, in the hands of the attempt that works on it.

    Raises
    ------
    Superseded
        On writing, if the same part has been started again elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.fields = runs.read_status(folder)
        self.attempt = Attempt(folder, least=self.fields.attempt + 1)
        self.before_s, self.began = self.fields.train_s, time.monotonic()
        self.fields.attempt, self.fields.job = self.attempt.number, runs.slurm_job()
        self.fields.host, self.fields.pid = runs.here()
        self.write("running")
        self.attempt.remove_earlier()

    def write(self, state: str, error: str = "") -> None:
        """Write it, with the heartbeat."""
        fields = self.fields
        fields.state, fields.error = state, error
        fields.train_s = self.before_s + time.monotonic() - self.began
        if state != "running":
            fields.eta_s = None
        with self.attempt.writing(runs.STATUS) as own:
            runs.write_status(own.parent, fields)

    def beat(self) -> None:
        """Write the heartbeat if it is due."""
        if self.fields.due:
            self.write("running")


class Said:
    """Passes on what a command writes to its standard error; keeps its last words, and how far it says it is."""

    def __init__(self, stream: IO[str], fields: runs.Status) -> None:
        self.stream, self.fields = stream, fields
        self.last = ""
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.stream:
            sys.stderr.write(line)
            sys.stderr.flush()
            self.last = line.strip() or self.last
            if far := PROGRESS.match(line):
                self.fields.step, self.fields.steps = int(far[1]), int(far[2])
                self.fields.eta_s = float(far[3]) if far[3] else None

    def words(self) -> str:
        """The last line, when the stream has ended."""
        self.thread.join(timeout=GRACE_S)
        return self.last.removeprefix("error: ") or "no word of why"


def run(folder: Path, argv: list[str], cwd: str, latch: Latch) -> signal.Signals | None:
    """Run a command to its end; return the signal it was stopped for, None if it finished.

    Raises
    ------
    Failed
        If it fails; its last words stand in the status as well.
    Superseded
        If the same part has been started again elsewhere.
    """
    status = PartStatus(folder)
    root = Path(__file__).resolve().parents[1]
    # in a session of its own: SLURM signals the whole group of a task, and the command would die of the warning
    child = subprocess.Popen(
        [sys.executable, str(root / argv[0]), *argv[1:]],
        cwd=cwd, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    assert child.stderr
    said = Said(child.stderr, status.fields)
    try:
        wait(child, latch, status)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.returncode == 0:
        said.thread.join(timeout=GRACE_S)  # its last line says that all is done
        status.write("finished")
        return None
    if latch.signal:
        status.write("stopped")
        return signal.SIGUSR2 if latch.signal is signal.SIGUSR2 else signal.SIGTERM
    error = f"{said.words()} ({how(child.returncode)})"
    status.write("failed", error)
    raise Failed(error)


def wait(child: subprocess.Popen[str], latch: Latch, status: PartStatus) -> None:
    """Wait for ``child``, and keep the heartbeat; a signal is passed on as Ctrl-C, and then waited for GRACE_S."""
    told_at = 0.0
    while child.poll() is None:
        if latch.signal and not told_at:
            told_at = time.monotonic()
            child.send_signal(signal.SIGINT)
        if told_at and time.monotonic() - told_at > GRACE_S:
            return
        status.beat()
        time.sleep(POLL_S)


def how(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"exit status {returncode}"
    name = signal.Signals(-returncode).name
    return f"ended by {name}" + (", most likely for lack of memory" if name == "SIGKILL" else "")
