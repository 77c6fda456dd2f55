"""Checks for accept that end in every way a check can; in a module that its process can import."""

import os
import signal
import subprocess
import time
from pathlib import Path

from ldct.benchmarks.accept.isolation import Figure, LeftOut, at_most


def good(setting):
    print("what it printed")
    yield at_most("error", 0.5, 1)


def above_the_limit(setting):
    yield at_most("error", 0.5, 1)
    yield at_most("loss", float("nan"), 1)


def raises(setting):
    yield Figure("before", 1.0)
    raise ZeroDivisionError("broken on\npurpose")


def cannot_be(setting):
    raise LeftOut("not on a Sunday")
    yield


def is_killed(setting):
    yield Figure("before", 1.0)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(setting):
    """With a process of its own, which must not outlive it."""
    child = subprocess.Popen(["sleep", "1000"])
    Path(setting.shards, "pid").write_text(str(child.pid))
    yield Figure("before", 1.0)
    time.sleep(1000)
